"""The methods by name.  Nothing is imported until one is made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lazy_registry import Registry

if TYPE_CHECKING:
    from solvers.methods.base import Solver

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
        "torchdiffeq.dopri5": "solvers.methods.torchdiffeq_methods:Dopri5",
        "torchdiffeq.dopri8": "solvers.methods.torchdiffeq_methods:Dopri8",
        "torchdiffeq.bosh3": "solvers.methods.torchdiffeq_methods:Bosh3",
        "torchdiffeq.fehlberg2": "solvers.methods.torchdiffeq_methods:Fehlberg2",
        "torchdiffeq.adaptive_heun": "solvers.methods.torchdiffeq_methods:AdaptiveHeun",
        "torchdiffeq.euler": "solvers.methods.torchdiffeq_methods:Euler",
        "torchdiffeq.midpoint": "solvers.methods.torchdiffeq_methods:Midpoint",
        "torchdiffeq.heun2": "solvers.methods.torchdiffeq_methods:Heun2",
        "torchdiffeq.heun3": "solvers.methods.torchdiffeq_methods:Heun3",
        "torchdiffeq.rk4": "solvers.methods.torchdiffeq_methods:RK4",
        "torchdiffeq.explicit_adams": "solvers.methods.torchdiffeq_methods:ExplicitAdams",
        "torchdiffeq.implicit_adams": "solvers.methods.torchdiffeq_methods:ImplicitAdams",
        "torchdiffeq.fixed_adams": "solvers.methods.torchdiffeq_methods:FixedAdams",
        "torchdiffeq.scipy_solver": "solvers.methods.torchdiffeq_methods:Scipy",
    },
)


def make_solver(name: str, **options: Any) -> Solver:
    """A solver by its registry name or as ``"module:Class"``; ``options`` go to its constructor."""
    return SOLVERS.load(name)(**options)
