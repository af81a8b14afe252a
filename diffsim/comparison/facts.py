"""What a report says that depends on no axis: which runs there are, how they were made, and how far to trust them."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from diffsim.comparison import statistics
from diffsim.comparison.figures import short, short3
from diffsim.comparison.records import STATUSES, Comparison, Record
from diffsim.comparison.tables import ContenderView, Table, contender_views
from diffsim.comparison.verdicts import Question
from diffsim.comparison.words import OUTCOME_WORDS
from diffsim.values import counted

_SETTINGS = 80
"""Settings of a contender that the page lists; the records hold all."""
_RUNS, _FAILURES, _WHY = 1000, 100, 3000
"""Rows of the page's tables of runs and of failures, and characters of a reason; the CSV tables hold all."""
_OVERHEADS = (
    ("import_seconds", "import"),
    ("start_seconds", "start"),
    ("compile_seconds", "compile"),
    ("evaluation_seconds", "evaluation"),
    ("total_seconds", "whole process"),
)


def missing(comparison: Comparison) -> list[str]:
    """What keeps a comparison from being whole, one sentence each; empty if nothing does."""
    there = {record.key for record in comparison.records}
    absent = [key for key in comparison.planned() if key not in there]
    unfinished = [record for record in comparison.records if record.status == "unfinished"]
    sentences = []
    if absent:
        by = Counter((task, contender) for task, contender, _ in absent)
        some = "; ".join(f"{task}, {contender}: {count}" for (task, contender), count in by.most_common(12))
        more = f"; and {len(by) - 12} more pairs" if len(by) > 12 else ""
        have = "has" if len(absent) == 1 else "have"
        sentences.append(
            f"{len(absent)} of {counted(len(comparison.planned()), 'planned run')} {have} no record yet ({some}{more})."
        )
    if unfinished:
        total = counted(len(comparison.records), "record")
        sentences.append(f"Not at their end, and in no statistic: {len(unfinished)} of {total}.")
    if comparison.unreadable:
        some = "; ".join(f"{name}: {why}" for name, why in list(comparison.unreadable.items())[:6])
        count = counted(len(comparison.unreadable), "file")
        sentences.append(f"Cannot be read: {count} ({some}).")
    return sentences


def runs_table(comparison: Comparison) -> Table:
    """Every planned run and every record: status, end of its curve, and why it failed."""
    by_key = {record.key: record for record in comparison.records}
    keys = list(dict.fromkeys([*comparison.planned(), *by_key]))
    head = [
        "task",
        "contender",
        "seed",
        "status",
        "last score",
        "success",
        "CPU s",
        "wall s",
        "steps",
        "gradients",
        "why",
    ]
    rows, numbers = [], []
    for task, contender, seed in keys:
        record = by_key.get((task, contender, seed))
        if record is None:
            rows.append([task, contender, str(seed), "no record", *[""] * 7])
            numbers.append([task, contender, seed, "no record", *[math.nan] * 6, ""])
            continue
        curve = record.curve
        last = [
            float(getattr(curve, name)[-1]) if len(curve) else math.nan
            for name in (
                "score",
                "success",
                "cpu_seconds",
                "wall_seconds",
                "environment_steps",
                "gradient_evaluations",
            )
        ]
        shown = [
            short3(last[0]),
            short3(last[1]),
            *(short(v) if not math.isnan(v) else "–" for v in last[2:]),
        ]
        rows.append([task, contender, str(seed), record.status, *shown, _last_line(record.error)])
        numbers.append([task, contender, seed, record.status, *last, record.error])
    return Table(
        "runs",
        "Every run",
        head,
        _first_rows(rows, _RUNS, "runs"),
        numbers,
        ["task", "contender", "seed", "status", "score", "success", "cpu_seconds", "wall_seconds",
         "environment_steps", "gradient_evaluations", "error"],
    )  # fmt: skip


def matrix_table(comparison: Comparison) -> Table:
    """Counts of runs by status: a row a task, a column a contender."""
    names = [c.name for c in contender_views(comparison)]
    rows = [[task, *(_counts(comparison, task, name) for name in names)] for task in comparison.tasks]
    caption = "Runs by status; a pair that was not run says why"
    return Table("matrix", caption, ["task", *names], rows)


def _counts(comparison: Comparison, task: str, name: str) -> str:
    found = comparison.of(task, name)
    counts = Counter(record.status for record in found)
    absent = sum((t, c) == (task, name) for t, c, _ in comparison.planned()) - len(found)
    parts = [f"{counts[status]} {status}" for status in STATUSES if counts[status]]
    if absent > 0:
        parts.append(f"{absent} missing")
    return ", ".join(parts) or comparison.skipped.get(f"{task}/{name}", "not planned")


