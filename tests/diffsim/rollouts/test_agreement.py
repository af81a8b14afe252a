"""The comparison of a compiled rollout with the eager one before it is used."""

import pytest
import torch

from diffsim.rollouts.agreement import compare_with_eager, few_of
from diffsim.rollouts.inputs import Inputs, UnsupportedError
from diffsim.rollouts.stepwise import Stepwise
from robotics_envs.base import Box, Env


class Amplifying(Env):
    """Where x > 0 a step amplifies the rounding of x to the size of the state."""

    name = "amplifying"
    state_names = ("x",)
    action_names = ("u",)
    action_box = Box.symmetric(1.0)
    start_box = state_box = Box((-1.0,), (1.0,))
    dt = 0.1
    episode_steps = 10
    edge = 0.0

    def dynamics(self, t, x, u, p):
        return -x

    def step(self, x, u, p):
        following = torch.where(x > self.edge, torch.sin(1e7 * x), 0.5 * x)
        return following, following[..., 0] ** 2 + u[..., 0] ** 2

    def cost(self, x, u, p):
        return x[..., 0] ** 2


class Rounding(Stepwise):
    """Another back end: its operands are rounded in another way, and it adds ``error`` to the costs."""

    def __init__(self, error=0.0):
        self.error = error

    def forward(self, inputs, keep_states, pulled=False):
        rounded = inputs.x0.detach() * (1 - torch.finfo(inputs.x0.dtype).eps)
        moved = inputs.__class__(**{**vars(inputs), "x0": rounded.requires_grad_(inputs.x0.requires_grad)})
        outcome, kept = super().forward(moved, keep_states, pulled)
        return outcome._replace(costs=outcome.costs + self.error), kept


def inputs_of(env, gradient):
    x0 = torch.linspace(-1.0, 1.0, 6).unsqueeze(-1).requires_grad_(gradient)
    return Inputs(
        env=env,
        act=lambda x, noise: 0.1 * x,
        terminal=None,
        x0=x0,
        p=env.params(x0.detach()),
        steps=2,
        noise=None,
        controls=None,
        modules=(),
        parameters=(),
    )


@pytest.mark.parametrize("gradient", [False, True])
def test_rollouts_that_amplify_rounding_do_not_count(gradient):
    inputs = inputs_of(Amplifying(), gradient)
    few = few_of(inputs)
    found = [engine.forward(few, keep_states=True)[0].costs for engine in (Stepwise(), Rounding())]
    assert (found[0] - found[1]).abs().max() > 0.1
    compare_with_eager(Rounding(), inputs, gradient)


@pytest.mark.parametrize("gradient", [False, True])
def test_a_back_end_that_is_wrong_elsewhere_is_refused(gradient):
    with pytest.raises(
        UnsupportedError, match="the next state or cost of the compiled step differs from torch's by"
    ):
        compare_with_eager(Rounding(0.05), inputs_of(Amplifying(), gradient), gradient)


def test_where_all_rollouts_amplify_rounding_nothing_can_be_compared():
    env = Amplifying()
    env.edge = -2.0
    with pytest.raises(UnsupportedError, match="differs from torch's by"):
        compare_with_eager(Rounding(), inputs_of(env, False), False)
