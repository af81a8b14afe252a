"""Statistics of the scores of few runs on several tasks, after Agarwal et al., NeurIPS 2021, arXiv 2108.13264.

Scores of one contender are a sequence with one array ``[runs]`` a task.  Statistics that pool tasks expect normalised
scores (:mod:`diffsim.comparison.scores`), and weigh a task by its number of runs.  The definitions are those of
rliable 1.2, whose numbers are the fixtures of the tests; its bootstrap is not used, since it cannot be seeded.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffsim.errors import ConfigError

Floats = NDArray[np.float64]
Scores = Sequence[ArrayLike]
"""One array ``[runs]`` a task."""

CONFIDENCE, RESAMPLES = 0.95, 2000
_MANY_RUNS = 100
"""Of a task; of more, fewer bootstrap samples are drawn."""
_FEW_PAIRS = 2500
"""Up to so many it is faster to compare each than to count."""


# -- statistics of one contender: functions of samples and an axis, as scipy.stats.bootstrap calls them ---------------


def mean(*samples: ArrayLike, axis: int = -1) -> Any:
    """Mean of all runs of all tasks."""
    return np.concatenate([np.asarray(s, dtype=np.float64) for s in samples], axis=axis).mean(axis=axis)


def interquartile_mean(*samples: ArrayLike, axis: int = -1) -> Any:
    """Mean of all runs of all tasks without the lowest and the highest quarter.

    ``int(n / 4)`` of the n runs are left out at each end, as in rliable and :func:`scipy.stats.trim_mean`.  Where n
    is not a multiple of 4 these are fewer than a quarter: 2 of 10.
    """
    from scipy import stats

    pooled = np.concatenate([np.asarray(s, dtype=np.float64) for s in samples], axis=axis)
    return stats.trim_mean(pooled, 0.25, axis=axis)


def optimality_gap(*samples: ArrayLike, axis: int = -1, gamma: float = 1.0) -> Any:
    """By how much runs fall short of the score ``gamma`` on average; what exceeds it does not count."""
    pooled = np.concatenate([np.asarray(s, dtype=np.float64) for s in samples], axis=axis)
    return gamma - np.minimum(pooled, gamma).mean(axis=axis)


def performance_profile(scores: Scores, taus: ArrayLike) -> Floats:
    """Share of runs whose score is greater than each tau, mean over tasks: ``[taus] -> [taus]``."""
    at = np.asarray(taus, dtype=np.float64)
    shares = [(np.asarray(s, dtype=np.float64)[:, None] > at).mean(axis=0) for s in _tasks(scores)]
    return np.asarray(np.mean(shares, axis=0), dtype=np.float64)


# -- two contenders ---------------------------------------------------------------------------------------------------


def superiority(x: ArrayLike, y: ArrayLike, axis: int = -1) -> Any:
    """P(X > Y) + P(X = Y) / 2 of one task: the Mann-Whitney U of x over the number of pairs."""
    a, b = (np.moveaxis(np.asarray(values), axis, -1) for values in (x, y))
    runs, others = a.shape[-1], b.shape[-1]
    if runs * others <= _FEW_PAIRS:
        first, second = a[..., :, None], b[..., None, :]
        # Counts of pairs are whole numbers, and exact.
        doubled = 2 * (first > second).sum(axis=(-2, -1)) + (first == second).sum(axis=(-2, -1))
    else:
        doubled = _doubled_by_counts(a, b)
    return doubled / (2 * runs * others)


def _doubled_by_counts(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.int64]:
    """Twice the number of pairs with a > b, plus that with a = b, along the last axis: ``[..., n], [..., m] -> [...]``.

    Without comparing all pairs: how many of b are less than each value is counted once.
    """
    if a.dtype.kind != "i" or b.dtype.kind != "i":
        a, b = _places(a, b)
    alike = np.broadcast_shapes(a.shape[:-1], b.shape[:-1])
    flat_a, flat_b = (np.broadcast_to(v, (*alike, v.shape[-1])).reshape(-1, v.shape[-1]) for v in (a, b))
    values = 1 + max(int(a.max()), int(b.max()))
    offsets = values * np.arange(len(flat_b))[:, None]
    counts = np.bincount((flat_b + offsets).ravel(), minlength=values * len(flat_b)).reshape(-1, values)
    below = 2 * counts.cumsum(axis=1) - counts
    return np.asarray(np.take_along_axis(below, flat_a, axis=1).sum(axis=1).reshape(alike))


def _places(x: NDArray[Any], y: NDArray[Any]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The place of each value among the different values of both, from 0: what :func:`superiority` depends on."""
    places = np.unique(np.concatenate([x.ravel(), y.ravel()]), return_inverse=True)[1].reshape(-1)
    return places[: x.size].reshape(x.shape), places[x.size :].reshape(y.shape)


