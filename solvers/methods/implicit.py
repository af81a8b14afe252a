"""Diagonally implicit Runge–Kutta methods for stiff problems, differentiated by the implicit function theorem."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from solvers.failure import Failure, SolveError, describe
from solvers.methods import tableau
from solvers.methods.base import Attempt, Solver, State, VectorField, over_components
from solvers.methods.jacobian import linearize
from solvers.methods.runge_kutta import combine
from solvers.modes import without_second_derivatives
from solvers.validation import real_number, whole_number


class DiagonallyImplicitRungeKutta(Solver):
    """One step of the diagonally implicit method given by ``tableau``: a Newton solve for every stage.

    The Newton iteration runs without a graph.  Then one Newton correction with a constant Jacobian makes the stage a
    differentiable function of its inputs, with the derivative of the implicit function theorem,
    ``dz = -(dr/dz)^-1 dr``.  It is right for first derivatives; second ones are refused.

    Args:
        newton_tolerance: a rollout has converged when its correction is below this share of its state
            (maximum norm, plus one); default: 1e-10 in float64, 1e-5 in float32.
        newton_iterations: limit of the iterations; a rollout that has not converged by then fails.
    """

    tableau: ClassVar[tableau.ButcherTableau]
    adjoints = ("implicit", "checkpoint", "adjoint")
    rollout_times = True

    def __init_subclass__(cls) -> None:
        cls.order = cls.tableau.order

    def __init__(self, newton_tolerance: float | None = None, newton_iterations: int = 20) -> None:
        if newton_tolerance is not None:
            newton_tolerance = real_number("newton_tolerance", newton_tolerance, positive=True)
        self.newton_tolerance = newton_tolerance
        self.newton_iterations = whole_number("newton_iterations", newton_iterations, least=1)

    def stages(
        self, f: VectorField, t: float | Tensor, x: State, u: Any, p: Any, dt: float | Tensor
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """The stage states, their slopes ``f``, and which rollouts converged in all stages ``[*batch]``."""
        h = over_components(dt)
        states: list[Tensor] = []
        slopes: list[Tensor] = []
        converged = torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device)
        for row, c in zip(self.tableau.a, self.tableau.c, strict=True):
            base = x + h * combine(row[:-1], slopes) if any(row[:-1]) else x
            guess = base + h * row[-1] * slopes[-1] if slopes else base
            z, slope, solved = self._solve_stage(f, t + c * dt, base, row[-1] * h, guess, u, p)
            states.append(z)
            slopes.append(slope)
            converged = converged & solved
        return states, slopes, converged

    def _solve_stage(
        self, f: VectorField, t: float | Tensor, base: Tensor, gh: Any, guess: Tensor, u: Any, p: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Solve ``z = base + gh f(t, z, u, p)`` for every rollout."""
        tolerance = self.newton_tolerance or (1e-10 if base.dtype == torch.float64 else 1e-5)
        identity = torch.eye(base.shape[-1], dtype=base.dtype, device=base.device)
        with torch.no_grad():
            z = guess.detach().clone()
            fixed_gh = over_components(gh) if isinstance(gh, Tensor) else gh
            active = torch.ones(z.shape[:-1], dtype=torch.bool, device=z.device)
            for _ in range(self.newton_iterations):
                slope, jacobian, _ = linearize(f, t, z, u, p)
                matrix = identity - fixed_gh * jacobian
                residual = z - base - gh * slope
                correction = torch.linalg.solve_ex(matrix, residual.unsqueeze(-1))[0].squeeze(-1)
                # A rollout that has converged is not changed: its result must not depend on the others' convergence.
                z = torch.where(active.unsqueeze(-1), z - correction, z)
                small = correction.abs().amax(-1) <= tolerance * (1.0 + z.abs().amax(-1))
                active = active & ~small
                if not bool(active.any()):
                    break
            _, jacobian, _ = linearize(f, t, z, u, p)
            matrix = identity - fixed_gh * jacobian
            converged = ~active & torch.isfinite(z).all(-1)
        residual = z - base - gh * f(t, z, u, p)
        z = without_second_derivatives(
            z - torch.linalg.solve_ex(matrix, residual.unsqueeze(-1))[0].squeeze(-1)
        )
        return z, f(t, z, u, p), converged

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
        """The step and which rollouts' Newton iterations converged."""
        states, slopes, converged = self.stages(f, t, x, u, p, dt)
        # Stiffly accurate methods end at their last stage; there the sum would lose digits to stiffness.
        ends_at_stage = self.tableau.a[-1] == self.tableau.b
        x_new = states[-1] if ends_at_stage else x + over_components(dt) * combine(self.tableau.b, slopes)
        return Attempt(x_new, converged=converged)

    def step(self, f: VectorField, t: float | Tensor, x: State, u: Any, p: Any, dt: float | Tensor) -> State:
        """The state at ``t + dt``.

        Raises:
            SolveError: the Newton iteration did not converge for some rollout.
        """
        result = self.attempt(f, t, x, u, p, dt)
        assert result.converged is not None
        if not bool(result.converged.all()):
            status = torch.where(result.converged, Failure.SUCCESS, Failure.NEWTON)
            raise SolveError(describe(status, t, dt, adaptive=False), status)
        return result.x


class BackwardEuler(DiagonallyImplicitRungeKutta):
    """Backward Euler: order 1, L-stable."""

    tableau = tableau.BACKWARD_EULER


class ImplicitMidpoint(DiagonallyImplicitRungeKutta):
    """Implicit midpoint: order 2, A-stable, symplectic; conserves quadratic invariants."""

    tableau = tableau.IMPLICIT_MIDPOINT


class SDIRK3(DiagonallyImplicitRungeKutta):
    """Alexander's method of three stages: order 3, L-stable, stiffly accurate."""

    tableau = tableau.SDIRK3
