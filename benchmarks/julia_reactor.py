"""What the stiff reactor's interval and gradient cost with ``Rosenbrock()`` and with OrdinaryDiffEq's Rodas5P.

    python benchmarks/julia_reactor.py --out benchmarks/results/julia_reactor.json
    python benchmarks/julia_reactor.py --draw benchmarks/results/julia_reactor.json --out docs/julia_reactor.svg

One thread, float64, B = 64, one control interval and its gradient by states and actions, through the bridge.  Rounds
are interleaved; a ratio is that of one round.  At several tolerances, ``rtol`` and a tenth of it as the absolute one:

- microseconds, bytes that Julia allocates, and the ratio;
- the largest relative error of next states and of the gradient's entries against ``Rosenbrock()`` at 1e-13;
- the same for torch's simulator, compiled to C++, at several numbers of steps.

Needs Julia (diffsim julia setup).
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from in_turns import spread, timed

from diffsim.rollouts import Rollout
from diffsim.runs.provenance import describe
from robotics_envs import make_env
from robotics_envs.julia import start

BATCH, ROUNDS = 64, 11
TOLERANCES = (1e-4, 1e-6, 1e-8, 1e-9, 3e-10)
SUBSTEPS = (1, 2, 4, 8, 16)

# The package's reactor with a scheme of its own.
FILE = """
import DiffSimEnvs
import DiffSimEnvs: Simulator, Adaptive, Rodas5P, Rosenbrock, Reactor, describe, dynamics!, cost, scheme
"""
SIMULATOR = """
struct {name}{{T}} <: Simulator
    {fields}
end
reactor(p::{name}{{T}}) where {{T}} = Reactor{{T}}(ntuple(i -> getfield(p, i), Val(fieldcount(Reactor{{T}})))...)
describe(::Type{{<:{name}}}) = describe(Reactor)
dynamics!(dx, x, u, p::{name}, t) = dynamics!(dx, x, u, reactor(p), t)
cost(x, u, p::{name}) = cost(x, u, reactor(p))
scheme(::{name}) = {scheme}
"""


def simulators(folder: Path) -> dict[str, Any]:
    """The reactor with both schemes at all tolerances, and the reference."""
    fields = "; ".join(f"{name}::T" for name in make_env("julia:Reactor").constants)
    schemes = {"Reference": "Rosenbrock(reltol = 1e-13, abstol = 1e-14)"}
    for rtol in TOLERANCES:
        given = f"reltol = {rtol!r}, abstol = {rtol / 10!r}"
        schemes[f"Shared{TOLERANCES.index(rtol)}"] = f"Rosenbrock({given})"
        schemes[f"Nested{TOLERANCES.index(rtol)}"] = f"Adaptive(Rodas5P(); {given})"
    text = FILE + "".join(
        SIMULATOR.format(name=name, fields=fields, scheme=scheme) for name, scheme in schemes.items()
    )
    file = folder / "reactors.jl"
    file.write_text(text)
    return {name: make_env(f"julia:{file}:{name}") for name in schemes}


def sample(env: Any) -> tuple[torch.Tensor, torch.Tensor, Any]:
    generator = torch.Generator().manual_seed(0)
    x = env.state_box.sample(BATCH, generator, torch.float64)
    u = env.action_box.sample(BATCH, generator, torch.float64)
    return x.requires_grad_(), u.requires_grad_(), env.params(x)


def interval(env: Any, x: torch.Tensor, u: torch.Tensor, p: Any) -> Any:
    following, cost = env.step(x, u, p)
    return torch.autograd.grad((following, cost), (x, u), (torch.ones_like(following), torch.ones_like(cost)))


def jacobian(step: Any, x: torch.Tensor, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Next states ``[B, n]``, and their Jacobian ``[B, n, n + m]`` by states and actions."""
    following = step(x, u)
    rows = [
        torch.cat(torch.autograd.grad(following[:, i].sum(), (x, u), retain_graph=True), -1)
        for i in range(following.shape[1])
    ]
    return following.detach(), torch.stack(rows, 1)


def errors(found: Any, expected: Any) -> dict[str, float]:
    """Largest errors of states and derivatives, relative to the largest entry of each row of the batch."""
    names = ("state", "gradient")
    return {
        name: float(((a - b).abs().amax(0) / b.abs().amax(0).clamp_min(1e-12)).max())
        for name, a, b in zip(names, found, expected, strict=True)
    }


def in_turn(works: dict[str, Any]) -> dict[str, list[float]]:
    """Seconds of each piece of work, in rounds."""
    repetitions = {}
    for label, work in works.items():
        work()
        repetitions[label] = max(1, round(0.02 / timed(work, 2)))
    seconds: dict[str, list[float]] = {label: [] for label in works}
    for _ in range(ROUNDS):
        for label, work in works.items():
            seconds[label].append(timed(work, repetitions[label]))
    return seconds


