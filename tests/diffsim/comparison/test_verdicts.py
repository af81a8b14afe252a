"""Who won, also where the black box did; what would change it; transfer."""

import dataclasses
import math

import numpy as np
import pytest
import synthetic

from diffsim.comparison import Comparison, Contender, Limits, Task, Threshold, matrix, verdicts, words
from diffsim.comparison.scores import Rules
from diffsim.comparison.statistics import Estimate
from diffsim.comparison.verdicts import LOST, MISSING, MIXED, UNDECIDED, WON, decided, together
from diffsim.errors import ConfigError

TASK = Task(Threshold(0.9, "test"), Limits(0.0, 1.0, "test"))
QUICK = Rules(resamples=300)


def compared(rates, runs=10, tasks=("one",), kind="black box", **options):
    """Contenders that rise with these rates, the first being the reference."""
    rng = np.random.default_rng(0)
    contenders = {n: Contender("reference" if not i else kind) for i, n in enumerate(rates)}
    records = [
        synthetic.run(
            task, name, seed,
            synthetic.rising(10, 1 - 0.01 * rng.random() + (rate > 1) * 0.05, 0, rate * (1 + 0.1 * rng.random()), 41),
            about_task=TASK,
        )
        for task in tasks for name, rate in rates.items() for seed in range(runs)
    ]  # fmt: skip
    plan = dict.fromkeys(tasks, TASK)
    return Comparison(plan, contenders, range(runs), {"cpu_seconds": 10.0}, records=records, **options)


INSIDE, ABOVE, BELOW = Estimate(0.5, 0.3, 0.7), Estimate(0.9, 0.8, 1), Estimate(0.1, 0, 0.2)
EVEN, LONGER, SHORTER = Estimate(1, 0.5, 2), Estimate(5, 3, 7), Estimate(0.2, 0.1, 0.5)
NONE = Estimate(math.nan, math.nan, math.nan)


@pytest.mark.parametrize(
    ("probability", "times", "outcome"),
    [
        (ABOVE, LONGER, WON), (ABOVE, EVEN, WON), (INSIDE, LONGER, WON), (ABOVE, NONE, WON),
        (BELOW, SHORTER, LOST), (BELOW, EVEN, LOST), (INSIDE, SHORTER, LOST),
        (ABOVE, SHORTER, MIXED), (BELOW, LONGER, MIXED),
        (INSIDE, EVEN, UNDECIDED), (INSIDE, NONE, UNDECIDED), (NONE, NONE, MISSING),
        (Estimate(0.9, 0.5, 1), NONE, UNDECIDED),
    ],
)  # fmt: skip
def test_a_pair_is_decided_by_its_intervals(probability, times, outcome):
    assert decided(probability, times) == outcome


def test_one_loss_is_a_loss():
    assert together([WON, WON]) == WON
    assert together([WON, LOST]) == LOST
    assert together([WON, UNDECIDED]) == UNDECIDED
    assert together([WON, MIXED, UNDECIDED]) == MIXED
    assert together([MISSING, MISSING]) == together([]) == MISSING
    assert together([WON, MISSING]) == UNDECIDED


def test_the_white_box_wins():
    found = verdicts.verdicts(compared({"ours": 2.0, "ppo": 0.1}), QUICK)
    assert found.outcome("one") == found.outcome() == WON
    pair = found.tasks["one"]["ppo"]
    assert pair.probability.value == 1
    assert math.isinf(pair.ratio.value)
    assert pair.ratio.low > 5
    text = words.verdict(found, compared({"ours": 2.0, "ppo": 0.1}), "one")
    assert text == "ours won against ppo."


def test_the_black_box_wins_and_it_is_said():
    comparison = compared({"ours": 0.1, "ppo": 2.0, "slow": 0.02})
    found = verdicts.verdicts(comparison, QUICK)
    assert found.outcome() == LOST
    assert words.verdict(found, comparison) == "The black box won: ppo beat ours; ours won against slow."
    assert found.tasks["one"]["ppo"].ratio.value == 0
    other = compared({"ours": 0.1, "cma": 2.0}, kind="gradient-free")
    text = words.verdict(verdicts.verdicts(other, QUICK), other)
    assert text == "The gradient-free search won: cma beat ours."


def test_equals_are_undecided():
    comparison = compared({"ours": 0.5, "ppo": 0.5})
    found = verdicts.verdicts(comparison, QUICK)
    assert found.outcome() == UNDECIDED
    assert words.verdict(found, comparison).startswith("Undecided")


def test_swapping_the_sides_swaps_the_verdict():
    one = verdicts.verdicts(compared({"a": 0.8, "b": 0.4}), QUICK).tasks["one"]["b"]
    swapped = compared({"a": 0.8, "b": 0.4})
    swapped = Comparison(
        swapped.tasks, {"a": Contender(), "b": Contender("reference")}, swapped.seeds, swapped.budget,
        records=swapped.records,
    )  # fmt: skip
    other = verdicts.verdicts(swapped, QUICK).tasks["one"]["a"]
    assert other.probability.value == pytest.approx(1 - one.probability.value)
    assert other.ratio.value == pytest.approx(1 / one.ratio.value)
    assert (one.outcome, other.outcome) == (WON, LOST)


def test_ablations_and_own_variants_enter_no_verdict():
    for kind in ("ablation", "white box"):
        found = verdicts.verdicts(compared({"ours": 0.1, "variant": 2.0}, kind=kind), QUICK)
        assert found.outcome() == MISSING
        assert found.tasks["one"]["variant"].outcome == LOST


