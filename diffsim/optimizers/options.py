"""What can be set of an optimizer: names, defaults and meanings, for the command line and the documentation."""

from __future__ import annotations

import inspect
from typing import Any, Literal, NamedTuple, get_args, get_origin

from diffsim.config import Named, Settings
from diffsim.optimizers import optimizer_class
from diffsim.optimizers.first_order import FirstOrder, FirstOrderSettings, own_options


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
        inner = chosen.inner_class()
        parameters = inspect.signature(inner).parameters
        theirs = [Option(k, parameters[k].default, f"of {inner.__name__}") for k in own_options(inner)]
        names = {option.name for option in theirs}
        listed = theirs + [option for option in listed if option.name not in names]
    common = set(FirstOrderSettings.model_fields) - {"lr"}
    return sorted(listed, key=lambda option: option.name in common)


def _option(settings: type[Settings], key: str) -> Option:
    # A default that a subclass changes keeps the meaning it has in the class above.
    above = [kind for kind in settings.__mro__ if issubclass(kind, Settings) and key in kind.model_fields]
    described = (kind.model_fields[key].description for kind in above)
    field = settings.model_fields[key]
    default, choices = field.default, get_args(field.annotation)
    shown = default.name if isinstance(default, Named) else default
    meaning = " ".join(next((d for d in described if d), "").split())
    if get_origin(field.annotation) is Literal:
        meaning = f"{meaning} One of {', '.join(choices)}.".strip()
    return Option(key, shown, meaning)
