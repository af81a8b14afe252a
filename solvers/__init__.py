"""Solvers of initial-value problems ``dx/dt = f(t, x, u, p)`` over batches, differentiable in x, u and p.

Importing this package loads no torch; a solver's module is imported when its name is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from solvers.lazy_import import lazy_attributes
from solvers.registry import Registry, UnknownNameError, unknown

if TYPE_CHECKING:
    from solvers.base import Attempt, Solver, State, VectorField
    from solvers.chebyshev import RungeKuttaChebyshev
    from solvers.events import Event
    from solvers.failure import Failure, SolveError
    from solvers.implicit import SDIRK3, BackwardEuler, DiagonallyImplicitRungeKutta, ImplicitMidpoint
    from solvers.installation import install_command
    from solvers.ivp import solve
    from solvers.rosenbrock import Rodas5P
    from solvers.runge_kutta import RK4, Dopri5, Euler, ExplicitRungeKutta, Heun, Midpoint, Tsit5
    from solvers.solution import EventLog, Solution, Statistics
    from solvers.step_size import StepSizeController
    from solvers.symplectic import SemiImplicitEuler, StormerVerlet, Yoshida4
    from solvers.tableau import ButcherTableau

__all__ = [
    "RK4",
    "SDIRK3",
    "SOLVERS",
    "Attempt",
    "BackwardEuler",
    "ButcherTableau",
    "DiagonallyImplicitRungeKutta",
    "Dopri5",
    "Euler",
    "Event",
    "EventLog",
    "ExplicitRungeKutta",
    "Failure",
    "Heun",
    "ImplicitMidpoint",
    "Midpoint",
    "Registry",
    "Rodas5P",
    "RungeKuttaChebyshev",
    "SemiImplicitEuler",
    "Solution",
    "SolveError",
    "Solver",
    "State",
    "Statistics",
    "StepSizeController",
    "StormerVerlet",
    "Tsit5",
    "UnknownNameError",
    "VectorField",
    "Yoshida4",
    "install_command",
    "make_solver",
    "solve",
    "unknown",
]

SOLVERS = Registry(
    "solver",
    {
        "euler": "solvers.runge_kutta:Euler",
        "midpoint": "solvers.runge_kutta:Midpoint",
        "heun": "solvers.runge_kutta:Heun",
        "rk4": "solvers.runge_kutta:RK4",
        "tsit5": "solvers.runge_kutta:Tsit5",
        "dopri5": "solvers.runge_kutta:Dopri5",
        "semi_implicit_euler": "solvers.symplectic:SemiImplicitEuler",
        "stormer_verlet": "solvers.symplectic:StormerVerlet",
        "yoshida4": "solvers.symplectic:Yoshida4",
        "backward_euler": "solvers.implicit:BackwardEuler",
        "implicit_midpoint": "solvers.implicit:ImplicitMidpoint",
        "sdirk3": "solvers.implicit:SDIRK3",
        "rkc": "solvers.chebyshev:RungeKuttaChebyshev",
        "rodas5p": "solvers.rosenbrock:Rodas5P",
        "torchdiffeq.dopri5": "solvers.torchdiffeq_methods:Dopri5",
        "torchdiffeq.dopri8": "solvers.torchdiffeq_methods:Dopri8",
        "torchdiffeq.bosh3": "solvers.torchdiffeq_methods:Bosh3",
        "torchdiffeq.fehlberg2": "solvers.torchdiffeq_methods:Fehlberg2",
        "torchdiffeq.adaptive_heun": "solvers.torchdiffeq_methods:AdaptiveHeun",
        "torchdiffeq.euler": "solvers.torchdiffeq_methods:Euler",
        "torchdiffeq.midpoint": "solvers.torchdiffeq_methods:Midpoint",
        "torchdiffeq.heun2": "solvers.torchdiffeq_methods:Heun2",
        "torchdiffeq.heun3": "solvers.torchdiffeq_methods:Heun3",
        "torchdiffeq.rk4": "solvers.torchdiffeq_methods:RK4",
        "torchdiffeq.explicit_adams": "solvers.torchdiffeq_methods:ExplicitAdams",
        "torchdiffeq.implicit_adams": "solvers.torchdiffeq_methods:ImplicitAdams",
        "torchdiffeq.fixed_adams": "solvers.torchdiffeq_methods:FixedAdams",
        "torchdiffeq.scipy_solver": "solvers.torchdiffeq_methods:Scipy",
    },
)


def make_solver(name: str, **options: Any) -> Solver:
    """A solver by its registry name or as ``"module:Class"``; ``options`` go to its constructor."""
    return SOLVERS.load(name)(**options)


__getattr__, __dir__ = lazy_attributes(
    __name__,
    {
        "base": ("Attempt", "Solver", "State", "VectorField"),
        "chebyshev": ("RungeKuttaChebyshev",),
        "events": ("Event",),
        "failure": ("Failure", "SolveError"),
        "implicit": ("SDIRK3", "BackwardEuler", "DiagonallyImplicitRungeKutta", "ImplicitMidpoint"),
        "installation": ("install_command",),
        "ivp": ("solve",),
        "rosenbrock": ("Rodas5P",),
        "runge_kutta": ("RK4", "Dopri5", "Euler", "ExplicitRungeKutta", "Heun", "Midpoint", "Tsit5"),
        "solution": ("EventLog", "Solution", "Statistics"),
        "step_size": ("StepSizeController",),
        "symplectic": ("SemiImplicitEuler", "StormerVerlet", "Yoshida4"),
        "tableau": ("ButcherTableau",),
    },
    renamed={"Catalogue": "Registry"},
)
