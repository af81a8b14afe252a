"""HalfCheetah-v5 as a kernel: agreement with the CPU, and speed beside MJX.

Both compute the gradient of the mean cost by the parameters of an MLP policy (64-64 tanh, tanh squash) in closed loop,
float32, from states near the task's initial one, see ``robot_peers.py``.
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from robot_peers import ROBOT, make_policy, mjx_gradient

from diffsim.rollouts import Rollout
from diffsim.rollouts.cuda_native import CudaNative
from gpu_parts.report import Report, SkippedError, agree
from gpu_parts.rollouts import computed, nothing_said

CPU = torch.device("cpu")
BATCHES = (256, 1_000, 4_000, 16_000, 64_000)
STEPS = 50
MJX_BATCH, MJX_STEPS = 4_000, 8


def run(report: Report, device: torch.device, quick: bool) -> None:
    """Every case of the part; MJX compiles for minutes, beside the others, and is timed alone."""
    if importlib.util.find_spec("mujoco") is None:
        report.keep("half_cheetah", {"state": "skipped: MuJoCo is not installed"})
        return
    if device.type != "cuda":
        CudaNative.devices = ("cuda", "cpu")
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 2e-3)):
        label = str(dtype).removeprefix("torch.")
        report.case(f"half_cheetah cuda_native {label}", lambda d=dtype, e=tolerance: agrees(d, device, e))
    for batch in BATCHES[:1] if quick else BATCHES:
        steps = 2 if quick else STEPS
        report.case(
            f"half_cheetah cuda_native {batch}", lambda b=batch, s=steps: timed(b, s, device), needs=5.0
        )
    if device.type == "cuda":
        torch.cuda.empty_cache()
    report.case(f"half_cheetah mjx {MJX_BATCH}", lambda: mjx(report.left))
    report.case("half_cheetah cuda_native float64", lambda: agrees(torch.float64, device, 1e-9), needs=25.0)


def agrees(dtype: torch.dtype, device: torch.device, tolerance: float) -> dict[str, float]:
    """Values and gradients of short rollouts against the CPU's kernel."""
    with nothing_said():
        found = computed(ROBOT, "cuda_native", dtype, device)
    return agree(found, computed(ROBOT, "native", dtype, CPU), tolerance)


def timed(batch: int, steps: int, device: torch.device) -> dict[str, Any]:
    """Median seconds of a rollout with its gradient, after one that is not counted."""
    policy, env = make_policy()
    policy = policy.to(device)
    x0 = env.reset(batch, torch.Generator().manual_seed(0)).to(device)
    rollout, parameters = Rollout(env, policy, backend="cuda_native"), list(policy.parameters())

    def call() -> None:
        with nothing_said():
            loss = rollout(x0, steps).costs.mean()
        torch.autograd.grad(loss, parameters)[0].sum().item()  # waits

    call()
    seconds = []
    for _ in range(3):
        begun = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begun)
    return {
        "batch": batch,
        "steps": steps,
        "steps per second": batch * steps / statistics.median(seconds),
        "seconds of a call": seconds,
    }


# MJX, in a process of its own -----------------------------------------------------------------------


_begun: list[tuple[subprocess.Popen[str], tempfile.TemporaryDirectory[str]]] = []


def begin() -> None:
    """Start MJX's process, if MJX and JAX are here: it compiles now, and times when it is told to."""
    if any(importlib.util.find_spec(name) is None for name in ("jax", "mujoco")):
        return
    folder = tempfile.TemporaryDirectory()
    script = Path(__file__).resolve().parents[1] / "gpu.py"
    command = [sys.executable, str(script), "--worker", "robots", folder.name, str(os.getpid())]
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    process = subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    _begun.append((process, folder))
    atexit.register(process.kill)  # where no time was left to ask for its result


def mjx(seconds: float) -> dict[str, Any]:
    """What MJX's process measures, if it has compiled within ``seconds`` from now on."""
    if not _begun:
        raise SkippedError("needs mujoco-mjx and JAX")
    process, folder = _begun.pop()
    with folder:
        Path(folder.name, "go").touch()
        try:
            _, said = process.communicate(timeout=max(seconds, 1.0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise SkippedError("MJX had not compiled in time") from None
        out = Path(folder.name, "result.json")
        if not out.exists():
            raise RuntimeError(f"MJX's process failed: {''.join(said.strip().splitlines()[-1:])}")
        found: dict[str, Any] = json.loads(out.read_text())
        return found


def worker(scratch: str, parent: str) -> None:
    """What MJX's process does."""
    import jax

    folder = Path(scratch)
    run_it, compiling = mjx_gradient(MJX_BATCH, MJX_STEPS)
    while not (folder / "go").exists():
        if os.getppid() != int(parent):
            return  # nobody will ask any more
        time.sleep(0.05)
    run_it()
    seconds = []
    for _ in range(3):
        begun = time.perf_counter()
        value, gradient = run_it()
        seconds.append(time.perf_counter() - begun)
    result = {
        "batch": MJX_BATCH,
        "steps": MJX_STEPS,
        "steps per second": MJX_BATCH * MJX_STEPS / statistics.median(seconds),
        "seconds of a call": seconds,
        "seconds of compiling": compiling,
        "loss": float(value),
        "gradient is finite": all(bool(jax.numpy.isfinite(part).all()) for part in jax.tree.leaves(gradient)),
        "device": str(jax.devices()[0].device_kind),
    }
    part = folder / "result.part"
    part.write_text(json.dumps(result))
    part.replace(folder / "result.json")
