"""What a report shows, as plain data: tables of texts, figures and sentences, made from the records of a comparison."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from diffsim.comparison import figures, matrix, statistics, survival, words
from diffsim.comparison.figures import Line, Row, Series, short3
from diffsim.comparison.records import Comparison, Record
from diffsim.comparison.scores import Rules, TaskData, axes_known, pooled
from diffsim.comparison.statistics import UNKNOWN, Estimate
from diffsim.comparison.verdicts import Pair, Verdicts, verdicts

GRID = 101
"""Points of a contender's line."""
_TABLE_POINTS = 11
_PAGE_BYTES = 1_600_000
"""What runs may take in a page that may have 3 MB, all axes together."""


@dataclass(frozen=True)
class Table:
    """A table of texts.  ``numbers``: the same with numbers in full, for CSV; the texts if None."""

    name: str
    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[Sequence[Any]] | None = None
    columns: Sequence[str] = ()
    """Heads of the numbers."""
    classes: Sequence[str] = ()
    """A class of each row, such as that of its contender."""


@dataclass(frozen=True)
class Figure:
    """An inline SVG, and the same as a table."""

    name: str
    title: str
    caption: str
    svg: str
    table: Table


@dataclass(frozen=True)
class TaskView:
    """One task along one axis."""

    name: str
    facts: Sequence[tuple[str, str]]
    sentence: str
    detail: str
    outcome: str
    figures: Sequence[Figure]
    tables: Sequence[Table]


@dataclass(frozen=True)
class AxisView:
    """Everything that depends on the axis along which budgets are equal."""

    key: str
    label: str
    sentence: str
    detail: str
    outcome: str
    board: Sequence[Mapping[str, Any]]
    """A row a task, and one over all: name, outcome, cells by opponent."""
    opponents: Sequence[str]
    figures: Sequence[Figure]
    tables: Sequence[Table]
    tasks: Sequence[TaskView]


@dataclass(frozen=True)
class ContenderView:
    """A contender's name, place among the colours, and what is said of it."""

    number: int
    name: str
    kind: str
    facts: Sequence[tuple[str, str]] = field(default_factory=tuple)


def contender_views(comparison: Comparison) -> list[ContenderView]:
    """The contenders, the reference first."""
    order = sorted(comparison.contenders, key=lambda name: name != comparison.reference)
    found = []
    for number, name in enumerate(order):
        about = comparison.contenders[name]
        facts = [
            ("what", about.description),
            ("settings from", about.source or "not said"),
            ("tuned by", about.tuned_by or "not said"),
            ("tuning effort", about.tuning_effort or "not said"),
        ]
        found.append(ContenderView(number, name, about.kind, facts))
    return found


