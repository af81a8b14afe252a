"""Runs a comparison on this machine or hands it to a queue, and says what became of it."""

from __future__ import annotations

import json
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from diffsim.comparison import records
from diffsim.comparison.clock import Budget
from diffsim.comparison.compare import SEEDS_FOR_INTERVALS, Request, comparison_of, planned
from diffsim.comparison.worker import found_record, record_of_the_dead, recorded
from diffsim.errors import Interrupted
from diffsim.runs.progress import short
from diffsim.runs.provenance import git_revision
from diffsim.suites.index import Row, read_row, rows
from diffsim.suites.local import Driver, check_folder, driving, take_back_cancel, to_do
from diffsim.suites.plan import Plan, PlannedRun
from diffsim.suites.worker import JOURNAL, PROGRESS, attempts, is_working
from diffsim.values import counted, printable, shown

OVERHEAD_SECONDS = 15.0
"""CPU seconds of a run beside its budget, for estimates: import, compiling, evaluations (measured: 8 to 30)."""


class Session:
    """One call of ``diffsim compare``.

    Args:
        root: folder of the comparison.
        asked: what to run.
        on: ``local``, ``slurm`` or ``ray``.
        workers: runs at a time on this machine, or on Ray.
        retry_failed: also run again what crashed.
    """

    def __init__(
        self,
        root: Path,
        asked: Request,
        on: str = "local",
        workers: int | None = None,
        retry_failed: bool = False,
    ) -> None:
        self.root, self.asked, self.on = root, asked, on
        self.workers, self.retry_failed = workers, retry_failed
        self.command = shlex.join(["diffsim", *sys.argv[1:]])
        self.console = Console(stderr=True, highlight=False)
        self.notes: list[str] = []
        self._tuning: Any = None

    def tune_first(self, trials: int, seeds: str) -> None:
        """Search settings before the comparison, and add the best as contenders."""
        from diffsim.comparison.tuning import Tuning

        self._tuning = Tuning(self.root, self.asked, trials, seeds)

    def would_start(self) -> str:
        """What :meth:`run` would do, with an estimate of its CPU hours."""
        lines = []
        if self._tuning is not None:
            search = self._plan_of(self._tuning.root, self._tuning.asked)
            lines += ["first the search of settings:", *self._todo_lines(search)]
            lines += ["then, beside the settings that are found:"]
        return "\n".join([*lines, *self._todo_lines(self._plan_of(self.root, self.asked))])

    def _todo_lines(self, plan: Plan) -> list[str]:
        runs = to_do(plan, self.retry_failed)
        counts: dict[str, int] = {}
        for run in runs:
            counts[run.group] = counts.get(run.group, 0) + 1
        return [
            f"{counted(len(plan.runs), 'run')}, {len(runs)} to do in {shown(plan.root)}, {estimate(runs)}",
            *(
                f"  {group:40s} {counted(count, 'seed')}, {Budget(**_settings_of(plan, group)['budget'])}"
                for group, count in counts.items()
            ),
        ]

    def _plan_of(self, root: Path, asked: Request) -> Plan:
        return planned(root, asked, self.command, git_revision(Path(__file__).parent))

    def run(self) -> bool:
        """Whether every run is at its end now, none of them crashed."""
        fine = True
        if self._tuning is not None:
            self.console.print("searching settings first, for all alike")
            fine = self._run(self._tuning.root, self._tuning.asked, self._tuning.notes)
            self.asked, notes = self._tuning.chosen()
            self.notes += notes
        fine = self._run(self.root, self.asked, self.notes) and fine
        self.console.print(f"next: diffsim report {shlex.quote(shown(self.root))}")
        return fine

    def _run(self, root: Path, asked: Request, notes: Sequence[str]) -> bool:
        if len(asked.seeds) < SEEDS_FOR_INTERVALS:
            self.console.print(
                f"{counted(len(asked.seeds), 'seed')}: intervals from fewer than {SEEDS_FOR_INTERVALS} cover less than "
                "they say"
            )
        check_folder(root, len(asked.tasks) * len(asked.contenders) * len(asked.seeds))
        with driving(root) as lock:
            plan = self._plan_of(root, asked)
            plan.save()
            _forget_lost(plan)
            records.write_comparison(root, comparison_of(plan, asked.budget, self.command, notes))
            take_back_cancel(plan)
            todo = to_do(plan, self.retry_failed)
            try:
                if todo and self.on == "slurm":
                    from diffsim.suites.slurm import drive

                    drive(plan, todo, False, self._say)
                elif todo and self.on == "ray":
                    from diffsim.suites.ray_tasks import drive as drive_tasks

                    self._say_what_is_to_do(plan, todo)
                    drive_tasks(plan, lock, todo, self.workers, False, self._say)
                elif todo:
                    self._drive(plan, todo, lock)
                else:
                    self._say("every run is at its end")
            except Interrupted as stop:
                if self.on == "slurm":
                    raise Interrupted(
                        "no longer watching; the jobs go on. Watch again with:\n  "
                        f"{self.command}\nstop them with: diffsim suite cancel {shlex.quote(shown(root))}",
                        stop.signal,
                    ) from None
                raise Interrupted(
                    "stopped. What is finished is kept, what was running begins again. Go on with:\n  "
                    f"{self.command}",
                    stop.signal,
                ) from None
            self._record_the_dead(plan)
        Console(highlight=False).print(summary(plan))
        return all(row.state == "finished" for row in rows(plan))

    def _say(self, line: str) -> None:
        self.console.print(Text(printable(line)))

    def _say_what_is_to_do(self, plan: Plan, todo: Sequence[PlannedRun]) -> None:
        begun = sum(bool(attempts(plan.folder(run))) for run in todo)
        self._say(estimate(todo))
        if begun:
            verbs = ("was", "begins") if begun == 1 else ("were", "begin")
            self._say(f"{counted(begun, 'run')} {verbs[0]} stopped before the end and {verbs[1]} again")

    def _drive(self, plan: Plan, todo: list[PlannedRun], lock: int) -> None:
        self._say_what_is_to_do(plan, todo)
        with ExitStack() as stack:
            if self.console.is_terminal:
                # Runs are new processes: the thread that draws does not matter to them.
                view = _View(plan)
                stack.enter_context(
                    Live(console=self.console, get_renderable=view, refresh_per_second=2, transient=True)
                )
            Driver(plan, lock, self.workers, False, self._say).drive(todo)

    def _record_the_dead(self, plan: Plan) -> None:
        """Records of runs whose processes died without one, as often as they were tried."""
        for run in plan.runs:
            folder = plan.folder(run)
            tries = attempts(folder)
            if tries and tries[-1]["cause"] == "machine" and not is_working(folder):
                record_of_the_dead(plan, run, f"{tries[-1]['reason']} (attempt {len(tries)}, the last)")


