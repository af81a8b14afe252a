"""The arguments of a solve, checked before its first step and made into a :class:`Problem`."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from solvers.marching.events import Event
from solvers.marching.grid import make_grid
from solvers.marching.problem import Counted, Leaves, Problem
from solvers.marching.step_size import Controller, StepSizeController
from solvers.methods.base import Solver
from solvers.methods.registry import make_solver
from solvers.methods.torchdiffeq_methods import TorchdiffeqSolver
from solvers.modes import normal_tensors
from solvers.validation import real_number, whole_number


def checked_problem(
    f: Any,
    x0: Any,
    ts: Any,
    u: Any,
    p: Any,
    *,
    solver: Any,
    dt: Any,
    rtol: Any,
    atol: Any,
    control_times: Any,
    events: Any,
    on_failure: str,
    max_steps: Any,
    controller: Any,
    event_samples: Any,
    max_events: Any,
) -> Problem:
    """The problem that the arguments of :func:`solvers.solve` state, defaults filled in; outside of inference mode.

    Raises:
        ValueError, TypeError: an argument is wrong; the message says which and why.
    """
    method = make_solver(solver) if isinstance(solver, str) else solver
    if not isinstance(method, Solver):
        raise TypeError(f"solver must be a name or a Solver, got {type(method).__name__}")
    name = solver if isinstance(solver, str) else type(method).__name__
    foreign = method if isinstance(method, TorchdiffeqSolver) else None
    x0, ts, u, p, control_times = normal_tensors((x0, ts, u, p, control_times))
    _check_signature(f)
    x0 = _checked_state(x0)
    ts = _checked_times("ts", ts, x0, minimum=2)
    if on_failure not in ("raise", "mark"):
        raise ValueError(f"on_failure must be 'raise' or 'mark', got {on_failure!r}")
    events = _checked_events(events)
    if foreign:
        _refuse(name, events=events, controller=controller, max_steps=max_steps)
    if control_times is not None:
        control_times = _checked_controls(control_times, u, ts, x0)
    dt = None if dt is None else real_number("dt", dt, positive=True, wanted="be a positive number")
    tolerances = {"rtol": rtol, "atol": atol}
    tolerances = {key: real_number(key, value) for key, value in tolerances.items() if value is not None}
    controller = _checked_controller(name, method, x0, ts, dt, tolerances, controller)
    if ts.ndim > 1 and foreign:
        raise ValueError("torchdiffeq's methods share their times; use one of our adaptive methods")
    if max_steps is None:
        max_steps = 100_000 if controller is not None else torch.iinfo(torch.int64).max
    leaves = Leaves.of(f, u, p)
    sign, requested = 1.0, ts
    if bool((ts[-1] < ts[0]).any()):
        # Backwards in time: the same equation in -t.
        sign, ts, forward = -1.0, -ts, f
        control_times = None if control_times is None else -control_times
        f = lambda t, x, u, p: -forward(-t, x, u, p)
        events = tuple(_reversed(event) for event in events)
    return Problem(
        f=Counted(f),
        method=method,
        name=name,
        x0=x0,
        u=u,
        p=p,
        ts=ts,
        requested=requested,
        sign=sign,
        control_times=control_times,
        grid=make_grid(ts, control_times, dt if controller is None and not foreign else None, sign),
        leaves=leaves,
        controller=controller,
        tolerances=_with_defaults(tolerances, x0) if foreign and foreign.takes_tolerances else {},
        dt=dt,
        events=events,
        event_samples=whole_number("event_samples", event_samples, least=1),
        max_events=whole_number("max_events", max_events, least=1),
        on_failure=on_failure,
        max_steps=whole_number("max_steps", max_steps, least=1),
    )


def _checked_events(events: Event | Sequence[Event]) -> tuple[Event, ...]:
    """The events as a tuple."""
    listed = events if isinstance(events, (list, tuple)) else (events,)
    if any(not isinstance(event, Event) for event in listed):
        raise TypeError("events must be solvers.Event objects")
    return tuple(listed)


def _refuse(name: str, **arguments: Any) -> None:
    """Raise ValueError if one of these arguments is given to a method of torchdiffeq."""
    given = [key for key, value in arguments.items() if value not in (None, ())]
    if given:
        raise ValueError(
            f"{', '.join(given)} do not apply to torchdiffeq's methods; pass torchdiffeq's own options "
            f"through make_solver({name!r}, ...), or take one of our methods"
        )


def _reversed(event: Event) -> Event:
    """The event in the time -t."""
    jump = event.jump
    return Event(
        lambda t, x, u, p: event.function(-t, x, u, p),
        None if jump is None else lambda t, x, u, p: jump(-t, x, u, p),
        event.terminal,
        event.direction,
    )


def _check_signature(f: Any) -> None:
    """Raise TypeError unless f can be called with (t, x, u, p)."""
    if not callable(f):
        raise TypeError(f"f must be a function (t, x, u, p) -> dx/dt, got {type(f).__name__}")
    try:
        inspect.signature(f).bind(None, None, None, None)
    except TypeError as error:
        raise TypeError(f"f must take four arguments (t, x, u, p): {error}") from None
    except ValueError:
        pass  # a builtin without a signature


def _checked_state(x0: Tensor) -> Tensor:
    """The initial states, if their type, shape and values are right."""
    if not isinstance(x0, Tensor):
        raise TypeError(
            f"x0 must be a tensor [*batch, n], got {type(x0).__name__}; convert it with torch.as_tensor"
        )
    if x0.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"x0 must be float32 or float64, got {x0.dtype}; convert it with .to(torch.float64)")
    if x0.ndim == 0 or x0.numel() == 0:
        raise ValueError(f"x0 must be [*batch, n] with at least one entry, got shape {tuple(x0.shape)}")
    if not bool(torch.isfinite(x0).all()):
        raise ValueError("x0 holds values that are not finite")
    return x0


def _checked_times(name: str, ts: Any, x0: Tensor, minimum: int) -> Tensor:
    """Increasing or decreasing times in the states' dtype and on their device."""
    try:
        # Python's numbers are doubles: as_tensor alone would round them to float32.
        if isinstance(ts, (list, tuple)) and any(isinstance(t, Tensor) for t in ts):
            raise TypeError("a list holds tensors; give one tensor, by torch.stack, so that gradients arrive")
        times = ts if isinstance(ts, Tensor) else torch.as_tensor(np.asarray(ts))
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be a tensor or a list of numbers: {error}") from None
    if times.is_complex() or times.dtype == torch.bool:
        raise TypeError(f"{name} must be real times, got {times.dtype}")
    times = times.to(x0)
    if times.ndim == 0 or len(times) < minimum:
        raise ValueError(f"{name} needs at least {minimum} times, got shape {tuple(times.shape)}")
    if times.ndim > 1 and (name != "ts" or times.shape[1:] != x0.shape[:-1]):
        raise ValueError(
            f"{name} must be [T] or, per rollout, [T, *batch] = [T, {', '.join(map(str, x0.shape[:-1]))}], "
            f"got {tuple(times.shape)}"
        )
    if not bool(torch.isfinite(times).all()):
        raise ValueError(f"{name} holds times that are not finite")
    steps = times.detach().diff(dim=0)
    if not (bool((steps > 0).all()) or (name == "ts" and bool((steps < 0).all()))):
        either = "strictly increasing" + (" or strictly decreasing" if name == "ts" else "")
        raise ValueError(f"{name} must be {either} (in {x0.dtype}), got {_few(times)}")
    return times


