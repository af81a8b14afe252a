"""Derivatives of a vector field, rollout by rollout."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from solvers.methods.base import State, VectorField
from solvers.modes import normal_tensors, outside_inference_mode, with_normal_tensors


def linearize(
    f: VectorField, t: float | Tensor, x: State, u: Any, p: Any
) -> tuple[State, Float[Tensor, "*batch n n"], State]:
    """``f``, its Jacobian ``df/dx`` (rows by output) and ``df/dt``, for every rollout; rollouts must not mix.

    n vector-Jacobian products (vjps), batched.  Differentiable where gradients are enabled.
    """
    if torch.is_inference_mode_enabled() or x.is_inference():
        with outside_inference_mode():
            return linearize(f, *normal_tensors((t, x, u, p)))
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        times = torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(x.shape[:-1])
        if differentiable and not (x.requires_grad or times.requires_grad):
            differentiable = with_normal_tensors(f, times, x, u, p).requires_grad
        if not (differentiable and x.requires_grad):
            x = x.detach().requires_grad_(True)
        if not (differentiable and times.requires_grad):
            times = times.detach().requires_grad_(True)
        slope = with_normal_tensors(f, times, x, u, p)
        by_x = by_t = None
        if slope.requires_grad:
            n = x.shape[-1]
            basis = torch.eye(n, dtype=x.dtype, device=x.device)
            basis = basis.reshape(n, *([1] * (x.ndim - 1)), n).expand(n, *slope.shape)
            by_x, by_t = torch.autograd.grad(
                slope,
                (x, times),
                basis,
                create_graph=differentiable,
                allow_unused=True,
                is_grads_batched=True,
            )
    jacobian = x.new_zeros(*x.shape, x.shape[-1]) if by_x is None else by_x.movedim(0, -2)
    rate = torch.zeros_like(x) if by_t is None else by_t.movedim(0, -1)
    return (slope, jacobian, rate) if differentiable else (slope.detach(), jacobian.detach(), rate.detach())
