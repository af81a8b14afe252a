"""Optimizers of ``torch.optim`` that do not load torch's compiler.

``add_param_group``, ``step``, ``state_dict`` and others are decorated for ``torch.compile``, and the first call of such
a decorator imports ``torch._dynamo``, which takes as long as importing torch itself.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any, TypeVar

import torch

Kind = TypeVar("Kind", bound=torch.optim.Optimizer)

_DECORATED = ("add_param_group", "state_dict", "load_state_dict", "zero_grad")


def undecorated(kind: type[Kind]) -> type[Kind]:
    """A subclass of ``kind`` with the functions that torch decorated; ``kind`` itself if it is not torch's.

    It computes the same bits.  It is not meant for ``torch.compile``, or for ``differentiable=True``.
    """
    if not kind.__module__.startswith("torch.optim."):
        return kind
    return _subclass(kind)  # type: ignore[arg-type]  # classes are hashable


@functools.cache
def _subclass(kind: Any) -> Any:
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in _DECORATED}
    methods["step"] = torch.no_grad()(inspect.unwrap(kind.step))
    return type(kind.__name__, (kind,), {**methods, "__module__": kind.__module__, "__doc__": kind.__doc__})
