"""HalfCheetah-v5 as a kernel: agreement with the CPU, and speed beside MJX.

Both compute the gradient of the mean cost by the parameters of an MLP policy (64-64 tanh, tanh squash) in closed loop,
float32, from states near the task's initial one.  MJX differentiates in reverse mode with one iteration of its solver
only, and keeps every step's intermediate results unless it computes them again (``jax.checkpoint``), as here; ours
iterates to MuJoCo's accuracy.
"""

from __future__ import annotations

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

from diffsim.config import PolicyConfig
from diffsim.policy import make_policy
from diffsim.rollouts import Rollout
from diffsim.rollouts.cuda_native import CudaNative
from gpu_parts.report import Report, SkippedError, agree
from gpu_parts.rollouts import computed, nothing_said
from robotics_envs import ENVIRONMENTS

CPU = torch.device("cpu")
ROBOT = "gym:HalfCheetah-v5"
BATCHES = (256, 1_000, 4_000, 16_000, 64_000)
STEPS = 50
MJX = {"batch": 4_000, "steps": 8, "repeats": 3, "hidden": 64}


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
    report.case(f"half_cheetah mjx {MJX['batch']}", lambda: mjx(report.left))


def agrees(dtype: torch.dtype, device: torch.device, tolerance: float) -> dict[str, float]:
    """Values and gradients of short rollouts against the CPU's kernel."""
    with nothing_said():
        found = computed(ROBOT, "cuda_native", dtype, device)
    return agree(found, computed(ROBOT, "native", dtype, CPU), tolerance)


def timed(batch: int, steps: int, device: torch.device) -> dict[str, Any]:
    """Median seconds of a rollout with its gradient, after one that is not counted."""
    env = ENVIRONMENTS.load(ROBOT)()
    policy = make_policy(PolicyConfig(), env, 0, CPU, torch.float32).to(device)
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
    command = [sys.executable, str(script), "--worker", "robots", folder.name]
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    process = subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    _begun.append((process, folder))


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


def worker(scratch: str) -> None:
    """What MJX's process does."""
    folder = Path(scratch)
    import jax
    import jax.numpy as jnp
    import mujoco
    import numpy as np
    from mujoco import mjx

    jax.config.update("jax_default_matmul_precision", "highest")
    env = ENVIRONMENTS.load(ROBOT)()
    model = mujoco.MjModel.from_xml_path(str(env.model.source))
    model.opt.iterations = 1  # no more can be differentiated
    given = mjx.put_model(model)
    intervals = round(env.dt / model.opt.timestep)
    policy = make_policy(PolicyConfig(hidden=(MJX["hidden"],) * 2), env, 0, CPU, torch.float32)
    network = [(layer.weight, layer.bias) for layer in policy.network if hasattr(layer, "weight")]
    weights = [tuple(jnp.asarray(q.detach().numpy()) for q in pair) for pair in network]

    def act(weights: Any, z: Any) -> Any:
        *hidden, last = weights
        for w, b in hidden:
            z = jnp.tanh(w @ z + b)
        return jnp.tanh(last[0] @ z + last[1])

    @jax.checkpoint
    def interval(weights: Any, data: Any) -> tuple[Any, Any]:
        u = act(weights, jnp.concatenate([data.qpos[1:], data.qvel]))
        before = data.qpos[0]
        data = data.replace(ctrl=u)
        data, _ = jax.lax.scan(lambda d, _: (mjx.step(given, d), None), data, length=intervals)
        return data, 0.1 * jnp.sum(u**2) - (data.qpos[0] - before) / env.dt

    def cost(weights: Any, q: Any, v: Any) -> Any:
        data = mjx.make_data(given).replace(qpos=q, qvel=v)
        _, costs = jax.lax.scan(lambda data, _: interval(weights, data), data, length=MJX["steps"])
        return costs.mean()

    def loss(weights: Any, q: Any, v: Any) -> Any:
        return jax.vmap(cost, (None, 0, 0))(weights, q, v).mean()

    draw = np.random.default_rng(0)
    q = jnp.asarray(model.qpos0 + 0.1 * draw.uniform(-1, 1, (MJX["batch"], model.nq)), jnp.float32)
    v = jnp.asarray(0.1 * draw.standard_normal((MJX["batch"], model.nv)), jnp.float32)
    begun = time.perf_counter()
    run_it = jax.jit(jax.value_and_grad(loss)).lower(weights, q, v).compile()
    compiled = time.perf_counter() - begun
    while not (folder / "go").exists():
        time.sleep(0.05)
    jax.block_until_ready(run_it(weights, q, v))
    seconds = []
    for _ in range(MJX["repeats"]):
        begun = time.perf_counter()
        value, gradient = jax.block_until_ready(run_it(weights, q, v))
        seconds.append(time.perf_counter() - begun)
    finite = all(bool(jnp.isfinite(part).all()) for part in jax.tree.leaves(gradient))
    result = {
        "batch": MJX["batch"],
        "steps": MJX["steps"],
        "steps per second": MJX["batch"] * MJX["steps"] / statistics.median(seconds),
        "seconds of a call": seconds,
        "seconds of compiling": compiled,
        "loss": float(value),
        "gradient is finite": finite,
        "mujoco": mujoco.__version__,
        "device": str(jax.devices()[0].device_kind),
    }
    part = folder / "result.part"
    part.write_text(json.dumps(result))
    part.replace(folder / "result.json")
