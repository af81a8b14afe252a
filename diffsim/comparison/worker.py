"""One run of a comparison in a process of its own: trained from the start to the end of its budget, then recorded.

A run that was stopped or killed begins again: algorithms of other libraries cannot be resumed bit for bit, and their
replay buffers and simulators' states are not stored.  So nobody's runs are resumed in the middle.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import platform
import time
import traceback
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock

from diffsim.comparison import records
from diffsim.comparison.clock import Budget, Meter, Point
from diffsim.comparison.contenders.catalogue import STABLE_BASELINES, WHITE_BOX
from diffsim.comparison.records import Contender, Curve, Limits, Overheads, Record, Task, Threshold
from diffsim.errors import DivergenceError, Interrupted, RunFileError
from diffsim.runs.log_writers import make_writers
from diffsim.runs.signals import stop_on_signals
from diffsim.suites.plan import Plan, PlannedRun
from diffsim.suites.worker import (
    CANCEL,
    DONE,
    MACHINE_FAILED,
    PROGRESS,
    RUN_FAILED,
    WORKER_LOCK,
    Heartbeat,
    cause_of,
    note,
)

CURVE = "curve.jsonl"
"""The curve of a run that goes on, one JSON object a line, for the record of one that dies."""
_TRAINERS = {
    WHITE_BOX: "diffsim.comparison.contenders.white_box",
    STABLE_BASELINES: "diffsim.comparison.contenders.stable_baselines",
}
_PACKAGES = (
    "diffsim-robotics",
    "torch",
    "numpy",
    "gymnasium",
    "mujoco",
    "stable-baselines3",
    "sb3-contrib",
    "cma",
    "evotorch",
)


def recorded(plan: Plan, run: PlannedRun) -> Record | None:
    """The record of a run that came to its end; None if there is none that can be read."""
    record = found_record(plan, run)
    return record if record is not None and record.status in ("finished", "diverged") else None


def found_record(plan: Plan, run: PlannedRun) -> Record | None:
    """The record of a run, also of one that crashed; None if there is none that can be read."""
    try:
        return records.read_record(record_path(plan.root, run))
    except RunFileError:
        return None


def record_path(root: Path, run: PlannedRun) -> Path:
    return records.record_path(root, run.settings["task"], run.settings["contender"], run.seed)


def work(plan: Plan, run: PlannedRun) -> int:
    """Train and record; the exit status is that of :func:`diffsim.suites.worker.work`."""
    folder = plan.folder(run)
    with FileLock(folder / WORKER_LOCK):
        found = recorded(plan, run)
        if found is None:
            return _Work(plan, run).do()
        # It died between its record and its journal.
        note(folder, "done", "finished", row=row_of(found))
        return DONE


class _Work:
    def __init__(self, plan: Plan, run: PlannedRun) -> None:
        self.plan, self.run, self.settings = plan, run, run.settings
        self.folder = plan.folder(run)
        self.meter: Meter | None = None
        self.points: list[Point] = []
        self.row: dict[str, float] = {}
        self.overheads = dict.fromkeys(("import_seconds", "start_seconds"), float("nan"))
        self.protocol: Any = None
        self.heartbeat = Heartbeat(self.folder, (self.folder / CANCEL, plan.root / CANCEL))
        self.load = os.getloadavg()[0]
        self.writers = make_writers(self.settings.get("log", ()), self.folder)

    def do(self) -> int:
        for name in (CURVE, PROGRESS):  # of an attempt before
            (self.folder / name).unlink(missing_ok=True)
        try:
            with stop_on_signals() as stop:

                def check() -> None:
                    self.heartbeat(self.row)
                    if stop.signal is not None:
                        raise Interrupted("stopped; it will begin again", stop.signal)

                self._train(check)
            return self._recorded("finished", "", "done")
        except Interrupted as interruption:
            note(self.folder, "stopped", str(interruption))
            return 128 + interruption.signal
        except Exception as error:
            return self._failed(error)
        finally:
            for writer in self.writers:
                writer.close()

    def _failed(self, error: Exception) -> int:
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}"
        if diverged(error):
            return self._recorded("diverged", str(error), "done")
        cause = cause_of(error)
        if cause == "machine":
            note(self.folder, cause, reason, traceback.format_exc())
            return MACHINE_FAILED
        return self._recorded("crashed", traceback.format_exc(), cause, reason)

    def _train(self, check: Any) -> None:
        settings = self.settings
        trainer = importlib.import_module(_TRAINERS[settings["trainer"]])
        trainer.load(settings["settings"])
        judging = importlib.import_module("diffsim.comparison.judging")
        self.overheads["import_seconds"] = _seconds_since_start()
        started = time.perf_counter()
        self.protocol = judging.protocol(settings["task"])
        judge = judging.make_judge(settings["task"])
        self.meter = meter = Meter(Budget(**settings["budget"]), judge, self._report, check)
        self.points = meter.points
        trainer.train(settings["task"], settings["settings"], self.run.seed, meter)
        training = meter.points[-1].wall_seconds
        beside = sum(meter.seconds.values())
        self.overheads["start_seconds"] = max(0.0, time.perf_counter() - started - training - beside)

    def _report(self, point: Point, used: float) -> None:
        self.row = {
            "update": len(self.points),
            "used": min(used, 1.0),
            "return": point.score,
            "success": point.success,
            "wall_seconds": point.wall_seconds,
            "env_steps": point.environment_steps,
        }
        self.heartbeat(self.row)
        values = dataclasses.asdict(point)
        with suppress(OSError), open(self.folder / CURVE, "a") as lines:
            lines.write(json.dumps(values) + "\n")
        for writer in self.writers:
            writer({"update": len(self.points), **values})

    def _recorded(self, status: str, error: str, cause: str, reason: str = "") -> int:
        seconds = self.meter.seconds if self.meter else {"compile": float("nan"), "evaluation": float("nan")}
        record = Record(
            **common(self.run, self.protocol),
            status=status,
            curve=curve_of(self.points),
            error=error,
            overheads=Overheads(
                **self.overheads,
                compile_seconds=seconds["compile"],
                evaluation_seconds=seconds["evaluation"],
                total_seconds=_seconds_since_start(),
            ),
            provenance={
                "reason": self.meter.reason if self.meter else "",
                "command": self.settings["command"],
                "versions": versions(),
                "hardware": hardware(),
                "threads": 1,
                "load": (self.load + os.getloadavg()[0]) / 2,
                "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "revision": self.settings["revision"],
            },
        )
        path = record_path(self.plan.root, self.run)
        records.write_record(path, record)
        for left in path.parent.glob(f".*-{path.name}"):  # by a process that was killed while it wrote
            left.unlink(missing_ok=True)
        note(self.folder, cause, reason or status, error, row=row_of(record))
        return DONE if cause == "done" else RUN_FAILED


def common(run: PlannedRun, protocol: records.Protocol | None) -> dict[str, Any]:
    """The fields of a record that its plan determines."""
    settings = run.settings
    stated = {key: settings[key] for key in ("trainer", "settings", "source", "budget")}
    return {
        "task": settings["task"],
        "contender": settings["contender"],
        "seed": run.seed,
        "protocol": protocol or records.Protocol("not known", 0, 0),
        "about_task": task_of(settings["about_task"]),
        "about_contender": Contender(**settings["about_contender"]),
        "settings": stated,
    }


def task_of(facts: dict[str, Any]) -> Task:
    """What the plan says of a task."""
    threshold, limits = facts["threshold"], facts["limits"]
    return Task(
        Threshold(**threshold) if threshold else None,
        Limits(**limits) if limits else None,
        facts["description"],
    )


def curve_of(points: list[Point]) -> Curve:
    """A record's curve."""
    rows = [dataclasses.asdict(point) for point in points]
    return Curve(**{name: [row[name] for row in rows] for name in records.CURVE})  # type: ignore[arg-type]


