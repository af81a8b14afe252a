"""What a report shows along one axis: verdicts, all tasks together, transfer, and each task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diffsim.comparison import figures, matrix, statistics, words
from diffsim.comparison.figures import Row, Series, short3
from diffsim.comparison.scores import pooled
from diffsim.comparison.tables import AxisView, Figure, Table, spoken, three
from diffsim.comparison.task_views import TaskViews
from diffsim.comparison.verdicts import MISSING, Pair, Verdicts

_TABLE_POINTS = 11


class AxisViews(TaskViews):
    """Makes the view of a comparison along one axis."""

    def view(self) -> AxisView:
        found = self.found
        return AxisView(
            self.rules.axis,
            self.label,
            words.verdict(found, self.comparison)
            if found
            else "No contender is the reference: there is no verdict.",
            " ".join(filter(None, [words.strongest(found), words.pooling(found)])) if found else "",
            found.outcome() if found else "missing",
            self._board(found) if found else [],
            found.opponents if found else [],
            self._overall_figures(),
            self._overall_tables(),
            [self.task(task) for task in self.comparison.tasks],
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
                    "cells": [_board_cell(found, task, name, pairs.get(name)) for name in found.opponents],
                }
            )
        return rows

    def _overall_figures(self) -> list[Figure]:
        made = []
        known = {n: p for n, p in self.found.overall.items() if p.outcome != MISSING} if self.found else {}
        if self.found and known:
            made.append(self._improvement(self.found, known))
        scores = {c.name: pooled(list(self.data.values()), c.name) for c in self.contenders}
        scores = {name: found for name, found in scores.items() if found}
        if scores:
            made += [self._aggregates(scores), self._profiles(scores)]
        return made

    def _improvement(self, found: Verdicts, overall: Mapping[str, Pair]) -> Figure:
        rows = [
            Row(c.number, c.name, overall[c.name].probability) for c in self.contenders if c.name in overall
        ]
        tasks = {name: len(found.pooled(name)) for name in overall}
        reference = self.comparison.reference
        title = f"Probability that a run of {reference} scores higher"
        table = Table(
            f"improvement_{self.rules.axis}",
            title,
            ["against", "probability", "times as much to the threshold", "tasks", "outcome"],
            [
                [row.name, words.probability(row.value), words.ratio_cell(overall[row.name]), str(tasks[row.name]),
                 words.OUTCOME_WORDS[overall[row.name].outcome]]
                for row in rows
            ],
            [
                [row.name, *three(row.value), *three(overall[row.name].ratio), overall[row.name].sign,
                 overall[row.name].outcome, tasks[row.name]]
                for row in rows
            ],
            ["contender", "probability", "low", "high", "ratio", "ratio_low", "ratio_high", "ratio_reads", "outcome",
             "tasks"],
            [f"c c{row.number}" for row in rows],
        )  # fmt: skip
        caption = (
            f"Mean over tasks, at equal {self.label}, with 95% intervals. Right of ½ the reference is ahead; "
            f"an interval that holds ½ decides nothing.{_partial(tasks, len(found.tasks))}"
        )
        label = f"probability that {reference} scores higher"
        svg = figures.intervals(rows, label, f"{title}. {spoken(table)}", (0, 1), (0.5,))
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
                [c.name, *three(iqm[c.name]), *three(mean[c.name]), *three(gap[c.name]), len(scores[c.name]),
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
            rows, "normalised score", f"{title}. {spoken(table)}", (low - 0.03, high + 0.03), (0, 1)
        )
        caption = (
            f"At equal {self.label}. 0 is the score of the middle actions, 1 the best known; nothing is clipped in the "
            f"numbers, and values below −1 are outside of the figure.{self._fewer_tasks(scores)}"
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
            f"{title}. {spoken(table)}",
            (low, high),
            (0, 1.02),
        )
        caption = (
            "The higher the better, at every score: runs of all tasks, each task with the same weight."
            f"{self._fewer_tasks(scores)}"
        )
        return Figure("profiles", title, caption, svg, table)

    def _fewer_tasks(self, scores: Mapping[str, Sequence[Any]]) -> str:
        total = sum(data.limits is not None for data in self.data.values())
        return _partial({name: len(found) for name, found in scores.items()}, total)

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
                     *(f"{short3(s)} ({short3(r)})" if math.isfinite(s) else "–"
                       for s, r in zip(scores[row], place[row], strict=True))]
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
            f"large.{_without(names, kept)}"
        )
        return [Table(f"transfer_{self.rules.axis}", caption, head, rows, numbers, columns)]


def _board_cell(found: Verdicts, task: str | None, name: str, pair: Pair | None) -> dict[str, Any]:
    reason = found.left_out.get((task, name)) if task is not None else None
    if pair is None or pair.outcome == MISSING:
        return {"outcome": MISSING, "text": reason or words.OUTCOME_WORDS[MISSING], "lines": []}
    lines = [f"P {words.probability(pair.probability)}", words.ratio_cell(pair)]
    if task is None and len(pooled := found.pooled(name)) < len(found.tasks):
        lines.append(f"{len(pooled)} of {len(found.tasks)} tasks")
    return {"outcome": pair.outcome, "text": words.OUTCOME_WORDS[pair.outcome], "lines": lines}


def _without(names: Sequence[str], kept: Sequence[str]) -> str:
    dropped = [name for name in names if name not in kept]
    return f" Left out, having no score on some task: {words.listed(dropped)}." if dropped else ""


def _partial(counts: Mapping[str, int], total: int) -> str:
    """A sentence about contenders with fewer tasks than others; empty if there are none."""
    fewer = [f"{name} has {count} of {total}" for name, count in counts.items() if count < total]
    if not fewer:
        return ""
    return f" Not comparable with the others, for it is the mean over fewer tasks: {'; '.join(fewer)}."