def failures_table(comparison: Comparison) -> Table | None:
    """The runs that crashed, diverged or were stopped, and why."""
    failed = [record for record in comparison.records if record.status != "finished"]
    if not failed:
        return None
    order = [list(comparison.tasks), list(comparison.contenders)]
    failed.sort(key=lambda r: (order[0].index(r.task), order[1].index(r.contender), r.seed))
    numbers = [[r.task, r.contender, str(r.seed), r.status, r.error or "not said"] for r in failed]
    rows = [[*row[:-1], row[-1] if len(row[-1]) <= _WHY else f"…{row[-1][-_WHY:]}"] for row in numbers]
    head = ["task", "contender", "seed", "status", "why"]
    shown = _first_rows(rows, _FAILURES, "failures")
    return Table("failures", "Runs that did not finish", head, shown, numbers, head)


def _first_rows(rows: list[list[str]], most: int, name: str) -> list[list[str]]:
    if len(rows) <= most:
        return rows
    rest = f"{len(rows) - most:,} more in tables/{name}.csv"
    return [*rows[:most], ["…", rest, *[""] * (len(rows[0]) - 2)]]


def _last_line(text: str) -> str:
    """Of a traceback the error."""
    line = text.strip().rpartition("\n")[2].strip()
    return line if len(line) <= 200 else f"{line[:199]}…"


def overheads_table(comparison: Comparison) -> Table:
    """Medians over runs of what is beside training."""
    rows, numbers, classes = [], [], []
    for c in contender_views(comparison):
        records = [r for r in comparison.records if r.contender == c.name]
        values = [_median([getattr(r.overheads, field) for r in records]) for field, _ in _OVERHEADS]
        training = _median([float(r.curve.wall_seconds[-1]) for r in records if len(r.curve)])
        cpu = _median([float(r.curve.cpu_seconds[-1]) for r in records if len(r.curve)])
        both = [*values, training, cpu]
        rows.append([c.name, *(short3(v) for v in both)])
        numbers.append([c.name, *both])
        classes.append(f"c c{c.number}")
    labels = [*(label for _, label in _OVERHEADS), "training, wall", "training, CPU"]
    return Table(
        "overheads",
        "Median seconds of a run; clocks of the curves count training alone",
        ["contender", *labels],
        rows,
        numbers,
        ["contender", *(field for field, _ in _OVERHEADS), "training_wall_seconds", "training_cpu_seconds"],
        classes,
    )


def interest_table(comparison: Comparison) -> Table:
    """Who tuned what, with what effort."""
    rows = [[c.name, c.kind, *(text for _, text in c.facts)] for c in contender_views(comparison)]
    head = ["contender", "kind", "what", "settings from", "tuned by", "tuning effort"]
    return Table("contenders", "Contenders, and who tuned them with what effort", head, rows)


def certainty(comparison: Comparison) -> list[str]:
    """What the number of runs allows to say."""
    sizes = [
        len(found)
        for task in comparison.tasks
        for name in comparison.contenders
        if (found := [r for r in comparison.of(task, name) if r.status != "unfinished"])
    ]
    if not sizes:
        return ["No run has come to its end."]
    least, most = min(sizes), max(sizes)
    runs = counted(least, "ended run") if least == most else f"{least} to {most} ended runs"
    sentences = [f"Each contender has {runs} on a task. Every one is drawn."]
    if least < 10:
        by = {name: min(_ended_counts(comparison, name), default=10) for name in comparison.contenders}
        few = ", ".join(f"{name} ({count})" for name, count in by.items() if count < 10)
        sentences.append(
            f"Fewer than 10 on some task: {few}. Intervals are too narrow then, see below; add seeds before you rely "
            "on them."
        )
    sentences += _partial(comparison)
    sentences.append(_coverage_sentence(least))
    range_of = (
        f"With 95% confidence the range of {least} runs holds {statistics.tolerance_share(least):.0%} of all runs or "
        "more (Wilks, 1941)."
    )
    sentences.append(
        f"Intervals are those of the statistic, not of a single run. {range_of if least > 1 else ''}".strip()
    )
    sentences.append(
        "Every interval holds with 95% by itself. None is adjusted for the number of comparisons; what an adjustment "
        "changes is said under 'What would change the verdict'."
    )
    sentences.append(
        "Where all runs of one contender beat all of another, a bootstrap interval of the probability of improvement "
        "would be a single point. Each end is therefore the wider one of the bootstrap's and of Newcombe's score "
        "interval (2006)."
    )
    return sentences


def _ended_counts(comparison: Comparison, name: str) -> list[int]:
    """How many runs of a contender have ended, on each task that it has such runs of."""
    counts = [
        sum(record.status != "unfinished" for record in comparison.of(task, name))
        for task in comparison.tasks
    ]
    return [count for count in counts if count]


def _partial(comparison: Comparison) -> list[str]:
    """Which contenders were not to run on every task, or with fewer seeds than others."""
    total, seeds = len(comparison.tasks), len(comparison.seeds)
    tasks, fewer = [], []
    for name in comparison.contenders:
        planned = [task for task in comparison.tasks if comparison.plans(task, name)]
        if len(planned) < total:
            tasks.append(f"{name} on {len(planned)} of {total} ({', '.join(planned) or 'none'})")
        counts = sorted({len(comparison.seeds_of.get(f"{t}/{name}", comparison.seeds)) for t in planned})
        if counts and counts[0] < seeds:
            fewer.append(f"{name} {counts[0] if len(counts) == 1 else f'{counts[0]} to {counts[-1]}'}")
    sentences = [f"Not run on every task: {'; '.join(tasks)}."] if tasks else []
    return sentences + ([f"Run with fewer than the {seeds} seeds: {', '.join(fewer)}."] if fewer else [])


