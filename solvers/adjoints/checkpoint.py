"""The adjoint ``checkpoint``: only the states are kept, and the backward pass repeats every step.

The gradient is that of the discrete solution, the same as with ``backprop``; the memory is one state per step.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from solvers.adjoints.backprop import Advanced, StrideInputs, advance
from solvers.adjoints.base import Adjoint, attach_gradient
from solvers.marching.problem import Problem
from solvers.marching.track import Outputs, Track, output_times
from solvers.modes import AutocastState


class Checkpoint(Adjoint):
    """Keeps the states and repeats the steps in the backward pass."""

    name = "checkpoint"

    def outputs(self, problem: Problem, track: Track) -> Outputs:
        """The values of the track, whose strides the backward pass repeats."""
        repeat = AutocastState.now(problem.x0.device).wrap(advance)
        backward = partial(_backward_of_track, problem, track, repeat)
        return Outputs(*attach_gradient(problem, track.outputs, backward))

    def equal_steps(self, problem: Problem) -> Tensor:
        """Steps of fixed length: one buffer of states, filled in place."""
        grid = problem.grid
        with torch.no_grad():
            states = problem.x0.new_empty((len(grid.controls) + 1, *problem.x0.shape))
            states[0] = problem.x0
            for leg, x in problem.equal_steps():
                states[leg + 1] = x
        rows = [0] + [leg + 1 for leg, output in enumerate(grid.at_target) if output >= 0]
        # Where every state is an output, the buffer itself is the outputs.
        xs = states if rows == list(range(len(states))) else states[rows]
        step = AutocastState.now(problem.x0.device).wrap(problem.method.step)
        (xs,) = attach_gradient(problem, (xs,), partial(_backward_of_steps, problem, rows, step), (states,))
        return xs


def _backward_of_track(
    problem: Problem,
    track: Track,
    repeat: Callable[..., Advanced],
    kept: tuple[Tensor, ...],
    by_xs: Tensor,
    by_times: Tensor,
    by_states: Tensor,
) -> list[Tensor]:
    leaves, grid, ts = problem.leaves, problem.grid, problem.ts.detach()
    by_start = torch.zeros_like(grid.start)
    by_targets = torch.zeros_like(grid.targets)
    by_ts = torch.zeros_like(ts)
    totals = leaves.zeros()
    by_x = torch.zeros_like(problem.x0)
    by_t = by_x.new_zeros(by_x.shape[:-1])
    for k in range(len(track.strides) - 1, -1, -1):
        stride = track.strides[k]
        if track.ends_leg(k) and grid.at_target[stride.leg] >= 0:
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
            step = repeat(problem, stride, t, x, StrideInputs(target.expand(t.shape), times, u, p))
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
    return [by_x, by_start, by_targets, by_ts, *totals]


def _add_times(by_ts: Tensor, indices: list[int], at_times: Tensor) -> Tensor:
    per_output = at_times if by_ts.ndim > 1 else at_times.flatten(1).sum(1) if at_times.ndim > 1 else at_times
    return by_ts.index_add(0, torch.tensor(indices, device=by_ts.device), per_output)


def _backward_of_steps(
    problem: Problem, rows: list[int], step: Callable[..., Tensor], kept: tuple[Tensor], by_xs: Tensor
) -> list[Tensor | None]:
    leaves, grid = problem.leaves, problem.grid
    (states,) = kept
    start, targets = grid.start.detach(), grid.targets.detach()
    totals = leaves.zeros()
    by_start, by_targets = torch.zeros_like(start), torch.zeros_like(targets)
    by_x = torch.zeros_like(problem.x0)
    output_of = {row: i for i, row in enumerate(rows)}
    for leg in range(len(grid.controls) - 1, -1, -1):
        if leg + 1 in output_of:
            by_x = by_x + by_xs[output_of[leg + 1]]
        index = grid.controls[leg] if problem.holds_controls else None
        with torch.enable_grad():
            t = (targets[leg - 1] if leg else start).detach().requires_grad_(True)
            target = targets[leg].detach().requires_grad_(True)
            x = states[leg].detach().requires_grad_(True)
            u, p, own = leaves.detached(index)
            stepped = step(problem.f, t, x, u, p, target - t)
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
    return [by_x + by_xs[0], by_start, by_targets, None, *totals]
