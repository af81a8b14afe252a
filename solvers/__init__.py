"""Solvers of initial-value problems ``dx/dt = f(t, x, u, p)`` over batches, differentiable in x, u and p.

Importing this package loads no torch; a solver's module is imported when its name is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lazy_registry import Registry, UnknownNameError, install_command, unknown
from lazy_registry.lazy_import import lazy_attributes
from lazy_registry.moved import serve_old_names
from solvers._moved import MOVED

if TYPE_CHECKING:
    from solvers.adjoints.backprop import Advanced, Backprop, StrideInputs, advance
    from solvers.adjoints.base import Adjoint, attach_gradient
    from solvers.adjoints.checkpoint import Checkpoint
    from solvers.adjoints.continuous import ContinuousAdjoint
    from solvers.failure import Failure, SolveError
    from solvers.ivp import solve
    from solvers.marching.events import Event
    from solvers.marching.problem import Problem
    from solvers.marching.step_size import Controller, StepSizeController
    from solvers.marching.track import Outputs, Stride, Track
    from solvers.methods.base import Attempt, Solver, State, VectorField
    from solvers.methods.chebyshev import RungeKuttaChebyshev
    from solvers.methods.implicit import SDIRK3, BackwardEuler, DiagonallyImplicitRungeKutta, ImplicitMidpoint
    from solvers.methods.registry import SOLVERS, make_solver
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
    "Adjoint",
    "Advanced",
    "Attempt",
    "Backprop",
    "BackwardEuler",
    "ButcherTableau",
    "Checkpoint",
    "ContinuousAdjoint",
    "Controller",
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
    "Outputs",
    "Problem",
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
    "Stride",
    "StrideInputs",
    "Track",
    "Tsit5",
    "UnknownNameError",
    "VectorField",
    "Yoshida4",
    "advance",
    "attach_gradient",
    "install_command",
    "make_solver",
    "solve",
    "unknown",
]

__getattr__, __dir__ = lazy_attributes(
    __name__,
    {
        "adjoints.backprop": ("Advanced", "Backprop", "StrideInputs", "advance"),
        "adjoints.base": ("Adjoint", "attach_gradient"),
        "adjoints.checkpoint": ("Checkpoint",),
        "adjoints.continuous": ("ContinuousAdjoint",),
        "marching.problem": ("Problem",),
        "marching.track": ("Outputs", "Stride", "Track"),
        "methods.registry": ("SOLVERS", "make_solver"),
        "methods.base": ("Attempt", "Solver", "State", "VectorField"),
        "methods.chebyshev": ("RungeKuttaChebyshev",),
        "marching.events": ("Event",),
        "failure": ("Failure", "SolveError"),
        "methods.implicit": ("SDIRK3", "BackwardEuler", "DiagonallyImplicitRungeKutta", "ImplicitMidpoint"),
        "ivp": ("solve",),
        "methods.rosenbrock": ("Rodas5P",),
        "methods.runge_kutta": ("RK4", "Dopri5", "Euler", "ExplicitRungeKutta", "Heun", "Midpoint", "Tsit5"),
        "solution": ("EventLog", "Solution", "Statistics"),
        "marching.step_size": ("Controller", "StepSizeController"),
        "methods.symplectic": ("SemiImplicitEuler", "StormerVerlet", "Yoshida4"),
        "methods.tableau": ("ButcherTableau",),
    },
    renamed={"Catalogue": "Registry"},
)
