"""What became of the runs of a suite, from their files; an SQLite index beside them spares reading what is unchanged.

The index holds nothing that the files do not: it may be deleted at any time, and is made again from them.
"""

from __future__ import annotations

import importlib
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from diffsim.errors import DiffsimError, RunFileError
from diffsim.suites.plan import RUNS, Plan, PlannedRun
from diffsim.suites.worker import JOURNAL, OTHER_WORK, attempts, is_working

INDEX = "index.sqlite"
RUN_FILE = (
    "run.h5"  # as diffsim.runs.runfile.FILE_NAME, whose module is loaded only when a file is to be read
)
FINAL = ("finished", "diverged")
FAILED = ("diverged", "failed", "unreadable")


@dataclass(frozen=True)
class Row:
    """One run; of what there is not yet, None."""

    folder: str
    state: str
    """``queued``, ``running``, ``finished``, ``stopped``, ``killed``, ``diverged``, ``failed`` (it would fail again)
    or ``unreadable``."""
    reason: str = ""
    env: str | None = None
    algorithm: str | None = None
    optimizer: str | None = None
    seed: int | None = None
    updates: int | None = None
    done: int = 0
    last: float | None = None
    """The return of the last evaluation."""
    best: float | None = None
    success: float | None = None
    env_steps: int | None = None
    gradient_evaluations: int | None = None
    wall_seconds: float | None = None
    compile_seconds: float | None = None
    curve: str = "[]"
    """The evaluations as JSON: a list of :data:`diffsim.runs.runfile.CURVE` for each."""


_VERSION = 2
"""Of the columns; an index of another version is made anew."""
_COLUMNS = [field.name for field in fields(Row)]
_SCHEMA = f"CREATE TABLE IF NOT EXISTS runs ({', '.join(_COLUMNS)}, stamp, PRIMARY KEY (folder))"
_INSERT = f"INSERT OR REPLACE INTO runs VALUES ({', '.join('?' * (len(_COLUMNS) + 1))})"


def rows(plan: Plan) -> list[Row]:
    """The present state of every run of the plan, in its order."""
    found = read_rows(plan.root)
    present = [
        _with_result(plan, run, found.get(run.folder) or Row(run.folder, "queued")) for run in plan.runs
    ]
    return [_live(plan.root, row) for row in present]


def _with_result(plan: Plan, run: PlannedRun, row: Row) -> Row:
    """Work of another kind is at its end only as long as the file that it wrote is there."""
    if "work" in run.settings and row.state in (*FINAL, *FAILED):
        module = importlib.import_module(OTHER_WORK[run.settings["work"]])
        if not module.record_path(plan.root, run).exists():
            return Row(run.folder, "queued")
    return row


def read_rows(root: Path) -> dict[str, Row]:
    """What the files say, by folder; runs that the plan no longer names are among them."""
    try:
        return _refreshed(root, root / INDEX)
    except sqlite3.OperationalError:  # read-only, or locked by a reader that hangs
        return _refreshed(root, ":memory:")
    except sqlite3.DatabaseError:  # damaged
        (root / INDEX).unlink(missing_ok=True)
        return _refreshed(root, root / INDEX)


def _refreshed(root: Path, place: Path | str) -> dict[str, Row]:
    with closing(sqlite3.connect(place, timeout=5)) as base:
        with base:
            if base.execute("PRAGMA user_version").fetchone()[0] != _VERSION:
                base.execute("DROP TABLE IF EXISTS runs")
                base.execute(f"PRAGMA user_version = {_VERSION}")
            base.execute(_SCHEMA)
            known = dict(base.execute("SELECT folder, stamp FROM runs"))
            stamps = dict(_stamps(root / RUNS))
            changed = [folder for folder, stamp in stamps.items() if known.get(folder) != stamp]
            base.executemany(_INSERT, ([*_values(root / RUNS, f), stamps[f]] for f in changed))
            gone = [(folder,) for folder in known if folder not in stamps]
            base.executemany("DELETE FROM runs WHERE folder = ?", gone)
        listed = base.execute(f"SELECT {', '.join(_COLUMNS)} FROM runs")
        return {values[0]: Row(*values) for values in listed}


def _stamps(runs: Path) -> Iterator[tuple[str, str]]:
    """Of every folder, what changes when its run file or its journal does."""
    try:
        names = os.listdir(runs)
    except FileNotFoundError:
        return
    except OSError as error:
        raise RunFileError(f"{runs} cannot be read: {error.strerror or error}") from None
    for name in names:
        parts = []
        for file in (RUN_FILE, JOURNAL):
            try:
                about = os.stat(f"{runs}/{name}/{file}")
                parts.append(f"{about.st_ino}.{about.st_mtime_ns}.{about.st_size}")
            except OSError:
                parts.append("")
        yield name, "/".join(parts)


def _values(runs: Path, folder: str) -> list[Any]:
    row = read_row(runs / folder)
    return [getattr(row, name) for name in _COLUMNS]


def read_row(folder: Path) -> Row:
    """The state of one run as its files hold it; a run that was killed is ``killed`` also while a process is at it."""
    from diffsim.runs.runfile import RunFile

    journal = attempts(folder)
    last: dict[str, Any] = journal[-1] if journal else {"cause": "", "reason": ""}
    failed = last["cause"] == "run"
    file = RunFile(folder)
    if not file.exists():
        if "row" in last and last["cause"] == "done":  # work of another kind, without a run file
            return Row(folder.name, last["reason"], **last["row"])
        state = "failed" if failed else "killed" if journal else "queued"
        state = "stopped" if last["cause"] == "stopped" else state
        reason = f"its {RUN_FILE} is missing; it begins again" if last["cause"] == "done" else last["reason"]
        return Row(folder.name, state, reason, **last.get("row", {}))
    try:
        summary = file.summary()
    except DiffsimError as error:
        return Row(folder.name, "unreadable", f"--retry-failed sets its file aside and begins again: {error}")
    state, reason = summary["state"], summary["reason"]
    if state not in FINAL:
        state = "failed" if failed else "stopped" if state == "stopped" else "killed"
        reason = last["reason"] or reason
    return Row(folder.name, state, **_row_values(summary), reason=reason)


def _row_values(summary: Mapping[str, Any]) -> dict[str, Any]:
    renamed = {"return": "last"}
    row = {renamed.get(k, k): v for k, v in summary.items() if k not in ("state", "reason")}
    return {**row, "curve": json.dumps(row["curve"])}


def _live(root: Path, row: Row) -> Row:
    if row.state in FINAL or not is_working(root / RUNS / row.folder):
        return row
    return Row(**{**{name: getattr(row, name) for name in _COLUMNS}, "state": "running", "reason": ""})
