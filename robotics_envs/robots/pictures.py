"""Pictures of robots: the geoms of a model as solids in space, and a camera that shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from robotics_envs.base import Box
from robotics_envs.drawing import Floats, View
from robotics_envs.robots.kinematics import kinematics
from robotics_envs.robots.model import Geom, Matrix, RobotModel
from robotics_envs.robots.scalars import apply, product, vadd
from robotics_envs.solids import Solid, surface

LIMBS = ("limb", "other_limb")
"""Colours of the branches of a robot, by turns."""
AZIMUTH, ELEVATION = -75.0, 16.0
"""Of the camera, in degrees: x, which most robots move along, is to the right."""
_POSES = 64  # of a robot in its place, which the view has to hold
_MARGIN, _ROOM = 1.12, 1.35  # around what is in view: of a robot in its place, and of one that goes about


class Pictures:
    """How a model is seen.

    Attributes:
        geoms: those of the file, boxes around its meshes, and a thin capsule along each link without any.
        colours: of the bodies.
        tracked: the indices of the positions (x, y, z) that carry the robot about, which the camera follows, -1 for one
            that does not exist; empty where the robot stays in its place.
    """

    def __init__(self, model: RobotModel) -> None:
        self.model = model
        self.geoms = _geoms(model)
        self.colours = _colours(model)
        self.tracked = _tracked(model)
        self._views: dict[Box, View] = {}

    def poses(self, q: Floats) -> tuple[Floats, Floats]:
        """Where ``geoms`` are at positions ``q [n]``: MuJoCo's ``geom_xpos`` and ``geom_xmat``.

        Returns:
            Positions ``[g, 3]`` and rotations ``[g, 3, 3]`` to the axes of the world.
        """
        # In Python's floats, which for one state are many times as fast as tensors.
        motions = kinematics(self.model, [float(x) for x in q], [0.0] * self.model.velocities)
        places, turns = [], []
        for geom in self.geoms:
            body = motions.rotation[geom.body]
            frame = vadd(motions.origin[geom.body], motions.position[geom.body])
            places.append(vadd(frame, apply(body, geom.offset)))
            turns.append(product(body, geom.rotation))
        return np.array(places, float).reshape(-1, 3), np.array(turns, float).reshape(-1, 3, 3)

    def solids(self, q: Floats, fixed: bool) -> list[Solid]:
        """The geoms at positions ``q [n]``: those of bodies that are fixed to the world, or the others."""
        positions, rotations = self.poses(q)
        found = []
        for k, geom in enumerate(self.geoms):
            colour = "faint" if geom.kind == "plane" else self.colours[geom.body]
            if (self.colours[geom.body] == "ground") == fixed:
                # Legs of planar robots are in one plane.
                behind = 1.5 * min(s for s in geom.size if s > 0) if colour == LIMBS[1] else 0.0
                size = () if geom.kind == "plane" else geom.size
                found.append(Solid(geom.kind, size, positions[k], rotations[k], colour, behind))
        return found

    def view(self, state_box: Box) -> View:
        """:meth:`made_view`, made once for each box."""
        if state_box not in self._views:
            self._views[state_box] = self.made_view(state_box)
        return self._views[state_box]

    def made_view(self, state_box: Box) -> View:
        """A view of a robot in the pose of the file, with the ground around it; of one that stays in its place, a view
        of what it can reach, in poses of a state box.
        """
        reference = np.array(self.model.reference)
        poses, margin = reference[None], _ROOM
        if not self.tracked:
            low, high = (np.array(bound[: len(reference)]) for bound in (state_box.low, state_box.high))
            poses, margin = np.random.default_rng(0).uniform(low, high, (_POSES, len(reference))), _MARGIN
            poses[0] = reference
            for joint in self.model.joints:
                if joint.kind in ("free", "ball"):  # loose things, and attitudes
                    at = slice(joint.position, joint.position + (7 if joint.kind == "free" else 4))
                    poses[:, at] = reference[at]
        solid = [k for k, geom in enumerate(self.geoms) if geom.kind != "plane"]
        if not solid:
            return View((-1.0, -0.6), (1.0, 0.6), AZIMUTH, ELEVATION)
        shells = [surface(self.geoms[k].kind, self.geoms[k].size).vertices for k in solid]
        corners = np.concatenate([self._placed(pose, solid, shells) for pose in poses])
        middle = (corners.min(0) + corners.max(0)) / 2
        axes = View((-1.0, -1.0), (1.0, 1.0), AZIMUTH, ELEVATION).axes
        right, up, _ = (margin * np.abs((corners - middle) @ axes.T).max(0)).tolist()
        right, up = max(right, 1.25 * up), max(up, 0.65 * right)
        x, y, z = middle.tolist()
        return View((-right, -up), (right, up), AZIMUTH, ELEVATION, (x, y, z))

    def _placed(self, q: Floats, which: Sequence[int], shells: Sequence[Floats]) -> Floats:
        """The vertices ``[k, 3]`` of some geoms in the world."""
        places, turns = self.poses(q)
        return np.concatenate(
            [shell @ turns[k].T + places[k] for k, shell in zip(which, shells, strict=True)]
        )

    def followed(self, view: View, q: Floats) -> View:
        """A view at positions ``q [n]``: it goes with the robot along the ground, and up where that would leave it."""
        focus = list(view.focus)
        for axis, k in enumerate(self.tracked):
            if k >= 0:
                way = float(q[k]) - self.model.reference[k]
                slack = 0.5 * view.high[1] if axis == 2 else 0.0
                focus[axis] += way - min(max(way, -slack), slack)
        return replace(view, focus=(focus[0], focus[1], focus[2]))


_made: dict[str, Pictures] = {}


def pictures(model: RobotModel) -> Pictures:
    """The pictures of a model, made once."""
    key = model.trace_key
    if key not in _made:
        _made[key] = Pictures(model)
    return _made[key]


class ViewOfModel:
    """A class attribute: :meth:`Pictures.view` of the class's robot and state box, made when it is asked for."""

    def __get__(self, instance: object, owner: type) -> View:
        model: RobotModel | None = getattr(owner, "model", None)
        if model is None:
            return View((-1.2, -1.2), (1.2, 1.2))
        return pictures(model).view(owner.state_box)  # type: ignore[attr-defined]


