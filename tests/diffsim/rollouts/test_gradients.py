"""The backward pass: bounded costates, no gradient by parameters, and without autograd."""

import pytest
import torch
from test_rollouts import FinalCost, make_policy, random, simulator

from diffsim.rollouts import Rollout, native
from robotics_envs.simulators.pendulum import Pendulum

F64 = torch.float64


def drawn(env, batch=7, steps=5):
    x = env.state_box.sample(batch, torch.Generator().manual_seed(0), F64).requires_grad_()
    return x, random(steps, batch, len(env.action_box)).requires_grad_()


def weighted(trajectory):
    """A loss of every part of the result, by whose size costates of every interval differ."""
    return (
        trajectory.costs.square().sum()
        + trajectory.states.pow(3).sum()
        + trajectory.last.sum()
        + 3.0 * trajectory.values.sum()
    )


def by_a_loop(env, policy, terminal, x, noise, bound):
    """The same rollout in plain autograd, where a hook bounds the derivative by each state but the first."""
    low, high = env.state_box.bounds(x.detach())
    sizes = torch.where(high > low, (high - low) / 2, torch.ones_like(low))
    lengths = []

    def bounded(by):
        length = (by * sizes).norm(dim=1, keepdim=True)
        lengths.append(length)
        return by * (bound / length).clamp_max(1.0)

    states, costs, p = [x], [], env.params(x)
    for u in noise:
        following, cost = env.step(states[-1], policy(env.observe(states[-1]), u), p)
        following = following.clone()
        following.register_hook(bounded)
        states.append(following)
        costs.append(cost)
    loss = (
        torch.stack(costs).square().sum()
        + torch.stack(states).pow(3).sum()
        + states[-1].sum()
        + 3.0 * terminal(states[-1]).sum()
    )
    return torch.autograd.grad(loss, (x, noise, *policy.parameters())), torch.cat(lengths)


@pytest.mark.parametrize("backend", ["eager", "native"])
@pytest.mark.parametrize("name", ["cartpole", "quadrotor"])
def test_costates_are_bounded_in_units_of_the_box(name, backend):
    env = simulator(name)
    policy, terminal = make_policy(env), FinalCost(env)
    x, noise = drawn(env)
    lengths = by_a_loop(env, policy, terminal, x, noise, 1e30)[1]
    bound = float(lengths.median())
    expected = by_a_loop(env, policy, terminal, x, noise, bound)[0]
    rollout = Rollout(env, policy, terminal=terminal, backend=backend)
    found = torch.autograd.grad(
        weighted(rollout(x, 5, noise=noise, costate_bound=bound)), (x, noise, *policy.parameters())
    )
    free = torch.autograd.grad(weighted(rollout(x, 5, noise=noise)), (x, noise, *policy.parameters()))
    for ours, theirs, unbounded in zip(found, expected, free, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-9)
        assert not torch.allclose(ours, unbounded, rtol=1e-3)
    assert len(rollout.engines.prepared) == 1  # a bound compiles nothing anew


def test_a_bound_that_is_not_reached_changes_no_bit():
    env = simulator("cartpole")
    rollout = Rollout(env, make_policy(env), terminal=FinalCost(env), backend="native")
    x, noise = drawn(env)
    grads = [
        torch.autograd.grad(weighted(rollout(x, 5, noise=noise, costate_bound=bound)), (x, noise))
        for bound in (None, 1e30)
    ]
    assert all(map(torch.equal, *grads))


def test_a_bound_holds_where_the_graph_is_kept():
    """A policy that draws random numbers is simulated under plain autograd."""

    class Drawing(torch.nn.Module):
        def __init__(self, policy):
            super().__init__()
            self.policy = policy

        def forward(self, observation, noise):
            return self.policy(observation, noise) + 0 * torch.rand(())

    env = simulator("cartpole")
    policy, terminal = make_policy(env), FinalCost(env)
    x, noise = drawn(env)
    bound = float(by_a_loop(env, policy, terminal, x, noise, 1e30)[1].median())
    expected = by_a_loop(env, policy, terminal, x, noise, bound)[0][:2]
    rollout = Rollout(env, Drawing(policy), terminal=terminal, backend="eager")
    found = torch.autograd.grad(weighted(rollout(x, 5, noise=noise, costate_bound=bound)), (x, noise))
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("bound", [0.0, -1.0, float("nan")])
def test_a_bound_is_positive(bound):
    env = simulator("cartpole")
    x, noise = drawn(env)
    with pytest.raises(ValueError, match=r"costate_bound = .* must be positive"):
        Rollout(env, make_policy(env))(x, 5, noise=noise, costate_bound=bound)


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow), "native"])
def test_without_gradients_by_parameters_the_others_are_the_same(backend):
    env = simulator("cartpole")
    policy, terminal = make_policy(env), FinalCost(env)
    x, noise = drawn(env)
    found = []
    for wanted in (True, False):
        rollout = Rollout(env, policy, terminal=terminal, backend=backend, parameter_gradients=wanted)
        loss = weighted(rollout(x, 5, noise=noise))
        found.append(torch.autograd.grad(loss, (x, noise), retain_graph=True))
        others = [*policy.parameters(), *terminal.parameters()]
        by = torch.autograd.grad(loss, others, allow_unused=True)
        assert all((q is not None) == wanted for q in by)
        assert all(q.requires_grad for q in others)
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-12)


