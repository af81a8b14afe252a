"""The critic that is fitted to values and derivatives, against formulas and automatic differentiation."""

import copy
import math

import pytest
import torch
from same_state import same
from torch import nn

from diffsim.algorithms import recorded as recorded_module
from diffsim.algorithms.costate_critic import (
    CompressedValue,
    CostateCritic,
    Rows,
    bounded,
    minibatches,
    quantiles,
    sobolev_gradient,
)
from diffsim.policy import MLP, initialised


def random_network(hidden, inputs=3):
    network = MLP(inputs, 1, hidden).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for q in network.parameters():
            q.copy_(torch.randn(q.shape, generator=generator, dtype=q.dtype))
    return network


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_critic(**options):
    defaults = {
        "learning_rate": 1e-2,
        "betas": (0.7, 0.95),
        "tau": 1.0,
        "normalizer_rate": 0.5,
        "costate_weight": 1.0,
        "costate_bound": 3.0,
    }
    network = initialised(lambda: MLP(2, 1, (16, 16)), seed=0)
    return CostateCritic(network.double(), **{**defaults, **options})


@pytest.mark.parametrize("hidden", [(), (5,), (6, 7), (4, 5, 6)])
def test_the_written_out_gradient_is_that_of_autograd(hidden):
    network, z, y, starts = random_network(hidden), draw(10, 3), draw(10, 1, seed=1), draw(7, 3, seed=2)
    jacobians, slopes, weights = draw(7, 3, 4, seed=3), draw(7, 4, seed=4), draw(7, seed=5).abs()
    found = sobolev_gradient(network, z, y, starts, jacobians, slopes, weights)
    leaf = starts.clone().requires_grad_()
    (derivative,) = torch.autograd.grad(network(leaf).sum(), leaf, create_graph=True)
    residual = torch.bmm(derivative.unsqueeze(1), jacobians).squeeze(1) - slopes
    loss = (network(z) - y).square().mean() + (weights * residual.square().sum(1)).mean()
    expected = torch.autograd.grad(
        loss, list(network.parameters()), allow_unused=True, materialize_grads=True
    )
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-13)


def test_without_derivatives_it_is_least_squares():
    network, z, y, none = random_network((6, 7)), draw(10, 3), draw(10, 1, seed=1), draw(0, 3)
    found = sobolev_gradient(network, z, y, none, draw(0, 3, 4), draw(0, 4), draw(0))
    expected = torch.autograd.grad((network(z) - y).square().mean(), list(network.parameters()))
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-13)


def test_a_value_is_compressed_and_bounded():
    class Given(nn.Module):
        def forward(self, z):
            return z

    value = CompressedValue(Given(), draw(1))
    value.mean.fill_(3.0)
    value.scale.fill_(2.0)
    z = torch.tensor([[-1.0], [0.0], [2.0]], dtype=torch.float64)
    assert value(z).tolist() == pytest.approx([3 + 2 * math.sinh(f) for f in (-1, 0, 2)])
    value.low.fill_(2.0)
    value.high.fill_(8.0)
    z.requires_grad_()
    assert value(z).tolist() == pytest.approx([2.0, 3.0, 8.0])
    (slope,) = torch.autograd.grad(value(z).sum(), z)
    assert slope.flatten().tolist() == pytest.approx([0.0, 2.0, 0.0])


def test_the_scale_follows_medians_and_the_bounds_the_costs():
    critic = make_critic()
    targets = torch.linspace(-1, 1, 1001, dtype=torch.float64)
    critic.renormalise(targets, torch.tensor([1.0, 4.0]).double(), gamma=0.75)
    assert float(critic.target.mean) == pytest.approx(0.0, abs=1e-12)
    assert float(critic.target.scale) == pytest.approx(0.68)
    assert (float(critic.target.low), float(critic.target.high)) == (4.0, 16.0)
    far = torch.cat((targets + 1.0, torch.full((20,), 1e9, dtype=torch.float64)))
    with_outliers = make_critic()
    with_outliers.renormalise(far[:1001], targets[:0], 0.5)
    assert float(with_outliers.target.mean) == pytest.approx(1.0)
    # Half of the way, and the bounds only widen; at another discount they are other sums.
    critic.renormalise(targets + 1.0, torch.tensor([2.0, 6.0]).double(), gamma=0.5)
    assert float(critic.target.mean) == pytest.approx(0.5)
    assert (float(critic.target.low), float(critic.target.high)) == (2.0, 12.0)


def test_outliers_do_not_move_the_mean():
    critic, targets = make_critic(), torch.linspace(-1, 1, 1001, dtype=torch.float64)
    targets[:5] = 1e3
    critic.renormalise(targets, targets, 0.5)
    assert abs(float(critic.target.mean)) < 0.02


def test_constant_targets_have_a_scale():
    critic = make_critic()
    critic.renormalise(torch.full((9,), 7.0, dtype=torch.float64), draw(0), 0.5)
    assert (float(critic.target.mean), float(critic.target.scale)) == (7.0, 1.0)


def test_bounded_factors_are_multiples_of_the_median():
    lengths = torch.tensor([1.0, 2.0, 3.0, 40.0, 0.0])
    factors = bounded(lengths, 5.0)
    assert factors.tolist() == pytest.approx([1.0, 1.0, 1.0, 0.25, 1.0])  # 5 · 2 / 40
    assert bounded(torch.zeros(3), 5.0).tolist() == [1.0] * 3
    assert bounded(torch.zeros(0), 5.0).tolist() == []


