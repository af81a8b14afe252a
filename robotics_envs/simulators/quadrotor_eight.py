"""The Crazyflie of ``quadrotor`` flying a figure of eight."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from robotics_envs.base import (
    MOST_STARTS,
    Actions,
    Box,
    Costs,
    EpisodeStates,
    Observations,
    Parameter,
    Params,
    States,
    Success,
    Successes,
)
from robotics_envs.drawing import Circle, Floats, Line, Shape, View
from robotics_envs.mechanics.quaternions import rotation
from robotics_envs.simulators.quadrotor import NEAR, Quadrotor, floor

HALF_WIDTH = 1.0  # m
TRACKED = 5.0  # s at the end of an episode, a lap at the default rate, for success

Phase = Float[Tensor, " batch"]
Vectors = Float[Tensor, "batch 3"]


class Curve(NamedTuple):
    """The curve at a phase: its point m, and that point's derivatives with respect to the phase."""

    point: Vectors
    first: Vectors
    second: Vectors
    third: Vectors


def curve(phase: Phase) -> Curve:
    """Gerono's lemniscate ``w (sin s, 0, sin s cos s)`` of half width w in the plane y = 0, with its long axis along x.

    The eight curve ``x⁴ = w² (x² - z²)`` of Lawrence, A Catalog of Special Plane Curves, 1972, §5.3.
    """
    sin, cos, rest = torch.sin(phase), torch.cos(phase), torch.zeros_like(phase)
    twice_sin, twice_cos = torch.sin(2 * phase), torch.cos(2 * phase)
    derivatives = ((sin, 0.5 * twice_sin), (cos, twice_cos), (-sin, -2 * twice_sin), (-cos, -4 * twice_cos))
    return Curve(*(HALF_WIDTH * torch.stack((x, rest, z), dim=-1) for x, z in derivatives))


