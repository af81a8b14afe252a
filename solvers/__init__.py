"""Solvers of initial-value problems ``dx/dt = f(t, x, u, p)`` over batches, differentiable in x, u and p.

Importing this package loads no torch; a solver's module is imported when its name is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from solvers.registry import Registry, UnknownNameError, unknown

if TYPE_CHECKING:
    from solvers.base import Solver
    from solvers.events import Event
    from solvers.failure import Failure, SolveError
    from solvers.ivp import solve
    from solvers.solution import Solution
    from solvers.step_size import StepSizeController

__all__ = [
    "SOLVERS",
    "Event",
    "Failure",
    "Registry",
    "Solution",
    "SolveError",
    "StepSizeController",
    "UnknownNameError",
    "make_solver",
    "solve",
    "unknown",
]

_LAZY = {
    "Event": "solvers.events",
    "Failure": "solvers.failure",
    "Solution": "solvers.solution",
    "SolveError": "solvers.failure",
    "StepSizeController": "solvers.step_size",
    "solve": "solvers.ivp",
}

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


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'solvers' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return __all__
