"""The bookkeeping of recorded steps, on the CPU, where a recording is the function itself; `make gpu` records."""

import logging

import pytest
import torch
from torch import nn

from diffsim.config import PolicyConfig
from diffsim.policy import make_policy
from diffsim.rollouts import Noise, Rollout
from diffsim.rollouts.cuda_graph import CudaGraph
from robotics_envs import make_env

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setattr(CudaGraph, "devices", ("cuda", "cpu"))


class Value(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1.0, 1.0, n, dtype=torch.float64))

    def forward(self, x):
        return (x * self.weight).sum(-1).sin()


def setting(name="pendulum", batch=6):
    env = make_env(name)
    policy = make_policy(PolicyConfig(hidden=(8,)), env, 0, CPU, torch.float64)
    with torch.no_grad():
        for q in policy.parameters():  # far from zero, so that every part of the gradient counts
            q.add_(0.2 * torch.sin(torch.arange(q.numel(), dtype=q.dtype)).reshape(q.shape))
    x0 = env.reset(batch, torch.Generator().manual_seed(1), torch.float64)
    return env, policy, x0, Value(len(env.state_names))


def gradients(rollout, x0, steps, leaves, **arguments):
    trajectory = rollout(x0, steps, **arguments)
    weights = torch.linspace(0.5, 1.5, trajectory.costs.numel(), dtype=torch.float64)
    loss = (trajectory.costs * weights.reshape(trajectory.costs.shape)).sum() + trajectory.last.square().sum()
    loss = loss + trajectory.states[1:-1].sin().sum()
    if trajectory.values is not None:
        loss = loss + trajectory.values.sum()
    return trajectory, torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("name", ["pendulum", "quadrotor_planar", "hopper"])
def test_values_and_gradients_are_those_of_eager(name):
    env, policy, x0, value = setting(name)
    p = {k: v.clone().requires_grad_() for k, v in env.params(x0).items()}
    first = next(iter(p))
    p[first] = p[first].detach().expand(len(x0)).clone().requires_grad_()
    noise = (0.1 * torch.randn(5, len(x0), len(env.action_box), dtype=torch.float64)).requires_grad_()
    x0.requires_grad_()
    leaves = [x0, noise, *p.values(), *policy.parameters(), value.weight]
    found, expected = (
        gradients(
            Rollout(env, policy, terminal=value, backend=backend),
            x0,
            5,
            leaves,
            p=p,
            noise=noise,
            costate_bound=0.7,
        )
        for backend in ("cuda_graph", "eager")
    )
    for got, wanted in zip((*found[0][:4], *found[1]), (*expected[0][:4], *expected[1]), strict=True):
        assert torch.allclose(got, wanted, rtol=1e-12, atol=1e-13)


def test_one_recording_serves_calls_with_other_numbers():
    """Horizon, states, noise, parameters and weights change; nothing of an earlier call shows in a later one."""
    env, policy, x0, _ = setting()
    rollout, reference = (Rollout(env, policy, backend=b) for b in ("cuda_graph", "eager"))
    leaves = list(policy.parameters())
    recorded = None
    for k, steps in enumerate((4, 7, 2, 4)):
        p = {name: v * (1 + 0.1 * k) for name, v in env.params(x0).items()}
        with torch.no_grad():
            leaves[0].mul_(1.1)
        arguments = {"p": p, "noise": Noise(k, 0.3)}
        found = gradients(rollout, x0 + 0.1 * k, steps, leaves, **arguments)
        expected = gradients(reference, x0 + 0.1 * k, steps, leaves, **arguments)
        for got, wanted in zip((*found[0][:3], *found[1]), (*expected[0][:3], *expected[1]), strict=True):
            assert torch.allclose(got, wanted, rtol=1e-12, atol=1e-13)
        (engine,) = rollout.engines.prepared.values()
        assert isinstance(engine, CudaGraph)
        (now,) = engine._recordings.values()
        assert recorded in (None, now)
        recorded = now


def test_results_are_not_overwritten_by_the_next_call():
    env, policy, x0, _ = setting()
    rollout = Rollout(env, policy, backend="cuda_graph")
    first, found = gradients(rollout, x0, 3, list(policy.parameters()))
    before = [q.clone() for q in (*first[:3], *found)]
    gradients(rollout, x0 + 1.0, 3, list(policy.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(before, (*first[:3], *found), strict=True))


def test_two_graphs_at_once():
    """Two forward passes, then their backward passes: the recording's memory belongs to neither."""
    env, policy, x0, _ = setting()
    rollout, reference = (Rollout(env, policy, backend=b) for b in ("cuda_graph", "eager"))
    leaves = list(policy.parameters())
    first, second = rollout(x0, 4).costs.sum(), rollout(x0 + 0.5, 6).costs.sum()
    found = [torch.autograd.grad(second, leaves), torch.autograd.grad(first, leaves)]
    expected = [
        torch.autograd.grad(reference(x0 + 0.5, 6).costs.sum(), leaves),
        torch.autograd.grad(reference(x0, 4).costs.sum(), leaves),
    ]
    for got, wanted in zip(found, expected, strict=True):
        assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(got, wanted, strict=True))


def test_moved_weights_are_recorded_again():
    """A graph reads addresses: a parameter that got other memory must not be read at the old one."""
    env, policy, x0, _ = setting()
    rollout = Rollout(env, policy, backend="cuda_graph")
    leaves = list(policy.parameters())
    gradients(rollout, x0, 3, leaves)
    (engine,) = rollout.engines.prepared.values()
    (old,) = engine._recordings.values()
    trajectory = rollout(x0, 3)
    leaves[0].data = leaves[0].data.clone() * 2.0
    gradients(rollout, x0, 3, leaves)
    (engine,) = rollout.engines.prepared.values()
    assert old not in engine._recordings.values()
    assert trajectory.costs.shape == (3, len(x0))


def test_batches_of_several_sizes_and_populations():
    env, policy, x0, _ = setting()
    rollout, reference = (Rollout(env, policy, backend=b) for b in ("cuda_graph", "eager"))
    for count in (6, 3, 6, 1):
        assert torch.equal(rollout(x0[:count], 5).costs, reference(x0[:count], 5).costs)
    assert torch.equal(rollout.returns(x0), reference.returns(x0))
    members = {k: torch.stack((q, 0.5 * q, -q)).detach() for k, q in policy.named_parameters()}
    assert torch.allclose(
        rollout.population(members, x0, 4), reference.population(members, x0, 4), rtol=1e-12
    )


def test_elsewhere_it_says_that_it_needs_cuda(monkeypatch, caplog):
    monkeypatch.undo()
    env, policy, x0, _ = setting()
    with caplog.at_level(logging.WARNING, logger="diffsim"):
        costs = Rollout(env, policy, backend="cuda_graph")(x0, 3).costs
    assert "CUDA graphs run on CUDA devices, and this rollout is on cpu" in caplog.text
    assert torch.equal(costs, Rollout(env, policy, backend="eager")(x0, 3).costs)
