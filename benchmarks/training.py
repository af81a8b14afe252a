"""Environment steps per second of whole trainings beside those of their rollout kernel, for every simulator.

    python benchmarks/training.py --out benchmarks/results/training.json

A training is the command ``diffsim train`` at default settings, from the start of its process to the end: imports,
compiling, evaluations and checkpoints included.  The first one fills a kernel cache of its own (``cold``), the others
use it, and their median counts.  The kernel's figure is that of calls with the trained policy, forward and backward,
at the same batch and threads, and at the median of the run's windows.  Results of simulators that are in the file
already are kept, so an interrupted benchmark goes on.

Seconds are those of the CPU, of training and kernel alike; both use one thread.  They depend less on what else the
machine does than those of the clock, which are in the file, too.

    python benchmarks/training.py --table benchmarks/results/training.json

prints the table of ``docs/performance.md`` from the results.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parent.parent


def trained(env: str, folder: Path, cache: Path, updates: int | None) -> dict[str, float]:
    """Wall and CPU seconds of one training in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "diffsim",
        "train",
        env,
        "--out",
        str(folder),
        "--quiet",
        "--threads",
        "1",
    ]
    command += [] if updates is None else ["--updates", str(updates)]
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT), "DIFFSIM_CACHE": str(cache)}
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, env=surroundings, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"wall": wall, "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}


def kernel(folder: Path, calls: int) -> dict[str, Any]:
    """Steps of the run in ``folder``, and environment steps per second of its kernel alone."""
    import numpy as np
    import torch

    from diffsim.assembly import assemble
    from diffsim.runs.runfile import RunFile

    file = RunFile(folder)
    config, history = file.config(), file.history()
    torch.set_num_threads(config.threads)
    algorithm: Any = assemble(config).algorithm
    algorithm.load_state_dict(file.checkpoint("last"))
    batch = algorithm.settings.batch
    window = round(float(np.median(np.diff(history["env_steps"]))) / batch)
    env, rollout = algorithm.env, algorithm.rollout
    x = env.state_box.sample(batch, torch.Generator().manual_seed(0), algorithm.dtype)
    seconds, back_ends = [], set()
    for _ in range(calls + 3):
        start = x.clone().requires_grad_()
        noise = x.new_zeros(window, batch, len(env.action_box)).requires_grad_()
        began = time.process_time()
        trajectory = rollout(start, window, algorithm.params, noise=noise)
        torch.autograd.grad(trajectory.costs.sum() + trajectory.values.sum(), (start, noise))
        seconds.append(time.process_time() - began)
        back_ends |= {type(engine).__name__ for engine in rollout.engines.prepared.values()}
    return {
        "updates": int(history["update"][-1]),
        "steps": int(history["env_steps"][-1]),
        "return": float(np.nanmax(history["return"])),
        "training_seconds": float(history["wall_seconds"][-1]),
        "compile_seconds": float(history["compile_seconds"][-1]),
        "batch": batch,
        "window": window,
        "threads": config.threads,
        "back_ends": sorted(back_ends),
        "kernel_rate": batch * window / statistics.median(seconds[3:]),
    }


def measured(env: str, repeats: int, calls: int, updates: int | None) -> dict[str, Any]:
    """One simulator's entry of the result file."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, cache = Path(scratch), Path(scratch, "kernels")
        cold = trained(env, folder / "cold", cache, updates)
        warm = [trained(env, folder / f"warm{k}", cache, updates) for k in range(repeats)]
        command = [sys.executable, __file__, "--kernel-of", str(folder / "warm0"), "--calls", str(calls)]
        surroundings = {**os.environ, "PYTHONPATH": str(ROOT), "DIFFSIM_CACHE": str(cache)}
        done = subprocess.run(command, env=surroundings, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
    rate = found["steps"] / statistics.median(run["cpu"] for run in warm)
    return {**found, "cold": cold, "warm": warm, "rate": rate, "ratio": rate / found["kernel_rate"]}


def row(env: str, entry: dict[str, Any]) -> str:
    warm = statistics.median(run["cpu"] for run in entry["warm"])
    return (
        f"| {env} | {entry['updates']:,} | {entry['window']} | {entry['cold']['cpu']:.1f} | {warm:.1f} | "
        f"{entry['rate'] / 1e6:.3f} | {entry['kernel_rate'] / 1e6:.3f} | {entry['ratio']:.2f} |"
    )


def table(results: dict[str, Any]) -> str:
    """A row for each simulator that was measured, and the median ratio, as Markdown."""
    from robotics_envs import ENVIRONMENTS

    entries, known = results["simulators"], [*ENVIRONMENTS]
    rows = [row(env, entries[env]) for env in sorted(entries, key=known.index)]
    ratios = [entry["ratio"] for entry in entries.values()]
    others = ", ".join(env for env in known if env not in entries)
    missing = [f"Not measured yet: {others}."] if others else []
    return "\n".join(
        [
            "| simulator | updates | window | empty cache, CPU s | filled, CPU s | training, M steps/s | "
            "kernel, M steps/s | ratio |",
            "|---|---|---|---|---|---|---|---|",
            *rows,
            "",
            f"{len(entries)} of {len(known)} simulators, median ratio {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f}).",
            *missing,
        ]
    )


@click.command()
@click.option("--env", "envs", multiple=True, help="Simulator; repeatable.  [default: all]")
@click.option("--repeats", default=3, show_default=True, help="Trainings with a filled kernel cache.")
@click.option("--calls", default=30, show_default=True, help="Timed calls of the kernel.")
@click.option("--updates", type=int, help="Length of the trainings.  [default: that of a run]")
@click.option("--out", type=click.Path(path_type=Path))
@click.option("--table", "tabled", type=click.Path(path_type=Path), help="Print the table of this file.")
@click.option("--kernel-of", type=click.Path(path_type=Path), hidden=True)
def main(
    envs: tuple[str, ...],
    repeats: int,
    calls: int,
    updates: int | None,
    out: Path | None,
    tabled: Path | None,
    kernel_of: Path | None,
) -> None:
    """Print a row for each simulator, and the median ratio."""
    if tabled is not None:
        print(table(json.loads(tabled.read_text())))
        return
    if kernel_of is not None:
        print(json.dumps(kernel(kernel_of, calls)))
        return
    from robotics_envs import ENVIRONMENTS

    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.strip()
    about = {
        "commit": commit,
        "machine": platform.platform(),
        "cores": os.cpu_count(),
        "repeats": repeats,
        "updates": updates,
    }
    results: dict[str, Any] = {"about": about, "simulators": {}}
    if out is not None and out.exists():
        results = json.loads(out.read_text())
        if results["about"] != about:
            raise click.UsageError(f"{out} was measured as {results['about']}, not as {about}; move it away")
    for env in envs or tuple(ENVIRONMENTS):
        if env not in results["simulators"]:
            results["simulators"][env] = measured(env, repeats, calls, updates)
            if out is not None:
                unfinished = out.with_suffix(".tmp")
                unfinished.write_text(json.dumps(results, indent=1) + "\n")
                unfinished.replace(out)
        print(row(env, results["simulators"][env]), flush=True)
    print(f"\n{table(results)}")


if __name__ == "__main__":
    main()
