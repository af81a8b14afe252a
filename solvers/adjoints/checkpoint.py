"""The adjoint ``checkpoint``: only the states are kept, and the backward pass repeats every step.

The gradient is that of the discrete solution, the same as with ``backprop``; the memory is one state per step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from solvers.adjoints.replay import advance, ends_leg
from solvers.first_order import first_derivatives_only
from solvers.marching.march import Track
from solvers.marching.outputs import output_times
from solvers.marching.problem import Leaves, Problem
from solvers.modes import AutocastState


class CheckpointedMarch(torch.autograd.Function):
    """A solve with a track; ``apply(problem, track, leaves, x0, start, targets, ts, *leaves.tensors())``."""

    @staticmethod
    def forward(ctx: Any, problem: Problem, track: Track, leaves: Leaves, *tensors: Tensor) -> Any:
        ctx.problem, ctx.track, ctx.leaves = problem, track, leaves
        ctx.autocast = AutocastState.now(problem.x0.device)
        ctx.save_for_backward(*tensors)
        xs, times, states = track.outputs.tensors()
        return xs, times, states

    @staticmethod
    @first_derivatives_only
    def backward(ctx: Any, by_xs: Tensor, by_times: Tensor, by_states: Tensor) -> Any:
        problem, track, leaves = ctx.problem, ctx.track, ctx.leaves
        repeat = ctx.autocast.wrap(advance)
        _ = ctx.saved_tensors  # raises where a tensor was changed in place since
        ts, grid = problem.ts.detach(), problem.grid
        by_start = torch.zeros_like(grid.start)
        by_targets = torch.zeros_like(grid.targets)
        by_ts = torch.zeros_like(problem.ts)
        totals = leaves.zeros()
        by_x = torch.zeros_like(problem.x0)
        by_t = by_x.new_zeros(by_x.shape[:-1])
        for k in range(len(track.strides) - 1, -1, -1):
            stride = track.strides[k]
            if ends_leg(track, k) and grid.at_target[stride.leg] >= 0:
                by_x = by_x + by_xs[grid.at_target[stride.leg]]
            index = grid.controls[stride.leg] if problem.holds_controls else None
            with torch.enable_grad():
                assert stride.t is not None
                assert stride.x is not None
                t, x = stride.t.detach().requires_grad_(True), stride.x.detach().requires_grad_(True)
                target = grid.targets[stride.leg].detach().requires_grad_(True)
                u, p, own = leaves.detached(index)
                inputs = [t, x, target, *own]
                cotangents = [by_t, by_x]
                times = None
                if stride.inside is not None:
                    times = output_times(ts, stride.inside[0], t).detach().requires_grad_(True)
                    inputs.append(times)
                    wanted = torch.where(stride.inside[1].unsqueeze(-1), by_xs[stride.inside[0]], 0.0)
                    cotangents.append(wanted)
                step = repeat(problem, stride, t, x, target.expand(t.shape), times, u, p)
                if stride.event is not None:
                    assert stride.slot is not None
                    fired = stride.event >= 0
                    slot = torch.where(fired, stride.slot, 0).unsqueeze(0)
                    cotangents[0] = by_t + torch.where(fired, by_times.gather(0, slot)[0], 0.0)
                    wide = slot.unsqueeze(-1).expand(1, *by_x.shape)
                    cotangents.append(torch.where(fired.unsqueeze(-1), by_states.gather(0, wide)[0], 0.0))
                pairs = [(y, g) for y, g in zip(step.tensors(), cotangents, strict=True) if y.requires_grad]
                gradients = torch.autograd.grad(
                    [y for y, _ in pairs], inputs, [g for _, g in pairs], allow_unused=True
                )
            if stride.inside is not None:
                *gradients, at_times = gradients  # type: ignore[assignment]
                if at_times is not None:
                    by_ts = _add_times(by_ts, stride.inside[0], at_times)
            now_t, now_x, at_target, *rest = gradients
            by_t = torch.zeros_like(by_t) if now_t is None else now_t
            by_x = torch.zeros_like(by_x) if now_x is None else now_x
            if at_target is not None:
                by_targets[stride.leg] += at_target
            leaves.add(totals, rest, index)
        failed = (track.status != 0).unsqueeze(-1)
        by_x = torch.where(failed, 0.0, by_x) + by_xs[0]
        by_start = by_start + (by_t.sum() if by_start.ndim == 0 else by_t)
        return None, None, None, by_x, by_start, by_targets, by_ts, *totals


def _add_times(by_ts: Tensor, indices: list[int], at_times: Tensor) -> Tensor:
    per_output = at_times if by_ts.ndim > 1 else at_times.flatten(1).sum(1) if at_times.ndim > 1 else at_times
    return by_ts.index_add(0, torch.tensor(indices, device=by_ts.device), per_output)


class CheckpointedSteps(torch.autograd.Function):
    """Steps of fixed length without events: one buffer of states, filled in place.

    ``apply(problem, leaves, x0, start, targets, *leaves.tensors())``.
    """

    @staticmethod
    def forward(ctx: Any, problem: Problem, leaves: Leaves, *tensors: Tensor) -> Any:
        states = problem.x0.new_empty((len(problem.grid.controls) + 1, *problem.x0.shape))
        states[0] = problem.x0
        for leg, x in problem.equal_steps():
            states[leg + 1] = x
        ctx.problem, ctx.leaves, ctx.rows = problem, leaves, output_rows(problem)
        ctx.autocast = AutocastState.now(problem.x0.device)
        # Where every state is an output, the buffer itself is the outputs.
        xs = states if ctx.rows == list(range(len(states))) else states[ctx.rows]
        ctx.save_for_backward(states, *tensors)
        return xs

    @staticmethod
    @first_derivatives_only
    def backward(ctx: Any, by_xs: Tensor) -> Any:
        problem, leaves, grid = ctx.problem, ctx.leaves, ctx.problem.grid
        states = ctx.saved_tensors[0]
        repeat = ctx.autocast.wrap(problem.method.step)
        start, targets = grid.start.detach(), grid.targets.detach()
        totals = leaves.zeros()
        by_start, by_targets = torch.zeros_like(start), torch.zeros_like(targets)
        by_x = torch.zeros_like(problem.x0)
        output_of = {row: i for i, row in enumerate(ctx.rows)}
        for leg in range(len(grid.controls) - 1, -1, -1):
            if leg + 1 in output_of:
                by_x = by_x + by_xs[output_of[leg + 1]]
            index = grid.controls[leg] if problem.holds_controls else None
            with torch.enable_grad():
                t = (targets[leg - 1] if leg else start).detach().requires_grad_(True)
                target = targets[leg].detach().requires_grad_(True)
                x = states[leg].detach().requires_grad_(True)
                u, p, own = leaves.detached(index)
                stepped = repeat(problem.f, t, x, u, p, target - t)
                by_x, by_t, at_target, *rest = torch.autograd.grad(
                    stepped, [x, t, target, *own], by_x, allow_unused=True
                )
            if by_x is None:
                by_x = torch.zeros_like(problem.x0)
            if at_target is not None:
                by_targets[leg] += at_target
            if by_t is not None:
                if leg:
                    by_targets[leg - 1] += by_t
                else:
                    by_start += by_t
            leaves.add(totals, rest, index)
        return None, None, by_x + by_xs[0], by_start, by_targets, *totals


def output_rows(problem: Problem) -> list[int]:
    """The indices of the states at steps of fixed length that are outputs."""
    return [0] + [leg + 1 for leg, output in enumerate(problem.grid.at_target) if output >= 0]
