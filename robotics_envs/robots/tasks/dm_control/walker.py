"""``walker-stand``, ``walker-walk`` and ``walker-run`` of dm_control's suite."""

from __future__ import annotations

from typing import ClassVar

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
from robotics_envs.robots.tasks.dm_control.suite_task import SuiteTask, gaussian_above, linear_above
from robotics_envs.robots.tasks.models import dm_control_model

HEIGHT = 1.2  # m of the torso, from which it stands
UPRIGHT = 0.9  # cosine of the torso's lean, for success
LAST = 10.0  # s at the end of an episode, for success
_CHOICE = "this project's choice; dm_control's suite declares no success"


class WalkerStand(SuiteTask):
    """A planar walker of seven links has to stand up, and to walk or run where a task of it says so.

    State (18) and action (6) are those of its MuJoCo model, z before x, z up from the pose of the file; observation
    (24): the torso's height, cosine and sine of the turn of every link, velocities.  The reward of an interval of 25 ms
    is 3/4 for a height of at least 1.2 m and 1/4 for an upright torso, with less below; that, times
    ``(5 moving + 1) / 6`` where there is a speed to keep.
    """

    model = dm_control_model("walker.xml")
    name = "walker_stand"
    gym_id = "dm_control/walker-stand-v0"
    frame_skip = 10
    target: ClassVar[float] = 0.0
    """The speed in m/s from which the reward for moving is 1."""
    links: ClassVar[tuple[str, ...]] = tuple(body.name for body in model.bodies[1:])
    observation_names = (
        "height",
        *(f"{link}_{part}" for link in links for part in ("cos", "sin")),
        *(f"{joint.name}_rate" for joint in model.joints),
    )
    state_box = Box(
        (-0.5, -1.0, -3.2, *(-0.35, -2.6, -0.75) * 2, -2.0, -1.0, -3.0, *(-8.0,) * 6),
        (0.2, 1.0, 3.2, *(1.5, 0.0, 0.75) * 2, 2.0, 4.0, 3.0, *(8.0,) * 6),
    )
    success_criterion = Success(
        words=f"height above {HEIGHT} m and cosine of the lean above {UPRIGHT} throughout the last {LAST:g} s",
        share=MOST_STARTS,
        source=_CHOICE,
    )

    def reward(self, x: States, u: Actions) -> Tensor:
        """``(3 standing + upright) / 4``, times ``(5 moving + 1) / 6`` where there is a speed to keep."""
        bodies = Bodies(self.model, x)
        standing = gaussian_above(bodies.place("torso", 2), HEIGHT, margin=HEIGHT / 2)
        upright = (1.0 + bodies.direction("torso", 2, along=2)) / 2
        stand = (3.0 * standing + upright) / 4
        if not self.target:
            return stand
        moving = linear_above(bodies.speed_of_mass(0), self.target, self.target / 2, value_at_margin=0.5)
        return stand * (5.0 * moving + 1.0) / 6

    def observe(self, x: States) -> Observations:
        """``[height, cosine and sine of every link's turn, velocities]``."""
        bodies = Bodies(self.model, x)
        turns = [bodies.direction(link, axis, along=0) for link in self.links for axis in (0, 2)]
        seen = torch.stack((bodies.place("torso", 2), *turns), -1)
        return torch.cat((seen, x[..., self.model.positions :]), -1)

    def success(self, states: EpisodeStates) -> Successes:
        """Stands throughout the last 10 s, at a mean speed of at least two thirds of the task's."""
        last = self.final_states(states, LAST)
        bodies = Bodies(self.model, last)
        stands = (bodies.place("torso", 2) > HEIGHT) & (bodies.direction("torso", 2, along=2) > UPRIGHT)
        if not self.target:
            return stands.all(0)
        distance = last[-1, :, 1] - last[0, :, 1]
        return stands.all(0) & (distance >= self.target * 2 / 3 * self.dt * (len(last) - 1))


def _moving(target: float) -> Success:
    return Success(
        words=f"height above {HEIGHT} m, cosine of the lean above {UPRIGHT}, and a mean speed of at least "
        f"{target * 2 / 3:.2f} m/s, over the last {LAST:g} s",
        share=MOST_STARTS,
        source=_CHOICE,
    )


class WalkerWalk(WalkerStand):
    """The same, at 1 m/s."""

    name = "walker_walk"
    gym_id = "dm_control/walker-walk-v0"
    target = 1.0
    success_criterion = _moving(target)


class WalkerRun(WalkerStand):
    """The same, at 8 m/s."""

    name = "walker_run"
    gym_id = "dm_control/walker-run-v0"
    target = 8.0
    success_criterion = _moving(target)
