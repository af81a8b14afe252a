"""Kaplan-Meier medians and their ratios, with runs that never reach the threshold."""

import math

import numpy as np
import pytest
from scipy import stats

from diffsim.comparison import survival
from diffsim.comparison.survival import Times
from diffsim.errors import ConfigError


def times(values, censored=()):
    return Times(
        np.array([*values, *censored], dtype=float), np.array([True] * len(values) + [False] * len(censored))
    )


def test_the_curve_is_kaplan_meiers():
    """By hand: 1 of 5 at 1, censored at 2, 1 of 3 at 3, 1 of 2 at 4, censored at 5."""
    t, share = survival.shares_reached(times([1, 3, 4], [2, 5]))
    assert dict(zip(t, 1 - share, strict=True)) == pytest.approx(
        {1: 4 / 5, 2: 4 / 5, 3: 8 / 15, 4: 4 / 15, 5: 4 / 15}
    )
    assert survival.median(times([1, 3, 4], [2, 5])).value == 4


@pytest.mark.parametrize("seed", range(30))
def test_resampled_medians_are_those_of_the_curve(seed):
    """The vectorised median equals that of scipy's curve, ties and censoring included."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 12))
    data = Times(rng.integers(1, 6, n).astype(float), rng.random(n) < 0.6)

    class All:
        def integers(self, high, size):
            return np.tile(np.arange(high), (size[0], 1))

    (found,) = survival._resampled_medians(data, All(), 1)
    assert found == survival.median(data).value


@pytest.mark.filterwarnings("ignore:The confidence interval is undefined:RuntimeWarning")
def test_the_interval_of_the_median_is_that_of_the_log_log_curve():
    data = times(range(1, 11))
    found = survival.median(data)
    ends = stats.ecdf(data.censored()).sf.confidence_interval(method="log-log")
    assert found.value == 5
    assert found.low == next(t for t, s in zip(range(1, 11), ends.low.probabilities, strict=True) if s <= 0.5)
    assert found.high == next(
        t for t, s in zip(range(1, 11), ends.high.probabilities, strict=True) if s <= 0.5
    )
    assert found.low < found.value < found.high


def test_a_median_that_is_not_reached_is_infinite():
    found = survival.median(times([1, 2, 3], [10] * 7))
    assert (found.value, found.high) == (math.inf, math.inf)
    nobody = survival.median(times([], [10] * 6 + [3] * 4))
    assert (nobody.value, nobody.high) == (math.inf, math.inf)
    assert nobody.low == 10  # six runs watched to 10: 2^-6 < 2.5%
    assert survival.median(times([], [10] * 5)).low == 0


def test_the_median_interval_covers():
    """Exponential times with the median 1, censored at 1.6: 95% within the error of 400 experiments."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        t = rng.exponential(1 / math.log(2), 20)
        found = survival.median(Times(np.minimum(t, 1.6), t <= 1.6))
        hits += found.low <= 1 <= found.high
    assert 0.92 <= hits / 400 <= 0.99


def test_logrank_is_scipys():
    x, y = times([1, 2, 3, 4]), times([3, 5, 6], [7])
    assert survival.logrank(x, y) == stats.logrank(x.censored(), y.censored()).pvalue
    assert survival.logrank(x, y) == pytest.approx(survival.logrank(y, x))
    assert math.isnan(survival.logrank(times([], [1, 2]), times([], [3])))


def test_a_ratio_of_medians():
    ours, theirs = times(np.linspace(1.8, 2.2, 10)), times(np.linspace(18, 22, 10))
    found = survival.ratio(theirs, ours)
    assert found.value == pytest.approx(10)
    assert 8 < found.low < 10 < found.high < 12
    other = survival.ratio(ours, theirs)
    assert other.value == pytest.approx(0.1)
    assert survival.ratio(theirs, ours, seed=3) == survival.ratio(theirs, ours, seed=3)
    plain = survival.ratio(theirs, ours, widen=False)
    assert math.log(found.high / 10) == pytest.approx(math.sqrt(10 / 9) * math.log(plain.high / 10))


def test_what_is_not_reached_is_a_bound_and_no_certainty():
    """Ten runs of theirs watched to 60 without reaching: all that is known is more than 60 / ours."""
    ours, nobody = times(np.linspace(1.8, 2.2, 10)), times([], [60] * 10)
    found = survival.ratio(nobody, ours)
    assert (found.value, found.high) == (math.inf, math.inf)
    assert 60 / 2.2 <= found.low <= 60 / 1.8
    found = survival.ratio(ours, nobody)
    assert (found.value, found.low) == (0, 0)
    assert 1.8 / 60 <= found.high <= 2.2 / 60
    found = survival.ratio(nobody, nobody)
    assert math.isnan(found.value)
    assert (found.low, found.high) == (0, math.inf)


def test_the_overall_ratio_says_which_bound_it_is():
    two, eight, nobody = times([2.0] * 10), times([8.0] * 10), times([], [60] * 10)
    found, sign = survival.overall_ratio([(eight, two, 60), (two, two, 60)])
    assert (found.value, sign) == (pytest.approx(2), "=")
    found, sign = survival.overall_ratio([(nobody, two, 60), (two, two, 60)])
    assert (found.value, sign) == (pytest.approx(math.sqrt(30)), ">=")
    assert survival.overall_ratio([(two, nobody, 60), (two, two, 60)])[1] == "<="
    assert survival.overall_ratio([(two, nobody, 60), (nobody, two, 60)])[1] == "~"
    found, sign = survival.overall_ratio([(nobody, nobody, 60)])
    assert math.isnan(found.value)


@pytest.mark.parametrize("values", [[-1.0], [math.nan], [math.inf], [[1.0]]])
def test_times_that_are_none_are_refused(values):
    with pytest.raises(ConfigError, match="times must be"):
        Times(np.array(values), np.ones(np.shape(values), dtype=bool))
