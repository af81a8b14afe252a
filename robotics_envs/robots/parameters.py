"""Physical parameters of a robot as inputs: which there are, and a model that holds their values.

What MuJoCo derives from masses and armatures when it compiles a model (``dof_invweight0``, ``body_invweight0``: the
softness of constraints depends on them) is computed from the values too, as ``mj_setConst`` does.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from lazy_registry.registry import UnknownNameError
from robotics_envs.base import Parameter
from robotics_envs.robots.errors import RobotFileError
from robotics_envs.robots.inertia import factor, inertia_and_bias
from robotics_envs.robots.kinematics import kinematics
from robotics_envs.robots.model import Body, Equality, Geom, Pair, RobotModel
from robotics_envs.robots.onset import ONSET
from robotics_envs.robots.scalars import (
    ZERO,
    Mat,
    Scalar,
    Vec,
    add,
    apply,
    cross,
    is_zero,
    larger,
    mul,
    scale,
    sub,
    total,
    vadd,
)

_SOURCE = "the robot's file"
_FROM_ZERO = -1e-9
"""A lower bound, excluded, of what may be zero."""
Values = Mapping[str, Any]
"""Floats or tensors ``[B]`` by the name of the parameter."""


def available(model: RobotModel) -> dict[str, Parameter]:
    """The parameters that a robot has, by name, with the values of its file."""
    found: list[Parameter] = []

    def offer(name: str, value: float, unit: str, low: float = _FROM_ZERO) -> None:
        found.append(Parameter(name, value, unit, low=low, source=_SOURCE))

    if any(model.gravity):
        offer("gravity", math.hypot(*model.gravity), "m/s², along the gravity of the file")
    for body in model.bodies[1:]:
        if body.mass > 0:
            offer(f"{body.name}.mass", body.mass, "kg, the inertia in proportion", low=0.0)
    for joint in model.joints:
        first, size = joint.velocity, {"free": 6, "ball": 3}.get(joint.kind, 1)
        kind = "s/m" if joint.kind == "slide" else "m s/rad"
        # A joint of several degrees of freedom has one value of each for all of them in MJCF.
        dofs = model.dofs[first : first + size]
        if "DAMPER" not in model.disabled:
            offer(f"{joint.name}.damping", dofs[0].damping, f"N {kind}")
        offer(f"{joint.name}.armature", dofs[0].armature, "kg" if joint.kind == "slide" else "kg m²")
        if size == 1 and "SPRING" not in model.disabled:
            offer(f"{joint.name}.stiffness", joint.stiffness, "N/m" if joint.kind == "slide" else "N m/rad")
        if dofs[0].friction > 0:
            unit = "N" if joint.kind == "slide" else "N m"
            offer(f"{joint.name}.frictionloss", dofs[0].friction, unit, low=0.0)
    for geom in _rubbing(model):
        offer(
            f"{geom.name}.friction",
            geom.friction[0],
            "sliding coefficient, mixed with the other geom's",
            low=0.0,
        )
    if model.pairs:
        offer(ONSET, model.options.onset, "m over which contacts set in, in training")
    for actuator in model.actuators:
        offer(
            f"{actuator.name}.gear",
            actuator.gear,
            "force at the joint per force of the actuator",
            low=-math.inf,
        )
    return {parameter.name: parameter for parameter in found}


def _rubbing(model: RobotModel) -> list[Geom]:
    """The geoms whose coefficient of friction a contact may use."""
    found: dict[str, Geom] = {}
    for pair in model.pairs:
        if pair.dimensions > 1:
            priority = max(pair.first.priority, pair.second.priority)
            found |= {g.name: g for g in (pair.first, pair.second) if g.priority == priority}
    return [geom for geom in model.geoms if geom.name in found]


def chosen(model: RobotModel) -> tuple[Parameter, ...]:
    """The parameters that the model was read with as inputs (``Options.parameters``).

    Raises:
        UnknownNameError: it has none of such a name; the message lists near ones.
        RobotFileError: it is to have softened contacts, and has none.
    """
    names = model.options.parameters
    if not names:
        return ()
    known = available(model)
    for name in names:
        if name == ONSET and name not in known:
            raise RobotFileError(
                f"nothing of {model.name} can touch: there are no contacts that onset could soften; leave it out"
            )
        if name not in known:
            raise UnknownNameError(_unknown(model, name, known))
    return tuple(known[name] for name in names)


def _unknown(model: RobotModel, name: str, known: Iterable[str]) -> str:
    """One line for a wrong name: the nearest ones, and all."""
    names = {n.lower(): n for n in known}
    near = [names[n] for n in difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)]
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ";"
    return f"unknown parameter of {model.name} {name!r}{hint} known: {', '.join(names.values())}"


def with_values(model: RobotModel, values: Values) -> RobotModel:
    """The model with these values, floats or tensors ``[B]``, of some of its parameters.

    A mass brings its body's inertia with it, in proportion: a body of another density.
    """
    if not values:
        return model
    bodies = tuple(_body(body, values) for body in model.bodies)
    joint_of = {
        joint.velocity + k: joint.name
        for joint in model.joints
        for k in range({"free": 6, "ball": 3}.get(joint.kind, 1))
    }
    dofs = tuple(
        replace(
            dof,
            damping=values.get(f"{joint_of[k]}.damping", dof.damping),
            armature=values.get(f"{joint_of[k]}.armature", dof.armature),
            friction=values.get(f"{joint_of[k]}.frictionloss", dof.friction),
        )
        for k, dof in enumerate(model.dofs)
    )
    actuators = tuple(replace(a, gear=values.get(f"{a.name}.gear", a.gear)) for a in model.actuators)
    gravity: Any = model.gravity
    if "gravity" in values:
        gravity = tuple(scale(mul(1.0 / math.hypot(*gravity), values["gravity"]), gravity))
    made = replace(
        model,
        bodies=bodies,
        dofs=dofs,
        actuators=actuators,
        gravity=gravity,
        onset=values.get(ONSET, model.onset),
        pairs=tuple(_pair(pair, values) for pair in model.pairs),
    )
    if any(name.endswith((".mass", ".armature")) for name in values):
        made = _with_weights(made)
    return made


def _body(body: Body, values: Values) -> Body:
    joints = tuple(
        replace(joint, stiffness=values.get(f"{joint.name}.stiffness", joint.stiffness))
        for joint in body.joints
    )
    if f"{body.name}.mass" not in values:
        return replace(body, joints=joints)
    mass = values[f"{body.name}.mass"]
    ratio = mul(1.0 / body.mass, mass)
    inertia: Any = tuple(tuple(mul(ratio, x) for x in row) for row in body.inertia)
    return replace(body, joints=joints, mass=mass, inertia=inertia)


def _pair(pair: Pair, values: Values) -> Pair:
    geoms = pair.first, pair.second
    if not any(f"{geom.name}.friction" in values for geom in geoms):
        return pair
    priority = max(geom.priority for geom in geoms)
    decide = [geom for geom in geoms if geom.priority == priority]
    given = [values.get(f"{geom.name}.friction", geom.friction[0]) for geom in decide]
    sliding = larger(larger(given[0], given[-1]), LEAST_FRICTION)
    friction: Any = (sliding, *pair.friction[1:])
    return replace(pair, friction=friction)


LEAST_FRICTION = 1e-5
"""MuJoCo's ``mjMINMU``, below which no coefficient of a contact is."""


