"""Checks that an optimizer does what :class:`diffsim.optimizers.Optimizer` promises: ``check_optimizer``.

Each check takes a function that builds the optimizer and returns a list of complaints.  All checks run, so that one
call reports everything that is wrong.  The test objective is a quadratic in seven parameters in two tensors; its
value is 18 at the start and 3 at the minimum.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence

import h5py
import torch
from torch import Tensor, nn

import diffsim.state_tree as state_tree
from diffsim.optimizers.base import Optimizer
from diffsim.optimizers.objective import Objective

Build = Callable[[Sequence[nn.Parameter]], Optimizer]
STEPS = 12


class ConformanceError(AssertionError):
    """An optimizer failed checks; the message lists every failure."""


def check_optimizer(build: Build, steps_to_descend: int = 80) -> None:
    """Run all checks on an optimizer.

    Args:
        build: makes a new optimizer of the given parameters: ``lambda parameters: MyOptimizer(parameters, settings)``.
        steps_to_descend: steps after which the distance to the minimal value must be at most half of that at the start.

    Raises:
        ConformanceError: a check failed; the message has one line per failure.
    """
    complaints: list[str] = []
    for check in CHECKS:
        try:
            complaints += [f"{check.__name__}: {complaint}" for complaint in check(build, steps_to_descend)]
        except Exception as error:  # an exception is a failure too; the other checks still run
            complaints.append(f"{check.__name__}: {type(error).__name__}: {error}")
    if complaints:
        raise ConformanceError("the optimizer fails its checks:\n  " + "\n  ".join(complaints))


class Bowl:
    """A quadratic with minimum 3 at (1, ..., 1), and a record of its evaluations."""

    curvature = torch.tensor([1.0, 4.0, 0.5], dtype=torch.float32)

    def __init__(
        self, poisoned: Callable[[int], float] = lambda call: 1.0, bad_gradients: bool = False
    ) -> None:
        self.parameters = [
            nn.Parameter(torch.zeros(3, dtype=torch.float32)),
            nn.Parameter(torch.full((2, 2), 2.5, dtype=torch.float32)),
        ]
        self.values: list[float] = []
        self.with_gradient = 0
        self._poisoned, self._bad_gradients = poisoned, bad_gradients

    def objective(self) -> Objective:
        """A new objective with this function and counts of its own."""
        return Objective.of(self.parameters, self._loss, self._population)

    def value(self) -> float:
        """The exact value at the current parameters; not recorded."""
        with torch.no_grad():
            return float(self._bowl(*self.parameters))

    def at(self, point: Tensor) -> float:
        """The exact value at a vector of all parameters; not recorded."""
        with torch.no_grad():
            return float(self._bowl(point[:3].float(), point[3:].reshape(2, 2).float()))

    def _bowl(self, first: Tensor, second: Tensor) -> Tensor:
        return (self.curvature * (first - 1) ** 2).sum() + ((second - 1) ** 2).sum() + 3.0

    def _loss(self) -> Tensor:
        # Gradients are disabled where the values of a population are computed.
        self.with_gradient += torch.is_grad_enabled()
        value = self._bowl(*self.parameters)
        factor = self._poisoned(len(self.values))
        self.values.append(float(value.detach()) * factor)
        return _InfiniteGradient.apply(value) if self._bad_gradients and factor != 1.0 else value * factor

    def _population(self, candidates: Tensor) -> Tensor:
        return torch.tensor([self._one(c) for c in candidates], dtype=torch.float64)

    def _one(self, candidate: Tensor) -> float:
        value = self.at(candidate) * self._poisoned(len(self.values))
        self.values.append(value)
        return value


class _InfiniteGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: object, cotangent: Tensor) -> Tensor:
        return cotangent * torch.inf


def it_descends(build: Build, steps: int) -> list[str]:
    bowl = Bowl()
    optimizer, before = build(bowl.parameters), bowl.value()
    for step in range(steps):
        optimizer.step(bowl.objective(), 1.0 - step / steps)
    after = bowl.value()
    wanted = 3.0 + (before - 3.0) / 2
    return (
        []
        if after <= wanted
        else [f"{steps} steps from {before:.3g} led to {after:.3g}, not below {wanted:.3g}"]
    )


def evaluations_are_counted(build: Build, _: int) -> list[str]:
    bowl = Bowl()
    optimizer = build(bowl.parameters)
    complaints = []
    for step in range(STEPS):
        calls, gradients = len(bowl.values), bowl.with_gradient
        report = optimizer.step(bowl.objective(), 1.0 - step / STEPS)
        calls, gradients = len(bowl.values) - calls, bowl.with_gradient - gradients
        if (report.evaluations, report.gradients) != (calls, gradients):
            complaints.append(
                f"step {step + 1} reports {report.evaluations} evaluations, {report.gradients} with a gradient; "
                f"there were {calls} and {gradients}"
            )
    return complaints


def resuming_changes_no_bit(build: Build, _: int) -> list[str]:
    """Save after every step through HDF5, load into a new optimizer and continue; parameters and state must agree."""
    straight = Bowl()
    optimizer = build(straight.parameters)
    saved: list[tuple[bytes, list[Tensor]]] = []
    for step in range(STEPS):
        saved.append((_stored(optimizer), [p.detach().clone() for p in straight.parameters]))
        optimizer.step(straight.objective(), 1.0 - step / STEPS)
    complaints, at_the_end = [], _stored(optimizer)
    for first, (stored, parameters) in enumerate(saved):
        bowl = Bowl()
        with torch.no_grad():
            for p, value in zip(bowl.parameters, parameters, strict=True):
                p.copy_(value)
        resumed = build(bowl.parameters)
        with h5py.File(io.BytesIO(stored), "r") as file:
            resumed.load_state_dict(state_tree.read(file["state"]))
        for step in range(first, STEPS):
            resumed.step(bowl.objective(), 1.0 - step / STEPS)
        if not all(map(torch.equal, bowl.parameters, straight.parameters)):
            complaints.append(f"resumed after step {first}, it ends at other parameters")
        elif _stored(resumed) != at_the_end:
            complaints.append(f"resumed after step {first}, it ends with another state")
    return complaints


def what_is_not_finite_is_never_kept(build: Build, _: int) -> list[str]:
    """NaN and infinite values, and infinite gradients of finite ones, at random evaluations."""
    complaints = []
    for name, poison, gradients in (
        ("NaN", math.nan, False),
        ("inf", math.inf, False),
        ("gradient", 2.0, True),
    ):
        draws = torch.rand(100_000, generator=torch.Generator().manual_seed(3)) < 0.2
        bowl = Bowl(lambda call, q=poison, d=draws: q if d[call] else 1.0, gradients)  # type: ignore[misc]
        optimizer = build(bowl.parameters)
        for step in range(STEPS):
            before = [p.detach().clone() for p in bowl.parameters]
            report = optimizer.step(bowl.objective(), 1.0 - step / STEPS)
            if not all(bool(p.isfinite().all()) for p in bowl.parameters):
                return [f"{name} at step {step + 1}: the parameters are not finite"]
            if not report.finite and not all(map(torch.equal, before, bowl.parameters)):
                complaints.append(
                    f"{name}: step {step + 1} is reported as not taken, but the parameters moved"
                )
        lowest = min((v for v in bowl.values if math.isfinite(v)), default=math.inf)
        if not math.isfinite(optimizer.best_loss) or not bool(optimizer.best.isfinite().all()):
            complaints.append(
                f"{name}: best_loss is {optimizer.best_loss} and best is {optimizer.best.tolist()}, not finite"
            )
        elif abs(bowl.at(optimizer.best) - optimizer.best_loss) > 1e-5:
            complaints.append(
                f"{name}: best_loss is {optimizer.best_loss}, but the value at best is {bowl.at(optimizer.best)}"
            )
        elif not gradients and optimizer.best_loss > lowest + 1e-6:
            complaints.append(
                f"{name}: the lowest value was {lowest}, but best_loss is {optimizer.best_loss}"
            )
    return complaints


def _stored(optimizer: Optimizer) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", track_order=True) as file:
        state_tree.write(file, "state", optimizer.state_dict())
    return buffer.getvalue()


CHECKS = (it_descends, evaluations_are_counted, resuming_changes_no_bit, what_is_not_finite_is_never_kept)
