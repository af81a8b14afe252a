"""A 1:43 race car with saturating tyres on a closed track."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
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
from robotics_envs.drawing import Floats, Line, Polygon, Shape, View
from solvers.methods.runge_kutta import RK4

_LINIGER = "Liniger, Domahidi, Morari, OCAM 36(5), 2015, the 1:43 car; value of the authors' MPCC code"
LAP = 12.0  # m, length of the centre line
HALF_WIDTH = 0.185  # m, of the track; Liniger's is 0.37 m wide
LOBES, BEND = 3, 2.5  # the curvature is (2 pi / LAP) (1 + BEND cos(LOBES phase))
PREVIEW = (0.0, 0.2, 0.4, 0.7, 1.0, 1.4)  # m ahead along the centre line, where the curvature is observed
SLOW = 0.4  # m/s, below which the slip angle is no longer the geometric one
ROLLING = 0.1  # m/s, below which the rolling resistance fades
TIGHTEST = 0.2  # least 1 - offset curvature: a fifth of the centre line's radius from its centre
LAPS = 1.0  # in an episode, for success

PerRollout = Float[Tensor, " batch"]


def curvature(phase: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """1/m, of the centre line, positive to the left, at ``phase`` = 2 pi times the laps driven.

    The tangent turns by ``phase + BEND/LOBES sin(LOBES phase)``.  After a third of a lap it is turned by
    a third of a circle and everything repeats, so that the curve closes.
    """
    return 2 * math.pi / LAP * (1 + BEND * torch.cos(LOBES * phase))


def magic_formula(slip: PerRollout, b: Tensor, c: Tensor, d: Tensor) -> PerRollout:
    """N, Pacejka's lateral tyre force at a slip angle in rad: ``d sin(c atan(b slip))``."""
    return d * torch.sin(c * _atan(b * slip))


def _atan(a: Tensor) -> Tensor:
    return torch.atan2(a, torch.ones_like(a))


def _regular_abs(a: Tensor) -> Tensor:
    """|a|, rounded off to ``SLOW log 2`` at 0; the rest vanishes exponentially."""
    size = torch.abs(a)
    return size + SLOW * torch.log(1 + torch.exp(-2 * size / SLOW))


