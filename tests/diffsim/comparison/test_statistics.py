"""Numbers of rliable 1.2 and of SciPy, to the last digits; intervals that can be made again and that cover."""

import importlib.util
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from diffsim.comparison import statistics
from diffsim.comparison.statistics import estimate, improvement, interquartile_mean, mean, mean_superiority
from diffsim.errors import ConfigError

ROOT = Path(__file__).parents[3]
FIXTURES = json.loads(Path(__file__).with_name("rliable_fixtures.json").read_text())
CLOSE = {"rel": 1e-12, "abs": 1e-12}


def by_task(rows):
    return list(np.array(rows).T)


@pytest.mark.parametrize("name", FIXTURES["cases"])
def test_the_numbers_are_those_of_rliable(name):
    case = FIXTURES["cases"][name]
    x, y = by_task(case["x"]), by_task(case["y"])
    assert mean(*x) == pytest.approx(case["mean"], **CLOSE)
    assert interquartile_mean(*x) == pytest.approx(case["interquartile_mean"], **CLOSE)
    assert statistics.optimality_gap(*x) == pytest.approx(case["optimality_gap"], **CLOSE)
    assert statistics.performance_profile(x, case["taus"]) == pytest.approx(case["profile"], **CLOSE)
    assert statistics.probability_of_improvement(x, y) == pytest.approx(
        case["probability_of_improvement"], **CLOSE
    )


def test_superiority_is_mann_whitney():
    rng = np.random.default_rng(3)
    for n, m in ((10, 10), (5, 9), (1, 4), (80, 60), (3, 2000)):  # the last ones by counts
        x, y = rng.integers(0, 5, n).astype(float), rng.integers(0, 5, m).astype(float)
        expected = stats.mannwhitneyu(x, y).statistic / (n * m)
        assert statistics.superiority(x, y) == pytest.approx(expected, abs=1e-15)
        assert statistics.superiority(x, y) + statistics.superiority(y, x) == pytest.approx(1, abs=1e-15)
        several = statistics.superiority(np.stack((x, x + 1, x - 9)), y)
        assert several.tolist() == [statistics.superiority(x + by, y) for by in (0, 1, -9)]


def samples(seed=0, runs=10, tasks=3):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=runs) for _ in range(tasks)]


@pytest.mark.parametrize(("runs", "drawn"), [(10, 700), (100, 700), (200, 350), (4000, 140)])
@pytest.mark.parametrize("statistic", [interquartile_mean, mean, statistics.optimality_gap])
def test_intervals_are_scipys_and_widened_by_the_number_of_runs(statistic, runs, drawn):
    x = samples(runs=runs)
    expected = stats.bootstrap(
        tuple(x), statistic, paired=False, vectorized=True, method="percentile", n_resamples=drawn, axis=-1,
        rng=np.random.default_rng(11),
    ).confidence_interval  # fmt: skip
    plain = estimate(statistic, x, seed=11, resamples=700, widen=False)
    assert (plain.low, plain.high) == (expected.low, expected.high)
    wide = estimate(statistic, x, seed=11, resamples=700)
    factor = math.sqrt(runs / (runs - 1))
    assert wide.low - wide.value == pytest.approx(factor * (plain.low - plain.value), rel=1e-12)
    assert wide.high - wide.value == pytest.approx(factor * (plain.high - plain.value), rel=1e-12)


def test_intervals_are_the_same_to_the_bit_from_a_seed():
    x, y = samples(), samples(1)
    assert estimate(interquartile_mean, x, seed=4) == estimate(interquartile_mean, x, seed=4)
    assert improvement(x, y, seed=4) == improvement(x, y, seed=4)
    assert estimate(interquartile_mean, x, seed=4) != estimate(interquartile_mean, x, seed=5)
    np.random.seed(0)  # noqa: NPY002, the state that must not matter
    first = estimate(mean, x)
    np.random.seed(1)  # noqa: NPY002
    assert estimate(mean, x) == first


def test_runs_are_resampled_within_tasks():
    """Two tasks whose runs are equal within each: nothing varies."""
    found = estimate(mean, [np.zeros(10), np.ones(10)])
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)