def _few(times: Tensor) -> str:
    values = times.detach().reshape(-1)[:6].tolist()
    return "[" + ", ".join(f"{v:.6g}" for v in values) + (", …]" if times.numel() > 6 else "]")


def _checked_controls(control_times: Any, u: Any, ts: Tensor, x0: Tensor) -> Tensor:
    """The control times, if they fit the controls and the times."""
    times = _checked_times("control_times", control_times, x0, minimum=1)
    if ts.ndim > 1:
        raise ValueError("control_times are shared by all rollouts and cannot be used with times per rollout")
    earliest = float(ts.detach().min())
    if float(times[0].detach()) > earliest:
        raise ValueError(
            f"control_times[0] = {float(times[0].detach()):.6g} is after the earliest time {earliest:.6g}: "
            "no control is given for the time between"
        )
    for leaf in tree_leaves(u):
        length = len(leaf) if isinstance(leaf, Tensor) and leaf.ndim else None
        if length != len(times):
            got = tuple(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__
            raise ValueError(
                f"u must hold one control for each of {len(times)} control_times, [K, ...]; got {got}"
            )
    return times


def _checked_controller(
    name: str,
    method: Solver,
    x0: Tensor,
    ts: Tensor,
    dt: float | None,
    tolerances: dict[str, float],
    controller: Any,
) -> Controller | None:
    """The step-size controller; None for steps of fixed length and for torchdiffeq's methods."""
    foreign = isinstance(method, TorchdiffeqSolver)
    given = [*tolerances, *([] if controller is None else ["controller"])]
    if dt is not None:
        if foreign and method.adaptive:
            raise ValueError(f"solver {name!r} chooses its own steps: give rtol and atol instead of dt")
        if given and not (isinstance(method, TorchdiffeqSolver) and method.takes_tolerances):
            raise ValueError(
                f"dt asks for steps of fixed length, which {', '.join(given)} cannot control; give one"
            )
        steps = float((ts[-1] - ts[0]).detach().abs().max()) / dt
        if steps > 1e8:
            raise ValueError(f"dt = {dt!r} makes {steps:.3g} steps; give a longer dt")
        if ts.ndim > 1:
            raise ValueError("times per rollout need an adaptive method without dt")
        return None
    if not method.adaptive:
        raise ValueError(f"solver {name!r} takes steps of fixed length: give dt")
    if foreign:
        return None
    if controller is None:
        return StepSizeController(**_with_defaults(tolerances, x0))
    if tolerances:
        raise ValueError("rtol and atol belong to the controller when one is given")
    needed = ("first", "scaled_error", "factor")
    missing = [key for key in needed if not callable(getattr(controller, key, None))]
    if isinstance(controller, type) or missing:
        raise TypeError(
            f"controller must be an object with the methods {', '.join(needed)} (see solvers.Controller), got "
            + (f"the class {controller.__name__}" if isinstance(controller, type) else repr(controller))
        )
    return controller


def _with_defaults(tolerances: dict[str, float], x0: Tensor) -> dict[str, float]:
    default = 1e-6 if x0.dtype == torch.float64 else 1e-4
    return {"rtol": default, "atol": default, **tolerances}
