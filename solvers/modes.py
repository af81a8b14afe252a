"""Torch's modes: inference mode where autograd is needed, autocast in a backward pass, second derivatives.

Jacobians, event rates and fields that differentiate an energy need autograd, which ``torch.inference_mode`` switches
off and whose graphs cannot hold inference tensors.  Gradients that cannot be differentiated again raise an error where
that is asked for.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map


@contextlib.contextmanager
def without_autocast_cache() -> Iterator[None]:
    """Without autocast's cache of casts.

    A cached cast belongs to many steps' graphs and sums their gradients in the low precision.
    """
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(cached)


@contextlib.contextmanager
def outside_inference_mode() -> Iterator[None]:
    """Without inference mode where it is active (there without gradients, as in it); nothing otherwise."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield


def normal_tensors(tree: Any) -> Any:
    """The tree with a copy in the place of every inference tensor; outside of inference mode a normal tensor."""
    if not any(isinstance(leaf, Tensor) and leaf.is_inference() for leaf in tree_leaves(tree)):
        return tree
    return tree_map(_normal, tree)


def _normal(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) and value.is_inference() else value


class NormalTensors(TorchFunctionMode):
    """While active, operations take copies of inference tensors, which autograd can save.

    Operations in place are done in inference mode on the tensor itself.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        in_place = name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
        if in_place and args and isinstance(args[0], Tensor) and args[0].is_inference():
            with torch.inference_mode():
                return func(*args, **kwargs)
        if name in ("is_inference", "__get__"):
            return func(*args, **kwargs)
        return func(*normal_tensors(args), **normal_tensors(kwargs))


def with_normal_tensors(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's value; where autograd refuses an inference tensor, computed with copies of such tensors."""
    try:
        return function(*arguments)
    except RuntimeError as error:
        if "nference tensor" not in str(error):
            raise
    with NormalTensors():
        return function(*normal_tensors(arguments))


@dataclass(frozen=True)
class AutocastState:
    """Torch's autocast state of the CPU and of a device: ``(device type, enabled, dtype)`` of each."""

    states: tuple[tuple[str, bool, torch.dtype], ...]

    @staticmethod
    def now(device: torch.device) -> AutocastState:
        """The present state."""
        kinds = ("cpu",) if device.type == "cpu" else ("cpu", device.type)
        return AutocastState(
            tuple((k, torch.is_autocast_enabled(k), torch.get_autocast_dtype(k)) for k in kinds)
        )

    @property
    def enabled(self) -> bool:
        """Whether autocast acts on some device."""
        return any(enabled for _, enabled, _ in self.states)

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Compute under this state, whatever the present one is, and without a cache of casts."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(without_autocast_cache())
            for kind, enabled, dtype in self.states:
                now = (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
                if now != (enabled, dtype) and (enabled or now[0]):
                    stack.enter_context(
                        torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False)
                    )
            yield

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, computed under this state wherever it is called (in a backward pass, for one)."""

        def wrapped(*arguments: Any) -> Any:
            with self.restored():
                return function(*arguments)

        return wrapped


def first_derivatives_only(backward: Callable[..., Any]) -> Callable[..., Any]:
    """For a backward pass whose gradient has no graph.

    torch's ``once_differentiable`` raises no error where the loss itself is differentiated twice.
    """

    @functools.wraps(backward)
    def checked(ctx: Any, *gradients: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "create_graph=True asks for second derivatives, which only adjoint='backprop' of an eager solve "
                "with an explicit or a Rosenbrock method and without events has"
            )
        return backward(ctx, *gradients)

    return checked


class _Identity(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    @first_derivatives_only
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def without_second_derivatives(x: Tensor) -> Tensor:
    """x, whose second derivatives are refused: a constant Jacobian gives the right first ones only."""
    return _Identity.apply(x)
