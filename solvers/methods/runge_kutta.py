"""Explicit Runge–Kutta methods: at a fixed step, and the embedded pairs that choose their steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from solvers.methods import tableau
from solvers.methods.base import Attempt, Solver, State, VectorField, over_components


def combine(weights: Sequence[float], stages: Sequence[Tensor]) -> Tensor:
    """The weighted sum of the stages, without the terms that a zero weight removes."""
    terms = [k if w == 1.0 else w * k for w, k in zip(weights, stages, strict=True) if w != 0.0]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


class ExplicitRungeKutta(Solver):
    """One step of the explicit Runge–Kutta method given by ``tableau``."""

    tableau: ClassVar[tableau.ButcherTableau]
    adjoints = ("backprop", "checkpoint", "adjoint")

    def __init_subclass__(cls) -> None:
        cls.order = cls.tableau.order
        cls.error_order = cls.tableau.error_order
        cls.adaptive = cls.tableau.b_error is not None

    def stages(
        self,
        f: VectorField,
        t: float | Tensor,
        x: State,
        u: Any,
        p: Any,
        dt: float | Tensor,
        start_slope: Tensor | None = None,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The stage states and their slopes ``f``."""
        h = over_components(dt)
        states, slopes = [x], [f(t, x, u, p) if start_slope is None else start_slope]
        for row, c in zip(self.tableau.a[1:], self.tableau.c[1:], strict=True):
            states.append(x + h * combine(row, slopes))
            slopes.append(f(t + c * dt, states[-1], u, p))
        return states, slopes

    def step(self, f: VectorField, t: float | Tensor, x: State, u: Any, p: Any, dt: float | Tensor) -> State:
        """The state at ``t + dt``; an evaluation of ``f`` for every stage with a weight."""
        # Operation by operation as in `stages`: autograd sums gradients in the order in which operations were recorded,
        # so that another order, or `h` in the last line, changes their last bits.
        table, h = self.tableau, over_components(dt)
        used = len(table.b) - (table.b[-1] == 0.0)
        slopes = [f(t, x, u, p)]
        for row, c in zip(table.a[1:used], table.c[1:used], strict=True):
            state = x + h * combine(row, slopes)
            slopes.append(f(t + c * dt, state, u, p))
        return x + over_components(dt) * combine(table.b[:used], slopes)

    def attempt(
        self,
        f: VectorField,
        t: float | Tensor,
        x: State,
        u: Any,
        p: Any,
        dt: float | Tensor,
        start_slope: Tensor | None = None,
    ) -> Attempt:
        """A step with its error estimate, its last slope and its dense output, where the tableau has them."""
        table = self.tableau
        if table.b_error is None:
            return Attempt(self.step(f, t, x, u, p, dt))
        h = over_components(dt)
        states, slopes = self.stages(f, t, x, u, p, dt, start_slope)

        def dense(theta: Tensor) -> Tensor:
            assert table.dense is not None
            theta = theta.unsqueeze(-1)
            powers = [combine(column, slopes) for column in zip(*table.dense, strict=True)]
            rise = powers[-1] * theta
            for coefficient in powers[-2::-1]:
                rise = (rise + coefficient) * theta
            return x + h * rise

        # First same as last: the last stage stands at the end of the step.
        return Attempt(states[-1], h * combine(table.b_error, slopes), slopes[-1], dense)


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


class Tsit5(ExplicitRungeKutta):
    """Tsitouras' pair of order 5(4): six evaluations a step, dense output of order 4."""

    tableau = tableau.TSIT5


class Dopri5(ExplicitRungeKutta):
    """Dormand's and Prince's pair of order 5(4): six evaluations a step, dense output of order 4."""

    tableau = tableau.DOPRI5