class AxisViews:
    """Makes the view of a comparison along one axis."""

    def __init__(self, comparison: Comparison, rules: Rules) -> None:
        self.comparison, self.rules = comparison, rules
        self.contenders = contender_views(comparison)
        self.data = {task: TaskData(comparison, task, rules) for task in comparison.tasks}
        self.found = verdicts(comparison, rules)
        self.label = words.AXIS_WORDS[rules.axis]
        runs = max(1, len(comparison.records) * len(axes_known(comparison)))
        self.most_points = int(np.clip(_PAGE_BYTES / (11 * runs), 6, 60))
        self.estimate = partial(
            statistics.estimate, seed=rules.seed, confidence=rules.confidence, resamples=rules.resamples
        )

    def view(self) -> AxisView:
        found = self.found
        return AxisView(
            self.rules.axis,
            self.label,
            words.verdict(found, self.comparison)
            if found
            else "No contender is the reference: there is no verdict.",
            words.strongest(found) if found else "",
            found.outcome() if found else "missing",
            self._board(found) if found else [],
            found.opponents if found else [],
            self._overall_figures(),
            self._overall_tables(),
            [self._task(task) for task in self.comparison.tasks],
        )

    # -- over all tasks -----------------------------------------------------------------------------------------------

    def _board(self, found: Verdicts) -> list[dict[str, Any]]:
        rows = []
        several = len(found.tasks) > 1
        for task in (*([None] if several else []), *found.tasks):
            pairs = found.overall if task is None else found.tasks[task]
            rows.append(
                {
                    "name": "All tasks" if task is None else task,
                    "outcome": found.outcome(task),
                    "cells": [_board_cell(pairs.get(name)) for name in found.opponents],
                }
            )
        return rows

    def _overall_figures(self) -> list[Figure]:
        made = []
        if self.found and self.found.overall:
            made.append(self._improvement(self.found.overall))
        scores = {c.name: pooled(list(self.data.values()), c.name) for c in self.contenders}
        scores = {name: found for name, found in scores.items() if found}
        if scores:
            made += [self._aggregates(scores), self._profiles(scores)]
        return made

    def _improvement(self, overall: Mapping[str, Pair]) -> Figure:
        rows = [
            Row(c.number, c.name, overall[c.name].probability) for c in self.contenders if c.name in overall
        ]
        reference = self.comparison.reference
        title = f"Probability that a run of {reference} scores higher"
        table = Table(
            f"improvement_{self.rules.axis}",
            title,
            ["against", "probability", "times as much to the threshold", "outcome"],
            [
                [row.name, words.probability(row.value), words.ratio_cell(overall[row.name]),
                 words.OUTCOME_WORDS[overall[row.name].outcome]]
                for row in rows
            ],
            [
                [row.name, *_three(row.value), *_three(overall[row.name].ratio), overall[row.name].sign,
                 overall[row.name].outcome]
                for row in rows
            ],
            ["contender", "probability", "low", "high", "ratio", "ratio_low", "ratio_high", "ratio_reads", "outcome"],
            [f"c c{row.number}" for row in rows],
        )  # fmt: skip
        caption = (
            f"Mean over tasks, at equal {self.label}, with 95% intervals. Right of ½ the reference is ahead; "
            "an interval that holds ½ decides nothing."
        )
        label = f"probability that {reference} scores higher"
        svg = figures.intervals(rows, label, f"{title}. {_spoken(table)}", (0, 1), (0.5,))
        return Figure("improvement", title, caption, svg, table)

    def _aggregates(self, scores: Mapping[str, Sequence[Any]]) -> Figure:
        chosen = [c for c in self.contenders if c.name in scores]
        iqm = {c.name: self.estimate(statistics.interquartile_mean, scores[c.name]) for c in chosen}
        mean = {c.name: self.estimate(statistics.mean, scores[c.name]) for c in chosen}
        gap = {c.name: self.estimate(statistics.optimality_gap, scores[c.name]) for c in chosen}
        rows = [Row(c.number, c.name, iqm[c.name]) for c in chosen]
        title = "Interquartile mean of normalised scores"
        table = Table(
            f"aggregates_{self.rules.axis}",
            "Normalised scores over all tasks: 0 = middle actions, 1 = best known",
            ["contender", "interquartile mean", "mean", "optimality gap", "tasks", "runs"],
            [
                [c.name, *(figures.numbers(v[c.name]) for v in (iqm, mean, gap)), str(len(scores[c.name])),
                 str(sum(map(len, scores[c.name])))]
                for c in chosen
            ],
            [
                [c.name, *_three(iqm[c.name]), *_three(mean[c.name]), *_three(gap[c.name]), len(scores[c.name]),
                 sum(map(len, scores[c.name]))]
                for c in chosen
            ],
            ["contender", "iqm", "iqm_low", "iqm_high", "mean", "mean_low", "mean_high", "gap", "gap_low", "gap_high",
             "tasks", "runs"],
            [f"c c{c.number}" for c in chosen],
        )  # fmt: skip
        low = min([0.0, *(r.value.low if math.isfinite(r.value.low) else r.value.value for r in rows)])
        high = max([1.0, *(r.value.high if math.isfinite(r.value.high) else r.value.value for r in rows)])
        # One contender far below would squeeze all others together.
        low = max(low, -1.0)
        svg = figures.intervals(
            rows, "normalised score", f"{title}. {_spoken(table)}", (low - 0.03, high + 0.03), (0, 1)
        )
        caption = (
            f"At equal {self.label}. 0 is the score of the middle actions, 1 the best known; nothing is clipped in the "
            "numbers, and values below −1 are outside of the figure."
        )
        return Figure("aggregates", title, caption, svg, table)

    def _profiles(self, scores: Mapping[str, Sequence[Any]]) -> Figure:
        values = np.concatenate([v for found in scores.values() for v in found])
        low = max(-1.0, min(0.0, float(values.min()))) - 0.02
        high = max(1.0, float(values.max())) + 0.02
        taus = np.linspace(low, high, 121)
        chosen = [c for c in self.contenders if c.name in scores]
        profile = {c.name: statistics.performance_profile(scores[c.name], taus) for c in chosen}
        series = [Series(c.number, c.name, x=taus, y=profile[c.name]) for c in chosen]
        title = "Performance profiles"
        shown = np.linspace(0, 1, _TABLE_POINTS)
        table = Table(
            f"profiles_{self.rules.axis}",
            "Share of runs with a normalised score greater than",
            ["contender", *(f"{tau:.1f}" for tau in shown)],
            [
                [c.name, *(f"{v:.0%}" for v in statistics.performance_profile(scores[c.name], shown))]
                for c in chosen
            ],
            [
                [c.name, tau, v]
                for c in chosen
                for tau, v in zip(taus.tolist(), profile[c.name].tolist(), strict=True)
            ],
            ["contender", "tau", "share"],
            [f"c c{c.number}" for c in chosen],
        )
        svg = figures.curves(
            series,
            ("normalised score τ", "share of runs above τ"),
            f"{title}. {_spoken(table)}",
            (low, high),
            (0, 1.02),
        )
        caption = "The higher the better, at every score: runs of all tasks, each task with the same weight."
        return Figure("profiles", title, caption, svg, table)

    def _overall_tables(self) -> list[Table]:
        names = [c.name for c in self.contenders]
        tasks = [task for task, data in self.data.items() if data.limits is not None]
        scores = np.full((len(names), len(tasks)), np.nan)
        for row, name in enumerate(names):
            for column, task in enumerate(tasks):
                found = self.data[task].scores(name, normalise=True)
                if len(found):
                    scores[row, column] = statistics.interquartile_mean(found)
        if not tasks or not np.isfinite(scores).any():
            return []
        place = matrix.ranks(scores)
        with np.errstate(all="ignore"):
            mean_rank = [float(np.nanmean(row)) if np.isfinite(row).any() else math.nan for row in place]
        tables = [
            Table(
                f"ranks_{self.rules.axis}",
                "Normalised interquartile mean (and rank) of each contender on each task",
                ["contender", "mean rank", *tasks],
                [
                    [name, short3(mean_rank[row]),
                     *(f"{short3(s)} ({short3(r)})" for s, r in zip(scores[row], place[row], strict=True))]
                    for row, name in enumerate(names)
                ],
                [
                    [name, task, float(scores[row, column]), float(place[row, column])]
                    for row, name in enumerate(names)
                    for column, task in enumerate(tasks)
                ],
                ["contender", "task", "normalised_iqm", "rank"],
                [f"c c{c.number}" for c in self.contenders],
            )
        ]  # fmt: skip
        return [*tables, *self._transfer(scores, names, tasks)]

    def _transfer(self, scores: Any, names: Sequence[str], tasks: Sequence[str]) -> list[Table]:
        whole, kept = matrix.complete(scores, names)
        if len(tasks) < 2 or len(kept) < 2:
            return []
        ways = {by: matrix.transfer(whole, by) for by in matrix.CHOICES}
        reference = self.comparison.reference
        own = matrix.regret_of(whole, kept.index(reference)) if reference in kept else None
        rows, numbers = [], []
        for column, task in enumerate(tasks):
            by_score, by_rank = (ways[by][column] for by in matrix.CHOICES)
            regret = float(own[column]) if own is not None else math.nan
            rows.append([task, kept[by_score.best], kept[by_score.chosen], short3(by_score.regret),
                         kept[by_rank.chosen], short3(by_rank.regret), short3(regret)])  # fmt: skip
            numbers.append([task, kept[by_score.best], kept[by_score.chosen], by_score.regret,
                            kept[by_rank.chosen], by_rank.regret, regret])  # fmt: skip
        means = [float(np.mean([n[k] for n in numbers])) for k in (3, 5, 6)]
        rows.append(["mean", "", "", short3(means[0]), "", short3(means[1]), short3(means[2])])
        head = ["task left out", "best there", "chosen on the others by score", "regret", "by rank", "regret",
                f"regret of {reference or 'the reference'}"]  # fmt: skip
        columns = ["task", "best", "chosen_by_score", "regret_by_score", "chosen_by_rank", "regret_by_rank",
                   "regret_of_reference"]  # fmt: skip
        caption = (
            "Transfer: the contender that is best on all other tasks, used on this one; regret is the normalised score "
            "that it falls short of the best there. The best is found from the same runs, so regrets are a little too "
            "large."
        )
        return [Table(f"transfer_{self.rules.axis}", caption, head, rows, numbers, columns)]

    # -- one task -----------------------------------------------------------------------------------------------------

    def _task(self, task: str) -> TaskView:
        about, data, found = self.comparison.tasks[task], self.data[task], self.found
        records = [r for r in self.comparison.records if r.task == task]
        protocols = list(dict.fromkeys(_protocol(r) for r in records))
        facts = [
            ("what", about.description),
            ("threshold", words.threshold(about)),
            ("normalised", words.limits(about)),
            ("judged", "; ".join(protocols) or "no run yet"),
            ("compared at", words.amount(data.end(), self.rules.axis)),
        ]
        shown = [self._learning(task, data)]
        if (reached := self._reaching(task, data)) is not None:
            shown.append(reached)
        return TaskView(
            task,
            [(name, text) for name, text in facts if text],
            words.verdict(found, self.comparison, task) if found else "",
            words.strongest(found, task) if found else "",
            found.outcome(task) if found else "missing",
            shown,
            [self._task_table(task, data)],
        )

    def _learning(self, task: str, data: TaskData) -> Figure:
        about = self.comparison.tasks[task]
        end = data.end()
        end = end if math.isfinite(end) else 1.0
        grid = np.linspace(0, end, GRID)
        series = []
        for c in self.contenders:
            drawn = [r for r in self.comparison.of(task, c.name) if r.curve.knows(self.rules.axis)]
            lines = [
                Line(f"seed {r.seed}{'' if r.status == 'finished' else ', ' + r.status}", data.along(r),
                     r.curve.score, r.failed)
                for r in drawn
            ]  # fmt: skip
            x, y = data.middle(c.name, grid)
            series.append(Series(c.number, c.name, lines, x, y))
        value = about.threshold.value if about.threshold and about.threshold.measure == "score" else None
        marks = [value] if value is not None else []
        y_range = figures.score_range([line.y for s in series for line in s.lines], marks)
        title = f"Learning curves: {task}"
        shown = np.linspace(0, end, _TABLE_POINTS)[1:]
        rows, classes = [], []
        for c in self.contenders:
            x, y = data.middle(c.name, shown)
            if len(x):
                known = dict(zip(x.tolist(), y.tolist(), strict=True))
                rows.append([c.name, *(short3(known.get(float(p), math.nan)) for p in shown)])
                classes.append(f"c c{c.number}")
        table = Table(
            f"curve_{task}_{self.rules.axis}",
            f"Interquartile mean of the score over runs, by {self.label}",
            ["contender", *(figures.short(float(f"{p:.3g}")) for p in shown)],
            rows,
            classes=classes,
        )
        svg = figures.curves(
            series,
            (self.label, "score"),
            f"{title}, by {self.label}. {_spoken(table)}",
            (0, end),
            y_range,
            value,
            "threshold",
            self.most_points,
        )
        caption = (
            "Thin: every run. Thick: interquartile mean over runs, from the first evaluation of all to the end of the "
            "shortest run. A cross marks where a run crashed or diverged; from there on it counts as the middle "
            "actions, or its last score if that is less."
        )
        return Figure(f"curve_{task}", title, caption, svg, table)

    def _reaching(self, task: str, data: TaskData) -> Figure | None:
        times = {c.name: t for c in self.contenders if (t := data.times(c.name)) is not None}
        if not times:
            return None
        end = data.end()
        series, rows, classes, numbers = [], [], [], []
        for c in self.contenders:
            if c.name not in times:
                continue
            found = times[c.name]
            at, share = survival.shares_reached(found)
            steps: Any = np.concatenate([[0.0], at, [max(end, float(at[-1]))]])
            shares = np.concatenate([[0.0], share, share[-1:]])
            series.append(Series(c.number, c.name, x=steps, y=shares, steps=True))
            middle = survival.median(found, self.rules.confidence)
            rows.append([c.name, f"{int(found.reached.sum())} of {len(found)}", _time(middle)])
            numbers.append([c.name, int(found.reached.sum()), len(found), *_three(middle)])
            classes.append(f"c c{c.number}")
        title = f"Share of runs that have reached the threshold: {task}"
        table = Table(
            f"times_{task}_{self.rules.axis}",
            f"{self.label} to the threshold: median of Kaplan and Meier",
            ["contender", "reached", "median"],
            rows,
            numbers,
            ["contender", "reached", "runs", "median", "low", "high"],
            classes,
        )
        svg = figures.curves(
            series, (self.label, "share of runs"), f"{title}. {_spoken(table)}", (0, end), (0, 1.03)
        )
        caption = f"Kaplan-Meier estimate; the threshold is {words.threshold(self.comparison.tasks[task])}."
        return Figure(f"times_{task}", title, caption, svg, table)

    def _task_table(self, task: str, data: TaskData) -> Table:
        pairs = self.found.tasks[task] if self.found else {}
        rows, numbers, classes = [], [], []
        for c in self.contenders:
            scores = data.scores(c.name)
            known = len(scores) > 0 and bool(np.isfinite(scores).all())
            iqm = self.estimate(statistics.interquartile_mean, [scores]) if known else UNKNOWN
            mean = self.estimate(statistics.mean, [scores]) if known else UNKNOWN
            areas = data.areas(c.name) if known and math.isfinite(data.end()) else np.array([])
            curve = (
                self.estimate(statistics.mean, [areas])
                if len(areas) and np.isfinite(areas).all()
                else UNKNOWN
            )
            times, pair = data.times(c.name), pairs.get(c.name)
            middle = survival.median(times, self.rules.confidence) if times is not None else UNKNOWN
            early, gap = _early(data, c.name), _evaluation_gap(data, c.name)
            spread = f"{short3(scores.min())} to {short3(scores.max())}" if known else "–"
            rows.append(
                [c.name, str(len(scores)), figures.numbers(iqm), figures.numbers(mean), spread, figures.numbers(curve),
                 f"{int(times.reached.sum())} of {len(times)}" if times is not None else "–",
                 _time(middle) if times is not None else "–",
                 words.probability(pair.probability) if pair else "–", words.ratio_cell(pair) if pair else "–",
                 f"{pair.p_value:.2g}" if pair and not math.isnan(pair.p_value) else "–",
                 words.OUTCOME_WORDS[pair.outcome] if pair else "–", short3(gap), str(early)]
            )  # fmt: skip
            numbers.append(
                [task, c.name, len(scores), *_three(iqm), *_three(mean), *_three(curve), *_three(middle),
                 *_three(pair.probability if pair else UNKNOWN), *_three(pair.ratio if pair else UNKNOWN),
                 pair.p_value if pair else math.nan, pair.outcome if pair else "", gap, early]
            )  # fmt: skip
            classes.append(f"c c{c.number}")
        head = ["contender", "runs", "score: interquartile mean", "mean", "all runs", "mean over the budget",
                "reached the threshold", f"median {self.label} to it", "P(reference scores higher)",
                "times as much to the threshold as the reference", "logrank p", "reference", "between evaluations",
                "ended before the budget"]  # fmt: skip
        columns = ["task", "contender", "runs", "iqm", "iqm_low", "iqm_high", "mean", "mean_low", "mean_high", "area",
                   "area_low", "area_high", "median", "median_low", "median_high", "probability", "probability_low",
                   "probability_high", "ratio", "ratio_low", "ratio_high", "logrank_p", "outcome",
                   "between_evaluations", "ended_early"]  # fmt: skip
        caption = f"{task} at {words.amount(data.end(), self.rules.axis)}"
        return Table(f"task_{task}_{self.rules.axis}", caption, head, rows, numbers, columns, classes)


