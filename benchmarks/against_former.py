"""This checkout against another one (a former commit): speed and cold start, in processes that take turns.

    git worktree add /tmp/former COMMIT
    python benchmarks/against_former.py --former /tmp/former --out benchmarks/results/against_former.json
    python benchmarks/against_former.py --table benchmarks/results/against_former.json

Speed: processor seconds of a forward and backward pass on one thread, the median within a process; compiled before.
Cold start: processor seconds, the C++ compiler's included, from the first call to its gradient with an empty cache.
Every round runs each case once with each checkout, in an order that alternates.  A ratio above 1 means that this
checkout is faster (former seconds over present seconds); it is the median over rounds of the ratio of neighbours.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parent.parent

# Runs with either checkout on PYTHONPATH: only public names, and those of both layouts.
CASE = r"""
import json, resource, statistics, sys
import torch
from torch import nn
torch.set_num_threads(1)
from diffsim import Rollout
from robotics_envs import Box, Env, Parameter, make_env
from solvers import RK4, solve
case = json.loads(sys.argv[1])


def seconds():
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def tension(x, stiffness, damping, u):
    place, velocity = x.chunk(2, -1)
    wall = torch.zeros_like(place[..., :1])
    strain = torch.cat((wall, stiffness * place + damping * velocity, wall), -1)
    pull = strain[..., 1:] - strain[..., :-1]
    push = torch.cat((u, torch.zeros_like(place[..., 1:])), -1)
    return torch.cat((velocity, pull[..., 1:] - pull[..., :-1] + push), -1)


class Chain(Env):
    name, dt, episode_steps, solver = "chain", 0.05, 100, RK4()
    parameters = (Parameter("stiffness", 1.0, "N/m", low=0.0), Parameter("damping", 0.1, "N s/m", low=0.0))
    action_box = Box.symmetric(1.0)

    def __init__(self, masses):
        super().__init__()
        self.state_names = tuple(f"{what}_{k}" for what in ("place", "velocity") for k in range(masses))
        self.observation_names = self.state_names
        self.start_box = self.state_box = Box.symmetric(*[1.0] * (2 * masses))

    def dynamics(self, t, x, u, p):
        return tension(x, p["stiffness"], p["damping"], u)

    def cost(self, x, u, p):
        return (x**2).mean(-1) + 1e-3 * u[:, 0] ** 2


