"""Per-rollout adaptive solves with gradients against diffrax, torchode and torchdiffeq: time and accuracy.

    python benchmarks/adaptive_solvers.py --out benchmarks/results/adaptive_solvers.json

1024 rollouts of the van der Pol oscillator and of the double pendulum from spread initial states, equal
tolerances (1e-6), float64, one thread; the gradient of the sum of squares of the final states by the initial
states and a parameter.
The peers run interleaved in one process, and after their compilation.  Errors are against diffrax's
Dopri8 at 1e-13 for the solution and its gradient.  Needs the extra ``bench``.
"""

# ruff: noqa: E402
from __future__ import annotations

import os

os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[-1]})  # one core for everyone, JAX included
os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import torch
import torchdiffeq
import torchode

from diffsim.runs.provenance import describe
from solvers import solve

jax.config.update("jax_enable_x64", True)
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)

ROLLOUTS, TOLERANCE, ROUNDS = 1024, 1e-6, 15


def van_der_pol(xp, x, mu):
    """x'' = mu (1 - x²) x' - x."""
    q, v = x[..., 0], x[..., 1]
    return xp.stack((v, mu * (1 - q * q) * v - q), -1)


def double_pendulum(xp, x, g):
    """Two point masses of 1 kg on rods of 1 m; angles from hanging, rates in rad/s."""
    a, b, va, vb = x[..., 0], x[..., 1], x[..., 2], x[..., 3]
    s, c = xp.sin(a - b), xp.cos(a - b)
    down = 2 - c * c
    wa = (g * xp.sin(b) * c - s * (va * va * c + vb * vb) - 2 * g * xp.sin(a)) / down
    wb = (2 * (va * va * s - g * xp.sin(b) + g * xp.sin(a) * c) + vb * vb * s * c) / down
    return xp.stack((va, vb, wa, wb), -1)


PROBLEMS = {
    "van der Pol": (van_der_pol, 2, 2.0, 10.0, 5.0),
    "double pendulum": (double_pendulum, 4, 1.0, 5.0, 9.81),
}


def numpy_pair(x, by_x, by_p):
    return np.asarray(x), np.asarray(by_x), float(by_p)


def ours(field, x0, end, parameter, backend: str, solver: str) -> Callable[[], tuple]:
    x0 = torch.tensor(x0, requires_grad=True)
    p = torch.tensor(parameter, requires_grad=True)
    f = lambda t, x, u, p: field(torch, x, p)

    def run():
        xs = solve(
            f,
            x0,
            [0.0, end],
            None,
            p,
            solver=solver,
            adjoint="checkpoint",
            rtol=TOLERANCE,
            atol=TOLERANCE,
            backend=backend,
        ).xs[-1]
        by_x, by_p = torch.autograd.grad((xs**2).sum(), (x0, p))
        return numpy_pair(xs.detach(), by_x, by_p)

    return run


def with_torchdiffeq(field, x0, end, parameter, adjoint: bool) -> Callable[[], tuple]:
    x0 = torch.tensor(x0, requires_grad=True)
    p = torch.tensor(parameter, requires_grad=True)
    f = lambda t, x: field(torch, x, p)
    ts = torch.tensor([0.0, end])

    def run():
        kwargs = {"rtol": TOLERANCE, "atol": TOLERANCE, "method": "dopri5"}
        if adjoint:
            xs = torchdiffeq.odeint_adjoint(f, x0, ts, adjoint_params=(p,), **kwargs)[-1]
        else:
            xs = torchdiffeq.odeint(f, x0, ts, **kwargs)[-1]
        by_x, by_p = torch.autograd.grad((xs**2).sum(), (x0, p))
        return numpy_pair(xs.detach(), by_x, by_p)

    return run


def with_torchode(field, x0, end, parameter) -> Callable[[], tuple]:
    x0 = torch.tensor(x0, requires_grad=True)
    p = torch.tensor(parameter, requires_grad=True)
    term = torchode.ODETerm(lambda t, x: field(torch, x, p))
    method = torchode.Tsit5(term=term)
    controller = torchode.IntegralController(atol=TOLERANCE, rtol=TOLERANCE, term=term)
    adjoint = torchode.AutoDiffAdjoint(method, controller)
    ts = torch.tensor([0.0, end]).expand(len(x0), 2).contiguous()

    def run():
        xs = adjoint.solve(torchode.InitialValueProblem(y0=x0, t_eval=ts)).ys[:, -1]
        by_x, by_p = torch.autograd.grad((xs**2).sum(), (x0, p))
        return numpy_pair(xs.detach(), by_x, by_p)

    return run


