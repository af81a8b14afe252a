"""``solve``: initial-value problems of a batch, differentiable by states, times, controls and parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from solvers.adjoints.checkpoint import CheckpointedMarch, CheckpointedSteps
from solvers.adjoints.continuous import ContinuousAdjoint, discard
from solvers.adjoints.replay import replay, without_failed
from solvers.arguments import (
    check_signature,
    checked_controller,
    checked_controls,
    checked_state,
    checked_times,
)
from solvers.compiler.trace import NativeUnsupportedError
from solvers.engines.torchdiffeq_methods import TorchdiffeqSolver, integrate_legs
from solvers.failure import SolveError, describe
from solvers.marching.events import Event
from solvers.marching.grid import make_grid
from solvers.marching.inspection import check_field
from solvers.marching.march import Track, march
from solvers.marching.problem import Counted, Leaves, Problem, states_at_outputs
from solvers.marching.step_size import StepSizeController
from solvers.methods.base import Solver, VectorField
from solvers.methods.runge_kutta import ExplicitRungeKutta
from solvers.modes import normal_tensors, outside_inference_mode, without_autocast_cache
from solvers.native.adaptive import NativeMarch, Run, kernel_for, logger
from solvers.solution import EventLog, Solution, Statistics, no_steps
from solvers.validation import real_number, whole_number


def solve(
    f: VectorField,
    x0: Tensor,
    ts: Tensor | Sequence[float],
    u: Any = None,
    p: Any = None,
    *,
    solver: str | Solver = "tsit5",
    adjoint: str | None = None,
    dt: float | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    control_times: Tensor | Sequence[float] | None = None,
    events: Event | Sequence[Event] = (),
    on_failure: str = "raise",
    max_steps: int | None = None,
    controller: StepSizeController | None = None,
    event_samples: int = 8,
    max_events: int = 100,
    backend: str = "eager",
) -> Solution:
    """Solve ``dx/dt = f(t, x, u, p)`` from ``x0`` at ``ts[0]`` to ``ts[-1]``.

    ``solve(lambda t, x, u, p: -x, torch.ones(3, 1), [0.0, 1.0]).xs[-1]`` is ``exp(-1)`` for three rollouts.

    Args:
        f: the vector field ``(t, x [*batch, n], u, p) -> [*batch, n]``.  It must not mix rollouts.  t is a scalar or,
            where every rollout has its own time, ``[*batch]``: write ``x[..., i]`` with t, not ``x`` with t.
        x0: initial states ``[*batch, n]``, float32 or float64.  It fixes dtype and device of the solve.
        ts: times of the outputs ``[T]``, T >= 2, strictly increasing or strictly decreasing; the first is the
            initial time.  For adaptive methods also ``[T, *batch]``, a row of times for every rollout.
        u: controls, passed to f.  With ``control_times`` a tensor (or a tree of tensors) ``[K, ...]``, of which
            ``u[k]`` is held from ``control_times[k]`` to the next; no step crosses a switch.
        p: parameters, passed to f: a tensor, any tree of tensors, modules.
        solver: a name of :data:`solvers.SOLVERS`, ``"module:Class"`` or a :class:`~solvers.methods.base.Solver`.
        adjoint: how gradients are computed, one of the method's ``adjoints``; the default is the first of them.
            ``backprop`` and ``implicit`` record the steps (memory: a graph per step); ``checkpoint`` keeps the states
            and repeats the steps, with the same gradient; ``adjoint`` solves the continuous adjoint equation
            backwards (memory: the outputs; gradient: to the tolerance).  See docs/solvers.md for measurements.
        dt: the longest step, for steps of fixed length.  Adaptive methods choose their own without it.
        rtol, atol: tolerances of an adaptive step; 1e-6 each by default, 1e-4 in float32.
        control_times: ``[K]``, strictly increasing; the first must not be after the start.
        events: see :mod:`solvers.marching.events`.
        on_failure: "raise" a :class:`~solvers.failure.SolveError`, or "mark" failed rollouts in ``status``: their
            states are NaN from the failure on and do not enter a gradient; the other rollouts are kept.  ``ok`` is the
            mask of those (states of a failed rollout before its failure are finite, and constants).
        max_steps: limit of the attempted steps of a rollout; 100,000 by default, no limit with dt.
        controller: a :class:`~solvers.marching.step_size.StepSizeController`, instead of rtol and atol.
        event_samples: number of points in a step at which events are looked for.
        max_events: limit of the events of one rollout.
        backend: "eager", or "native": tsit5 and dopri5 on a CPU run in C++ made from f (see
            :mod:`solvers.native.adaptive` for what tracing fixes), differentiated by ``checkpoint``.  Where f cannot be
            translated, or there is no compiler, the eager back end is used and the reason is logged once.

    Works under ``torch.no_grad``, ``torch.inference_mode`` (f runs outside of it, on copies of inference tensors) and
    ``torch.autocast``, which a backward pass restores.

    Raises:
        ValueError, TypeError: an argument is wrong; the message says which and why.  ValueError too where steps are
            computed more than once and f draws random numbers or updates a module's buffer: adaptive steps, events,
            on_failure="mark", implicit and Rosenbrock methods, and every adjoint but ``backprop``.
        SolveError: some rollout failed; the message says when, which, and what to change.
    """
    with outside_inference_mode(), without_autocast_cache():
        x0, ts, u, p, control_times = normal_tensors((x0, ts, u, p, control_times))
        return _solve(
            f, x0, ts, u, p, solver, adjoint, dt, rtol, atol, control_times, events, on_failure, max_steps,
            controller, event_samples, max_events, backend,
        )  # fmt: skip


def _solve(
    f: VectorField,
    x0: Tensor,
    ts: Any,
    u: Any,
    p: Any,
    solver: str | Solver,
    adjoint: str | None,
    dt: float | None,
    rtol: float | None,
    atol: float | None,
    control_times: Any,
    events: Event | Sequence[Event],
    on_failure: str,
    max_steps: int | None,
    controller: StepSizeController | None,
    event_samples: int,
    max_events: int,
    backend: str,
) -> Solution:
    from solvers import make_solver

    method = make_solver(solver) if isinstance(solver, str) else solver
    if not isinstance(method, Solver):
        raise TypeError(f"solver must be a name or a Solver, got {type(method).__name__}")
    check_signature(f)
    x0 = checked_state(x0)
    ts = checked_times("ts", ts, x0, minimum=2)
    name = solver if isinstance(solver, str) else type(method).__name__
    if backend not in ("eager", "native"):
        raise ValueError(f"backend must be 'eager' or 'native', got {backend!r}")
    if backend == "native" and adjoint not in (None, "checkpoint"):
        raise ValueError(f"backend='native' is differentiated by 'checkpoint', not by {adjoint!r}")
    if adjoint is None:
        adjoint = (
            "checkpoint" if backend == "native" and "checkpoint" in method.adjoints else method.adjoints[0]
        )
    if adjoint not in method.adjoints:
        raise ValueError(
            f"solver {name!r} cannot be differentiated by adjoint={adjoint!r}; it can by: {', '.join(method.adjoints)}"
        )
    if on_failure not in ("raise", "mark"):
        raise ValueError(f"on_failure must be 'raise' or 'mark', got {on_failure!r}")
    listed = events if isinstance(events, (list, tuple)) else (events,)
    if any(not isinstance(event, Event) for event in listed):
        raise TypeError("events must be solvers.Event objects")
    events = tuple(listed)
    foreign = isinstance(method, TorchdiffeqSolver)
    if foreign:
        refused = {"events": events, "controller": controller, "max_steps": max_steps}
        given = [key for key, value in refused.items() if value not in (None, ())]
        if given:
            raise ValueError(
                f"{', '.join(given)} do not apply to torchdiffeq's methods; pass torchdiffeq's own options "
                f"through make_solver({name!r}, ...), or take one of our methods"
            )
    if events and adjoint == "adjoint":
        raise ValueError("adjoint='adjoint' does not carry gradients through events; use 'checkpoint'")
    held_times = None
    if control_times is not None:
        held_times = checked_controls(control_times, u, ts, x0)
    if dt is not None:
        dt = real_number("dt", dt, positive=True, wanted="be a positive number")
    rtol = None if rtol is None else real_number("rtol", rtol)
    atol = None if atol is None else real_number("atol", atol)
    controller = checked_controller(name, method, x0, ts, dt, rtol, atol, controller)
    if ts.ndim > 1 and foreign:
        raise ValueError("torchdiffeq's methods share their times; use one of our adaptive methods")
    if max_steps is None:
        max_steps = 100_000 if controller is not None else torch.iinfo(torch.int64).max
    max_steps = whole_number("max_steps", max_steps, least=1)
    max_events = whole_number("max_events", max_events, least=1)
    event_samples = whole_number("event_samples", event_samples, least=1)

    sign = 1.0
    requested = ts
    if bool((ts[-1] < ts[0]).any()):
        # Backwards in time: the same equation in -t.
        sign, ts, forward = -1.0, -ts, f
        held_times = None if held_times is None else -held_times
        f = lambda t, x, u, p: -forward(-t, x, u, p)
        events = tuple(_reversed(event) for event in events)
    grid = make_grid(ts, held_times, dt if controller is None and not foreign else None, sign)
    problem = Problem(
        f=Counted(f),
        method=method,
        x0=x0,
        u=u,
        p=p,
        ts=ts,
        grid=grid,
        holds_controls=held_times is not None,
        controller=controller,
        events=events,
        event_samples=event_samples,
        max_events=max_events,
        max_steps=max_steps,
    )
    leaves = Leaves.of(forward if sign < 0 else f, u, p)
    solution = None
    if backend == "native":
        try:
            solution = _solve_native(problem, leaves, on_failure, requested, sign)
        except NativeUnsupportedError as error:
            logger.debug("eager instead of native: %s", error)
    if solution is None:
        per_rollout = not foreign and (controller is not None or bool(events) or on_failure == "mark")
        # Newton's iterations and Jacobians evaluate f again; so does a march that is repeated for its gradient.
        recomputed = adjoint != "backprop" or per_rollout or method.rollout_times
        captured = check_field(
            name,
            problem,
            leaves,
            adjoint,
            per_rollout=per_rollout or method.rollout_times,
            recomputed=recomputed,
        )
        if foreign:
            solution = _solve_foreign(problem, leaves, adjoint, on_failure, requested, rtol, atol, dt)
        elif per_rollout or max_steps < len(grid.controls):
            solution = _solve_per_rollout(problem, leaves, adjoint, on_failure, requested, sign, captured)
        else:
            solution = _solve_fixed(problem, leaves, adjoint, requested, sign)
    if adjoint == "adjoint" and not foreign:
        return solution  # its backward pass differentiates by the times itself
    return replace(solution, xs=_read_at_switches(problem, held_times, solution.xs))


def _solve_fixed(problem: Problem, leaves: Leaves, adjoint: str, requested: Tensor, sign: float) -> Solution:
    """All rollouts take the same steps of fixed length."""
    grid = problem.grid
    problem.f.calls = 0
    try:
        if adjoint == "checkpoint":
            xs = CheckpointedSteps.apply(
                problem, leaves, problem.x0, grid.start, grid.targets, *leaves.tensors()
            )
        elif adjoint == "adjoint":
            xs = ContinuousAdjoint.apply(
                problem, None, leaves, problem.x0, grid.start, grid.targets, problem.ts, *leaves.tensors()
            )
        else:
            xs = states_at_outputs(problem)
        healthy = bool(torch.isfinite(xs[-1]).all())
    except SolveError:
        healthy = False
    calls = problem.f.calls
    if not healthy:
        # A march with a status per rollout finds the failure again; f still gets a scalar time.
        plain = problem.f
        shared = Counted(lambda t, x, u, p: plain(t.amax(), x, u, p))
        again = problem if problem.method.rollout_times else replace(problem, f=shared)
        track = march(again, keep_states=False, stop_at_failure=True)
        raise _failure(problem, track, sign)
    batch = problem.x0.shape[:-1]
    none = no_steps(batch, problem.x0.device)
    statistics = Statistics(calls, none + len(grid.controls), none)
    return Solution(requested, xs, none, none.bool(), None, statistics)


def _solve_per_rollout(
    problem: Problem,
    leaves: Leaves,
    adjoint: str,
    on_failure: str,
    requested: Tensor,
    sign: float,
    captured: bool,
) -> Solution:
    """Every rollout has its own steps: a march without a graph finds them, then they are repeated with a graph."""
    inputs = (problem.x0, problem.ts, problem.grid.targets, *leaves.tensors())
    wants_gradient = torch.is_grad_enabled() and (captured or any(q.requires_grad for q in inputs))
    problem.f.calls = 0
    track = march(
        problem,
        keep_states=adjoint == "checkpoint",
        stop_at_failure=on_failure == "raise",
        visit=None if wants_gradient and adjoint != "adjoint" else discard,
    )
    calls = problem.f.calls
    failed = track.status != 0
    any_failed = bool(failed.any())
    if any_failed and on_failure == "raise":
        raise _failure(problem, track, sign)
    values = xs, times, states = track.outputs.tensors()
    if wants_gradient:
        kept = without_failed(track)
        if adjoint == "checkpoint":
            xs, times, states = CheckpointedMarch.apply(
                problem, kept, leaves, problem.x0, problem.grid.start, problem.grid.targets, problem.ts,
                *leaves.tensors(),
            )  # fmt: skip
        elif adjoint == "adjoint":
            xs = ContinuousAdjoint.apply(
                problem, kept, leaves, problem.x0, problem.grid.start, problem.grid.targets, problem.ts,
                *leaves.tensors(),
            )  # fmt: skip
        else:
            xs, times, states = replay(problem, kept).tensors()
    each = problem.ts.detach().reshape(
        len(problem.ts), *([1] * failed.ndim) if problem.ts.ndim == 1 else failed.shape
    )
    beyond = (each > track.seen).unsqueeze(-1)
    if problem.events:
        xs = torch.where(beyond & track.stopped.unsqueeze(-1), xs[-1], xs)
    if any_failed:
        lost = failed.unsqueeze(-1)
        xs = torch.where(lost, torch.where(beyond, torch.nan, values[0]), xs)
        if len(times):
            times, states = torch.where(failed, values[1], times), torch.where(lost, values[2], states)
    log = None
    if problem.events:
        which = track.outputs.event_which
        batch = failed.shape
        numbers = torch.stack(which) if which else no_steps(batch, xs.device).new_zeros((0, *batch))
        log = EventLog(torch.where(torch.isfinite(times), sign * times, times), states, numbers)
    statistics = Statistics(calls, track.accepted, track.rejected)
    return Solution(requested, xs, track.status, track.stopped, log, statistics)


def _solve_foreign(
    problem: Problem,
    leaves: Leaves,
    adjoint: str,
    on_failure: str,
    requested: Tensor,
    rtol: float | None,
    atol: float | None,
    dt: float | None,
) -> Solution:
    """A solve by torchdiffeq, where a failure concerns the whole batch."""
    problem.f.calls = 0
    method, x0 = problem.method, problem.x0
    assert isinstance(method, TorchdiffeqSolver)
    tolerances: dict[str, float] = {}
    if method.takes_tolerances:
        default = 1e-6 if x0.dtype == torch.float64 else 1e-4
        tolerances = {"rtol": default if rtol is None else rtol, "atol": default if atol is None else atol}
    none = no_steps(x0.shape[:-1], x0.device)
    status = none
    counts: dict[str, Any] = {}
    try:
        xs, counts = integrate_legs(problem, leaves, adjoint, tolerances, dt)
    except SolveError as error:
        if on_failure == "raise":
            raise
        status = error.status
        xs = torch.cat((x0.unsqueeze(0), x0.detach().new_full((len(problem.ts) - 1, *x0.shape), torch.nan)))
    statistics = Statistics(
        problem.f.calls, none + counts.get("accepted", 0), none + counts.get("rejected", 0)
    )
    return Solution(requested, xs, status, none.bool(), None, statistics)


def _solve_native(
    problem: Problem, leaves: Leaves, on_failure: str, requested: Tensor, sign: float
) -> Solution:
    """The whole solve in compiled code."""
    run = Run(problem, leaves, kernel_for(problem, leaves))
    tensors = (problem.x0, problem.grid.start, problem.grid.targets, problem.ts, *leaves.tensors())
    wants_gradient = torch.is_grad_enabled() and any(q.requires_grad for q in tensors)
    xs = run.forward(wants_gradient)
    if on_failure == "raise" and bool((run.status != 0).any()):
        message = describe(run.status, sign * run.failed_at, run.last_step, adaptive=True)
        raise SolveError(message, run.status)
    if wants_gradient:
        xs = NativeMarch.apply(run, leaves, xs, *tensors)
    attempts = int((run.accepted + run.rejected).max())
    assert isinstance(problem.method, ExplicitRungeKutta)
    calls = 2 + attempts * (len(problem.method.tableau.b) - 1)
    statistics = Statistics(calls, run.accepted, run.rejected)
    return Solution(requested, xs, run.status, torch.zeros_like(run.status).bool(), None, statistics)


def _read_at_switches(problem: Problem, control_times: Tensor | None, xs: Tensor) -> Tensor:
    """Outputs at the time of a switch, made to depend on the output's time instead of the switch's.

    Adds ``f (t_output - t_switch)``, which is zero, with the control before the switch.
    """
    grid = problem.grid
    if (
        not grid.on_switch
        or control_times is None
        or not (problem.ts.requires_grad or control_times.requires_grad)
    ):
        return xs
    rows = list(xs)
    for output, switch in grid.on_switch.items():
        leg = grid.at_target.index(output)
        t, x = grid.targets[leg].detach().expand(xs.shape[1:-1]), rows[output].detach()
        with torch.no_grad():
            slope = problem.f(t, x, problem.held(leg), problem.p)
        rows[output] = rows[output] + slope * (problem.ts[output] - control_times[switch])
    return torch.stack(rows)


def _failure(problem: Problem, track: Track, sign: float) -> SolveError:
    message = describe(track.status, sign * track.t, track.last_step, adaptive=problem.controller is not None)
    return SolveError(message, track.status)


def _reversed(event: Event) -> Event:
    jump = event.jump
    return Event(
        lambda t, x, u, p: event.function(-t, x, u, p),
        None if jump is None else lambda t, x, u, p: jump(-t, x, u, p),
        event.terminal,
        event.direction,
    )
