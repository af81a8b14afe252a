"""Who won: the reference against each opponent, on each task and over all, by rules that are fixed beforehand.

Two questions are asked of every pair.  *Score*: does a run of the reference score higher at the budget than a run of
the opponent?  Decided where the 95% interval of the probability of improvement is on one side of 1/2.  *Time*: does the
reference reach the threshold sooner?  Decided where the 95% interval of the ratio of Kaplan-Meier medians is on one
side of 1.  The reference ``won`` if one is decided for it and none against it, ``lost`` if one is decided against it
and none for it; ``mixed`` if they contradict each other, ``undecided`` if none is decided.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diffsim.comparison.records import Comparison
from diffsim.comparison.scores import Floats, Rules, TaskData, axes_known
from diffsim.comparison.statistics import UNKNOWN, Estimate, improvement
from diffsim.comparison.survival import Times, logrank, overall_ratio, ratio

WON, LOST, MIXED, UNDECIDED, MISSING = "won", "lost", "mixed", "undecided", "missing"
Frozen = tuple[tuple[float, ...], ...]
OPPONENTS = ("black box", "gradient-free", "imported")
"""Kinds of contenders that enter verdicts."""


@dataclass(frozen=True)
class Pair:
    """The reference against one contender on one task, or over all tasks."""

    probability: Estimate
    """That a run of the reference scores higher at the budget."""
    ratio: Estimate
    """How many times longer the contender takes to the threshold."""
    outcome: str
    sign: str = "="
    """How to read ``ratio``; see :func:`diffsim.comparison.survival.overall_ratio`."""
    p_value: float = math.nan
    """Of the logrank test that both are equally fast."""
    runs: tuple[int, int] = (0, 0)
    """Of the reference, of the contender."""


@dataclass(frozen=True)
class Verdicts:
    """Every pair along one axis."""

    rules: Rules
    reference: str
    tasks: Mapping[str, Mapping[str, Pair]]
    """By task and contender."""
    overall: Mapping[str, Pair]
    """By contender, over the tasks that both have runs of."""
    opponents: Sequence[str]
    """The contenders that enter verdicts."""
    ends: Mapping[str, float] = field(default_factory=dict)
    """Of each task the amount at which scores are compared."""
    left_out: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """Tasks and contenders that cannot be compared, whatever runs are still to come: ``not run``, or ``not measured``
    along the axis."""

    def against(self, task: str | None = None) -> list[str]:
        """The opponents of a verdict: on a task those that are not left out there, over all those left somewhere."""
        tasks = self.tasks if task is None else (task,)
        return [name for name in self.opponents if any((t, name) not in self.left_out for t in tasks)]

    def pooled(self, name: str) -> list[str]:
        """The tasks that the verdict over all tasks against ``name`` pools: those that both have ended runs on."""
        return [task for task, pairs in self.tasks.items() if name in pairs]

    def outcome(self, task: str | None = None) -> str:
        """The outcome of the reference on a task, or over all, against all opponents together."""
        pairs = self.overall if task is None else self.tasks[task]
        return together([pairs[n].outcome if n in pairs else MISSING for n in self.against(task)])


def decided(probability: Estimate, times: Estimate) -> str:
    """The outcome of a pair; see the head of this file."""
    if math.isnan(probability.low) and math.isnan(times.low):
        return MISSING
    ahead = probability.above(0.5) + times.above(1.0)
    behind = probability.below(0.5) + times.below(1.0)
    if ahead and behind:
        return MIXED
    return WON if ahead else LOST if behind else UNDECIDED


def together(outcomes: Sequence[str]) -> str:
    """Won if won against every opponent, lost if lost to any; else mixed before undecided."""
    if not outcomes or all(outcome == MISSING for outcome in outcomes):
        return MISSING
    if LOST in outcomes:
        return LOST
    if MIXED in outcomes:
        return MIXED
    return WON if all(outcome == WON for outcome in outcomes) else UNDECIDED


def verdicts(comparison: Comparison, rules: Rules, theirs: Rules | None = None) -> Verdicts | None:
    """Every pair by ``rules``, the contenders read by the rules ``theirs`` if given; None without a reference."""
    reference = comparison.reference
    if reference is None:
        return None
    ours = {task: TaskData(comparison, task, rules) for task in comparison.tasks}
    other = ours
    if theirs is not None:
        other = {task: TaskData(comparison, task, theirs) for task in comparison.tasks}
    contenders = [name for name in comparison.contenders if name != reference]
    tasks = {
        task: {name: pair for name in contenders if (pair := _pair(ours[task], other[task], reference, name))}
        for task in comparison.tasks
    }
    overall = {}
    for name in contenders:
        shared = [task for task in tasks if name in tasks[task]]
        if shared:
            overall[name] = _overall([(ours[task], other[task]) for task in shared], reference, name)
    opponents = [name for name in contenders if comparison.contenders[name].kind in OPPONENTS]
    ends = {task: data.end() for task, data in ours.items()}
    left_out = {
        (task, name): reason
        for task in tasks
        for name in contenders
        if (reason := _left_out(comparison, task, name, rules.axis))
    }
    return Verdicts(rules, reference, tasks, overall, opponents, ends, left_out)


def _left_out(comparison: Comparison, task: str, name: str, axis: str) -> str:
    records = comparison.of(task, name)
    if not records:
        return "" if comparison.plans(task, name) else "not run"
    measured = any(not len(record.curve) or record.curve.knows(axis) for record in records)
    return "" if measured else "not measured"


def _pair(ours: TaskData, theirs: TaskData, reference: str, name: str) -> Pair | None:
    rules = ours.rules
    x, y = ours.scores(reference), theirs.scores(name)
    if not len(x) or not len(y) or any(math.isnan(v) for v in (*x, *y)):
        return None
    probability = _improvement([x], [y], rules)
    times, p_value = UNKNOWN, math.nan
    first, second = ours.times(reference), theirs.times(name)
    if first is not None and second is not None:
        times = _ratio(second, first, rules)
        p_value = logrank(second, first)
    return Pair(probability, times, decided(probability, times), "=", p_value, (len(x), len(y)))


def _improvement(x: Sequence[Floats], y: Sequence[Floats], rules: Rules) -> Estimate:
    return _known_improvement(frozen(x), frozen(y), *_options(rules))


def _ratio(theirs: Times, ours: Times, rules: Rules) -> Estimate:
    data = [(data.times, data.reached) for data in (theirs, ours)]
    return _known_ratio(*map(frozen, data), *_options(rules))


# Another rule, or another figure, asks most questions of the same numbers again.
@functools.lru_cache(maxsize=16384)
def _known_improvement(x: Frozen, y: Frozen, *options: Any) -> Estimate:
    return improvement([np.array(s) for s in x], [np.array(s) for s in y], *options)


@functools.lru_cache(maxsize=16384)
def _known_ratio(theirs: Frozen, ours: Frozen, *options: Any) -> Estimate:
    return ratio(Times(*map(np.array, theirs)), Times(*map(np.array, ours)), *options)


@functools.lru_cache(maxsize=4096)
def _known_overall_ratio(
    pairs: Sequence[tuple[Frozen, Frozen, float]], *options: Any
) -> tuple[Estimate, str]:
    whole = [(Times(*map(np.array, y)), Times(*map(np.array, x)), end) for y, x, end in pairs]
    return overall_ratio(whole, *options)


def frozen(arrays: Sequence[Any]) -> Frozen:
    """Arrays as what caches know them by."""
    return tuple(tuple(array.tolist()) for array in arrays)


def _options(rules: Rules) -> tuple[Any, ...]:
    return rules.seed, rules.confidence, rules.resamples, rules.widen


def _overall(data: Sequence[tuple[TaskData, TaskData]], reference: str, name: str) -> Pair:
    rules = data[0][0].rules
    x = [ours.scores(reference) for ours, _ in data]
    y = [theirs.scores(name) for _, theirs in data]
    probability = _improvement(x, y, rules)
    pairs = [
        (second, first, ours.end())
        for ours, theirs in data
        if (first := ours.times(reference)) is not None and (second := theirs.times(name)) is not None
    ]
    keys = [(frozen((y.times, y.reached)), frozen((x.times, x.reached)), end) for y, x, end in pairs]
    times, sign = _known_overall_ratio(tuple(keys), *_options(rules))
    runs = sum(map(len, x)), sum(map(len, y))
    # Where medians are not reached the ratio is a bound, which can decide in one direction only.
    bounds = {">=": (times.low, math.inf), "<=": (0.0, times.high), "~": (math.nan, math.nan)}
    low, high = bounds.get(sign, (times.low, times.high))
    outcome = decided(probability, Estimate(times.value, low, high))
    return Pair(probability, times, outcome, sign, math.nan, runs)


# -- what would change the verdict ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """A verdict that another rule would give."""

    task: str | None
    """None is the verdict over all tasks."""
    contender: str
    before: str
    after: str


@dataclass(frozen=True)
class Question:
    """Another rule, and every verdict that it changes."""

    words: str
    changes: Sequence[Change]


def what_would_change(comparison: Comparison, rules: Rules) -> list[Question]:
    """The verdicts against opponents under other rules than those of the report."""
    base = verdicts(comparison, rules)
    if base is None or not base.opponents:
        return []
    pairs = sum(name in base.tasks[task] for task in base.tasks for name in base.opponents)
    others: list[tuple[str, Rules, Rules | None]] = [
        (
            "Runs that crashed or diverged count with the score of their last evaluation",
            rules.but(failed="last"),
            None,
        ),
        ("Runs that crashed or diverged are left out", rules.but(failed="left out"), None),
        (
            "A threshold counts as reached only if the run stays there to its end",
            rules.but(crossing="lasting"),
            None,
        ),
        (
            "Opponents reached the threshold right after the evaluation before the one that saw it",
            rules,
            rules.but(crossing="earliest"),
        ),
        (
            "Opponents hand over the best of all their policies, chosen by the evaluations that judge them",
            rules,
            rules.but(hindsight=True),
        ),
    ]
    if rules.axis.endswith("_seconds"):
        others.append(("Clocks begin before import, start and compilation", rules.but(overheads=True), None))
    if pairs > 1:
        level = 1 - (1 - rules.confidence) / pairs
        words = f"Intervals hold for all {pairs} pairs together (Bonferroni: {level:.2%} each)"
        others.append((words, rules.but(confidence=level, resamples=5 * rules.resamples), None))
    found = [
        Question(words, _changes(base, verdicts(comparison, ours, theirs))) for words, ours, theirs in others
    ]
    for task in comparison.tasks if len(comparison.tasks) > 1 else ():
        fewer = {name: about for name, about in comparison.tasks.items() if name != task}
        other = verdicts(dataclasses.replace(comparison, tasks=fewer), rules)
        changes = [change for change in _changes(base, other) if change.task is None]
        found.append(Question(f"The task {task} is left out (verdict over all tasks)", changes))
    for axis in axes_known(comparison):
        if axis != rules.axis:
            other = verdicts(comparison, rules.but(axis=axis))
            found.append(Question(f"Budgets are equal in {axis.replace('_', ' ')}", _changes(base, other)))
    return found


def _changes(base: Verdicts, other: Verdicts | None) -> list[Change]:
    if other is None:
        return []
    changes = []
    for task in (None, *(task for task in base.tasks if task in other.tasks)):
        before, after = (v.overall if task is None else v.tasks[task] for v in (base, other))
        for name in base.opponents:
            pair = before.get(name), after.get(name)
            outcomes = tuple(MISSING if one is None else one.outcome for one in pair)
            if outcomes[0] != outcomes[1]:
                changes.append(Change(task, name, *outcomes))
    return changes
