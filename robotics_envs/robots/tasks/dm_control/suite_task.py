"""The frame of tasks of dm_control's suite, and the shapes of its rewards."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from robotics_envs.base import Actions, Box, Costs, Params, States
from robotics_envs.robots.env import RobotEnv
from robotics_envs.robots.model import Joint


class SuiteTask(RobotEnv):
    """A task of dm_control's suite: 1000 intervals, each of which costs minus the reward of the state that it ends in.

    Nothing but time ends an episode.  It starts at rest, joints with a range anywhere in it, other hinges at any angle.
    """

    episode_steps = 1000
    cost_of_reached_state = True

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "model" in vars(cls):
            sides = [_anywhere(joint, cls.model.reference[joint.position]) for joint in cls.model.joints]
            rest = (0.0,) * cls.model.velocities
            cls.start_box = Box((*(s[0] for s in sides), *rest), (*(s[1] for s in sides), *rest))

    def reward(self, x: States, u: Actions) -> Tensor:
        """dm_control's reward ``[B]`` of a state that was reached under ``u``, in 0..1."""
        raise NotImplementedError

    def cost(self, x: States, u: Actions, p: Params) -> Costs:
        """Minus the reward."""
        return -self.reward(x, u)


def _anywhere(joint: Joint, reference: float) -> tuple[float, float]:
    if joint.kind not in ("hinge", "slide"):
        raise NotImplementedError(f"{joint.name}: starts of {joint.kind} joints")
    if joint.limit is not None:
        return joint.limit.range
    return (-math.pi, math.pi) if joint.kind == "hinge" else (reference, reference)


def linear_above(x: Tensor, bound: float, margin: float, value_at_margin: float) -> Tensor:
    """1 from ``bound`` on, ``value_at_margin`` at ``margin`` below it, linear and not negative.

    That is dm_control's ``tolerance`` with ``sigmoid="linear"``.
    """
    return (1.0 - (bound - x) * ((1.0 - value_at_margin) / margin)).clamp(0.0, 1.0)


def gaussian_above(x: Tensor, bound: float, margin: float) -> Tensor:
    """1 from ``bound`` on, below it a bell that is 0.1 at ``margin``: dm_control's ``tolerance`` with its defaults."""
    return torch.exp(math.log(0.1) * ((bound - x) / margin).clamp_min(0.0).square())
