"""``solve``: initial-value problems of a batch, differentiable by states, times, controls and parameters."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from solvers.adjoints.backprop import Backprop, Implicit
from solvers.adjoints.base import Adjoint
from solvers.adjoints.checkpoint import Checkpoint
from solvers.adjoints.continuous import ContinuousAdjoint
from solvers.compiler.trace import NativeUnsupportedError
from solvers.engines.base import Engine
from solvers.engines.eager import EqualSteps, RolloutSteps
from solvers.engines.native import NativeSteps
from solvers.engines.torchdiffeq import TorchdiffeqSteps
from solvers.marching.arguments import checked_problem
from solvers.marching.events import Event
from solvers.marching.problem import Problem
from solvers.marching.step_size import Controller
from solvers.methods.base import Solver, VectorField
from solvers.methods.torchdiffeq_methods import TorchdiffeqSolver
from solvers.modes import outside_inference_mode, without_autocast_cache
from solvers.native.adaptive import kernel_for
from solvers.solution import Solution

logger = logging.getLogger("solvers")

ADJOINTS: dict[str, Adjoint] = {
    made.name: made for made in (Backprop(), Implicit(), Checkpoint(), ContinuousAdjoint())
}
"""The adjoints that ``solve`` takes by name."""


def solve(
    f: VectorField,
    x0: Tensor,
    ts: Tensor | Sequence[float],
    u: Any = None,
    p: Any = None,
    *,
    solver: str | Solver = "tsit5",
    adjoint: str | Adjoint | None = None,
    dt: float | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    control_times: Tensor | Sequence[float] | None = None,
    events: Event | Sequence[Event] = (),
    on_failure: str = "raise",
    max_steps: int | None = None,
    controller: Controller | None = None,
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
            backwards (memory: the outputs; gradient: to the tolerance).  Or one of your own, an
            :class:`~solvers.Adjoint`.  See docs/solvers.md for measurements.
        dt: the longest step, for steps of fixed length.  Adaptive methods choose their own without it.
        rtol, atol: tolerances of an adaptive step; 1e-6 each by default, 1e-4 in float32.
        control_times: ``[K]``, strictly increasing; the first must not be after the start.
        events: see :mod:`solvers.marching.events`.
        on_failure: "raise" a :class:`~solvers.failure.SolveError`, or "mark" failed rollouts in ``status``: their
            states are NaN from the failure on and do not enter a gradient; the other rollouts are kept.  ``ok`` is the
            mask of those (states of a failed rollout before its failure are finite, and constants).
        max_steps: limit of the attempted steps of a rollout; 100,000 by default, no limit with dt.
        controller: a :class:`~solvers.StepSizeController` or another :class:`~solvers.Controller`, instead of rtol
            and atol.
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
        problem = checked_problem(
            f, x0, ts, u, p, solver=solver, dt=dt, rtol=rtol, atol=atol, control_times=control_times,
            events=events, on_failure=on_failure, max_steps=max_steps, controller=controller,
            event_samples=event_samples, max_events=max_events,
        )  # fmt: skip
        chosen = adjoint_for(problem, adjoint, backend)
        return engine_for(problem, chosen, backend).solve(problem, chosen)


def adjoint_for(problem: Problem, adjoint: str | Adjoint | None, backend: str) -> Adjoint:
    """The adjoint that is asked for, by name or as an object; by default the method's first."""
    known = [name for name in problem.method.adjoints if name in ADJOINTS]
    if backend not in ("eager", "native"):
        raise ValueError(f"backend must be 'eager' or 'native', got {backend!r}")
    if isinstance(adjoint, Adjoint) and type(adjoint) is type(ADJOINTS.get(adjoint.name)):
        adjoint = adjoint.name
    if backend == "native" and adjoint not in (None, "checkpoint"):
        raise ValueError(f"backend='native' is differentiated by 'checkpoint', not by {adjoint!r}")
    if adjoint is None:
        adjoint = "checkpoint" if backend == "native" and "checkpoint" in known else known[0]
    own = isinstance(adjoint, Adjoint) and not isinstance(problem.method, TorchdiffeqSolver)
    if not own and adjoint not in known:
        raise ValueError(
            f"solver {problem.name!r} cannot be differentiated by adjoint={adjoint!r}; it can by: {', '.join(known)}"
        )
    chosen = ADJOINTS[adjoint] if isinstance(adjoint, str) else adjoint
    chosen.check(problem)
    return chosen


def engine_for(problem: Problem, adjoint: Adjoint, backend: str) -> Engine:
    """What takes the steps: torchdiffeq for its methods, a kernel where it is asked for and can be made, else torch."""
    if isinstance(problem.method, TorchdiffeqSolver):
        return TorchdiffeqSteps()
    if backend == "native":
        try:
            return NativeSteps(kernel_for(problem, problem.leaves))
        except NativeUnsupportedError as error:
            logger.debug("eager instead of native: %s", error)
    # A limit below the number of steps is a failure of every rollout.
    reaches_the_end = problem.max_steps >= len(problem.grid.controls)
    if adjoint.takes_equal_steps and not problem.per_rollout and reaches_the_end:
        return EqualSteps()
    return RolloutSteps()