def _settings_of(plan: Plan, group: str) -> Mapping[str, Any]:
    return next(run.settings for run in plan.runs if run.group == group)


def _forget_lost(plan: Plan) -> None:
    """Forget that runs came to their end whose records have gone, or cannot be read."""
    for run in plan.runs:
        journal = plan.folder(run) / JOURNAL
        last = attempts(plan.folder(run))[-1:]
        if last and last[0]["cause"] in ("done", "run") and found_record(plan, run) is None:
            journal.unlink(missing_ok=True)


def estimate(runs: Sequence[PlannedRun]) -> str:
    """About how much CPU time runs need; of those limited by steps alone it is not known."""
    budgets = [Budget(**run.settings["budget"]) for run in runs]
    seconds = sum(b.cpu_seconds + OVERHEAD_SECONDS for b in budgets if b.cpu_seconds is not None)
    unknown = sum(b.cpu_seconds is None for b in budgets)
    hours, minutes = f"{seconds / 3600:.1f} CPU hours", f"{seconds / 60:.0f} CPU min"
    if unknown == len(runs):
        return "limited by steps, not by time"
    return f"at most about {hours if seconds >= 3600 else minutes}" + (
        f", and {counted(unknown, 'run')} limited by steps" if unknown else ""
    )


class _View:
    """The runs that are running now, from their files: a bar each, and the newest score."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._ended: set[str] = set()

    def __call__(self) -> Group:
        table = Table.grid(padding=(0, 1))
        table.add_column(no_wrap=True, overflow="ellipsis", max_width=34)
        table.add_column(width=16)
        for _ in range(3):
            table.add_column(no_wrap=True, justify="right")
        for run in self.plan.runs:
            folder = self.plan.folder(run)
            if run.folder in self._ended or not folder.exists():
                continue
            if is_working(folder):
                self._add(table, run, folder)
            elif read_row(folder).state in ("finished", "diverged", "failed"):
                self._ended.add(run.folder)
        return Group(Text(f"{len(self._ended)} of {counted(len(self.plan.runs), 'run')} ended"), table)

    def _add(self, table: Table, run: PlannedRun, folder: Path) -> None:
        progress: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            progress = json.loads((folder / PROGRESS).read_text())
        name = f"{run.settings['task']} {run.settings['contender']} {run.seed}"
        if progress.get("return") is None:
            table.add_row(Text(printable(name)), "starting")
            return
        success = progress.get("success")
        table.add_row(
            Text(printable(name)),
            ProgressBar(1.0, progress.get("used", 0.0), width=16),
            f"{progress['return']:.4g}",
            "" if success is None else f"{success:.0%}",
            f"{short(progress['env_steps'])} steps",
        )


def summary(plan: Plan) -> Group:
    """A table of final scores and times to the threshold, and why runs failed."""
    found = dict(zip([run.folder for run in plan.runs], rows(plan), strict=True))
    groups: dict[tuple[str, str], list[PlannedRun]] = {}
    for run in plan.runs:
        groups.setdefault((run.settings["task"], run.settings["contender"]), []).append(run)
    parts: list[Any] = []
    for task in dict.fromkeys(task for task, _ in groups):
        table = Table(title=printable(task), title_justify="left", box=None, padding=(0, 1), pad_edge=False)
        table.add_column("contender", no_wrap=True, overflow="ellipsis", max_width=20)
        for head in ("runs", "score", "least", "most", "solved", "CPU s", "steps"):
            table.add_column(head, justify="right", no_wrap=True)
        for (of, name), runs in groups.items():
            if of == task:
                table.add_row(Text(printable(name)), *_cells(plan, runs, found))
        parts += [table, Text()]
    parts.append(
        Text(
            "score: median over seeds of the last evaluation; solved: runs that met the task's "
            "success criterion; CPU s and steps: medians until then, of those runs alone"
        )
    )
    failed = [row for row in found.values() if row.state in ("failed", "diverged", "killed")]
    parts += [Text(printable(f"{row.state}: {row.folder}: {row.reason[:200]}")) for row in failed[:20]]
    if len(failed) > 20:
        parts.append(Text(f"and {len(failed) - 20} more"))
    return Group(*parts)


def _cells(plan: Plan, runs: Sequence[PlannedRun], found: Mapping[str, Row]) -> list[str]:
    ended = [found[run.folder] for run in runs if found[run.folder].state in ("finished", "diverged")]
    scores = [row.last for row in ended if row.last is not None]
    reached = [point for run in runs if (point := _at_threshold(plan, run)) is not None]
    return [
        f"{sum(row.state == 'finished' for row in ended)}/{len(runs)}",
        *([f"{f(scores):.4g}" for f in (statistics.median, min, max)] if scores else ["-"] * 3),
        f"{len(reached)}/{len(ended)}",
        f"{statistics.median(seconds for seconds, _ in reached):.1f}" if reached else "-",
        short(statistics.median(steps for _, steps in reached)) if reached else "-",
    ]


def _at_threshold(plan: Plan, run: PlannedRun) -> tuple[float, float] | None:
    """CPU seconds and steps of a run's first evaluation at its threshold."""
    record = recorded(plan, run)
    threshold = record.about_task.threshold if record else None
    if record is None or threshold is None:
        return None
    curve = record.curve
    for k, value in enumerate(getattr(curve, threshold.measure)):
        if value >= threshold.value:
            return float(curve.cpu_seconds[k]), float(curve.environment_steps[k])
    return None
