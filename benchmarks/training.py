"""Environment steps per second of whole trainings beside those of their rollout kernel, for every simulator.

    python benchmarks/training.py --out benchmarks/results/training.json

A training is the command ``diffsim train`` at default settings, from the start of its process to the end: imports,
compiling, evaluations and checkpoints included.  The first one fills a kernel cache of its own (``cold``), the others
use it, and their median counts.  The kernel's figure is that of calls with the trained policy, forward and backward,
at the same batch and threads, and at the median of the run's windows.  Results of simulators that are in the file
already are kept, so an interrupted benchmark goes on.  Run it on a machine that does nothing else.
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
    command = [sys.executable, "-m", "diffsim", "train", env, "--out", str(folder), "--quiet"]
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
        began = time.perf_counter()
        trajectory = rollout(start, window, algorithm.params, noise=noise)
        torch.autograd.grad(trajectory.costs.sum() + trajectory.values.sum(), (start, noise))
        seconds.append(time.perf_counter() - began)
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
    rate = found["steps"] / statistics.median(run["wall"] for run in warm)
    return {**found, "cold": cold, "warm": warm, "rate": rate, "ratio": rate / found["kernel_rate"]}


def row(env: str, entry: dict[str, Any]) -> str:
    wall = statistics.median(run["wall"] for run in entry["warm"])
    return (
        f"| {env} | {entry['window']} | {entry['steps'] / 1e6:.2f} | {entry['cold']['wall']:.1f} | {wall:.1f} | "
        f"{entry['rate'] / 1e6:.3f} | {entry['kernel_rate'] / 1e6:.3f} | {entry['ratio']:.2f} |"
    )


@click.command()
@click.option("--env", "envs", multiple=True, help="Simulator; repeatable.  [default: all]")
@click.option("--repeats", default=3, show_default=True, help="Trainings with a filled kernel cache.")
@click.option("--calls", default=30, show_default=True, help="Timed calls of the kernel.")
@click.option("--updates", type=int, help="Length of the trainings.  [default: that of a run]")
@click.option("--out", type=click.Path(path_type=Path))
@click.option("--kernel-of", type=click.Path(path_type=Path), hidden=True)
def main(
    envs: tuple[str, ...],
    repeats: int,
    calls: int,
    updates: int | None,
    out: Path | None,
    kernel_of: Path | None,
) -> None:
    """Print a row for each simulator, and the median ratio."""
    if kernel_of is not None:
        print(json.dumps(kernel(kernel_of, calls)))
        return
    from robotics_envs import ENVIRONMENTS

    about = {"machine": platform.platform(), "cores": os.cpu_count(), "repeats": repeats, "updates": updates}
    results: dict[str, Any] = {"about": about, "simulators": {}}
    if out is not None and out.exists():
        results = json.loads(out.read_text())
        if results["about"] != about:
            raise click.UsageError(f"{out} was measured as {results['about']}, not as {about}; move it away")
    print("| simulator | window | million steps | cold, s | warm, s | training, M/s | kernel, M/s | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for env in envs or tuple(ENVIRONMENTS):
        if env not in results["simulators"]:
            results["simulators"][env] = measured(env, repeats, calls, updates)
            if out is not None:
                unfinished = out.with_suffix(".tmp")
                unfinished.write_text(json.dumps(results, indent=1) + "\n")
                unfinished.replace(out)
        print(row(env, results["simulators"][env]), flush=True)
    ratios = [entry["ratio"] for entry in results["simulators"].values()]
    print(f"\nmedian ratio {statistics.median(ratios):.2f} of {len(ratios)} simulators")


if __name__ == "__main__":
    main()
