"""Backpropagation through whole episodes, without a critic: the baseline.

The analytic policy gradient over the full horizon (backpropagation through time; Werbos, "Backpropagation through time:
what it does and how to do it", Proceedings of the IEEE, 1990).
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from diffsim.algorithms.base import Algorithm, Record
from diffsim.algorithms.policy_objective import PolicyObjective
from diffsim.config import RunConfig
from diffsim.optimizers.base import Optimizer
from diffsim.policy import Policy
from diffsim.rollouts import Rollout, Trajectory
from diffsim.settings import Settings
from robotics_envs.base import Env, States


class FullHorizonSettings(Settings):
    batch: int = Field(default=256, ge=1)
    """Rollouts per update."""
    horizon: int | None = Field(default=None, ge=1)
    """Control intervals per rollout; an episode of the task if not given."""


class EpisodeObjective(PolicyObjective):
    """The mean cost per control interval."""

    def terms(self, trajectory: Trajectory) -> Tensor:
        return trajectory.costs / self.steps


class FullHorizon(Algorithm):
    """Minimise the mean cost per step of rollouts from the task's initial states.

    There is no noise, no critic and no truncation of the gradient: this is the baseline that other algorithms are
    compared with.  With ``optimizer.name=lbfgs`` it is quasi-Newton policy search on whole trajectories.
    """

    Settings = FullHorizonSettings
    divides_batches = True
    settings: FullHorizonSettings

    def __init__(
        self,
        env: Env,
        policy: Policy,
        config: RunConfig,
        settings: FullHorizonSettings,
        optimizer: Optimizer | None = None,
    ) -> None:
        super().__init__(env, policy, config, settings, optimizer)
        self.settings = settings
        self.horizon = settings.horizon or env.episode_steps
        self.rollout = Rollout(
            env,
            policy,
            backend=config.backend,
            threads=self._threads,
            expected_steps=config.updates * self.horizon * self.optimizer.calls_per_step,
        )
        self.objective = EpisodeObjective(self.rollout, self.horizon, self.params)
        self.objective.shards = self.shards
        self._x: States | None = None

    def step(self) -> Record:
        """Draw as many new initial states as the optimizer asks for and take one optimizer step."""
        compiled = self.rollout.compile_seconds
        self._x = x = self._starts()
        self.objective.params = self.training_params
        self.objective.begin(x)
        report = self.optimizer.step(self.objective, self.remaining)
        self.updates_done += 1
        return Record(
            report.loss,
            report.grad_norm,
            env_steps=report.evaluations * len(x) * self.horizon,
            gradient_evaluations=report.gradients,
            compile_seconds=self.rollout.compile_seconds - compiled,
            dropped="" if report.finite else "loss or gradient not finite",
        )

    def _starts(self) -> States:
        count, kept = self.optimizer.scenarios(self.settings.batch)
        fresh = [self.env.reset(count - kept, self.generator, self.dtype)] if count > kept else []
        return torch.cat([*([] if self._x is None or not kept else [self._x[-kept:]]), *fresh])

    def state_dict(self) -> dict[str, Any]:
        return {
            "updates_done": self.updates_done,
            "policy": self.policy.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "x": self._x,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates_done = state["updates_done"]
        self.policy.load_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self._x = None if state["x"] is None else state["x"].to(self.device)
