"""Losses of windows, and their derivatives by what the policy returned, bounded.

In torch, and compiled where the rollouts are: the operations are many and small, so that beginning them takes longer
than computing them.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.resources
import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffsim.algorithms import kernels
from diffsim.algorithms.windows import all_finite
from diffsim.rollouts import Trajectory
from diffsim.rollouts.native import STRIDED, strided
from diffsim.rollouts.observed import BACKENDS
from robotics_envs.base import Env
from solvers.compiler.structs import Struct, fields


class Unit(NamedTuple):
    """The loss of a discounted cost J is ``c asinh(y / c)`` of ``y = (J - mean) / scale``."""

    mean: Float[Tensor, ""]
    scale: Float[Tensor, ""]
    compression: float
    """``c``; infinite for y itself."""


class Range(NamedTuple):
    """States not farther than ``reach [n]`` from ``middle [n]``, all of them finite."""

    middle: Float[Tensor, " n"]
    reach: Float[Tensor, " n"]
    """The largest number for angles."""

    @classmethod
    def of_box(cls, env: Env, like: Tensor, factor: float) -> Range:
        """The state box enlarged by ``factor``, in the dtype and on the device of ``like``; angles do not count."""
        low, high = env.state_box.bounds(like)
        angles = torch.tensor([n in env.angle_names for n in env.state_names], device=like.device)
        largest = torch.finfo(like.dtype).max
        return cls((low + high) / 2, torch.where(angles, largest, (high - low) / 2 * factor))

    def holds(self, x: Float[Tensor, "*batch n"]) -> Bool[Tensor, "*batch"]:
        """Which of these states are among them."""
        return ((x - self.middle).abs() <= self.reach).all(-1)


class Weighed(NamedTuple):
    """Losses of windows."""

    discounted: Float[Tensor, " batch"]
    """``sum_t weights[t] costs[t] + weights[T] values``."""
    losses: Float[Tensor, " batch"]
    """Of these, times ``bounds``."""
    bounds: Float[Tensor, " batch"]
    """Factors in [0, 1] that bound the derivatives of the losses by all actions of a window."""
    by_results: Float[Tensor, "T batch m"]
    """These derivatives, times ``bounds``."""
    ok: Bool[Tensor, " batch"]
    """Which windows are finite, derivatives included."""
    unmoved: Bool[Tensor, " batch"]
    """Which of them have the derivative zero."""
    typical: Bool[Tensor, "T batch"]
    """Which costs are those of states in the range."""
    left_out: int
    """How many windows are not finite."""
    any_unmoved: bool

    def times(self, counts: Bool[Tensor, " batch"]) -> Weighed:
        """The same, with a bound of 0 for the windows that do not count."""
        return self._replace(
            losses=self.losses * counts,
            bounds=self.bounds * counts,
            by_results=self.by_results * counts.unsqueeze(-1),
        )


def compressed(discounted: Float[Tensor, "*batch"], unit: Unit) -> tuple[Tensor, Tensor]:
    """Losses of discounted costs, and the derivatives of the losses by these."""
    y = (discounted - unit.mean) / unit.scale
    if math.isinf(unit.compression):
        return y, (1 / unit.scale).expand_as(y)
    y = y / unit.compression
    return unit.compression * torch.asinh(y), 1 / ((1 + y * y).sqrt() * unit.scale)


@torch.no_grad()
def weigh(
    window: Trajectory,
    weights: Float[Tensor, "states batch"],
    costates: Float[Tensor, "batch n"],
    by_noise: Float[Tensor, "T batch m"],
    unit: Unit,
    bound: float,
    bounds: Float[Tensor, " batch"] | None,
    inside: Range,
    backend: str = "eager",
) -> Weighed:
    """Losses of windows and their derivatives by actions.

    Args:
        window: with states and values.
        weights: what costs, and last the value, are multiplied by.
        costates, by_noise: derivatives of the discounted cost by initial states, and by what the policy returned.
        bound: on the length of the derivative of a window's loss by all its actions.
        bounds: factors that are given instead.
        backend: of rollouts; where it is "native" or "auto" and there is a compiler, all is compiled.
    """
    assert window.states is not None
    assert window.values is not None
    library = _library(by_noise.dtype) if by_noise.is_cpu and backend in BACKENDS else None
    if library is not None:
        return _compiled(library, window, weights, costates, by_noise, unit, bound, bounds, inside)
    states, typical = window.states, inside.holds(window.states[:-1])
    discounted = (weights[:-1] * window.costs).sum(0) + weights[-1] * window.values
    losses, slopes = compressed(discounted, unit)
    by_results = slopes.unsqueeze(-1) * by_noise
    # A sum that is finite has finite summands; one that is not may have overflowed.
    sums = torch.stack((states.sum(), by_results.sum(), costates.sum(), losses.sum()))
    ok, left_out = torch.ones_like(losses, dtype=torch.bool), 0
    if not bool(sums.isfinite().all()):
        ok = all_finite(by_results) & all_finite(states) & all_finite(costates.unsqueeze(0))
        ok = ok & losses.isfinite()
        left_out = int((~ok).sum())
    lengths = torch.where(ok, by_results.norm(dim=(0, 2)), 0.0)
    if bounds is None:
        bounds = (bound / lengths).clamp_max(1.0)
    unmoved = ok & (lengths == 0)
    by_results = by_results * bounds.unsqueeze(-1)
    any_unmoved = bool(unmoved.any())
    return Weighed(
        discounted, losses * bounds, bounds, by_results, ok, unmoved, typical, left_out, any_unmoved
    )


def _compiled(
    library: ctypes.CDLL,
    window: Trajectory,
    weights: Tensor,
    costates: Tensor,
    by_noise: Tensor,
    unit: Unit,
    bound: float,
    bounds: Tensor | None,
    inside: Range,
) -> Weighed:
    steps, batch, actions = by_noise.shape
    new = by_noise.new_empty
    rows = new(2 if bounds is not None else 3, batch)
    by_results, typical = new(steps, batch, actions), new(steps, batch, dtype=torch.bool)
    ok, unmoved = new(2, batch, dtype=torch.bool)
    a = _arguments_type(by_noise.dtype)()
    a.steps, a.batch, a.states, a.actions = steps, batch, costates.shape[1], actions
    a.compression, a.bound, a.bounded = unit.compression, bound, bounds is not None
    a.x, a.by_noise = strided(window.states, "tbn"), strided(by_noise, "tbn")
    a.costs, a.weights = strided(window.costs, "tb"), strided(weights, "tb")
    a.values, a.costates = strided(window.values, "b"), strided(costates, "bn")
    discounted, losses = rows[0], rows[1]
    given = rows[2] if bounds is None else bounds.contiguous()
    a.discounted, a.losses, a.bounds = discounted.data_ptr(), losses.data_ptr(), given.data_ptr()
    a.mean, a.scale = unit.mean.data_ptr(), unit.scale.data_ptr()
    a.middle, a.reach = inside.middle.data_ptr(), inside.reach.data_ptr()
    a.by_results, a.typical = by_results.data_ptr(), typical.data_ptr()
    a.ok, a.still = ok.data_ptr(), unmoved.data_ptr()
    library.window_losses(ctypes.byref(a))
    return Weighed(discounted, losses, given, by_results, ok, unmoved, typical, a.left_out, bool(a.unmoved))


def _library(dtype: torch.dtype) -> ctypes.CDLL | None:
    """The compiled function; None without a compiler, or where it fails, which is logged."""
    if dtype not in (torch.float32, torch.float64):
        return None
    return kernels.load(_source(dtype), _arguments_type(dtype), "losses of windows")


@functools.cache
def _arguments_type(dtype: torch.dtype) -> Any:
    return _arguments().ctypes(dtype)


@functools.cache
def _source(dtype: torch.dtype) -> str:
    text = importlib.resources.files("diffsim.algorithms").joinpath("window_losses.cpp").read_text()
    text = text.replace("// STRIDED", STRIDED.cpp(), 1).replace("// ARGUMENTS", _arguments().cpp(), 1)
    return f"typedef {'double' if dtype == torch.float64 else 'float'} T;\n{text}"


@functools.cache
def _arguments() -> Struct:
    """What the function is passed: what :func:`weigh` is given, where results go, and what is counted."""
    return Struct(
        "Arguments",
        (
            *fields("int64", "steps", "batch", "states", "actions", "bounded"),
            *fields("double", "compression", "bound"),
            *fields(STRIDED, "x", "by_noise", "costs", "weights", "values", "costates"),
            *fields("real*", "mean", "scale", "middle", "reach", constant=True),
            *fields("real*", "discounted", "losses", "bounds", "by_results"),
            *fields("uint8*", "typical", "ok", "still"),
            *fields("int64", "left_out", "unmoved"),
        ),
    )
