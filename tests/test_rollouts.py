"""Every back end gives what a plain autograd loop over the simulator gives."""

import logging

import pytest
import torch
from torch import nn

from diffsim.policy import MLP, Policy
from diffsim.rollouts import Rollout
from examples.cartpole import CartPole
from robotics_envs import ENVIRONMENTS, make_env
from solvers.native import build
from solvers.native.trace import NativeUnsupportedError

F32, F64 = torch.float32, torch.float64
SIMULATORS = [*ENVIRONMENTS, "cartpole"]

try:
    build._toolchain()
except NativeUnsupportedError:
    pytest.skip("there is no C++ compiler", allow_module_level=True)


def simulator(name):
    return CartPole() if name == "cartpole" else make_env(name)


def random(*shape, dtype=F64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def make_policy(env, network=None, squash="tanh", dtype=F64, seed=0):
    o, m = len(env.observation_names), len(env.action_box)
    torch.manual_seed(seed)
    network = MLP(o, m, (16, 12)) if network is None else network(o, m)
    with torch.no_grad():
        for q in network.parameters():  # far from zero, so that every part of the gradient counts
            q.add_(0.1 * torch.randn_like(q))
    centre, spread = random(o, seed=1) * 0.1, 1.0 + torch.rand(o, generator=torch.Generator().manual_seed(2))
    return Policy(network, centre, spread, *env.action_box.bounds(centre), squash).to(dtype)


class FinalCost(nn.Module):
    """A terminal value: a network of what the policy would observe."""

    def __init__(self, env, dtype=F64):
        super().__init__()
        torch.manual_seed(7)
        self.env, self.network = env, MLP(len(env.observation_names), 1, (8,)).to(dtype)

    def forward(self, x):
        return 3.0 + self.network(self.env.observe(x)).squeeze(-1)


def loop(env, policy, x, steps, p, noise=None, controls=None, terminal=None, truncate=None):
    """The reference: plain autograd through everything."""
    states, costs = [x], []
    for t in range(steps):
        if truncate and t and t % truncate == 0:
            x = x.detach()
        if controls is not None:
            u = controls[t]
        else:
            o = env.observe(x)
            u = policy(o) if noise is None else policy(o, noise[t])
        x, cost = env.step(x, u, p)
        states.append(x)
        costs.append(cost)
    return x, torch.stack(costs), torch.stack(states), None if terminal is None else terminal(x)


def problem(env, batch, steps, dtype=F64):
    """Initial states, noise and parameters, the first of them with a value for every rollout."""
    x = env.reset(batch, torch.Generator().manual_seed(3), F64).to(dtype).requires_grad_()
    p = {name: value.to(dtype).requires_grad_() for name, value in env.params(x.detach()).items()}
    if p:
        first = next(iter(p))
        spread = torch.linspace(0.9, 1.1, batch, dtype=dtype) if batch > 1 else torch.ones(1, dtype=dtype)
        p[first] = (p[first].detach() * spread).requires_grad_()
    m = len(env.action_box)
    noise = (0.3 * random(steps, batch, m, seed=4)).to(dtype).requires_grad_()
    low, high = env.action_box.bounds(x.detach())
    controls = low + (high - low) * torch.rand(steps, batch, m, generator=torch.Generator().manual_seed(5))
    return x, p, noise, controls.to(dtype).detach().requires_grad_()


def objective(last, costs, states, values):
    """Every result with weights of its own."""
    total = (costs * torch.linspace(1, 2, costs.numel(), dtype=costs.dtype).reshape(costs.shape)).mean()
    total = total + (last * torch.linspace(-1, 1, last.shape[1], dtype=last.dtype)).mean() + 0.1 * states.square().mean()
    return total if values is None else total + values.square().mean()


def worst(got, right):
    """Largest difference in units of the largest number of the array that is right."""
    return max(
        float((a - b).detach().abs().max() / (b.detach().abs().max() + 1e-30)) for a, b in zip(got, right, strict=True)
    )


def compare(env, policy, batch, steps, dtype, backend, tolerance, closed=True, terminal=None, caplog=None):
    x, p, noise, controls = problem(env, batch, steps, dtype)
    given = {"noise": noise} if closed else {"controls": controls}
    wanted = [x, *p.values(), *given.values()]
    if closed:
        wanted += [q for q in policy.parameters() if q.requires_grad]
    right = loop(env, policy, x, steps, p, terminal=terminal, **given)
    by_right = torch.autograd.grad(objective(*right), wanted, allow_unused=True)
    rollout = Rollout(env, policy if closed else None, terminal=terminal, backend=backend)
    got = rollout(x, steps, p, **given)
    got = (got.last, got.costs, got.states, got.values)
    by = torch.autograd.grad(objective(*got), wanted, allow_unused=True)
    pairs = [(g, r) for g, r in zip(by, by_right, strict=True) if r is not None and float(r.abs().max()) > 0]
    assert len(pairs) > len(p)  # nothing is compared with nothing
    assert worst([q for q in got if q is not None], [q for q in right if q is not None]) < tolerance
    assert worst(*zip(*pairs, strict=True)) < tolerance
    if caplog is not None:
        assert not caplog.records, caplog.records[0].getMessage()


@pytest.mark.parametrize("batch", [1, 63, 64, 1000])
@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-10), (F32, 1e-4)])
@pytest.mark.parametrize("name", SIMULATORS)
def test_native_closed_loop(name, dtype, tolerance, batch, caplog):
    env = simulator(name)
    policy, terminal = make_policy(env, dtype=dtype), FinalCost(env, dtype)
    compare(env, policy, batch, 3, dtype, "native", tolerance, terminal=terminal, caplog=caplog)


@pytest.mark.parametrize("batch", [1, 63, 64, 1000])
@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-10), (F32, 1e-4)])
@pytest.mark.parametrize("name", SIMULATORS)
def test_native_open_loop(name, dtype, tolerance, batch, caplog):
    compare(simulator(name), None, batch, 3, dtype, "native", tolerance, closed=False, caplog=caplog)