def row_of(record: Record) -> dict[str, Any]:
    """What the tables of suites show of a run."""
    row: dict[str, Any] = {"env": record.task, "seed": record.seed, "done": len(record.curve)}
    if len(record.curve):
        success = float(record.curve.success[-1])
        row |= {
            "last": float(record.curve.score[-1]),
            "success": None if success != success else success,
            "env_steps": int(record.curve.environment_steps[-1]),
            "gradient_evaluations": int(record.curve.gradient_evaluations[-1]),
            "wall_seconds": float(record.curve.wall_seconds[-1]),
        }
    return row


def record_of_the_dead(plan: Plan, run: PlannedRun, reason: str) -> None:
    """Write the record of a run whose process died as often as it was tried, with the curve of the last attempt."""
    points = []
    with suppress(FileNotFoundError):
        for line in (plan.folder(run) / CURVE).read_text().splitlines():
            with suppress(ValueError, TypeError):  # a line that a crash has cut
                points.append(Point(**json.loads(line)))
    record = Record(**common(run, None), status="crashed", curve=curve_of(points), error=reason)
    records.write_record(record_path(plan.root, run), record)


def diverged(error: BaseException) -> bool:
    """Whether training ended by numbers that are not finite."""
    from robotics_envs.divergence import DivergenceError as OfSimulator

    return isinstance(error, (DivergenceError, OfSimulator))


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def hardware() -> dict[str, Any]:
    """Processor, number of CPUs that may be used, and operating system."""
    processor = platform.processor() or platform.machine()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {"processor": processor, "cpus": len(os.sched_getaffinity(0)), "platform": platform.platform()}


def _seconds_since_start() -> float:
    """Since this process began, from its birth as Linux tells it; NaN elsewhere."""
    with suppress(OSError, ValueError, IndexError):
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return uptime - ticks / os.sysconf("SC_CLK_TCK")
    return float("nan")
