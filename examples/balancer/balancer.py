"""A two-wheeled balancer drives along a line: a task on a robot's file.

diffsim train examples/balancer/balancer.py:Balancer
"""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Bool
from torch import Tensor

from robotics_envs.base import (
    MOST_STARTS,
    Actions,
    Box,
    Costs,
    EpisodeStates,
    Observations,
    Params,
    States,
    Success,
    Successes,
)
from robotics_envs.mechanics.quaternions import rotation
from robotics_envs.robots import RobotEnv, read

HEIGHT = 0.12  # m, of the axle when the wheels stand on the ground
UPRIGHT = 0.6  # the least vertical component of the body's axis: it has fallen beyond 53 degrees
SPEED = 1.0  # m/s
NEAR = 0.1  # m/s and m


class Balancer(RobotEnv):
    """A robot on two wheels has to drive along the x axis at 1 m/s.

    State (17) and action (2) are those of MuJoCo: the pose of the body, the angles of the wheels, and their velocities.
    Observation (14): the way from the line, the heading in the world, and in the body's axes the vertical, the
    velocity, the angular velocity and the wheels' rates.  An interval of 20 ms is rewarded with 2 less what speed, way
    from the line, tilt, spin and effort cost; an episode ends with a fall.
    """

    model = read(Path(__file__).with_name("balancer.xml"))
    name = "balancer"
    frame_skip = 4
    episode_steps = 300
    observation_names = (
        *("way", "heading_x", "heading_y", "up_x", "up_y", "up_z"),
        *("velocity_x", "velocity_y", "velocity_z", "rate_x", "rate_y", "rate_z", "left_rate", "right_rate"),
    )
    start_box = Box(
        (0.0, -0.5, HEIGHT, 1.0, 0.0, -0.1, -0.3, 0.0, 0.0, *(0.0,) * 8),
        (0.0, 0.5, HEIGHT, 1.0, 0.0, 0.1, 0.3, 0.0, 0.0, *(0.0,) * 8),
    )
    state_box = Box(
        (
            0.0,
            -0.6,
            HEIGHT,
            0.9,
            -0.02,
            -0.2,
            -0.3,
            -60.0,
            -60.0,
            -0.5,
            -0.3,
            -0.2,
            -0.3,
            -2.0,
            -2.0,
            -4.0,
            -4.0,
        ),
        (7.0, 0.6, HEIGHT, 1.0, 0.02, 0.2, 0.3, 60.0, 60.0, 2.0, 0.3, 0.2, 0.3, 2.0, 2.0, 16.0, 16.0),
    )
    success_criterion = Success(
        words=f"does not fall, and in the last second its mean speed is within {NEAR} m/s of {SPEED} and it stays "
        f"within {NEAR} m of the line",
        share=MOST_STARTS,
        source="this example's choice",
    )

    def observe(self, x: States) -> Observations:
        """All but where the robot is along the line and how far the wheels have turned."""
        axes = rotation(x[..., 3:7])  # by rows; the body's axes in the world are its columns
        velocity = (x[..., 9:12].unsqueeze(-2) @ axes.unflatten(-1, (3, 3))).squeeze(-2)
        return torch.cat((x[..., 1:2], axes[..., 0:4:3], axes[..., 6:9], velocity, x[..., 12:]), -1)

    def cost(self, x: States, u: Actions, p: Params) -> Costs:
        """Errors of speed and place, tilt, spin and effort, less 2 for standing: a fall must not save anything."""
        off = (x[..., 9] - SPEED).square() + x[..., 1].square()
        tilt = 1.0 - rotation(x[..., 3:7])[..., 8]
        effort = 0.02 * x[..., 12:15].square().sum(-1) + 0.01 * u.square().sum(-1)
        return off + 2.0 * tilt + effort - 2.0

    def done(self, x: States) -> Bool[Tensor, " batch"]:
        """Fallen."""
        return rotation(x[..., 3:7])[..., 8] < UPRIGHT

    def success(self, states: EpisodeStates) -> Successes:
        """At speed and on the line at the end, without a fall before."""
        fallen = self.done(states.flatten(0, 1)).unflatten(0, states.shape[:2]).any(0)
        last = self.final_states(states, 1.0)
        speed = (last[-1, :, 0] - last[0, :, 0]) / ((len(last) - 1) * self.dt)
        return ~fallen & ((speed - SPEED).abs() < NEAR) & (last[..., 1].abs().amax(0) < NEAR)
