"""Solvers of initial-value problems ``dx/dt = f(t, x, u, p)`` over batches, differentiable in x, u and p.

Importing this package loads no torch; a solver's module is imported when its name is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lazy_registry import Registry, UnknownNameError, install_command, unknown
from lazy_registry.lazy_import import lazy_attributes
from lazy_registry.moved import serve_old_names
from solvers._moved import MOVED

if TYPE_CHECKING:
    from solvers.failure import Failure, SolveError
    from solvers.ivp import solve
    from solvers.marching.events import Event
    from solvers.marching.step_size import StepSizeController
    from solvers.methods.base import Attempt, Solver, State, VectorField
    from solvers.methods.chebyshev import RungeKuttaChebyshev
    from solvers.methods.implicit import SDIRK3, BackwardEuler, DiagonallyImplicitRungeKutta, ImplicitMidpoint
    from solvers.methods.rosenbrock import Rodas5P
    from solvers.methods.runge_kutta import RK4, Dopri5, Euler, ExplicitRungeKutta, Heun, Midpoint, Tsit5
    from solvers.methods.symplectic import SemiImplicitEuler, StormerVerlet, Yoshida4
    from solvers.methods.tableau import ButcherTableau
    from solvers.solution import EventLog, Solution, Statistics

serve_old_names(MOVED)

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
        "euler": "solvers.methods.runge_kutta:Euler",
        "midpoint": "solvers.methods.runge_kutta:Midpoint",
        "heun": "solvers.methods.runge_kutta:Heun",
        "rk4": "solvers.methods.runge_kutta:RK4",
        "tsit5": "solvers.methods.runge_kutta:Tsit5",
        "dopri5": "solvers.methods.runge_kutta:Dopri5",
        "semi_implicit_euler": "solvers.methods.symplectic:SemiImplicitEuler",
        "stormer_verlet": "solvers.methods.symplectic:StormerVerlet",
        "yoshida4": "solvers.methods.symplectic:Yoshida4",
        "backward_euler": "solvers.methods.implicit:BackwardEuler",
        "implicit_midpoint": "solvers.methods.implicit:ImplicitMidpoint",
        "sdirk3": "solvers.methods.implicit:SDIRK3",
        "rkc": "solvers.methods.chebyshev:RungeKuttaChebyshev",
        "rodas5p": "solvers.methods.rosenbrock:Rodas5P",
        "torchdiffeq.dopri5": "solvers.engines.torchdiffeq_methods:Dopri5",
        "torchdiffeq.dopri8": "solvers.engines.torchdiffeq_methods:Dopri8",
        "torchdiffeq.bosh3": "solvers.engines.torchdiffeq_methods:Bosh3",
        "torchdiffeq.fehlberg2": "solvers.engines.torchdiffeq_methods:Fehlberg2",
        "torchdiffeq.adaptive_heun": "solvers.engines.torchdiffeq_methods:AdaptiveHeun",
        "torchdiffeq.euler": "solvers.engines.torchdiffeq_methods:Euler",
        "torchdiffeq.midpoint": "solvers.engines.torchdiffeq_methods:Midpoint",
        "torchdiffeq.heun2": "solvers.engines.torchdiffeq_methods:Heun2",
        "torchdiffeq.heun3": "solvers.engines.torchdiffeq_methods:Heun3",
        "torchdiffeq.rk4": "solvers.engines.torchdiffeq_methods:RK4",
        "torchdiffeq.explicit_adams": "solvers.engines.torchdiffeq_methods:ExplicitAdams",
        "torchdiffeq.implicit_adams": "solvers.engines.torchdiffeq_methods:ImplicitAdams",
        "torchdiffeq.fixed_adams": "solvers.engines.torchdiffeq_methods:FixedAdams",
        "torchdiffeq.scipy_solver": "solvers.engines.torchdiffeq_methods:Scipy",
    },
)


def make_solver(name: str, **options: Any) -> Solver:
    """A solver by its registry name or as ``"module:Class"``; ``options`` go to its constructor."""
    return SOLVERS.load(name)(**options)


__getattr__, __dir__ = lazy_attributes(
    __name__,
    {
        "methods.base": ("Attempt", "Solver", "State", "VectorField"),
        "methods.chebyshev": ("RungeKuttaChebyshev",),
        "marching.events": ("Event",),
        "failure": ("Failure", "SolveError"),
        "methods.implicit": ("SDIRK3", "BackwardEuler", "DiagonallyImplicitRungeKutta", "ImplicitMidpoint"),
        "ivp": ("solve",),
        "methods.rosenbrock": ("Rodas5P",),
        "methods.runge_kutta": ("RK4", "Dopri5", "Euler", "ExplicitRungeKutta", "Heun", "Midpoint", "Tsit5"),
        "solution": ("EventLog", "Solution", "Statistics"),
        "marching.step_size": ("StepSizeController",),
        "methods.symplectic": ("SemiImplicitEuler", "StormerVerlet", "Yoshida4"),
        "methods.tableau": ("ButcherTableau",),
    },
    renamed={"Catalogue": "Registry"},
)
