"""Links from a report to what single runs left beside their records: logs, and curves for TensorBoard and as CSV."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from diffsim.comparison.worker import CURVE
from diffsim.errors import RunFileError
from diffsim.runs.log_writers import WRITERS
from diffsim.suites.plan import read_plan
from diffsim.suites.worker import LOG

MOST = 1000
"""Runs that the page links."""
FILES = (LOG, CURVE, *(place for _, place in WRITERS.values()))


@dataclass(frozen=True)
class Logs:
    """The files of one run."""

    task: str
    contender: str
    seed: int
    links: list[tuple[str, str]]
    """Names, and addresses relative to the report, ``%``-escaped."""


def logs_of(root: Path, target: Path) -> list[Logs]:
    """The runs of the comparison in ``root`` that have such files, for a report in the folder ``target``.

    Empty where the records are all that there is.
    """
    try:
        plan = read_plan(root)
    except RunFileError:
        return []
    found = []
    for run in sorted(plan.runs, key=lambda run: (run.group, run.seed)):
        # The plan is a file that may be somebody else's: what leads out of the folder is not linked.
        inside = Path(run.folder).name == run.folder and run.folder not in ("", "..")
        if not inside or run.settings.get("work") != "comparison":
            continue
        files = [name for name in FILES if (plan.folder(run) / name).exists()]
        if files:
            way = Path(os.path.relpath(plan.folder(run), target)).as_posix()
            links = [(name, quote(f"{way}/{name}")) for name in files]
            found.append(Logs(run.settings["task"], run.settings["contender"], run.seed, links))
        if len(found) == MOST:
            break
    return found
