"""The scores that become 0 and 1 in comparisons: ``python benchmarks/normalisation.py``.

Writes ``diffsim/comparison/normalisation.json``.  0 is the score of actions held in the middle of their box, measured
as comparisons measure policies.  1 is the best score known: the best mean over 64 starts in ``results/defaults.json``
and ``results/simulators.json``, or for Gymnasium's tasks a published one.  Scores are comparable within a task only.
Once a table is published with a report, changing it changes the report: say so in its notes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np

from diffsim.comparison.compare import NORMALISATION
from diffsim.comparison.judging import make_judge, protocol
from robotics_envs.environments import ENVIRONMENTS, GYM_TASKS, make_env

RESULTS = Path(__file__).parent / "results"
_ZOO = "RL Zoo benchmark.md at commit 22e3ff24, {} of 1M steps in version 3 of the task"
PUBLISHED: dict[str, tuple[float, str]] = {
    "gym:HalfCheetah-v5": (12089.939, _ZOO.format("TQC")),
    "gym:Hopper-v5": (3754.199, _ZOO.format("TQC")),
    "gym:Walker2d-v5": (4933.148, _ZOO.format("TRPO")),
    "gym:InvertedPendulum-v5": (1000.0, "the most that is possible: 1 in each of 1000 intervals"),
}


def middle(task: str) -> float:
    """Mean return of actions held in the middle of the action box, from the starts of comparisons."""
    box = make_env(task).action_box
    actions = (np.array(box.low) + np.array(box.high)) / 2
    score, _ = make_judge(task, backend="eager")(lambda o: np.tile(actions, (len(o), 1)))
    return score


def best(task: str) -> tuple[float | None, str]:
    """The best score known, and where it is from."""
    if task in PUBLISHED:
        return PUBLISHED[task]
    found: list[tuple[float, str]] = []
    runs = json.loads((RESULTS / "defaults.json").read_text())["results"].get(task, [])
    found += [
        (run["best"]["mean"], f"benchmarks/results/defaults.json, {run['variant']}, seed {run['seed']}")
        for run in runs
        if "best" in run
    ]
    row = json.loads((RESULTS / "simulators.json").read_text())["simulators"].get(task, {"runs": {}})
    for settings, measured in row["runs"].items():
        found += [
            (run["mean"], f"benchmarks/results/simulators.json, short_window {settings}, seed {number}")
            for number, run in enumerate(measured)
            if "mean" in run
        ]
    return max(found) if found else (None, "not measured yet")


@click.command()
@click.argument("tasks", nargs=-1)
@click.option("--out", type=click.Path(path_type=Path), default=NORMALISATION, show_default=True)
def main(tasks: tuple[str, ...], out: Path) -> None:
    """Measure the middle actions of TASKS, of all if none is named, and write the table."""
    table: dict[str, dict[str, Any]] = json.loads(out.read_text())["tasks"] if tasks else {}
    for task in tasks or (*ENVIRONMENTS, *GYM_TASKS):
        one, source = best(task)
        judged = protocol(task)
        table[task] = {
            "zero": middle(task),
            "zero_source": f"middle actions, {judged.episodes} starts from seed {judged.seed}, {judged.judge}",
            "one": one,
            "one_source": source,
        }
        print(f"{task:24s} {table[task]['zero']:16.6g} {'not known' if one is None else one:>12}", flush=True)
        facts = {"command": "python benchmarks/normalisation.py", "tasks": table}
        out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
