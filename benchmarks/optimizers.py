"""Every optimizer on every simulator, five seeds each, default settings: what reaches the threshold, and at what cost.

    pip install -e '.[population]'
    python benchmarks/optimizers.py --out benchmarks/results/optimizers.json --processes 2
    python benchmarks/optimizers.py --out benchmarks/results/optimizers.json --table

One word differs between the rows: the optimizer's name. Algorithm (``short_window``, which was the default when this
was measured), policy (64-64), objective and all other settings are the defaults. A run ends where the mean return of
64 episodes from the task's starts (generator seed 1, the same for all), measured every ten updates, reaches the
simulator's threshold, after 500 updates, or after ``--seconds`` of training (default 5); what it used until then is
kept, failures included.

The threshold of a simulator is stated by what is known of it (``simulators.json``: the best mean return of Adam over
all seeds with the default and the ``long`` settings): at least 90 % of the way there from actions in the middle of
their box, and at most a quarter of its size below it.  Whatever the outcome, a run keeps its best return.

Seconds are of training alone, without evaluations and compiling, one thread, ``--processes`` runs at a time.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from scipy.stats import rankdata

sys.path.insert(0, str(Path(__file__).parent.parent))

from robotics_envs import ENVIRONMENTS

EPISODES, UPDATES, EVERY = 64, 500, 10
KNOWN = Path(__file__).parent / "results" / "simulators.json"
FAMILIES: dict[str, dict[str, dict[str, Any]]] = {
    "First order": {name: {"optimizer": {"name": name}} for name in ("momentum", "adam", "lars", "lamb")},
    "Quasi-Newton": {name: {"optimizer": {"name": name}} for name in ("lbfgs", "lbfgsb")},
    "Population": {
        name: {"optimizer": {"name": name}}
        for name in ("cma_es", "openai_es", "pgpe", "pso", "differential_evolution")
    },
    "Together": {
        "adam → sgd": {"optimizer": {"name": "hand_over"}},
        "cma_es → adam": {"optimizer": {"name": "hand_over", "first": "cma_es", "then": "adam", "at": 0.1}},
    },
}
LONGER = {
    "cma_es, whole episodes": {
        "optimizer": {"name": "cma_es", "popsize": 64},
        "algorithm": {"name": "full_horizon", "batch": 16},
    }
}
"""Measured for four times ``--seconds``: population search as it is mostly done, without critic and windows."""
FAMILIES["Four times as long"] = LONGER
OPTIMIZERS = {label: options for family in FAMILIES.values() for label, options in family.items()}


def thresholds() -> dict[str, dict[str, float]]:
    """Of every simulator the return of actions in the middle of their box, the best one known, the threshold."""
    stated = {}
    for name, row in json.loads(KNOWN.read_text())["simulators"].items():
        best = max(run["mean"] for runs in row["runs"].values() for run in runs if "mean" in run)
        middle = row["middle"]
        stated[name] = {
            "middle": middle,
            "best": best,
            "threshold": max(middle + 0.9 * (best - middle), best - 0.25 * abs(best)),
        }
    return stated


def train(task: tuple[str, str, int, float, float]) -> dict[str, Any]:
    """One run: ``(optimizer's label, simulator, seed, threshold, seconds)``."""
    label, env, seed, threshold, seconds = task
    import torch

    from diffsim.assembly import assemble
    from diffsim.config import load_config
    from diffsim.errors import DiffsimError
    from diffsim.runs.run import MAX_DROPPED_IN_A_ROW

    torch.set_num_threads(1)
    done = {"optimizer": label, "simulator": env, "seed": seed}
    started = time.perf_counter()
    try:
        run = {"env": env, "seed": seed, "updates": UPDATES, "algorithm": "short_window"}
        config = load_config(run, OPTIMIZERS[label])
        algorithm = assemble(config).algorithm
        starts = algorithm.env.reset(EPISODES, torch.Generator().manual_seed(1), algorithm.dtype)
        used = {"env_steps": 0, "gradient_evaluations": 0, "seconds": 0.0}
        best, last, ended, dropped = -float("inf"), -float("inf"), "updates", 0
        for update in range(1, UPDATES + 1):
            clock = time.perf_counter()
            record = algorithm.step()
            used["seconds"] += time.perf_counter() - clock - record.compile_seconds
            used["env_steps"] += record.env_steps
            used["gradient_evaluations"] += record.gradient_evaluations
            dropped = dropped + 1 if record.dropped else 0
            late = used["seconds"] >= seconds
            if update % EVERY == 0 or late or update == UPDATES:
                last = float(algorithm.returns(starts).mean())
                best = max(best, last if last == last else best)
                if last >= threshold:
                    ended = "threshold"
                    break
            if late or dropped == MAX_DROPPED_IN_A_ROW:
                ended = "time" if late else "diverged"
                break
    except DiffsimError as error:
        return {**done, "ended": type(error).__name__, "message": str(error)}
    return {
        **done, **used, "ended": ended, "updates": update, "return": last, "best": best,
        "whole_seconds": time.perf_counter() - started,
    }  # fmt: skip


def table(results: Mapping[str, Any]) -> str:
    """Markdown: one row an optimizer over all simulators, then simulators by optimizers, one table a family."""
    runs: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for run in results["runs"]:
        runs.setdefault((run["optimizer"], run["simulator"]), []).append(run)
    simulators = [name for name in ENVIRONMENTS if name in results["simulators"]]
    lines = [
        "| optimizer | runs that reach it | simulators, 5 of 5 | mean rank | seconds | environment steps | gradients |",
        "|---|---|---|---|---|---|---|",
    ]
    ranks = mean_ranks(results["runs"], {n: s["threshold"] for n, s in results["simulators"].items()})
    for label in OPTIMIZERS:
        every = [run for name in simulators for run in runs.get((label, name), [])]
        good = [run for run in every if run["ended"] == "threshold"]
        whole = sum(
            len(runs.get((label, name), [])) >= 5
            and all(r["ended"] == "threshold" for r in runs[label, name])
            for name in simulators
        )
        lines.append(
            f"| `{label}` | {len(good)} of {len(every)} | {whole} of {len(simulators)} "
            f"| {'–' if label in LONGER else format(ranks[label], '.1f')} "
            f"| {costs(good, ' | ')} |"
        )
    for family, members in FAMILIES.items():
        lines += ["", f"**{family}**", ""]
        lines += ["| simulator | threshold | " + " | ".join(f"`{m}`" for m in members) + " |"]
        lines += ["|---|---|" + "---|" * len(members)]
        for name in simulators:
            cells = [cell(runs.get((label, name), [])) for label in members]
            lines.append(
                f"| `{name}` | {results['simulators'][name]['threshold']:.4g} | " + " | ".join(cells) + " |"
            )
    return "\n".join(lines)


def mean_ranks(runs: Sequence[Mapping[str, Any]], limits: Mapping[str, float]) -> dict[str, float]:
    """Every optimizer's rank by best return, 1 for the best, averaged over simulators and seeds.

    Returns beyond the threshold count as the threshold: all runs that reach it share the first ranks.  Of runs of
    equal length only: not of those in ``LONGER``.
    """
    found: dict[str, list[float]] = {label: [] for label in OPTIMIZERS}
    keys = sorted({(run["simulator"], run["seed"]) for run in runs})
    for key in keys:
        at = [r for r in runs if (r["simulator"], r["seed"]) == key and r["optimizer"] not in LONGER]
        best = [min(run.get("best", -float("inf")), limits[key[0]]) for run in at]
        for run, rank in zip(at, rankdata([-b for b in best]), strict=True):
            found[run["optimizer"]].append(float(rank))
    return {label: statistics.mean(ranks) if ranks else float("nan") for label, ranks in found.items()}


def cell(runs: Sequence[Mapping[str, Any]]) -> str:
    """How many seeds reached the threshold, and medians of what these used."""
    good = [run for run in runs if run["ended"] == "threshold"]
    broken = sum(run["ended"] not in ("threshold", "updates", "time") for run in runs)
    text = f"{len(good)}/{len(runs)}" + (f", {costs(good, ', ')}" if good else "")
    return text + (f" ({broken} diverged)" if broken else "")


def costs(runs: Sequence[Mapping[str, Any]], between: str) -> str:
    """Median seconds, environment steps and gradient evaluations."""
    if not runs:
        return between.join("–" * 3)
    median = {
        k: statistics.median(run[k] for run in runs) for k in ("seconds", "env_steps", "gradient_evaluations")
    }
    steps = median["env_steps"]
    short = f"{steps / 1e6:.2g}M" if steps >= 1e5 else f"{steps / 1e3:.2g}k"
    return between.join((f"{median['seconds']:.2g} s", short, f"{median['gradient_evaluations']:.0f}"))


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="JSON to write, or to add to.")
@click.option("--seeds", default=5, show_default=True)
@click.option("--seconds", default=5.0, show_default=True, help="Of training, per run.")
@click.option("--processes", default=1, show_default=True)
@click.option("--only", multiple=True, type=click.Choice(list(ENVIRONMENTS)), help="Simulators.")
@click.option("--optimizer", "chosen", multiple=True, type=click.Choice(list(OPTIMIZERS)))
@click.option("--table", "print_table", is_flag=True, help="Print what --out holds and train nothing.")
def main(
    out: Path,
    seeds: int,
    seconds: float,
    processes: int,
    only: tuple[str, ...],
    chosen: tuple[str, ...],
    print_table: bool,
) -> None:
    """Train every optimizer on every simulator; what is in --out already is not run again."""
    results: dict[str, Any] = {"runs": []}
    if out.exists():
        results = json.loads(out.read_text())
    if not print_table:
        from diffsim.runs.provenance import describe

        os.environ |= {"MUJOCO_GL": "disabled", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        stated = thresholds()
        results |= {
            "machine": describe("cpu"),
            "simulators": stated,
            "optimizers": OPTIMIZERS,
            "seconds": seconds,
        }
        done = {(run["optimizer"], run["simulator"], run["seed"]) for run in results["runs"]}
        tasks = [
            (label, env, seed, stated[env]["threshold"], seconds * (4 if label in LONGER else 1))
            for seed, env, label in itertools.product(range(seeds), only or stated, chosen or OPTIMIZERS)
            if (label, env, seed) not in done
        ]
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            for number, run in enumerate(pool.imap_unordered(train, tasks), 1):
                results["runs"].append(run)
                print(f"{number}/{len(tasks)}", run, flush=True)
                if number % 20 == 0 or number == len(tasks):
                    write(out, results)
    print(table(results))


def write(out: Path, results: dict[str, Any]) -> None:
    labels = list(OPTIMIZERS)
    order = sorted(
        results["runs"],
        key=lambda r: (list(ENVIRONMENTS).index(r["simulator"]), labels.index(r["optimizer"]), r["seed"]),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({**results, "runs": order}, indent=1) + "\n")


if __name__ == "__main__":
    main()