def _with_weights(model: RobotModel) -> RobotModel:
    """The model with the inverse weights that its masses and armatures have in the pose of the file."""
    of_dofs, of_bodies = inverse_weights(model)
    dofs = tuple(_with_weight(dof, weight) for dof, weight in zip(model.dofs, of_dofs, strict=True))
    pairs = tuple(
        _with_weight(pair, add(of_bodies[pair.first.body][0], of_bodies[pair.second.body][0]))
        for pair in model.pairs
    )
    equalities = tuple(
        replace(equality, inverse_weights=_of_equality(equality, of_dofs, of_bodies))
        for equality in model.equalities
    )
    return replace(model, dofs=dofs, pairs=pairs, equalities=equalities)


def _of_equality(equality: Equality, of_dofs: list[Scalar], of_bodies: list[tuple[Scalar, Scalar]]) -> Any:
    sides = [side for side in (equality.first, equality.second) if side >= 0]
    if equality.kind == "joint":
        return total(of_dofs[k] for k in sides), 0.0
    return tuple(total(of_bodies[b][i] for b in sides) for i in (0, 1))


def _with_weight(owner: Any, weight: Any) -> Any:
    return replace(owner, inverse_weight=weight)


def inverse_weights(model: RobotModel) -> tuple[list[Scalar], list[tuple[Scalar, Scalar]]]:
    """MuJoCo's ``dof_invweight0`` and, for translation and rotation, ``body_invweight0``.

    They are averages of the diagonal of ``J M⁻¹ Jᵀ`` in the pose of the file.
    """
    still = replace(model, gravity=ZERO)
    motions = kinematics(still, list(model.reference), [0.0] * model.velocities)
    matrix, _ = inertia_and_bias(still, motions)
    factors = factor(matrix)
    diagonal = [_inverse(factors, {k: 1.0}) for k in range(model.velocities)]
    for joint in model.joints:
        for first in {"free": (0, 3), "ball": (0,)}.get(joint.kind, ()):
            at = slice(joint.velocity + first, joint.velocity + first + 3)
            diagonal[at] = [mul(1.0 / 3.0, total(diagonal[at]))] * 3
    bodies: list[tuple[Scalar, Scalar]] = [(0.0, 0.0)]
    for b in range(1, len(model.bodies)):
        moving = model.moved_by(b)
        centre = vadd(motions.position[b], apply(motions.rotation[b], model.bodies[b].centre))
        rows: list[dict[int, Scalar]] = [{} for _ in range(6)]
        for k in moving:
            angular, linear = motions.column[k]
            for i, x in enumerate((*vadd(linear, cross(angular, centre)), *angular)):
                if not is_zero(x):
                    rows[i][k] = x
        weights = [_inverse(factors, row) for row in rows]
        sliding, turning = (mul(1.0 / 3.0, total(weights[i : i + 3])) for i in (0, 3))
        bodies.append((sliding, turning))
    return diagonal, bodies


