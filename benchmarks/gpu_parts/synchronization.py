"""Where the host waits for the device: never inside a loop over control intervals, and where else.

CUDA's sync debug mode tells of every operation that waits.  In the loops of :class:`Rollout` there must be none.  Of
solves and of training steps the waits are counted at one length and at twice that length: those that the loop itself
makes are the difference.  On the CPU the same programs run, and there is nothing to count.
"""

from __future__ import annotations

import contextlib
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffsim.assembly import assemble
from diffsim.config import load_config
from diffsim.rollouts import Noise, Rollout
from gpu_parts.report import Report, SkippedError
from gpu_parts.rollouts import COMPILING, make, nothing_said
from robotics_envs import ENVIRONMENTS
from solvers import solve

ROOT = Path(__file__).resolve().parents[2]
PROMISED = ("rk4", "tsit5 with dt", "yoshida4", "rkc")
"""Solves of fixed explicit steps: nothing is asked between two steps."""


def run(report: Report, device: torch.device, quick: bool) -> None:
    """Every case of the part."""
    names = [name for name in ENVIRONMENTS if not name.startswith("julia:")]
    report.case("Rollout cuda_graph pendulum", lambda: rollout("pendulum", "cuda_graph", device))
    for name in ("pendulum", "hopper") if quick else (*names, "examples.cartpole:CartPole"):
        report.case(f"Rollout eager {name}", lambda n=name: rollout(n, "eager", device))
    for method in PROMISED:
        report.case(f"solve {method}", lambda m=method: solves(m, device, promised=True))
    for algorithm in ("full_horizon", "value_gradient"):
        report.case(f"step of {algorithm}", lambda a=algorithm: training(a, device))
    for method in ("backward_euler", "rodas5p with dt", "tsit5"):
        report.case(f"solve {method} (counted)", lambda m=method: solves(m, device, promised=False))
    report.case(
        "Rollout inductor pendulum", lambda: inductor(device, quick), needs=0.0 if quick else COMPILING
    )


@contextlib.contextmanager
def told_of_waits(device: torch.device) -> Iterator[Counter[str]]:
    """Counts the waits inside by the line of the project that made them."""
    waits: Counter[str] = Counter()
    if device.type != "cuda":
        yield waits
        return

    def note(message: Any, *_: Any, **__: Any) -> None:
        # torch also warns that the mode is a prototype, which mentions synchronizing operations.
        if "called a synchronizing" in str(message):
            waits[_line()] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.synchronize(device)
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield waits
        finally:
            torch.cuda.set_sync_debug_mode(before)


def _line() -> str:
    """The innermost line of the project on the stack, this file left out."""
    for frame in reversed(traceback.extract_stack()):
        file = Path(frame.filename)
        if file.is_relative_to(ROOT) and file != Path(__file__):
            return f"{file.relative_to(ROOT)}:{frame.lineno}"
    return "outside of the project"


@contextlib.contextmanager
def forbidden_to_wait(device: torch.device) -> Iterator[None]:
    """An operation that waits raises inside."""
    if device.type != "cuda":
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def rollout(name: str, backend: str, device: torch.device) -> dict[str, Any]:
    """Forward and backward of a whole rollout, with noise made on the way, wait for nothing."""
    env, policy, x0 = make(name, device, torch.float32)
    p = env.params(x0)
    simulate = Rollout(env, policy, backend=backend)
    parameters = list(policy.parameters())

    def both() -> None:
        trajectory = simulate(x0, 3, p, noise=Noise(1, 0.1))
        torch.autograd.grad(trajectory.costs.sum(), parameters)

    both()  # constants are put on the device once, and compilers compile
    with told_of_waits(device) as waits:
        both()
    assert not waits, f"waits for the device at {_listed(waits)}"
    with forbidden_to_wait(device):
        both()
    return _found(device)


def inductor(device: torch.device, quick: bool) -> dict[str, Any]:
    """The same of compiled steps."""
    if quick:
        raise SkippedError("compiling takes half a minute, which --quick leaves out")
    with nothing_said():
        return rollout("pendulum", "inductor", device)


def solves(what: str, device: torch.device, promised: bool) -> dict[str, Any]:
    """Waits of a solve with its gradient, and of one with twice as many steps."""
    method, _, fixed = what.partition(" with ")
    x0 = torch.tensor([[1.0, 0.0], [0.5, 0.2]], dtype=torch.float64, device=device, requires_grad=True)

    def count(steps: int) -> Counter[str]:
        adaptive = method == "tsit5" and not fixed
        options: dict[str, Any] = {"rtol": 1e-8 / steps**5} if adaptive else {"dt": 1.0 / steps}

        def both() -> None:
            xs = solve(_oscillator, x0, [0.0, 1.0], solver=method, **options).xs
            torch.autograd.grad(xs.sum(), x0)

        both()
        with told_of_waits(device) as waits:
            both()
        return waits

    return _difference(count, 8, 16, promised, device)


def _oscillator(t: Any, x: Tensor, u: Any, p: Any) -> Tensor:
    return torch.stack((x[..., 1], -x[..., 0]), -1)


def training(algorithm: str, device: torch.device) -> dict[str, Any]:
    """Waits of one update, and of one over twice the horizon."""

    def count(steps: int) -> Counter[str]:
        key = "horizon" if algorithm == "full_horizon" else "window"
        config = load_config(
            {
                "env": "pendulum",
                "device": str(device),
                "backend": "eager",
                "algorithm": {"name": algorithm, key: steps, "batch": 16},
            }
        )
        trained = assemble(config).algorithm
        for _ in range(2):  # the second has a fitted critic
            trained.step()
        with told_of_waits(device) as waits:
            trained.step()
        return waits

    return _difference(count, 4, 8, True, device)


def _difference(
    count: Callable[[int], Counter[str]], short: int, long: int, promised: bool, device: torch.device
) -> dict[str, Any]:
    few, many = count(short), count(long)
    more = many - few
    assert not (promised and more), f"the loop waits for the device at {_listed(more)}"
    waits = {"waits": _listed(few) or "none", "waits inside the loop": _listed(more) or "none"}
    return {**_found(device), **(waits if device.type == "cuda" else {})}


def _listed(waits: Counter[str]) -> str:
    return ", ".join(f"{where} ({count})" for where, count in waits.most_common(12))


def _found(device: torch.device) -> dict[str, str]:
    return {} if device.type == "cuda" else {"note": "run, not counted: counting needs CUDA"}
