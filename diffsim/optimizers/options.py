"""The options of an optimizer with defaults and descriptions, for the command line and the documentation."""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import textwrap
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
    described = (_docstrings(kind).get(key) for kind in settings.__mro__ if issubclass(kind, Settings))
    field = settings.model_fields[key]
    default, choices = field.default, get_args(field.annotation)
    shown = default.name if isinstance(default, Named) else default
    meaning = " ".join(next((d for d in described if d), "").split())
    if get_origin(field.annotation) is Literal:
        meaning = f"{meaning} One of {', '.join(choices)}.".strip()
    return Option(key, shown, meaning)


@functools.cache
def _docstrings(settings: type[Settings]) -> dict[str, str]:
    """The docstrings below the fields that a class of settings defines; none where its source is not at hand.

    Pydantic would read them (``use_attribute_docstrings``) whenever the class is imported, which takes longer than
    everything else that it does with the class.
    """
    try:
        (kind,) = ast.parse(textwrap.dedent(inspect.getsource(settings))).body
    except (OSError, TypeError, SyntaxError, ValueError):
        return {}
    assert isinstance(kind, ast.ClassDef)
    return {
        field.target.id: inspect.cleandoc(below.value.value)
        for field, below in itertools.pairwise(kind.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        if isinstance(below.value.value, str)
    }
