"""The frame of Gymnasium's robots that have to go forward."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from robotics_envs.base import Actions, Costs, EpisodeStates, Observations, Params, States, Successes
from robotics_envs.robots.env import RobotEnv


class Forward(RobotEnv):
    """A robot has to go forward (along x) as fast as it can, for 1000 intervals, as long as it is not ``done``.

    An interval costs ``effort |u|²`` less the mean forward speed in m/s less ``living``, which the interval that ends
    the episode does not get.  The observation is the state without its first ``unseen`` positions, with velocities
    clipped to ±``fastest_seen``.  An episode succeeds that lives to its end, at a mean speed of at least ``fast`` m/s.
    """

    episode_steps = 1000
    unseen: ClassVar[int] = 1
    fastest_seen: ClassVar[float] = math.inf
    effort: ClassVar[float]
    living: ClassVar[float] = 0.0
    fast: ClassVar[float]

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "model" in vars(cls):
            cls.observation_names = cls.state_names[cls.unseen :]

    def place(self, x: States) -> Tensor:
        """How far forward the robot is, in m."""
        return x[..., 0]

    def speed(self, x: States) -> Tensor:
        """How fast it goes forward, in m/s."""
        return x[..., self.model.positions]

    def cost_of_step(self, x: States, following: States, u: Actions, p: Params) -> Costs:
        """Minus Gymnasium's reward, with the mean speed of the interval."""
        return self._cost(following, u, (self.place(following) - self.place(x)) / self.dt)

    def cost(self, x: States, u: Actions, p: Params) -> Costs:
        """The same with the speed at this instant; ``step`` returns that of the interval."""
        return self._cost(x, u, self.speed(x))

    def _cost(self, reached: States, u: Actions, speed: Tensor) -> Costs:
        cost = self.effort * u.square().sum(-1) - speed
        return cost - self.living * (~self.done(reached)).to(cost.dtype) if self.living else cost

    def observe(self, x: States) -> Observations:
        """All but how far it is; clipping cuts the gradient of velocities beyond their bounds."""
        if self.fastest_seen == math.inf:
            return x[..., self.unseen :]
        n, most = self.model.positions, self.fastest_seen
        return torch.cat((x[..., self.unseen : n], x[..., n:].clamp(-most, most)), -1)

    def success(self, states: EpisodeStates) -> Successes:
        """Lives to the end of the episode, at a mean speed of at least ``fast``."""
        ended = self.done(states.flatten(0, 1)).unflatten(0, states.shape[:2])
        lived = ~ended.any(0) & states.isfinite().all(-1).all(0)
        distance = self.place(states[-1]) - self.place(states[0])
        return lived & (distance >= self.fast * self.dt * (len(states) - 1))
