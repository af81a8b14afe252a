"""Checks of the arguments of a solve before its first step."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from solvers.engines.torchdiffeq_methods import TorchdiffeqSolver
from solvers.marching.step_size import StepSizeController
from solvers.methods.base import Solver


def check_signature(f: Any) -> None:
    """Raise TypeError unless f can be called with (t, x, u, p)."""
    if not callable(f):
        raise TypeError(f"f must be a function (t, x, u, p) -> dx/dt, got {type(f).__name__}")
    try:
        inspect.signature(f).bind(None, None, None, None)
    except TypeError as error:
        raise TypeError(f"f must take four arguments (t, x, u, p): {error}") from None
    except ValueError:
        pass  # a builtin without a signature


def checked_state(x0: Tensor) -> Tensor:
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


def checked_times(name: str, ts: Any, x0: Tensor, minimum: int) -> Tensor:
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


def checked_controls(control_times: Any, u: Any, ts: Tensor, x0: Tensor) -> Tensor:
    """The control times, if they fit the controls and the times."""
    times = checked_times("control_times", control_times, x0, minimum=1)
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


def checked_controller(
    name: str,
    method: Solver,
    x0: Tensor,
    ts: Tensor,
    dt: float | None,
    rtol: float | None,
    atol: float | None,
    controller: StepSizeController | None,
) -> StepSizeController | None:
    """The step-size controller; None for steps of fixed length and for torchdiffeq's methods."""
    foreign = isinstance(method, TorchdiffeqSolver)
    tolerances = {"rtol": rtol, "atol": atol, "controller": controller}
    given = [key for key, value in tolerances.items() if value is not None]
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
    if controller is not None:
        if len(given) > 1:
            raise ValueError("rtol and atol belong to the controller when one is given")
        return controller
    default = 1e-6 if x0.dtype == torch.float64 else 1e-4
    return StepSizeController(rtol=default if rtol is None else rtol, atol=default if atol is None else atol)
