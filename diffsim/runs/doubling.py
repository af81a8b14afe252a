"""Whether a run that has come to its last update goes on to twice as many."""

from __future__ import annotations

import math
from collections.abc import Iterable

from diffsim.config import RunConfig
from robotics_envs.base import Env


def why_it_doubles(config: RunConfig, env: Env, returns: Iterable[float], successes: Iterable[float]) -> str:
    """Why training goes on; ``""`` if it does not.

    It goes on while the best policy's evaluation does not show that it solves the task
    (:meth:`robotics_envs.base.Success.is_shown_by`), because the policy was chosen by this evaluation.

    Args:
        config: of the run.
        env: its simulator.
        returns, successes: mean return and share of successes of each evaluation, NaN where there was none.
    """
    criterion, episodes = env.success_criterion, config.evaluation.episodes
    measured = [pair for pair in zip(returns, successes, strict=True) if not any(map(math.isnan, pair))]
    if not config.doublings or criterion is None or not measured:
        return ""
    share = max(measured)[1]
    if criterion.is_shown_by(round(share * episodes), episodes):
        return ""
    return (
        f"the best policy succeeds from {round(share * episodes)} of {episodes} held-out starts, too few to be sure of "
        f"{criterion.share:.1%}"
    )
