"""Environment steps per second through the adapters, in torch and through compiled code, in turns of a second.

    python benchmarks/environments.py

One thread.  A single environment is :class:`GymEnv`, restarted by the caller when an episode ends; several are one
:class:`SB3VecEnv`, which restarts them itself.  Random actions, float64 inside.  Median over rounds, and in brackets
the smallest and largest; the ratio is that of the medians.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import click
import numpy as np
import torch

from robotics_envs.adapters.gym_adapter import GymEnv
from robotics_envs.adapters.sb3_adapter import SB3VecEnv

ACTIONS = 64


def single(name: str, backend: str) -> Callable[[int], None]:
    """A function that does step k of one environment."""
    env = GymEnv(name, backend=backend, unit_actions=True)
    actions = np.random.default_rng(0).uniform(-1, 1, (ACTIONS, *(env.action_space.shape or ())))
    given = actions.astype(np.float32)
    env.reset(seed=0)

    def step(k: int) -> None:
        _, _, terminated, truncated, _ = env.step(given[k % ACTIONS])
        if terminated or truncated:
            env.reset()

    return step


def several(name: str, batch: int, backend: str) -> Callable[[int], None]:
    """A function that does step k of ``batch`` environments."""
    env = SB3VecEnv(name, batch, backend=backend)
    shape = (ACTIONS, batch, *(env.action_space.shape or ()))
    given = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    env.seed(0)
    env.reset()

    def step(k: int) -> None:
        env.step_async(given[k % ACTIONS])
        env.step_wait()

    return step


@click.command()
@click.option("--simulators", default="cartpole_swingup,quadrotor,pendulum", show_default=True)
@click.option("--batches", default="1,4,16,256", show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--seconds", default=1.0, show_default=True)
def main(simulators: str, batches: str, rounds: int, seconds: float) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    click.echo("| simulator, environments | torch | compiled | ratio |\n|---|---|---|---|")
    for name in simulators.split(","):
        for batch in map(int, batches.split(",")):
            steps = {
                b: single(name, b) if batch == 1 else several(name, batch, b) for b in ("eager", "native")
            }
            rates: dict[str, list[float]] = {backend: [] for backend in steps}
            for step in steps.values():
                step(0)  # compiles
            for k in range(rounds):
                for backend in list(steps)[:: 1 if k % 2 == 0 else -1]:
                    started, count = time.perf_counter(), 0
                    while time.perf_counter() - started < seconds:
                        steps[backend](count)
                        count += 1
                    rates[backend].append(batch * count / (time.perf_counter() - started))
            middle = {backend: statistics.median(found) for backend, found in rates.items()}
            cells = [f"{middle[b]:,.0f} ({min(rates[b]):,.0f}–{max(rates[b]):,.0f})" for b in steps]
            click.echo(
                f"| {name}, {batch} | {' | '.join(cells)} | {middle['native'] / middle['eager']:.1f} |"
            )


if __name__ == "__main__":
    main()
