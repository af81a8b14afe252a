"""A suite as text: how many runs are in which state, one table over the seeds, one of all runs, and a live view."""

from __future__ import annotations

import json
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from diffsim.runs.progress import clock, short
from diffsim.suites.index import FAILED, Row, rows
from diffsim.suites.plan import Plan
from diffsim.suites.worker import LOG, PROGRESS
from diffsim.values import pasted, printable, shown

_ORDER = ("finished", "running", "queued", "stopped", "killed", "diverged", "failed", "unreadable")
_NOTES = 20
_REFRESH_SECONDS = 1.0


def status(plan: Plan) -> str:
    """Counts by state, what runs now, and why runs did not finish."""
    found = rows(plan)
    lines = [f"{plan.name} in {shown(plan.root)}: {_counts(found)}"]
    lines += [f"  {line}" for line in _running(plan, found)]
    lines += _reasons(found)
    if any(row.state in ("queued", "stopped", "killed") for row in found):
        lines.append(f"go on with: diffsim suite resume {pasted(plan.root)}")
    return printable("\n".join(lines))


def table(plan: Plan, every_run: bool = False) -> str:
    """Median, least and largest final return over the seeds of each combination; or one line a run."""
    found = rows(plan)
    cells = _run_cells(found) if every_run else _group_cells(plan, found)
    return printable("\n".join([f"{plan.name}: {_counts(found)}", "", *_aligned(cells), *_reasons(found)]))


def watch(plan: Plan, console: Console | None = None) -> None:
    """A live view of the files until no run is running, and none will begin; Ctrl-C ends the view only."""
    from diffsim.suites.local import is_driven

    console = console or Console()
    waiting = False
    with Live(console=console, auto_refresh=False) as live, suppress(KeyboardInterrupt):
        while True:
            found = rows(plan)
            running = [f"  {line}" for line in _running(plan, found)]
            text = "\n".join([f"{plan.name}: {_counts(found)}", *running, *_reasons(found)])
            live.update(Text(printable(text), no_wrap=True, overflow="ellipsis"), refresh=True)
            if not any(row.state == "running" for row in found):
                if not any(row.state == "queued" for row in found):
                    break
                if not is_driven(plan.root):
                    waiting = True
                    break
            time.sleep(_REFRESH_SECONDS)
    if waiting:
        resume = f"diffsim suite resume {pasted(plan.root)}"
        text = f"no process drives this suite now; jobs in Slurm's queue begin by themselves, else go on with: {resume}"
        console.print(printable(text), markup=False, highlight=False, soft_wrap=True)


def log_of(plan: Plan, name: str | None) -> str:
    """The logs of the runs whose names begin with ``name``; without one, the ends of those of failed runs."""
    found = {row.folder: row for row in rows(plan)}
    chosen = [
        run
        for run in plan.runs
        if (run.folder.startswith(name) if name else found[run.folder].state in FAILED)
    ]
    lines = []
    for run in chosen:
        lines.append(f"== {run.folder}: {found[run.folder].state}")
        try:
            text = (plan.folder(run) / LOG).read_text(errors="replace").splitlines()
        except OSError:
            text = ["(no log)"]
        lines += text if name else text[-_NOTES:]
    nothing = f"no run begins with {name!r}; see: diffsim suite table --runs" if name else "no run has failed"
    return printable("\n".join(lines)) or nothing


def _counts(found: Sequence[Row]) -> str:
    counts = Counter(row.state for row in found)
    return ", ".join([f"{len(found):,} runs", *(f"{counts[s]:,} {s}" for s in _ORDER if counts[s])])


def _running(plan: Plan, found: Iterable[Row]) -> list[str]:
    lines = []
    for row in found:
        if row.state == "running":
            progress: dict[str, Any] = {}
            with suppress(OSError, ValueError):
                progress = json.loads((plan.root / "runs" / row.folder / PROGRESS).read_text())
            total = f" of {row.updates}" if row.updates else ""
            text = f"update {progress.get('update', row.done)}{total}"
            if row.last is not None:
                text += f", return {row.last:.4g}"
            if progress.get("wall_seconds"):
                text += f", {clock(progress['wall_seconds'])}"
            lines.append(f"{row.folder}: {text}")
    return lines


def _reasons(found: Iterable[Row]) -> list[str]:
    told = [row for row in found if row.reason and row.state in (*FAILED, "killed")]
    lines = [f"{row.state}: {row.folder}: {' '.join(row.reason.split())[:300]}" for row in told[:_NOTES]]
    return [*lines, *([f"and {len(told) - _NOTES} more"] if len(told) > _NOTES else [])]


def _run_cells(found: Iterable[Row]) -> list[list[str]]:
    head = ["run", "state", "updates", "last", "best", "success", "steps", "gradients", "wall s"]
    return [head] + [
        [
            row.folder,
            row.state,
            f"{row.done}/{row.updates or '?'}",
            *map(_number, (row.last, row.best, row.success)),
            *(short(count) if count else "-" for count in (row.env_steps, row.gradient_evaluations)),
            f"{row.wall_seconds:.0f}" if row.wall_seconds is not None else "-",
        ]
        for row in found
    ]


def _group_cells(plan: Plan, found: Iterable[Row]) -> list[list[str]]:
    groups: dict[str, list[Row]] = {}
    for run, row in zip(plan.runs, found, strict=True):
        groups.setdefault(run.group, []).append(row)
    head = ["runs", "finished", "failed", "return", "least", "largest", "success", "steps", "wall s"]
    cells = [head]
    for group, members in groups.items():
        ended = [row for row in members if row.state == "finished"]
        last = [row.last for row in ended if row.last is not None]
        success = [row.success for row in ended if row.success is not None]
        cells.append(
            [
                group or plan.name,
                f"{len(ended)}/{len(members)}",
                str(sum(row.state in FAILED for row in members)),
                *([_number(f(last)) for f in (statistics.median, min, max)] if last else ["-"] * 3),
                f"{statistics.median(success):.0%}" if success else "-",
                short(_median(row.env_steps for row in ended)) if ended else "-",
                f"{_median(row.wall_seconds for row in ended):.0f}" if ended else "-",
            ]
        )
    return cells


def _median(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else 0.0


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _aligned(cells: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
