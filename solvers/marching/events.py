"""Events: zero crossings of a function of time and state, located for every rollout.

Events are looked for at samples: the start of a step and ``samples`` equally spaced points up to its end.

- An event *fires* where its function passes from strictly one side of zero to the other or onto zero, in the
  event's direction.
- An event that *holds* at the start of a step (its function is zero there, or it has just fired) does not fire there.
  The sign of the function's rate decides on which side of zero the step starts, so that the next crossing is found
  however soon it follows.
- *Grazing* (the function touches zero without crossing it) does not fire, nor do two crossings between two neighbouring
  samples.  A gradient through an event grows as one over the speed of the crossing.
- Of *several in one step* the earliest fires; the step ends there and the others are found in the steps that
  follow.  Of several at the same time the first in the list fires, and the others then hold: they do not fire.

At coinciding times the solution is right-continuous in the direction of integration, for every method:

- An *output* at the time of an event is the state after the jump; so is the *last output*: an event at the final time
  fires.  After a terminal event all outputs, one at its time included, are the state at the event, after its jump.
- The *first output* is the initial state: no event fires at the start time, where a function that is zero holds.
- At a *control switch* the event comes first, under the control before the switch, then the switch, then the output.
- Gradients by the time of such an output, and by what moves the event, are those of the solution after the event.

Times coincide if they differ by at most 64 units of rounding of the time and the step's length (:func:`coincidence`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from solvers.methods.base import Solver, State, VectorField, over_components
from solvers.modes import with_normal_tensors

_MAX_ITERATIONS = 100  # bisections alone would take 60 in float64


@dataclass(frozen=True, repr=False)
class Event:
    """A jump or the end of a rollout where ``function(t, x, u, p)`` crosses zero.

    Attributes:
        function: ``(t [*batch], x [*batch, n], u, p) -> [*batch]``, continuous; it may depend on u and p.
        jump: ``(t, x, u, p) -> x`` after the event; None leaves the state as it is.  It is evaluated for
            all rollouts and used where the event fired.
        terminal: whether the rollout ends there.
        direction: +1 fires where the function rises through zero, -1 where it falls, 0 both ways.
    """

    function: Callable[[Tensor, Tensor, Any, Any], Tensor]
    jump: Callable[[Tensor, Tensor, Any, Any], Tensor] | None = None
    terminal: bool = False
    direction: int = 0

    def __repr__(self) -> str:
        jump = None if self.jump is None else _name(self.jump)
        return f"Event({_name(self.function)}, jump={jump}, terminal={self.terminal}, direction={self.direction})"

    def __post_init__(self) -> None:
        if isinstance(self.direction, bool) or self.direction not in (-1, 0, 1):
            raise ValueError(f"an event's direction is -1, 0 or 1, got {self.direction!r}")
        if not callable(self.function) or not (self.jump is None or callable(self.jump)):
            raise TypeError("an event's function and jump must be callable (t, x, u, p)")

    def value(self, t: Tensor, x: State, u: Any, p: Any) -> Tensor:
        """The function's value, its shape checked."""
        value = self.function(t, x, u, p)
        if not isinstance(value, Tensor) or value.shape != x.shape[:-1]:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"an event's function must return one value a rollout, {tuple(x.shape[:-1])}, got {got}; "
                "index components with x[..., i]"
            )
        if not value.is_floating_point():
            raise TypeError(
                f"an event's function must be a real number that crosses zero, got {value.dtype}; "
                "return x[..., 0] - limit instead of x[..., 0] > limit"
            )
        return value

    def rate(self, t: Tensor, x: State, slope: State, u: Any, p: Any) -> Tensor:
        """The function's total time derivative along the solution, ``[*batch]``."""
        with torch.enable_grad():
            t, x = t.detach().clone().requires_grad_(True), x.detach().requires_grad_(True)
            value = with_normal_tensors(self.value, t, x, u, p)
            if not value.requires_grad:
                return torch.zeros_like(t)
            by_t, by_x = torch.autograd.grad(value.sum(), (t, x), allow_unused=True)
        rate = torch.zeros_like(value) if by_t is None else by_t
        return (rate if by_x is None else rate + (by_x * slope).sum(-1)).detach()

    def after_those(self, here: Tensor, t: Tensor, x: State, u: Any, p: Any) -> State:
        """:meth:`after`, evaluated only at states and times at which the event fired.

        Elsewhere the jump may be undefined, and its NaN would enter the gradient.
        """
        return self.after(*elsewhere(here, t, x), u, p)

    def value_of_those(self, here: Tensor, t: Tensor, x: State, u: Any, p: Any) -> Tensor:
        """:meth:`value`, evaluated only where the event fired."""
        return self.value(*elsewhere(here, t, x), u, p)

    def after(self, t: Tensor, x: State, u: Any, p: Any) -> State:
        """The state after the event, its shape checked."""
        if self.jump is None:
            return x
        jumped = self.jump(t, x, u, p)
        if not isinstance(jumped, Tensor) or jumped.shape != x.shape:
            got = tuple(jumped.shape) if isinstance(jumped, Tensor) else type(jumped).__name__
            raise ValueError(f"an event's jump must return states {tuple(x.shape)}, got {got}")
        return jumped


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", type(function).__name__)


