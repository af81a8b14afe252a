"""How far the gradient through contacts can be trusted: over which horizon, and with how soft an onset.

    python benchmarks/contact_gradients.py --out benchmarks/results/contact_gradients.json

The objective is the mean cost of B = 512 rollouts, summed over a horizon, of a policy that acts in closed loop (an MLP
with random weights, the last layer's times 10, so that it moves), from poses near that of the file; in float64.  Its
derivative along 24 random directions of unit length in the space of the policy's parameters is computed in two ways: by
backpropagation, and as the central difference of the same objective, from the same starts, after steps of EPSILONS
along the direction.  A discontinuity of a rollout appears in the second only.  Episodes do not end, since an end is a
discontinuity too: living is not paid for.  For every task, onset and horizon:

  corr    correlation of the two over the directions
  slope   the factor of backpropagation that comes nearest to differences, 1 if it is unbiased
  error   the length of the difference of the two, over that of the differences

Cells that the file holds are not measured again, so that a run can be stopped and continued.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from diffsim.policy import MLP
from diffsim.rollouts import Rollout
from robotics_envs.environments import make_env

TASKS = ("gym:Hopper-v5", "gym:HalfCheetah-v5")
ONSETS = (0.0, 0.003, 0.01, 0.03)
HORIZONS = (0.1, 0.2, 0.3, 0.5, 1.0)
EPSILONS = (1e-2, 1e-1)
BATCH, DIRECTIONS = 512, 24


class Cells:
    """The measurements of one task; all onsets use the same kernel."""

    def __init__(self, task: str, batch: int = BATCH, directions: int = DIRECTIONS) -> None:
        # The onset is an input of the simulator, whatever its value.
        self.env = env = unending(make_env(f"{task}?parameters=onset"))
        torch.manual_seed(3)
        self.policy = MLP(len(env.observation_names), len(env.action_box)).double()
        with torch.no_grad():
            list(self.policy.parameters())[-2].mul_(10.0)
        self.rollout = Rollout(env, self.policy, backend="native", threads=1)
        self.x = self._starts(batch)
        self.vector = torch.nn.utils.parameters_to_vector(self.policy.parameters()).detach().clone()
        random = torch.randn(
            directions, len(self.vector), generator=torch.Generator().manual_seed(5), dtype=torch.float64
        )
        self.directions = random / random.norm(dim=1, keepdim=True)

    def _starts(self, batch: int) -> Tensor:
        """Poses near that of the file, a hopper up to 5 cm above it, at some speed."""
        env, rng = self.env, torch.Generator().manual_seed(0)
        n, m = env.model.positions, env.model.velocities
        q = torch.tensor(env.model.reference, dtype=torch.float64)
        q = q + 0.05 * torch.randn(batch, n, generator=rng, dtype=torch.float64)
        v = 0.3 * torch.randn(batch, m, generator=rng, dtype=torch.float64)
        if "Hopper" in (env.gym_id or ""):
            q[:, 0], q[:, 1] = 0.0, 1.25 + 0.05 * torch.rand(batch, generator=rng, dtype=torch.float64)
        return torch.cat((q, v), 1)

    def measure(self, onset: float, epsilon: float) -> list[dict[str, Any]]:
        """One row a horizon."""
        steps = [max(1, round(horizon / self.env.dt)) for horizon in HORIZONS]
        p = {**self.env.params(self.x), "onset": torch.tensor(onset, dtype=torch.float64)}
        by_gradient = [self.directions @ self._gradient(count, p) for count in steps]
        differences = torch.stack(
            [
                (self._costs(d, epsilon, steps, p) - self._costs(d, -epsilon, steps, p)) / (2 * epsilon)
                for d in self.directions
            ]
        )
        return [
            {"horizon": horizon, **compared(along, found)}
            for horizon, along, found in zip(HORIZONS, by_gradient, differences.T, strict=True)
        ]

    def _gradient(self, count: int, p: dict[str, Tensor]) -> Tensor:
        self._set(self.vector)
        self.policy.zero_grad()
        self.rollout(self.x, count, p).costs.sum(0).mean().backward()
        return torch.cat([q.grad.reshape(-1) for q in self.policy.parameters() if q.grad is not None])

    @torch.no_grad()
    def _costs(self, direction: Tensor, step: float, steps: list[int], p: dict[str, Tensor]) -> Tensor:
        """The objective at all horizons."""
        self._set(self.vector + step * direction)
        sums = self.rollout(self.x, max(steps), p, keep_states=False).costs.mean(1).cumsum(0)
        return sums[[count - 1 for count in steps]]

    def _set(self, vector: Tensor) -> None:
        torch.nn.utils.vector_to_parameters(vector.clone(), self.policy.parameters())


def unending(env: Any) -> Any:
    """The task without ends of episodes and what they cost: a jump that has nothing to do with contacts."""

    class Unending(type(env)):  # type: ignore[misc]
        living = 0.0

        def done(self, x: Tensor) -> Tensor:
            return torch.zeros_like(x[..., 0], dtype=torch.bool)

    return Unending()


def compared(gradient: Tensor, differences: Tensor) -> dict[str, float]:
    """Correlation, slope and relative error of derivatives ``[directions]``."""
    g, d = gradient.numpy(), differences.numpy()
    return {
        "corr": float(np.corrcoef(g, d)[0, 1]),
        "slope": float(g @ d / (g @ g)),
        "error": float(np.linalg.norm(g - d) / np.linalg.norm(d)),
    }


def key(task: str, onset: float, epsilon: float) -> str:
    """The name of a cell."""
    return f"{task} onset {onset:g} epsilon {epsilon:g}"


def table(cells: dict[str, list[dict[str, Any]]], epsilon: float) -> str:
    """Markdown: a row a task and horizon, a column an onset: correlation, slope, error."""
    heads = ["MuJoCo's own" if not onset else f"{1000 * onset:g} mm" for onset in ONSETS]
    lines = [f"| | horizon | {' | '.join(heads)} |", "|---" * (len(ONSETS) + 2) + "|"]
    for task in TASKS:
        for k, horizon in enumerate(HORIZONS):
            found = [cells.get(key(task, onset, epsilon)) for onset in ONSETS]
            shown = [
                f"{r[k]['corr']:.4f}, {r[k]['slope']:.3f}, {r[k]['error']:.3f}" if r else "" for r in found
            ]
            lines.append(f"| {task.removeprefix('gym:')} | {horizon:g} s | {' | '.join(shown)} |")
    return "\n".join(lines)


@click.command()
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Where the numbers are kept, as JSON."
)
def main(out: Path) -> None:
    """Measure the cells that are missing, and print the tables."""
    torch.set_num_threads(1)
    cells = json.loads(out.read_text())["cells"] if out.is_file() else {}
    made = {}
    for epsilon, task, onset in itertools.product(EPSILONS, TASKS, ONSETS):
        if (name := key(task, onset, epsilon)) in cells:
            continue
        made[task] = made.get(task) or Cells(task)
        cells[name] = made[task].measure(onset, epsilon)
        facts = {"batch": BATCH, "directions": DIRECTIONS, "torch": torch.__version__}
        out.write_text(json.dumps({**facts, "cells": cells}, indent=1) + "\n")
        print(name, json.dumps(cells[name]), flush=True)
    for epsilon in EPSILONS:
        print(f"\nsteps of {epsilon:g}: correlation, slope, error\n\n{table(cells, epsilon)}")


if __name__ == "__main__":
    main()