def draw(results: dict[str, Any], out: Path) -> None:
    """Work and precision: errors of states and of derivatives over the time of an interval and its gradient."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "julia_reactor"  # equal files from equal results
    matplotlib.rcParams["svg.fonttype"] = "none"
    from matplotlib import pyplot

    rows = results["tolerances"].values()
    lines = {
        "Julia, Adaptive(Rodas5P())": [row["before"] for row in rows],
        "Julia, Rosenbrock()": [row["now"] for row in rows],
        "torch, 1 to 8 substeps, compiled": [results["torch"][str(n)] for n in SUBSTEPS if n <= 8],
    }
    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.8), layout="constrained", sharex=True)
    for axes, (quantity, title) in zip(
        panels, (("state", "next states"), ("gradient", "derivatives")), strict=True
    ):
        for (label, points), marker in zip(lines.items(), "sox", strict=True):
            milliseconds = [point["us"]["median"] / 1e3 for point in points]
            axes.loglog(milliseconds, [point[quantity] for point in points], marker=marker, label=label)
        axes.set(xlabel=f"ms, {results['batch']} rollouts", ylabel="largest relative error", title=title)
        axes.grid(alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(out, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--draw", type=Path, help="results to draw to --out, in the place of measuring")
    arguments = parser.parse_args()
    if arguments.draw:
        draw(json.loads(arguments.draw.read_text()), arguments.out)
        return
    torch.set_num_threads(1)
    runtime = start(1)
    import juliacall  # running already

    allocated = juliacall.Main.seval("f -> (f(); @allocated f())")
    with tempfile.TemporaryDirectory() as folder:
        envs = simulators(Path(folder))
    x, u, p = sample(envs["Reference"])
    expected = jacobian(lambda x, u: envs["Reference"].step(x, u, p)[0], x, u)
    results: dict[str, Any] = {
        "command": "python benchmarks/julia_reactor.py",
        "threads": runtime.threads,
        "provenance": describe("cpu"),
        "batch": BATCH,
        "rounds": ROUNDS,
        "tolerances": {},
        "torch": {},
    }
    print("| rtol | before, µs | now, µs | ratio | error of state | of gradient | bytes before | now |")
    for rtol in TOLERANCES:
        number = TOLERANCES.index(rtol)
        pair = {"before": envs[f"Nested{number}"], "now": envs[f"Shared{number}"]}
        seconds = in_turn({label: lambda env=env: interval(env, x, u, p) for label, env in pair.items()})
        row: dict[str, Any] = {label: {"us": spread(seconds[label])} for label in pair}
        row["ratio"] = spread([a / b for a, b in zip(seconds["before"], seconds["now"], strict=True)], 1.0)
        for label, env in pair.items():
            row[label] |= errors(jacobian(lambda x, u, env=env: env.step(x, u, p)[0], x, u), expected)
            row[label]["bytes"] = int(allocated(lambda env=env: interval(env, x, u, p)))
        results["tolerances"][f"{rtol:g}"] = row
        before, now = row["before"], row["now"]
        print(
            f"| {rtol:g} | {before['us']['median']:,.0f} | {now['us']['median']:,.0f} | {row['ratio']['median']:.1f} "
            f"({row['ratio']['low']:.1f} to {row['ratio']['high']:.1f}) | {before['state']:.0e}, {now['state']:.0e} "
            f"| {before['gradient']:.0e}, {now['gradient']:.0e} | {before['bytes']:,} | {now['bytes']:,} |",
            flush=True,
        )
    # As the simulator was and is: at 1e-8 and 1e-9, and at its present tolerances.
    pair = {"before": envs[f"Nested{TOLERANCES.index(1e-8)}"], "now": make_env("julia:Reactor")}
    seconds = in_turn({label: lambda env=env: interval(env, x, u, p) for label, env in pair.items()})
    ratios = [a / b for a, b in zip(seconds["before"], seconds["now"], strict=True)]
    results["default"] = {label: {"us": spread(seconds[label])} for label in pair}
    results["default"]["ratio"] = spread(ratios, 1.0)
    print(f"the simulator's default: {results['default']}", flush=True)
    print("| torch, substeps | µs | error of state | of gradient |")
    for substeps in SUBSTEPS:
        env = make_env("reactor")
        env.substeps = substeps
        rollout = Rollout(env, backend="native", threads=1)
        step = lambda x, u, rollout=rollout: rollout(x, 1, controls=u.unsqueeze(0)).last

        def work(rollout: Any = rollout) -> None:
            made = rollout(x, 1, controls=u.unsqueeze(0))
            torch.autograd.grad(made.last.sum() + made.costs.sum(), (x, u))

        found = {"us": spread(in_turn({"torch": work})["torch"]), **errors(jacobian(step, x, u), expected)}
        results["torch"][str(substeps)] = found
        print(
            f"| {substeps} | {found['us']['median']:,.0f} | {found['state']:.0e} | {found['gradient']:.0e} |",
            flush=True,
        )
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