def coincidence(t: Tensor, h: Tensor) -> Tensor:
    """By how much two times in a step of length h from t may differ and count as the same, ``[*batch]``.

    64 units of rounding, which a solution collects in a few hundred steps, unless that is much of the step.
    """
    rounding = torch.finfo(t.dtype).eps * (t.abs() + h)
    return torch.maximum(4 * rounding, torch.minimum(64 * rounding, 1e-3 * h))


def resolved(t: Tensor, h: Tensor) -> Tensor:
    """Steps in which events are looked for: those longer than rounding, ``[*batch]``."""
    return h > 4 * torch.finfo(t.dtype).eps * (t.abs() + h)


def elsewhere(here: Tensor, t: Tensor, x: State) -> tuple[Tensor, State]:
    """Times and states, outside of ``here`` replaced by those of one rollout of ``here``."""
    if bool(here.all()) or not bool(here.any()):
        return t, x
    some_t, some_x = t.detach()[here][0], x.detach()[here][0]
    return torch.where(here, t, some_t), torch.where(here.unsqueeze(-1), x, some_x)


class EventFinder:
    """Finds the first event in a step, for every rollout."""

    def __init__(self, events: tuple[Event, ...], samples: int) -> None:
        self.events = events
        self.samples = samples

    def first_crossing(
        self,
        method: Solver,
        f: VectorField,
        t: Tensor,
        x: State,
        u: Any,
        p: Any,
        h: Tensor,
        x_new: State,
        slope: State,
        held: Tensor,
        candidates: Tensor,
        at_start: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The event that fires first in the step.

        Args:
            slope: ``f`` at the start of the step.
            held: for every event which rollouts it holds for at the start, ``[events, *batch]``.
            candidates: rollouts whose step was accepted.
            at_start: rollouts whose step starts at the beginning of the solve.

        Returns:
            Its index, ``[*batch]`` (-1 for none), how long after t it fires, ``[*batch]``, and the events that are
            found at the same time, it included, ``[events, *batch]``.
        """
        theta = torch.arange(1, self.samples + 1, dtype=x.dtype, device=x.device) / self.samples
        end_slope = f(t + h, x_new, u, p)
        wide = over_components(h)
        which = torch.full_like(t, -1, dtype=torch.int64)
        when = torch.full_like(t, torch.inf)
        same_time = coincidence(t, h)
        candidates = candidates & resolved(t, h)
        spacing = h / self.samples
        roots = []
        # Sampled on the cubic Hermite interpolant, which exists for every method; located on the method's own step.
        sampled = [
            (1 + 2 * s) * (1 - s) ** 2 * x
            + s * (1 - s) ** 2 * wide * slope
            + s * s * (3 - 2 * s) * x_new
            + s * s * (s - 1) * wide * end_slope
            for s in theta[:-1]
        ] + [x_new]
        for index, event in enumerate(self.events):
            before = event.value(t, x, u, p)
            holds = held[index] | (before == 0)
            if bool((holds & candidates).any()):
                before = torch.where(holds, event.rate(t, x, slope, u, p), before)
            low = torch.zeros_like(t)
            found = torch.zeros_like(candidates)
            bracket = (torch.zeros_like(t), torch.zeros_like(t), torch.zeros_like(t))
            for k, (s, state) in enumerate(zip(theta, sampled, strict=True)):
                after = event.value(t + s * h, state, u, p)
                if k == 0:
                    # A function that is zero at the start but for rounding holds there.
                    near = (before * after < 0) & (
                        before.abs() * spacing <= same_time * (after - before).abs()
                    )
                    before = torch.where(at_start & near, after, before)
                crossing = candidates & ~found & _crosses(before, after, event.direction)
                bracket = tuple(  # type: ignore[assignment]
                    torch.where(crossing, new, old)
                    for new, old in zip((low, s * h, before), bracket, strict=True)
                )
                found = found | crossing
                previous, before, low = before, after, s * h
            # It reaches zero at the end of the step but for rounding, with a speed (not grazing): it fires there.
            last = after - previous
            reaches = candidates & ~found & (after.abs() * spacing <= same_time * last.abs())
            reaches = reaches & _crosses(previous, -after, event.direction)
            if bool(reaches.any()):
                rise = event.rate(t + h, x_new, end_slope, u, p) * spacing
                reaches = reaches & (rise * last > 0) & (rise.abs() > 0.1 * last.abs())
            root = torch.where(reaches, h, torch.inf)
            if bool(found.any()):
                located = self._locate(event, method, f, t, x, u, p, *bracket, found, holds)
                root = torch.where(found, located, root)
            roots.append(root)
            earlier = root < when - torch.where(which < 0, 0.0, same_time)
            which = torch.where(earlier, index, which)
            when = torch.where(earlier, root, when)
        return which, when, torch.stack(roots) <= when + same_time

    def _locate(
        self,
        event: Event,
        method: Solver,
        f: VectorField,
        t: Tensor,
        x: State,
        u: Any,
        p: Any,
        low: Tensor,
        high: Tensor,
        sign_low: Tensor,
        found: Tensor,
        holds: Tensor,
    ) -> Tensor:
        """The root of ``h -> function(t + h, step(h))`` between low and high: Illinois regula falsi, safeguarded."""

        def value(h: Tensor) -> Tensor:
            return event.value(t + h, method.attempt(f, t, x, u, p, h).x, u, p)

        side = torch.sign(sign_low)  # the function's sign before the crossing
        f_low, f_high = value(low), value(high)
        # Where the event holds, the function starts at a zero that is not the root looked for: bisect until the sign
        # is the one before the crossing.  The same where the interpolant gave the lower end the wrong sign.
        left = ~(holds & (low == 0)) & (f_low * side > 0)
        settled = ~found | (f_high * side > 0) | (f_high == 0)
        resolution = 2 * torch.finfo(x.dtype).eps
        last_side = torch.zeros_like(t)
        for k in range(_MAX_ITERATIONS):
            settled = settled | ((high - low) <= resolution * (t.abs() + high))
            if bool(settled.all()):
                break
            denominator = torch.where(settled | (f_high == f_low), 1.0, f_high - f_low)
            middle = high - f_high * (high - low) / denominator
            half = 0.5 * (low + high)
            inside = (middle > low) & (middle < high)
            # Every third iteration bisects: regula falsi alone may shrink the bracket too slowly.
            middle = torch.where(inside & left, middle, half) if k % 3 != 2 else half
            f_middle = value(middle)
            before = (f_middle * side) > 0
            move_low, move_high = ~settled & before, ~settled & ~before
            f_high = torch.where(move_low & (last_side > 0), 0.5 * f_high, f_high)
            f_low = torch.where(move_high & (last_side < 0), 0.5 * f_low, f_low)
            low, f_low = torch.where(move_low, middle, low), torch.where(move_low, f_middle, f_low)
            high, f_high = torch.where(move_high, middle, high), torch.where(move_high, f_middle, f_high)
            left = left | move_low
            last_side = torch.where(move_low, 1.0, torch.where(move_high, -1.0, last_side))
            settled = settled | (f_middle == 0)
        return high


def _crosses(before: Tensor, after: Tensor, direction: int) -> Tensor:
    falls = (before > 0) & (after <= 0)
    rises = (before < 0) & (after >= 0)
    return falls if direction < 0 else rises if direction > 0 else falls | rises
