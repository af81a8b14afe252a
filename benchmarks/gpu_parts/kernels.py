"""``backend="cuda_native"``: conformance of the CUDA kernels.  A CPU executes their threads in turn, for a test."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

import torch
from torch import Tensor, nn

from diffsim.rollouts import Noise, Rollout
from diffsim.rollouts.cuda_native import CudaNative, written
from gpu_parts.report import Report, SkippedError, agree
from gpu_parts.rollouts import computed, make, nothing_said, physical, population
from robotics_envs.base import Box, Env
from solvers.compiler.trace import NativeUnsupportedError
from solvers.cuda import nvrtc

CPU = torch.device("cpu")
CARTPOLE = "examples.cartpole:CartPole"
CASES: tuple[tuple[str, torch.dtype, float], ...] = (
    (CARTPOLE, torch.float32, 1e-4),
    (CARTPOLE, torch.float64, 1e-10),
    ("pendulum", torch.float64, 1e-10),
    ("quadrotor", torch.float32, 1e-4),
    ("quadrotor", torch.float64, 1e-10),
    ("satellite", torch.float64, 1e-9),
    ("arm7_point", torch.float64, 1e-9),
    ("trebuchet", torch.float64, 1e-9),
    ("double_pendulum", torch.float64, 1e-9),
    ("hopper", torch.float64, 1e-9),
)
LIGHT = 5
"""So many of them compile within seconds; the others, half a minute each, come last."""
SIZES = (1, 63, 64, 1000)
STEPS = 6


def run(report: Report, device: torch.device, quick: bool) -> None:
    """Every case of the part; what is compiled for them is compiled beside each other first."""
    if device.type != "cuda":
        CudaNative.devices = ("cuda", "cpu")
    cases = CASES[2:3] if quick else CASES
    jobs = compiling(cases, device) if device.type == "cuda" else {}

    def case(name: str, dtype: torch.dtype, tolerance: float) -> None:
        report.case(
            f"cuda_native {name} {str(dtype).removeprefix('torch.')}",
            lambda: {**compiled(jobs, (name, dtype), report.left), **agrees(name, dtype, device, tolerance)},
            needs=2.0,
        )

    for one in cases[:LIGHT]:
        case(*one)
    first = cases[0]
    report.case("sizes", lambda: sizes(*first, device))
    report.case("repeats bit for bit", lambda: repeats(first[0], first[1], device))
    report.case("noise, bit for bit", lambda: noise(device))
    report.case("population", lambda: populations(device))
    report.case("no waiting", lambda: no_waiting(first[0], first[1], device))
    for one in cases[LIGHT:]:
        case(*one)


Job = Future[float]


def compiling(
    cases: tuple[tuple[str, torch.dtype, float], ...], device: torch.device
) -> dict[tuple[str, torch.dtype], Job]:
    """All kernels, traced here and compiled at once, by a thread each."""
    major, minor = torch.cuda.get_device_capability(device)
    pool = ThreadPoolExecutor(len(cases))

    def one(source: str) -> float:
        begun = time.monotonic()
        nvrtc.cached(source, f"sm_{major}{minor}")
        return time.monotonic() - begun

    jobs = {}
    for name, dtype, _ in cases:
        env, policy, x0 = make(name, device, dtype)
        inputs = Rollout(env, policy)._inputs(
            x0.requires_grad_(), STEPS, physical(env, x0), Noise(5, 0.1), None, None
        )
        with contextlib.suppress(NativeUnsupportedError):  # its case will say it
            jobs[name, dtype] = pool.submit(one, written(inputs, gradient=True)[2])
    pool.shutdown(wait=False)
    return jobs


def compiled(
    jobs: dict[tuple[str, torch.dtype], Job], key: tuple[str, torch.dtype], seconds: float
) -> dict[str, float]:
    """Waits for a kernel, so many seconds at most."""
    if key not in jobs:
        return {}
    try:
        return {"seconds of NVRTC": jobs[key].result(timeout=max(seconds, 0.0))}
    except FutureTimeoutError:
        raise SkippedError("was not compiled in time") from None


def agrees(name: str, dtype: torch.dtype, device: torch.device, tolerance: float) -> dict[str, float]:
    """Values and gradients against eager on the CPU; another back end in its place is an error."""
    with nothing_said():
        found = computed(name, "cuda_native", dtype, device)
    return agree(found, computed(name, "eager", dtype, CPU), tolerance)


def _gradients(name: str, dtype: torch.dtype, device: torch.device, batch: int) -> Callable[[], list[Tensor]]:
    """A call with a gradient by the policy, with a back end that is prepared at the first one."""
    env, policy, _ = make(name, device, dtype)
    x0 = env.reset(batch, torch.Generator().manual_seed(2), torch.float64).to(device, dtype)
    backend = "cuda_native"
    rollout, p = Rollout(env, policy, backend=backend), physical(env, x0)

    def call() -> list[Tensor]:
        trajectory = rollout(x0, STEPS, p, noise=Noise(5, 0.1))
        loss = trajectory.costs.sum(0).mean() + 1e-3 * trajectory.last.square().mean()
        return [trajectory.costs.detach(), *torch.autograd.grad(loss, list(policy.parameters()))]

    return call


def sizes(name: str, dtype: torch.dtype, tolerance: float, device: torch.device) -> dict[str, float]:
    """Batches that fill their last block and that do not, against eager on the same device."""
    worst: dict[str, float] = {}
    for batch in SIZES:
        with nothing_said():
            got = _gradients(name, dtype, device, batch)()
        env, policy, _ = make(name, device, dtype)
        x0 = env.reset(batch, torch.Generator().manual_seed(2), torch.float64).to(device, dtype)
        trajectory = Rollout(env, policy, backend="eager")(x0, STEPS, physical(env, x0), noise=Noise(5, 0.1))
        loss = trajectory.costs.sum(0).mean() + 1e-3 * trajectory.last.square().mean()
        right = [trajectory.costs.detach(), *torch.autograd.grad(loss, list(policy.parameters()))]
        pairs = ({str(k): q for k, q in enumerate(found)} for found in (got, right))
        worst[str(batch)] = max(agree(*pairs, max(tolerance, 1e-9)).values())
    return worst


def repeats(name: str, dtype: torch.dtype, device: torch.device) -> None:
    """The same call twice gives the same bits, over as many blocks as run at once and more."""
    call = _gradients(name, dtype, device, 50_000 if device.type == "cuda" else 300)
    first, second = call(), call()
    different = sum(not torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not different, f"{different} of {len(first)} tensors differ"


class _Echo(Env):
    """The next state is the action."""

    name = "echo"
    state_names = observation_names = tuple("abcdef")
    action_box = Box.symmetric(*[9.0] * 6)
    start_box = state_box = Box.symmetric(*[1.0] * 6)
    dt = 0.1
    episode_steps = 10

    def dynamics(self, t: Any, x: Tensor, u: Tensor, p: Any) -> Tensor:
        return u

    def step(self, x: Tensor, u: Tensor, p: Any) -> tuple[Tensor, Tensor]:
        return u, u[:, 0]

    def cost(self, x: Tensor, u: Tensor, p: Any) -> Tensor:
        return u[:, 0]


class _Pass(nn.Module):
    def forward(self, observation: Tensor, noise: Tensor) -> Tensor:
        return noise


def noise(device: torch.device) -> None:
    """What the kernels draw is what torch draws on the CPU."""
    for dtype in (torch.float32, torch.float64):
        given = Noise(2**63 + 11, start=2**31)
        with nothing_said():
            kernels = Rollout(_Echo(), _Pass(), backend="cuda_native")
            found = kernels(torch.zeros(500, 6, dtype=dtype, device=device), 9, noise=given).states
        right = Rollout(_Echo(), _Pass(), backend="eager")(
            torch.zeros(500, 6, dtype=dtype), 9, noise=given
        ).states
        assert found is not None
        assert right is not None
        wrong = int((found.cpu() != right).sum())
        assert not wrong, f"{wrong} of {right.numel()} numbers differ in {dtype}"


def populations(device: torch.device) -> dict[str, float]:
    """Three policies at once against eager on the CPU."""
    with nothing_said():
        found = population(device, "cuda_native")
    return agree(found, population(CPU, "eager"), 1e-9)


def no_waiting(name: str, dtype: torch.dtype, device: torch.device) -> None:
    """Once it is prepared, a call and its gradient wait for the device nowhere."""
    if device.type != "cuda":
        raise SkippedError("needs CUDA")
    call = _gradients(name, dtype, device, 64)
    call()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    finally:
        torch.cuda.set_sync_debug_mode(before)
