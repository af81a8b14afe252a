"""``backend="cuda_graph"``: agreement with the CPU on every simulator, and what it saves in training."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from diffsim.assembly import assemble
from diffsim.config import load_config
from gpu_parts.report import Report, SkippedError
from gpu_parts.rollouts import nothing_said, one
from gpu_parts.training import different
from robotics_envs import ENVIRONMENTS

TIMED = ("pendulum", "quadrotor")
NOT_RECORDED = ("arm7", "arm7_point")
"""torch solves with their mass matrices by MAGMA, which allocates memory on every call."""


def run(report: Report, device: torch.device, quick: bool) -> None:
    """Every case of the part."""
    names = [name for name in ENVIRONMENTS if not name.startswith("julia:")]
    for name in ("pendulum",) if quick else (*names, "examples.cartpole:CartPole"):
        report.case(f"cuda_graph {name} float64", lambda n=name: agrees(n, torch.float64, device, 1e-7))
    report.case("cuda_graph pendulum float32", lambda: agrees("pendulum", torch.float32, device, 2e-3))
    report.case("training repeats bit for bit", lambda: repeats(device))
    for name in TIMED:
        report.case(f"updates of {name}", lambda n=name: updates(n, device, quick))


def agrees(name: str, dtype: torch.dtype, device: torch.device, tolerance: float) -> dict[str, float]:
    """Values and gradients against eager on the CPU; another back end in its place is an error."""
    if device.type != "cuda":
        raise SkippedError("needs CUDA")
    if name in NOT_RECORDED:
        raise SkippedError("torch.cholesky_solve of a batch cannot be recorded; rollouts are eager")
    with nothing_said():
        return one(name, "cuda_graph", dtype, device, tolerance)


def _trained(name: str, backend: str, device: torch.device, updates: int) -> tuple[Any, list[float]]:
    """The default algorithm after some updates, and the seconds that each took."""
    config = load_config({"env": name, "device": str(device), "backend": backend})
    algorithm, seconds = assemble(config).algorithm, []
    for _ in range(updates):
        begun = time.perf_counter()
        algorithm.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - begun)
    return algorithm, seconds


def repeats(device: torch.device) -> None:
    """The same run twice gives the same bits."""
    backend = "cuda_graph" if device.type == "cuda" else "eager"
    first, second = (_trained("pendulum", backend, device, 4)[0].state_dict() for _ in range(2))
    found = different(first, second)
    assert not found, f"a repetition differs in {', '.join(found[:8])}"


def updates(name: str, device: torch.device, quick: bool) -> dict[str, Any]:
    """Seconds of an update of the default algorithm, both back ends in turn."""
    backends = ("eager", "cuda_graph") if device.type == "cuda" else ("eager",)
    found = {backend: _trained(name, backend, device, 3 if quick else 12)[1][2:] for backend in backends}
    return {f"seconds of an update, {backend}": statistics.median(s) for backend, s in found.items()}
