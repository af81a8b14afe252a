import numpy as np
import pytest
import torch
from torch import nn

from diffsim.config import PolicyConfig
from diffsim.errors import ConfigError
from diffsim.policy import MLP, ProjectedClip, make_policy
from robotics_envs import make_env

CPU = torch.device("cpu")


def policy(seed=0, dtype=torch.float32, **config):
    return make_policy(PolicyConfig(**config), make_env("pendulum"), seed, CPU, dtype)


def test_the_projected_clip_blocks_only_what_leads_further_outside():
    v = torch.tensor([-2.0, -2.0, 0.5, 0.5, 2.0, 2.0], requires_grad=True)
    out = ProjectedClip.apply(v)
    assert out.tolist() == [-1.0, -1.0, 0.5, 0.5, 1.0, 1.0]
    downhill = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
    (gradient,) = torch.autograd.grad(out, v, downhill)
    # A descent step is minus the gradient: from -2, only a negative gradient leads back inside.
    assert gradient.tolist() == [0.0, -1.0, 1.0, -1.0, 1.0, 0.0]


def test_the_projected_clip_works_under_vmap():
    v = torch.tensor([[-2.0, 0.5], [2.0, 0.1]])
    per_row = torch.func.vmap(torch.func.grad(lambda row: ProjectedClip.apply(row).sum()))(v)
    assert per_row.tolist() == [[0.0, 1.0], [1.0, 1.0]]


@pytest.mark.parametrize("squash", ["clip", "tanh"])
def test_actions_stay_in_their_box_whatever_the_weights(squash):
    net = policy(squash=squash)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(100)
        actions = net(torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) * 10)
    assert actions.abs().max() <= 2.0
    assert actions.min() < -1.9
    assert actions.max() > 1.9


def test_the_seed_determines_the_weights_and_leaves_global_random_state_alone():
    before = torch.get_rng_state()
    a, b, c = policy(1).state_dict(), policy(1).state_dict(), policy(2).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not all(torch.equal(a[k], c[k]) for k in a)


def test_observations_are_normalised_over_the_state_box():
    env, net = make_env("pendulum"), policy(dtype=torch.float64)
    x = env.state_box.sample(20_000, torch.Generator().manual_seed(9), torch.float64)
    z = net.normalise(env.observe(x))
    assert torch.allclose(z.mean(0), torch.zeros(3, dtype=torch.float64), atol=0.05)
    assert torch.allclose(z.std(0), torch.ones(3, dtype=torch.float64), atol=0.05)


class Linear(nn.Linear):
    pass


class WrongShape(nn.Linear):
    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs + 1)


def test_any_module_is_a_policy():
    net = policy(name="test_policy:Linear", bias=False)
    assert net(torch.zeros(4, 3)).shape == (4, 1)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"name": "mpl"}, "unknown policy 'mpl'; did you mean 'mlp'"),
        ({"name": "mlp", "hiden": [3]}, "unknown key 'policy.hiden'; did you mean 'policy.hidden'"),
        ({"name": "mlp", "hidden": [0]}, "hidden = \\[0\\]"),
        ({"name": "mlp", "hidden": 64}, "hidden = 64"),
        ({"name": "mlp", "hidden": "128,128"}, r"--set policy.hidden=\[64,64\]"),
        ({"name": "mlp", "hidden": [True, 64]}, r"hidden = \[True, 64\]"),
        ({"name": "mlp", "hidden": [1.5]}, r"hidden = \[1.5\]"),
        ({"name": "mlp", "activation": "tan"}, "unknown activation 'tan'; did you mean 'tanh'"),
        ({"name": "test_policy:WrongShape"}, "maps \\[2, 3\\] to \\[2, 2\\]; it must return \\[2, 1\\]"),
    ],
)
def test_mistakes_are_named(config, complaint):
    with pytest.raises(ConfigError, match=complaint):
        policy(**config)


def test_an_mlp_without_hidden_layers_is_linear():
    net = MLP(3, 2, hidden=())
    x, y = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(net(x) + net(y), net(x + y) + net(torch.zeros(5, 3)), atol=1e-6)


@pytest.mark.parametrize("hidden", [np.array([5, 4]), (np.int64(5), np.int32(4)), [5.0, "4"]])
def test_widths_may_be_any_whole_numbers(hidden):
    assert [q.out_features for q in MLP(3, 2, hidden) if isinstance(q, nn.Linear)] == [5, 4, 2]


def test_a_policy_says_what_it_is_in_one_line():
    assert repr(policy(hidden=[8])) == "Policy(3 -> 1, MLP, 41 parameters, squash 'clip')"
    assert "squash 'tanh'" in repr(policy(squash="tanh"))