def mean_superiority(*samples: ArrayLike, axis: int = -1) -> Any:
    """:func:`probability_of_improvement` as a function of the tasks of x followed by those of y."""
    half = len(samples) // 2
    pairs = zip(samples[:half], samples[half:], strict=True)
    return np.mean([superiority(a, b, axis=axis) for a, b in pairs], axis=0)


def probability_of_improvement(x: Scores, y: Scores) -> float:
    """The mean over tasks of :func:`superiority`: the probability that a run of x scores higher than one of y.

    Raises:
        ConfigError: different numbers of tasks, or a task without runs.
    """
    first, second = _both(x, y)
    return float(mean_superiority(*first, *second))


# -- intervals --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """A value and its interval; NaN ends where there are too few runs for one."""

    value: float
    low: float
    high: float

    def above(self, value: float) -> bool:
        """Whether the whole interval is greater than ``value``."""
        return self.low > value

    def below(self, value: float) -> bool:
        """Whether the whole interval is less than ``value``."""
        return self.high < value


UNKNOWN = Estimate(math.nan, math.nan, math.nan)


def estimate(
    statistic: Callable[..., Any],
    scores: Scores,
    seed: int = 0,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    widen: bool = True,
) -> Estimate:
    """A statistic of one contender with its stratified-bootstrap interval.

    Runs are resampled with replacement within each task, by :func:`scipy.stats.bootstrap`, whose percentile interval
    this is with ``widen=False``.  A bootstrap distribution of N runs is too narrow by √((N−1)/N) (Hesterberg, The
    American Statistician 69, 2015, §2.4); ``widen`` moves both ends away from the value by the factor √(N/(N−1)), N
    the smallest number of runs of a task.  One run a task has no interval.

    Args:
        statistic: such as :func:`interquartile_mean`.
        scores: one array ``[runs]`` a task.
        seed: of the resampling; the same seed gives the same bits.
        confidence: of the interval.
        resamples: number of bootstrap samples; fewer are drawn of many runs, see :func:`samples_of`.
        widen: whether to correct for the number of runs.
    """
    samples = _tasks(scores)
    low, high = bootstrap_ends(statistic, samples, seed, confidence, resamples, widen)
    return Estimate(float(statistic(*samples)), float(low), float(high))


def improvement(
    x: Scores,
    y: Scores,
    seed: int = 0,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    widen: bool = True,
) -> Estimate:
    """:func:`probability_of_improvement` with an interval within [0, 1].

    The stratified bootstrap, as in :func:`estimate`.  Where all runs of one contender beat all of the other its
    interval is a single point, however few they are.  So each end is the wider one of the bootstrap's and of
    Newcombe's score interval for P (:func:`newcombe`), combined over tasks (:func:`newcombe_mean`).  With
    ``widen=False`` it is the bootstrap's alone.
    """
    first, second = _both(x, y)
    value = float(mean_superiority(*first, *second))
    # Sorted once here, and not in every bootstrap sample.
    places = [_places(a, b) for a, b in zip(first, second, strict=True)]
    samples = [*(a for a, _ in places), *(b for _, b in places)]
    low, high = map(float, bootstrap_ends(mean_superiority, samples, seed, confidence, resamples, widen))
    if widen and not math.isnan(low):
        least, most = newcombe_mean(first, second, confidence)
        low, high = max(0.0, min(low, least)), min(1.0, max(high, most))
    return Estimate(value, low, high)


