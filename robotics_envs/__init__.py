"""Simulators written as differentiable white boxes, usable without the trainer.

Importing this package loads no torch; a simulator's module is imported when its name is first used.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any


def _refuse_hidden_packages() -> None:
    """A script's own folder comes first on the import path: a file there can hide a package of this project."""
    root = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    for package in ("lazy_registry", "solvers"):
        try:
            found = importlib.util.find_spec(package)
        except ValueError:  # somebody made the module by hand
            continue
        file = None if found is None else found.origin
        if file and os.path.dirname(os.path.realpath(file)) != os.path.join(root, package):
            what = "folder" if os.path.basename(file).startswith("__init__.") else "file"
            raise ImportError(
                f"{file} hides the package {package} of diffsim; rename the {what}", name=package
            )


_refuse_hidden_packages()

from lazy_registry.lazy_import import lazy_attributes  # noqa: E402
from lazy_registry.moved import serve_old_names  # noqa: E402
from lazy_registry.registry import Registry, UnknownNameError  # noqa: E402
from robotics_envs._moved import MOVED  # noqa: E402

if TYPE_CHECKING:
    from robotics_envs.base import (
        Actions,
        Box,
        Costs,
        Env,
        Observations,
        Parameter,
        Params,
        SizeError,
        States,
    )
    from robotics_envs.conformance import ConformanceError, check_env
    from robotics_envs.divergence import DivergenceError
    from robotics_envs.drawing import COLOURS, Circle, Floats, Line, Polygon, Shape, Text, View
    from robotics_envs.julia.installation import JuliaError
    from robotics_envs.mechanics.joint_limit import JointLimit
    from robotics_envs.user_code import UserCodeError

serve_old_names(MOVED)

__all__ = [
    "COLOURS",
    "ENVIRONMENTS",
    "Actions",
    "Box",
    "Circle",
    "ConformanceError",
    "Costs",
    "DivergenceError",
    "Env",
    "Floats",
    "JointLimit",
    "JuliaError",
    "Line",
    "Observations",
    "Parameter",
    "Params",
    "Polygon",
    "Shape",
    "SizeError",
    "States",
    "Text",
    "UserCodeError",
    "View",
    "check_env",
    "julia_sources",
    "make_env",
]

JULIA = "julia:"
"""What the names of simulators written in Julia begin with."""


class EnvironmentRegistry(Registry):
    """The simulators in Python, and by ``"julia:Pendulum"`` or ``"julia:my_env.jl:MyEnv"`` those in Julia."""

    def load(self, name: str) -> Any:
        """The class behind a name; see :meth:`Registry.load`.

        Raises:
            UnknownNameError: no such name, file, module or attribute.
            robotics_envs.julia.JuliaError: there is no Julia, or it reports an error.
        """
        if not (isinstance(name, str) and name.startswith(JULIA)):
            return super().load(name)
        simulator = name.rpartition(":")[2]
        if not simulator:
            raise UnknownNameError(
                f"environment {name!r} names no simulator: 'julia:Pendulum', or your own as 'julia:my_env.jl:MyEnv'"
            )
        return importlib.import_module("robotics_envs.julia.env").julia_env(name)


ENVIRONMENTS = EnvironmentRegistry(
    "environment",
    {
        "pendulum": "robotics_envs.simulators.pendulum:Pendulum",
        "cartpole_swingup": "robotics_envs.simulators.cartpole_swingup:CartpoleSwingup",
        "cartpole_balance": "robotics_envs.simulators.cartpole_balance:CartpoleBalance",
        "acrobot": "robotics_envs.simulators.acrobot:Acrobot",
        "double_pendulum": "robotics_envs.simulators.double_pendulum:DoublePendulum",
        "reacher": "robotics_envs.simulators.reacher:Reacher",
        "arm7": "robotics_envs.simulators.arm7:Arm7",
        "arm7_point": "robotics_envs.simulators.arm7_point:Arm7Point",
        "quadrotor_planar": "robotics_envs.simulators.quadrotor_planar:QuadrotorPlanar",
        "quadrotor": "robotics_envs.simulators.quadrotor:Quadrotor",
        "quadrotor_eight": "robotics_envs.simulators.quadrotor_eight:QuadrotorEight",
        "car": "robotics_envs.simulators.car:Car",
        "rocket_landing": "robotics_envs.simulators.rocket_landing:RocketLanding",
        "satellite": "robotics_envs.simulators.satellite:Satellite",
        "orbit_transfer": "robotics_envs.simulators.orbit_transfer:OrbitTransfer",
        "hopper": "robotics_envs.simulators.hopper:Hopper",
        "trebuchet": "robotics_envs.simulators.trebuchet:Trebuchet",
        "reactor": "robotics_envs.simulators.reactor:Reactor",
        "heat_rod": "robotics_envs.simulators.heat_rod:HeatRod",
    },
)


def make_env(name: str, **parameters: float) -> Env:
    """A simulator by its registry name, or one's own as ``"my_env.py:MyEnv"`` or ``"module:Class"``.

    Those in Julia are ``"julia:Pendulum"``, one's own ``"julia:my_env.jl:MyEnv"``.  ``parameters`` override
    the physics.

    Raises:
        solvers.UnknownNameError: no such simulator or parameter.
        ValueError: a parameter outside its bounds.
        robotics_envs.julia.JuliaError: there is no Julia, or it reports an error.
    """
    return ENVIRONMENTS.load(name)(**parameters)


def julia_sources() -> Path:
    """The folder of ``DiffSimEnvs``, the Julia package with the Julia simulators (it holds ``Project.toml``)."""
    here = Path(__file__).resolve().parent
    # In a wheel the sources lie inside this package; in a checkout, in the folder julia/.
    return next(p for p in (here / "DiffSimEnvs", here.parent / "julia" / "DiffSimEnvs") if p.is_dir())


__getattr__, __dir__ = lazy_attributes(
    __name__,
    {
        "base": (
            "Actions",
            "Box",
            "Costs",
            "Env",
            "Observations",
            "Parameter",
            "Params",
            "SizeError",
            "States",
        ),
        "conformance": ("ConformanceError", "check_env"),
        "divergence": ("DivergenceError",),
        "drawing": ("COLOURS", "Circle", "Floats", "Line", "Polygon", "Shape", "Text", "View"),
        "mechanics.joint_limit": ("JointLimit",),
        "julia.installation": ("JuliaError",),
        "user_code": ("UserCodeError",),
    },
)
