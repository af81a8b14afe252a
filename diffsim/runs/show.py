"""Run files as text: one run in full, several as a table. Lines fit a terminal of 80 columns.

Nothing of a run is executed: these functions read its file only.
"""

from __future__ import annotations

import io
import os
import shlex
import shutil
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from diffsim.errors import DiffsimError
from diffsim.runs.progress import short
from diffsim.runs.runfile import RunFile
from diffsim.values import printable, shown

ROWS = 12
WIDTH = 80
HISTORY = {
    "update": ("update", 8),
    "loss": ("loss", 11),
    "return": ("return", 10),
    "env_steps": ("env_steps", 15),
    "gradient_evaluations": ("gradients", 12),
    "wall_seconds": ("wall_s", 9),
    "grad_norm": ("grad_norm", 11),
}
"""Columns of the printed history: heading and width."""


def describe_run(path: str | os.PathLike[str]) -> str:
    """State, configuration, provenance, history (thinned to a dozen rows), checkpoints and evaluations.

    Raises:
        RunFileError: no run there, or one that cannot be read.
    """
    file = RunFile(path)
    config, history, status = file.config(), file.history(), file.status()
    done = len(history["update"])
    lines = [f"{shown(file.path)}: {status['state']}, {done} of {config.updates} updates"]
    if status["reason"]:
        lines += _wrapped(f"  {status['reason']}", "  ")
    lines += ["", "configuration"]
    for key, value in config.model_dump().items():
        # Dotted, as --set takes them.
        options = value.items() if isinstance(value, dict) else [("", value)]
        for option, v in options:
            lines += _entry(f"{key}.{option}".rstrip("."), v)
    lines += ["", "provenance"]
    for key, value in sorted(file.provenance().items()):
        lines += _entry(key, value)
    lines += _sources(file)
    lines += ["", "history"]
    lines += _history(history) if done else ["  no update yet"]
    lines += ["", "checkpoints"]
    for name, facts in file.checkpoints().items():
        at = f", return {facts['return']:.1f}" if "return" in facts else ""
        lines.append(f"  {name}: after update {facts['update']}{at}")
    lines += ["", "evaluations"]
    evaluations = file.evaluations()
    for e in evaluations:
        interval = "" if np.isnan(e["low"]) else f" [{e['low']:.1f}, {e['high']:.1f}]"
        success = f", success from {e['successes']} ({e['needed']} needed)" if "successes" in e else ""
        lines += _wrapped(
            f"  {e['where']}, {e['episodes']} episodes from seed {e['seed']}, checkpoint "
            f"{e['checkpoint']} (update {e['update']}): mean return {e['mean']:.1f}{interval}{success}"
        )
    if not evaluations:
        lines.append(f"  none yet; 'diffsim evaluate {shlex.quote(shown(file.folder))}' makes one")
    return printable("\n".join(lines))


def describe_sources(path: str | os.PathLike[str]) -> str:
    """The texts of the user's files that a run stores, each below its name.

    Raises:
        RunFileError: no run there, or one that cannot be read.
    """
    lines = []
    for source in RunFile(path).sources():
        for name, text in source.files.items():
            lines += [
                f"# {source.section} = {source.name}: {name}",
                text.decode(errors="replace").rstrip(),
                "",
            ]
    return printable("\n".join(lines)) if lines else "the run is made from no files of its author"


def _entry(key: str, value: Any) -> list[str]:
    text, indent = f"  {key:31s} {value}", " " * 34
    longest = max(map(len, str(value).split()), default=0)
    return _wrapped(text, indent if len(indent) + longest <= WIDTH else "    ")


