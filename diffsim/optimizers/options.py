"""What can be set of an optimizer: names, defaults and meanings, for the command line and the documentation."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

from diffsim.config import Named, Settings
from diffsim.optimizers import optimizer_class
from diffsim.optimizers.first_order import FirstOrder, FirstOrderSettings


class Option(NamedTuple):
    name: str
    default: Any
    meaning: str


def options(name: str) -> list[Option]:
    """The options of the optimizer called ``name``, its own before those of its kind.

    Raises:
        ConfigError: there is none.
    """
    chosen = optimizer_class(name)
    listed = [_option(chosen.Settings, key) for key in chosen.Settings.model_fields]
    if issubclass(chosen, FirstOrder) and chosen.Settings.model_config.get("extra") == "allow":
        parameters = list(inspect.signature(chosen.inner_class()).parameters.values())[1:]
        given = [p for p in parameters if p.default is not inspect.Parameter.empty]
        theirs = [Option(p.name, p.default, f"of {chosen.inner_class().__name__}") for p in given]
        names = {option.name for option in theirs}
        listed = theirs + [option for option in listed if option.name not in names]
    common = set(FirstOrderSettings.model_fields) - {"lr"}
    return sorted(listed, key=lambda option: option.name in common)


def _option(settings: type[Settings], key: str) -> Option:
    # A default that a subclass changes keeps the meaning it has in the class above.
    above = [kind for kind in settings.__mro__ if issubclass(kind, Settings) and key in kind.model_fields]
    described = (kind.model_fields[key].description for kind in above)
    default = settings.model_fields[key].default
    shown = default.name if isinstance(default, Named) else default
    return Option(key, shown, " ".join(next((d for d in described if d), "").split()))
