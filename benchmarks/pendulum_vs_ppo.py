"""Wall time to a return of -170 in Gymnasium's Pendulum-v1: diffsim's defaults against tuned PPO.

    pip install -e '.[rl]'
    python benchmarks/pendulum_vs_ppo.py --out benchmarks/results/pendulum_vs_ppo.json

Both learners run in this process, seed by seed in turn, on one thread.  PPO is Stable-Baselines3's
with the RL Zoo's settings for Pendulum-v1 (hyperparams/ppo.yml: 4 environments, n_steps 1024, gamma 0.9,
learning rate 1e-3, 10 epochs, gSDE with a new sample every 4 steps) for its 100,000 steps.  The clock runs
while a learner is built and trains, and stands still while its policy is measured: without exploration
noise, over 100 episodes that start from seeds 1000 to 1099, after every 10 updates of ours and every rollout
of PPO.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import gymnasium
import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3 import __version__ as sb3_version
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from diffsim.config import load_config
from diffsim.evaluation import LoadedPolicy
from diffsim.run import build_algorithm, resolve

EPISODES, FIRST_SEED, THRESHOLD = 100, 1000, -170.0
ENVS = [gymnasium.make("Pendulum-v1") for _ in range(EPISODES)]

Act = Callable[[np.ndarray], np.ndarray]


def measure(act: Act) -> float:
    """Mean return over the hundred episodes."""
    observations = np.stack([env.reset(seed=FIRST_SEED + i)[0] for i, env in enumerate(ENVS)])
    total = np.zeros(EPISODES)
    for _ in range(200):
        steps = [env.step(a) for env, a in zip(ENVS, act(observations), strict=True)]
        observations = np.stack([step[0] for step in steps])
        total += [float(step[1]) for step in steps]
    return float(total.mean())


Report = Callable[[int, Act], None]


def train_ours(seed: int, report: Report, updates: int | None = None) -> None:
    """A default run; reports (environment steps so far, policy) after every 10 updates."""
    config = resolve(load_config({"env": "pendulum", "seed": seed}))
    algorithm = build_algorithm(config)
    policy = LoadedPolicy(algorithm.policy, algorithm.env.observation_names, "ours")
    steps = 0
    for update in range(1, (updates or config.updates) + 1):
        steps += algorithm.step().env_steps
        if update % 10 == 0:
            report(steps, policy)


class AfterEachUpdate(BaseCallback):
    """Reports when PPO begins to collect a rollout, which is right after it learned from the one before."""

    def __init__(self, report: Report) -> None:
        super().__init__()
        self.report = report

    def _on_rollout_start(self) -> None:
        if self.num_timesteps > 0:
            self.report(self.num_timesteps, self.act)

    def _on_step(self) -> bool:
        return True

    def act(self, observations: np.ndarray) -> np.ndarray:
        return self.model.predict(observations, deterministic=True)[0]


def train_ppo(seed: int, report: Report, total: int = 100_000) -> None:
    """The RL Zoo's run; reports (environment steps so far, policy) after every update."""
    model = PPO(
        "MlpPolicy",
        make_vec_env("Pendulum-v1", n_envs=4, seed=seed),
        n_steps=1024,
        gamma=0.9,
        gae_lambda=0.95,
        learning_rate=1e-3,
        n_epochs=10,
        ent_coef=0.0,
        clip_range=0.2,
        use_sde=True,
        sde_sample_freq=4,
        seed=seed,
        device="cpu",
    )
    callback = AfterEachUpdate(report)
    model.learn(total, callback=callback)
    report(model.num_timesteps, callback.act)


def race(train: Callable[[int, Report], None], seed: int) -> dict[str, Any]:
    """Run a training to its end: when it first reached the threshold, and what it ended with."""
    curve: list[tuple[int, float, float]] = []
    paused = 0.0
    started = time.perf_counter()

    def report(steps: int, act: Act) -> None:
        nonlocal paused
        stopped = time.perf_counter()
        curve.append((steps, round(stopped - started - paused, 3), round(measure(act), 1)))
        paused += time.perf_counter() - stopped

    train(seed, report)
    seconds = time.perf_counter() - started - paused
    reached = next(((steps, s) for steps, s, value in curve if value >= THRESHOLD), (None, None))
    return {
        "seed": seed,
        "reached_steps": reached[0],
        "reached_seconds": reached[1],
        "final_return": curve[-1][2],
        "seconds": round(seconds, 3),
        "curve": curve,
    }


@click.command()
@click.option("--seeds", default=10, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="JSON to write.")
def main(seeds: int, out: Path) -> None:
    """Compare diffsim's defaults with tuned PPO on Pendulum-v1, seed by seed."""
    torch.set_num_threads(1)
    learners = {"diffsim": train_ours, "ppo": train_ppo}
    # First use of torch, Gymnasium and the optimizers, off the clock for both.
    train_ours(12345, lambda *_: None, updates=5)
    train_ppo(12345, lambda *_: None, total=4096)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in learners}
    print("seed  learner   s to -170   steps to -170   final return   s in all")
    for seed in range(seeds):
        for name, train in learners.items():
            r = race(train, seed)
            results[name].append(r)
            reached = "never" if r["reached_seconds"] is None else f"{r['reached_seconds']:.2f}"
            print(
                f"{seed:4d} {name:>8} {reached:>11} {r['reached_steps'] or '-':>15} "
                f"{r['final_return']:14.1f} {r['seconds']:10.1f}",
                flush=True,
            )
    summary = {name: summarise(rows) for name, rows in results.items()}
    ratio = summary["diffsim"]["median_seconds"] / summary["ppo"]["median_seconds"]
    for name, s in summary.items():
        print(
            f"{name:>8}: median {s['median_seconds']:.2f} s to {THRESHOLD:g} (range {s['range_seconds']}, "
            f"{s['never_reached']} of {seeds} never), final return median {s['median_final']:.1f}, "
            f"worst {s['worst_final']:.1f}"
        )
    print(f"ratio of the medians, ours / PPO: {ratio:.3f}")
    versions = {
        "torch": torch.__version__,
        "stable_baselines3": sb3_version,
        "gymnasium": gymnasium.__version__,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"versions": versions, "ratio_of_medians": ratio, "summary": summary,
                               "runs": results}) + "\n")  # fmt: skip
    print(f"wrote {out}")


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A seed that never got there counts with the seconds of its whole run, which flatters it."""
    seconds = [r["seconds"] if r["reached_seconds"] is None else r["reached_seconds"] for r in rows]
    finals = [r["final_return"] for r in rows]
    return {
        "median_seconds": statistics.median(seconds),
        "range_seconds": f"{min(seconds):.2f} to {max(seconds):.2f}",
        "never_reached": sum(r["reached_seconds"] is None for r in rows),
        "median_final": statistics.median(finals),
        "worst_final": min(finals),
    }


if __name__ == "__main__":
    main()
