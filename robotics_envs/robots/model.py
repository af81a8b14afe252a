"""A robot as frozen numbers: what the dynamics needs, and nothing of the library that read the file.

Units are SI, angles rad.  Vectors of a body are in its own frame, rotations are matrices from that frame to the
parent's.  Indices of positions and velocities are those of MuJoCo's ``qpos`` and ``qvel``.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import Literal

from robotics_envs.robots.errors import RobotFileError

Vector = tuple[float, float, float]
Matrix = tuple[Vector, Vector, Vector]
Range = tuple[float, float]


@dataclass(frozen=True)
class Options:
    """How a file is read, where there is a choice.

    Attributes:
        meshes: ``"drop"`` lets meshes and height fields touch nothing; they keep their mass.
        self_collisions: ``"ignore"`` lets geoms of the robot touch the world only.  A base that is fixed to the world
            belongs to the robot if it carries bodies that move.
        cone: ``"pyramidal"`` replaces elliptic friction cones, whose solution takes more and longer steps.
        condim: 3 replaces contacts with torsional or rolling friction (4 and 6) by ones that slide only.
        control_range: bounds of the controls of actuators that have none in the file.
        motors: adds a motor to every hinge and slide without an actuator, but to those that an equality couples to
            another joint, such as a URDF's <mimic>; its control is the force (N, N m), up to
            the joint's effort limit, or this number where the file has none. True: every joint has a limit.
        floating: frees the root body of the robot from the world.
        floor: adds the ground, a plane at height 0.
        timestep: replaces the time step of the file, in s.
        keyframe: the name of a keyframe of the file, whose positions take the place of the pose of the file: episodes
            start near it, and the cost of a robot without a task measures from it.
        parameters: the physical parameters that become inputs, such as ``("torso.mass", "floor.friction")``: see
            :mod:`robotics_envs.robots.parameters`.  All others are constants of the kernel.
        onset: softens contacts and joint limits over so many metres (hinges: radians) while a policy is trained; see
            :mod:`robotics_envs.robots.onset`.
    """

    meshes: Literal["refuse", "drop"] = "refuse"
    self_collisions: Literal["keep", "ignore"] = "keep"
    cone: Literal["keep", "pyramidal"] = "keep"
    condim: Literal["keep", 3] = "keep"
    control_range: Range | None = None
    motors: bool | float = False
    floating: bool = False
    floor: bool = False
    timestep: float | None = None
    keyframe: str | None = None
    parameters: tuple[str, ...] = ()
    onset: float = 0.0

    def __post_init__(self) -> None:
        given = self.parameters
        names = (given,) if isinstance(given, str) else tuple(dict.fromkeys(given))
        object.__setattr__(self, "parameters", names)
        for name, fine, words in self._rules():
            if not fine:
                raise RobotFileError(f"{name} = {getattr(self, name)!r}: it is {words}")

    def _rules(self) -> Iterator[tuple[str, bool, str]]:
        """For every option its name, whether its value is one that it can have, and which these are."""
        for name, choices in CHOICES.items():
            yield name, getattr(self, name) in choices, " or ".join(map(repr, choices))
        for name in ("floating", "floor"):
            yield name, isinstance(getattr(self, name), bool), "True or False"
        motors, bounds = self.motors, self.control_range
        fine = isinstance(motors, bool) or (_is_number(motors) and motors > 0)
        yield "motors", fine, "True, False or a positive number (N, N m)"
        fine = self.timestep is None or (_is_number(self.timestep) and self.timestep > 0)
        yield "timestep", fine, "a positive number of seconds"
        fine = bounds is None or (
            isinstance(bounds, Sequence)
            and len(bounds) == 2
            and all(map(_is_number, bounds))
            and bounds[0] < bounds[1]
        )
        yield "control_range", fine, "two numbers (LOW, HIGH), the first one less"
        yield "keyframe", self.keyframe is None or isinstance(self.keyframe, str), "the name of a keyframe"


CHOICES: dict[str, tuple[str | int, ...]] = {
    "meshes": ("refuse", "drop"),
    "self_collisions": ("keep", "ignore"),
    "cone": ("keep", "pyramidal"),
    "condim": ("keep", 3),
}


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Softness:
    """How a constraint gives way: MuJoCo's ``solref`` and ``solimp`` (documentation, "Solver parameters")."""

    solref: tuple[float, float]
    solimp: tuple[float, float, float, float, float]


@dataclass(frozen=True)
class Limit:
    """The range of a hinge (rad) or slide (m); ``margin`` is the distance at which the constraint begins."""

    range: Range
    margin: float
    softness: Softness


@dataclass(frozen=True)
class Joint:
    """A joint. ``position`` and ``velocity`` are its first indices; ``anchor`` and ``axis`` are in the body's frame.

    ``reference`` is the coordinate of the pose in the file, ``rest`` where the spring is at rest.  ``force_range``
    bounds the sum of the actuators' forces.
    """

    name: str
    kind: Literal["free", "ball", "slide", "hinge"]
    position: int
    velocity: int
    anchor: Vector
    axis: Vector
    reference: float
    stiffness: float
    rest: float
    limit: Limit | None
    force_range: Range | None


@dataclass(frozen=True)
class Body:
    """A rigid body; ``inertia`` is about the centre of mass, ``parent`` an index, 0 the world.

    ``quaternion`` is the same turn as ``rotation``.
    """

    name: str
    parent: int
    offset: Vector
    rotation: Matrix
    quaternion: tuple[float, ...]
    mass: float
    centre: Vector
    inertia: Matrix
    joints: tuple[Joint, ...]
    gravity_compensation: float


