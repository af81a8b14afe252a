"""Gradients that cannot be differentiated again, and raise an error where that is asked for."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


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
