"""Whole episodes: what they return, and that those which have ended are left out."""

import pytest
import torch
from torch import nn

from diffsim.rollouts import Rollout
from robotics_envs.simulators.pendulum import Pendulum

F64 = torch.float64


class Short(Pendulum):
    """120 intervals, more than are simulated together, that end at a high rate."""

    episode_steps = 120

    def done(self, x):
        return x[..., 1].abs() > 5.0


@pytest.mark.parametrize("backend", ["eager", "native"])
def test_episodes_give_their_states_on_request(backend):
    """Those of a plain loop up to the end of each, and without another bit in returns and lengths."""
    torch.manual_seed(0)
    env, policy = Short(), nn.Linear(3, 1, dtype=F64)
    x = env.reset(6, torch.Generator().manual_seed(0), F64)
    rollout = Rollout(env, policy, backend=backend)
    returns, lengths, states = rollout.episodes(x, keep_states=True)
    assert states.shape == (121, 6, 2)
    loop, costs = [x], []
    with torch.no_grad():
        for _ in range(120):
            following, cost = env.step(loop[-1], policy(env.observe(loop[-1])), env.params(x))
            loop.append(following)
            costs.append(cost)
    ended = env.done(torch.cat(loop)).unflatten(0, states.shape[:2])
    first = torch.where(ended.any(0), ended.int().argmax(0), torch.tensor(120))
    assert torch.equal(first, lengths)
    # Some end before others are simulated further, and some never.
    assert lengths.min() < 50
    assert lengths.max() == 120
    assert torch.equal(states[0], x)
    for k, length in enumerate(lengths):
        right = torch.stack(loop)[: length + 1, k]
        assert torch.allclose(states[: length + 1, k], right, rtol=1e-9, atol=1e-9)
        assert torch.allclose(returns[k], -torch.stack(costs)[:length, k].sum(), rtol=1e-9, atol=1e-9)
    assert states.isfinite().all()
    for a, b in zip(rollout.episodes(x), (returns, lengths), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", ["eager", "native"])
def test_episodes_that_have_ended_are_not_simulated_on(backend, monkeypatch):
    """Each with its own physical parameters, and the bits of one that nobody ended beside."""
    torch.manual_seed(0)
    env, policy = Short(), nn.Linear(3, 1, dtype=F64)
    x = env.reset(6, torch.Generator().manual_seed(0), F64)
    rollout = Rollout(env, policy, backend=backend)
    p = {
        name: v.to(F64).expand(6) * torch.linspace(1, 1.2, 6, dtype=F64) for name, v in env.params(x).items()
    }
    returns, lengths = rollout.episodes(x, p)
    sizes, simulated = [], rollout._simulated
    monkeypatch.setattr(
        rollout, "_simulated", lambda inputs, *a: sizes.append(len(inputs.x0)) or simulated(inputs, *a)
    )
    rollout.episodes(x, p)
    assert sizes == [int((lengths >= start).sum()) for start in (0, 51, 101) if (lengths >= start).any()]
    alone = [rollout.episodes(x[k : k + 1], {name: v[k : k + 1] for name, v in p.items()}) for k in range(6)]
    assert torch.equal(lengths, torch.cat([one for _, one in alone]))
    assert torch.allclose(returns, torch.cat([one for one, _ in alone]), rtol=1e-9)
    everywhere = Short()
    everywhere.done = lambda states: torch.ones_like(states[..., 0], dtype=torch.bool)
    returns, lengths, states = Rollout(everywhere, policy, backend=backend).episodes(x, keep_states=True)
    assert not returns.any()
    assert not lengths.any()
    assert states.shape == (121, 6, 2)


class Several(Short):
    """One value of a parameter for every rollout."""

    def params(self, like):
        p = super().params(like)
        return p | {"g": p["g"] * torch.linspace(0.5, 2.0, len(like), dtype=like.dtype)}


@pytest.mark.parametrize("backend", ["eager", "native"])
def test_rollouts_that_go_on_keep_their_own_parameters(backend):
    torch.manual_seed(0)
    policy, x = nn.Linear(3, 1, dtype=F64), Short().reset(6, torch.Generator().manual_seed(0), F64)
    env = Several()
    returns, lengths = Rollout(env, policy, backend=backend).episodes(x)
    assert lengths.min() < 50 < 100 < lengths.max()
    given = Rollout(Short(), policy, backend=backend).episodes(x, env.params(x))
    assert torch.equal(lengths, given[1])
    assert torch.allclose(returns, given[0], rtol=1e-9)
    with pytest.raises(ValueError, match="needs an initial state"):
        Rollout(env, policy).episodes(x[:0])


def test_episodes_of_a_policy_with_batch_norm_keep_their_batch():
    torch.manual_seed(0)
    policy = nn.Sequential(
        nn.Linear(3, 4, dtype=F64), nn.BatchNorm1d(4, dtype=F64), nn.Linear(4, 1, dtype=F64)
    )
    x = Short().reset(6, torch.Generator().manual_seed(0), F64)
    returns, lengths = Rollout(Short(), policy, backend="eager").episodes(x)
    assert lengths.min() < 50
    assert returns.isfinite().all()
