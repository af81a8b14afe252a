"""``Rollout`` on a device: values and gradients of both back ends against the CPU's, populations, returns, noise."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from diffsim.config import PolicyConfig
from diffsim.policy import make_policy
from diffsim.rollouts import Noise, Rollout
from gpu_parts.report import Report, SkippedError, agree
from robotics_envs import ENVIRONMENTS
from robotics_envs.base import Env

CPU = torch.device("cpu")
SIMULATORS = (
    "pendulum", "examples.cartpole:CartPole", "quadrotor", "hopper", "arm7_point", "reactor", "trebuchet", "heat_rod",
    "satellite", "car",
)  # fmt: skip
FLOAT32 = SIMULATORS[:3]
COMPILED = (
    ("pendulum", torch.float32), ("quadrotor", torch.float32), ("examples.cartpole:CartPole", torch.float64),
)  # fmt: skip
COMPILING = 25.0
"""Seconds that a pair of compiled functions takes at most."""


def run(report: Report, device: torch.device, quick: bool) -> None:
    """Every case of the part."""
    for name in ("pendulum", "hopper") if quick else SIMULATORS:
        report.case(f"eager {name} float64", lambda n=name: one(n, "eager", torch.float64, device, 1e-7))
    for name in () if quick else FLOAT32:
        report.case(f"eager {name} float32", lambda n=name: one(n, "eager", torch.float32, device, 2e-3))
    report.case("noise, bit for bit", lambda: noise(device))
    report.case("population", lambda: agree(population(device, "eager"), population(CPU, "eager"), 1e-9))
    report.case("returns", lambda: agree(returns(device, quick), returns(CPU, quick), 1e-7))
    for name, dtype in COMPILED:
        tolerance = 2e-3 if dtype == torch.float32 else 1e-7
        report.case(
            f"inductor {name} {str(dtype).removeprefix('torch.')}",
            lambda n=name, d=dtype, e=tolerance: compiled(n, d, device, e, quick),
            needs=0.0 if quick else COMPILING,
        )


def make(name: str, device: torch.device, dtype: torch.dtype) -> tuple[Env, nn.Module, Tensor]:
    """A simulator, an untrained policy and starting states ``[B, n]``; the same numbers on every device."""
    env = ENVIRONMENTS.load(name)()
    policy = make_policy(PolicyConfig(), env, 0, CPU, torch.float64)
    x0 = env.reset(8, torch.Generator().manual_seed(1), torch.float64)
    return env, policy.to(device, dtype), x0.to(device, dtype)


def physical(env: Env, x0: Tensor) -> dict[str, Tensor]:
    """Physical parameters whose gradient is wanted, the first of them with a value for every rollout."""
    p = {k: v.detach().clone().requires_grad_() for k, v in env.params(x0).items()}
    if p:
        first = next(iter(p))
        p[first] = p[first].detach().expand(len(x0)).clone().requires_grad_()
    return p


def computed(name: str, backend: str, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """Trajectory and gradients by policy, initial states and physical parameters, one of these given per rollout."""
    env, policy, x0 = make(name, device, dtype)
    x0.requires_grad_()
    p = physical(env, x0)
    rollout = Rollout(env, policy, backend=backend)
    trajectory = rollout(x0, 6, p, noise=Noise(5, 0.1))
    assert trajectory.states is not None
    loss = trajectory.costs.sum(0).mean() + 1e-3 * trajectory.last.square().mean()
    leaves = {"x0": x0, **p, **dict(policy.named_parameters())}
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    found = {f"gradient by {k}": g for k, g in zip(leaves, gradients, strict=True) if g is not None}
    return {"states": trajectory.states, "costs": trajectory.costs, **found}


def one(
    name: str, backend: str, dtype: torch.dtype, device: torch.device, tolerance: float
) -> dict[str, float]:
    """Compare a back end on the device with eager on the CPU."""
    return agree(computed(name, backend, dtype, device), computed(name, "eager", dtype, CPU), tolerance)


def compiled(
    name: str, dtype: torch.dtype, device: torch.device, tolerance: float, quick: bool
) -> dict[str, float]:
    """The same of inductor, which must not have been replaced by eager."""
    if quick:
        raise SkippedError("compiling takes half a minute, which --quick leaves out")
    with nothing_said():
        return one(name, "inductor", dtype, device, tolerance)


@contextlib.contextmanager
def nothing_said() -> Iterator[None]:
    """Inside, a warning of the project's logger is an error: a back end tells it so that it cannot run."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("diffsim")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
    if said:
        raise AssertionError("; ".join(said))


def noise(device: torch.device) -> None:
    """The noise is a function of its seed: every device gives the same bits."""
    for like in (torch.empty(0), torch.empty(0, dtype=torch.float64)):
        here, there = (Noise(7, 0.3).at(3, 1000, 5, like.to(where)).cpu() for where in (device, CPU))
        wrong = int((here != there).sum())
        assert not wrong, f"{wrong} of {here.numel()} numbers differ in {like.dtype}"


def population(device: torch.device, backend: str) -> dict[str, Tensor]:
    """Costs of three policies at once, and the costs of each of them alone, which must be the same."""
    env, policy, x0 = make("pendulum", device, torch.float64)
    draws = torch.Generator().manual_seed(2)
    stacks = {
        name: q.detach() + 0.1 * torch.randn(3, *q.shape, generator=draws, dtype=torch.float64).to(device)
        for name, q in policy.named_parameters()
    }
    together = Rollout(env, policy, backend=backend).population(stacks, x0, 10)
    for k in range(3):
        member = copy.deepcopy(policy)
        member.load_state_dict({**policy.state_dict(), **{name: stack[k] for name, stack in stacks.items()}})
        with torch.no_grad():
            alone = Rollout(env, member, backend="eager")(x0, 10).costs.sum(0)
        agree({"member": together[k]}, {"member": alone}, 1e-9)
    return {"costs": together}


def returns(device: torch.device, quick: bool) -> dict[str, Tensor]:
    """Returns of whole episodes of a task that can end early."""
    env, policy, x0 = make("pendulum" if quick else "quadrotor_planar", device, torch.float64)
    return {"returns": Rollout(env, policy, backend="eager").returns(x0)}
