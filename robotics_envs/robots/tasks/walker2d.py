"""Gymnasium's Walker2d-v5: walk forward without falling."""

from __future__ import annotations

from jaxtyping import Bool
from torch import Tensor

from robotics_envs.base import MOST_STARTS, Box, States, Success
from robotics_envs.robots.tasks.forward import Forward
from robotics_envs.robots.tasks.models import gymnasium_model

HEIGHTS, STEEPEST = (0.8, 2.0), 1.0  # m, rad: Gymnasium's healthy ranges


class Walker2d(Forward):
    """A planar walker of seven links has to walk forward as fast as it can.

    State (18) and action (6) are those of its MuJoCo model, with x forward and z up; observation (17) without x, with
    velocities clipped to ±10.  An interval of 8 ms costs ``0.001 |u|²`` less the mean forward speed in m/s less 1, as
    long as it lives: its height has to stay between 0.8 and 2 m and its pitch within 1 rad.
    """

    model = gymnasium_model("walker2d_v5.xml")
    name = "walker2d_v5"
    gym_id = "Walker2d-v5"
    frame_skip = 4
    effort, living = 1e-3, 1.0
    fastest_seen = 10.0
    fast = 2.0
    start_box = Box((-0.005, 1.245, *(-0.005,) * 16), (0.005, 1.255, *(0.005,) * 16))
    state_box = Box(
        (-1.0, 0.9, -0.6, *(-1.0, -1.0, -0.6) * 2, -0.5, -1.5, -3.0, *(-6.0,) * 6),
        (1.0, 1.5, 0.6, *(0.0, 0.0, 0.6) * 2, 4.0, 1.5, 3.0, *(6.0,) * 6),
    )
    success_criterion = Success(
        words=f"lives to the end of the episode, at a mean speed of at least {fast} m/s",
        share=MOST_STARTS,
        source="this project's choice, a return of about 3000; Gymnasium states no threshold for Walker2d-v5",
    )

    def done(self, x: States) -> Bool[Tensor, " batch"]:
        """Fallen, or jumped too high."""
        low, high = HEIGHTS
        return ~((x[..., 1] > low) & (x[..., 1] < high) & (x[..., 2].abs() < STEEPEST))
