"""One set of defaults on every simulator: ``python benchmarks/simulators.py --out benchmarks/results/simulators.json``.

Trains each simulator of the catalogue with default settings for a few seeds and drives 64 episodes from the task's
starts (generator seed 1): mean and worst return, next to the returns of actions in the middle of their box, and, where
there is a foreign twin, the mean return of 10 episodes in it.  ``--table`` prints the committed results as Markdown.
Every seed is kept, failures included.  Returns are comparable within a simulator only.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

import diffsim
from diffsim.evaluation import LoadedRun
from diffsim.provenance import describe
from diffsim.rollouts import Rollout
from robotics_envs import ENVIRONMENTS, make_env

EPISODES = 64


def returns(env: Any, policy: Any) -> torch.Tensor:
    """Returns ``[64]`` of a policy, or of actions in the middle of their box where it is None."""
    x = env.reset(EPISODES, torch.Generator().manual_seed(1))
    if policy is not None:
        return Rollout(env, policy, expected_steps=env.episode_steps).returns(x)
    low, high = env.action_box.bounds(x)
    u, total, alive, p = (
        ((low + high) / 2).expand(EPISODES, -1),
        x.new_zeros(EPISODES),
        ~env.done(x),
        env.params(x),
    )
    with torch.no_grad():
        for _ in range(env.episode_steps):
            x, cost = env.step(x, u, p)
            total, alive = total - cost * alive, alive & ~env.done(x)
    return total


def train_and_judge(name: str, seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        file = diffsim.train(name, out=folder, seed=seed, quiet=True, evaluation={"every": 0})
        loaded, history = LoadedRun(file.path), file.history()
        got = returns(loaded.env, loaded.policy.module)
        twin = None
        if loaded.env.gym_id is not None:
            twin = diffsim.evaluate(file, gym=loaded.env.gym_id, episodes=10, seed=1000).mean
    return {
        "seed": seed,
        "mean": float(got.mean()),
        "worst": float(got.min()),
        "twin": twin,
        "env_steps": int(history["env_steps"][-1]),
        "seconds": float(history["wall_seconds"][-1]),
        "compile_seconds": float(history["compile_seconds"].sum()),
    }


def table(results: dict[str, Any]) -> str:
    lines = [
        "| simulator | middle actions | seeds 0, 1, …: mean return (worst of 64) | foreign twin | steps, M |",
        "|---|---|---|---|---|",
    ]
    for name, row in results["simulators"].items():
        seeds = "; ".join(
            run["error"] if "error" in run else f"{run['mean']:.4g} ({run['worst']:.4g})"
            for run in row["runs"]
        )
        good = [run for run in row["runs"] if "error" not in run]
        twins = ", ".join(f"{run['twin']:.4g}" for run in good if run["twin"] is not None)
        steps = f"{statistics.mean(run['env_steps'] for run in good) / 1e6:.2f}" if good else ""
        lines.append(f"| `{name}` | {row['middle']:.4g} | {seeds} | {twins} | {steps} |")
    return "\n".join(lines)


@click.command()
@click.option("--seeds", default=3, show_default=True)
@click.option("--only", multiple=True, help="Simulators to train; all of the catalogue if not given.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON to write, or to add to where it exists.")
@click.option("--table", "print_table", is_flag=True, help="Print the results in --out and train nothing.")
def main(seeds: int, only: tuple[str, ...], out: Path | None, print_table: bool) -> None:
    """Train every simulator with default settings."""
    os.environ.setdefault("MUJOCO_GL", "disabled")
    torch.set_num_threads(1)
    results: dict[str, Any] = {"simulators": {}}
    if out is not None and out.exists():
        results = json.loads(out.read_text())
    if not print_table:
        results |= {"machine": describe("cpu"), "episodes": EPISODES}
        for name in only or ENVIRONMENTS:
            row: dict[str, Any] = {"middle": float(returns(make_env(name), None).mean()), "runs": []}
            for seed in range(seeds):
                try:
                    row["runs"].append(train_and_judge(name, seed))
                except diffsim.DiffsimError as error:
                    row["runs"].append({"seed": seed, "error": type(error).__name__, "message": str(error)})
                print(name, row["runs"][-1], flush=True)
            results["simulators"][name] = row
            if out is not None:
                order = {n: results["simulators"][n] for n in ENVIRONMENTS if n in results["simulators"]}
                out.write_text(json.dumps({**results, "simulators": order}, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