def _wrapped(text: str, indent: str = "    ") -> list[str]:
    """Lines of at most 80 characters; a word that is longer, such as a path, is kept whole to be copied."""
    return textwrap.wrap(
        text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _sources(file: RunFile) -> list[str]:
    sources = file.sources()
    if not sources:
        return []
    whose = "signed by you" if file.is_own() else "not signed by you: executed only with --trust"
    lines = ["", f"source code stored ({whose})"]
    for source in sources:
        lines += _wrapped(
            f"  {source.section}: {', '.join(sorted(source.files))} "
            f"(SHA-256 {source.sha256[:12]}, from {source.origin or 'a notebook'})"
        )
    return lines


def _history(history: dict[str, np.ndarray]) -> list[str]:
    """Evenly spaced rows, moved to the nearest evaluation where there is one."""
    count = len(history["update"])
    evaluated = np.flatnonzero(np.isfinite(history["return"]))
    pool = evaluated if len(evaluated) >= 2 else np.arange(count)
    rows = pool[np.unique(np.linspace(0, len(pool) - 1, ROWS).round().astype(int))]
    lines = ["".join(f"{heading:>{width}s}" for heading, width in HISTORY.values())]
    for i in rows:
        lines.append("".join(f"{_cell(history[c][i]):>{width}s}" for c, (_, width) in HISTORY.items()))
    dropped = int(history["step_dropped"].sum())
    summary = (
        f"  {count:,} rows, {len(rows)} shown; {dropped} dropped steps; {history['evaluation_steps'][-1]:,} "
        f"environment steps for evaluations; compiled for {history['compile_seconds'][-1]:.1f} s"
    )
    return [*lines, *_wrapped(summary, "  ")]


def _cell(value: np.generic) -> str:
    if np.issubdtype(type(value), np.integer):
        return f"{value:,}"
    return "-" if np.isnan(value) else f"{value:.5g}"


@dataclass(frozen=True)
class _Row:
    """A run in the table; of one that cannot be read, the reason."""

    run: str
    simulator: str = ""
    algorithm: str = ""
    optimizer: str = ""
    seed: str = ""
    state: str = "unreadable"
    updates: str = ""
    last: str = ""
    best: str = ""
    steps: str = ""
    wall: str = ""
    reason: str = ""


_HEADINGS = {
    "run": "run",
    "simulator": "simulator",
    "algorithm": "algorithm",
    "optimizer": "optimizer",
    "seed": "seed",
    "state": "state",
    "updates": "updates",
    "last": "last",
    "best": "best",
    "steps": "steps",
    "wall": "wall s",
}
_KINDS = ("simulator", "algorithm", "optimizer")
_TEXTS = ("run", *_KINDS, "state")


def describe_runs(paths: Iterable[str | os.PathLike[str]]) -> str:
    """A table of runs: returns of the last and the best evaluation, environment steps, seconds of training.

    It fits the terminal, or 80 columns where there is none.  The reasons of runs that cannot be read, diverged or
    crashed follow below it.

    Raises:
        DiffsimError: none of them can be read.
    """
    rows = [_row(path) for path in paths]
    readable = [row for row in rows if row.state != "unreadable"]
    if not readable:
        raise DiffsimError("none of these is a run that can be read:\n" + "\n".join(_notes(rows)))
    # What all runs share is said once, so that the rest has room.
    shared = {
        kind: getattr(readable[0], kind) for kind in _KINDS if len({getattr(r, kind) for r in readable}) == 1
    }
    headings = {column: heading for column, heading in _HEADINGS.items() if column not in shared}
    title = ", ".join([f"{len(rows)} runs", *(f"{kind} {name}" for kind, name in shared.items())])
    title += "; last and best are returns"
    notes = _notes(row for row in rows if row.reason)
    return "\n".join([*_wrapped(title, "  "), "", *_table(headings, rows), *([""] if notes else []), *notes])


def _row(path: str | os.PathLike[str]) -> _Row:
    file = RunFile(path)
    name = shown(file.path if Path(path).expanduser().is_file() else file.folder)
    try:
        config, history, status = file.config(), file.history(), file.status()
        best = file.checkpoints().get("best", {}).get("return", np.nan)
    except DiffsimError as error:
        return _Row(name, reason=str(error))
    measured = history["return"][np.isfinite(history["return"])]
    done = len(history["update"])
    file_name, colon, class_name = config.env.name.rpartition(":")
    return _Row(
        run=name,
        simulator=f"{file_name.rpartition('/')[2]}{colon}{class_name}",
        algorithm=config.algorithm.name,
        optimizer=config.optimizer.name,
        seed=str(config.seed),
        state=status["state"],
        updates=f"{done}/{config.updates}",
        last=f"{measured[-1]:.4g}" if len(measured) else "-",
        best=f"{best:.4g}" if np.isfinite(best) else "-",
        steps=short(history["env_steps"][-1]) if done else "0",
        wall=f"{history['wall_seconds'][-1]:.0f}" if done else "0",
        reason=status["reason"] if status["state"] in ("diverged", "crashed") else "",
    )


def _notes(rows: Iterable[_Row]) -> list[str]:
    return [line for row in rows for line in _wrapped(f"{row.run}: {row.reason}")]


def _table(headings: dict[str, str], rows: Sequence[_Row]) -> list[str]:
    """The lines of the table. Where the terminal is too narrow, what a run is stands below its name."""
    width = max(shutil.get_terminal_size((WIDTH, 24)).columns, 60)
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False)
    table = _columns(headings, ([getattr(row, column) for column in headings] for row in rows))
    if console.measure(table, options=console.options.update(width=10_000)).maximum > width:
        below = [column for column in _KINDS if column in headings]
        narrow = {column: heading for column, heading in headings.items() if column not in below}
        cells = []
        for row in rows:
            kinds = [text for column in below if (text := getattr(row, column))]
            name = "\n  ".join([row.run, *([", ".join(kinds)] if kinds else [])])
            cells.append([name, *(getattr(row, column) for column in narrow if column != "run")])
        table = _columns(narrow, cells, gap=1)
    with console.capture() as captured:
        console.print(table)
    return [line.rstrip() for line in captured.get().splitlines()]


def _columns(headings: dict[str, str], rows: Iterable[Sequence[str]], gap: int = 2) -> Table:
    table = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False, header_style="")
    for column, heading in headings.items():
        text = column in _TEXTS
        table.add_column(
            heading, justify="left" if text else "right", no_wrap=column != "run", overflow="fold"
        )
    for row in rows:
        table.add_row(*map(Text, row))
    return table