class Car(Env):
    """A 1:43 race car has to drive as fast as it can around a closed track and stay on it.

    State ``[phase rad, offset m, heading rad, velocity_x m/s, velocity_y m/s, yaw_rate rad/s]``, action
    ``[duty, steering rad]`` in -0.1..1 and ±0.35, observation ``[offset, cos heading, sin heading,
    velocity_x, velocity_y, yaw_rate]`` and the curvature 0, 0.2, 0.4, 0.7, 1.0 and 1.4 m ahead.  The
    phase is 2 pi times the laps driven along the centre line; the offset is the distance of the
    centre of mass to its left; the heading is that of the car against the centre line, positive to the
    left; neither angle is wrapped.  Velocities are in the car's frame: x forward, y left.

    Equations: the bicycle model of Liniger, Domahidi, Morari, Optimization-based autonomous racing of 1:43
    scale RC cars, 2015, eq. 1 and 2, in curvilinear coordinates as in Rajamani, Vehicle Dynamics and
    Control, or Lot and Biral, A curvilinear abscissa approach for the lap time optimization of racing
    vehicles, IFAC 2014.  Their slip angles have a pole at standstill; here they are taken in the
    frame of the wheel, ``-atan(across / along)``, with |along| rounded off below ``SLOW``.  Above 1 m/s that is
    the same to 0.3 %, and it also serves a car that slides sideways or rolls backwards.  The constant
    part of the rolling resistance fades below ``ROLLING``.

    Two gradients are cut: by clipping the action, and far off the track, where ``1 - offset curvature`` is
    kept above ``TIGHTEST``, which avoids the singularity at the centre of a bend.  Leaving the track adds
    cost and does not end the episode.
    """

    name = "car"
    state_names = ("phase", "offset", "heading", "velocity_x", "velocity_y", "yaw_rate")
    angle_names = ("phase", "heading")
    observation_names = (
        *("offset", "cos_heading", "sin_heading", "velocity_x", "velocity_y", "yaw_rate"),
        *(f"curvature_{round(100 * ahead)}cm" for ahead in PREVIEW),
    )
    parameters = (
        Parameter("mass", 0.041, "kg", low=0.0, source=_LINIGER),
        Parameter("inertia", 27.8, "kg mm²", low=0.0, source=_LINIGER),
        Parameter("front", 0.029, "m from the centre of mass to the front axle", low=0.0, source=_LINIGER),
        Parameter("rear", 0.033, "m from the centre of mass to the rear axle", low=0.0, source=_LINIGER),
        Parameter("front_b", 2.579, "1/rad", low=0.0, source=_LINIGER),
        Parameter("front_c", 1.2, "1", low=0.0, source=_LINIGER),
        Parameter("front_d", 0.192, "N, the peak", low=0.0, source=_LINIGER),
        Parameter("rear_b", 3.3852, "1/rad", low=0.0, source=_LINIGER),
        Parameter("rear_c", 1.2691, "1", low=0.0, source=_LINIGER),
        Parameter("rear_d", 0.1737, "N, the peak", low=0.0, source=_LINIGER),
        Parameter("motor", 0.287, "N at standstill (Cm1)", low=0.0, source=_LINIGER),
        Parameter("motor_fade", 0.0545, "N s/m (Cm2)", low=0.0, source=_LINIGER),
        Parameter("rolling", 0.0518, "N (Cr0)", low=0.0, source=_LINIGER),
        Parameter("drag", 0.00035, "N s²/m² (Cr2)", low=0.0, source=_LINIGER),
    )
    action_box = Box((-0.1, -0.35), (1.0, 0.35))
    start_box = Box((-math.pi, -0.1, -0.3, 0.5, -0.1, -1.0), (math.pi, 0.1, 0.3, 1.5, 0.1, 1.0))
    state_box = Box((-math.pi, -0.25, -0.8, 0.3, -0.6, -8.0), (math.pi, 0.25, 0.8, 3.0, 0.6, 8.0))
    dt = 0.03
    episode_steps = 300
    substeps = 3  # the slip's lag at standstill is 6 ms
    view = View((-2.3, -2.45), (2.3, 2.15))
    success_criterion = Success(
        words=f"on the track, |offset| < {HALF_WIDTH} m, throughout the episode, and {LAPS:g} lap or more driven",
        share=MOST_STARTS,
        source="half width of the track: Liniger et al., OCAM 36(5), 2015; the lap, without which a car that stops "
        "would succeed: this project's choice",
    )
    solver = RK4()

    def forces(self, x: States, u: Actions, p: Params) -> tuple[PerRollout, PerRollout, PerRollout]:
        """Forces in N: drive force on the rear axle, lateral forces of front and rear tyre, positive to the left."""
        _, _, _, vx, vy, yaw_rate = x.unbind(-1)
        duty, steering = u.unbind(-1)
        drive = (p["motor"] - p["motor_fade"] * vx) * duty
        resistance = p["rolling"] * torch.tanh(vx / ROLLING) + p["drag"] * vx * torch.abs(vx)

        cos, sin = torch.cos(steering), torch.sin(steering)
        sideways = vy + p["front"] * yaw_rate  # of the front axle, in the car's frame
        front_slip = -_atan((sideways * cos - vx * sin) / _regular_abs(vx * cos + sideways * sin))
        rear_slip = -_atan((vy - p["rear"] * yaw_rate) / _regular_abs(vx))
        front = magic_formula(front_slip, p["front_b"], p["front_c"], p["front_d"])
        rear = magic_formula(rear_slip, p["rear_b"], p["rear_c"], p["rear_d"])
        return drive - resistance, front, rear

    def progress(self, x: States) -> PerRollout:
        """m/s along the centre line."""
        phase, offset, heading, vx, vy, _ = x.unbind(-1)
        squeeze = (1 - offset * curvature(phase)).clamp_min(TIGHTEST)
        return (vx * torch.cos(heading) - vy * torch.sin(heading)) / squeeze

    def dynamics(self, t: Any, x: States, u: Actions, p: Params) -> States:
        """d[phase, offset, heading, velocities, yaw rate]/dt."""
        phase, _, heading, vx, vy, yaw_rate = x.unbind(-1)
        drive, front, rear = self.forces(x, u, p)
        cos, sin = torch.cos(u[:, 1]), torch.sin(u[:, 1])
        progress = self.progress(x)
        return torch.stack(
            (
                2 * math.pi / LAP * progress,
                vx * torch.sin(heading) + vy * torch.cos(heading),
                yaw_rate - curvature(phase) * progress,
                (drive - front * sin) / p["mass"] + vy * yaw_rate,
                (rear + front * cos) / p["mass"] - vx * yaw_rate,
                (p["front"] * front * cos - p["rear"] * rear) / (1e-6 * p["inertia"]),
            ),
            dim=-1,
        )

    def cost(self, x: States, u: Actions, p: Params) -> Costs:
        """``1 - progress / (2 m/s)``, plus terms for leaving the track, sliding, facing backwards and steering.

        ``(max(|offset| - 0.12 m, 0) / 0.05 m)²`` is 1.7 at the edge of the track; the slide is the rear axle's
        velocity across the car, ``0.1 (v / (1 m/s))²``; then ``0.1 (1 - cos heading) + 0.05 (steering / 0.35)²``.
        """
        _, offset, heading, _, vy, yaw_rate = x.unbind(-1)
        beyond = (torch.abs(offset) - 0.12).clamp_min(0.0) / 0.05
        slide = vy - p["rear"] * yaw_rate
        calm = 0.1 * (slide**2 + 1 - torch.cos(heading)) + 0.05 * (u[:, 1] / 0.35) ** 2
        return 1 - 0.5 * self.progress(x) + beyond**2 + calm

    def observe(self, x: States) -> Observations:
        """``[offset, cos heading, sin heading, velocity_x, velocity_y, yaw_rate]`` and the curvatures ahead."""
        phase, offset, heading, *velocities = x.unbind(-1)
        ahead = [curvature(phase + 2 * math.pi * metres / LAP) for metres in PREVIEW]
        return torch.stack((offset, torch.cos(heading), torch.sin(heading), *velocities, *ahead), dim=-1)

    def success(self, states: EpisodeStates) -> Successes:
        """On the track, ``|offset| < 0.185 m``, throughout the episode, and a lap or more driven."""
        phase, offset = states[..., 0], states[..., 1]
        return (offset.abs() < HALF_WIDTH).all(0) & (phase[-1] - phase[0] >= 2 * math.pi * LAPS)

    def draw(self, x: Floats, u: Floats) -> list[Shape]:
        """The car at three times its size, its wheels steered, and the drive as a bar along its nose."""
        right, up, tangent = _centre_line()
        turn = float(x[0]) % (2 * math.pi) / (2 * math.pi) * (len(right) - 1)
        at = np.arange(len(right))
        along = float(np.interp(turn, at, tangent))
        place = np.array((np.interp(turn, at, right), np.interp(turn, at, up)))
        place = place + float(x[1]) * np.array((-math.sin(along), math.cos(along)))
        yaw = along + float(x[2])

        def point(forward: float, left: float, about: Floats = place, angle: float = yaw) -> Floats:
            c, s = math.cos(angle), math.sin(angle)
            return about + np.array((c * forward - s * left, s * forward + c * left))

        front, rear = 3 * self.constants["front"].value, 3 * self.constants["rear"].value
        corners = [(front + 0.04, 0.025), (front + 0.04, -0.025), (-rear - 0.04, -0.05), (-rear - 0.04, 0.05)]
        wheels: list[Shape] = []
        for axle, steered in ((front, float(u[1])), (-rear, 0.0)):
            for side in (-0.06, 0.06):
                hub = point(axle, side)
                ends = [point(d, 0.0, hub, yaw + steered) for d in (-0.03, 0.03)]
                wheels.append(Line(ends, "ink", 0.03))
        pull = [point(front + 0.06, 0.0), point(front + 0.06 + 0.3 * float(u[0]), 0.0)]
        return [Line(pull, "force", 0.025), *wheels, Polygon([point(*c) for c in corners], "body")]

    def scenery(self) -> list[Shape]:
        """The track, its centre line, and the start of a lap."""
        right, up, tangent = _centre_line()
        line = np.stack((right, up), -1)
        normal = np.stack((-np.sin(tangent), np.cos(tangent)), -1)
        inner, outer = line + HALF_WIDTH * normal, line - HALF_WIDTH * normal
        return [
            Polygon([*outer.tolist(), *inner[::-1].tolist()], "faint"),
            Line(inner.tolist(), "ink"),
            Line(outer.tolist(), "ink"),
            Line(line.tolist(), "ground"),
            Line([inner[0].tolist(), outer[0].tolist()], "target", 0.03),
        ]


@functools.cache
def _centre_line(points: int = 601) -> tuple[Floats, Floats, Floats]:
    """The centre line, about its middle, at equal distances over a lap: right, up (m) and the tangent's angle."""
    phase = np.linspace(0.0, 2 * math.pi, points)
    tangent = phase + BEND / LOBES * np.sin(LOBES * phase)
    step = LAP / (points - 1)
    lines = []
    for slope in (np.cos(tangent), np.sin(tangent)):
        line = np.concatenate(([0.0], np.cumsum(0.5 * (slope[1:] + slope[:-1]) * step)))
        lines.append(line - line[:-1].mean())
    return lines[0], lines[1], tangent
