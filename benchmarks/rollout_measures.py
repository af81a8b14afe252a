"""What ``rollouts.py`` measures, each in a process of its own: functions from settings to numbers.

The process is given its cores and XLA's flags before it starts.  Seconds are raw, one number a round, with
medians beside them.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.metadata
import os
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rollout_peers import PEERS, Run, jax_population, make_env, make_policy, relative_errors, torch_reference
from torch import Tensor

from diffsim.policy import Policy
from diffsim.rollouts import native
from diffsim.rollouts.engines import BACKENDS
from diffsim.rollouts.rollout import Rollout
from diffsim.runs.provenance import describe
from examples.cartpole import CartPole
from robotics_envs.base import Actions, Box, Costs, Env, Parameter, Params, States
from solvers.methods.runge_kutta import RK4
from solvers.native import build

SLOW = ("eager", "torch loop", "diffrax", "torchdiffeq", "torchode", "brax")
EVERY = 3
"""The slow ones take part in one of so many rounds."""
PAUSE = 0.01
"""Seconds between two timings where there are several threads: those of the one before go to sleep."""


# Timing -------------------------------------------------------------------------------------------


def timed(builders: Mapping[str, Callable[[], Any]], rounds: int, slow: Collection[str] = SLOW) -> dict:
    """``{"rows": {name: {...}}, "results": {name: ...}}``: build the runs, call each once and time them.

    Every round times each run once, in a new order; one timing is as many calls as take about 0.1 s.  The
    seconds of a row are those of one call; None where a slow one sat out the round.
    """
    runs, rows, results = {}, {}, {}
    for name, make in builders.items():
        try:
            runs[name] = make()
            results[name] = runs[name]()
        except Exception as error:  # a contestant that fails is a result
            runs.pop(name, None)
            rows[name] = {"failed": f"{type(error).__name__}: {error}".strip().splitlines()[0][:200]}
            continue
        calls = 1 if name in slow else max(1, min(50, round(0.1 / seconds(runs[name]))))
        compiling = getattr(runs[name], "compile_seconds", 0.0)
        rows[name] = {"compile seconds": round(compiling, 3), "calls per timing": calls, "seconds": []}
    order, shuffle = list(runs), random.Random(0).shuffle
    for k in range(rounds):
        shuffle(order)
        for name in order:
            out = name in slow and k % EVERY
            row = rows[name]
            row["seconds"].append(None if out else seconds(runs[name], row["calls per timing"]))
    return {"rows": rows, "results": results}


def seconds(run: Callable[[], Any], calls: int = 1) -> float:
    """Of one call, the mean of so many."""
    if torch.get_num_threads() > 1:
        time.sleep(PAUSE)
    begin = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - begin) / calls


def spread(values: Iterable[float | None]) -> dict[str, float]:
    """Median, min and max."""
    known = [v for v in values if v is not None]
    return {"median": statistics.median(known), "min": min(known), "max": max(known)}


def add_rates(rows: Mapping[str, dict], steps: int, peers: Sequence[str]) -> None:
    """Give the rows environment steps per second, and how many times as fast as each peer they are.

    The ratio is the median of the ratios in the rounds that both took part in.
    """
    for row in rows.values():
        if "failed" in row:
            continue
        row["steps per second"] = spread(steps / s if s else None for s in row["seconds"])
        for peer in peers:
            theirs = rows.get(peer, {}).get("seconds", [])
            ratios = [b / a for a, b in zip(row["seconds"], theirs, strict=False) if a and b]
            if ratios:
                row[f"over {peer}"] = statistics.median(ratios)


def exponent(values: Mapping[int, float]) -> float:
    """The slope of the logarithms: ``values[x] ~ x ** slope``."""
    return statistics.linear_regression(np.log(list(values)), np.log(list(values.values()))).slope


# Contestants --------------------------------------------------------------------------------------


def start_states(env: Env, batch: int) -> Tensor:
    return env.reset(batch, torch.Generator().manual_seed(0))


def ours(backend: str, env: Env, policy: Policy, x0: Tensor, steps: int) -> Run:
    """Loss and gradient by ``Rollout`` with this back end and no other; compiled already."""
    rollout = Rollout(env, policy, backend=backend)
    parameters = list(policy.network.parameters())

    def call(x0: Tensor = x0, steps: int = steps) -> tuple[float, list]:
        loss = rollout(x0, steps).costs.mean()
        gradients = torch.autograd.grad(loss, parameters)
        return loss.item(), [gradient.numpy() for gradient in gradients]

    call(x0 if backend == "inductor" else x0[:4], 2)  # only inductor compiles for a batch size
    kind = BACKENDS.load(backend)
    if not all(type(engine) is kind for engine in rollout.engines.prepared.values()):
        raise RuntimeError(f"the back end {backend} handed over to another one")
    return Run(call, rollout.compile_seconds)


def contestant(name: str, env_name: str, policy: Policy, x0: Tensor, steps: int) -> Run:
    """The contestant of that name made ready."""
    if name == "torch loop":
        return torch_reference(env_name, policy, x0, steps)
    if name in PEERS:
        return PEERS[name](env_name, policy, x0, steps)
    return ours(name, make_env(env_name), policy, x0, steps)


# Sections -----------------------------------------------------------------------------------------


def speed(env: str, batch: int, steps: int, contestants: Sequence[str], rounds: int) -> dict:
    """Forward and backward: environment steps per second of all contestants, interleaved."""
    simulator = make_env(env)
    policy, x0 = make_policy(simulator), start_states(simulator, batch)
    builders = {name: partial(contestant, name, env, policy, x0, steps) for name in contestants}
    measured = timed(builders, rounds)
    rows, results = measured["rows"], measured["results"]
    add_rates(rows, batch * steps, ("jax", "jax best"))
    reference = next((name for name in ("torch loop", "jax", *results) if name in results), None)
    for name, result in results.items():
        if name not in ("brax", reference):  # Brax solves another problem
            rows[name][f"errors against {reference}"] = relative_errors(result, results[reference])
    return {"env": env, "batch": batch, "steps": steps, "contestants": rows}


def population(env: str, policies: int, rollouts: int, steps: int, rounds: int) -> dict:
    """Costs of many policies without gradient."""
    simulator = make_env(env)
    modules = [make_policy(simulator, seed) for seed in range(policies)]
    x0 = start_states(simulator, rollouts)
    parameters, buffers = torch.func.stack_module_state(modules)

    def with_native() -> Run:
        rollout = Rollout(simulator, modules[0], backend="native")
        rollout.population(parameters, x0, 2)
        if not all(isinstance(engine, native.Native) for engine in rollout.engines.prepared.values()):
            raise RuntimeError("the back end native handed over to another one")
        return Run(lambda: rollout.population(parameters, x0, steps) / steps, rollout.compile_seconds)

    builders = {
        "native": with_native,
        "jax": lambda: jax_population(env, {**parameters, **buffers}, x0, steps),
    }
    measured = timed(builders, rounds)
    rows, results = measured["rows"], {k: np.asarray(v) for k, v in measured["results"].items()}
    add_rates(rows, policies * rollouts * steps, ["jax"])
    if len(results) == len(builders):
        rows["native"]["error against jax"] = float(np.abs(results["native"] / results["jax"] - 1).max())
    sizes = {"policies": policies, "rollouts": rollouts, "steps": steps}
    return {"env": env, **sizes, "contestants": rows}


def memory(env: str, batch: int, steps: int, contestant_name: str) -> dict:
    """Resident bytes before a call (forward and backward) and at its peak; Linux with glibc only."""
    simulator = make_env(env)
    policy, x0 = make_policy(simulator), start_states(simulator, batch)
    contestant(contestant_name, env, policy, x0[:4], 2)()  # what is allocated once and for all
    run = contestant(contestant_name, env, policy, x0, steps)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # or the call would use what is free but resident, unseen
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is resident
    before = resident("VmRSS")
    run()
    peak = resident("VmHWM")
    return {"before": before, "peak": peak, "states": (steps + 1) * x0.numel() * x0.element_size()}


def resident(field: str) -> int:
    """Bytes, from the kernel's account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def start(env: str, batch: int) -> dict:
    """Seconds from imports to the first gradient of two control intervals, and where they went."""
    spent = {"tracing": 0.0, "compiler": 0.0}

    def watched(label: str, function: Callable) -> Callable:
        def call(*args: Any) -> Any:
            begin = time.perf_counter()
            result = function(*args)
            spent[label] += time.perf_counter() - begin
            return result

        return call

    native.Translation.source = watched("tracing", native.Translation.source)
    native.Translation = watched("tracing", native.Translation)
    build.load = watched("compiler", build.load)
    simulator = make_env(env)
    policy, x0 = make_policy(simulator), start_states(simulator, batch)
    begin = time.perf_counter()
    rollout = Rollout(simulator, policy, backend="native")
    torch.autograd.grad(rollout(x0, 2).costs.mean(), list(policy.network.parameters()))
    total = time.perf_counter() - begin
    if not all(isinstance(engine, native.Native) for engine in rollout.engines.prepared.values()):
        raise RuntimeError("the back end native handed over to another one")
    return {"total": total, **spent}


