"""Training on a device: simulators, optimizers, checkpoints from device to device, resuming bit for bit."""

from __future__ import annotations

import importlib.util
import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from diffsim import evaluate, load_policy, state_tree, train
from diffsim.assembly import assemble
from diffsim.config import load_config
from diffsim.errors import ConfigError
from diffsim.optimizers import Objective, make_optimizer
from gpu_parts.report import Report, SkippedError, agree

SIMULATORS = ("pendulum", "cartpole_swingup", "reacher", "quadrotor_planar")
OPTIMIZERS = ("adam", "adagrad", "sgd", "lbfgs", "lbfgsb", "cma_es", "openai_es")
RESUMED = (
    ("value_gradient", "adam"), ("value_gradient", "cma_es"), ("short_window", "adam"), ("full_horizon", "lbfgs"),
    ("full_horizon", "adagrad"),
)  # fmt: skip


def run(report: Report, device: torch.device, quick: bool) -> None:
    """Every case of the part."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for algorithm, optimizer in RESUMED[:1] if quick else RESUMED:
            report.case(
                f"resume {algorithm} {optimizer}, bit for bit",
                lambda a=algorithm, o=optimizer: resumed(a, o, device),
            )
        for name in ("pendulum", "reacher") if quick else SIMULATORS:
            report.case(f"train {name}", lambda n=name: simulator(n, folder / n, device, quick))
        for name in ("adam", "lbfgs", "cma_es") if quick else OPTIMIZERS:
            report.case(f"optimizer {name}", lambda n=name: optimizer_run(n, folder / n, device))
        report.case(
            "gradient of alpha order",
            lambda: short_run(
                folder / "alpha", device, optimizer={"name": "adam", "gradient": "alpha_order"}
            ),
        )
        report.case("policy from device to CPU", lambda: policy_moves(folder / "to_cpu", device, "cpu"))
        report.case(
            "policy from CPU to device",
            lambda: policy_moves(folder / "back", torch.device("cpu"), str(device)),
        )
        report.case("resume on another device refused", lambda: refused(folder / "refused", device))
        for name in ("adam", "lbfgs", "cma_es"):
            report.case(f"state of {name} across devices", lambda n=name: state_moves(n, device))
        report.case(
            "pendulum learns", lambda: learns(folder / "learns", device, quick), needs=0.0 if quick else 20.0
        )


def simulator(name: str, out: Path, device: torch.device, quick: bool) -> dict[str, Any]:
    """A few updates of the default algorithm."""
    updates, episodes, batch = (2, 2, 8) if quick else (6, 16, 128)
    file = train(
        name,
        out,
        quiet=True,
        device=str(device),
        backend="eager",
        updates=updates,
        algorithm={"batch": batch},
        evaluation={"every": 0, "episodes": episodes},
    )
    return _sound(file.history(), updates)


def _sound(history: dict[str, np.ndarray], updates: int) -> dict[str, Any]:
    assert len(history["update"]) == updates, f"{len(history['update'])} of {updates} updates"
    assert not history["step_dropped"].any(), f"steps dropped: {history['step_dropped'].tolist()}"
    assert np.isfinite(history["loss"]).all(), f"loss {history['loss'].tolist()}"
    assert np.isfinite(history["return"][-1]), "the return is not finite"
    seconds = float(history["wall_seconds"][-1])
    return {"return": float(history["return"][-1]), "seconds of an update": seconds / updates}


def short_run(out: Path, device: torch.device, **settings: Any) -> dict[str, Any]:
    """Three updates through ten control intervals of the pendulum."""
    file = train(
        "pendulum",
        out,
        quiet=True,
        device=str(device),
        backend="eager",
        updates=3,
        algorithm={"name": "full_horizon", "horizon": 10, "batch": 16},
        evaluation={"every": 0, "episodes": 4},
        **settings,
    )
    return _sound(file.history(), 3)


def optimizer_run(name: str, out: Path, device: torch.device) -> dict[str, Any]:
    """An optimizer of each family on the device's policy."""
    if name == "openai_es" and importlib.util.find_spec("evotorch") is None:
        raise SkippedError("needs evotorch")
    return short_run(out, device, optimizer={"name": name})