def _three(value: Estimate) -> tuple[float, float, float]:
    return value.value, value.low, value.high


def _time(value: Estimate) -> str:
    if math.isinf(value.value):
        return f"not reached (> {short3(value.low)})" if value.low > 0 else "not reached"
    return figures.numbers(value)


def _board_cell(pair: Pair | None) -> dict[str, str]:
    if pair is None:
        return {"outcome": "missing", "probability": "", "ratio": ""}
    return {
        "outcome": pair.outcome,
        "probability": f"P {words.probability(pair.probability)}",
        "ratio": words.ratio_cell(pair),
    }


def _spoken(table: Table) -> str:
    """The first rows of a table as one line, for who cannot see the figure."""
    return "; ".join(f"{row[0]}: {row[-1]}" for row in table.rows[:8])


def _protocol(record: Record) -> str:
    p = record.protocol
    how = "without exploration noise" if p.deterministic else "with exploration noise"
    starts = f" from {p.starts}" if p.starts else ""
    return f"{p.judge}, {p.episodes} fixed starts{starts}, seed {p.seed}, {how}"


def _early(data: TaskData, name: str) -> int:
    """Finished runs whose last evaluation is well before the budget: another limit ended them."""
    finished = [data.along(r) for r in data.records(name) if not r.failed]
    return sum(bool(x[-1] + 2 * _gap(x) < data.end()) for x in finished)


def _evaluation_gap(data: TaskData, name: str) -> float:
    gaps = [_gap(data.along(r)) for r in data.records(name) if len(r.curve) > 1]
    return float(np.median(gaps)) if gaps else math.nan


def _gap(x: Any) -> float:
    return float(np.median(np.diff(x))) if len(x) > 1 else 0.0
