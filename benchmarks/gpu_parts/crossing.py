"""From which number of rollouts on a card pays: rollouts and their gradients beside two cores of the same machine.

Every simulator is compiled for both, ``cuda_native`` and ``native``, and the gradient of the mean cost by the
parameters of a policy (64-64 tanh) is timed over 32 control intervals, float32.  A CPU's time grows in proportion to
the number of rollouts; a card's does not until it is full.  The crossing point is where both take equally long, by
linear interpolation of the card's seconds.  Updates of the default algorithm are timed at 256 windows.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffsim.assembly import assemble
from diffsim.config import PolicyConfig, load_config
from diffsim.policy import make_policy
from diffsim.rollouts import Rollout
from diffsim.rollouts.cuda_native import CudaNative, written
from gpu_parts.report import Report
from gpu_parts.rollouts import nothing_said
from robotics_envs import ENVIRONMENTS
from solvers.cuda import nvrtc

CPU = torch.device("cpu")
SIMULATORS = (
    "pendulum", "cartpole_swingup", "acrobot", "quadrotor", "rocket_landing", "glider", "tug", "trebuchet",
    "gym:HalfCheetah-v5",
)  # fmt: skip
UPDATES = ("pendulum", "quadrotor")
BATCHES = (256, 1_024, 4_096, 16_384, 65_536)
STEPS = 32
CORES = 2


def run(report: Report, device: torch.device, quick: bool) -> None:
    """Every case of the part."""
    if device.type != "cuda":
        CudaNative.devices = ("cuda", "cpu")
    names = SIMULATORS[:1] if quick else SIMULATORS
    for name in names:
        report.case(f"crossing {name}", lambda n=name: crossing(n, device, quick), needs=5.0)
    for name in UPDATES[:1] if quick else UPDATES:
        for place in (device, CPU):
            report.case(f"update {name} {place.type}", lambda n=name, d=place: update(n, d, quick), needs=5.0)


def begin() -> None:
    """Compile what the part needs beside other parts, in a process for each simulator."""
    major, minor = torch.cuda.get_device_capability()
    script = Path(__file__).resolve().parents[1] / "gpu.py"
    for name in SIMULATORS:
        command = [sys.executable, str(script), "--worker", "crossing", name, f"sm_{major}{minor}"]
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def worker(name: str, arch: str) -> None:
    """What such a process does: it leaves both kernels in the cache."""
    os.nice(10)
    torch.set_num_threads(1)
    rollout, x0 = _rollout(name, 8, CPU, "native")
    source = written(rollout._inputs(x0, STEPS, None, None, None, None), gradient=True)[2]
    nvrtc.cached(source, arch)
    gradient_of(name, 8, CPU, "native", 2)()


def _rollout(
    name: str, batch: int, device: torch.device, backend: str, threads: int = 1
) -> tuple[Rollout, Tensor]:
    env = ENVIRONMENTS.load(name)()
    policy = make_policy(PolicyConfig(), env, 0, CPU, torch.float32).to(device)
    x0 = env.reset(batch, torch.Generator().manual_seed(0)).to(device)
    return Rollout(env, policy, backend=backend, threads=threads), x0


def gradient_of(name: str, batch: int, device: torch.device, backend: str, steps: int) -> Callable[[], None]:
    """What is timed; it waits for the device."""
    rollout, x0 = _rollout(name, batch, device, backend, CORES)
    parameters: list[Tensor] = list(rollout.policy.parameters())  # type: ignore[union-attr]

    def call() -> None:
        with nothing_said():
            loss = rollout(x0, steps).costs.mean()
        torch.autograd.grad(loss, parameters)[0].sum().item()

    return call


def seconds_of(call: Callable[[], Any], repeats: int = 5) -> float:
    """The median, after a call that is not counted."""
    call()
    found = []
    for _ in range(repeats):
        begun = time.perf_counter()
        call()
        found.append(time.perf_counter() - begun)
    return statistics.median(found)


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads of torch on the CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def crossing(name: str, device: torch.device, quick: bool) -> dict[str, Any]:
    """Seconds of both by the number of rollouts, and where they cross."""
    batches, steps = (BATCHES[:2], 2) if quick else (BATCHES, STEPS)
    with threads(CORES):
        cpu = {b: seconds_of(gradient_of(name, b, CPU, "native", steps)) for b in batches[:3]}
    card = {b: seconds_of(gradient_of(name, b, device, "cuda_native", steps)) for b in batches}
    largest = max(cpu)
    return {
        "steps": steps,
        "seconds on the CPU": cpu,
        "seconds on the card": card,
        "crossing": crossing_point(card, cpu[largest] / largest),
        "steps per second, CPU": largest * steps / cpu[largest],
        "steps per second, card": max(b * steps / s for b, s in card.items()),
    }


def crossing_point(card: dict[int, float], each: float) -> float | None:
    """The number of rollouts that take the card as long as a CPU that needs ``each`` seconds for one; None: no such."""
    before = (0, next(iter(card.values())))
    for batch, seconds in card.items():
        if seconds <= batch * each:
            (b0, s0), slope = before, (seconds - before[1]) / (batch - before[0])
            return round((s0 - slope * b0) / (each - slope))
        before = (batch, seconds)
    return None


def update(name: str, device: torch.device, quick: bool) -> dict[str, Any]:
    """Seconds of an update of the default algorithm, after some that are not counted."""
    config = load_config({"env": name, "device": str(device), "updates": 400, "threads": CORES})
    algorithm = assemble(config).algorithm
    repeats = 2 if quick else 30

    def step() -> None:
        algorithm.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    with threads(CORES if device.type == "cpu" else 1):
        for _ in range(repeats // 2):
            algorithm.step()
        return {"seconds of an update": seconds_of(step, repeats)}
