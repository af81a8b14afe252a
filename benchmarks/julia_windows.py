"""What the bridge to Julia adds where it simulates whole windows of control intervals under given actions.

    python benchmarks/julia_windows.py --out benchmarks/results/julia_windows.json

One thread, float64, B = 256, 16 control intervals and the gradient by initial states and actions of all costs and the
last states: ``Rollout(env)(x, 16, controls=u)`` and ``torch.autograd.grad`` against the same two functions called by
Julia on Julia's arrays, and against a rollout that calls Julia interval by interval.  In one process, in rounds.

Needs Julia (diffsim julia setup).
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from in_turns import spread, timed

from diffsim.rollouts import Rollout
from diffsim.runs.provenance import describe
from robotics_envs import make_env
from robotics_envs.julia import SIMULATORS, start

BATCH, INTERVALS, ROUNDS = 256, 16, 15

PURE_JULIA = """
function (number, x, u, p, repetitions)
    batch = DiffSimEnvs.OPENED[number]
    n, m, _ = batch.sizes
    _, B, T = size(u)
    work() = begin
        states, costs = zeros(n, B, T + 1), zeros(1, B, T)
        states[:, :, 1] .= x
        jacobian = zeros(n + 1, n + m, B, T)
        DiffSimEnvs.window!(batch, u, p, states, costs, jacobian, false)
        by_states = zeros(n, B, T + 1)
        by_states[:, :, T+1] .= 1
        by_x, by_u, by_p = zeros(n, B), zeros(m, B, T), zeros(0, B)
        DiffSimEnvs.pull_window!(jacobian, by_states, ones(1, B, T), by_x, by_u, by_p)
        by_u
    end
    Base.invokelatest(work)
    begun = time_ns()
    for _ in 1:repetitions
        Base.invokelatest(work)
    end
    (time_ns() - begun) / 1e9 / repetitions
end
"""


def measure(name: str) -> dict[str, Any]:
    import juliacall  # running already

    env = make_env(f"julia:{name}")
    generator = torch.Generator().manual_seed(0)
    x = env.start_box.sample(BATCH, generator, torch.float64).requires_grad_()
    u = (
        env.action_box.sample(BATCH, generator, torch.float64)
        .expand(INTERVALS, -1, -1)
        .clone()
        .requires_grad_()
    )
    p = env.params(x)
    rollout = Rollout(env)

    def bridge() -> Any:
        made = rollout(x, INTERVALS, p, controls=u)
        return torch.autograd.grad(made.last.sum() + made.costs.sum(), (x, u))

    def step_by_step() -> Any:
        state, total = x, torch.zeros((), dtype=x.dtype)
        for action in u:
            state, cost = env.step(state, action, p)
            total = total + cost.sum()
        return torch.autograd.grad(state.sum() + total, (x, u))

    assert all(torch.allclose(a, b) for a, b in zip(bridge(), step_by_step(), strict=True))
    juliacall.Main.seval("import DiffSimEnvs")
    pure = juliacall.Main.seval(PURE_JULIA)
    columns = juliacall.Main.seval("x -> permutedims(Array{Float64}(x), ndims(x):-1:1)")
    arrays = [columns(v.detach().numpy()) for v in (x, u)]
    arrays.append(juliacall.Main.seval("x -> Array{Float64}(x)")(torch.stack(list(p.values())).numpy()))
    works = {"bridge": bridge, "step_by_step": step_by_step}
    repetitions = max(1, round(0.03 / timed(bridge, 2)))
    seconds: dict[str, list[float]] = {"julia": [], **{label: [] for label in works}}
    for _ in range(ROUNDS):
        seconds["julia"].append(float(pure(env._simulator.number, *arrays, repetitions)))
        for label, work in works.items():
            seconds[label].append(timed(work, repetitions))
    row = {label: spread(values) for label, values in seconds.items()}
    for label in works:
        ratios = [b / j for b, j in zip(seconds[label], seconds["julia"], strict=True)]
        row[f"{label}_ratio"] = spread(ratios, 1.0)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {"command": "python benchmarks/julia_windows.py", "threads": start(1).threads}
    results |= {"provenance": describe("cpu"), "batch": BATCH, "intervals": INTERVALS, "rounds": ROUNDS}
    results["simulators"] = {}
    print(
        f"| B = {BATCH}, {INTERVALS} intervals and gradient | Julia, µs | bridge, µs | ratio | by interval, ratio |"
    )
    print("|---|---|---|---|---|")
    for name in SIMULATORS:
        row = results["simulators"][name] = measure(name)
        cells = [f"{row[label]['median']:,.0f}" for label in ("julia", "bridge")]
        for label in ("bridge_ratio", "step_by_step_ratio"):
            q = row[label]
            cells.append(f"{q['median']:.2f} ({q['low']:.2f} to {q['high']:.2f})")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
