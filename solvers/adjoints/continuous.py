"""The adjoint ``adjoint``: solve the continuous adjoint equation backwards, from output to output.

With ``dλ/dt = -λᵀ df/dx`` and a jump by the incoming gradient at every output, the gradients are λ at the
start and ``∫ λᵀ df/dp dt`` (Chen et al., Neural Ordinary Differential Equations, 2018, appendix B).
The state is solved backwards along with λ and reset at every output, so only the outputs are stored; the
gradient is that of the exact solution, which the discrete one approaches with the tolerance or dt.
Where the solution is strongly damped or stiff, the backward solve is unstable: then use ``checkpoint``.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from solvers.adjoints.base import Adjoint, attach_gradient
from solvers.failure import SolveError, describe
from solvers.marching.grid import Grid
from solvers.marching.march import march
from solvers.marching.problem import Counted, Problem
from solvers.marching.track import Kept, Outputs, Stride, Track
from solvers.modes import AutocastState


class ContinuousAdjoint(Adjoint):
    """Solves the continuous adjoint equation backwards; the method must be a Runge–Kutta method with a tableau."""

    name = "adjoint"
    keeps = "nothing"
    by_output_times = True

    def check(self, problem: Problem) -> None:
        """Events are refused."""
        if problem.events:
            raise ValueError("adjoint='adjoint' does not carry gradients through events; use 'checkpoint'")

    def outputs(self, problem: Problem, track: Track) -> Outputs:
        """The values of the track, and the backward solve as their gradient."""
        return track.outputs._replace(xs=_with_backward_solve(problem, track, track.outputs.xs))

    def equal_steps(self, problem: Problem) -> Tensor:
        """Steps of fixed length, without a graph; the backward solve takes steps of the same lengths."""
        with torch.no_grad():
            outputs = [x for leg, x in problem.equal_steps() if problem.grid.at_target[leg] >= 0]
            xs = torch.stack((problem.x0, *outputs))
        return _with_backward_solve(problem, None, xs)


def _with_backward_solve(problem: Problem, track: Track | None, xs: Tensor) -> Tensor:
    """The outputs ``xs``; track is None for steps of fixed length."""
    autocast = AutocastState.now(problem.x0.device)
    (xs,) = attach_gradient(problem, (xs,), functools.partial(_backward, problem, track, autocast), (xs,))
    return xs


def _backward(
    problem: Problem, track: Track | None, autocast: AutocastState, kept: tuple[Tensor], by_xs: Tensor
) -> list[Tensor]:
    leaves = problem.leaves
    problem = replace(problem, f=Counted(autocast.wrap(problem.f)))
    xs = kept[0].detach()
    grid, ts = problem.grid, problem.ts.detach()
    frozen = None
    if track is not None:
        frozen = track.status != 0
        lost = frozen.unsqueeze(-1)
        xs, by_xs = torch.where(lost, track.safe, xs), torch.where(lost, 0.0, by_xs)
    by_ts, by_start = torch.zeros_like(ts), torch.zeros_like(grid.start)
    by_targets = torch.zeros_like(grid.targets)
    totals = leaves.zeros()
    cotangent = torch.zeros_like(problem.x0)
    x = xs[-1]
    for leg in range(len(grid.controls) - 1, -1, -1):
        index = grid.controls[leg] if problem.holds_controls else None
        backwards = _Backwards(problem, index, totals, frozen)
        end = grid.targets[leg].detach()
        output = grid.at_target[leg]
        field = lambda t, x, backwards=backwards: problem.f(t, x, backwards.u, backwards.p)
        if leg + 1 < len(grid.controls) and grid.controls[leg + 1] != grid.controls[leg]:
            after = problem.f(_times(end, x), x, problem.held(leg + 1), problem.p)
            jump = (cotangent * (field(_times(end, x), x) - after)).sum(-1)
            by_targets[leg] += jump.sum() if by_targets.ndim == 1 else jump
        # From the end of the leg through the outputs inside it to its beginning.
        for i in [output, *reversed(grid.inside[leg])]:
            if i >= 0:
                t_output = end if i == output else ts[i]
                if i != output:
                    x, cotangent = backwards.solve(end, t_output, x, cotangent)
                    end = t_output
                x = xs[i]
                pull = (by_xs[i] * field(_times(end, x), x)).sum(-1)
                by_ts[i] += pull.sum() if by_ts.ndim == 1 else pull
                cotangent = cotangent + by_xs[i]
        begin = (grid.targets[leg - 1] if leg else grid.start).detach()
        x, cotangent = backwards.solve(end, begin, x, cotangent)
    index = grid.controls[0] if problem.holds_controls else None
    u, p, _ = leaves.detached(index)
    begin = grid.start.detach()
    push = -(cotangent * problem.f(_times(begin, x), xs[0], u, p).detach()).sum(-1)
    by_start += push.sum() if by_start.ndim == 0 else push
    return [cotangent + by_xs[0], by_start, by_targets, by_ts, *totals]


def _times(t: Tensor, x: Tensor) -> Tensor:
    return t.expand(x.shape[:-1])


class _Backwards:
    """The augmented equation of [x, λ] in the time -t, under one held control."""

    def __init__(
        self,
        problem: Problem,
        index: int | None,
        totals: list[Tensor],
        frozen: Tensor | None,
    ) -> None:
        self.problem, self.index = problem, index
        self.totals, self.frozen = totals, frozen
        self.u, self.p, self.own = problem.leaves.detached(index)

    def __call__(self, minus_t: Tensor, z: Tensor, u: Any, p: Any) -> Tensor:
        with torch.enable_grad():
            x, cotangent = z.detach().chunk(2, dim=-1)
            x = x.detach().requires_grad_(True)
            slope = self.problem.f(-minus_t, x, self.u, self.p)
            pulled = None
            if slope.requires_grad:
                (pulled,) = torch.autograd.grad(slope, x, cotangent, allow_unused=True)
        return torch.cat((-slope.detach(), torch.zeros_like(x) if pulled is None else pulled), dim=-1)

    @torch.no_grad()
    def solve(self, end: Tensor, begin: Tensor, x: Tensor, cotangent: Tensor) -> tuple[Tensor, Tensor]:
        """From ``end`` back to ``begin``; adds ``∫ λᵀ df/dp dt`` to the totals."""
        z = torch.cat((x, cotangent), dim=-1)
        ts = torch.stack((-end, -begin))
        back = replace(
            self.problem,
            f=Counted(self),
            x0=z,
            ts=ts,
            grid=Grid(ts[0], ts[1:], [0], [1], [[]]),
            control_times=None,
            events=(),
        )
        keep: Kept = "states" if self.own else "nothing"
        quadrature = functools.partial(self._quadrature, back, ts[1]) if self.own else None
        track = march(back, keep=keep, stop_at_failure=True, frozen=self.frozen, visit=quadrature)
        if bool((track.status != 0).any()):
            where = (
                "in the backward solve of adjoint='adjoint' (the equation may be stiffer backwards; "
                "adjoint='checkpoint' needs no backward solve): "
            )
            adaptive = back.controller is not None
            message = describe(track.status, -track.t, track.last_step, adaptive=adaptive, where=where)
            raise SolveError(message, track.status)
        x, cotangent = track.x.chunk(2, dim=-1)
        return x, cotangent

    def _quadrature(self, back: Problem, target: Tensor, stride: Stride) -> None:
        """The method's own quadrature of a stride, ``h Σ b_i λ_iᵀ df/dp(t_i, x_i)``, added to the totals."""
        t, z = stride.t, stride.x
        assert t is not None
        assert z is not None
        h = torch.where(stride.to_target, target - t, stride.h)
        method: Any = back.method
        table = method.tableau
        stages = method.stages(back.f, t, z, None, None, h)[0]
        for weight, c, stage in zip(table.b, table.c, stages, strict=True):
            if weight == 0.0:
                continue
            x, cotangent = stage.chunk(2, dim=-1)
            with torch.enable_grad():
                slope = self.problem.f(-(t + c * h), x, self.u, self.p)
                if not slope.requires_grad:
                    continue
                gradients = torch.autograd.grad(
                    slope, self.own, weight * h.unsqueeze(-1) * cotangent, allow_unused=True
                )
            self.problem.leaves.add(self.totals, gradients, self.index)