def _geoms(model: RobotModel) -> tuple[Geom, ...]:
    geoms = [*model.geoms, *model.mesh_boxes]
    shown = {geom.body for geom in geoms}
    lengths = [float(np.linalg.norm(body.offset)) for body in model.bodies]
    radius = 0.03 * sum(lengths)
    for body, length in zip(model.bodies[1:], lengths[1:], strict=True):
        if body.parent and body.parent not in shown and length > 1e-6:
            x, y, z = body.offset
            turned, middle = _along(np.array(body.offset) / length), (x / 2, y / 2, z / 2)
            name = f"link to {body.name}"
            geoms.append(Geom(name, "capsule", body.parent, (radius, length / 2, 0.0), middle, turned))
    return tuple(geoms)


def _along(axis: Floats) -> Matrix:
    """A rotation whose z axis is the given one."""
    side = np.cross(axis, np.eye(3)[int(np.argmin(np.abs(axis)))])
    side /= np.linalg.norm(side)
    a, b, c = np.stack((side, np.cross(axis, side), axis), -1).tolist()
    return tuple(a), tuple(b), tuple(c)


def _colours(model: RobotModel) -> tuple[str, ...]:
    """By body: the base, and the branches of the robot by turns; of a chain, the links by turns."""
    children: list[list[int]] = [[] for _ in model.bodies]
    for b, body in enumerate(model.bodies[1:], 1):
        children[body.parent].append(b)
    branched = any(len(below) > 1 for below in children[1:])
    found = ["ground"] * len(model.bodies)
    for b, body in enumerate(model.bodies[1:], 1):
        above = found[body.parent]
        if not any(model.bodies[k].joints for k in model.path(b)):
            continue  # fixed to the world
        if above == "ground":
            found[b] = "body"
        elif not branched:
            found[b] = "limb" if above == "body" else "body"
        elif len(children[body.parent]) > 1:
            found[b] = LIMBS[children[body.parent].index(b) % len(LIMBS)]
        else:
            found[b] = LIMBS[0] if above == "body" else above
    return tuple(found)


def _tracked(model: RobotModel) -> Sequence[int]:
    """Of the base of the tree with the most actuators, if it is free; its slides, if they have no range."""
    body_of = {joint.name: b for b, body in enumerate(model.bodies) for joint in body.joints}
    roots = [min(model.path(body_of[a.joint])) for a in model.actuators]
    if not roots:
        return ()
    found = [-1, -1, -1]
    for joint in model.bodies[max(set(roots), key=roots.count)].joints:
        if joint.kind == "free":
            return range(joint.position, joint.position + 3)
        along = [abs(x) for x in joint.axis]
        if joint.kind == "slide" and joint.limit is None and max(along) > 0.99:
            found[along.index(max(along))] = joint.position
    return found if max(found[:2]) >= 0 else ()
