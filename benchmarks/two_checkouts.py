"""The figures of a program in two checkouts, whose processes take turns, as a table."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def compared(case: str, former: Path, rounds: int, what: str, digits: int) -> str:
    """A Markdown table: median, least and largest of what each checkout's processes print.

    Args:
        case: Python text that prints a JSON object of figures as its last line.
        former: the other checkout.
        what: heading of the first column.
        digits: after the decimal point.
    """
    trees = {"former": former.resolve(), "present": ROOT}
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
    for k in range(rounds):
        for name in list(trees)[:: 1 if k % 2 == 0 else -1]:
            env = {**os.environ, "PYTHONPATH": str(trees[name]), "OMP_NUM_THREADS": "1"}
            done = subprocess.run(
                [sys.executable, "-c", case], env=env, cwd="/", capture_output=True, text=True, check=True
            )
            rows[name].append(json.loads(done.stdout.splitlines()[-1]))
    lines = [f"| {what} | former | present |", "|---|---|---|"]
    for figure in rows["present"][0]:
        cells = []
        for name in trees:
            found = [row[figure] for row in rows[name]]
            middle, least, most = (
                f"{q:,.{digits}f}" for q in (statistics.median(found), min(found), max(found))
            )
            cells.append(f"{middle} ({least}–{most})")
        lines.append(f"| {figure} | {' | '.join(cells)} |")
    return "\n".join(lines)
