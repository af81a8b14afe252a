"""After how many updates compiling has paid, beside what ``auto`` assumes.

    python benchmarks/back_end_choice.py --env pendulum --env quadrotor

CPU seconds at default settings and the windows of a run's start: of an update on ``eager`` and on ``native``, and of
preparing the kernels with an empty cache and with a filled one; then after how many updates the kernels have saved
that.  The last column is the number of updates from which ``auto`` compiles.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from typing import Any

import click


def cpu() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def updates_of(env: str, backend: str, count: int) -> dict[str, Any]:
    """CPU seconds of the first update, and the median of the ``count`` after the next two."""
    import torch

    from diffsim.assembly import assemble
    from diffsim.config import load_config

    torch.set_num_threads(1)
    algorithm: Any = assemble(load_config({"env": env, "backend": backend})).algorithm
    seconds = []
    for _ in range(count + 3):
        before = cpu()
        algorithm.step()
        seconds.append(cpu() - before)
    rollout = algorithm.rollout
    found = {"first": seconds[0], "update": statistics.median(seconds[3:])}
    if backend == "eager":
        return found
    # By halving: the smallest run for which auto takes the kernel.
    from diffsim.rollouts.engines import Engines

    seen: list[Any] = []
    candidates = Engines.candidates
    Engines.candidates = lambda self, inputs: seen.append(inputs) or candidates(self, inputs)  # type: ignore[method-assign]
    assemble(load_config({"env": env, "backend": backend})).algorithm.step()
    engines = rollout.engines
    low, high, per_update = 1, 600, engines.expected_steps // 600
    engines.backend = "auto"
    while low < high:
        middle = (low + high) // 2
        engines.expected_steps = middle * per_update
        chosen = candidates(engines, seen[0])[0]
        low, high = (low, middle) if chosen == "native" else (middle + 1, high)
    return {**found, "auto": low}


@click.command()
@click.option(
    "--env", "envs", multiple=True, default=("pendulum", "quadrotor", "arm7_point"), show_default=True
)
@click.option("--updates", default=5, show_default=True)
@click.option("--one", nargs=2, hidden=True, default=(None, None))
def main(envs: tuple[str, ...], updates: int, one: tuple[str | None, str | None]) -> None:
    """Print the table."""
    if one[0] is not None and one[1] is not None:
        print(json.dumps(updates_of(one[0], one[1], updates)))
        return
    print("| simulator | eager, ms an update | native | cold, s | warm, s | paid cold | paid warm | `auto` |")
    print("|---|---|---|---|---|---|---|---|")
    for env in envs:
        with tempfile.TemporaryDirectory() as cache:
            found = []
            for backend in ("eager", "native", "native"):
                command = [sys.executable, __file__, "--updates", str(updates), "--one", env, backend]
                done = subprocess.run(
                    command,
                    env={**os.environ, "DIFFSIM_CACHE": cache},
                    check=True,
                    capture_output=True,
                    text=True,
                )
                found.append(json.loads(done.stdout.splitlines()[-1]))
        eager, cold, warm = found
        saved = eager["update"] - warm["update"]
        prepared = [run["first"] - run["update"] for run in (cold, warm)]
        paid = [f"{q / saved:.0f}" if saved > 0 else "never" for q in prepared]
        print(
            f"| {env} | {1e3 * eager['update']:.0f} | {1e3 * warm['update']:.1f} | {prepared[0]:.1f} | "
            f"{prepared[1]:.2f} | {paid[0]} | {paid[1]} | {warm['auto']} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
