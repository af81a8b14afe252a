"""Wall time to returns of -170 and -190 in Gymnasium's Pendulum-v1: ``short_window`` against tuned PPO.

    pip install -e '.[rl]'
    python benchmarks/pendulum_vs_ppo.py --out benchmarks/results/pendulum_vs_ppo.json

The result holds for these settings of PPO: in a separate measurement PPO with 64 environments, 50 steps a rollout,
reached -170 in 4 to 8 CPU seconds in six of seven seeds.

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

from diffsim.assembly import assemble
from diffsim.config import load_config
from diffsim.runs.evaluation import LoadedPolicy

EPISODES, FIRST_SEED, THRESHOLDS = 100, 1000, (-170.0, -190.0)
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
    """A run of 500 updates; reports (environment steps so far, policy) after every 10."""
    config = load_config({"env": "pendulum", "algorithm": "short_window", "updates": 500, "seed": seed})
    algorithm = assemble(config).algorithm
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
    """Run a training to its end; its seconds and its curve of (steps, seconds, return)."""
    curve: list[tuple[int, float, float]] = []
    paused = 0.0
    started = time.perf_counter()

    def report(steps: int, act: Act) -> None:
        nonlocal paused
        stopped = time.perf_counter()
        curve.append((steps, round(stopped - started - paused, 3), round(measure(act), 1)))
        paused += time.perf_counter() - stopped

    train(seed, report)
    return {"seed": seed, "seconds": round(time.perf_counter() - started - paused, 3), "curve": curve}


def seconds_to(threshold: float, run: dict[str, Any]) -> float | None:
    """When the curve first reached the threshold; None if it never did."""
    return next((seconds for _, seconds, value in run["curve"] if value >= threshold), None)


def row(name: str, run: dict[str, Any]) -> str:
    """One run as a line: seconds to each threshold, final return, seconds in all."""
    reached = [seconds_to(threshold, run) for threshold in THRESHOLDS]
    cells = "".join(f"{'not reached' if r is None else f'{r:.2f}':>12}" for r in reached)
    return f"{run['seed']:4d} {name:>8}{cells}{run['curve'][-1][2]:14.1f}{run['seconds']:11.1f}"


def summary(runs: dict[str, list[dict[str, Any]]]) -> str:
    """Medians and ranges. A seed that never got there counts with its whole run, which flatters it."""
    lines = []
    for threshold in THRESHOLDS:
        medians = {}
        for name, rows in runs.items():
            reached = [seconds_to(threshold, r) for r in rows]
            counted = [r["seconds"] if t is None else t for r, t in zip(rows, reached, strict=True)]
            medians[name] = statistics.median(counted)
            lines.append(
                f"to {threshold:g}, {name:>8}: median {medians[name]:.2f} s, range {min(counted):.2f} to "
                f"{max(counted):.2f} s, {reached.count(None)} of {len(rows)} not reached"
            )
        lines.append(f"to {threshold:g}, ratio of the medians: {medians['diffsim'] / medians['ppo']:.3f}")
    for name, rows in runs.items():
        finals = [r["curve"][-1][2] for r in rows]
        lines.append(f"final return, {name:>8}: median {statistics.median(finals):.1f}, worst {min(finals)}")
    return "\n".join(lines)


@click.command()
@click.option("--seeds", default=10, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="JSON to write.")
@click.option("--report", is_flag=True, help="Train nothing; print what --out holds.")
def main(seeds: int, out: Path, report: bool) -> None:
    """Compare diffsim's ``short_window`` with tuned PPO on Pendulum-v1, seed by seed."""
    torch.set_num_threads(1)
    learners = {"diffsim": train_ours, "ppo": train_ppo}
    print("seed  learner   s to -170   s to -190   final return   s in all")
    if report:
        runs = json.loads(out.read_text())["runs"]
        for pair in zip(*runs.values(), strict=True):
            for name, run in zip(runs, pair, strict=True):
                print(row(name, run))
        print(summary(runs))
        return
    # First use of torch, Gymnasium and the optimizers, off the clock for both.
    train_ours(12345, lambda *_: None, updates=5)
    train_ppo(12345, lambda *_: None, total=4096)
    runs = {name: [] for name in learners}
    for seed in range(seeds):
        for name, train in learners.items():
            runs[name].append(race(train, seed))
            print(row(name, runs[name][-1]), flush=True)
    print(summary(runs))
    versions = {
        "torch": torch.__version__,
        "stable_baselines3": sb3_version,
        "gymnasium": gymnasium.__version__,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"versions": versions, "runs": runs}) + "\n")
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
