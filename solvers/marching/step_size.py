"""Step-size control of adaptive methods, for every rollout by itself: tolerances, first step, PI controller."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from solvers.methods.base import State, VectorField, over_components
from solvers.validation import real_number


class Controller(Protocol):
    """What chooses the step sizes of an adaptive method: any object with these methods.

    Its methods are called for the whole batch, and the backward solve of ``adjoint="adjoint"`` calls them too: they
    must not remember what they were called with.  :class:`StepSizeController` is the controller by default.
    """

    @property
    def max_step(self) -> float | None:
        """No step is longer; None for no limit, also where an object has no such attribute."""
        return None

    def first(
        self,
        f: VectorField,
        t: Tensor,
        x: State,
        u: object,
        p: object,
        slope: Tensor,
        span: Tensor,
        order: int,
    ) -> Float[Tensor, "*batch"]:
        """The length of the first step of every rollout.

        Args:
            slope: ``f`` at the start.
            span: the time to the end of the first leg, ``[*batch]``; a longer step ends there.
            order: the order of the method's error estimate.
        """
        ...

    def scaled_error(self, error: State, x: State, x_new: State) -> Float[Tensor, "*batch"]:
        """The estimated error of a step from x to x_new in units of the tolerance: it is accepted where at most 1."""
        ...

    def factor(self, error: Tensor, before: Tensor, order: int) -> Tensor:
        """By how much the next step is longer than one of scaled error ``error``, ``[*batch]``.

        ``error`` is infinite where the step is not finite; ``before`` is that of the last accepted step that did not
        end a leg, 1 at first.
        """
        ...


@dataclass(frozen=True)
class StepSizeController:
    """A PI controller of the step size: ``h' = h · factor``.

    With e the scaled error and k the order of its estimate, ``factor = safety · e^(-integral/k) ·
    e_before^(proportional/k)`` (Hairer, Wanner, Solving Ordinary Differential Equations II, §IV.2, eq. (2.43c)); after
    a rejected step the factor is at most 1.  The scaled error is the root mean square over a rollout's
    components of ``error / (atol + rtol · max(|x|, |x_new|))``; no quantity is shared between rollouts.  The
    defaults keep the error at about 0.17 of the tolerance: more steps than an I controller, fewer rejections and
    smaller errors.

    Attributes:
        rtol, atol: relative and absolute tolerance of a step.
        safety, smallest, largest: the safety factor, and bounds of the factor between two steps.
        integral, proportional: coefficients of the exponents.
        first_step: the first step of every rollout; None estimates it.
        max_step: no step is longer.
    """

    rtol: float = 1e-6
    atol: float = 1e-6
    safety: float = 0.9
    smallest: float = 0.2
    largest: float = 10.0
    integral: float = 0.7
    proportional: float = 0.4
    first_step: float | None = None
    max_step: float | None = None

    def __post_init__(self) -> None:
        for name in ("rtol", "atol", "integral", "proportional"):
            object.__setattr__(self, name, real_number(name, getattr(self, name)))
        for name in ("safety", "smallest", "largest"):
            object.__setattr__(self, name, real_number(name, getattr(self, name), positive=True))
        for name in ("first_step", "max_step"):
            value = getattr(self, name)
            if value is not None:
                value = real_number(name, value, positive=True, infinite=True, wanted="be positive or None")
                object.__setattr__(self, name, value)
        if self.rtol == 0 and self.atol == 0:
            raise ValueError("rtol and atol are both 0: no step could be accepted; set one of them")
        if not 0 < self.smallest < 1 < self.largest:
            raise ValueError(
                f"smallest and largest must hold 0 < smallest < 1 < largest, got {self.smallest!r}, {self.largest!r}"
            )
        if not 0 < self.safety < 1:
            raise ValueError(f"safety must lie between 0 and 1, got {self.safety!r}")

    def scaled_error(self, error: State, x: State, x_new: State) -> Float[Tensor, "*batch"]:
        """The error in units of the tolerance; a step is accepted where it is at most 1."""
        return root_mean_square(error / (self.atol + self.rtol * torch.maximum(x.abs(), x_new.abs())))

    def factor(self, error: Tensor, before: Tensor, order: int) -> Tensor:
        """By how much a step of scaled error ``error`` after one of ``before`` changes the next one.

        A NaN error (the step left the domain of ``f``) takes the smallest factor.
        """
        tiny = 1e-10  # an error of zero asks for the largest factor, not for an infinite one
        error, before = error.clamp_min(tiny), before.clamp_min(tiny)
        # By exp and log: torch's pow rounds the last few elements of a tensor differently from the others.
        power = (self.proportional * torch.log(before) - self.integral * torch.log(error)) / order
        raw = self.safety * torch.exp(power)
        raw = raw.clamp(self.smallest, self.largest)
        raw = torch.where(error <= 1.0, raw, raw.clamp_max(1.0))
        return torch.where(torch.isfinite(error), raw, self.smallest)

    def first(
        self,
        f: VectorField,
        t: Tensor,
        x: State,
        u: object,
        p: object,
        slope: Tensor,
        span: Tensor,
        order: int,
    ) -> Float[Tensor, "*batch"]:
        """A first step for every rollout: HNW I, §II.4, "Starting Step Size".  One evaluation of ``f``."""
        if self.first_step is not None:
            return torch.full_like(span, self.first_step)
        scale = self.atol + self.rtol * x.abs()
        d0, d1 = root_mean_square(x / scale), root_mean_square(slope / scale)
        h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), torch.full_like(d0, 1e-6), 0.01 * d0 / d1)
        h0 = torch.minimum(h0, span)
        ahead = f(t + h0, x + over_components(h0) * slope, u, p)
        d2 = root_mean_square((ahead - slope) / scale) / h0
        largest = torch.maximum(d1, d2)
        rest = torch.exp(torch.log(0.01 / largest) / order)
        h1 = torch.where(largest <= 1e-15, torch.clamp_min(1e-3 * h0, 1e-6), rest)
        h = torch.minimum(100.0 * h0, h1)
        return torch.where(torch.isfinite(h) & (h > 0), h, 1e-3 * span)


def root_mean_square(values: State) -> Float[Tensor, "*batch"]:
    """Over the components, added one by one: the sum's order must not depend on the batch."""
    squares = values * values
    total = squares[..., 0]
    for i in range(1, values.shape[-1]):
        total = total + squares[..., i]
    return torch.sqrt(total / values.shape[-1])