@functools.lru_cache(maxsize=4096)
def newcombe(theta: float, m: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Score interval of P(X > Y) from ``theta``, estimated from m and n runs.

    Newcombe, Statistics in Medicine 25, 2006, 559 (part 2), method 5: the values of P at which theta is just within
    the normal quantile of the standard error that P would have for exponential distributions, with (m + n) / 2 in
    place of both m and n in its finite-sample terms.  It is no single point at theta = 0 and 1.
    """
    from scipy import optimize, stats

    z, average = stats.norm.ppf((1 + confidence) / 2), (m + n) / 2 - 1

    def excess(p: float) -> float:
        variance = p * (1 - p) * (1 + average * ((1 - p) / (2 - p) + p / (1 + p))) / (m * n)
        return float((theta - p) ** 2 - z**2 * variance)

    # At theta = 0 and 1 that value is itself a root, and not the one that is looked for.
    inside = min(max(theta, 1e-9), 1 - 1e-9)
    low = 0.0 if theta <= 0 else optimize.brentq(excess, 0.0, inside)
    high = 1.0 if theta >= 1 else optimize.brentq(excess, inside, 1.0)
    return float(low), float(high)


def newcombe_mean(x: Scores, y: Scores, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Interval of the mean over tasks of P(X > Y): distances of the ends add in squares.

    Zou and Donner, Statistics in Medicine 27, 2008, 1693 (MOVER).
    """
    first, second = _both(x, y)
    thetas = np.array([superiority(a, b) for a, b in zip(first, second, strict=True)])
    ends = [newcombe(t, len(a), len(b), confidence) for t, a, b in zip(thetas, first, second, strict=True)]
    low, high = np.transpose(ends)
    middle = thetas.mean()
    return (
        float(middle - np.sqrt(((thetas - low) ** 2).sum()) / len(thetas)),
        float(middle + np.sqrt(((high - thetas) ** 2).sum()) / len(thetas)),
    )


def samples_of(runs: int, resamples: int) -> int:
    """How many bootstrap samples of ``runs`` runs of a task are drawn where ``resamples`` are asked for.

    As many up to 100 runs.  Of more, whose intervals are narrow, as many as make the same number of draws, and a fifth
    at least: an end found from 400 samples has a standard error of 3% of the interval's width (normal, 95%).
    """
    return max(resamples // 5, min(resamples, resamples * _MANY_RUNS // runs))


def bootstrap_ends(
    statistic: Callable[..., Any],
    samples: Sequence[NDArray[Any]],
    seed: int = 0,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    widen: bool = True,
) -> tuple[Any, Any]:
    """The ends of the interval that :func:`estimate` describes, for samples ``[..., runs]``: ``[...]`` each.

    Leading axes are experiments, which are resampled alike.  NaN where a task has one run.
    """
    from scipy import stats

    runs = min(s.shape[-1] for s in samples)
    if runs < 2:
        return math.nan, math.nan
    ends = stats.bootstrap(
        tuple(samples),
        statistic,
        axis=-1,
        paired=False,
        vectorized=True,
        method="percentile",
        n_resamples=samples_of(max(s.shape[-1] for s in samples), resamples),
        confidence_level=confidence,
        # SciPy before 1.15 knows this name only, and later versions take it too.
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    if not widen:
        return ends.low, ends.high
    return widened(ends.low, statistic, samples), widened(ends.high, statistic, samples)


def widened(end: Any, statistic: Callable[..., Any], samples: Sequence[NDArray[Any]]) -> Any:
    """An end of an interval moved away from the value by √(N/(N−1)), N the smallest number of runs of a task."""
    runs = min(s.shape[-1] for s in samples)
    value = statistic(*samples, axis=-1)
    return value + math.sqrt(runs / (runs - 1)) * (end - value)


# -- what few runs can say --------------------------------------------------------------------------------------------


def tolerance_share(runs: int, confidence: float = CONFIDENCE) -> float:
    """The share of all runs that lies between the lowest and the highest of ``runs``, with ``confidence``.

    A distribution-free tolerance interval (Wilks, Annals of Mathematical Statistics 12, 1941, 91): the share s with
    1 − N s^(N−1) + (N−1) s^N = confidence.
    """
    from scipy import optimize

    if runs < 2:
        return 0.0
    return float(
        optimize.brentq(lambda s: 1 - runs * s ** (runs - 1) + (runs - 1) * s**runs - confidence, 0.0, 1.0)
    )


def measured_coverage() -> dict[str, Any]:
    """What ``benchmarks/interval_coverage.py`` measured: how often intervals contain the true value."""
    text = resources.files("diffsim.comparison").joinpath("interval_coverage.json").read_text("utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def _tasks(scores: Scores) -> list[Floats]:
    arrays = [np.asarray(s, dtype=np.float64) for s in scores]
    if not arrays or any(a.ndim != 1 or not len(a) for a in arrays):
        raise ConfigError(
            f"scores must be one array [runs] a task, with runs; got shapes {[a.shape for a in arrays]}"
        )
    if not all(np.isfinite(a).all() for a in arrays):
        raise ConfigError("scores must be finite")
    return arrays


def _both(x: Scores, y: Scores) -> tuple[list[Floats], list[Floats]]:
    first, second = _tasks(x), _tasks(y)
    if len(first) != len(second):
        raise ConfigError(f"two contenders must share their tasks, got {len(first)} and {len(second)}")
    return first, second
