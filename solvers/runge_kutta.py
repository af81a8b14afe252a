"""Explicit Runge–Kutta methods at a fixed step."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from solvers import tableau
from solvers.base import Solver, State, VectorField


class ExplicitRungeKutta(Solver):
    """One step of the explicit Runge–Kutta method given by ``tableau``."""

    tableau: ClassVar[tableau.ButcherTableau]

    def __init_subclass__(cls) -> None:
        cls.order = cls.tableau.order

    def step(self, f: VectorField, t: float | Tensor, x: State, u: Any, p: Any, dt: float | Tensor) -> State:
        """The state at ``t + dt``; ``len(tableau.b)`` evaluations of ``f``."""
        stages = [f(t, x, u, p)]
        for row, c in zip(self.tableau.a, self.tableau.c[1:], strict=True):
            stages.append(f(t + c * dt, x + dt * _combine(row, stages), u, p))
        return x + dt * _combine(self.tableau.b, stages)


def _combine(weights: tableau.Coefficients, stages: list[Tensor]) -> Tensor:
    """The weighted sum of the stages, without the terms that a zero weight removes."""
    terms = [k if w == 1.0 else w * k for w, k in zip(weights, stages, strict=True) if w != 0.0]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


class Euler(ExplicitRungeKutta):
    """Forward Euler, order 1."""

    tableau = tableau.EULER


class Midpoint(ExplicitRungeKutta):
    """Explicit midpoint, order 2."""

    tableau = tableau.MIDPOINT


class Heun(ExplicitRungeKutta):
    """Heun's method (explicit trapezoid), order 2."""

    tableau = tableau.HEUN


class RK4(ExplicitRungeKutta):
    """The classical fourth-order method."""

    tableau = tableau.RK4