def rollout():
    env = Chain(case["env"] // 2) if isinstance(case["env"], int) else make_env(case["env"])
    torch.manual_seed(0)
    width = case.get("width", 64)
    o, m = len(env.observation_names), len(env.action_box)
    policy = nn.Sequential(nn.Linear(o, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, m))
    x = env.reset(case["batch"], torch.Generator().manual_seed(0))
    run = Rollout(env, policy, backend="native", threads=1)

    def once():
        policy.zero_grad()
        run(x, case["steps"]).costs.sum().backward()

    return once


def adaptive():
    torch.manual_seed(0)
    if case["field"] == "van_der_pol":
        x0 = torch.randn(case["batch"], 2, dtype=torch.float64).requires_grad_()
        p, end = torch.tensor(5.0, dtype=torch.float64, requires_grad=True), 10.0
        field = lambda t, x, u, p: torch.stack((x[..., 1], p * (1 - x[..., 0] ** 2) * x[..., 1] - x[..., 0]), -1)
    else:
        x0 = torch.randn(case["batch"], case["field"], dtype=torch.float64).requires_grad_()
        p, end = torch.tensor([1.0, 0.1], dtype=torch.float64, requires_grad=True), 5.0
        none = torch.zeros(case["batch"], 1, dtype=torch.float64)
        field = lambda t, x, u, p: tension(x, p[0], p[1], torch.zeros_like(x[..., :1]))

    def once():
        xs = solve(field, x0, [0.0, end], None, p, solver="tsit5", backend=case["backend"], rtol=1e-6, atol=1e-6,
                   adjoint="checkpoint").xs
        torch.autograd.grad(xs[-1].sum(), (x0, p))

    return once


once = {"rollout": rollout, "adaptive": adaptive}[case["what"]]()
before = seconds()
once()
first = seconds() - before
times = []
for _ in range(case["repeats"]):
    before = seconds()
    once()
    times.append(seconds() - before)
print(json.dumps({"first": first, "median": statistics.median(times) if times else None}))
"""


def _rollout(env: str | int, batch: int, steps: int, repeats: int) -> dict[str, Any]:
    return {"what": "rollout", "env": env, "batch": batch, "steps": steps, "repeats": repeats}


def _adaptive(field: str | int, batch: int, backend: str, repeats: int) -> dict[str, Any]:
    return {"what": "adaptive", "field": field, "batch": batch, "backend": backend, "repeats": repeats}


SPEED = {
    "cartpole_swingup B=64": _rollout("cartpole_swingup", 64, 200, 25),
    "cartpole_swingup B=1024": _rollout("cartpole_swingup", 1024, 200, 5),
    "quadrotor B=64": _rollout("quadrotor", 64, 200, 9),
    "quadrotor B=1024": _rollout("quadrotor", 1024, 200, 3),
    "arm7_point B=64": _rollout("arm7_point", 64, 50, 5),
    "heat_rod B=64": _rollout("heat_rod", 64, 20, 5),
    "chain of 64 states B=64": _rollout(64, 64, 100, 5),
    "van der Pol B=256, native": _adaptive("van_der_pol", 256, "native", 25),
    "van der Pol B=256, eager": _adaptive("van_der_pol", 256, "eager", 3),
}
START = {
    "cartpole_swingup": _rollout("cartpole_swingup", 64, 20, 0),
    "quadrotor": _rollout("quadrotor", 64, 20, 0),
    "arm7_point": _rollout("arm7_point", 64, 20, 0),
    "arm7": _rollout("arm7", 64, 20, 0),
    "heat_rod": _rollout("heat_rod", 64, 20, 0),
    "chain of 128 states": _rollout(128, 64, 20, 0),
    "adaptive solve, van der Pol": _adaptive("van_der_pol", 64, "native", 0),
    "adaptive solve, chain of 128 states": _adaptive(128, 64, "native", 0),
}


def run(tree: Path, case: dict[str, Any], cache: str) -> dict[str, Any]:
    """One process with the given checkout; its result, or how it failed."""
    env = {**os.environ, "PYTHONPATH": str(tree), "DIFFSIM_CACHE": cache, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", CASE, json.dumps(case)],
            env=env,
            cwd=folder,
            capture_output=True,
            text=True,
        )
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1]}
    said = [line for line in done.stderr.splitlines() if "falls back" in line or "cannot run" in line]
    return {**json.loads(done.stdout.splitlines()[-1]), **({"said": said} if said else {})}


def measure(former: Path, rounds: int, only: str) -> dict[str, Any]:
    """All cases, former and present in turn."""
    trees = {"former": former, "present": ROOT}
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as filled:
        for section, cases, key in (("speed", SPEED, "median"), ("start", START, "first")):
            for name, case in cases.items():
                if only not in f"{section} {name}":
                    continue
                rows: dict[str, list[Any]] = {tree: [] for tree in trees}
                for k in range(rounds if section == "speed" else 1):
                    for tree in list(trees)[:: 1 if k % 2 == 0 else -1]:
                        with tempfile.TemporaryDirectory() as empty:
                            cache = f"{filled}/{tree}" if section == "speed" else empty
                            rows[tree].append(run(trees[tree], case, cache))
                failed = [row for tree in trees for row in rows[tree] if "failed" in row]
                seconds = {} if failed else {tree: [row[key] for row in rows[tree]] for tree in trees}
                result[f"{section}: {name}"] = {"case": case, "rows": rows, "seconds": seconds}
                click.echo(line(f"{section}: {name}", result[f"{section}: {name}"]), err=True)
    return result


def line(name: str, row: dict[str, Any]) -> str:
    """A row of the table."""
    if not row["seconds"]:
        failures = [r["failed"] for tree in row["rows"].values() for r in tree if "failed" in r]
        return f"| {name} | {failures[0]} |"
    former, present = row["seconds"]["former"], row["seconds"]["present"]
    ratios = [a / b for a, b in zip(former, present, strict=True)]
    spread = f"{min(ratios):.2f}–{max(ratios):.2f}" if len(ratios) > 1 else "one round"
    return (
        f"| {name} | {1e3 * statistics.median(former):,.1f} | {1e3 * statistics.median(present):,.1f} | "
        f"{statistics.median(ratios):.2f} | {spread} |"
    )


@click.command()
@click.option(
    "--former", type=click.Path(exists=True, file_okay=False, path_type=Path), help="The other checkout."
)
@click.option(
    "--rounds", default=5, show_default=True, help="Of the measures of speed; cold starts have one."
)
@click.option("--only", default="", help="Cases with this in their name.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="JSON file for the result.")
@click.option("--table", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Print a result.")
def main(former: Path | None, rounds: int, only: str, out: Path | None, table: Path | None) -> None:
    """Compare this checkout with another one."""
    if table is None:
        if former is None:
            raise click.UsageError("name the other checkout with --former, or a result with --table")
        commit = {
            name: subprocess.run(
                ["git", "-C", str(tree), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
            ).stdout.strip()
            for name, tree in (("former", former), ("present", ROOT))
        }
        result = {"commits": commit, "rounds": rounds, "cases": measure(former.resolve(), rounds, only)}
        if out is not None:
            out.write_text(json.dumps(result, indent=1) + "\n")
    else:
        result = json.loads(table.read_text())
    click.echo("| case | former ms | present ms | former / present | spread |\n|---|---|---|---|---|")
    for name, row in result["cases"].items():
        click.echo(line(name, row))


if __name__ == "__main__":
    main()
