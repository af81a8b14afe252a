"""Memory, time and accuracy of every adjoint.

    python benchmarks/adjoints.py --out benchmarks/results/adjoints.json

2,000 lightly damped pendulums (float64) from 0 to 10; the gradient of the sum of squares at the end by the
initial states.  Peak memory is the process's above what it had before, also as a share of the size of the states
of all steps; each row runs in a process of its own, one thread.  The error is the median of 200 rollouts' relative
gradient errors against dopri5 at 1e-12.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

from diffsim.runs.provenance import describe
from solvers import make_solver, solve

BATCH, END = 2_000, 10.0
ROWS = [
    *(("rk4", adjoint, {"dt": 0.01}) for adjoint in ("backprop", "checkpoint", "adjoint")),
    *(("sdirk3", adjoint, {"dt": 0.05}) for adjoint in ("implicit", "checkpoint", "adjoint")),
    *(("tsit5", adjoint, {"rtol": 1e-6, "atol": 1e-6}) for adjoint in ("backprop", "checkpoint", "adjoint")),
    ("tsit5", "checkpoint", {"rtol": 1e-6, "atol": 1e-6, "backend": "native"}),
    *(("rodas5p", adjoint, {"rtol": 1e-6, "atol": 1e-6}) for adjoint in ("backprop", "checkpoint")),
    *(("torchdiffeq.dopri5", adjoint, {"rtol": 1e-6, "atol": 1e-6}) for adjoint in ("backprop", "adjoint")),
]


def pendulum(t, x, u, p):
    """q'' = -4 sin q - q' / 20."""
    q, v = x[..., 0], x[..., 1]
    return torch.stack((v, -4.0 * torch.sin(q) - 0.05 * v), -1)


def initial_states(batch: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 2, dtype=torch.float64, generator=generator).requires_grad_()


def gradient(name: str, adjoint: str, how: dict, batch: int, end: float):
    x0 = initial_states(batch)
    done = solve(pendulum, x0, [0.0, end], solver=name, adjoint=adjoint, **how)
    (by_x0,) = torch.autograd.grad(done.xs[-1].square().sum(), x0)
    return by_x0, int(done.statistics.accepted.max())


def peak() -> int:
    """The process's largest resident size so far, bytes."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) * 1024


def measure(index: int) -> dict:
    """One row, in this process."""
    torch.set_num_threads(1)
    name, adjoint, how = ROWS[index]
    # Everything that is loaded or compiled only once, on a short solve of few rollouts.
    gradient(name, adjoint, how, 200, 0.5)
    before, begin = peak(), time.perf_counter()
    _, steps = gradient(name, adjoint, how, BATCH, END)
    seconds, used = time.perf_counter() - begin, peak() - before
    states = steps * BATCH * 2 * 8
    exact, _ = gradient("dopri5", "checkpoint", {"rtol": 1e-12, "atol": 1e-12, "backend": "native"}, 200, END)
    few, _ = gradient(name, adjoint, how, 200, END)
    error = ((few - exact).norm(dim=1) / exact.norm(dim=1)).median()
    return {
        "solver": name,
        "adjoint": adjoint,
        **how,
        "steps": steps,
        "peak MB": used / 1e6,
        "peak over states": used / states,
        "seconds": seconds,
        "gradient error": float(error),
        "exact for the discrete solution": adjoint != "adjoint",
    }


def report(results: dict) -> None:
    print(
        f"{'solver':20s}{'adjoint':12s}{'how':34s}{'steps':>6s}{'MB':>9s}{'x states':>9s}{'s':>8s}{'error':>9s}"
    )
    for row in results["rows"]:
        how = " ".join(f"{k}={row[k]}" for k in ("dt", "rtol", "atol", "backend") if k in row)
        print(
            f"{row['solver']:20s}{row['adjoint']:12s}{how:34s}{row['steps']:6d}{row['peak MB']:9.1f}"
            f"{row['peak over states']:9.2f}{row['seconds']:8.2f}{row['gradient error']:9.1e}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--report", type=Path, help="print a committed result instead of measuring")
    parser.add_argument("--row", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row is not None:
        print(json.dumps(measure(arguments.row)))
        return
    if arguments.report:
        report(json.loads(arguments.report.read_text()))
        return
    rows = []
    for index, (name, adjoint, _) in enumerate(ROWS):
        assert adjoint in make_solver(name).adjoints
        done = subprocess.run(
            [sys.executable, __file__, "--row", str(index)], stdout=subprocess.PIPE, text=True, check=True
        )
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    results = {
        "command": "python benchmarks/adjoints.py --out benchmarks/results/adjoints.json",
        "provenance": describe("cpu"),
        "rows": rows,
    }
    report(results)
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
