"""Evaluations of the policy while it is trained, by which the one that is kept is chosen."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from diffsim.algorithms.base import Algorithm
from diffsim.config import RunConfig
from diffsim.errors import EvaluationError
from diffsim.policy import evaluating
from diffsim.runs.evaluation import successes_of
from robotics_envs.base import EpisodeStates

HELD_OUT = 2**31
"""Added to the run's seed for the starts of evaluations, which training does not draw."""


class Measured(NamedTuple):
    """One evaluation."""

    mean_return: float
    success: float
    """Share of the episodes that succeed, NaN if it cannot be told."""
    env_steps: int
    """Environment steps that it took."""
    is_best: bool
    """Whether the return is higher than that of every evaluation before."""


class Validation:
    """Whole episodes of the policy from fixed starts: two evaluations differ by the policy alone.

    Args:
        algorithm: what trains the policy.
        config: of the run; of it only the seed and the number of episodes are used.
        say: is told why successes cannot be counted, once.

    Attributes:
        best: the highest return so far; a run that goes on sets it.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        config: RunConfig,
        say: Callable[[str], object] = lambda line: None,
    ) -> None:
        self.algorithm, self.best = algorithm, -math.inf
        self.seed, self.episodes = config.seed + HELD_OUT, config.evaluation.episodes
        self._say, self._success_failed = say, False

    def __call__(self) -> Measured:
        """Evaluate the present policy."""
        algorithm = self.algorithm
        generator = torch.Generator().manual_seed(self.seed)
        x = algorithm.env.reset(self.episodes, generator, algorithm.dtype).to(algorithm.device)
        with evaluating(algorithm.policy):
            returns, states = algorithm.episodes(x)
        mean = float(returns.mean())
        is_best = mean > self.best
        if is_best:
            self.best = mean
        return Measured(mean, self._success(states), self.episodes * algorithm.env.episode_steps, is_best)

    def _success(self, states: EpisodeStates) -> float:
        env = self.algorithm.env
        if env.success_criterion is None or self._success_failed:
            return math.nan
        try:
            return float(successes_of(env, states).double().mean())
        except EvaluationError as error:
            self._success_failed = True  # it would be said again at every evaluation
            self._say(f"successes are not counted: {error}")
            return math.nan
