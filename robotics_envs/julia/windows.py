"""Many control intervals under given actions in one call of Julia, as one node of autograd's graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from robotics_envs.julia.env import JuliaSimulator

NONE, STATES_AND_ACTIONS, ALL = range(3)
"""What a Jacobian is by."""


def simulate(
    s: JuliaSimulator, derivatives: int, x: Tensor, controls: Tensor, p: Tensor
) -> tuple[Tensor, Tensor, int]:
    """States ``[T + 1, B, n]`` with the initial ones ``x`` first, costs ``[T, B]``, and how many rollouts failed."""
    if derivatives == NONE:
        states, costs, _, failures = _simulate(s, NONE, x, controls, p)
        return states, costs, failures
    states, costs, failures = _Window.apply(s, derivatives, x, controls, p)
    return states, costs, failures


def _simulate(
    s: JuliaSimulator, derivatives: int, x: Tensor, controls: Tensor, p: Tensor
) -> tuple[Tensor, Tensor, Tensor, int]:
    steps, count = controls.shape[:2]
    states, costs = x.new_empty(steps + 1, count, s.states), x.new_empty(steps, count)
    states[0] = x
    wide = s.inputs(derivatives)
    jacobian = x.new_empty(steps, count, wide, s.states + 1 if wide else 0, dtype=torch.float64)
    failures = s.runtime.window(
        s.number, int(x.dtype == torch.float32), count, steps, derivatives, int(p.ndim == 1),
        controls.data_ptr(), p.data_ptr(), states.data_ptr(), costs.data_ptr(), jacobian.data_ptr(),
    )  # fmt: skip
    return states, costs, jacobian, failures


class _Window(torch.autograd.Function):
    """``apply(simulator, derivatives, x, controls, p) -> states, costs, failures``."""

    @staticmethod
    def forward(
        ctx: Any, s: JuliaSimulator, derivatives: int, x: Tensor, controls: Tensor, p: Tensor
    ) -> tuple[Tensor, Tensor, int]:
        states, costs, jacobian, failures = _simulate(s, derivatives, x, controls, p)
        ctx.simulator, ctx.derivatives = s, derivatives
        ctx.like = x.detach(), controls.shape, p.ndim
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(jacobian)
        return states, costs, failures

    @staticmethod
    def backward(ctx: Any, by_states: Tensor | None, by_costs: Tensor | None, *_: Any) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "a simulator in Julia has first derivatives only (create_graph=True asks for second ones)"
            )
        (jacobian,) = ctx.saved_tensors
        s, (x, shape, dimensions) = ctx.simulator, ctx.like
        steps, count = shape[:2]
        by_states = x.new_zeros(steps + 1, count, s.states) if by_states is None else by_states.contiguous()
        by_costs = x.new_zeros(steps, count) if by_costs is None else by_costs.contiguous()
        by_x, by_u = x.new_empty(count, s.states), x.new_empty(shape)
        by_p = x.new_empty(count, s.parameters if ctx.derivatives == ALL else 0)
        s.runtime.pull_window(
            s.number, int(x.dtype == torch.float32), count, steps, ctx.derivatives, jacobian.data_ptr(),
            *(g.data_ptr() for g in (by_states, by_costs, by_x, by_u, by_p)),
        )  # fmt: skip
        if dimensions == 1:  # shared by all rollouts
            by_p = by_p.sum(0)
        return None, None, by_x, by_u, by_p if ctx.needs_input_grad[4] else None
