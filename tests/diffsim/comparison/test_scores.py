"""What records count as at a budget: nothing from later, nothing clipped, failures in."""

import math

import numpy as np
import pytest
import synthetic

from diffsim.comparison import Comparison, Contender, Curve, Limits, Overheads, Task, Threshold
from diffsim.comparison import scores as scoring
from diffsim.comparison.scores import Rules, TaskData
from diffsim.comparison.step_curves import StepCurves
from diffsim.errors import ConfigError

TASK = Task(Threshold(0.9, "test"), Limits(0.0, 2.0, "test"))


def data(*records, task=TASK, budget=None, **rules):
    contenders = {r.contender: Contender() for r in records}
    budget = {"cpu_seconds": 10.0} if budget is None else budget
    return TaskData(Comparison({"t": task}, contenders, [0], budget, records=records), "t", Rules(**rules))


def run(score, seconds=None, status="finished", seed=0, contender="a", **others):
    seconds = np.arange(len(score)) * 2.0 if seconds is None else seconds
    return synthetic.run("t", contender, seed, Curve.of(score, cpu_seconds=seconds), status, **others)


def test_step_interpolation_never_looks_ahead():
    grid = [0, 0.999, 1, 2, 2.999, 3, 99]
    found = StepCurves([[1, 3], [], [1, 1]], [[10, 20], [], [10, 20]]).at(grid)
    nan = math.nan
    right = [[nan, nan, 10, 10, 10, 20, 20], [nan] * 7, [nan, nan, 20, 20, 20, 20, 20]]
    assert np.array_equal(found, right, equal_nan=True)
    assert StepCurves([], []).at(grid).shape == (0, 7)


def test_a_later_evaluation_changes_nothing_before_it():
    amounts = [0.0, 1.0, 3.9, 5.0]
    one, other = (data(run(score)).curves("a", amounts) for score in ([0.1, 0.5, 0.7], [0.1, 0.5, 0.7, 99]))
    assert one.tolist() == other.tolist() == [[0.1, 0.1, 0.5, 0.7]]


def test_areas_are_means_of_steps():
    curves = StepCurves([[0, 4], [0, 4, 9], [0]], [[1, 3], [1, 3, 100], [7]])
    assert curves.means(8).tolist() == [2, 2, 7]
    assert StepCurves([[2]], [[4]]).means(8, before=0).tolist() == [3]
    assert math.isnan(StepCurves([[2]], [[4]]).means(8)[0])


def test_nothing_is_clipped():
    limits = Limits(-10, 10, "test")
    assert scoring.normalised([-30, -10, 0, 10, 50], limits) == pytest.approx([-1, 0, 0.5, 1, 3])


def test_scores_are_the_last_at_the_budget_and_no_maximum():
    assert data(run([0.0, 2.0, 1.0, 0.5, 0.25, 0.125, 9.0])).scores("a") == [0.125]
    assert data(run([0.0, 2.0, 1.0])).scores("a", normalise=True) == [0.5]


@pytest.mark.parametrize("status", ["crashed", "diverged"])
def test_failed_runs_count_and_how_is_a_rule(status):
    records = run([0.0, 1.5], status=status), run([0.0, -1.0], status=status, seed=1), run([1.0] * 6, seed=2)
    assert data(*records).scores("a").tolist() == [0.0, -1.0, 1.0]
    assert data(*records, failed="last").scores("a").tolist() == [1.5, -1.0, 1.0]
    assert data(*records, failed="left out").scores("a").tolist() == [1.0]
    # 1.5 and then the floor, from the last evaluation on.
    assert data(*records).areas("a").tolist() == [0.0, pytest.approx(-0.8), 1.0]


def test_a_run_that_never_evaluated_counts_as_the_floor():
    assert data(run([], status="crashed"), run([1.0] * 6, seed=1)).scores("a").tolist() == [0.0, 1.0]
    bare = data(run([], status="crashed"), run([0.3, 1, 1], seed=1), task=Task())
    assert bare.scores("a").tolist() == [0.3, 1.0]
    assert bare.times("a") is None


def test_unfinished_runs_enter_no_statistic():
    found = data(run([1.0] * 6), run([2.0], status="unfinished", seed=1))
    assert found.scores("a").tolist() == [1.0]
    assert len(found.times("a")) == 1