def quadratic_rows(z):
    """Values and derivatives of |z|² with the state as observation."""
    eye = torch.eye(2, dtype=torch.float64).expand(len(z), 2, 2)
    return Rows(z, z.square().sum(1), z, z.square().sum(1), 2 * z, eye)


def error_of_the_slope(weight):
    """Mean error of the derivative of |z|² in the unit box after a fit to 12 states."""
    critic = make_critic(costate_weight=weight, costate_bound=100.0)
    rows = quadratic_rows(draw(12, 2, seed=3).clamp(-1.5, 1.5))
    generator = torch.Generator().manual_seed(0)
    critic.renormalise(rows.targets, rows.targets, 0.9)
    for k in range(150):
        critic.fit([rows], 10, 12, 1 - k / 150, generator)
    z = (2 * torch.rand(200, 2, generator=generator, dtype=torch.float64) - 1).requires_grad_()
    (slope,) = torch.autograd.grad(critic.values(z).sum(), z)
    return float((slope - 2 * z).detach().norm(dim=1).mean())


def test_derivatives_make_the_fit_better_where_there_are_few_states():
    assert error_of_the_slope(1.0) < 0.5 * error_of_the_slope(0.0)


def test_saving_and_loading_changes_no_bit():
    rows = quadratic_rows(draw(12, 2, seed=3))
    straight, stopped, resumed = (make_critic() for _ in range(3))
    resumed.network.load_state_dict(straight.network.state_dict())
    stopped.network.load_state_dict(straight.network.state_dict())
    stopped.target.network.load_state_dict(straight.target.network.state_dict())

    def go(critic, number, generator):
        for _ in range(number):
            critic.renormalise(rows.targets, rows.targets, 0.9)
            critic.fit([rows], 3, 5, 0.5, generator)

    generator = torch.Generator().manual_seed(0)
    go(straight, 4, generator)
    generator = torch.Generator().manual_seed(0)
    go(stopped, 2, generator)
    resumed.load_state_dict(stopped.state_dict())
    go(resumed, 2, generator)
    assert same(straight.state_dict(), resumed.state_dict())


@pytest.mark.parametrize("fails", [False, True])
def test_a_recorded_fit_changes_no_bit(fails, monkeypatch, caplog):
    """Recording calls the steps of the fit, of which nothing may stay; a state that is loaded is recorded anew."""
    recordings = []

    def recorded(function, device):
        recordings.append(device)
        function()
        if fails:
            raise RuntimeError("the device must not be waited for")
        return function

    rows, others = quadratic_rows(draw(12, 2, seed=3)), quadratic_rows(draw(4, 2, seed=4))

    def after_four(critic):
        generator = torch.Generator().manual_seed(0)
        for k, data in enumerate((rows, rows, others, rows)):  # minibatches of 5 rows, and of 4
            if k == 3:
                critic.load_state_dict(copy.deepcopy(critic.state_dict()))
            critic.renormalise(rows.targets, rows.targets, 0.9)
            critic.fit([data], 3, 5, 0.5 / (k + 1), generator)
        return critic._changed_by_steps()

    expected = after_four(make_critic())
    monkeypatch.setattr(recorded_module.Recorded, "devices", ("cpu",))
    monkeypatch.setattr(recorded_module, "recorded", recorded)
    assert all(map(torch.equal, after_four(make_critic()), expected))
    assert len(recordings) == (1 if fails else 3)
    assert len(caplog.records) == int(fails)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 2, 7, 100, 2816])
def test_quantiles_are_torchs_to_the_last_bit(dtype, count):
    values = 1e3 * torch.randn(count, dtype=dtype, generator=torch.Generator().manual_seed(count))
    shares = values.new_tensor([0.0, 0.16, 0.5, 0.84, 1.0])
    assert torch.equal(quantiles(values, shares), values.quantile(shares))
    values[count // 2] = torch.inf
    found, expected = quantiles(values, shares), values.quantile(shares)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    values[0] = torch.nan
    assert quantiles(values, shares).isnan().all()


@pytest.mark.parametrize(
    ("counts", "size", "batches"), [((70, 20), 16, 9), ((5, 0), 16, 3), ((64, 64), 8, 4)]
)
def test_a_pass_of_minibatches_takes_every_row_at_most_once(counts, size, batches):
    chosen = minibatches(torch.Generator().manual_seed(0), batches, size, counts, torch.device("cpu"))
    for rows, count in zip(chosen, counts, strict=True):
        assert rows.shape == (batches, min(size, count))
        per_pass = max(count // size, 1)
        for first in range(0, batches, per_pass):
            drawn = rows[first : first + per_pass].flatten()
            assert len(drawn.unique()) == len(drawn)
            assert not len(drawn) or (drawn.min() >= 0 and drawn.max() < count)


def test_passes_of_several_kinds_draw_in_turns():
    one, other = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    rows, others = minibatches(one, 5, 4, (12, 8), torch.device("cpu"))
    drawn = {"rows": [], "others": []}
    for k in range(5):
        if k % 3 == 0:
            drawn["rows"] += torch.randperm(12, generator=other).split(4)
        if k % 2 == 0:
            drawn["others"] += torch.randperm(8, generator=other).split(4)
    assert torch.equal(rows, torch.stack(drawn["rows"][:5]))
    assert torch.equal(others, torch.stack(drawn["others"][:5]))
