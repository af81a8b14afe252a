"""Environment steps per second, forward and backward: the project's rollouts beside torch's and JAX's own means.

The task is that of ``rollouts.py``: the gradient of the mean cost by the parameters of an MLP policy (64-64 tanh,
tanh squash) in closed loop, float32, 200 control intervals.  Contestants:

  cuda_native ``Rollout(backend="cuda_native")``
  eager       ``Rollout(backend="eager")``
  cuda_graph  ``Rollout(backend="cuda_graph")``
  loop        the plain loop under autograd, which keeps every step's graph
  inductor    ``Rollout(backend="inductor")``
  jax         a step of one rollout, vmap, ``lax.scan``, jit
  jax best    components with the rollouts last, each step computed again in the backward pass

What does not fit into the device's memory is tried again with half the horizon; the horizon is in the result.  JAX
runs in a process of its own, because both libraries take the memory for themselves; its matrix products are set to
full float32 precision, which is torch's default.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rollout_peers import make_env, make_policy, with_jax, with_jax_best
from torch import Tensor

from diffsim.rollouts import Rollout
from gpu_parts.report import OUT_OF_TIME, Report, SkippedError, relative_error
from gpu_parts.rollouts import nothing_said
from robotics_envs.base import Env

ENVS = ("cartpole", "quadrotor")
COMPILING = 25.0
"""Seconds that inductor takes at most for a batch size it has not seen."""
JAX_CASE = 12.0
"""Seconds that a case of JAX takes at most, compilation included."""
HALVINGS = 5

Gradient = tuple[Tensor, list[Tensor]]
"""The mean cost ``[]`` and its gradient by the parameters of ``policy.network``."""


@dataclass(frozen=True)
class Sizes:
    """How large the problems are."""

    batches: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000)
    steps: int = 200
    repeats: int = 3


QUICK = Sizes(batches=(16, 64), steps=4, repeats=1)


@dataclass(frozen=True)
class Problem:
    """One simulator at one batch size and horizon."""

    env_name: str
    env: Env
    policy: torch.nn.Module
    x0: Tensor
    steps: int

    @classmethod
    def make(cls, env_name: str, batch: int, steps: int, device: torch.device) -> Problem:
        """The same numbers on every device."""
        env = make_env(env_name)
        x0 = env.reset(batch, torch.Generator().manual_seed(0))
        return cls(env_name, env, make_policy(env).to(device), x0.to(device), steps)

    def parameters(self) -> list[Tensor]:
        return list(self.policy.network.parameters())  # type: ignore[union-attr, operator]


def run(report: Report, device: torch.device, quick: bool) -> None:
    """Every case of the part, what matters most first; the host alone limits the plain loops, so few sizes do."""
    sizes = QUICK if quick else Sizes()
    for env_name in ENVS:
        for contestant in ("cuda_native", "cuda_graph", "eager"):
            report.case(
                f"{env_name} {contestant} agrees", lambda e=env_name, c=contestant: agrees(e, c, device)
            )
        cases(report, env_name, "cuda_native", sizes.batches, sizes, device)
        cases(report, env_name, "cuda_graph", sizes.batches[1:3], sizes, device)
        cases(report, env_name, "eager", sizes.batches[1::2], sizes, device)
        jax_cases(report, env_name, sizes, device, quick)
    for env_name in ENVS:
        for batch in sizes.batches[1::2]:
            report.case(
                f"{env_name} inductor {batch}",
                lambda e=env_name, b=batch: inductor(e, b, sizes, device, quick),
                needs=0.0 if quick else COMPILING,
            )
        cases(report, env_name, "loop", sizes.batches[1::2], sizes, device)


def cases(
    report: Report, env_name: str, contestant: str, batches: Sequence[int], sizes: Sizes, device: torch.device
) -> None:
    """A contestant at several batch sizes."""
    for batch in batches:
        report.case(
            f"{env_name} {contestant} {batch}",
            lambda b=batch: timed(env_name, contestant, b, sizes, device),
            needs=0.0 if sizes is QUICK else 8.0,
        )


# Contestants --------------------------------------------------------------------------------------


def make_ready(contestant: str, problem: Problem) -> Callable[[], Gradient]:
    """``run() -> (loss, gradient)``."""
    return (with_loop if contestant == "loop" else with_rollout)(contestant, problem)


def with_rollout(backend: str, problem: Problem) -> Callable[[], Gradient]:
    """The project's own rollout."""
    rollout, parameters = Rollout(problem.env, problem.policy, backend=backend), problem.parameters()
    p = problem.env.params(problem.x0)
    strict = backend == "cuda_native" and problem.x0.is_cuda

    def call() -> Gradient:
        with (
            nothing_said() if strict else contextlib.nullcontext()
        ):  # another back end in its place is an error
            loss = rollout(problem.x0, problem.steps, p).costs.mean()
        return loss.detach(), list(torch.autograd.grad(loss, parameters))

    return call


