"""Simulators written as differentiable white boxes, usable without the trainer.

Importing this package loads no torch; a simulator's module is imported when its name is first used.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solvers.registry import Registry, UnknownNameError

if TYPE_CHECKING:
    from robotics_envs.base import Env
    from robotics_envs.conformance import check_env
    from robotics_envs.divergence import DivergenceError

__all__ = ["ENVIRONMENTS", "DivergenceError", "check_env", "julia_sources", "make_env"]

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
        "pendulum": "robotics_envs.pendulum:Pendulum",
        "cartpole_swingup": "robotics_envs.cartpole_swingup:CartpoleSwingup",
        "cartpole_balance": "robotics_envs.cartpole_balance:CartpoleBalance",
        "acrobot": "robotics_envs.acrobot:Acrobot",
        "double_pendulum": "robotics_envs.double_pendulum:DoublePendulum",
        "reacher": "robotics_envs.reacher:Reacher",
        "arm7": "robotics_envs.arm7:Arm7",
        "arm7_point": "robotics_envs.arm7_point:Arm7Point",
        "quadrotor_planar": "robotics_envs.quadrotor_planar:QuadrotorPlanar",
        "quadrotor": "robotics_envs.quadrotor:Quadrotor",
        "quadrotor_eight": "robotics_envs.quadrotor_eight:QuadrotorEight",
        "car": "robotics_envs.car:Car",
        "rocket_landing": "robotics_envs.rocket_landing:RocketLanding",
        "satellite": "robotics_envs.satellite:Satellite",
        "orbit_transfer": "robotics_envs.orbit_transfer:OrbitTransfer",
        "hopper": "robotics_envs.hopper:Hopper",
        "trebuchet": "robotics_envs.trebuchet:Trebuchet",
        "reactor": "robotics_envs.reactor:Reactor",
        "heat_rod": "robotics_envs.heat_rod:HeatRod",
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


_LAZY = {"DivergenceError": "robotics_envs.divergence", "check_env": "robotics_envs.conformance"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'robotics_envs' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