def test_failing_early_is_not_being_fast():
    """A crash at 2 s would shorten the median if it were censored there."""
    late = [run([0, 0, 0, 0, 1.0, 1.0], seed=s) for s in range(4)]
    failed = [run([0, 0.5], status="crashed", seed=s + 4) for s in range(6)]
    times = data(*late, *failed).times("a")
    assert times.times.tolist() == [8.0] * 4 + [10.0] * 6
    assert times.reached.tolist() == [True] * 4 + [False] * 6


def test_a_run_that_fails_after_reaching_has_reached():
    times = data(run([0, 1.0, 0.5], status="diverged")).times("a")
    assert (times.times.tolist(), times.reached.tolist()) == ([2.0], [True])


def test_what_happens_after_the_budget_does_not_count():
    times = data(run([0.0] * 6 + [1.0])).times("a")
    assert (times.times.tolist(), times.reached.tolist()) == ([10.0], [False])


def test_runs_that_end_early_are_censored_where_they_end():
    times = data(run([0.0, 0.1, 0.2])).times("a")
    assert (times.times.tolist(), times.reached.tolist()) == ([4.0], [False])


@pytest.mark.parametrize(("crossing", "time"), [("first", 2.0), ("earliest", 0.0), ("lasting", 8.0)])
def test_the_crossing_is_a_rule(crossing, time):
    assert data(run([0, 1, 0, 0.5, 1, 1]), crossing=crossing).times("a").times.tolist() == [time]


def test_in_hindsight_a_run_scores_its_best_evaluation_within_the_budget():
    fallen = run([0.0, 3.0, 1.0, 2.0, 0.0, 1.0, 9.0])  # the last is after the budget
    assert data(fallen).scores("a").tolist() == [1.0]
    assert data(fallen, hindsight=True).scores("a").tolist() == [3.0]


def test_a_last_fall_is_no_lasting_crossing():
    assert not data(run([0, 1, 1, 0.5]), crossing="lasting").times("a").reached.any()


def test_overheads_move_clocks_and_not_counts():
    record = synthetic.run(
        "t", "a", 0, Curve.of([0, 1.0], cpu_seconds=[0, 2.0], environment_steps=[0, 7.0]),
        overheads=Overheads(1.0, math.nan, 3.0, 50.0),
    )  # fmt: skip
    assert data(record, overheads=True).times("a").times.tolist() == [6.0]
    steps = data(record, overheads=True, axis="environment_steps", budget={"environment_steps": 9.0})
    assert steps.times("a").times.tolist() == [7.0]


def test_success_can_be_the_measure():
    curve = Curve.of([5.0, 5.0], cpu_seconds=[0, 2.0], success=[0.5, 0.95])
    found = data(synthetic.run("t", "a", 0, curve), task=Task(Threshold(0.9, "x", "success"))).times("a")
    assert (found.times.tolist(), found.reached.tolist()) == ([2.0], [True])


def test_without_a_budget_contenders_meet_where_half_of_each_have_been():
    records = [run([1.0] * n, seed=n) for n in (3, 4, 9)] + [run([1.0] * 6, contender="b")]
    assert data(*records, budget={}).end() == 6.0


def test_axes_that_a_contender_does_not_know_leave_it_out():
    known = run([1.0, 2.0])
    unknown = synthetic.run("t", "b", 0, Curve.of([1.0, 2.0], environment_steps=[0, 5]))
    found = data(known, unknown)
    assert found.records("b") == []
    assert scoring.axes_known(found.comparison) == ["cpu_seconds", "environment_steps"]


def test_the_middle_line_is_always_one_of_the_same_runs():
    records = [run([0.0, 1, 1, 1], seed=s) for s in range(4)] + [run([0.0, 1], seconds=[1.0, 5.0], seed=9)]
    x, y = data(*records).middle("a", np.arange(0, 11.0))
    assert (x.min(), x.max()) == (1.0, 5.0)
    assert y[-1] == 1


@pytest.mark.parametrize("rule", [{"axis": "hours"}, {"failed": "hidden"}, {"crossing": "best"}])
def test_unknown_rules_are_refused(rule):
    with pytest.raises(ConfigError, match="must be one of"):
        Rules(**rule)