def test_no_reference_no_verdict_and_too_few_runs():
    comparison = compared({"ours": 1.0, "ppo": 0.1}, runs=1)
    found = verdicts.verdicts(comparison, QUICK)
    assert found.outcome() == MISSING
    assert "too few runs" in words.verdict(found, comparison)
    none = Comparison(comparison.tasks, {"x": Contender()}, [0])
    assert verdicts.verdicts(none, QUICK) is None
    assert verdicts.what_would_change(none, QUICK) == []


def test_what_would_change_names_the_rule_that_does():
    """The reference is far ahead only because the opponent's good runs count as failed."""
    comparison = compared({"ours": 0.5, "ppo": 0.5})
    records = [
        synthetic.run("one", name, seed, r.curve, "crashed" if name == "ppo" and seed < 8 else "finished")
        for r in comparison.records
        for name, seed in [(r.contender, r.seed)]
    ]
    comparison = Comparison(
        comparison.tasks, comparison.contenders, range(10), comparison.budget, records=records
    )
    found = {q.words: q.changes for q in verdicts.what_would_change(comparison, QUICK)}
    (last,) = [changes for text, changes in found.items() if "last evaluation" in text]
    assert {(c.task, c.before, c.after) for c in last} == {(None, WON, UNDECIDED), ("one", WON, UNDECIDED)}
    assert any("import, start and compilation" in text for text in found)


def test_opponents_that_were_better_before_the_end_are_named():
    comparison = compared({"ours": 0.5, "ppo": 0.4})
    records = []
    for r in comparison.records:
        score = np.array(r.curve.score)
        if r.contender == "ppo":
            score[-2] = 2.0
        records.append(synthetic.run("one", r.contender, r.seed, dataclasses.replace(r.curve, score=score)))
    comparison = dataclasses.replace(comparison, records=records)
    found = {q.words: q.changes for q in verdicts.what_would_change(comparison, QUICK)}
    (best,) = [changes for text, changes in found.items() if "the best of all their policies" in text]
    assert {(c.task, c.before, c.after) for c in best} == {(None, WON, MIXED), ("one", WON, MIXED)}


def test_an_axis_on_which_the_other_side_wins_is_named():
    comparison = compared({"ours": 0.8, "ppo": 0.4})
    records = []
    for r in comparison.records:
        c = r.curve
        steps = c.cpu_seconds * (1000 if r.contender == "ours" else 10)
        curve = type(c)(steps, c.cpu_seconds, c.wall_seconds, c.gradient_evaluations, c.score, c.success)
        records.append(synthetic.run("one", r.contender, r.seed, curve))
    budget = {"cpu_seconds": 10.0, "environment_steps": 100.0}
    comparison = Comparison(comparison.tasks, comparison.contenders, range(10), budget, records=records)
    assert verdicts.verdicts(comparison, QUICK).outcome() == WON
    found = {q.words: q.changes for q in verdicts.what_would_change(comparison, QUICK)}
    changes = found["Budgets are equal in environment steps"]
    assert {(c.before, c.after) for c in changes} == {(WON, LOST)}


def test_an_axis_on_which_an_opponent_stands_still_says_nothing_about_it():
    """A search without gradients: 0 gradient evaluations at the end as at the start."""
    comparison = compared({"ours": 0.8, "ppo": 0.4, "search": 0.2}, tasks=("one", "two"))
    records = [
        dataclasses.replace(
            r,
            curve=dataclasses.replace(
                r.curve, gradient_evaluations=r.curve.cpu_seconds * (r.contender != "search")
            ),
        )
        for r in comparison.records
    ]
    comparison = dataclasses.replace(comparison, records=records)
    found = verdicts.verdicts(comparison, QUICK.but(axis="gradient_evaluations"))
    assert found.overall["ppo"].outcome == WON
    assert "search" not in found.overall
    assert verdicts.verdicts(comparison, QUICK).overall["search"].outcome == WON


# -- many to many -----------------------------------------------------------------------------------------------------


def test_ranks_share_places_and_leave_out_what_is_missing():
    found = matrix.ranks([[3.0, 1.0], [3.0, math.nan], [1.0, 2.0]])
    assert np.array_equal(found, [[1.5, 2], [1.5, math.nan], [3, 1]], equal_nan=True)


def test_transfer_chooses_without_the_task_it_is_judged_on():
    """The first setting is best on the first task only."""
    scores = [[1.0, 0.0, 0.0], [0.5, 0.9, 0.8], [0.6, 0.5, 1.0]]
    found = matrix.transfer(scores)
    assert [(t.chosen, t.best) for t in found] == [(1, 0), (2, 1), (1, 2)]
    assert [t.regret for t in found] == pytest.approx([0.5, 0.4, 0.2])
    assert matrix.regret_of(scores, 1) == pytest.approx([0.5, 0.0, 0.2])


def test_transfer_does_not_see_the_left_out_task():
    rng = np.random.default_rng(0)
    scores = rng.random((5, 4))
    before = matrix.transfer(scores)[2].chosen
    scores[:, 2] = rng.random(5) * 100
    assert matrix.transfer(scores)[2].chosen == before


def test_choosing_by_rank_ignores_how_far():
    scores = [[0.6, 0.6, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 5.0]]
    assert matrix.transfer(scores, "score")[0].chosen == 2
    assert matrix.transfer([[0.6, 0.6, 0.6], [0.5, 0.5, 0.5], [0.0, 0.0, 5.0]], "rank")[0].chosen == 0


@pytest.mark.parametrize("scores", [[[1.0]], [[1.0, math.nan]], []])
def test_transfer_needs_two_tasks_and_every_score(scores):
    with pytest.raises(ConfigError, match="transfer needs"):
        matrix.transfer(scores)
    with pytest.raises(ConfigError, match="by = 'luck'"):
        matrix.transfer([[1.0, 2.0]], "luck")
