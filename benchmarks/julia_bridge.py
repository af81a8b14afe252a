"""What the bridge to Julia costs, where its simulators stand beside torch's, and how long the first gradient takes.

    python benchmarks/julia_bridge.py --out benchmarks/results/julia_bridge.json

Three tables, one thread each, float64, gradients by states and actions of one control interval (all its costs and next
states summed):

- the bridge against the same work in pure Julia, B = 256, in one process and interleaved: `evaluate!` and `pull!` on
  arrays that Julia allocates, called by Julia, against ``env.step`` and ``backward`` in torch;
- the simulators that torch has too, at B = 1, 64 and 1024: Julia through the bridge, torch eager, and torch compiled to
  C++ (``Rollout(backend="native")`` over 16 intervals under given actions, per interval, for all three);
- seconds from starting Python to the first gradient and the second, in processes of their own.

Needs Julia (diffsim julia setup); the adjoint's rows need SciMLSensitivity (diffsim julia setup --adjoints).
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from in_turns import spread, timed

from diffsim.rollouts import Rollout
from diffsim.runs.provenance import describe
from robotics_envs import make_env
from robotics_envs.julia import SIMULATORS, start
from solvers.methods.runge_kutta import Tsit5

BATCH, ROUNDS, INTERVALS = 256, 15, 16
TWINS = {
    "Pendulum": "pendulum",
    "CartpoleSwingup": "cartpole_swingup",
    "Reactor": "reactor",
    "Trebuchet": "trebuchet",
}

PURE_JULIA = """
function (number, x, u, p, repetitions)
    batch = DiffSimEnvs.OPENED[number]
    n, m, _ = batch.sizes
    B = size(x, 2)
    work() = begin
        following, cost = zeros(n, B), zeros(1, B)
        jacobian = zeros(n + 1, n + m, B)
        DiffSimEnvs.evaluate!(batch, DiffSimEnvs.INTERVAL, x, u, p, following, cost, jacobian, false)
        by_x, by_u, by_p = zeros(n, B), zeros(m, B), zeros(0, B)
        DiffSimEnvs.pull!(jacobian, ones(n, B), ones(1, B), by_x, by_u, by_p)
        by_x
    end
    Base.invokelatest(work)
    begun = time_ns()
    for _ in 1:repetitions
        Base.invokelatest(work)
    end
    (time_ns() - begun) / 1e9 / repetitions
end
"""

FIRST = """
import time
begun = {begun}
import torch
imported = time.time()
from robotics_envs import make_env
env = make_env({name!r})
env.sensitivity = {sensitivity!r}
generator = torch.Generator().manual_seed(0)
x, u = env.start_box.sample(4, generator, torch.float64), env.action_box.sample(4, generator, torch.float64)
p = {{k: v.requires_grad_() for k, v in env.params(x).items()}}
def gradient():
    start = time.time()
    following, cost = env.step(x.requires_grad_(), u.requires_grad_(), p)
    torch.autograd.grad(following.sum() + cost.sum(), [x, u, *p.values()], allow_unused=True)
    return time.time() - start