def with_diffrax(
    field, x0, end, parameter, adjoint=None, solver=None, tolerance=TOLERANCE
) -> Callable[[], tuple]:
    term = diffrax.ODETerm(lambda t, x, p: field(jnp, x, p))
    adjoint = diffrax.RecursiveCheckpointAdjoint() if adjoint is None else adjoint
    solver = diffrax.Tsit5() if solver is None else solver

    def loss(x0, p):
        def one(x):
            controller = diffrax.PIDController(rtol=tolerance, atol=tolerance)
            return diffrax.diffeqsolve(
                term,
                solver,
                0.0,
                end,
                None,
                x,
                p,
                stepsize_controller=controller,
                adjoint=adjoint,
                max_steps=4096,
            ).ys[-1]

        xs = jax.vmap(one)(x0)
        return (xs**2).sum(), xs

    run_compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    start, p = jnp.asarray(x0), jnp.asarray(parameter)

    def run():
        (_, xs), (by_x, by_p) = run_compiled(start, p)
        return numpy_pair(xs, by_x, by_p)

    return run


def errors(result, reference) -> dict[str, float]:
    """Relative errors of a rollout's state and gradient: median and worst over the rollouts."""

    def relative(got, exact):
        return np.linalg.norm(got - exact, axis=-1) / (np.linalg.norm(exact, axis=-1) + 1e-12)

    x, by_x = relative(result[0], reference[0]), relative(result[1], reference[1])
    return {
        "state median": float(np.median(x)),
        "state worst": float(x.max()),
        "gradient median": float(np.median(by_x)),
        "gradient worst": float(by_x.max()),
        "parameter": abs(result[2] - reference[2]) / abs(reference[2]),
    }


def measure(name: str, rounds: int) -> dict:
    field, n, spread, end, parameter = PROBLEMS[name]
    x0 = spread * np.random.default_rng(0).standard_normal((ROLLOUTS, n))
    problem = (field, x0, end, parameter)
    ways = {
        "diffsim tsit5 native": ours(*problem, "native", "tsit5"),
        "diffsim dopri5 native": ours(*problem, "native", "dopri5"),
        "diffsim tsit5 eager": ours(*problem, "eager", "tsit5"),
        "diffrax Tsit5": with_diffrax(*problem),
        "diffrax Tsit5 backsolve": with_diffrax(*problem, adjoint=diffrax.BacksolveAdjoint()),
        "torchode Tsit5": with_torchode(*problem),
        "torchdiffeq dopri5": with_torchdiffeq(*problem, adjoint=False),
        "torchdiffeq dopri5 adjoint": with_torchdiffeq(*problem, adjoint=True),
    }
    reference = with_diffrax(*problem, solver=diffrax.Dopri8(), tolerance=1e-13)()
    table: dict[str, dict] = {}
    for way, run in ways.items():
        try:
            begin = time.perf_counter()
            result = run()
            table[way] = {"first call s": time.perf_counter() - begin, **errors(result, reference), "ms": []}
        except Exception as error:  # a peer that fails is a result
            table[way] = {"failed": f"{type(error).__name__}: {error}".strip().splitlines()[0][:200]}
        print(f"  {way}: {table[way]}", flush=True)
    for k in range(rounds):
        for way, run in ways.items():
            slow = table[way].get("first call s", 0) > 5 and "diffsim" not in way and "diffrax" not in way
            if "failed" in table[way] or (slow and k >= 3):
                continue
            begin = time.perf_counter()
            run()
            table[way]["ms"].append(1e3 * (time.perf_counter() - begin))
    fastest = statistics.median(table["diffsim tsit5 native"]["ms"])
    for row in table.values():
        if "ms" in row:
            times = sorted(row["ms"])
            row["ms"] = [round(v, 3) for v in times]
            row["median ms"] = statistics.median(times)
            row["ratio"] = statistics.median(times) / fastest
    return table


def report(results: dict) -> None:
    for name, table in results["problems"].items():
        print(f"\n{name}\n{'':28s}{'ms':>9s}{'(min..max)':>20s}{'x':>8s}{'state':>20s}{'gradient':>20s}")
        for way, row in table.items():
            if "failed" in row:
                print(f"{way:28s} failed: {row['failed']}")
                continue
            span = f"({row['ms'][0]:.1f}..{row['ms'][-1]:.1f})"
            state = f"{row['state median']:.1e} {row['state worst']:.1e}"
            gradient = f"{row['gradient median']:.1e} {row['gradient worst']:.1e}"
            print(
                f"{way:28s}{row['median ms']:9.2f}{span:>20s}{row['ratio']:8.1f}{state:>20s}{gradient:>20s}"
            )
    print("\nstate, gradient: relative error, median and worst of the rollouts")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--report", type=Path, help="print a committed result instead of measuring")
    arguments = parser.parse_args()
    if arguments.report:
        report(json.loads(arguments.report.read_text()))
        return
    warnings.simplefilter("ignore")
    results = {
        "command": "python benchmarks/adaptive_solvers.py --out benchmarks/results/adaptive_solvers.json",
        "provenance": describe("cpu"),
        "versions": {
            "diffrax": diffrax.__version__,
            "jax": jax.__version__,
            "torchode": torchode.__version__,
        },
        "rollouts": ROLLOUTS,
        "tolerance": TOLERANCE,
        "problems": {name: measure(name, arguments.rounds) for name in PROBLEMS},
    }
    report(results)
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
