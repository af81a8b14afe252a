"""Simulators written as differentiable white boxes, usable without the trainer.

Importing this package loads no torch; a simulator's module is imported when its name is first used.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from solvers.catalogue import Catalogue

if TYPE_CHECKING:
    from robotics_envs.base import Env
    from robotics_envs.conformance import check_env

__all__ = ["ENVIRONMENTS", "check_env", "julia_sources", "make_env"]

ENVIRONMENTS = Catalogue(
    "environment",
    {
        "pendulum": "robotics_envs.pendulum:Pendulum",
        "quadrotor": "robotics_envs.quadrotor:Quadrotor",
        "arm7": "robotics_envs.arm7:Arm7",
    },
)


def make_env(name: str, **parameters: float) -> Env:
    """A simulator by its catalogue name or as ``"module:Class"``; ``parameters`` override its physics.

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


def __getattr__(name: str) -> Any:
    if name == "check_env":
        from robotics_envs.conformance import check_env

        return check_env
    raise AttributeError(f"module 'robotics_envs' has no attribute {name!r}")
