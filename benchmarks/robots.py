"""Robots from MuJoCo's files: speed, start, size of the kernel, Newton steps, and distance from MuJoCo.

    python benchmarks/robots.py --out benchmarks/results/robots.json

One thread, float32, an MLP policy (64-64, tanh), B = 256 rollouts of 20 control intervals from the task's own starts
after 20 intervals of random actions.  Each robot runs in a process of its own with an empty cache of kernels, and its
start once more in a second one with what the first left there:

  start          seconds (and processor seconds) from the import of torch to the first gradient
  again          the same in the second process
  lines          C++ lines of the rollout's kernel
  forward        control intervals per second; every interval is ``frame_skip`` steps of MuJoCo's integrator
  gradient       the same, forward and backward
  mj_step        control intervals per second of MuJoCo itself, one thread, default solver
  newton         shares of states that need more than 3, 5 and 8 Newton steps, float64
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

TASKS = (
    "gym:InvertedPendulum-v5",
    "gym:HalfCheetah-v5",
    "gym:Hopper-v5",
    "gym:Walker2d-v5",
    "gym:Ant-v5",
    "gym:Humanoid-v5",
)
BATCH, INTERVALS, ROUNDS = 256, 20, 7


def measure(name: str, start_only: bool) -> dict[str, Any]:
    """All numbers of one task, or those of its start."""
    started, used = time.perf_counter(), time.process_time()
    import torch

    from diffsim.rollouts.rollout import Rollout
    from robotics_envs.environments import make_env
    from solvers.native import build

    torch.set_num_threads(1)
    torch.manual_seed(0)
    lines: list[int] = []
    load = build.load
    build.load = lambda source: (lines.append(source.count("\n")), load(source))[1]  # type: ignore[assignment]

    env = make_env(name)
    n, m = len(env.observation_names), len(env.action_box)
    layers = [torch.nn.Linear(n, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64), torch.nn.Tanh()]
    policy = torch.nn.Sequential(*layers, torch.nn.Linear(64, m))
    rollout = Rollout(env, policy, backend="native")
    generator = torch.Generator().manual_seed(0)
    x = env.reset(BATCH, generator)

    def gradient() -> None:
        rollout(x, INTERVALS).costs.mean().backward()

    gradient()
    children = sum(os.times()[2:4])
    found: dict[str, Any] = {
        "start": time.perf_counter() - started,
        "start cpu": time.process_time() - used + children,
        "lines": max(lines),
        "fields": lines,
    }
    if start_only:
        return found
    with torch.no_grad():
        for _ in range(20):
            x = env.step(x, env.action_box.sample(BATCH, generator), env.params(x))[0]

    def forward() -> None:
        with torch.no_grad():
            rollout(x, INTERVALS)

    for what, call in (("forward", forward), ("gradient", gradient)):
        rates = []
        for _ in range(ROUNDS):
            before = time.process_time()
            call()
            rates.append(BATCH * INTERVALS / (time.process_time() - before))
        found[what] = statistics.median(rates)
    found["mj_step"] = _mujoco(env)
    found["newton"] = _newton(env, x)
    return found


def _mujoco(env: Any) -> float:
    """Control intervals per second of MuJoCo under random actions."""
    import mujoco
    import numpy as np

    from robotics_envs.robots.compiling import compiled

    model = compiled(env.model.source, env.model.options)
    data, rng = mujoco.MjData(model), np.random.default_rng(0)
    before = time.process_time()
    for k in range(1000):
        if k % 40 == 0:
            mujoco.mj_resetData(model, data)
        data.ctrl[:] = rng.uniform(*model.actuator_ctrlrange.T)
        for _ in range(env.frame_skip):
            mujoco.mj_step(model, data)
    return 1000 / (time.process_time() - before)


def _newton(env: Any, x: Any) -> dict[str, float]:
    """Shares of states whose acceleration after so many steps is not the final one."""
    import torch

    from robotics_envs.robots.newton import accelerate

    packed = torch.cat((x, env.action_box.sample(len(x), torch.Generator().manual_seed(1))), 1).double()
    shares = {}
    with torch.no_grad():
        final = env.rates(packed)
        for most in (3, 5, 8):
            default, accelerate.__defaults__ = accelerate.__defaults__, (most,)
            difference = (env.rates(packed) - final).abs().amax(1) / final.abs().amax(1)
            accelerate.__defaults__ = default
            shares[f"more than {most}"] = float((difference > 1e-6).double().mean())
    return shares


def rows(results: dict[str, dict[str, Any]]) -> list[str]:
    """The results as the rows of a Markdown table."""
    names = (
        "task",
        "C++ lines",
        "s to the first gradient",
        "again",
        "forward",
        "forward and gradient",
        "`mj_step`",
        "Newton",
    )
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for name, found in results.items():
        shares = ", ".join(f"{100 * share:.1f}" for share in found["newton"].values())
        speeds = [f"{found[key]:,.0f}" for key in ("forward", "gradient", "mj_step")]
        starts = f"{found['start cpu']:.0f} | {found['again']['start cpu']:.1f}"
        lines.append(f"| `{name}` | {found['lines']:,} | {starts} | {' | '.join(speeds)} | {shares} |")
    return lines


@click.command()
@click.option("--out", type=click.Path(path_type=Path), help="Where the numbers go, as JSON.")
@click.option("--only", multiple=True, type=click.Choice(TASKS))
@click.option(
    "--table",
    type=click.Path(path_type=Path, exists=True),
    help="Print a file of results as Markdown and stop.",
)
@click.option("--one", hidden=True)
@click.option("--start-only", is_flag=True, hidden=True)
def main(
    out: Path | None, only: tuple[str, ...], table: Path | None, one: str | None, start_only: bool
) -> None:
    """Measure the robots."""
    if table:
        print("\n".join(rows(json.loads(table.read_text())["results"])))
        return
    if one:
        print(json.dumps(measure(one, start_only)))
        return
    from diffsim.runs.provenance import describe

    results = {}
    for name in only or TASKS:
        with tempfile.TemporaryDirectory() as cache:
            command = [sys.executable, __file__, "--one", name]
            environment = {**os.environ, "XDG_CACHE_HOME": cache}
            found = []
            for options in ([], ["--start-only"]):
                done = subprocess.run(
                    [*command, *options], capture_output=True, text=True, env=environment, check=True
                )
                found.append(json.loads(done.stdout.splitlines()[-1]))
        results[name] = {**found[0], "again": {k: found[1][k] for k in ("start", "start cpu")}}
        print(name, json.dumps(results[name]), flush=True)
    if out is not None:
        machine = {k: v for k, v in describe("cpu").items() if k not in ("command", "folder")}
        data = {"command": "python benchmarks/robots.py", "machine": machine, "results": results}
        out.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
