"""A robot from a file as a simulator."""

from __future__ import annotations

import itertools
import math
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lazy_registry.registry import UnknownNameError, unknown
from robotics_envs.base import Actions, Box, Costs, Env, Params, States
from robotics_envs.drawing import Floats, Shape, View
from robotics_envs.robots.constraints import constraints
from robotics_envs.robots.equality import equalities
from robotics_envs.robots.errors import RobotFileError
from robotics_envs.robots.forces import actuated, by_velocity, passive
from robotics_envs.robots.inertia import Matrix, factor, inertia_and_bias, solve
from robotics_envs.robots.integrators import moved, position_rates, runge_kutta, times
from robotics_envs.robots.kernels import evaluate
from robotics_envs.robots.kinematics import kinematics
from robotics_envs.robots.model import Joint, Options, RobotModel
from robotics_envs.robots.newton import accelerate
from robotics_envs.robots.onset import LONGEST_WINDOW, ONSET, annealed, checked, note, with_onset
from robotics_envs.robots.parameters import chosen, with_values
from robotics_envs.robots.pictures import ViewOfModel, pictures
from robotics_envs.robots.reading import read
from robotics_envs.robots.scalars import Scalar, Vec, add, columns, is_zero, mul, stack, vadd, vsub
from solvers.methods.runge_kutta import RK4

INTERVAL = 0.02
"""Control intervals of a robot that names none, in s, rounded to whole time steps of its file."""
_SPEED = 5.0  # m/s and rad/s, half the side of the default state box
_NEAR = 0.02  # m and rad, half the side of the default start box


