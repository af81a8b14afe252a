"""The former default on simulators: ``python benchmarks/simulators.py --out benchmarks/results/simulators.json``.

``benchmarks/defaults.py`` measures the present default.  Trains each simulator for a few seeds with ``short_window`` as
it was the default, and with one other set (``long``: longer windows, less noise, more updates), and drives 64 episodes
from the task's starts (generator seed 1): mean and worst return, next to the return of actions in the middle of their
box, and, where there is a foreign twin, the mean return of 10 episodes in it.  ``--table`` prints the results as
Markdown.  Every seed is kept, failures included.  Returns are comparable within a simulator only.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

import diffsim
from diffsim.rollouts import Rollout
from diffsim.runs.evaluation import LoadedRun
from diffsim.runs.provenance import describe
from robotics_envs import ENVIRONMENTS, make_env

EPISODES = 64
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {"algorithm": {"name": "short_window"}, "updates": 500},
    "long": {
        "algorithm": {"name": "short_window", "window": 16, "gamma": 0.99, "noise_std": 0.1},
        "updates": 1000,
    },
}


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


def train_and_judge(name: str, settings: str, seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        file = diffsim.train(
            name, out=folder, seed=seed, quiet=True, evaluation={"every": 0}, **SETTINGS[settings]
        )
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
    }


def table(results: dict[str, Any]) -> str:
    """Rows of simulators; each cell the mean returns of all seeds, in brackets those in the foreign twin."""
    lines = [
        "| simulator | middle actions | " + " | ".join(SETTINGS) + " |",
        "|---|---|" + "---|" * len(SETTINGS),
    ]
    for name, row in results["simulators"].items():
        cells = []
        for settings in SETTINGS:
            runs = row["runs"].get(settings, [])
            cell = ", ".join(run.get("error") or f"{run['mean']:.4g}" for run in runs)
            twins = [f"{run['twin']:.4g}" for run in runs if run.get("twin") is not None]
            cells.append(cell + (f" ({', '.join(twins)})" if twins else ""))
        lines.append(f"| `{name}` | {row['middle']:.4g} | {' | '.join(cells)} |")
    return "\n".join(lines)


@click.command()
@click.option("--seeds", default=3, show_default=True)
@click.option("--settings", multiple=True, type=click.Choice(list(SETTINGS)), default=list(SETTINGS))
@click.option("--only", multiple=True, help="Simulators to train; all of the registry if not given.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON to write, or to add to where it exists.")
@click.option("--table", "print_table", is_flag=True, help="Print the results in --out and train nothing.")
def main(
    seeds: int, settings: tuple[str, ...], only: tuple[str, ...], out: Path | None, print_table: bool
) -> None:
    """Train every simulator with the same settings."""
    os.environ.setdefault("MUJOCO_GL", "disabled")
    torch.set_num_threads(1)
    results: dict[str, Any] = {"simulators": {}}
    if out is not None and out.exists():
        results = json.loads(out.read_text())
    if not print_table:
        results |= {"machine": describe("cpu"), "episodes": EPISODES}
        for chosen, name in itertools.product(settings, only or ENVIRONMENTS):
            row = results["simulators"].setdefault(name, {"runs": {}})
            row["middle"] = float(returns(make_env(name), None).mean())
            row["runs"][chosen] = []
            for seed in range(seeds):
                try:
                    run = train_and_judge(name, chosen, seed)
                except diffsim.DiffsimError as error:
                    run = {"seed": seed, "error": type(error).__name__, "message": str(error)}
                row["runs"][chosen].append(run)
                print(name, chosen, run, flush=True)
            if out is not None:
                order = {n: results["simulators"][n] for n in ENVIRONMENTS if n in results["simulators"]}
                out.write_text(json.dumps({**results, "simulators": order}, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
