"""A run file as text."""

from __future__ import annotations

import os
import shlex

import numpy as np

from diffsim.runfile import COLUMNS, RunFile

ROWS = 12


def describe_run(path: str | os.PathLike[str]) -> str:
    """Configuration, provenance, history (thinned to a dozen rows), checkpoints and evaluations.

    Raises:
        RunFileError: no run there, or one that cannot be read.
    """
    file = RunFile(path)
    config, history = file.config(), file.history()
    done = len(history["update"])
    state = "finished" if done == config.updates else "unfinished"
    lines = [f"{file.path}: {state}, {done} of {config.updates} updates", "", "configuration"]
    for key, value in config.model_dump().items():
        # Dotted, as --set takes them.
        options = value.items() if isinstance(value, dict) else [("", value)]
        lines += [f"  {f'{key}.{option}'.rstrip('.'):34s} {v}" for option, v in options]
    lines += ["", "provenance"]
    lines += [f"  {key:34s} {value}" for key, value in sorted(file.provenance().items())]
    lines += ["", "history"]
    lines += _table(history) if done else ["  no update yet"]
    lines += ["", "checkpoints"]
    for name, facts in file.checkpoints().items():
        at = f", return {facts['return']:.1f}" if "return" in facts else ""
        lines.append(f"  {name}: after update {facts['update']}{at}")
    lines += ["", "evaluations"]
    for e in file.evaluations():
        interval = "" if np.isnan(e["low"]) else f" [{e['low']:.1f}, {e['high']:.1f}]"
        lines.append(
            f"  {e['where']}, {e['episodes']} episodes from seed {e['seed']}, checkpoint "
            f"{e['checkpoint']} (update {e['update']}): mean return {e['mean']:.1f}{interval}"
        )
    if lines[-1] == "evaluations":
        lines.append(f"  none yet; 'diffsim evaluate {shlex.quote(str(file.folder))}' makes one")
    return "\n".join(lines)


def _table(history: dict[str, np.ndarray]) -> list[str]:
    """Evenly spaced rows, moved to the nearest evaluation where there is one."""
    count = len(history["update"])
    evaluated = np.flatnonzero(np.isfinite(history["return"]))
    pool = evaluated if len(evaluated) >= 2 else np.arange(count)
    rows = pool[np.unique(np.linspace(0, len(pool) - 1, ROWS).round().astype(int))]
    columns = [c for c in COLUMNS if c not in ("compile_seconds", "step_dropped")]
    lines = ["  " + " ".join(f"{c:>20s}" for c in columns)]
    for i in rows:
        cells = (_cell(history[c][i]) for c in columns)
        lines.append("  " + " ".join(f"{cell:>20s}" for cell in cells))
    dropped = int(history["step_dropped"].sum())
    lines.append(
        f"  {count} rows, {len(rows)} shown; {dropped} dropped steps; "
        f"compiled for {history['compile_seconds'][-1]:.1f} s"
    )
    return lines


def _cell(value: np.generic) -> str:
    if np.issubdtype(type(value), np.integer):
        return f"{value:,}"
    return "-" if np.isnan(value) else f"{value:.5g}"
