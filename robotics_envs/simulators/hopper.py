"""A planar hopper: body, leg with spring and actuator, actuated hip, and a foot on compliant ground."""

from __future__ import annotations

import math
from typing import Any

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
from robotics_envs.drawing import Circle, Floats, Line, Polygon, Shape, View
from solvers.methods.runge_kutta import RK4

_DESIGN = "this model's choice"
SMOOTHING = 0.002  # m, the height over which the contact force rises
SLIP_SPEED = 0.2  # m/s, the sliding speed at which friction is tanh(1) = 76 % of its full value
BODY_RADIUS = 0.15  # m
LENGTHS = (0.2, 1.0)  # m, the bounds of the leg length
HEIGHTS = (-0.1, 3.0)  # m, the bounds of the foot height
MAX_SPEEDS = (8.0, 8.0, 25.0, 25.0, 8.0)  # the bounds of the rates: m/s, m/s, rad/s, rad/s, m/s
_BOUNDS = Box.symmetric(*MAX_SPEEDS)
FALLEN_HEIGHT = 0.25  # m, of the hip
FALLEN_COSINE = 0.3  # of the pitch, 73 degrees
SPEED_SHARE = 0.85  # of the commanded speed, for success
RUN = 3.0  # s at the end of an episode, over which the speed is averaged