def _inverse(factors: tuple[Mat, Vec], row: dict[int, Scalar]) -> Scalar:
    """``J M⁻¹ Jᵀ`` of a row, by ``M = Lᵀ D L``."""
    lower, inverse = factors
    x: list[Scalar] = [row.get(k, 0.0) for k in range(len(inverse))]
    for k in range(len(x) - 1, -1, -1):
        for i in range(k):
            x[i] = sub(x[i], mul(lower[k][i], x[k]))
    return total(mul(mul(y, y), d) for y, d in zip(x, inverse, strict=True))


def edit(robot: RobotModel, model: Any, library: Any, values: Mapping[str, float]) -> None:
    """Give MuJoCo's compiled model of a robot these values, and let it derive what depends on them."""
    if not values:
        return
    known = available(robot)
    for name, value in values.items():
        owner, _, what = name.rpartition(".")
        if name == ONSET:
            continue  # MuJoCo has none: `params` leaves it at 0
        if name == "gravity":
            model.opt.gravity[:] *= value / known[name].value
        elif what == "mass":
            b = _index(robot.bodies, owner)
            model.body_inertia[b] *= value / model.body_mass[b]
            model.body_mass[b] = value
        elif what == "friction":
            names = [model.geom(g).name or f"geom{g}" for g in range(model.ngeom)]
            model.geom_friction[names.index(owner), 0] = value
        elif what == "gear":
            model.actuator_gear[_index(robot.actuators, owner), 0] = value
        else:
            joint = robot.joints[j := _index(robot.joints, owner)]
            if what == "stiffness":
                model.jnt_stiffness[j] = value
            else:
                at = slice(joint.velocity, joint.velocity + {"free": 6, "ball": 3}.get(joint.kind, 1))
                getattr(model, f"dof_{what}")[at] = value
    library.mj_setConst(model, library.MjData(model))


def _index(things: Iterable[Any], name: str) -> int:
    return next(k for k, thing in enumerate(things) if thing.name == name)