def learns(out: Path, device: torch.device, quick: bool) -> dict[str, Any]:
    """The default training, which shows that gradients on the device point the right way."""
    if quick:
        raise SkippedError("takes half a minute, which --quick leaves out")
    begun = time.monotonic()
    file = train("pendulum", out, quiet=True, device=str(device), evaluation={"episodes": 64})
    returns = file.history()["return"]
    best = float(np.nanmax(returns))
    assert best > -250.0, f"the best mean return is {best:.0f}; an untrained policy has about -1,200"
    return {"best return": best, "updates": len(returns), "training seconds": time.monotonic() - begun}


def policy_moves(out: Path, trained_on: torch.device, loaded_on: str) -> dict[str, Any]:
    """A run's policy gives the same actions on another device, and can be evaluated without the first."""
    short_run(out, trained_on)
    here, there = (load_policy(out, device=where) for where in (str(trained_on), loaded_on))
    draws = np.random.default_rng(0).uniform(-1.0, 1.0, (100, here.module.mean.numel())).astype(np.float32)
    found = agree(
        {"actions": torch.from_numpy(there(draws))}, {"actions": torch.from_numpy(here(draws))}, 1e-5
    )
    return {**found, "return on the CPU": evaluate(out, episodes=4).mean}


def refused(out: Path, device: torch.device) -> None:
    """A run goes on on its own device only: random generators of two devices draw different numbers."""
    if device.type == "cpu":
        raise SkippedError("needs CUDA")
    short_run(out, device)
    try:
        train(out=out, resume=True, quiet=True, device="cpu")
    except ConfigError:
        return
    raise AssertionError("a run of one device was resumed on another without a word")


def resumed(algorithm: str, optimizer: str, device: torch.device) -> None:
    """Four updates are the same bits as two, a stored and loaded state, and two more; so is a repetition."""
    more = {"horizon": 8} if algorithm == "full_horizon" else {}
    config = load_config(
        {
            "env": "pendulum",
            "device": str(device),
            "backend": "eager",
            "updates": 10,
            "algorithm": {"name": algorithm, "batch": 32, **more},
            "optimizer": optimizer,
        }
    )
    whole, again, first, second = (assemble(config).algorithm for _ in range(4))
    for trained, updates in ((whole, 4), (again, 4), (first, 2)):
        for _ in range(updates):
            trained.step()
    second.load_state_dict(_stored(first.state_dict()))
    for _ in range(2):
        second.step()
    for what, other in (("a repetition", again), ("the resumed run", second)):
        found = different(_stored(whole.state_dict()), _stored(other.state_dict()))
        assert not found, f"{what} differs in {', '.join(found[:8])}"


def _stored(state: dict[str, Any]) -> dict[str, Any]:
    """The state as a run file gives it back."""
    with h5py.File(io.BytesIO(), "w") as file:
        state_tree.write(file, "state", state)
        return state_tree.read(file["state"])


def different(a: Any, b: Any, path: str = "state") -> list[str]:
    """Where two states are not equal bit for bit."""
    if isinstance(a, dict) and isinstance(b, dict) and list(a) == list(b):
        return [found for key in a for found in different(a[key], b[key], f"{path}.{key}")]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return [
            found
            for k, (x, y) in enumerate(zip(a, b, strict=True))
            for found in different(x, y, f"{path}.{k}")
        ]
    tensors = isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
    same = a.dtype == b.dtype and torch.equal(a, b) if tensors else a == b
    return [] if same else [path]


def state_moves(name: str, device: torch.device) -> dict[str, float]:
    """An optimizer's state from the CPU goes on on the device as on the CPU."""
    states: dict[str, torch.Tensor] = {}
    stored: dict[str, Any] = {}
    start = torch.linspace(-1.0, 1.0, 6, dtype=torch.float64)
    for where in ("begin", "cpu", "device"):
        q = torch.nn.Parameter(start.clone().to(device if where == "device" else "cpu"))
        optimizer = make_optimizer([q], name, seed=3)
        if where != "begin":
            optimizer.load_state_dict(_stored(stored))
        for _ in range(4):
            optimizer.step(Objective.of([q], _bowl(q)))
        if where == "begin":
            stored, start = optimizer.state_dict(), q.detach().clone()
        states[where] = q.detach()
    return agree({"parameters": states["device"]}, {"parameters": states["cpu"]}, 1e-9)


def _bowl(q: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: ((q - 0.3) ** 2 * torch.arange(1, 7, device=q.device)).sum()