class Hopper(Env):
    """A one-legged hopper has to hop forward at a given speed without falling over.

    State (10) ``[body_x m, foot_height m, pitch rad, leg_angle rad, leg_length m, velocity_x m/s, velocity_z
    m/s, pitch_rate rad/s, leg_rate rad/s, length_rate m/s]``, action ``[leg force, hip torque]`` as fractions of
    ``leg_force`` and ``hip_torque``, observation (12) the same without ``body_x`` and with cosine and sine in
    place of the two angles.  x points forward and z up; velocities are the body's.  Angles are positive
    counter-clockwise, with forward to the right: the foot is ahead of the hip where ``leg_angle`` (from hanging
    straight down) is positive.  The hip is at the body's centre of mass; the leg has no mass, the foot
    is a point.  A positive leg force pushes body and foot apart, a positive torque swings the foot forward.

    The ground is elastic with losses and only pushes; friction follows the tanh of the sliding speed, so a
    standing foot creeps.  The body, a disc of 0.15 m, has the same contact without friction, so that a fallen
    hopper rests on the ground.  Contact is smooth: its force is small but not zero a few millimetres above the ground.
    ``step`` clamps the leg's length to 0.2 .. 1 m, the foot's height to -0.1 .. 3 m and the rates to ±8 m/s and
    ±25 rad/s, which keeps the state of a fallen hopper finite and cuts the gradient where it acts.
    """

    name = "hopper"
    state_names = (
        *("body_x", "foot_height", "pitch", "leg_angle", "leg_length"),
        *("velocity_x", "velocity_z", "pitch_rate", "leg_rate", "length_rate"),
    )
    angle_names = ("pitch", "leg_angle")
    observation_names = (
        *("foot_height", "cos_pitch", "sin_pitch", "cos_leg", "sin_leg", "leg_length"),
        *state_names[5:],
    )
    parameters = (
        Parameter("g", 9.81, "m/s²", source="standard gravity, rounded"),
        Parameter("body_mass", 10.0, "kg", low=0.0, source=_DESIGN),
        Parameter("body_inertia", 1.0, "kg m²", low=0.0, source=_DESIGN),
        Parameter("foot_mass", 1.0, "kg", low=0.0, source=_DESIGN),
        Parameter("rest_length", 0.6, "m", low=0.0, source=_DESIGN),
        Parameter("leg_stiffness", 2500.0, "N/m", low=0.0, source=_DESIGN),
        Parameter("leg_damping", 20.0, "N s/m", low=-1e-9, source=_DESIGN),
        Parameter("leg_force", 150.0, "N", low=0.0, source=_DESIGN),
        Parameter("hip_torque", 20.0, "N m", low=0.0, source=_DESIGN),
        Parameter("ground_stiffness", 20000.0, "N/m", low=0.0, source=_DESIGN),
        Parameter("ground_damping", 0.5, "s/m", low=-1e-9, source=_DESIGN),
        Parameter("friction", 0.8, "1", low=-1e-9, source=_DESIGN),
        Parameter("speed", 1.0, "m/s, commanded", source="the task"),
    )
    action_box = Box.symmetric(1.0, 1.0)
    start_box = Box(
        (-0.1, 0.1, -0.1, -0.1, 0.58, 0.0, -0.2, -0.3, -0.3, -0.05),
        (0.1, 0.2, 0.1, 0.1, 0.62, 1.0, 0.2, 0.3, 0.3, 0.05),
    )
    state_box = Box(
        (-2.0, -0.005, -0.5, -0.6, 0.45, -0.5, -2.0, -3.0, -5.0, -1.5),
        (10.0, 0.3, 0.5, 0.6, 0.65, 2.0, 2.0, 3.0, 5.0, 1.5),
    )
    dt = 0.02
    episode_steps = 300
    view = View((-1.0, -0.15), (1.0, 1.35))
    solver = RK4()
    substeps = 16
    success_criterion = Success(
        words=f"hip above {FALLEN_HEIGHT} m and cos(pitch) > {FALLEN_COSINE} throughout, mean forward speed over "
        f"the last {RUN:g} s above {SPEED_SHARE:.0%} of the commanded one",
        share=MOST_STARTS,
        source="this project's choice",
    )

    def dynamics(self, t: Any, x: States, u: Actions, p: Params) -> States:
        """dx/dt: Newton for the two masses, with the foot's acceleration taken along and across the leg."""
        _, height, _, angle, length, vx, vz, pitch_rate, leg_rate, length_rate = x.unbind(-1)
        sin, cos = torch.sin(angle), torch.cos(angle)
        foot_vx = vx + length_rate * sin + length * leg_rate * cos
        foot_vz = vz - length_rate * cos + length * leg_rate * sin
        lift, drag = self.contact(height, foot_vx, foot_vz, p)
        hip_height = height + length * cos
        support, _ = self.contact(hip_height - BODY_RADIUS, vx, vz, p)

        spring = p["leg_stiffness"] * (p["rest_length"] - length) - p["leg_damping"] * length_rate
        along = spring + p["leg_force"] * u[..., 0]
        torque = p["hip_torque"] * u[..., 1]
        reach = length.clamp_min(LENGTHS[0])  # within a step the length may pass its bound
        across = torque / reach
        # The force of the leg on the foot; the body gets the opposite one.
        push_x, push_z = along * sin + across * cos, across * sin - along * cos
        body_x, body_z = -push_x / p["body_mass"], (support - push_z) / p["body_mass"] - p["g"]
        away_x = (push_x + drag) / p["foot_mass"] - body_x
        away_z = (push_z + lift) / p["foot_mass"] - p["g"] - body_z
        extending = away_x * sin - away_z * cos + length * leg_rate**2
        swinging = (away_x * cos + away_z * sin - 2 * length_rate * leg_rate) / reach
        rates = (vx, foot_vz, pitch_rate, leg_rate, length_rate)
        accelerations = (body_x, body_z, -torque / p["body_inertia"], swinging, extending)
        return torch.stack((*rates, *accelerations), dim=-1)

    def contact(self, height: Tensor, vx: Tensor, vz: Tensor, p: Params) -> tuple[Tensor, Tensor]:
        """Force of the ground, up and forward in N, on a point at ``height`` that moves at ``(vx, vz)``; all ``[B]``.

        ``N = k d (1 - tanh(c vz))``: for slow impacts the law of Hunt and Crossley (J. Applied Mechanics 42,
        1975) for flat contact, ``k d (1 - c vz)``; it never pulls, however fast the point leaves.  The depth
        d is ``-height``, rounded off by softplus.  Friction is Coulomb's, regularised: ``-mu N tanh(vx / v)``.
        """
        depth = SMOOTHING * torch.nn.functional.softplus(-height / SMOOTHING)
        normal = p["ground_stiffness"] * depth * (1 - torch.tanh(p["ground_damping"] * vz))
        return normal, -p["friction"] * normal * torch.tanh(vx / SLIP_SPEED)

    def step(self, x: States, u: Actions, p: Params) -> tuple[States, Costs]:
        """One control interval, after which foot height, leg length and rates are clamped."""
        following, cost = super().step(x, u, p)
        body, height, angles, length, rates = following.split((1, 1, 2, 1, 5), dim=-1)
        stopped = (
            body,
            height.clamp(*HEIGHTS),
            angles,
            length.clamp(*LENGTHS),
            rates.clamp(*_BOUNDS.bounds(rates)),
        )
        return torch.cat(stopped, dim=-1), cost

    def cost(self, x: States, u: Actions, p: Params) -> Costs:
        """``4 (velocity_x - speed)² + 10 (hip - 0.7 m)² + 5 (1 - cos pitch) + 0.02 pitch_rate² + 0.02 |u|²``.

        The target height of the hip, 0.7 m, takes flight phases: a leg at rest holds it at 0.56 m.
        """
        _, height, pitch, angle, length, vx, _, pitch_rate, _, _ = x.unbind(-1)
        low = height + length * torch.cos(angle) - 0.7
        moving = 4 * (vx - p["speed"]) ** 2 + 10 * low**2
        return moving + 5 * (1 - torch.cos(pitch)) + 0.02 * pitch_rate**2 + 0.02 * (u**2).sum(-1)

    def observe(self, x: States) -> Observations:
        """``[foot_height, cos pitch, sin pitch, cos leg, sin leg, leg_length, rates 5]``."""
        _, height, pitch, angle, length, *rates = x.unbind(-1)
        turned = (torch.cos(pitch), torch.sin(pitch), torch.cos(angle), torch.sin(angle))
        return torch.stack((height, *turned, length, *rates), dim=-1)

    def success(self, states: EpisodeStates) -> Successes:
        """No fall, and a mean forward speed over the last 3 s above 85 % of the commanded one.

        A hopper has fallen where its hip is at 0.25 m or lower or the cosine of its pitch is 0.3 or less.
        """
        hip = states[..., 1] + states[..., 4] * torch.cos(states[..., 3])
        standing = (hip > FALLEN_HEIGHT) & (torch.cos(states[..., 2]) > FALLEN_COSINE)
        speed = self.final_states(states, RUN)[..., 5].mean(0)
        return standing.all(0) & (speed > SPEED_SHARE * self.constants["speed"].value)

    def draw(self, x: Floats, u: Floats) -> list[Shape]:
        """The hopper in the middle of the picture; marks on the ground every half metre move below it."""
        position, height, pitch, angle, length, *_ = (float(value) for value in x)
        foot = (length * math.sin(angle), height)
        hip = (0.0, height + length * math.cos(angle))
        marks = [0.5 * k - position % 0.5 for k in range(-2, 4)]
        shapes: list[Shape] = [
            Line([(m, 0.0), (m - 0.05, -0.07)], "ground", 0.01) for m in marks if abs(m) < 0.97
        ]
        down = (hip[0] - foot[0], hip[1] - foot[1])
        side = (-0.035 * down[1] / length, 0.035 * down[0] / length)
        coil = [foot]
        for k in range(1, 12):
            swing = 0.0 if k in (1, 11) else (-1.0) ** k
            share = 0.1 + 0.7 * (k - 1) / 10
            coil.append(
                (foot[0] + share * down[0] + swing * side[0], foot[1] + share * down[1] + swing * side[1])
            )
        shapes += [Line([*coil, hip], "limb", 0.018), Circle(foot, 0.03, "joint")]
        # The push of the leg as an arrow's shaft from the foot along the leg.
        tail = (foot[0] - 0.3 * float(u[0]) * down[0], foot[1] - 0.3 * float(u[0]) * down[1])
        shapes.append(Line([foot, tail], "force", 0.012))
        forward, up = (math.cos(pitch), math.sin(pitch)), (-math.sin(pitch), math.cos(pitch))
        corners = ((-0.25, -0.04), (0.25, -0.04), (0.25, 0.1), (0.2, 0.13), (-0.25, 0.13))
        shapes.append(Polygon([_at(hip, forward, up, a, b) for a, b in corners], "body"))
        arc = [0.1 * k * float(u[1]) for k in range(16)]
        shapes.append(
            Line(
                [_at(hip, (0.0, -1.0), (1.0, 0.0), 0.2 * math.cos(a), 0.2 * math.sin(a)) for a in arc],
                "force",
                0.02,
            )
        )
        shapes.append(Circle(hip, 0.035, "joint"))
        return shapes

    def scenery(self) -> list[Shape]:
        """The ground, and the target height of the hip."""
        return [Line([(-1.0, 0.0), (1.0, 0.0)], "ground", 0.015), Line([(-1.0, 0.7), (1.0, 0.7)], "target")]


def _at(
    origin: tuple[float, float], forward: tuple[float, float], up: tuple[float, float], a: float, b: float
) -> tuple[float, float]:
    return (origin[0] + a * forward[0] + b * up[0], origin[1] + a * forward[1] + b * up[1])