@dataclass(frozen=True)
class Dof:
    """A degree of freedom. ``friction`` is the largest dry friction, ``inverse_weight`` MuJoCo's ``dof_invweight0``."""

    body: int
    parent: int
    damping: float
    armature: float
    friction: float
    softness: Softness
    inverse_weight: float


@dataclass(frozen=True)
class Actuator:
    """Force ``gain · control + bias`` along ``gear`` times the joint's coordinate.

    ``gain`` and ``bias`` are ``(constant, by length, by velocity)``, where length and velocity are the joint's times
    ``gear``.
    """

    name: str
    joint: str
    position: int
    velocity: int
    gear: float
    gain: Vector
    bias: Vector
    control_range: Range | None
    force_range: Range | None


@dataclass(frozen=True)
class Geom:
    """A shape fixed to a body. ``size`` is MuJoCo's: radius and half length, half sides, half axes.

    ``friction`` holds its coefficients of sliding, torsional (m) and rolling (m) friction; of two geoms that touch the
    one of the higher ``priority`` decides.
    """

    name: str
    kind: Literal["plane", "sphere", "capsule", "ellipsoid", "cylinder", "box"]
    body: int
    size: Vector
    offset: Vector
    rotation: Matrix
    friction: Vector = (1.0, 0.005, 0.0001)
    priority: int = 0


@dataclass(frozen=True)
class Pair:
    """Two geoms that can touch, the one of the simpler kind first.

    The constraint exists below the distance ``margin``.  ``friction`` are the coefficients of sliding, torsional and
    rolling friction, used as far as the ``dimensions`` go: 1 is the normal, 3 has two of sliding too, 4 torsion, 6 two
    of rolling.  ``inverse_weight`` is the sum of the bodies' ``body_invweight0``.
    """

    first: Geom
    second: Geom
    dimensions: Literal[1, 3, 4, 6]
    friction: Vector
    margin: float
    softness: Softness
    inverse_weight: float


@dataclass(frozen=True)
class Equality:
    """What is held equal, softly: two points (``connect``), two frames (``weld``) or two coordinates (``joint``).

    ``first`` and ``second`` are bodies, with ``anchors`` and ``frames`` (quaternions) in theirs; of joints they are
    indices of velocities, and the first coordinate is ``polynomial`` of the second, both less those of the pose of the
    file, or its constant if ``second`` is -1.  ``inverse_weights`` are the sums of both sides', for translation and
    rotation.
    """

    name: str
    kind: Literal["connect", "weld", "joint"]
    first: int
    second: int
    anchors: tuple[Vector, Vector]
    frames: tuple[tuple[float, ...], tuple[float, ...]]
    polynomial: tuple[float, ...]
    torque_scale: float
    softness: Softness
    inverse_weights: Range


@dataclass(frozen=True)
class RobotModel:
    """A robot and its surroundings.

    ``source`` is the path of the file, or its text, and ``options`` how it was read: MuJoCo makes the same model of
    them again.  ``impedance_ratio`` is MuJoCo's ``impratio``.  ``implicit_damping`` says whether the Euler integrator
    takes joint damping at the end of the step, ``shortest_time`` raises time constants of constraints to twice the
    time step.  ``mesh_boxes`` are the bounding boxes of meshes, which are only looked at.  ``equality_drifts`` says
    whether the motion that needs no acceleration counts in connected points and welded frames.  ``disabled`` are the
    names of MuJoCo's flags of what is left out.  ``reference`` are the positions of the pose that episodes start near:
    that of the file, or of a keyframe.  ``onset`` (m) is that of contacts, 0 where they are MuJoCo's.
    """

    name: str
    source: str
    options: Options
    positions: int
    velocities: int
    bodies: tuple[Body, ...]
    dofs: tuple[Dof, ...]
    actuators: tuple[Actuator, ...]
    geoms: tuple[Geom, ...]
    pairs: tuple[Pair, ...]
    equalities: tuple[Equality, ...]
    equality_drifts: bool
    gravity: Vector
    timestep: float
    integrator: Literal["Euler", "implicitfast", "RK4"]
    cone: Literal["pyramidal", "elliptic"]
    impedance_ratio: float
    implicit_damping: bool
    shortest_time: bool
    reference: tuple[float, ...]
    disabled: tuple[str, ...]
    mujoco_version: str
    mesh_boxes: tuple[Geom, ...] = ()
    onset: float = 0.0

    @property
    def joints(self) -> tuple[Joint, ...]:
        """All joints, in the order of their coordinates."""
        return tuple(joint for body in self.bodies for joint in body.joints)

    @property
    def limits(self) -> tuple[Joint, ...]:
        """The joints with a range."""
        return tuple(joint for joint in self.joints if joint.limit is not None)

    @cached_property
    def trace_key(self) -> str:
        """What a kernel compiled for this model is known by."""
        return hashlib.sha256(repr(self).encode()).hexdigest()

    def path(self, body: int) -> frozenset[int]:
        """The indices of a body and of all its ancestors but the world."""
        found = set()
        while body:
            found.add(body)
            body = self.bodies[body].parent
        return frozenset(found)

    def moved_by(self, body: int) -> tuple[int, ...]:
        """The degrees of freedom that move a body."""
        path = self.path(body)
        return tuple(k for k, dof in enumerate(self.dofs) if dof.body in path)