def with_loop(_: str, problem: Problem) -> Callable[[], Gradient]:
    """The loop as one writes it."""
    env, policy, parameters = problem.env, problem.policy, problem.parameters()
    p = env.params(problem.x0)

    def call() -> Gradient:
        x, costs = problem.x0, []
        for _ in range(problem.steps):
            x, cost = env.step(x, policy(env.observe(x)), p)
            costs.append(cost)
        loss = torch.stack(costs).mean()
        return loss.detach(), list(torch.autograd.grad(loss, parameters))

    return call


# Measuring ----------------------------------------------------------------------------------------


def agrees(env_name: str, contestant: str, device: torch.device) -> dict[str, float]:
    """Loss and gradient over a few intervals against the plain loop on the CPU."""
    expected_loss, expected = with_loop("", Problem.make(env_name, 8, 10, torch.device("cpu")))()
    run_it = make_ready(contestant, Problem.make(env_name, 8, 10, device))
    run_it()  # what a first call leaves behind must not show in the second
    loss, gradient = run_it()
    errors = [relative_error(loss, expected_loss), *map(relative_error, gradient, expected)]
    assert max(errors) < 1e-3, f"loss or gradient differ by {max(errors):.1e} (relative)"
    return {"largest error": max(errors)}


def timed(env_name: str, contestant: str, batch: int, sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """Median seconds of a call after one that is not counted, at the longest horizon that fits into memory."""
    steps = sizes.steps
    for _ in range(HALVINGS):
        try:
            return _timed(env_name, contestant, batch, steps, sizes.repeats, device)
        except torch.OutOfMemoryError:
            pass  # left first: the exception's frames hold the tensors
        torch.cuda.empty_cache()
        steps //= 2
    return {"batch": batch, "steps": steps, "out of memory": True}


def _timed(
    env_name: str, contestant: str, batch: int, steps: int, repeats: int, device: torch.device
) -> dict[str, Any]:
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    problem = Problem.make(env_name, batch, steps, device)
    begun = time.perf_counter()
    run_it = make_ready(contestant, problem)
    run_it()
    _wait(device)
    first = time.perf_counter() - begun
    seconds = []
    for _ in range(repeats if first < 5.0 or contestant in ("inductor", "cuda_graph", "cuda_native") else 1):
        begun = time.perf_counter()
        loss, _ = run_it()
        _wait(device)
        seconds.append(time.perf_counter() - begun)
    median = statistics.median(seconds)
    return {
        "batch": batch,
        "steps": steps,
        "steps per second": batch * steps / median,
        "seconds of a call": seconds,
        "seconds of the first call": first,
        "loss": float(loss),
        **({"peak memory in bytes": torch.cuda.max_memory_allocated(device)} if cuda else {}),
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def inductor(env_name: str, batch: int, sizes: Sizes, device: torch.device, quick: bool) -> dict[str, Any]:
    """Compiled steps; a batch size is compiled anew."""
    if quick:
        raise SkippedError("compiling takes half a minute, which --quick leaves out")
    return timed(env_name, "inductor", batch, sizes, device)


# JAX, in a process of its own ---------------------------------------------------------------------


def jax_cases(report: Report, env_name: str, sizes: Sizes, device: torch.device, quick: bool) -> None:
    """The cases of JAX, as far as its process came."""
    # What can be compared soonest comes first, for each takes seconds to compile.
    batches = sorted(sizes.batches, key=lambda b: (b not in sizes.batches[1:3], b))
    names = [(contestant, batch) for batch in batches for contestant in ("jax", "jax best")]
    if quick:  # its compiler takes longer than all the rest
        names = names[:1] if env_name == ENVS[0] else []
    if importlib.util.find_spec("jax") is None:
        for contestant, batch in names:
            report.keep(f"{env_name} {contestant} {batch}", {"state": "skipped: JAX is not installed"})
        return
    if device.type == "cuda":
        torch.cuda.empty_cache()
    limit = report.left
    if not quick:  # other cases come after these
        limit = min(limit, max(0.45 * report.left, JAX_CASE))
    with tempfile.TemporaryDirectory() as scratch:
        job, out = Path(scratch, "job.json"), Path(scratch, "result.json")
        work = {"env": env_name, "cases": names, "steps": sizes.steps, "repeats": sizes.repeats}
        job.write_text(json.dumps({**work, "cuda": device.type == "cuda", "seconds": limit}))
        environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        script = Path(__file__).resolve().parents[1] / "gpu.py"
        command = [sys.executable, str(script), "--worker", "speed", str(job), str(out)]
        error = "JAX's process ended without a result"
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=limit + 15.0, check=False
            )
            error += "".join(f": {line}" for line in done.stderr.strip().splitlines()[-1:])
        except subprocess.TimeoutExpired:
            error = OUT_OF_TIME
        found = json.loads(out.read_text()) if out.exists() else {}
    for contestant, batch in names:
        lost = {"state": error} if error == OUT_OF_TIME else {"state": "failed", "error": error}
        report.keep(f"{env_name} {contestant} {batch}", found.get(f"{contestant} {batch}", lost))


def worker(given: str, wanted: str) -> None:
    """What JAX's process does: case by case, written after each."""
    job, out = Path(given), Path(wanted)
    work = json.loads(job.read_text())
    deadline = time.monotonic() + work["seconds"]
    import jax

    jax.config.update("jax_default_matmul_precision", "highest")
    if work["cuda"] and jax.default_backend() == "cpu":
        cases = {f"{c} {b}": {"state": "skipped: this JAX has no CUDA"} for c, b in work["cases"]}
        out.write_text(json.dumps(cases))
        return
    found: dict[str, Any] = {}
    for contestant, batch in work["cases"]:
        begun = time.monotonic()
        if deadline - begun < (JAX_CASE if work["cuda"] else 0.0):
            found[f"{contestant} {batch}"] = {"state": OUT_OF_TIME}
        else:
            try:
                row = {"state": "passed", **_jax_timed(work, contestant, batch)}
            except Exception as error:
                row = {"state": "failed", "error": f"{type(error).__name__}: {error}"[:500]}
            found[f"{contestant} {batch}"] = {**row, "seconds": time.monotonic() - begun}
        part = out.with_suffix(".part")
        part.write_text(json.dumps(found))
        part.replace(out)


def _jax_timed(work: Mapping[str, Any], contestant: str, batch: int) -> dict[str, Any]:
    import jax

    build: Any = with_jax if contestant == "jax" else with_jax_best
    options = {} if contestant == "jax" else {"own_sincos": False, "width": None}
    policy = make_policy(make_env(work["env"]))
    steps = work["steps"]
    for _ in range(HALVINGS):
        x0 = make_env(work["env"]).reset(batch, torch.Generator().manual_seed(0))
        try:
            begun = time.perf_counter()
            run_it = build(work["env"], policy, x0, steps, **options)
            run_it()
            first = time.perf_counter() - begun
            seconds = []
            for _ in range(work["repeats"]):
                begun = time.perf_counter()
                loss, gradient = run_it()
                seconds.append(time.perf_counter() - begun)
        except Exception as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            steps //= 2
            continue
        assert all(np.isfinite(part).all() for part in (loss, *gradient)), "loss or gradient not finite"
        return {
            "batch": batch,
            "steps": steps,
            "steps per second": batch * steps / statistics.median(seconds),
            "seconds of a call": seconds,
            "seconds of the first call": first,
            "loss": loss,
            "device": str(jax.devices()[0].device_kind),
        }
    return {"batch": batch, "steps": steps, "out of memory": True}