class RobotEnv(Env):
    """A robot with MuJoCo's own dynamics, contacts and integrators; a subclass sets ``model`` and its task.

    State ``[qpos, qvel]`` and action ``ctrl`` of MuJoCo, in its order and units.  ``dynamics`` is
    ``[d qpos/dt, qacc]``; ``step`` is ``frame_skip`` of MuJoCo's steps.

    Names, boxes, ``dt`` and ``frame_skip`` come from the model unless they are set.  Unless overridden, episodes start
    near the pose of the file, last 5 s, and cost what leaves that pose: a beginning, to be replaced by a task.

    The gradient is exact where constraints stay active or inactive.  Where a contact is made or lost, the force may
    jump (``solimp`` with a first number above 0), and the gradient does not know of that jump.

    ``onset`` (m) softens contacts in training: :meth:`training_params`.  :meth:`params` never does.
    """

    model: ClassVar[RobotModel]
    frame_skip: ClassVar[int]
    called_fields: ClassVar[tuple[str, ...]] = ("dynamics", "substep")
    solver = RK4()
    registry_name: ClassVar[str | None] = None
    """The name that this class was made from, such as ``"mjcf:/home/me/robot.xml"``."""
    episode_steps: ClassVar[int]
    view = ViewOfModel()

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "model" not in vars(cls):
            return
        base: RobotModel | None = getattr(super(cls, cls), "model", None)
        inputs = chosen(cls.model)
        replaced = {*cls.model.options.parameters, *(base.options.parameters if base else ())}
        cls.parameters = (*inputs, *(own for own in cls.parameters if own.name not in replaced))
        if _same_robot(cls.model, base):
            return  # a task whose model has other parameters as inputs keeps what it has set
        stated = _stated(cls)
        for name, value in _defaults(cls.model, stated).items():
            if name not in stated:
                setattr(cls, name, value)

    def __init__(self, **parameters: Any) -> None:
        # In TOML and after --set, env.torso.mass is a table within a table.
        flat: dict[str, float] = {}
        for name, value in parameters.items():
            flat |= (
                {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, Mapping) else {name: value}
            )
        stated = {parameter.name for parameter in self.parameters}
        if ONSET in flat and ONSET not in stated and not checked(flat[ONSET]):
            del flat[ONSET]
        if added := [name for name in flat if name not in stated]:
            # They become parameters of this simulator, which its class does not have.
            model = self.model
            if ONSET in added:
                model = _softened(model, checked(flat[ONSET]))
            have = model.options.parameters
            names = (*have, *(name for name in added if name not in have))
            model = replace(model, options=replace(model.options, parameters=names))
            inputs = [
                replace(q, value=0.0) if q.name == ONSET else q for q in chosen(model) if q.name in added
            ]
            vars(self).update(model=model, parameters=(*self.parameters, *inputs))
        super().__init__(**flat)

    @property
    def _onset(self) -> float:
        """Metres over which contacts set in at the start of training."""
        return self.constants[ONSET].value if ONSET in self.model.options.parameters else 0.0

    def params(self, like: Tensor) -> dict[str, Tensor]:
        """The physical parameters as scalar tensors; contacts are MuJoCo's, whatever the onset for training is."""
        p = super().params(like)
        return p | {ONSET: torch.zeros_like(p[ONSET])} if ONSET in self.model.options.parameters else p

    def training_params(self, p: Params, left: float = 1.0) -> Params:
        """``p`` with the onset that contacts have while the share ``left`` of a run is left."""
        return {**p, ONSET: p[ONSET].new_tensor(annealed(self._onset, left))} if self._onset else p

    @property
    def training_note(self) -> str:  # type: ignore[override]
        return note(self._onset) if self._onset else ""

    @property
    def longest_window(self) -> float:  # type: ignore[override]
        return LONGEST_WINDOW if self._onset else math.inf

    def _accelerations(
        self, model: RobotModel, x: States, u: Actions
    ) -> tuple[Vec, Vec, Vec, Matrix, list[Scalar]]:
        """Positions, velocities, controls, mass matrix and accelerations."""
        n = model.positions
        q, v, controls = columns(x[..., :n]), columns(x[..., n:]), columns(u)
        motions = kinematics(model, q, v)
        matrix, bias = inertia_and_bias(model, motions)
        force = vsub(vadd(passive(model, q, v), actuated(model, q, v, controls)), bias)
        rows = [*equalities(model, motions, q, v), *constraints(model, motions, q, v)]
        return q, v, controls, matrix, accelerate(matrix, force, rows, x[..., 0])

    def packed(self, x: States, u: Actions, p: Params, *more: Tensor) -> Tensor:
        """States, actions, further columns and parameters side by side, as :meth:`rates` takes them."""
        given = [p[name].expand(x.shape[:-1])[..., None] for name in self.model.options.parameters]
        return torch.cat((x, u, *more, *given), -1)

    def unpacked(self, packed: Tensor, more: int = 0) -> tuple[RobotModel, Tensor, Tensor, Tensor]:
        """The model with the values of parameters, states, actions and further columns."""
        names = self.model.options.parameters
        x, u, rest, values = packed.split((len(self.state_names), len(self.action_box), more, len(names)), -1)
        return with_values(self.model, dict(zip(names, columns(values), strict=True))), x, u, rest

    def dynamics(self, t: Any, x: States, u: Actions, p: Params) -> States:
        """``[d qpos/dt, qacc]`` with the forces of constraints."""
        return evaluate((self.model.trace_key, "dynamics"), self.rates, self.packed(x, u, p), x.shape[-1])

    def substep(self, h: Tensor | float, x: States, u: Actions, p: Params) -> States:
        """The state after one step of ``h`` s of MuJoCo's Euler or implicitfast integrator.

        ``(M + h D) a = M qacc``, where D is the damping of the joints (Euler) or minus the derivative of all forces
        but those of inertia with respect to the velocities (implicitfast); then velocities first, positions after.
        """
        length = h if isinstance(h, Tensor) else x.new_tensor(h)
        packed = self.packed(x, u, p, length.expand(x.shape[:-1])[..., None])
        return evaluate((self.model.trace_key, "substep"), self.advanced, packed, x.shape[-1])

    def rates(self, packed: Tensor) -> Tensor:
        """``dynamics`` of states, actions and parameters side by side, operation by operation, without a kernel."""
        model, x, u, _ = self.unpacked(packed)
        q, v, _, _, a = self._accelerations(model, x, u)
        return stack([*position_rates(model, q, v), *a], x[..., 0])

    def advanced(self, packed: Tensor) -> Tensor:
        """``substep`` of states, actions, lengths of the step and parameters side by side."""
        model, x, u, length = self.unpacked(packed, more=1)
        h = length[..., 0]
        q, v, controls, matrix, a = self._accelerations(model, x, u)
        if model.integrator == "implicitfast":
            slope = by_velocity(model, q, v, controls)
        else:
            slope = [dof.damping if model.implicit_damping else 0.0 for dof in model.dofs]
        if not all(map(is_zero, slope)):
            damped = [list(row) for row in matrix]
            for k, damping in enumerate(slope):
                damped[k][k] = add(damped[k][k], mul(damping, h))
            a = solve(factor(damped), times(matrix, a))
        n = model.positions
        velocities = x[..., n:] + length * stack(a, x[..., 0])
        return torch.cat((moved(model, x[..., :n], length * velocities), velocities), -1)

    def simulate(self, x: States, u: Actions, p: Params) -> States:
        """The state at the end of a control interval under ``u``, which is within its bounds."""
        h = self.dt / self.frame_skip
        for _ in range(self.frame_skip):
            if self.model.integrator == "RK4":
                x = runge_kutta(self.model, lambda y: self.dynamics(0.0, y, u, p), x, h)
            else:
                x = self.substep(h, x, u, p)
        return x

    def step(self, x: States, u: Actions, p: Params) -> tuple[States, Costs]:
        """``frame_skip`` steps of MuJoCo, and :meth:`cost_of_step`."""
        self._check_sizes(x, u, p)
        u = self.clip_action(u)
        following = self.simulate(x, u, p)
        return following, self.cost_of_step(x, following, u, p)

    def cost_of_step(self, x: States, following: States, u: Actions, p: Params) -> Costs:
        """The cost ``[B]`` of a control interval from ``x`` to ``following``."""
        return self.cost(following if self.cost_of_reached_state else x, u, p)

    def cost(self, x: States, u: Actions, p: Params) -> Costs:
        """Squared distance from the pose of the file, 0.1 times that of the velocities from 0, 0.01 times effort."""
        n = self.model.positions
        low, high = self.action_box.bounds(u)
        half = ((high - low) / 2).clamp_min(1e-9)
        away = x[..., :n] - x.new_tensor(self.model.reference)
        effort = ((u - (low + high) / 2) / half).square().sum(-1)
        return away.square().sum(-1) + 0.1 * x[..., n:].square().sum(-1) + 0.01 * effort

    def reset(self, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """States in the start box, quaternions of length 1."""
        x = super().reset(batch, generator, dtype)
        for joint in self.model.joints:
            if joint.kind in ("free", "ball"):
                at = joint.position + (3 if joint.kind == "free" else 0)
                x[:, at : at + 4] = torch.nn.functional.normalize(x[:, at : at + 4], dim=-1)
        return x

    def draw(self, x: Floats, u: Floats) -> list[Shape]:
        """The geoms of bodies that move."""
        return list(pictures(self.model).solids(x[: self.model.positions], fixed=False))

    def scenery(self) -> list[Shape]:
        """The geoms that are fixed to the world: ground, walls, a pedestal."""
        return list(pictures(self.model).solids(np.array(self.model.reference), fixed=True))

    def view_at(self, x: Floats) -> View:
        """``view``, gone along with a robot that can leave its place."""
        return pictures(self.model).followed(self.view, x[: self.model.positions])


def with_parameters(task: type[RobotEnv], *names: str, onset: float | None = None) -> type[RobotEnv]:
    """A task with these physical parameters of its robot as inputs, such as ``"torso.mass"``.

    ``onset`` (m), that of the task by default, softens its contacts while a policy is trained:
    :mod:`robotics_envs.robots.onset`.

    Raises:
        UnknownNameError: the robot has none of such a name; the message lists near ones.
        RobotFileError: the onset is no length, or nothing can touch.
    """
    model = replace(task.model, options=replace(task.model.options, parameters=names))
    model = _softened(model, model.options.onset if onset is None else onset)
    return type(
        task.__name__, (task,), {"model": model, "__module__": task.__module__, "__doc__": task.__doc__}
    )


def _stated(cls: type) -> dict[str, Any]:
    """What a class of a robot states, and its bases up to the next one that has a robot too."""
    bases = itertools.takewhile(lambda base: "model" not in vars(base), cls.__mro__[1:])
    return dict(ChainMap(dict(vars(cls)), *(dict(vars(base)) for base in bases)))


def _softened(model: RobotModel, onset: float) -> RobotModel:
    return replace(model, options=with_onset(replace(model.options, onset=onset)))


def _same_robot(model: RobotModel, other: RobotModel | None) -> bool:
    return (
        other is not None
        and replace(
            model,
            options=replace(model.options, parameters=other.options.parameters, onset=other.options.onset),
        )
        == other
    )


def robot_class(source: str | Path, check: bool = True, **options: Any) -> type[RobotEnv]:
    """A class of simulators of the robot in an MJCF file; see :func:`from_mjcf`."""
    known = [field.name for field in fields(Options)]
    for name in options:
        if name not in known:
            raise UnknownNameError(unknown("option of a robot's file", name, known))
    model = read(source, Options(**options))
    words = "".join(word.capitalize() for word in model.name.replace("-", " ").replace("_", " ").split())
    members = {"model": model, "name": model.name, "__module__": __name__}
    made = type(words if words.isidentifier() else "Robot", (RobotEnv,), members)
    if check:
        from robotics_envs.robots.comparison import check_at_load

        check_at_load(made())
    return made


def urdf_class(source: str | Path, **options: Any) -> type[RobotEnv]:
    """A class of simulators of the robot in a URDF file; see :func:`from_urdf`."""
    return robot_class(source, **{"motors": True, **options})


def from_mjcf(source: str | Path, check: bool = True, **options: Any) -> RobotEnv:
    """The robot of an MJCF file, or of a text that begins with ``<``, as a simulator.

    Options are the attributes of :class:`~robotics_envs.robots.model.Options`: ``meshes="drop"``,
    ``self_collisions="ignore"``, ``cone="pyramidal"``, …

    Args:
        check: compare accelerations and a step with the installed MuJoCo in a few states, once a process.

    Raises:
        UnknownNameError: there is no such file.
        RobotFileError: it cannot be read, or holds what is not simulated here: the message names all of it.
        DisagreementError: it reads, and its dynamics is not MuJoCo's.
    """
    return robot_class(source, check, **options)()


def from_urdf(source: str | Path, check: bool = True, **options: Any) -> RobotEnv:
    """The robot of a URDF file, read by MuJoCo, as a simulator; see :func:`from_mjcf`.

    A URDF has no actuators: every hinge and slide gets a motor, whose control is its force up to the effort limit
    (``motors=NUMBER`` where there is none).  Its root is fixed to the world unless ``floating=True``; ``floor=True``
    adds the ground.  MuJoCo finds no ``package://``: give paths, or ``meshes="drop"``.
    """
    return urdf_class(source, check=check, **options)()


def _defaults(model: RobotModel, given: Any) -> dict[str, Any]:
    """What a model says about the attributes of a simulator."""
    if not model.joints:
        raise RobotFileError(f"{model.name} has no joints, so that nothing moves")
    if not model.actuators:
        raise RobotFileError(
            f"{model.name} has no actuators, so that there is nothing to control: add them to the file, or read it "
            "with motors=True (or with motors=NUMBER for joints without an effort limit)"
        )
    skip = given.get("frame_skip") or max(1, round(INTERVAL / model.timestep))
    dt = skip * model.timestep
    states = [name for joint in model.joints for name in _position_names(joint)]
    states += [name for joint in model.joints for name in _velocity_names(joint)]
    ranges = [actuator.control_range for actuator in model.actuators]
    unbounded = [a.name for a in model.actuators if a.control_range is None]
    if unbounded:
        raise RobotFileError(f"controls of {', '.join(unbounded)} have no bounds: enable clampctrl in <flag>")
    bounds = [bound for bound in ranges if bound is not None]
    near = [_around(model, joint, _NEAR, wide=False) for joint in model.joints]
    far = [_around(model, joint, 1.0, wide=True) for joint in model.joints]
    low, high = ([pair[side] for box in near for pair in box] for side in (0, 1))
    lowest, highest = ([pair[side] for box in far for pair in box] for side in (0, 1))
    n = model.velocities
    return {
        "frame_skip": skip,
        "dt": dt,
        "episode_steps": max(1, round(5.0 / dt)),
        "state_names": tuple(states),
        "observation_names": tuple(states),
        "action_box": Box(tuple(b[0] for b in bounds), tuple(b[1] for b in bounds)),
        "start_box": Box((*low, *(-_NEAR,) * n), (*high, *(_NEAR,) * n)),
        "state_box": Box((*lowest, *(-_SPEED,) * n), (*highest, *(_SPEED,) * n)),
    }


def _position_names(joint: Joint) -> list[str]:
    if joint.kind in ("hinge", "slide"):
        return [joint.name]
    parts = (*(("x", "y", "z") if joint.kind == "free" else ()), "qw", "qx", "qy", "qz")
    return [f"{joint.name}_{part}" for part in parts]


def _velocity_names(joint: Joint) -> list[str]:
    if joint.kind in ("hinge", "slide"):
        return [f"{joint.name}_rate"]
    parts = (*(("vx", "vy", "vz") if joint.kind == "free" else ()), "wx", "wy", "wz")
    return [f"{joint.name}_{part}" for part in parts]


def _around(model: RobotModel, joint: Joint, size: float, wide: bool) -> list[tuple[float, float]]:
    """Bounds of a joint's positions: the whole range where ``wide``, else near the pose of the file within it."""
    at = joint.position
    if joint.kind in ("hinge", "slide"):
        low, high = (-math.inf, math.inf) if joint.limit is None else joint.limit.range
        if wide and joint.limit is not None:
            return [(low, high)]
        middle = min(max(model.reference[at], low), high)
        return [(max(middle - size, low), min(middle + size, high))]
    count = 7 if joint.kind == "free" else 4
    turn = 0.3 if wide else 0.0  # of a quaternion's components
    sizes = [*(size,) * (count - 4), *(turn,) * 4]
    bounds = [(x - s, x + s) for x, s in zip(model.reference[at : at + count], sizes, strict=True)]
    ground = _ground(model)
    if wide and joint.kind == "free" and ground is not None:
        above = model.reference[at + 2] - ground
        if above > 0:
            # Not deep in the ground, where forces are those of no real state.
            bounds[2] = ground + 0.5 * above, ground + 2 * above
    return bounds


def _ground(model: RobotModel) -> float | None:
    """The height (m) of the highest level plane that is fixed to the world; None if there is none."""
    level = [
        q.offset[2] for q in model.geoms if q.kind == "plane" and not q.body and q.rotation[2][2] > 0.999
    ]
    return max(level, default=None)
