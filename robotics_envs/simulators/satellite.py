"""Attitude control of a small satellite with four reaction wheels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robotics_envs.base import (
    MOST_STARTS,
    Actions,
    Box,
    Costs,
    Env,
    EpisodeStates,
    Observations,
    Parameter,
    Params,
    States,
    Success,
    Successes,
)
from robotics_envs.drawing import Circle, Floats, Line, Point, Polygon, Shape, View
from robotics_envs.mechanics.quaternions import unit
from solvers.methods.runge_kutta import RK4

_CUBESAT = "CubeSat Design Specification rev. 13 (2014), a full 3U: 4.0 kg in 100 x 100 x 340.5 mm, uniform"
_WHEEL = "Blue Canyon Technologies, RWP015 data sheet"
_AXES = ("x", "y", "z")
_CORNERS = tuple(math.radians(degrees) for degrees in (45.0, 135.0, 225.0, 315.0))
"""Azimuths of the wheels' axes about the body's z."""
_MARGIN = 0.1  # share of the top speed over which a torque that speeds a wheel up fades
POINTED = 5.0  # degrees from the reference attitude, for success
STILL = 0.02  # rad/s


class Satellite(Env):
    """A CubeSat has to turn from any attitude to the reference one and to come to rest there.

    State (11) ``[quaternion w x y z 4, body rates rad/s 3, wheel speeds rad/s 4]``, action ``[wheel torques
    4]`` as fractions of ``max_torque``, observation (16) ``[rotation matrix by rows 9, body rates, wheel
    speeds]``.  The quaternion turns body into inertial axes; rates are in body axes, z along the
    satellite.  A wheel's speed is that relative to the body.  Its axis leans by ``cant`` from the body's
    xy plane towards z; the four stand at 45, 135, 225 and 315 degrees about z, so any three can turn
    the body.  The body's inertias include the wheels.  No torque from outside acts: the total angular
    momentum, which the wheels take up, never changes.

    The torque that speeds a wheel up fades from full to none between 0.9 and 1 of ``max_speed``; that which slows
    it down does not.  So a command has no gradient at a wheel's top speed, and a bend where it changes sign near it.
    A quaternion of any length other than zero stands for the attitude of its direction; ``step`` makes it
    unit after the solver.
    """

    name = "satellite"
    state_names = (
        *("quaternion_w", "quaternion_x", "quaternion_y", "quaternion_z"),
        *(f"rate_{a}" for a in _AXES),
        *(f"wheel_{i}" for i in range(1, 5)),
    )
    observation_names = (
        *(f"rotation_{row}{column}" for row in ("x", "y", "z") for column in ("x", "y", "z")),
        *state_names[4:],
    )
    parameters = (
        Parameter("inertia_x", 0.04198, "kg m²", low=0.0, source=_CUBESAT),
        Parameter("inertia_y", 0.04198, "kg m²", low=0.0, source=_CUBESAT),
        Parameter("inertia_z", 0.006667, "kg m²", low=0.0, source=_CUBESAT),
        Parameter("wheel_inertia", 23.87, "kg mm²", low=0.0, source=f"{_WHEEL}: 0.015 N m s, at max_speed"),
        Parameter("max_torque", 0.004, "N m, of a wheel", low=0.0, source=_WHEEL),
        Parameter("max_speed", 628.3, "rad/s", low=0.0, source="6000 rpm, as Basilisk takes for the RWP015"),
        Parameter(
            "cant",
            math.atan(math.sqrt(0.5)),
            "rad",
            low=0.0,
            high=math.pi / 2,
            source="equal torque about all axes; Markley and Crassidis (2014), chapter 7",
        ),
    )
    action_box = Box.symmetric(*(1.0,) * 4)
    start_box = Box.symmetric(*(1.0,) * 4, *(0.05,) * 2, 0.2, *(200.0,) * 4)
    state_box = Box.symmetric(*(1.0,) * 4, *(0.3,) * 2, 0.6, *(400.0,) * 4)
    dt = 0.5
    episode_steps = 80
    view = View((-0.37, -0.38), (0.37, 0.36), azimuth=30.0, elevation=25.0)
    solver = RK4()
    substeps = 5
    success_criterion = Success(
        words=f"pointing error below {POINTED:g}° and rate below {STILL} rad/s at the end",
        share=MOST_STARTS,
        source="this project's choice",
    )

    def dynamics(self, t: Any, x: States, u: Actions, p: Params) -> States:
        """d[quaternion, rates, wheels]/dt of a gyrostat (Hughes, Spacecraft Attitude Dynamics, 1986, chapter 3).

        With the body's momentum ``H = I rates + J A wheels``, where the columns of A are the axes::

            (I - J A A') d rates/dt = H x rates - A torques,    d wheels/dt = torques / J - A' d rates/dt
        """
        quaternion, rates, wheels = x.split((4, 3, 4), dim=-1)
        rotor = 1e-6 * p["wheel_inertia"]  # kg m²
        torques = self.wheel_torques(wheels, u, p)
        hx, hy, hz = self.momentum(x, p).unbind(-1)
        rx, ry, rz = rates.unbind(-1)
        sx, sy, sz = _along_body(torques, p["cant"])
        flat, tall = 2 * torch.cos(p["cant"]) ** 2, 4 * torch.sin(p["cant"]) ** 2  # A A' is diagonal
        angular = (
            (hy * rz - hz * ry - sx) / (p["inertia_x"] - rotor * flat),
            (hz * rx - hx * rz - sy) / (p["inertia_y"] - rotor * flat),
            (hx * ry - hy * rx - sz) / (p["inertia_z"] - rotor * tall),
        )
        spinning = torques / rotor.unsqueeze(-1) - _along_wheels(angular, p["cant"])

        w, i, j, k = quaternion.unbind(-1)
        turning = (
            -0.5 * (i * rx + j * ry + k * rz),
            0.5 * (w * rx + j * rz - k * ry),
            0.5 * (w * ry + k * rx - i * rz),
            0.5 * (w * rz + i * ry - j * rx),
        )
        return torch.cat((torch.stack((*turning, *angular), dim=-1), spinning), dim=-1)

    def wheel_torques(self, wheels: Tensor, u: Actions, p: Params) -> Tensor:
        """Torques ``[B, 4]`` in N m from the body on the wheels that turn at ``wheels [B, 4]``."""
        share = wheels / p["max_speed"].unsqueeze(-1)
        faster, slower = (((1 - s) / _MARGIN).clamp(0.0, 1.0) for s in (share, -share))
        # Smooth at both ends of the fade: 3 f² - 2 f³.
        faster, slower = (f * f * (3 - 2 * f) for f in (faster, slower))
        return p["max_torque"].unsqueeze(-1) * torch.where(u > 0, u * faster, u * slower)

    def momentum(self, x: States, p: Params) -> Tensor:
        """The total angular momentum in body axes, ``[B, 3]`` in N m s."""
        _, rates, wheels = x.split((4, 3, 4), dim=-1)
        of_body = (p[f"inertia_{a}"] * rate for a, rate in zip(_AXES, rates.unbind(-1), strict=True))
        of_wheels = _along_body(1e-6 * p["wheel_inertia"].unsqueeze(-1) * wheels, p["cant"])
        return torch.stack([b + w for b, w in zip(of_body, of_wheels, strict=True)], dim=-1)

    def step(self, x: States, u: Actions, p: Params) -> tuple[States, Costs]:
        """One control interval, after which the quaternion is made unit."""
        following, cost = super().step(x, u, p)
        quaternion, rest = following.split((4, 7), dim=-1)
        return torch.cat((unit(quaternion), rest), dim=-1), cost

    def cost(self, x: States, u: Actions, p: Params) -> Costs:
        """``2 sin(angle/2) + 2 |rates|² + 0.02 |wheels|² + 0.02 |u|²``, wheels as shares of their top speed.

        The angle is that of the rotation to the reference attitude, whose quaternions are (±1, 0, 0, 0);
        the sine s is rounded off at 0 to ``sqrt(4 s² + 0.01) - 0.1``.
        """
        quaternion, rates, wheels = x.split((4, 3, 4), dim=-1)
        vector = unit(quaternion)[:, 1:]
        off = torch.sqrt(4 * (vector**2).sum(-1) + 0.01) - 0.1 + 2 * (rates**2).sum(-1)
        share = wheels / p["max_speed"].unsqueeze(-1)
        return off + 0.02 * (share**2).sum(-1) + 0.02 * (u**2).sum(-1)

    def observe(self, x: States) -> Observations:
        """``[rotation matrix by rows, body rates, wheel speeds]``, the same for a quaternion and its negative."""
        quaternion, rest = x.split((4, 7), dim=-1)
        a, b, c, d = unit(quaternion).unbind(-1)
        rotation = (
            *(1 - 2 * (c * c + d * d), 2 * (b * c - a * d), 2 * (b * d + a * c)),
            *(2 * (b * c + a * d), 1 - 2 * (b * b + d * d), 2 * (c * d - a * b)),
            *(2 * (b * d - a * c), 2 * (c * d + a * b), 1 - 2 * (b * b + c * c)),
        )
        return torch.cat((torch.stack(rotation, dim=-1), rest), dim=-1)

    def reset(self, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """Attitudes uniform over all rotations, rates and wheel speeds from the start box, ``[batch, 11]``."""
        x = super().reset(batch, generator, dtype)
        normal = torch.randn(batch, 4, generator=generator, dtype=dtype, device=generator.device)
        return torch.cat((unit(normal), x[:, 4:]), dim=-1)

    def success(self, states: EpisodeStates) -> Successes:
        """The pointing error is below 5° and the rate below 0.02 rad/s at the end."""
        quaternion, rates, _ = states[-1].split((4, 3, 4), dim=-1)
        # The real part is plus or minus the cosine of half the angle.
        pointed = unit(quaternion)[:, 0].abs() > math.cos(math.radians(POINTED) / 2)
        return pointed & ((rates**2).sum(-1) < STILL**2)

    def draw(self, x: Floats, u: Floats) -> list[Shape]:
        """The body and its axes; for each wheel a disc with its speed as a hand, and its torque as a bar."""
        like = torch.from_numpy(np.asarray(x, dtype=float))[None]
        turn = self.observe(like)[0, :9].reshape(3, 3).numpy()
        shapes = _box(turn)
        for axis, colour in zip(np.eye(3), ("hot", "target", "cold"), strict=True):
            shapes.append(Line([_point(turn @ (0.2 * axis)), _point(turn @ (0.32 * axis))], colour, 0.012))
        top = self.constants["max_speed"].value
        for i in range(4):
            middle = (-0.27 + 0.18 * i, -0.33)
            hand = math.pi * float(np.clip(x[7 + i] / top, -1.0, 1.0))
            tip = (middle[0] + 0.03 * math.sin(hand), middle[1] + 0.03 * math.cos(hand))
            push = (middle[0] + 0.05, middle[1] + 0.035 * float(u[i]))
            shapes += [Circle(middle, 0.035, "faint"), Line([middle, tip], "ink", 0.006)]
            shapes.append(Line([(middle[0] + 0.05, middle[1]), push], "force", 0.012))
        return shapes

    def scenery(self) -> list[Shape]:
        """The reference axes; the body's axes (red x, green y, blue z) have to be aligned with them."""
        ends = 0.32 * np.eye(3)
        return [Line([(0.0, 0.0, 0.0), _point(end)], "ground", 0.03) for end in ends]


def _along_body(wheels: Tensor, cant: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of quantities ``[B, 4]`` along the wheels' axes as components along the body's, each ``[B]``."""
    parts = wheels.unbind(-1)
    x = sum(math.cos(corner) * part for corner, part in zip(_CORNERS, parts, strict=True))
    y = sum(math.sin(corner) * part for corner, part in zip(_CORNERS, parts, strict=True))
    return torch.cos(cant) * x, torch.cos(cant) * y, torch.sin(cant) * wheels.sum(-1)


def _along_wheels(vector: tuple[Tensor, Tensor, Tensor], cant: Tensor) -> Tensor:
    """A vector's components along the wheels' axes, ``[B, 4]``."""
    x, y, z = vector
    flat = (math.cos(corner) * x + math.sin(corner) * y for corner in _CORNERS)
    return torch.stack([torch.cos(cant) * part + torch.sin(cant) * z for part in flat], dim=-1)


def _point(vector: Floats) -> Point:
    return tuple(float(component) for component in vector)


def _box(turn: Floats) -> list[Shape]:
    """The faces of the rotated body that face the camera, far ones first."""
    a, e = math.radians(Satellite.view.azimuth), math.radians(Satellite.view.elevation)
    sight = np.array((math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e)))
    size = np.array((0.05, 0.05, 0.17))
    faces: list[tuple[float, list[Shape]]] = []
    for axis in range(3):
        for side in (-1.0, 1.0):
            normal = side * np.eye(3)[axis]
            facing = float(turn @ normal @ sight)
            if facing <= 0:
                continue
            p, q = (np.eye(3)[(axis + k) % 3] for k in (1, 2))
            corners = [
                _point(turn @ (size * (normal + i * p + j * q)))
                for i, j in ((-1, -1), (-1, 1), (1, 1), (1, -1))
            ]
            outline = Line([*corners, corners[0]], "ink", 0.004)
            faces.append((facing, [Polygon(corners, "limb" if axis == 2 else "body"), outline]))
    return [shape for _, pair in sorted(faces, key=lambda face: face[0]) for shape in pair]
