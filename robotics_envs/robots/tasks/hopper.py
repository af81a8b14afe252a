"""Gymnasium's Hopper-v5: hop forward without falling."""

from __future__ import annotations

from jaxtyping import Bool
from torch import Tensor

from robotics_envs.base import MOST_STARTS, Box, States, Success
from robotics_envs.robots.tasks.forward import Forward
from robotics_envs.robots.tasks.models import gymnasium_model

LOWEST, STEEPEST, WILDEST = 0.7, 0.2, 100.0  # m, rad, and any unit: Gymnasium's healthy ranges


class Hopper(Forward):
    """A planar leg of four links has to hop forward as fast as it can.

    State (12) and action (3) are those of its MuJoCo model, with x forward and z up; observation (11) without x, with
    velocities clipped to ±10.  An interval of 8 ms costs ``0.001 |u|²`` less the mean forward speed in m/s less 1, as
    long as it lives: it falls below a height of 0.7 m or beyond a pitch of 0.2 rad.
    """

    model = gymnasium_model("hopper.xml")
    name = "hopper_v5"
    gym_id = "Hopper-v5"
    frame_skip = 4
    effort, living = 1e-3, 1.0
    fastest_seen = 10.0
    fast = 2.8
    start_box = Box((-0.005, 1.245, *(-0.005,) * 10), (0.005, 1.255, *(0.005,) * 10))
    state_box = Box(
        (-1.0, 0.9, -0.15, -1.0, -1.0, -0.6, -0.5, -1.5, -2.0, -5.0, -5.0, -5.0),
        (1.0, 1.5, 0.15, 0.0, 0.0, 0.6, 3.0, 1.5, 2.0, 5.0, 5.0, 5.0),
    )
    success_criterion = Success(
        words=f"lives to the end of the episode, at a mean speed of at least {fast} m/s",
        share=MOST_STARTS,
        source="Gymnasium's reward threshold of Hopper-v5, 3800 in 1000 intervals, of which it gets 1 each for living",
    )

    def done(self, x: States) -> Bool[Tensor, " batch"]:
        """Fallen, or out of all bounds."""
        standing = (x[..., 1] > LOWEST) & (x[..., 2].abs() < STEEPEST)
        return ~(standing & (x[..., 2:].abs().amax(-1) < WILDEST))
