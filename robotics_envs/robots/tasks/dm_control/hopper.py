"""``hopper-stand`` and ``hopper-hop`` of dm_control's suite."""

from __future__ import annotations

import numpy as np
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
from robotics_envs.drawing import Floats
from robotics_envs.robots.bodies import Bodies
from robotics_envs.robots.tasks.dm_control.suite_task import SuiteTask, linear_above
from robotics_envs.robots.tasks.models import dm_control_model

HEIGHTS = (0.6, 2.0)  # m of the torso above the foot, within which it stands
SPEED = 2.0  # m/s, from which the reward for hopping is 1
LAST = 10.0  # s at the end of an episode, for success
FAST = 1.0  # m/s, for success
_CHOICE = "this project's choice; dm_control's suite declares no success"


class HopperStand(SuiteTask):
    """A planar leg of five links has to stand, with little effort.

    State (14) and action (4) are those of its MuJoCo model, with x forward and z up from the pose of the file;
    observation (13) without x.  dm_control observes two touch sensors of the foot too, which tell of the last step's
    forces and are no function of the state: a policy from here does without.

    The reward of an interval of 20 ms is 0 unless the torso is 0.6 to 2 m above the foot, a jump that no gradient
    knows of.
    """

    model = dm_control_model("hopper.xml")
    name = "hopper_stand"
    gym_id = "dm_control/hopper-stand-v0"
    frame_skip = 4
    observation_names = (
        *(joint.name for joint in model.joints[1:]),
        *(f"{joint.name}_rate" for joint in model.joints),
    )
    state_box = Box(
        (-1.0, -0.4, -3.2, -0.5, -3.0, 0.1, -0.75, -1.0, -2.0, -4.0, *(-6.0,) * 4),
        (1.0, 0.4, 3.2, 0.5, 0.2, 2.4, 0.75, 3.0, 2.0, 4.0, *(6.0,) * 4),
    )
    success_criterion = Success(
        words=f"torso at least {HEIGHTS[0]} m above the foot throughout the last {LAST:g} s",
        share=MOST_STARTS,
        source=_CHOICE,
    )

    def _standing(self, bodies: Bodies) -> Tensor:
        height = bodies.centre("torso", 2) - bodies.centre("foot", 2)
        return (height >= HEIGHTS[0]) & (height <= HEIGHTS[1])

    def reward(self, x: States, u: Actions) -> Tensor:
        """``(4 + mean of 1 - u²) / 5`` where it stands."""
        standing = self._standing(Bodies(self.model, x)).to(x.dtype)
        return standing * ((1.0 - u.square()).mean(-1) + 4.0) / 5.0

    def observe(self, x: States) -> Observations:
        """All but the distance."""
        return x[..., 1:]

    def observation_from_twin(self, observation: Floats) -> Floats:
        """dm_control's observation, in the order of the names of its parts, without the two touch sensors."""
        return np.concatenate((observation[..., :6], observation[..., 8:]), -1)

    def success(self, states: EpisodeStates) -> Successes:
        """Stands throughout the last 10 s."""
        return self._standing(Bodies(self.model, self.final_states(states, LAST))).all(0)


class HopperHop(HopperStand):
    """The same leg has to hop forward; effort does not count.

    The reward is that of a centre of mass at 2 m/s, less below, 0 unless the torso is 0.6 to 2 m above the foot.
    """

    name = "hopper_hop"
    gym_id = "dm_control/hopper-hop-v0"
    success_criterion = Success(
        words=f"torso at least {HEIGHTS[0]} m above the foot at the end, at a mean speed of at least {FAST:g} m/s "
        f"over the last {LAST:g} s",
        share=MOST_STARTS,
        source=_CHOICE,
    )

    def reward(self, x: States, u: Actions) -> Tensor:
        """The forward speed as far as 2 m/s, where it stands."""
        bodies = Bodies(self.model, x)
        hopping = linear_above(bodies.speed_of_mass(0), SPEED, margin=SPEED / 2, value_at_margin=0.5)
        return self._standing(bodies).to(x.dtype) * hopping

    def success(self, states: EpisodeStates) -> Successes:
        """Stands at the end, at a mean speed of at least 1 m/s over the last 10 s."""
        last = self.final_states(states, LAST)
        distance = last[-1, :, 0] - last[0, :, 0]
        return self._standing(Bodies(self.model, last[-1])) & (distance >= FAST * self.dt * (len(last) - 1))
