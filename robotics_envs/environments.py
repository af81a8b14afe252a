"""The simulators by name."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lazy_registry.registry import Registry, UnknownNameError, unknown

if TYPE_CHECKING:
    from robotics_envs.base import Env

JULIA = "julia:"
"""What the names of simulators written in Julia begin with."""

ROBOTS = ("mjcf:", "urdf:")
"""What the names of robots in files begin with: ``"mjcf:robot.xml"``, ``"mjcf:robot.xml?meshes=drop"``."""
GYM = "gym:"
"""What the names of Gymnasium's own MuJoCo tasks begin with."""

GYM_TASKS = {
    "gym:HalfCheetah-v5": "robotics_envs.robots.tasks.half_cheetah:HalfCheetah",
    "gym:Hopper-v5": "robotics_envs.robots.tasks.hopper:Hopper",
    "gym:Walker2d-v5": "robotics_envs.robots.tasks.walker2d:Walker2d",
    "gym:Ant-v5": "robotics_envs.robots.tasks.ant:Ant",
    "gym:Humanoid-v5": "robotics_envs.robots.tasks.humanoid:Humanoid",
    "gym:Reacher-v5": "robotics_envs.robots.tasks.reacher:Reacher",
    "gym:InvertedPendulum-v5": "robotics_envs.robots.tasks.inverted_pendulum:InvertedPendulum",
    "gym:InvertedDoublePendulum-v5": "robotics_envs.robots.tasks.inverted_double_pendulum:InvertedDoublePendulum",
}
"""Tasks on models that the package gymnasium brings; no part of the catalogue, which needs no other package."""

DM_CONTROL = "dm_control:"
"""What the names of tasks of dm_control's suite begin with."""

_OF_DM_CONTROL = "robotics_envs.robots.tasks.dm_control"
DM_CONTROL_TASKS = {
    "dm_control:cheetah-run": f"{_OF_DM_CONTROL}.cheetah:CheetahRun",
    "dm_control:walker-stand": f"{_OF_DM_CONTROL}.walker:WalkerStand",
    "dm_control:walker-walk": f"{_OF_DM_CONTROL}.walker:WalkerWalk",
    "dm_control:walker-run": f"{_OF_DM_CONTROL}.walker:WalkerRun",
    "dm_control:hopper-stand": f"{_OF_DM_CONTROL}.hopper:HopperStand",
    "dm_control:hopper-hop": f"{_OF_DM_CONTROL}.hopper:HopperHop",
}
"""Tasks on models that the package dm_control brings."""

SUITES = (GYM, DM_CONTROL)
SUITE_TASKS = {**GYM_TASKS, **DM_CONTROL_TASKS}

REFUSED_TASKS = {
    "gym:Swimmer-v5": "swimmer.xml",
    "gym:Pusher-v5": "pusher_v5.xml",
    **dict.fromkeys(("dm_control:swimmer-swimmer6", "dm_control:swimmer-swimmer15"), "swimmer.xml"),
    **{f"dm_control:quadruped-{task}": "quadruped.xml" for task in ("walk", "run", "escape", "fetch")},
}
"""Tasks of the suites whose models hold what is not simulated here, and the files that are refused."""


def robot_file(name: str) -> Path | None:
    """The file that ``"mjcf:FILE"`` or ``"urdf:FILE"``, with or without options, names; None for other names."""
    if not name.startswith(ROBOTS):
        return None
    return Path(name.partition(":")[2].partition("?")[0])


class EnvironmentRegistry(Registry):
    """The simulators in Python, and others by what their names begin with.

    ``"julia:Pendulum"`` and ``"julia:my_env.jl:MyEnv"`` are in Julia, ``"mjcf:robot.xml"`` and ``"urdf:robot.urdf"``
    robots in files, ``"gym:HalfCheetah-v5"`` and ``"dm_control:walker-walk"`` tasks of suites.
    """

    def load(self, name: str) -> Any:
        """The class behind a name; see :meth:`Registry.load`.

        Raises:
            UnknownNameError: no such name, file, module or attribute.
            robotics_envs.julia.JuliaError: there is no Julia, or it reports an error.
            robotics_envs.robots.RobotFileError: a robot's file cannot be read, or holds what is not simulated.
        """
        if isinstance(name, str) and name.startswith(ROBOTS):
            return importlib.import_module("robotics_envs.robots.names").robot_of_name(name)
        if isinstance(name, str) and name.startswith(SUITES):
            return self._task(name)
        if not (isinstance(name, str) and name.startswith(JULIA)):
            return super().load(name)
        simulator = name.rpartition(":")[2]
        if not simulator:
            raise UnknownNameError(
                f"environment {name!r} names no simulator: 'julia:Pendulum', or your own as 'julia:my_env.jl:MyEnv'"
            )
        return importlib.import_module("robotics_envs.julia.env").julia_env(name)

    def _task(self, name: str) -> Any:
        """A task of a suite, with or without parameters as inputs."""
        known, _, options = name.partition("?")
        if known in REFUSED_TASKS:
            models = importlib.import_module("robotics_envs.robots.tasks.models")
            models.refuse(known, REFUSED_TASKS[known])
        if known not in SUITE_TASKS:
            suite = "Gymnasium" if known.startswith(GYM) else "dm_control"
            tasks = GYM_TASKS if known.startswith(GYM) else DM_CONTROL_TASKS
            raise UnknownNameError(unknown(f"task of {suite}", known, tasks))
        task = super().load(SUITE_TASKS[known])
        if not options:
            return task
        return importlib.import_module("robotics_envs.robots.names").task_of_name(name, task)


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
        "crane": "robotics_envs.simulators.crane:Crane",
        "maglev": "robotics_envs.simulators.maglev:Maglev",
        "glider": "robotics_envs.simulators.glider:Glider",
        "payload_arm": "robotics_envs.simulators.payload_arm:PayloadArm",
        "tug": "robotics_envs.simulators.tug:Tug",
    },
)


def make_env(name: str, **parameters: float) -> Env:
    """A simulator by its registry name, or one's own as ``"my_env.py:MyEnv"`` or ``"module:Class"``.

    Those in Julia are ``"julia:Pendulum"``, one's own ``"julia:my_env.jl:MyEnv"``; a robot in a file is
    ``"mjcf:robot.xml"`` or ``"urdf:robot.urdf"``, a task of a suite ``"gym:HalfCheetah-v5"`` or
    ``"dm_control:walker-walk"``.  ``parameters`` override the physics.

    Raises:
        solvers.UnknownNameError: no such simulator or parameter.
        ValueError: a parameter outside its bounds.
        robotics_envs.julia.JuliaError: there is no Julia, or it reports an error.
    """
    return ENVIRONMENTS.load(name)(**parameters)
