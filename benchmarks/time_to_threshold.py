"""CPU seconds until the default succeeds: this checkout against a former commit, in processes that take turns.

    git worktree add /tmp/former COMMIT
    python benchmarks/time_to_threshold.py --former /tmp/former --out benchmarks/results/time_to_threshold.json
    python benchmarks/time_to_threshold.py --table benchmarks/results/time_to_threshold.json

A run ends at its first evaluation in which the simulator's own criterion is met (``Env.success_criterion``), or after
--most CPU seconds.  Seconds are those of the process, from its start, with imports, compiling and evaluations; kernels
come from a cache that one short run of each checkout has filled.  Both checkouts train the same simulator with the same
seed one after the other, the first of the two in turns.  Runs that are in the file already are not repeated.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parent.parent

# Runs with either checkout on PYTHONPATH.
CASE = r"""
import json, resource, sys, tempfile, time
import torch
torch.set_num_threads(1)
import diffsim
from diffsim.config import merge, parse_assignment
from robotics_envs import ENVIRONMENTS
name, seed, most, updates = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])


class Over(Exception):
    pass


def used():
    found = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(q.ru_utime + q.ru_stime for q in found)


env = ENVIRONMENTS.load(name)()
needed = env.success_criterion.needed(64) / 64
last = {}


def note(row):
    last.update(row)
    if row.get("success", float("nan")) >= needed or used() > most:
        raise Over


with tempfile.TemporaryDirectory() as folder:
    try:
        more = {"updates": updates} if updates else {}
        diffsim.train(name, out=folder, seed=seed, quiet=True, callback=note, threads=1, **more)
    except Over:
        pass
reached = last.get("success", float("nan")) >= needed
print(json.dumps({"reached": reached, "seconds": used(), "update": int(last["update"])}))
"""


def run(checkout: Path, name: str, seed: int, most: float, updates: int = 0) -> dict[str, Any]:
    """One training."""
    command = [sys.executable, "-c", CASE, name, str(seed), str(most), str(updates)]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            command, env=environment, cwd=folder, capture_output=True, text=True, check=False
        )
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1][:300]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def median(runs: list[dict[str, Any]]) -> float:
    """Of the seconds; a run that did not succeed counts as infinite."""
    return statistics.median(r["seconds"] if r.get("reached") else math.inf for r in runs)


def table(results: dict[str, Any]) -> str:
    """A row a simulator, and the median of the ratios."""
    from rollout_tables import table as rows

    lines, ratios = [], []
    for name, sides in results["runs"].items():
        pairs = [(f, p) for f, p in zip(sides["former"], sides["present"], strict=True)]
        both = [f["seconds"] / p["seconds"] for f, p in pairs if f.get("reached") and p.get("reached")]
        former, present = (median([pair[k] for pair in pairs]) for k in (0, 1))
        ratio = former / present if math.isfinite(present) else math.nan  # infinite: only this one succeeds
        ratios += [ratio] if ratio == ratio else []
        cells = ["–" if math.isinf(q) else f"{q:.1f}" for q in (former, present)]
        reached = [f"{sum(bool(pair[k].get('reached')) for pair in pairs)} of {len(pairs)}" for k in (0, 1)]
        spread = f"{min(both):.1f} to {max(both):.1f}" if both else "–"
        lines.append(
            [f"`{name}`", *reached, *cells, f"{ratio:.1f}" if math.isfinite(ratio) else "–", spread],
        )
    head = ["simulator", "succeed, former", "now", "s to success, former", "now", "ratio", "pairs"]
    foot = ""
    if ratios:
        infinite, slower = sum(map(math.isinf, ratios)), sum(ratio < 1 for ratio in ratios)
        foot = (
            f"Median of {len(ratios)} ratios: {statistics.median(ratios):.1f}; {infinite} are infinite, less than half "
            f"of the former runs succeed; {slower} below one."
        )
    return f"{rows(head, lines)}\n\n{foot}"


@click.command()
@click.option("--former", type=click.Path(path_type=Path, exists=True), help="The other checkout.")
@click.option("--out", type=click.Path(path_type=Path))
@click.option("--seeds", default=5, show_default=True)
@click.option("--most", default=60.0, show_default=True, help="CPU seconds after which a run ends.")
@click.option("--simulators", default="", help="Comma-separated; all by default.")
@click.option(
    "--table", "shown", type=click.Path(path_type=Path, exists=True), help="Print a file of results."
)
def main(
    former: Path | None, out: Path | None, seeds: int, most: float, simulators: str, shown: Path | None
) -> None:
    """Train, and write after every pair."""
    if shown:
        print(table(json.loads(shown.read_text())))
        return
    if former is None:
        raise click.UsageError("--former names the other checkout")
    sys.path.insert(0, str(ROOT))
    from diffsim.runs.provenance import describe
    from robotics_envs import ENVIRONMENTS

    trees = {"former": former.resolve(), "present": ROOT}
    machine = {k: v for k, v in describe("cpu").items() if k not in ("command", "folder")}
    commits = {
        name: subprocess.check_output(["git", "-C", str(tree), "rev-parse", "HEAD"], text=True).strip()
        for name, tree in trees.items()
    }
    results: dict[str, Any] = {
        "command": "python benchmarks/time_to_threshold.py --former DIR",
        "machine": machine,
        "commits": commits,
        "most": most,
        "runs": {},
    }
    if out and out.exists():
        results = json.loads(out.read_text())
    names = simulators.split(",") if simulators else [n for n in ENVIRONMENTS if not n.startswith("julia:")]
    for seed, name in itertools.product(range(seeds), names):
        sides = results["runs"].setdefault(name, {"former": [], "present": []})
        if len(sides["present"]) > seed:
            continue
        if not sides["present"]:
            for tree in trees.values():
                run(tree, name, 0, most, updates=30)
        found = {side: run(trees[side], name, seed, most) for side in sorted(trees, reverse=bool(seed % 2))}
        for side, row in found.items():
            sides[side].append(row)
        print(name, seed, json.dumps(found), flush=True)
        if out:
            out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
