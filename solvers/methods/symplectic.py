"""Methods for mechanical systems ``x = [q, v]`` with ``dq/dt = v``.

The first half of the state is the position, the second the velocity; only the velocity half of ``f``
is used.  Where the acceleration depends on the position and time alone they are symplectic and, all but
semi-implicit Euler, time-reversible: the energy error stays bounded for exponentially long times
(Hairer, Lubich, Wanner, Geometric Numerical Integration, §IX.8).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from solvers.methods.base import Solver, State, VectorField, over_components


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    if x.shape[-1] % 2:
        raise ValueError(
            f"a method for x = [q, v] needs a state of even length, got {x.shape[-1]} components"
        )
    return x.chunk(2, dim=-1)  # type: ignore[return-value]


class SemiImplicitEuler(Solver):
    """Semi-implicit (symplectic) Euler: ``v' = v + dt·a(q, v)``, then ``q' = q + dt·v'``. Order 1.

    Hairer, Lubich, Wanner, Geometric Numerical Integration, §I.1.2.

    Args:
        project_velocity: applied to ``v'`` before the position moves (a speed limit, a constraint).
            Where its derivative is zero, as a clamp's beyond its limits, the gradient is cut.
    """

    order = 1
    velocity_form = True

    def __init__(self, project_velocity: Callable[[Tensor], Tensor] | None = None) -> None:
        self.project_velocity = project_velocity

    def step(self, f: VectorField, t: float | Tensor, x: State, u: Any, p: Any, dt: float | Tensor) -> State:
        """The state at ``t + dt``; one evaluation of ``f``.

        Raises:
            ValueError: the state has an odd number of components.
        """
        q, v = _halves(x)
        h = over_components(dt)
        v = v + h * _halves(f(t, x, u, p))[1]
        if self.project_velocity is not None:
            v = self.project_velocity(v)
        return torch.cat((q + h * v, v), dim=-1)


class StormerVerlet(Solver):
    """Störmer–Verlet in position form: drift ``dt/2``, kick ``dt``, drift ``dt/2``. Order 2.

    Hairer, Lubich, Wanner, Geometric Numerical Integration, §I.1.4.  The kick is an explicit midpoint
    step in v, which keeps order 2 where the acceleration depends on the velocity (damping) and changes
    nothing where it does not.
    """

    order = 2
    velocity_form = True

    def step(self, f: VectorField, t: float | Tensor, x: State, u: Any, p: Any, dt: float | Tensor) -> State:
        """The state at ``t + dt``; two evaluations of ``f``.

        Raises:
            ValueError: the state has an odd number of components.
        """
        q, v = _halves(x)
        h = over_components(dt)
        middle = t + 0.5 * dt
        q = q + 0.5 * h * v
        v_middle = v + 0.5 * h * _halves(f(middle, torch.cat((q, v), dim=-1), u, p))[1]
        v = v + h * _halves(f(middle, torch.cat((q, v_middle), dim=-1), u, p))[1]
        return torch.cat((q + 0.5 * h * v, v), dim=-1)


_CUBE_ROOT = 2.0 ** (1 / 3)
_OUTER = 1 / (2 - _CUBE_ROOT)
YOSHIDA4_STEPS = (_OUTER, -_CUBE_ROOT * _OUTER, _OUTER)
"""Substeps of Yoshida, Construction of higher order symplectic integrators, Physics Letters A 150 (1990), eq. 2.11."""


class Yoshida4(Solver):
    """Three Störmer–Verlet steps, one of them backwards. Order 4, symplectic.

    Order 4 for accelerations of position and time; order 3 where they depend on the velocity, because
    the kick is then not time-reversible.  The substeps reach ``1.7 dt`` beyond the step.
    """

    order = 4
    velocity_form = True

    def __init__(self) -> None:
        self._verlet = StormerVerlet()

    def step(self, f: VectorField, t: float | Tensor, x: State, u: Any, p: Any, dt: float | Tensor) -> State:
        """The state at ``t + dt``; six evaluations of ``f``.

        Raises:
            ValueError: the state has an odd number of components.
        """
        for share in YOSHIDA4_STEPS:
            x = self._verlet.step(f, t, x, u, p, share * dt)
            t = t + share * dt
        return x