class Substeps(CartPole):
    """The cart-pole with several steps of the solver in a control interval."""

    def __init__(self, substeps: int) -> None:
        super().__init__()
        self.substeps = substeps

    def step(self, x: States, u: Actions, p: Params) -> tuple[States, Costs]:
        u = self.clip_action(u)
        cost, h = self.cost(x, u, p), self.dt / self.substeps
        for k in range(self.substeps):
            x = self.solver.step(self.dynamics, k * h, x, u, p, h)
        return x, cost


def linear(vary: Mapping[str, Sequence[int]], base: Mapping[str, int], rounds: int) -> dict:
    """Native: seconds of a call while one of batch, steps and substeps varies; their exponents."""
    settings = {(name, value): {**base, name: value} for name, values in vary.items() for value in values}
    policy = make_policy(Substeps(1))

    def ready(batch: int, steps: int, substeps: int) -> Run:
        env = Substeps(substeps)
        return ours("native", env, policy, start_states(env, batch), steps)

    named = {str(tuple(s.values())): s for s in settings.values()}  # the base is among all that vary
    builders = {name: partial(ready, **s) for name, s in named.items()}
    rows = timed(builders, rounds)["rows"]
    measured: dict[str, dict] = {name: {} for name in vary}
    for (name, value), s in settings.items():
        row, count = rows[str(tuple(s.values()))], s["batch"] * s["steps"]
        each = spread(t / count for t in row["seconds"])
        measured[name][value] = {**row, "seconds per environment step": each}
    exponents = {
        name: exponent({value: spread(row["seconds"])["median"] for value, row in varied.items()})
        for name, varied in measured.items()
    }
    return {"base": dict(base), "varied": measured, "exponents": exponents}


