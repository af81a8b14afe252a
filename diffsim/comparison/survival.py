"""Times to a threshold that not every run reaches: Kaplan and Meier, JASA 53, 1958, 457.

A run that has not reached the threshold when it ends is right-censored there: all that is known is that it takes
longer.  Amounts other than times, such as environment steps, are treated alike.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffsim.comparison.statistics import CONFIDENCE, RESAMPLES, UNKNOWN, Estimate, samples_of
from diffsim.errors import ConfigError

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Times:
    """Of each run the time at which it reached the threshold, or to which it was watched without reaching it."""

    times: Floats
    reached: NDArray[np.bool_]

    def __post_init__(self) -> None:
        times = np.asarray(self.times, dtype=np.float64)
        reached = np.asarray(self.reached, dtype=bool)
        if (
            times.ndim != 1
            or times.shape != reached.shape
            or not np.isfinite(times).all()
            or (times < 0).any()
        ):
            raise ConfigError(f"times must be finite and not negative, one a run; got {times}, {reached}")
        object.__setattr__(self, "times", times)
        object.__setattr__(self, "reached", reached)

    def __len__(self) -> int:
        return len(self.times)

    def censored(self) -> Any:
        """As :class:`scipy.stats.CensoredData`."""
        from scipy import stats

        return stats.CensoredData(uncensored=self.times[self.reached], right=self.times[~self.reached])


def shares_reached(data: Times) -> tuple[Floats, Floats]:
    """The estimated share of runs that have reached the threshold: steps at ``t``, shares from there on."""
    from scipy import stats

    curve = stats.ecdf(data.censored()).cdf
    return np.asarray(curve.quantiles), np.asarray(curve.probabilities)


def median(data: Times, confidence: float = CONFIDENCE) -> Estimate:
    """The time by which half of the runs reach the threshold; infinite where they do not while they are watched.

    The interval holds the times at which a half is within the pointwise log-log interval of the Kaplan-Meier curve
    (Brookmeyer and Crowley, Biometrics 38, 1982, 29).  Its upper end is infinite where the curve's never falls to it.
    """
    from scipy import stats

    if not data.reached.any():
        return Estimate(math.inf, math.nan if len(data) < 2 else _lowest(data, confidence), math.inf)
    survival = stats.ecdf(data.censored()).sf
    value = _first(survival.quantiles, survival.probabilities)
    if len(data) < 2:
        return Estimate(value, math.nan, math.nan)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter(
            "ignore", RuntimeWarning
        )  # there is no log-log interval where the curve is 0 or 1
        ends = survival.confidence_interval(confidence_level=confidence, method="log-log")
    return Estimate(
        value,
        _first(survival.quantiles, _where_defined(ends.low.probabilities, survival.probabilities)),
        _first(survival.quantiles, _where_defined(ends.high.probabilities, 1.0)),
    )


def logrank(x: Times, y: Times) -> float:
    """P value of the logrank test (Mantel, 1966) that both reach the threshold at the same rate.

    NaN if no run reaches it.
    """
    from scipy import stats

    if not (x.reached.any() or y.reached.any()):
        return math.nan
    with np.errstate(all="ignore"):
        return float(stats.logrank(x.censored(), y.censored()).pvalue)


def ratio(
    theirs: Times,
    ours: Times,
    seed: int = 0,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    widen: bool = True,
) -> Estimate:
    """How many times longer ``theirs`` take: the ratio of medians with a bootstrap percentile interval.

    Infinite where half of ours reach the threshold and half of theirs do not, 0 in the opposite case, NaN where
    neither do.  Runs are resampled within each contender.  A resampled median that is not reached is at least as long
    as the longest watched run: that of theirs counts so for the lower end, that of ours for the upper end, and else
    it is infinite.  Finite ends are moved away from the value in the logarithm by √(N/(N−1)), as in
    :func:`diffsim.comparison.statistics.estimate`.
    """
    value = _quotient(median(theirs).value, median(ours).value)
    runs = min(len(theirs), len(ours))
    if runs < 2:
        return Estimate(value, math.nan, math.nan)
    generator = np.random.default_rng(seed)
    samples = samples_of(max(len(theirs), len(ours)), resamples)
    above, below = (_resampled_medians(data, generator, samples) for data in (theirs, ours))
    tail = (1 - confidence) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        least = np.minimum(above, theirs.times.max()) / below
        most = above / np.minimum(below, ours.times.max())
    # 0 / 0: both are there from the beginning.
    low = np.quantile(np.where(np.isnan(least), 0.0, least), tail, method="lower")
    high = np.quantile(np.where(np.isnan(most), np.inf, most), 1 - tail, method="higher")
    factor = math.sqrt(runs / (runs - 1)) if widen else 1.0
    return Estimate(value, _away(value, float(low), factor), _away(value, float(high), factor))


def overall_ratio(
    pairs: Sequence[tuple[Times, Times, float]],
    seed: int = 0,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    widen: bool = True,
) -> tuple[Estimate, str]:
    """The geometric mean over tasks of how many times longer theirs take than ours, and how to read it.

    Args:
        pairs: of each task theirs, ours, and the amount to which runs were watched.
        seed: of the resampling.
        confidence: of the interval, which is that of :func:`ratio`.
        resamples: number of bootstrap samples; fewer are drawn of many runs.
        widen: as in :func:`ratio`.

    A median that is not reached counts as the amount to which runs were watched, so the mean is a bound: ``">="`` if
    there are such medians of theirs only, ``"<="`` of ours only, ``"~"`` of both, else ``"="``.  Tasks on which
    neither median is reached, or ours is 0, do not enter.
    """
    logs, resampled, open_theirs, open_ours = [], [], False, False
    generator = np.random.default_rng(seed)
    samples = samples_of(max((len(data) for *both, _ in pairs for data in both), default=1), resamples)
    for theirs, ours, end in pairs:
        above, below = median(theirs).value, median(ours).value
        if (math.isinf(above) and math.isinf(below)) or min(above, below) <= 0:
            continue
        open_theirs, open_ours = open_theirs or math.isinf(above), open_ours or math.isinf(below)
        logs.append(math.log(min(above, end) / min(below, end)))
        drawn = [np.minimum(_resampled_medians(data, generator, samples), end) for data in (theirs, ours)]
        least = min(theirs.times[theirs.times > 0].min(), ours.times[ours.times > 0].min())
        resampled.append(np.log(np.maximum(drawn[0], least) / np.maximum(drawn[1], least)))
    if not logs:
        return UNKNOWN, "="
    sign = {(False, False): "=", (True, False): ">=", (False, True): "<=", (True, True): "~"}
    middle, tail = float(np.mean(logs)), (1 - confidence) / 2
    low, high = np.quantile(np.mean(resampled, axis=0), [tail, 1 - tail])
    runs = min(min(len(theirs), len(ours)) for theirs, ours, _ in pairs)
    if runs < 2:
        low = high = math.nan
    factor = math.sqrt(runs / (runs - 1)) if widen and runs > 1 else 1.0
    ends = (math.exp(middle + factor * (end - middle)) for end in (low, high))
    return Estimate(math.exp(middle), *ends), sign[open_theirs, open_ours]


def _away(value: float, end: float, factor: float) -> float:
    if not (0 < value < math.inf and 0 < end < math.inf):
        return end
    return value * (end / value) ** factor


def _quotient(above: float, below: float) -> float:
    if math.isinf(above) and math.isinf(below):
        return math.nan
    if below == 0:
        return math.nan if above == 0 else math.inf
    return above / below


def _resampled_medians(data: Times, generator: np.random.Generator, resamples: int) -> Floats:
    """Kaplan-Meier medians ``[resamples]`` of runs drawn with replacement."""
    n = len(data)
    chosen = generator.integers(n, size=(resamples, n))
    times, reached = data.times[chosen], data.reached[chosen]
    # By time, and at the same time those that reach before those that are censored.
    order = np.lexsort((~reached, times), axis=-1)
    times, reached = np.take_along_axis(times, order, axis=-1), np.take_along_axis(reached, order, axis=-1)
    at_risk = n - np.arange(n)
    survival = np.cumprod(np.where(reached, 1 - 1 / at_risk, 1.0), axis=-1)
    half = survival <= 0.5 + _ROUNDING
    return np.where(half.any(axis=-1), times[np.arange(resamples), half.argmax(axis=-1)], np.inf)


_ROUNDING = 1e-12
"""A product such as 9/10 · 8/9 · … can exceed one half by a rounding error."""


def _first(times: ArrayLike, survival: ArrayLike) -> float:
    below = np.flatnonzero(np.asarray(survival) <= 0.5 + _ROUNDING)
    return float(np.asarray(times)[below[0]]) if len(below) else math.inf


def _where_defined(values: ArrayLike, otherwise: ArrayLike) -> Floats:
    found = np.asarray(values, dtype=np.float64)
    return np.where(np.isnan(found), otherwise, found)


def _lowest(data: Times, confidence: float) -> float:
    """Where no run of n reaches it: the time to which enough were watched that a half would have shown."""
    # P(none of k reaches it before) = 2^-k under the hypothesis that the median is earlier.
    needed = math.ceil(math.log2(2 / (1 - confidence)))
    watched = np.sort(data.times)[::-1]
    return float(watched[needed - 1]) if len(watched) >= needed else 0.0
