"""Policies that keep something in attributes between their calls."""

import pytest
import torch
from torch import nn

from diffsim.rollouts import Rollout
from robotics_envs.simulators.pendulum import Pendulum

F64 = torch.float64


class Counting(nn.Module):
    """Another action after some calls; what it counts with is no buffer."""

    def __init__(self):
        super().__init__()
        self.linear, self.calls = nn.Linear(3, 1, dtype=F64), 0
        self.last, self.seen = torch.zeros(1, dtype=F64), []

    def forward(self, observation):
        self.calls += 1
        self.last = self.last * 0.5 + 1
        self.seen.append(self.calls)
        return self.linear(observation) + (1.0 if self.calls > 3 else 0.0) + self.last


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("backend", ["eager", "native", "auto"])
def test_a_policy_that_remembers_is_called_as_in_a_loop(backend, gradient, caplog):
    torch.manual_seed(0)
    env, policy = Pendulum(), Counting()
    x = env.reset(4, torch.Generator().manual_seed(0), F64)
    loop, right = x, []
    with torch.no_grad():
        for _ in range(6):
            loop, cost = env.step(loop, policy(env.observe(loop)), env.params(x))
            right.append(cost)
    torch.manual_seed(0)
    policy = Counting()
    with torch.set_grad_enabled(gradient):
        trajectory = Rollout(env, policy, backend=backend)(x, 6)
    assert torch.allclose(trajectory.costs, torch.stack(right), rtol=1e-12)
    assert policy.seen == [1, 2, 3, 4, 5, 6]
    if gradient or backend == "native":
        assert "changes the attribute 'calls' of Counting" in caplog.text


def test_what_only_the_first_call_sets_and_what_is_only_noted_is_no_memory(caplog):
    class Lazy(nn.Linear):
        table = None

        def forward(self, observation):
            if self.table is None:
                self.table = torch.ones(1, dtype=observation.dtype)
            self.noted = {"last": [observation.detach()]}
            return super().forward(observation) * self.table

    env, policy = Pendulum(), Lazy(3, 1, dtype=F64)
    rollout = Rollout(env, policy, backend="native")
    rollout(env.reset(4, torch.Generator(), F64), 3).costs.sum().backward()
    assert not caplog.records
    assert [type(engine).__name__ for engine in rollout.engines.prepared.values()][-1] == "Native"
