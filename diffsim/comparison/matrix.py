"""Many settings on many tasks: ranks, and how well a setting chosen on other tasks does on a new one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffsim.errors import ConfigError

Floats = NDArray[np.float64]

CHOICES = ("score", "rank")


def ranks(scores: ArrayLike) -> Floats:
    """Ranks of settings on each task, 1 the best, equals sharing their mean rank: ``[settings, tasks]``.

    A missing score, NaN, has no rank, and the others are ranked without it.
    """
    from scipy import stats

    table = np.asarray(scores, dtype=np.float64)
    return np.asarray(stats.rankdata(-table, axis=0, nan_policy="omit"), dtype=np.float64)


@dataclass(frozen=True)
class Transfer:
    """What choosing on all tasks but one costs on that one."""

    chosen: int
    """The setting that is best on the other tasks."""
    best: int
    """The setting that is best on this task."""
    regret: float
    """Score of the best minus score of the chosen; not negative."""


def transfer(scores: ArrayLike, by: str = "score") -> list[Transfer]:
    """For each task, the setting chosen without it and the regret of using that one there.

    The best setting of a task is found from the same runs that it is judged by, so that regrets are a little too
    large where runs are few.

    Args:
        scores: normalised, ``[settings, tasks]``, at least two tasks, none missing.
        by: choose by the largest mean ``score`` on the other tasks or by the smallest mean ``rank``; equals go to the
            first setting.

    Raises:
        ConfigError: fewer than two tasks, a missing score, or an unknown way to choose.
    """
    table = np.asarray(scores, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] < 2 or not table.shape[0] or not np.isfinite(table).all():
        raise ConfigError(f"transfer needs finite scores [settings, at least 2 tasks], got {table.tolist()}")
    if by not in CHOICES:
        raise ConfigError(f"by = {by!r}; must be one of {', '.join(CHOICES)}")
    merit = table if by == "score" else -ranks(table)
    found = []
    for task in range(table.shape[1]):
        others = np.delete(merit, task, axis=1).mean(axis=1)
        chosen, best = int(others.argmax()), int(table[:, task].argmax())
        found.append(Transfer(chosen, best, float(table[best, task] - table[chosen, task])))
    return found


def regret_of(scores: ArrayLike, setting: int) -> Floats:
    """By how much each task's best score exceeds that of one setting: ``[tasks]``."""
    table = np.asarray(scores, dtype=np.float64)
    return np.asarray(np.nanmax(table, axis=0) - table[setting], dtype=np.float64)


def complete(scores: ArrayLike, names: Sequence[str]) -> tuple[Floats, list[str]]:
    """The settings that have a score on every task."""
    table = np.asarray(scores, dtype=np.float64).reshape(len(names), -1)
    whole = [row for row in range(len(names)) if np.isfinite(table[row]).all()]
    return table[whole], [names[row] for row in whole]
