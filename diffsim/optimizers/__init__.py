"""Optimizers with one interface: first order, quasi-Newton, populations, and one followed by another."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from diffsim.config import OPTIMIZERS, Named, load_class, registered, validate
from diffsim.errors import ConfigError
from diffsim.optimizers.base import Optimizer, Scenarios, StepReport
from diffsim.optimizers.first_order import any_first_order, optimizer_classes
from diffsim.optimizers.objective import Gradient, Objective, Samples, Vector
from lazy_registry.registry import unknown

__all__ = [
    "OPTIMIZERS",
    "Gradient",
    "Objective",
    "Optimizer",
    "Samples",
    "Scenarios",
    "StepReport",
    "Vector",
    "canonical",
    "is_shipped",
    "make_optimizer",
    "optimizer_class",
    "optimizer_settings",
]

_LIBRARIES = ("torch.optim.", "pytorch_optimizer.")


def optimizer_class(name: str) -> type[Optimizer]:
    """The class of a name: one in the registry, one in torch.optim, or a dotted name such as ``torch.optim.NAdam``.

    ``"my_file.py:MyOptimizer"`` or ``"module:MyOptimizer"`` is a user's :class:`Optimizer` or torch optimizer.

    Raises:
        ConfigError: there is no such class.
    """
    torchs = optimizer_classes()
    lower = canonical(name)
    if lower in OPTIMIZERS:
        return load_class(OPTIMIZERS, lower)
    if lower in torchs:
        return any_first_order(torchs[lower])
    if ":" in name:
        found = load_class(OPTIMIZERS, name)
    else:
        module, _, attribute = name.rpartition(".")
        if not module:
            raise ConfigError(
                unknown("optimizer", name, {*OPTIMIZERS, *torchs})
                + " (or another class by its dotted name, such as torch.optim.NAdam)"
            )
        try:
            found = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"optimizer {name!r}: {error}") from None
    if isinstance(found, type) and issubclass(found, Optimizer):
        return found
    if found is torch.optim.LBFGS:
        return load_class(OPTIMIZERS, "lbfgs")
    return any_first_order(found)


def canonical(name: str) -> str:
    """``name`` as the registry or torch.optim spells it, such as cma_es for CMA-ES; other names unchanged."""
    lower = name.lower()
    return registered(OPTIMIZERS, name) or (lower if lower in optimizer_classes() else name)


def is_shipped(name: str) -> bool:
    """Whether a name leads to an optimizer of this project, torch.optim or pytorch_optimizer, not to a user's code."""
    known = canonical(name)
    return known in OPTIMIZERS or known in optimizer_classes() or name.startswith(_LIBRARIES)


def optimizer_settings(config: Named, section: str = "optimizer") -> Any:
    """The validated options of the optimizer that ``config`` names.

    Raises:
        ConfigError: an unknown name or option, or an impossible value.
    """
    return validate(optimizer_class(config.name).Settings, config.options, section)


def make_optimizer(parameters: Iterable[nn.Parameter], config: Named | str, seed: int = 0) -> Optimizer:
    """A new optimizer of ``parameters`` with the name and options in ``config``.

    Raises:
        ConfigError: an unknown name or option, or an impossible value.
    """
    config = Named(name=config) if isinstance(config, str) else config
    chosen = optimizer_class(config.name)
    return chosen(parameters, validate(chosen.Settings, config.options, "optimizer"), seed)
