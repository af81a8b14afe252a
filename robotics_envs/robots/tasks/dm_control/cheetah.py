"""``cheetah-run`` of dm_control's suite."""

from __future__ import annotations

import torch
from torch import Tensor

from robotics_envs.base import (
    MOST_STARTS,
    Actions,
    Box,
    EpisodeStates,
    Observations,
    States,
    Success,
    Successes,
)
from robotics_envs.robots.bodies import Bodies
from robotics_envs.robots.tasks.dm_control.suite_task import SuiteTask, linear_above
from robotics_envs.robots.tasks.models import dm_control_model

SPEED = 10.0  # m/s, from which the reward is 1
FAST = 5.0  # m/s, for success
SETTLING = 200  # steps without control before an episode


class CheetahRun(SuiteTask):
    """A planar cheetah of seven links has to run at 10 m/s; six hinges with motors and springs.

    State (18) and action (6) are those of its MuJoCo model, with x forward and z up from the pose of the file;
    observation (17) without x.  The reward of an interval of 10 ms is a tenth of the forward speed of the centre of
    mass in m/s, within 0 and 1.
    """

    model = dm_control_model("cheetah.xml")
    name = "cheetah_run"
    gym_id = "dm_control/cheetah-run-v0"
    frame_skip = 1
    observation_names = (
        *(
            "rootz",
            "rooty",
            "bthigh",
            "bshin",
            "bfoot",
            "fthigh",
            "fshin",
            "ffoot",
            "rootx_rate",
            "rootz_rate",
        ),
        *("rooty_rate", "bthigh_rate", "bshin_rate", "bfoot_rate", "fthigh_rate", "fshin_rate", "ffoot_rate"),
    )
    state_box = Box(
        (-1.0, -0.3, -0.5, -0.5, -0.8, -1.0, -0.9, -1.0, -0.45, -1.0, -2.0, -4.0, *(-10.0,) * 6),
        (1.0, 0.3, 0.5, 1.0, 0.8, 0.8, 0.0, 0.8, 0.45, 8.0, 2.0, 4.0, *(10.0,) * 6),
    )
    success_criterion = Success(
        words=f"a mean speed of at least {FAST:g} m/s over the episode",
        share=MOST_STARTS,
        source="this project's choice, half of the speed from which dm_control's reward is 1",
    )

    def reward(self, x: States, u: Actions) -> Tensor:
        """The forward speed as a share of 10 m/s."""
        return linear_above(Bodies(self.model, x).speed_of_mass(0), SPEED, margin=SPEED, value_at_margin=0.0)

    def observe(self, x: States) -> Observations:
        """All but the distance run."""
        return x[..., 1:]

    def success(self, states: EpisodeStates) -> Successes:
        """A mean speed of at least 5 m/s over the episode."""
        distance = states[-1, :, 0] - states[0, :, 0]
        return (distance >= FAST * self.dt * (len(states) - 1)) & states.isfinite().all(-1).all(0)

    @torch.no_grad()
    def reset(self, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """Joints with a range anywhere in it, then let fall for 2 s without control."""
        return self.settled(super().reset(batch, generator, dtype))

    def settled(self, x: States) -> States:
        """The states after 200 steps without control from poses ``x``.

        dm_control's first step takes the accelerations of the pose of the file.
        """
        n, h = self.model.positions, self.model.timestep
        u, p = x.new_zeros(*x.shape[:-1], len(self.action_box)), self.params(x)
        file = torch.cat((x.new_tensor(self.model.reference), x.new_zeros(n)))
        velocities = self.substep(h, file.expand_as(x), u, p)[..., n:]
        x = torch.cat((x[..., :n] + h * velocities, velocities), -1)
        for _ in range(SETTLING - 1):
            x = self.substep(h, x, u, p)
        return x
