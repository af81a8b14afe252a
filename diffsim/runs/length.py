"""How long a run is: whether it goes on after the last of its updates, and to how many, or ends with fewer.

Where nothing limits it, a run goes on while its best policy does not succeed as often as the task asks for.  A run with
a limit of time or of environment steps uses the limit, as other methods in a comparison do: it goes on whatever the
policy does, and its last part ends with the limit.  Where the limit has no room for all its updates, it takes fewer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from diffsim.config import UNTIL_STOP, RunConfig
from robotics_envs.base import Env

LEAST = 1.1
"""A run is not made longer by less than a tenth: the schedules of so short a part end at once."""


FIRST_LOOK = 16
"""After so many updates, and twice, four times, ... as many, a run looks whether the rest fits into its limit."""


class Continuation(NamedTuple):
    """What a run goes on with."""

    config: RunConfig
    why: str


def continuation(
    config: RunConfig, env: Env, done: int, returns: Iterable[float], successes: Iterable[float], used: float
) -> Continuation | None:
    """With how many updates a run goes on after ``done`` of them; None if nothing changes.

    With the number ``doublings`` it goes on to twice its updates while the best policy's evaluation does not show that
    it solves the task (:meth:`robotics_envs.base.Success.is_shown_by`), because the policy was chosen by this
    evaluation.  With ``"stop"`` it goes on to twice its updates until a quarter of the limit is used, and then to as
    many as the limit has room for at the same rate.  Before that, it goes on with fewer if there is no room for all:
    learning rates, discount and windows come to their ends with the last update.

    Args:
        config: of the run.
        env: its simulator.
        done: number of updates so far.
        returns, successes: mean return and share of successes of each evaluation, NaN where there was none.
        used: share of the limit that is used, see :func:`share_used`.
    """
    if config.doublings == UNTIL_STOP:
        return _within_limit(config, done, used)
    assert isinstance(config.doublings, int)
    if done < config.updates or not config.doublings:
        return None
    why = _not_solved(config, env, returns, successes)
    if not why:
        return None
    return _with(2 * config.updates, why, config, doublings=config.doublings - 1)


def _within_limit(config: RunConfig, done: int, used: float) -> Continuation | None:
    room = math.floor(done / used) if used else math.inf
    why = f"{used:.0%} of the limit of [stop] is used"
    if done < config.updates:
        looks = done >= FIRST_LOOK and done & (done - 1) == 0
        if not looks or not done < room < config.updates / LEAST:
            return None
        return _with(int(room), f"{why}, which has no room for {config.updates:,} updates", config)
    updates = 2 * config.updates if used < 0.25 else int(room)
    return None if updates < LEAST * config.updates else _with(updates, why, config)


def _with(updates: int, why: str, config: RunConfig, **changes: int) -> Continuation:
    return Continuation(config.model_copy(update={"updates": updates, **changes}), why)


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