def test_improvement_is_scipys_bootstrap_where_not_widened():
    x, y = samples(), samples(1)
    expected = stats.bootstrap(
        (*x, *y), mean_superiority, paired=False, vectorized=True, method="percentile", n_resamples=500, axis=-1,
        rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    plain = improvement(x, y, resamples=500, widen=False)
    assert (plain.low, plain.high) == (expected.low, expected.high)


@pytest.mark.parametrize("runs", [2, 5, 10, 20])
def test_runs_that_are_all_better_prove_no_certainty(runs):
    found = improvement([np.arange(runs) + 100.0], [np.arange(runs) * 1.0])
    assert found.value == found.high == 1
    assert 0 < found.low < 1
    other = improvement([np.arange(runs) * 1.0], [np.arange(runs) + 100.0])
    assert other.low == 0
    assert other.high == pytest.approx(1 - found.low)


def test_newcombe_solves_its_equation():
    z = stats.norm.ppf(0.975)
    for theta, m, n in ((0.7, 10, 10), (1.0, 10, 10), (0.0, 4, 7), (0.5, 5, 20)):
        for p in statistics.newcombe(theta, m, n):
            if 0 < p < 1:
                half = (m + n) / 2 - 1
                error = math.sqrt(p * (1 - p) * (1 + half * ((1 - p) / (2 - p) + p / (1 + p))) / (m * n))
                assert abs(theta - p) == pytest.approx(z * error, rel=1e-6)
    low, high = statistics.newcombe(0.7, 10, 10)
    assert low < 0.7 < high
    assert statistics.newcombe_mean([np.arange(10.0)], [np.arange(10.0) - 2]) == pytest.approx(
        statistics.newcombe(float(statistics.superiority(np.arange(10), np.arange(10) - 2)), 10, 10)
    )


def test_one_run_has_no_interval():
    assert math.isnan(estimate(mean, [[1.0]]).low)
    assert math.isnan(improvement([[1.0]], [[0.0, 2.0]]).low)


@pytest.mark.parametrize("scores", [[], [[]], [[1.0], []], [[[1.0]]], [[math.nan]]])
def test_scores_that_are_none_are_refused(scores):
    with pytest.raises(ConfigError, match="scores must be"):
        estimate(mean, scores)


def test_contenders_must_share_tasks():
    with pytest.raises(ConfigError, match="share their tasks"):
        improvement([[1.0]], [[1.0], [2.0]])


def test_the_tolerance_share_is_the_chance_of_the_range():
    """Of uniform runs the range holds the share s or more with the probability of a Beta(N−1, 2) above s."""
    for runs in (2, 5, 10, 30):
        assert stats.beta.sf(statistics.tolerance_share(runs), runs - 1, 2) == pytest.approx(0.95, abs=1e-9)
    assert statistics.tolerance_share(1) == 0


# -- coverage ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location(
        "coverage_study", ROOT / "benchmarks" / "interval_coverage.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_study_covers():
    measured = statistics.measured_coverage()
    rows = measured["rows"]
    assert {(r["distribution"], r["seeds"], r["tasks"]) for r in rows} == {
        (d, n, t) for d in ("normal", "exponential", "bimodal") for n in (5, 10) for t in (1, 6)
    }
    assert measured["experiments"] == 2000
    for row in rows:
        if row["seeds"] == 10:
            assert 0.93 <= row["widened"]["interquartile_mean"] <= 0.97, row
            assert row["widened"]["improvement"] >= 0.93, row


@pytest.mark.parametrize("name", ["normal", "exponential", "bimodal"])
def test_the_true_values_of_the_study(study, name):
    draw, quantile, true_mean = study.DISTRIBUTIONS[name]
    many = draw(np.random.default_rng(0), 400_000)
    assert study.true_interquartile_mean(quantile) == pytest.approx(interquartile_mean(many), abs=0.01)
    assert true_mean == pytest.approx(many.mean(), abs=0.01)


def test_a_small_study_repeats_and_agrees_with_the_committed_one(study):
    small = study.coverage("normal", 10, 1, experiments=200, resamples=300)
    assert small == study.coverage("normal", 10, 1, experiments=200, resamples=300)
    (committed,) = [
        row for row in statistics.measured_coverage()["rows"]
        if (row["distribution"], row["seeds"], row["tasks"]) == ("normal", 10, 1)
    ]  # fmt: skip
    for key, share in small["widened"].items():
        # Four standard errors of 200 experiments.
        assert share == pytest.approx(committed["widened"][key], abs=4 * math.sqrt(0.05 * 0.95 / 200)), key


def test_the_study_makes_the_intervals_of_reports(study):
    rng = np.random.default_rng(1)
    x, y = ([rng.normal(size=(3, 10)) for _ in range(2)] for _ in range(2))
    low, high = statistics.bootstrap_ends(interquartile_mean, x, 7, resamples=200)
    for number in range(3):
        one = estimate(interquartile_mean, [task[number] for task in x], 7, resamples=200)
        assert (one.low, one.high) == pytest.approx((low[number], high[number]), rel=1e-13)
    assert len(study._by_experiment([*x, *y])) == 3


def test_the_documented_coverage_is_the_measured_one():
    page = (ROOT / "docs" / "comparisons.md").read_text()
    (stated,) = re.findall(r"<!-- coverage -->\n.*?\n.*?\n(.*?)\n<!-- -->", page, re.S)
    rows = []
    for row in statistics.measured_coverage()["rows"]:
        shares = [row["widened"][key] for key in ("interquartile_mean", "mean", "improvement")]
        shares.append(row["not_widened"]["interquartile_mean"])
        cells = [
            str(row["seeds"]),
            str(row["tasks"]),
            row["distribution"],
            *(f"{100 * s:.1f}%" for s in shares),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    assert stated.splitlines() == rows
