"""Every part of the default algorithm left out, one at a time: ``python benchmarks/ablations.py``.

Trains eight simulators, for some seeds each, with the default settings and with each part switched off, 600 updates a
run without the rule that makes runs longer, and judges the kept policy as ``benchmarks/defaults.py`` does.  Runs that
are in the results file are not repeated, so the command can be stopped and started again at any time; seeds are the
outer loop, so that what is there at any time covers all parts.  ``--table`` prints the results as Markdown.

A part is judged by two measures of a run: the return of the policy that it keeps, and the share of held-out starts with
success, averaged over the evaluations of the run, which tells how soon the task is solved.  For each, the probability
that a run with the part is better than one without it, averaged over the simulators, has a 95% interval
(``diffsim.comparison.statistics.improvement``).

``--halves`` answers whether the constants were tuned to their suite: for each of the 70 ways to divide the simulators
in halves, the settings with the highest success over a run on one half are used on the other.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import click
import numpy as np

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
OUT = ROOT / "benchmarks/results/ablations.json"
# Chosen before any run of this table: kinds of tasks that differ, two of them (crane, tug) never trained on before the
# default was fixed.
SIMULATORS = (
    "pendulum",
    "cartpole_swingup",
    "reacher",
    "quadrotor",
    "hopper",
    "trebuchet",
    "crane",
    "tug",
)
COMMON = ["doublings=0"]
WITH = "with all parts"
#: What a row of the table leaves out, and the settings that do it.
PARTS: dict[str, list[str]] = {
    WITH: [],
    "critic fitted to costates": ["algorithm.costate_weight=0"],
    "starts between": ["algorithm.between=0"],
    "task's initial states among the starts": ["algorithm.resets=0"],
    "state box among the starts": ["algorithm.fresh=0", "algorithm.resets=1"],
    "weighting by cost": ["algorithm.compression=1e6"],
    "bound on the gradient by actions": ["algorithm.gradient_bound=1e6"],
    "longer windows at the end": ["algorithm.window_end=8"],
    "short horizon at the start": ["algorithm.discount_start=1"],
    "long horizon at the end": ["algorithm.discount_end=5"],
    "former windows for the critic at the start": ["algorithm.critic_windows=1"],
    "latest windows only for the critic at the end": ["algorithm.critic_windows_end=8"],
    "target network": ["algorithm.tau=1"],
}


def measures(run: dict[str, Any]) -> tuple[float, float]:
    """Return of the kept policy and mean success over the evaluations; a failed run is worse than any other."""
    if "error" in run:
        return -np.inf, -1.0
    return run["best"]["mean"], statistics.fmean(success for *_, success in run["curve"])


def verdict(low: float, high: float) -> str:
    """What an interval of the probability that the part helps says."""
    if low > 0.5:
        return "matters"
    if high < 0.5:
        return "harms"
    return "does not" if low > 0.35 and high < 0.65 else "not measurable"


def table(runs: list[dict[str, Any]]) -> str:
    """A row a part: runs solved, and the probability that a run with the part is better, with its interval."""
    from defaults import solved

    from diffsim.comparison.statistics import improvement

    found: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for run in runs:
        found.setdefault((run["part"], run["simulator"]), {})[run["seed"]] = run
    lines = [
        "| without | solved | with it | higher return | verdict | success sooner | verdict |",
        "|---|---|---|---|---|---|---|",
    ]
    for part in PARTS:
        # The same seeds on both sides, so that a row that is not finished compares like with like.
        pairs = [
            [
                (found[WITH, name][seed], run)
                for seed, run in found.get((part, name), {}).items()
                if seed in base
            ]
            for name in SIMULATORS
            if (base := found.get((WITH, name), {}))
        ]
        pairs = [cell for cell in pairs if cell]
        if part == WITH or not pairs:
            continue
        cells = [
            part,
            f"{sum(solved(b) for cell in pairs for _, b in cell)} of {sum(map(len, pairs))}",
            str(sum(solved(a) for cell in pairs for a, _ in cell)),
        ]
        for k in range(2):
            x = [np.array([measures(a)[k] for a, _ in cell]) for cell in pairs]
            y = [np.array([measures(b)[k] for _, b in cell]) for cell in pairs]
            p = improvement(x, y)  # without an interval where a simulator has one seed
            interval = "" if math.isnan(p.low) else f" ({p.low:.2f}–{p.high:.2f})"
            cells += [f"{p.value:.2f}{interval}", verdict(p.low, p.high)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def halves(runs: list[dict[str, Any]]) -> str:
    """A row for each settings that some half of the simulators chooses, and what they do on the other halves.

    Chosen is what has the highest success, averaged over the evaluations of a run, its seeds and the simulators of the
    half, of the seeds that all settings have.
    """
    from defaults import solved

    found = {(run["part"], run["simulator"], run["seed"]): run for run in runs}
    parts = [part for part in PARTS if any(key[0] == part for key in found)]
    seeds = [
        seed
        for seed in sorted({key[2] for key in found})
        if all((part, name, seed) in found for part in parts for name in SIMULATORS)
    ]
    cells = [[[found[part, name, seed] for seed in seeds] for name in SIMULATORS] for part in parts]
    success = np.array(
        [[statistics.fmean(measures(run)[1] for run in runs) for runs in row] for row in cells]
    )
    count = np.array([[sum(map(solved, runs)) for runs in row] for row in cells])
    chosen: dict[int, list[tuple[float, float, float, float]]] = {}
    for half in itertools.combinations(range(len(SIMULATORS)), len(SIMULATORS) // 2):
        other = [k for k in range(len(SIMULATORS)) if k not in half]
        best = int(success[:, half].mean(1).argmax())
        judged = success[:, other].mean(1)
        solutions = count[:, other].sum(1) / (len(other) * len(seeds))
        chosen.setdefault(best, []).append((judged[best], judged[0], solutions[best], solutions[0]))
    lines = [
        "| chosen: without | halves | success over a run on the other half | default there | solved there | default |",
        "|---|---|---|---|---|---|",
    ]
    rows = sorted(chosen.items(), key=lambda item: -len(item[1]))
    every = [pair for _, pairs in rows for pair in pairs]
    for part, pairs in [*((parts[k] if k else "nothing (the default)", q) for k, q in rows), ("all", every)]:
        means = [statistics.fmean(q) for q in zip(*pairs, strict=True)]
        lines.append(f"| {part} | {len(pairs)} | " + " | ".join(f"{100 * q:.1f}%" for q in means) + " |")
    return "\n".join(lines)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=OUT)
@click.option("--seeds", default=5, show_default=True)
@click.option("--parts", default="", help="Comma-separated; all by default.")
@click.option("--processes", default=os.cpu_count() or 1, show_default=True)
@click.option("--table", "only_table", is_flag=True, help="Print the table of the results and stop.")
@click.option("--halves", "only_halves", is_flag=True, help="Print what halves of the suite choose and stop.")
def main(out: Path, seeds: int, parts: str, processes: int, only_table: bool, only_halves: bool) -> None:
    """Measure, or print what was measured."""
    from defaults import in_a_process

    data: dict[str, Any] = (
        json.loads(out.read_text()) if out.exists() else {"command": "", "machine": {}, "runs": []}
    )
    if only_table:
        print(table(data["runs"]))
        return
    if only_halves:
        print(halves(data["runs"]))
        return
    from diffsim.runs.provenance import describe
    from diffsim.runs.whole_files import write_whole

    data["command"] = "python benchmarks/ablations.py"
    data["machine"] = {k: v for k, v in describe("cpu").items() if k not in ("command", "folder")}
    done = {(r["part"], r["simulator"], r["seed"]) for r in data["runs"]}
    chosen = parts.split(",") if parts else list(PARTS)
    jobs = [(part, name, seed) for seed in range(seeds) for part in chosen for name in SIMULATORS]

    def work(job: tuple[str, str, int]) -> dict[str, Any]:
        part, name, seed = job
        got = in_a_process(name, seed, [*COMMON, *PARTS[part]], twins=False)
        return {"part": part, "simulator": name, "seed": seed, **got}

    with ThreadPoolExecutor(processes) as pool:
        for future in as_completed([pool.submit(work, job) for job in jobs if job not in done]):
            run = future.result()
            data["runs"].append(run)
            write_whole(out, f"{json.dumps(data, indent=1)}\n".encode())
            said = run.get("error") or f"{run['best']['successes']} of {run['needed']} needed"
            print(f"without {run['part']}, {run['simulator']}, seed {run['seed']}: {said}", flush=True)


if __name__ == "__main__":
    main()
