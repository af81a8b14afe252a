"""Robots from files: MJCF and URDF become simulators with MuJoCo's own physics, contacts and gradients included."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lazy_registry.lazy_import import lazy_attributes

if TYPE_CHECKING:
    from robotics_envs.robots.comparison import Comparison, DisagreementError, verify
    from robotics_envs.robots.env import RobotEnv, from_mjcf, from_urdf, with_parameters
    from robotics_envs.robots.errors import RobotFileError
    from robotics_envs.robots.model import Options, RobotModel
    from robotics_envs.robots.mujoco_steps import in_mujoco
    from robotics_envs.robots.reading import read

__all__ = [
    "Comparison",
    "DisagreementError",
    "Options",
    "RobotEnv",
    "RobotFileError",
    "RobotModel",
    "from_mjcf",
    "from_urdf",
    "in_mujoco",
    "read",
    "verify",
    "with_parameters",
]

__getattr__, __dir__ = lazy_attributes(
    __name__,
    {
        "errors": ("RobotFileError",),
        "env": ("RobotEnv", "from_mjcf", "from_urdf", "with_parameters"),
        "model": ("Options", "RobotModel"),
        "mujoco_steps": ("in_mujoco",),
        "reading": ("read",),
        "comparison": ("Comparison", "DisagreementError", "verify"),
    },
)
