"""How long a run is: whether it goes on after the last of its updates, and to how many.

Where nothing limits it, a run goes on while its best policy does not succeed as often as the task asks for.  A run with
a limit of time or of environment steps uses the limit, as other methods in a comparison do: it goes on whatever the
policy does, and its last part ends with the limit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from diffsim.config import UNTIL_STOP, RunConfig
from robotics_envs.base import Env

LEAST = 1.1
"""A run is not made longer by less than a tenth: the schedules of so short a part end at once."""


class Continuation(NamedTuple):
    """What a run that has come to the last of its updates goes on with."""

    config: RunConfig
    why: str


def continuation(
    config: RunConfig, env: Env, returns: Iterable[float], successes: Iterable[float], used: float
) -> Continuation | None:
    """How a run goes on that has come to the last of its updates; None if it does not.

    With the number ``doublings`` it goes on to twice its updates while the best policy's evaluation does not show that
    it solves the task (:meth:`robotics_envs.base.Success.is_shown_by`), because the policy was chosen by this
    evaluation.  With ``"stop"`` it goes on to twice its updates until a quarter of the limit is used, and then to as
    many as the limit has room for at the same rate.

    Args:
        config: of the run.
        env: its simulator.
        returns, successes: mean return and share of successes of each evaluation, NaN where there was none.
        used: share of the limit that is used, see :func:`share_used`.
    """
    if config.doublings == UNTIL_STOP:
        updates = 2 * config.updates if used < 0.25 else math.floor(config.updates / used)
        if updates < LEAST * config.updates:
            return None
        changes: dict[str, int] = {"updates": updates}
        return Continuation(config.model_copy(update=changes), f"{used:.0%} of the limit of [stop] is used")
    assert isinstance(config.doublings, int)
    why = _not_solved(config, env, returns, successes) if config.doublings else ""
    if not why:
        return None
    changes = {"updates": 2 * config.updates, "doublings": config.doublings - 1}
    return Continuation(config.model_copy(update=changes), why)


def share_used(config: RunConfig, row: Mapping[str, float]) -> float:
    """The largest share of a limit of ``[stop]`` that is used after the ``row`` of the history; 1 without limits."""
    limits = config.stop.limits
    return max((row[name] / limit for name, limit in limits.items()), default=1.0)


def _not_solved(config: RunConfig, env: Env, returns: Iterable[float], successes: Iterable[float]) -> str:
    criterion, episodes = env.success_criterion, config.evaluation.episodes
    measured = [pair for pair in zip(returns, successes, strict=True) if not any(map(math.isnan, pair))]
    if criterion is None or not measured:
        return ""
    count = round(max(measured)[1] * episodes)
    if criterion.is_shown_by(count, episodes):
        return ""
    return (
        f"the best policy succeeds from {count} of {episodes} held-out starts, too few to be sure of "
        f"{criterion.share:.1%}"
    )
