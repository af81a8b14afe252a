"""Simulators written as differentiable white boxes, usable without the trainer.

Importing this package loads no torch; a simulator's module is imported when its name is first used.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solvers.catalogue import Catalogue

if TYPE_CHECKING:
    from robotics_envs.base import Env
    from robotics_envs.conformance import check_env
    from robotics_envs.divergence import DivergenceError

__all__ = ["ENVIRONMENTS", "DivergenceError", "check_env", "julia_sources", "make_env"]

ENVIRONMENTS = Catalogue(
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
    """A simulator by its catalogue name, or one's own as ``"my_env.py:MyEnv"`` or ``"module:Class"``.

    ``parameters`` override its physics.

    Raises:
        solvers.UnknownNameError: no such simulator or parameter.
        ValueError: a parameter outside its bounds.
    """
    return ENVIRONMENTS.load(name)(**parameters)


def julia_sources() -> Path:
    """The folder of the Julia package with the Julia simulators (it holds ``Project.toml``)."""
    here = Path(__file__).resolve().parent
    # In a wheel the sources lie inside this package; in a checkout they are the folder julia/.
    return next(p for p in (here / "julia_sources", here.parent / "julia") if p.is_dir())


_LAZY = {"DivergenceError": "robotics_envs.divergence", "check_env": "robotics_envs.conformance"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'robotics_envs' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
