"""Budgets and the clock: what ends a run, when it is measured, and what is off the clock."""

import math
import time

import pytest

from diffsim.comparison.clock import POINTS, Budget, Meter
from diffsim.errors import ConfigError, DivergenceError


def judge(act):
    return act(None), 0.5


def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("60s", Budget(60.0)),
        ("2.5s", Budget(2.5)),
        ("100000steps", Budget(steps=100_000)),
        ("1e5steps", Budget(steps=100_000)),
        ("1e+5STEPS", Budget(steps=100_000)),
        ("60s+1e5steps", Budget(60.0, 100_000)),
        ("500 steps + 3 s", Budget(3.0, 500)),
    ],
)
def test_budgets_are_seconds_steps_or_both(text, budget):
    assert Budget.parse(text) == budget
    assert Budget(**{"cpu_seconds": budget.cpu_seconds, "steps": budget.steps}) == budget


@pytest.mark.parametrize(
    "text",
    ["", "60", "s", "0s", "-3s", "1.5steps", "60s+60s", "60s,5steps", "nans", "1e400s", "infs", "60min"],
)
def test_other_budgets_are_refused_with_their_text(text):
    with pytest.raises(ConfigError, match="budget") as told:
        Budget.parse(text)
    assert repr(text) in str(told.value)


def test_a_budget_of_steps_ends_at_the_first_look_beyond_it():
    meter = Meter(Budget(steps=100), judge)
    meter.begin(lambda o: 0.0)
    looks = [steps for steps in range(7, 300, 7) if meter.go_on(steps, steps, lambda o, s=steps: float(s))]
    assert looks[-1] == 98
    looked = [point.environment_steps for point in meter.points]
    assert looked[0] == 0
    assert min(steps for steps in looked if steps > 100) == 105  # the end is measured
    assert len(set(looked)) == len(looked)
    assert "100 steps" in meter.reason


def test_points_are_the_same_fixed_ones_for_all_and_geometric():
    seen = []
    for stride in (1, 2):
        meter = Meter(Budget(steps=8_000), judge)
        meter.begin(lambda o: 0.0)
        for steps in range(stride, 9_000, stride):
            if not meter.go_on(steps, 0, lambda o: 0.0):
                break
        seen.append([point.environment_steps for point in meter.points])
    assert len(seen[0]) == len(seen[1]) == POINTS + 1
    assert all(0 <= b - a < 2 for a, b in zip(*seen, strict=True))
    assert seen[0][1] == 20
    ratios = [b / a for a, b in zip(seen[0][1:], seen[0][2:], strict=False)]
    assert max(ratios) < 1.21
    assert seen[0][-1] == 8_000


def test_a_budget_of_seconds_counts_computing_not_waiting_and_nothing_off_the_clock():
    meter = Meter(Budget(cpu_seconds=0.1), lambda act: (burn(0.05), (0.0, 0.0))[1])
    meter.begin(lambda o: 0.0)
    time.sleep(0.2)
    with meter.off_the_clock("compile"):
        burn(0.2)
    assert meter.cpu_seconds < 0.08
    assert meter.wall_seconds >= 0.2
    steps = 0
    while True:
        burn(0.005)
        steps += 1
        if not meter.go_on(steps, 0, lambda o: 0.0):
            break
    assert 0.1 <= meter.points[-1].cpu_seconds < 0.2
    assert meter.seconds["compile"] >= 0.2
    assert meter.seconds["evaluation"] >= 0.05 * len(meter.points)
    assert steps <= 21


def test_whichever_limit_is_reached_first_ends():
    meter = Meter(Budget(1000.0, 10), judge)
    meter.begin(lambda o: 0.0)
    assert meter.go_on(9, 0, lambda o: 0.0)
    assert not meter.go_on(10, 0, lambda o: 0.0)
    meter = Meter(Budget(0.01, 10**9), judge)
    meter.begin(lambda o: 0.0)
    burn(0.02)
    assert not meter.go_on(1, 0, lambda o: 0.0)


def test_a_policy_that_has_not_changed_is_not_measured_again():
    asked = []
    meter = Meter(Budget(steps=100), lambda act: (asked.append(1), (float(len(asked)), 0.0))[1])
    meter.begin(lambda o: None)
    for steps, version in ((10, 0), (20, 0), (40, 1), (100, 1)):
        meter.go_on(steps, 0, lambda o: None, version)
    assert [point.score for point in meter.points] == [1.0, 1.0, 1.0, 2.0, 2.0]


def test_a_run_that_ends_by_itself_has_its_last_policy_measured_once():
    meter = Meter(Budget(steps=10**6), judge)
    meter.begin(lambda o: 0.0)
    meter.go_on(7, 1, lambda o: 1.0)
    meter.end(7, 1, lambda o: 2.0, "all updates done")
    assert [(p.environment_steps, p.score) for p in meter.points] == [(0, 0.0), (7, 2.0)]
    meter.end(7, 1, lambda o: 3.0, "again")
    assert meter.points[-1].score == 2.0
    assert meter.reason == "all updates done"


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_a_score_that_is_no_number_is_a_divergence_and_leaves_the_curve_before_it(score):
    meter = Meter(Budget(steps=100), judge)
    meter.begin(lambda o: 1.0)
    with pytest.raises(DivergenceError, match="100 environment steps"):
        meter.go_on(100, 0, lambda o: score)
    assert [point.score for point in meter.points] == [1.0]
