"""On a GPU the host must not wait inside a loop over control intervals; here its waits are counted on the CPU."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from diffsim import Rollout
from diffsim.assembly import assemble
from diffsim.config import load_config
from diffsim.policy import MLP, Policy, initialised, observation_statistics
from robotics_envs import ENVIRONMENTS, make_env

aten = torch.ops.aten
# What has a size or a number that depends on values: the host reads them before it goes on.
WAITING = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.unique_dim.default,
    aten._unique2.default,
    aten.equal.default,
    aten.is_nonzero.default,
}


class Waits(TorchDispatchMode):
    """Counts the operations inside that make the host wait for the device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in WAITING
        # A mask as an index is a nonzero, too.
        if func is aten.index.Tensor or func is aten.index_put_.default:
            self.count += any(q is not None and q.dtype == torch.bool for q in args[1])
        return func(*args, **(kwargs or {}))


def policy_of(env):
    network = initialised(lambda: MLP(len(env.observation_names), len(env.action_box), (8,)), 0)
    mean, scale = observation_statistics(env, torch.device("cpu"), torch.float32)
    return Policy(network, mean, scale, *env.action_box.bounds(mean), "tanh")


def waits(env, steps):
    """In the loops of a rollout and of its backward pass; checks and looking for a back end come before."""
    policy = policy_of(env)
    rollout = Rollout(env, policy, backend="eager")
    x = env.reset(3, torch.Generator().manual_seed(0))
    rollout(x, steps).costs.sum().backward()  # tables and bounds are made at the first call
    with Waits() as waiting:
        rollout(x, steps).costs.sum().backward()
    return waiting.count


@pytest.mark.parametrize("name", list(ENVIRONMENTS))
def test_the_host_waits_as_often_for_eight_intervals_as_for_two(name):
    env = make_env(name)
    assert waits(env, 8) == waits(env, 2)


def test_a_wait_inside_the_loop_is_seen():
    """A simulator that looks at a number of its states in every interval."""
    env = make_env("pendulum")
    cost = env.cost
    env.cost = lambda x, u, p: cost(x, u, p) * (1.0 if float(x.detach().sum()) < 1e9 else 2.0)
    assert waits(env, 8) >= waits(env, 2) + 6
    env.cost = lambda x, u, p: cost(x, u, p) + x[x.detach()[:, 0] > 1e9].sum()
    assert waits(env, 8) >= waits(env, 2) + 6


def waits_of_an_update(window):
    options = {"name": "value_gradient", "window": window, "window_end": window, "batch": 8}
    config = load_config({"env": "pendulum", "backend": "eager", "updates": 100}, {"algorithm": options})
    algorithm = assemble(config).algorithm
    for _ in range(3):
        algorithm.step()
    with Waits() as waiting:
        algorithm.step()
    return waiting.count


def test_an_update_of_the_default_waits_as_often_for_long_windows_as_for_short_ones():
    assert waits_of_an_update(7) == waits_of_an_update(2)
