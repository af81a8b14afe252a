"""What rollouts cost without a kernel and what a kernel costs, and the model of both that ``auto`` decides by.

    python benchmarks/back_end_choice.py --out benchmarks/results/back_end_choice.json
    python benchmarks/back_end_choice.py --table benchmarks/results/back_end_choice.json
    python benchmarks/back_end_choice.py --fit benchmarks/results/back_end_choice.json

The first measures every simulator that torch computes, one after the other, and goes on where it was stopped.  CPU
seconds of one thread: an update of the default algorithm, the median of those after the first three, with rollouts on
``eager`` for 256 and for 16 windows, and on ``native``; and preparing the rollout's kernel with an empty cache and with
a filled one.  What else is compiled is so in all of them.  Windows are those of the start of a run.  The second prints
after how many updates a kernel has saved what it took, beside the number from which ``auto`` compiles.  The third
prints the constants of ``diffsim/rollouts/engines.py``.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import click
import numpy as np
from scipy.optimize import nnls

WINDOWS = (256, 16)


def cpu() -> float:
    """CPU seconds of this process and of those it has waited for."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def measured(env: str, backend: str, batch: int, count: int) -> dict[str, Any]:
    """CPU seconds of preparing the rollout's kernel and of an update; operations and control intervals."""
    import torch

    from diffsim.assembly import assemble
    from diffsim.config import load_config
    from diffsim.rollouts.engines import Engines
    from diffsim.rollouts.inspection import look

    torch.set_num_threads(1)
    seen: list[Any] = []
    prepared = 0.0
    found = Engines._found

    def timed(self: Engines, inputs: Any, gradient: bool) -> Any:
        nonlocal prepared
        seen.append(inputs)
        before = cpu()
        engine = found(self, inputs, gradient)
        prepared += cpu() - before
        return engine

    config = load_config(
        {"env": env, "backend": "native"}, {"algorithm": {"name": "value_gradient", "batch": batch}}
    )
    algorithm: Any = assemble(config).algorithm
    seconds = []
    with (
        mock.patch.object(Engines, "_found", timed),
        mock.patch.object(Engines, "candidates", return_value=[backend]),
    ):
        for _ in range(count + 3):
            before = cpu()
            algorithm.step()
            seconds.append(cpu() - before)
    return {
        "prepared": prepared,
        "update": statistics.median(seconds[3:]),
        "intervals": algorithm.objective.steps,
        "operations": look(seen[0], gradient=False).operations,
    }


def model(results: dict[str, Any]) -> dict[str, float]:
    """The constants that fit best.

    A kernel saves ``intervals operations (a + b windows)`` seconds an update, and takes ``c + d operations`` seconds:
    least squares of relative errors, no constant negative (Lawson and Hanson's algorithm).
    """
    saving, compiling = [], []
    for run in results.values():
        for windows in WINDOWS:
            eager = run[f"eager {windows}"]
            saved = eager["update"] - run["cold"]["update"] * windows / WINDOWS[0]
            work = eager["intervals"] * eager["operations"]
            saving.append([work / saved, work * windows / saved])
        seconds = run["cold"]["prepared"]
        compiling.append([1 / seconds, run["cold"]["operations"] / seconds])
    (a, b), (c, d) = (nnls(np.array(rows), np.ones(len(rows)))[0] for rows in (saving, compiling))
    named = {"operation": a, "operation of a rollout": b, "kernel": c, "compiled operation": d}
    return {name: float(f"{value:.2g}") for name, value in named.items()}


def rows(results: dict[str, Any]) -> list[str]:
    """The results as the rows of a Markdown table."""
    k = model(results)
    names = (
        "simulator",
        "operations",
        "`eager`, ms an update",
        "`native`",
        "kernel, empty cache, s",
        "filled",
        "pays from, empty cache",
        "filled",
        "`auto` compiles from",
    )
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for name, run in results.items():
        eager, cold, warm = run[f"eager {WINDOWS[0]}"], run["cold"], run["warm"]
        saved = eager["update"] - warm["update"]
        rate = k["operation"] + k["operation of a rollout"] * WINDOWS[0]
        auto = (k["kernel"] + k["compiled operation"] * eager["operations"]) / (
            eager["intervals"] * eager["operations"] * rate
        )
        pays = [math.ceil(q["prepared"] / saved) if saved > 0 else "never" for q in (cold, warm)]
        lines.append(
            f"| `{name}` | {eager['operations']:,} | {1e3 * eager['update']:.0f} | {1e3 * warm['update']:.1f} | "
            f"{cold['prepared']:.1f} | {warm['prepared']:.2f} | {pays[0]} | {pays[1]} | {math.ceil(auto)} |"
        )
    return lines


@click.command()
@click.option(
    "--out", type=click.Path(path_type=Path), help="File of results; measured ones are not measured again."
)
@click.option(
    "--env", "envs", multiple=True, help="Simulator; repeatable.  [default: all that torch computes]"
)
@click.option("--updates", default=5, show_default=True, help="Timed updates.")
@click.option(
    "--table", type=click.Path(path_type=Path, exists=True), help="Print a file of results and stop."
)
@click.option("--fit", type=click.Path(path_type=Path, exists=True), help="Print its constants and stop.")
@click.option("--one", nargs=3, hidden=True)
def main(
    out: Path | None,
    envs: tuple[str, ...],
    updates: int,
    table: Path | None,
    fit: Path | None,
    one: tuple[str, str, str] | None,
) -> None:
    """Measure, print or fit."""
    if one:
        print(json.dumps(measured(one[0], one[1], int(one[2]), updates)))
        return
    if table or fit:
        results = json.loads((table or fit).read_text())["results"]  # type: ignore[union-attr]
        print("\n".join(rows(results)) if table else json.dumps(model(results), indent=1))
        return
    from diffsim.assembly import ENVIRONMENTS
    from diffsim.runs.provenance import describe

    machine = {k: v for k, v in describe("cpu").items() if k not in ("command", "folder")}
    data = {"command": "python benchmarks/back_end_choice.py", "machine": machine, "results": {}}
    if out is not None and out.exists():
        data = json.loads(out.read_text())
    for env in envs or [name for name in ENVIRONMENTS if not name.startswith("julia:")]:
        if env in data["results"]:
            continue
        with tempfile.TemporaryDirectory() as cache:

            def run(backend: str, batch: int, env: str = env, cache: str = cache) -> Any:
                command = [
                    sys.executable,
                    __file__,
                    "--updates",
                    str(updates),
                    "--one",
                    env,
                    backend,
                    str(batch),
                ]
                done = subprocess.run(
                    command,
                    env={**os.environ, "DIFFSIM_CACHE": cache},
                    check=True,
                    capture_output=True,
                    text=True,
                )
                return json.loads(done.stdout.splitlines()[-1])

            found = {f"eager {windows}": run("eager", windows) for windows in WINDOWS}
            found |= {"cold": run("native", WINDOWS[0]), "warm": run("native", WINDOWS[0])}
        data["results"][env] = found
        print(env, json.dumps(found), flush=True)
        if out is not None:
            out.write_text(json.dumps(data, indent=1) + "\n")
    print("\n".join(rows(data["results"])))


if __name__ == "__main__":
    main()
