"""What an algorithm is."""

from __future__ import annotations

import abc
from typing import Any, ClassVar, NamedTuple

import torch

from diffsim.config import RunConfig
from diffsim.config import Settings as AnySettings
from diffsim.optimizers import make_optimizer
from diffsim.policy import Policy
from diffsim.rollouts import Rollout
from robotics_envs.base import Costs, Env, States


class Record(NamedTuple):
    """What one update did."""

    loss: float
    grad_norm: float
    env_steps: int
    """Simulator steps used, every rollout of every evaluation of the objective counted."""
    gradient_evaluations: int
    """Evaluations of the policy's objective with its gradient."""
    compile_seconds: float = 0.0
    """Of the update's time, what went into compiling rollouts; it is accounted for apart."""
    dropped: str = ""
    """Why the update left the parameters alone; empty if it did not."""


class Algorithm(abc.ABC):
    """Trains ``policy`` in ``env``; one update a call of ``step``.

    All random draws come from ``self.generator``.  ``state_dict`` holds everything that later updates
    depend on, so that saving and loading between any two updates changes no bit of what follows.
    """

    Settings: ClassVar[type[AnySettings]]

    def __init__(self, env: Env, policy: Policy, config: RunConfig, settings: AnySettings) -> None:
        self.env = env
        self.policy = policy
        self.config = config
        self.device: torch.device = policy.mean.device
        self.dtype: torch.dtype = policy.mean.dtype
        self.params = env.params(policy.mean)
        self.generator = torch.Generator(self.device).manual_seed(config.seed)
        self.rollout = Rollout(env, policy, expected_steps=env.episode_steps)
        """What simulates; an algorithm that simulates more than evaluations makes its own."""
        self.optimizer = make_optimizer(policy.parameters(), config.optimizer, config.seed)
        self.updates_done = 0

    def returns(self, x: States) -> Costs:
        """Returns ``[B]`` of whole episodes of the task from ``x [B, n]``, without exploration noise."""
        return self.rollout.returns(x, self.params)

    @property
    def remaining(self) -> float:
        """The share of the run that is still ahead, in (0, 1]."""
        return 1.0 - self.updates_done / self.config.updates

    @abc.abstractmethod
    def step(self) -> Record:
        """Train for one update."""

    @abc.abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on bit for bit: tensors, numbers, strings, None, dicts and lists."""

    @abc.abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where ``state_dict`` was taken."""