def _coverage_sentence(runs: int) -> str:
    measured = statistics.measured_coverage()
    known = sorted({row["seeds"] for row in measured["rows"]})
    chosen = max((seeds for seeds in known if seeds <= runs), default=None)
    if chosen is None:
        return (
            f"How often 95% intervals hold the true value was not measured for {counted(runs, 'run')}; for {known[0]} "
            f"runs, which is better, it is {_shares(measured, known[0])}."
        )
    return (
        f"In {measured['experiments']:,} synthetic experiments with {chosen} runs a task, 1 and 6 tasks, and normal, "
        f"exponential and bimodal scores, the 95% intervals held the true value in {_shares(measured, chosen)}."
    )


def _shares(measured: Mapping[str, Any], runs: int) -> str:
    names = {
        "interquartile_mean": "interquartile mean",
        "mean": "mean",
        "improvement": "probability of improvement",
    }
    parts = []
    for key, name in names.items():
        found = [row["widened"][key] for row in measured["rows"] if row["seeds"] == runs]
        parts.append(f"{100 * min(found):.1f}–{100 * max(found):.1f}% ({name})")
    return ", ".join(parts)


def changes_table(questions: Sequence[Question]) -> Table:
    """Other rules, and the verdicts that they change."""
    rows = []
    for question in questions:
        changed = [
            f"{'all tasks' if c.task is None else c.task}, against {c.contender}: {OUTCOME_WORDS[c.before]} → "
            f"{OUTCOME_WORDS[c.after]}"
            for c in question.changes
        ]
        rows.append([question.words, "; ".join(changed) or "nothing"])
    return Table("changes", "What would change the verdict", ["if", "then"], rows)


def settings_table(comparison: Comparison, contender: ContenderView) -> Table | None:
    """The settings of a contender; where runs differ, every value."""
    found: dict[str, list[str]] = {}
    # Runs of a suite share the table itself.
    tables = {id(r.settings): r.settings for r in comparison.records if r.contender == contender.name}
    for table in tables.values():
        for key, value in flat(table):
            values = found.setdefault(key, [])
            if value not in values:
                values.append(value)
    if not found:
        return None
    rows = [
        [key, " | ".join(values[:6]) + (" | …" if len(values) > 6 else "")] for key, values in found.items()
    ]
    if len(rows) > _SETTINGS:
        rows = [*rows[:_SETTINGS], ["…", f"{len(rows) - _SETTINGS} more in the records"]]
    return Table(f"settings_{contender.number}", f"Settings of {contender.name}", ["setting", "value"], rows)


def provenance_table(comparison: Comparison) -> Table:
    """Versions, hardware, threads, load and dates: what the records agree on, and where they differ."""
    found: dict[str, list[Any]] = {}
    for record in comparison.records:
        for key, value in flat(record.provenance):
            found.setdefault(key, []).append(value)
    rows = []
    for key, values in found.items():
        different = list(dict.fromkeys(values))
        numbers = [n for v in different if (n := _number(v)) is not None]
        if len(numbers) == len(different) > 3:
            text = f"{short3(min(numbers))} to {short3(max(numbers))}, median {short3(float(np.median(numbers)))}"
        else:
            text = " | ".join(different[:4]) + (
                f" | … ({len(different)} values)" if len(different) > 4 else ""
            )
        rows.append([key, text])
    return Table("provenance", "Versions, hardware and load, from the records", ["fact", "value"], rows)


def plan_facts(comparison: Comparison) -> list[tuple[str, str]]:
    """The command, date, budget and remarks of the plan."""
    budget = ", ".join(
        f"{short(value)} {axis.replace('_', ' ')}" for axis, value in comparison.budget.items()
    )
    facts = [
        ("command", comparison.command),
        ("made", comparison.created),
        ("budget", budget or "none declared: compared at what half the runs of each contender cover"),
        ("seeds", ", ".join(map(str, comparison.seeds))),
        *(("note", note) for note in comparison.notes),
    ]
    return [(name, text) for name, text in facts if text]


def curve_rows(records: Sequence[Record]) -> Iterator[list[Any]]:
    """Every evaluation of every run, for CSV."""
    from diffsim.comparison.records import CURVE

    yield ["task", "contender", "seed", "status", *CURVE]
    for record in records:
        run = record.task, record.contender, record.seed, record.status
        columns = [getattr(record.curve, name).tolist() for name in CURVE]
        yield from ([*run, *values] for values in zip(*columns, strict=True))


def flat(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """The leaves of nested tables as texts, by dotted keys."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from flat(inner, f"{key}.{name}" if key else str(name))
    else:
        yield key, value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _median(values: Sequence[float]) -> float:
    known = [v for v in values if not math.isnan(v)]
    return float(np.median(known)) if known else math.nan
