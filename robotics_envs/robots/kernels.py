"""The fields of a robot as compiled functions, for steps outside of a compiled rollout.

Written in scalars, a field is thousands of small operations of torch: they are traced once, and then compiled.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor

from solvers.compiler.fingerprint import Identity
from solvers.compiler.structure import is_structure_only
from solvers.compiler.trace import NativeUnsupportedError, active_tracer
from solvers.native.build import NoCompilerError
from solvers.native.function import FunctionKernel

logger = logging.getLogger("robotics_envs")

_kernels: OrderedDict[tuple[str, str, torch.dtype], FunctionKernel | None] = OrderedDict()
_MOST = 64
PACKAGES = ("robotics_envs", "solvers", "lazy_registry")
"""What the traces of our robots' fields depend on."""


def evaluate(key: tuple[str, str], function: Callable[[Tensor], Tensor], x: Tensor, width: int) -> Tensor:
    """``function(x) [..., width]`` for ``x [..., k]``, by a kernel where there can be one.

    Args:
        key: what the function is known by: the model and the name of the field.
    """
    if (is_structure_only() or x.is_meta) and active_tracer() is None:
        # What is asked is the shape, and that it depends on all numbers.
        return x.sum(-1, keepdim=True).expand(*x.shape[:-1], width)
    kernel = _kernel(key, function, x)
    if kernel is None:
        return function(x)
    return kernel(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], width)


def _kernel(key: tuple[str, str], function: Callable[[Tensor], Tensor], x: Tensor) -> FunctionKernel | None:
    if active_tracer() is not None or torch.compiler.is_compiling() or x.device.type != "cpu":
        return None
    if x.dtype not in (torch.float32, torch.float64) or type(x) not in (Tensor, torch.nn.Parameter):
        return None
    known = (*key, x.dtype)
    if known not in _kernels:
        _kernels[known] = _compiled(key, function, x)
        while len(_kernels) > _MOST:
            _kernels.popitem(last=False)
    _kernels.move_to_end(known)
    return _kernels[known]


def _compiled(key: tuple[str, str], function: Callable[[Tensor], Tensor], x: Tensor) -> FunctionKernel | None:
    # Of a class defined elsewhere, nobody knows what the trace depends on.
    own = type(getattr(function, "__self__", None)).__module__.partition(".")[0] == PACKAGES[0]
    known_as = (*key, Identity(function.__func__.__code__)) if own else None  # type: ignore[attr-defined]
    try:
        with torch.inference_mode(False):
            return FunctionKernel(function, x.shape[-1], x.dtype, known_as, PACKAGES)
    except NativeUnsupportedError as error:
        if not isinstance(error, NoCompilerError):  # which is logged once, where it is found
            logger.warning("%s of a robot is not compiled, which takes many times as long: %s", key[1], error)
        return None