gradient()
first = time.time()
print(imported - begun, first - imported, gradient())
"""


def sample(env: Any, batch: int) -> tuple[torch.Tensor, torch.Tensor, Any]:
    generator = torch.Generator().manual_seed(0)
    x = env.state_box.sample(batch, generator, torch.float64)
    if "released" in env.state_names:
        x[:, 0] = x[:, 0].round()
    return x.requires_grad_(), env.action_box.sample(batch, generator, torch.float64), env.params(x)


def overhead(name: str) -> dict[str, Any]:
    """Seconds of one interval and its gradient, in pure Julia and through the bridge, in turn."""
    import juliacall  # running already

    env = make_env(f"julia:{name}")
    x, u, p = sample(env, BATCH)
    u.requires_grad_()
    by = torch.ones_like(x), torch.ones(BATCH, dtype=x.dtype)

    def through_the_bridge() -> Any:
        return torch.autograd.grad(env.step(x, u, p), (x, u), by)

    juliacall.Main.seval("import DiffSimEnvs")
    pure = juliacall.Main.seval(PURE_JULIA)
    convert = juliacall.Main.seval("x -> permutedims(Array{Float64}(x))")
    arrays = [convert(v.detach().numpy()) for v in (x, u)]
    arrays.append(juliacall.Main.seval("x -> Array{Float64}(x)")(torch.stack(list(p.values())).numpy()))
    repetitions = max(1, round(0.02 / timed(through_the_bridge, 2)))
    julia, bridge = [], []
    for _ in range(ROUNDS):
        julia.append(float(pure(env._simulator.number, *arrays, repetitions)))
        bridge.append(timed(through_the_bridge, repetitions))
    ratios = [b / j for b, j in zip(bridge, julia, strict=True)]
    return {"julia_us": spread(julia), "bridge_us": spread(bridge), "ratio": spread(ratios, 1.0)}


def beside_torch(name: str, batch: int) -> dict[str, Any]:
    """Microseconds an interval of a rollout with its gradient takes: in Julia, in torch eager and compiled."""
    rollouts, rounds = {}, 9
    for label, env, backend in (
        ("julia", make_env(f"julia:{name}"), "eager"),
        ("torch eager", make_env(TWINS[name]), "eager"),
        ("torch native", make_env(TWINS[name]), "native"),
    ):
        if name == "CartpoleSwingup" and label != "julia":
            env.solver = Tsit5()  # Julia's
        x, u, p = sample(env, batch)
        controls = u.expand(INTERVALS, *u.shape).clone().requires_grad_()
        rollout = Rollout(env, backend=backend, threads=1)

        def work(rollout: Any = rollout, x: Any = x, p: Any = p, controls: Any = controls) -> None:
            trajectory = rollout(x, INTERVALS, p, controls=controls)
            torch.autograd.grad(trajectory.last.sum() + trajectory.costs.sum(), (x, controls))

        work()
        once = timed(work, 1)
        rollouts[label] = (work, max(1, round(0.02 / once)))
        rounds = min(rounds, max(2, round(3.0 / once)))
    seconds: dict[str, list[float]] = {label: [] for label in rollouts}
    for _ in range(rounds):
        for label, (work, repetitions) in rollouts.items():
            seconds[label].append(timed(work, repetitions) / INTERVALS)
    return {label: spread(values) for label, values in seconds.items()}


def first_gradient(name: str, sensitivity: str) -> dict[str, Any]:
    """Seconds to import torch, from there to the first gradient, and of the second: medians of three processes."""
    rows = []
    for _ in range(3):
        code = FIRST.format(begun=time.time(), name=f"julia:{name}", sensitivity=sensitivity)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        if done.returncode:
            return {"failed": done.stderr.strip().splitlines()[-1]}
        rows.append([float(v) for v in done.stdout.split()])
    columns = zip(("torch", "first", "second"), zip(*rows, strict=True), strict=True)
    return {what: spread(list(values), 1.0) for what, values in columns}


def show(results: dict[str, Any]) -> str:
    lines = [
        "| B = 256, one interval and its gradient | pure Julia, µs | bridge, µs | ratio |",
        "|---|---|---|---|",
    ]
    for name, row in results["overhead"].items():
        julia, bridge, ratio = (row[key] for key in ("julia_us", "bridge_us", "ratio"))
        lines.append(
            f"| {name} | {julia['median']:,.0f} ({julia['low']:,.0f} to {julia['high']:,.0f}) "
            f"| {bridge['median']:,.0f} ({bridge['low']:,.0f} to {bridge['high']:,.0f}) "
            f"| {ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f}) |"
        )
    lines += [
        "",
        "| µs per interval, forward and backward | B | Julia | torch eager | torch native |",
        "|---|---|---|---|---|",
    ]
    for name, batches in results["beside_torch"].items():
        for batch, row in batches.items():
            cells = " | ".join(f"{row[k]['median']:,.0f}" for k in ("julia", "torch eager", "torch native"))
            lines.append(f"| {name} | {batch} | {cells} |")
    lines += [
        "",
        "| seconds | import torch | to the first gradient after it | second gradient |",
        "|---|---|---|---|",
    ]
    for label, row in results["first_gradient"].items():
        if "failed" in row:
            lines.append(f"| {label} | {row['failed']} | | |")
            continue
        cells = [
            f"{row[k]['median']:.2g} ({row[k]['low']:.2g} to {row[k]['high']:.2g})"
            for k in ("torch", "first", "second")
        ]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--report", type=Path, help="print a result that was measured before")
    arguments = parser.parse_args()
    if arguments.report:
        print(show(json.loads(arguments.report.read_text())))
        return
    torch.set_num_threads(1)
    runtime = start(1)
    results: dict[str, Any] = {"command": "python benchmarks/julia_bridge.py", "threads": runtime.threads}
    results |= {"provenance": describe("cpu"), "batch": BATCH, "rounds": ROUNDS}
    results["overhead"] = {name: overhead(name) for name in SIMULATORS}
    print(json.dumps(results["overhead"]), flush=True)
    results["beside_torch"] = {
        name: {batch: beside_torch(name, batch) for batch in (1, 64, 1024)} for name in TWINS
    }
    print(json.dumps(results["beside_torch"]), flush=True)
    mine = Path(__file__).parent.parent / "examples" / "van_der_pol.jl"
    cases = [(name, "forward") for name in SIMULATORS] + [("Reactor", "adjoint")]
    results["first_gradient"] = {f"{name}, {how}": first_gradient(name, how) for name, how in cases}
    results["first_gradient"]["a file of one's own, forward"] = first_gradient(f"{mine}:VanDerPol", "forward")
    print(show(results))
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
