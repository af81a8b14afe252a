"""The energy of a pendulum over 100,000 steps of every symplectic method.

    python benchmarks/symplectic_energy.py --out benchmarks/results/symplectic_energy.json

dt = 0.05, about 1,000 periods; worst energy errors of the first and of the last tenth of the steps.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch

from diffsim.runs.provenance import describe
from solvers import solve

METHODS = ("euler", "semi_implicit_euler", "stormer_verlet", "yoshida4", "implicit_midpoint")
STEPS, DT, PIECE = 100_000, 0.05, 1_000


def pendulum(t, x, u, p):
    """q'' = -2 sin q."""
    return torch.stack((x[..., 1], -2.0 * torch.sin(x[..., 0])), -1)


def energy_errors(name: str) -> tuple[float, float]:
    """Worst errors in the first and in the last tenth."""
    x = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    ts = DT * torch.arange(PIECE + 1, dtype=torch.float64)
    tracks = []
    for _ in range(STEPS // PIECE):
        xs = solve(pendulum, x, ts, solver=name, dt=1.01 * DT).xs
        tracks.append(xs[1:, 0])
        x = xs[-1]
    track = torch.cat(tracks)
    error = (0.5 * track[:, 1] ** 2 - 2 * torch.cos(track[:, 0]) + 2 * math.cos(1.0)).abs()
    tenth = len(error) // 10
    return float(error[:tenth].max()), float(error[-tenth:].max())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = {}
    for name in METHODS:
        rows[name] = dict(zip(("first tenth", "last tenth"), energy_errors(name), strict=True))
        print(f"{name:22s}{rows[name]['first tenth']:12.3e}{rows[name]['last tenth']:12.3e}", flush=True)
    if arguments.out:
        results = {
            "command": "python benchmarks/symplectic_energy.py --out benchmarks/results/symplectic_energy.json",
            "provenance": describe("cpu"),
            "energy errors": rows,
        }
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
