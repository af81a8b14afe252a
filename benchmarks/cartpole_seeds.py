"""The default settings on examples/cartpole.py, seed by seed: ``python benchmarks/cartpole_seeds.py``.

Prints the mean return of 100 episodes, from how many of the 100 starts the pole is upright (cos > 0.95)
and the cart within 0.5 m of the centre throughout the last two seconds, and the median distance from the
centre at the end.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

import diffsim
from diffsim.rollouts import Rollout
from diffsim.runs.evaluation import LoadedRun


@click.command()
@click.option("--seeds", default=10, show_default=True)
def main(seeds: int) -> None:
    """Train and judge the cart-pole with default settings."""
    torch.set_num_threads(1)
    print("seed   return   good starts   median |x| at the end, m   seconds")
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            file = diffsim.train(
                "examples.cartpole:CartPole", out=folder, seed=seed, quiet=True, evaluation={"every": 0}
            )
            loaded = LoadedRun(file.path)
            seconds = file.history()["wall_seconds"][-1]
        env = loaded.env
        x = env.reset(100, torch.Generator().manual_seed(1))
        with torch.no_grad():
            result = Rollout(env, loaded.policy.module, backend="eager")(x, env.episode_steps)
        position, angle = result.states[-round(2 / env.dt) :, :, :2].unbind(-1)
        good = ((angle.cos() > 0.95) & (position.abs() < 0.5)).all(dim=0)
        print(
            f"{seed:4d} {float(-result.costs.sum(0).mean()):8.1f} {int(good.sum()):13d} "
            f"{float(position[-1].abs().median()):26.2f} {seconds:9.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
