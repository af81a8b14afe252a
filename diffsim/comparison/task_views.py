"""The views of single tasks along one axis: learning curves, times to the threshold, and all numbers."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

from diffsim.comparison import figures, statistics, survival, words
from diffsim.comparison.figures import Line, Series, short3
from diffsim.comparison.records import Comparison, Record
from diffsim.comparison.scores import Rules, TaskData, axes_known
from diffsim.comparison.statistics import UNKNOWN, Estimate, Scores
from diffsim.comparison.tables import Figure, Table, TaskView, contender_views, spoken, three
from diffsim.comparison.verdicts import Frozen, frozen, verdicts
from diffsim.values import counted

GRID = 101
"""Points of a contender's line."""
_TABLE_POINTS = 11
_PAGE_BYTES = 1_600_000
"""What the lines of runs may take in a page that may have 3 MB, all axes together."""
_RUN_BYTES, _POINT_BYTES, _LEAST_POINTS = 110, 11, 6
"""Of a line without its points (element and title), and of a point."""


class TaskViews:
    """Makes the views of the tasks of a comparison along one axis."""

    def __init__(self, comparison: Comparison, rules: Rules) -> None:
        self.comparison, self.rules = comparison, rules
        self.contenders = contender_views(comparison)
        self.data = {task: TaskData(comparison, task, rules) for task in comparison.tasks}
        self.found = verdicts(comparison, rules)
        self.label = words.AXIS_WORDS[rules.axis]
        self.most_points, self.stride = line_sizes(len(comparison.records) * len(axes_known(comparison)))

    def estimate(self, statistic: Callable[..., Any], scores: Scores) -> Estimate:
        """:func:`diffsim.comparison.statistics.estimate` by the rules."""
        rules = self.rules
        return _known_estimate(statistic, frozen(scores), rules.seed, rules.confidence, rules.resamples)

    def task(self, task: str) -> TaskView:
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
            " ".join(filter(None, [words.strongest(found, task), words.not_compared(found, task)]))
            if found
            else "",
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
                for r in drawn[:: self.stride]
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
            f"{title}, by {self.label}. {spoken(table)}",
            (0, end),
            y_range,
            value,
            "threshold",
            self.most_points,
        )
        thin = "every run"
        if self.stride > 1:
            thin = f"one run of {self.stride}, to keep the page small; all are in tables/curves.csv"
        caption = (
            f"Thin: {thin}. Thick: interquartile mean over runs, from the first evaluation of all to the end of the "
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
            numbers.append([c.name, int(found.reached.sum()), len(found), *three(middle)])
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
            series, (self.label, "share of runs"), f"{title}. {spoken(table)}", (0, end), (0, 1.03)
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
                [task, c.name, len(scores), *three(iqm), *three(mean), *three(curve), *three(middle),
                 *three(pair.probability if pair else UNKNOWN), *three(pair.ratio if pair else UNKNOWN),
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


# Along another axis most scores are the same numbers again.
@functools.lru_cache(maxsize=16384)
def _known_estimate(statistic: Callable[..., Any], scores: Frozen, *options: Any) -> Estimate:
    return statistics.estimate(statistic, scores, *options)


def line_sizes(lines: int) -> tuple[int, int]:
    """Points of each line of a run, and of how many runs one is drawn, so that ``lines`` fit into the page."""
    each = _PAGE_BYTES / max(1, lines)
    points = int(np.clip((each - _RUN_BYTES) / _POINT_BYTES, _LEAST_POINTS, 60))
    return points, max(1, math.ceil((_RUN_BYTES + _POINT_BYTES * _LEAST_POINTS) / each))


def _time(value: Estimate) -> str:
    if math.isinf(value.value):
        return f"not reached (> {short3(value.low)})" if value.low > 0 else "not reached"
    return figures.numbers(value)


def _protocol(record: Record) -> str:
    p = record.protocol
    how = "without exploration noise" if p.deterministic else "with exploration noise"
    starts = f" from {p.starts}" if p.starts else ""
    if not p.episodes:
        return f"{p.judge}; starts: {p.starts or 'not said'}; {how}"
    seed = "other ones for each run" if p.seed is None else f"seed {p.seed}"
    return f"{p.judge}, {counted(p.episodes, 'fixed start')}{starts}, {seed}, {how}"


def _early(data: TaskData, name: str) -> int:
    """Finished runs whose last evaluation is well before the budget: another limit ended them."""
    finished = [data.along(r) for r in data.records(name) if not r.failed]
    return sum(bool(x[-1] + 2 * _gap(x) < data.end()) for x in finished if x[-1] < data.end())


def _evaluation_gap(data: TaskData, name: str) -> float:
    gaps = [_gap(data.along(r)) for r in data.records(name) if len(r.curve) > 1]
    return float(np.median(gaps)) if gaps else math.nan


def _gap(x: Any) -> float:
    return float(median(np.diff(x).tolist())) if len(x) > 1 else 0.0