def test_a_kernel_for_gradients_serves_evaluations():
    env = simulator("cartpole")
    rollout = Rollout(env, make_policy(env), backend="native", parameter_gradients=False)
    x, noise = drawn(env)
    rollout(x, 5, noise=noise).costs.sum().backward()
    rollout.returns(x.detach(), noise=torch.zeros(1, dtype=F64))
    assert len(rollout.engines.prepared) == 1


class Still(Pendulum):
    """Its cost does not depend on anything that has a gradient."""

    def cost(self, x, u, p):
        return (x[:, 0] - 1.0).detach() ** 2


@pytest.mark.parametrize("on_failure", [None, "raise", "mark"])
@pytest.mark.parametrize("backend", ["eager", "native"])
@pytest.mark.parametrize("ends", [True, False])
def test_a_pullback_is_autograds(backend, on_failure, ends):
    """With cotangents of any values and strides, with and without a terminal value."""
    env = simulator("cartpole")
    policy, terminal = make_policy(env), FinalCost(env) if ends else None
    rollout = Rollout(env, policy, terminal=terminal, backend=backend, on_failure=on_failure)
    x, noise = drawn(env)
    by_costs = torch.linspace(0.5, 1.5, 5, dtype=F64).unsqueeze(-1).expand(-1, 7)
    by_values = random(7, dtype=F64) if ends else None
    expected = rollout(x, 5, noise=noise)
    total = (by_costs * expected.costs).sum() + ((by_values * expected.values).sum() if ends else 0.0)
    by_x, by_noise = torch.autograd.grad(total, (x, noise))
    for tensors in ((x, noise), (x.detach(), noise.detach())):
        trajectory, pull = rollout.vjp(tensors[0], 5, noise=tensors[1])
        assert not any(q.requires_grad for q in trajectory if q is not None)
        assert torch.equal(trajectory.states, expected.states)
        found = pull(by_costs, by_values)
        assert torch.allclose(found[0], by_x, rtol=1e-10, atol=1e-12)
        assert torch.allclose(found[1], by_noise, rtol=1e-10, atol=1e-12)


def test_a_pullback_says_where_there_is_no_gradient():
    env = Still()
    policy = make_policy(env)
    x, noise = drawn(env)
    _, pull = Rollout(env, policy, backend="eager").vjp(x, 5, noise=noise)
    assert pull(torch.ones(5, 7, dtype=F64), None) is None
    # With a value at the end there is one.
    rollout = Rollout(env, policy, terminal=FinalCost(env), backend="eager")
    _, pull = rollout.vjp(x, 5, noise=noise)
    by_x, by_noise = pull(torch.ones(5, 7, dtype=F64), torch.ones(7, dtype=F64))
    expected = torch.autograd.grad(rollout(x, 5, noise=noise).values.sum(), (x, noise))
    assert torch.allclose(by_x, expected[0], rtol=1e-12)
    assert torch.allclose(by_noise, expected[1], rtol=1e-12)


@pytest.mark.parametrize("members", [1, 2])
def test_a_tape_changes_no_bit(members, monkeypatch):
    """With what the policy's layers returned kept, for two rollouts at a time and for a graph that is used twice."""
    env = simulator("cartpole")
    policy, terminal = make_policy(env), FinalCost(env, F64)
    x, noise = drawn(env, batch=70, steps=9)
    rollout = Rollout(env, policy, terminal=terminal, backend="native")
    leaves = [x, noise, *policy.parameters()]

    def gradients(loss, **options):
        return torch.autograd.grad(loss, leaves, **options)

    def losses():
        return [weighted(rollout(start, 9, noise=noise)) for start in (x, x + 0.1)]

    stacked = {
        k: torch.stack([q.detach() + 0.1 * i for i in range(members)]) for k, q in policy.named_parameters()
    }

    monkeypatch.setattr(native, "TAPE_BYTES", (0, -1))
    expected = [gradients(loss) for loss in losses()]
    of_members = rollout.population(stacked, x.detach(), 9)
    monkeypatch.setattr(native, "TAPE_BYTES", (0, 2**40))
    for _ in range(2):
        first, second = losses()
        found = [gradients(first, retain_graph=True), gradients(second)]
        found += [gradients(first)]
        for got, right in zip(found, (*expected, expected[0]), strict=True):
            assert all(map(torch.equal, got, right))
    assert torch.equal(rollout.population(stacked, x.detach(), 9), of_members)
    assert any(
        engine._tape is not None for engine in rollout.engines.prepared.values()
    )  # written, and given back


def test_a_tape_is_written_where_it_pays(monkeypatch):
    env = simulator("cartpole")
    rollout = Rollout(env, make_policy(env), backend="native")
    x = env.reset(65, torch.Generator().manual_seed(0), F64)
    rollout(x, 2).costs.sum().backward()
    (engine,) = rollout.engines.prepared.values()
    arguments = engine._arguments(rollout._inputs(x, 4, None, None, None, None), x)
    size = 8 * 4 * engine.library.tape_of_an_interval() * -(-65 // engine.library.rollouts_of_a_block())
    for limits, taken in (((size, size), True), ((size + 1, 2**40), False), ((0, size - 1), False)):
        monkeypatch.setattr(native, "TAPE_BYTES", limits)
        assert (engine._taken(arguments, x) is not None) == taken
