import pytest
import torch
from torch import nn

from diffsim.algorithms.critic import Critic, squared_error_gradient
from diffsim.policy import MLP, initialised


def network(hidden=(16, 16), seed=0):
    return initialised(lambda: MLP(2, 1, hidden), seed).double()


def critic(**changes):
    options = {"learning_rate": 1e-2, "betas": (0.7, 0.95), "tau": 0.5, "normalizer_rate": 0.2}
    return Critic(network(), **{**options, **changes})


def data(count=512, scale=100.0, seed=0):
    z = torch.randn(count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return z, scale * (3 + torch.sin(z[:, 0]) + z[:, 1] ** 2)


@pytest.mark.parametrize("hidden", [(), (7,), (16, 16), (8, 9, 10)])
def test_the_written_out_gradient_is_autograds(hidden):
    net, (z, y) = network(hidden), data(50)
    loss = nn.functional.mse_loss(net(z), y.unsqueeze(-1))
    expected = torch.autograd.grad(loss, list(net.parameters()))
    for got, want in zip(squared_error_gradient(net, z, y.unsqueeze(-1)), expected, strict=True):
        assert torch.allclose(got, want, rtol=1e-12, atol=1e-12)


def test_renormalising_changes_no_value():
    c = critic()
    z, y = data()
    c.renormalise(y)
    before = c.values(z)
    for scale in (0.01, 1e4):
        c.renormalise(data(scale=scale)[1])
        assert torch.allclose(c.values(z), before, rtol=1e-10, atol=1e-10)


def test_the_first_targets_set_the_scale_and_later_ones_move_it():
    c, targets = critic(), data()[1]
    c.renormalise(targets)
    assert float(c.target.mean) == pytest.approx(float(targets.mean()))
    assert float(c.target.scale) == pytest.approx(float(targets.std(correction=0)))
    c.renormalise(2 * targets)
    assert float(c.target.mean) == pytest.approx(1.2 * float(targets.mean()))


def test_constant_targets_do_not_divide_by_zero():
    c = critic()
    z, y = data()
    c.renormalise(torch.full_like(y, 5.0))
    for _ in range(50):
        c.fit(z, torch.full_like(y, 5.0), 8, 64, 1.0, torch.Generator().manual_seed(0))
    assert torch.allclose(c.values(z), torch.full_like(y, 5.0), atol=0.05)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_it_fits_whatever_the_scale(scale):
    c, (z, y) = critic(), data(scale=scale)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        c.renormalise(y)
        c.fit(z, y, 8, 128, 1.0, generator)
    assert float((c.values(z) - y).std() / y.std()) < 0.1


def test_the_target_network_moves_by_tau():
    c, (z, y) = critic(tau=0.25), data()
    c.renormalise(y)
    before = [p.clone() for p in c.target.network.parameters()]
    c.fit(z, y, 3, 64, 1.0, torch.Generator().manual_seed(0))
    for old, now, ahead in zip(before, c.target.network.parameters(), c.network.parameters(), strict=True):
        assert torch.allclose(now, torch.lerp(old, ahead.detach(), 0.25))
        assert not torch.equal(now, old)


def test_a_batch_larger_than_the_data_uses_all_of_it():
    c, (z, y) = critic(), data(10)
    c.renormalise(y)
    before = c.network[0].weight.clone()
    c.fit(z, y, 2, 1000, 1.0, torch.Generator().manual_seed(0))
    assert not torch.equal(before, c.network[0].weight)


def test_no_learning_rate_no_change():
    c, (z, y) = critic(), data()
    c.renormalise(y)
    before = [p.clone() for p in c.parameters]
    c.fit(z, y, 5, 64, 0.0, torch.Generator().manual_seed(0))
    assert all(map(torch.equal, before, c.parameters))


def test_a_critic_says_what_it_is_in_one_line():
    c = critic()
    assert repr(c) == "Critic(2 -> 16 -> 16 -> 1, not fitted)"
    c.renormalise(torch.tensor([1.0, 3.0], dtype=torch.float64))
    assert repr(c) == "Critic(2 -> 16 -> 16 -> 1, mean 2, scale 1)"