class Chain(Env):
    """Masses of 1 kg between two walls, joined by springs and dampers; a force acts on the first.

    State ``[displacements m, velocities m/s]``, action ``[force N]``.
    """

    name = "chain"
    parameters = (
        Parameter("stiffness", 1.0, "N/m", low=0.0),
        Parameter("damping", 0.1, "N·s/m", low=0.0),
    )
    action_box = Box.symmetric(1.0)
    dt = 0.05
    episode_steps = 100
    solver = RK4()

    def __init__(self, masses: int) -> None:
        super().__init__()
        self.masses = masses
        self.state_names = tuple(f"{what}_{k}" for what in ("place", "velocity") for k in range(masses))
        self.observation_names = self.state_names
        self.start_box = self.state_box = Box.symmetric(*[1.0] * (2 * masses))

    def dynamics(self, t: Any, x: States, u: Actions, p: Params) -> States:
        """d[displacements, velocities]/dt."""
        place, velocity = x[:, : self.masses], x[:, self.masses :]
        wall = torch.zeros_like(place[:, :1])
        strain = p["stiffness"] * place + p["damping"] * velocity
        strain = torch.cat((wall, strain, wall), -1)
        tension = strain[:, 1:] - strain[:, :-1]
        push = torch.cat((u, torch.zeros_like(place[:, 1:])), -1)
        return torch.cat((velocity, tension[:, 1:] - tension[:, :-1] + push), -1)

    def cost(self, x: States, u: Actions, p: Params) -> Costs:
        """Mean square of the state, and a little for force."""
        return (x**2).mean(-1) + 1e-3 * u[:, 0] ** 2


def state_size(sizes: Sequence[int], batch: int, steps: int, rounds: int) -> dict:
    """Native and eager, forward and backward, for chains with so many states under a linear feedback."""
    backends, builders = ("native", "eager"), {}
    for n in sizes:
        env = Chain(n // 2)
        problem = (env, make_policy(env, hidden=()), start_states(env, batch), steps)
        for backend in backends:
            builders[f"{backend} {n}"] = partial(ours, backend, *problem)
    rows = timed(builders, rounds, slow=[f"eager {n}" for n in sizes])["rows"]
    for row in rows.values():
        if "failed" not in row:
            row["seconds per interval"] = spread(s / (batch * steps) if s else None for s in row["seconds"])
    table = {n: {backend: rows[f"{backend} {n}"] for backend in backends} for n in sizes}
    exponents = {}
    for backend in backends:
        good = {n: row[backend] for n, row in table.items() if "failed" not in row[backend]}
        medians = {n: row["seconds per interval"]["median"] for n, row in good.items()}
        exponents[backend] = exponent(medians) if len(medians) > 1 else None
    return {"batch": batch, "steps": steps, "sizes": table, "exponents": exponents}


# The machine --------------------------------------------------------------------------------------


def machine() -> dict:
    """Provenance, and what speed depends on: processor, compiler, versions of the peers."""
    facts = describe("cpu")
    for name in ("jax", "diffrax", "torchode", "brax"):
        try:
            facts[f"version_{name}"] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            facts[f"version_{name}"] = "not installed"
    return {**facts, "processor": processor(), "cores": os.cpu_count(), "compiler": compiler()}


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return " ".join(fields[k] for k in ("model name", "cpu family", "model") if k in fields)


def compiler() -> str:
    try:
        done = subprocess.run(
            [*build._toolchain().command, "--version"], capture_output=True, text=True, check=True
        )
    except Exception:  # a machine without a compiler
        return "none"
    return done.stdout.splitlines()[0]


MEASURES = {f.__name__: f for f in (speed, population, memory, start, linear, state_size, machine)}


def work(measure: str, threads: int, arguments: Mapping[str, Any]) -> dict:
    """One measure, in a process that was given its cores and its environment."""
    torch.set_num_threads(threads)
    return MEASURES[measure](**arguments)