class QuadrotorEight(Quadrotor):
    """A Crazyflie 2.x has to follow a point that runs along an upright figure of eight.

    State (18) ``[position m 3, quaternion w x y z 4, velocity m/s 3, body rates rad/s 3, motors 4, phase
    rad]``, action ``[motors 4]`` in 0..1, observation (24) ``[position, rotation matrix by rows 9, velocity,
    body rates, motors, cos phase, sin phase]``.  **Position and velocity are relative to the reference**, in
    a frame that moves along with it and keeps the directions of the world (z up): zero is on the curve.  The
    phase grows at the rate ``phase_rate`` and places the reference on the lemniscate of :func:`curve`, 2 m
    wide and 1 m high.  All else is that of :class:`~robotics_envs.simulators.quadrotor.Quadrotor`, also what ``step``
    normalises and clamps, which cuts the gradient of a body rate where the clamp acts.

    The vehicle is flat in its position and heading (Mellinger and Kumar, Minimum Snap Trajectory
    Generation and Control for Quadrotors, ICRA 2011, §III): the acceleration of the reference plus gravity
    gives the thrust and the direction of the body's z that are needed to follow the curve, and its jerk the
    body rates.  The cost measures deviations from these, so that perfect tracking costs only the thrust
    differences that turn the body.  The heading is free.
    """

    name = "quadrotor_eight"
    state_names = (*Quadrotor.state_names, "phase")
    angle_names = ("phase",)
    observation_names = (*Quadrotor.observation_names, "cos_phase", "sin_phase")
    parameters = (
        *Quadrotor.parameters,
        Parameter("phase_rate", 2 * math.pi / 5, "rad/s", low=0.0, source="chosen: 5 s a lap"),
    )
    start_box = Box(
        (*(-0.3,) * 3, 1.0, *(-0.2,) * 3, *(-0.5,) * 3, *(-1.0,) * 3, *(0.2,) * 4, -math.pi),
        (*(0.3,) * 3, 1.0, *(0.2,) * 3, *(0.5,) * 3, *(1.0,) * 3, *(0.6,) * 4, math.pi),
    )
    state_box = Box(
        (*(-0.8,) * 3, 0.5, *(-0.5,) * 3, *(-2.0,) * 3, *(-8.0,) * 3, *(0.0,) * 4, -math.pi),
        (*(0.8,) * 3, 1.0, *(0.5,) * 3, *(2.0,) * 3, *(8.0,) * 3, *(1.0,) * 4, math.pi),
    )
    episode_steps = 500
    view = View((-1.8, -1.6), (1.8, 1.1), azimuth=-65.0, elevation=15.0)
    success_criterion = Success(
        words=f"within {100 * NEAR:g} cm of the reference throughout the last {TRACKED:g} s, half of the episode",
        share=MOST_STARTS,
        source="this project's choice",
    )

    def dynamics(self, t: Any, x: States, u: Actions, p: Params) -> States:
        """The quadrotor's, less the acceleration of the reference; d phase/dt is ``phase_rate``."""
        body, phase = x.split((17, 1), dim=-1)
        pace = p["phase_rate"].unsqueeze(-1)
        change = super().dynamics(t, body, u, p)
        acceleration = change[:, 7:10] - pace**2 * curve(phase[:, 0]).second
        return torch.cat(
            (change[:, :7], acceleration, change[:, 10:], pace + torch.zeros_like(phase)), dim=-1
        )

    def cost(self, x: States, u: Actions, p: Params) -> Costs:
        """``|position|² + tilt/2 + 0.05 |velocity|² + 0.01 |rates - w|² + 0.05 |u - lift|²``.

        The tilt is 1 minus the cosine of the angle between the body's z and the thrust
        direction of the reference; ``w`` are the body rates and ``lift`` the action of the reference.
        """
        position, quaternion, velocity, rates, _, phase = x.split((3, 4, 3, 3, 4, 1), dim=-1)
        at, pace = curve(phase[..., 0]), p["phase_rate"].unsqueeze(-1)
        sideways, _, upwards = (pace**2 * at.second).unbind(-1)
        upwards = upwards + p["g"]
        # For a reference in free fall, which the default constants exclude, the direction is undefined.
        specific_thrust = torch.sqrt((sideways**2 + upwards**2).clamp_min(1e-6))
        jerk_x, _, jerk_z = (pace**3 * at.third).unbind(-1)
        # The direction of the thrust turns about the world's y, whose components in the body are a row of R.
        turning = (jerk_x * upwards - jerk_z * sideways) / specific_thrust**2
        turn = rotation(quaternion)
        along = (turn[..., 2] * sideways + turn[..., 8] * upwards) / specific_thrust
        lift = p["mass"] * specific_thrust / (4 * p["max_thrust"])
        far = (position**2).sum(-1) + 0.5 * (1 - along)
        fast = 0.05 * (velocity**2).sum(-1)
        spin = 0.01 * ((rates - turning.unsqueeze(-1) * turn[..., 3:6]) ** 2).sum(-1)
        return far + fast + spin + 0.05 * ((u - lift.unsqueeze(-1)) ** 2).sum(-1)

    def observe(self, x: States) -> Observations:
        """``[position, rotation matrix by rows, velocity, body rates, motors, cos phase, sin phase]``."""
        body, phase = x.split((17, 1), dim=-1)
        return torch.cat((super().observe(body), torch.cos(phase), torch.sin(phase)), dim=-1)

    def success(self, states: EpisodeStates) -> Successes:
        """Within 10 cm of the reference throughout the last 5 s, the second half of the episode."""
        error = self.final_states(states, TRACKED)[..., :3]
        return ((error**2).sum(-1) < NEAR**2).all(0)

    def draw(self, x: Floats, u: Floats) -> list[Shape]:
        """The vehicle as ``quadrotor`` draws it, and the reference as a ring."""
        reference = curve(torch.tensor([float(x[17])], dtype=torch.float64, device="cpu")).point[0].numpy()
        vehicle = super().draw(np.concatenate((x[:3] + reference, x[3:])), u)
        return [Circle(reference.tolist(), 0.08, "target", filled=False), *vehicle]

    def scenery(self) -> list[Shape]:
        """The floor (drawn only; there are no collisions) and the curve."""
        lap = curve(torch.from_numpy(np.linspace(0.0, 2 * math.pi, 97))).point.tolist()
        return [*floor(), Line(lap, "target")]
