"""The options of an optimizer with defaults and descriptions, for the command line and the documentation."""

from __future__ import annotations

import inspect
from typing import Any, Literal, NamedTuple, get_args, get_origin

from diffsim.config import Named
from diffsim.optimizers import optimizer_class
from diffsim.optimizers.first_order import FirstOrder, FirstOrderSettings, own_options
from diffsim.settings import Settings


class Option(NamedTuple):
    name: str
    default: Any
    meaning: str


def options(name: str) -> list[Option]:
    """The options of the optimizer ``name``; options that all first-order optimizers share come last.

    Raises:
        ConfigError: there is no such optimizer.
    """
    chosen = optimizer_class(name)
    listed = [_option(chosen.Settings, key) for key in chosen.Settings.model_fields]
    if issubclass(chosen, FirstOrder) and chosen.Settings.model_config.get("extra") == "allow":
        inner = chosen.inner_class()
        parameters = inspect.signature(inner).parameters
        theirs = [
            Option(k, parameters[k].default, f"Option of {inner.__name__}.") for k in own_options(inner)
        ]
        names = {option.name for option in theirs}
        listed = theirs + [option for option in listed if option.name not in names]
    common = set(FirstOrderSettings.model_fields) - {"lr"}
    return sorted(listed, key=lambda option: option.name in common)


def _option(settings: type[Settings], key: str) -> Option:
    # A subclass that changes only the default of a field inherits its description.
    above = [kind for kind in settings.__mro__ if issubclass(kind, Settings) and key in kind.model_fields]
    described = (kind.model_fields[key].description for kind in above)
    field = settings.model_fields[key]
    default, choices = field.default, get_args(field.annotation)
    shown = default.name if isinstance(default, Named) else default
    meaning = " ".join(next((d for d in described if d), "").split())
    if get_origin(field.annotation) is Literal:
        meaning = f"{meaning} One of {', '.join(choices)}.".strip()
    return Option(key, shown, meaning)
