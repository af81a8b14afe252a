"""Losses of windows and their bounded derivatives: what they are, and that both ways of computing them agree."""

import math

import pytest
import torch

from diffsim.algorithms.window_losses import Range, Unit, compressed, weigh
from diffsim.rollouts import Trajectory
from robotics_envs import make_env
from solvers.compiler.trace import NativeUnsupportedError
from solvers.native import build

STEPS, BATCH, STATES, ACTIONS = 5, 37, 3, 2


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def arguments(dtype=torch.float64, layout="rollouts last"):
    """In the layout that kernels write, or in that of torch; weights as of a simulator without ends, or with."""
    states, by_noise = draw(STEPS + 1, STATES, BATCH, seed=1), draw(STEPS, ACTIONS, BATCH, seed=2)
    costates = draw(STATES, BATCH, seed=3)
    weights = (0.9 ** torch.arange(STEPS + 1, dtype=torch.float64)).unsqueeze(-1).expand(-1, BATCH)
    states, by_noise, costates = states.transpose(1, 2), by_noise.transpose(1, 2), costates.t()
    if layout != "rollouts last":
        states, by_noise, costates = states.contiguous(), by_noise.contiguous(), costates.contiguous()
        weights = weights * (draw(STEPS + 1, BATCH, seed=6) > -1.5)
    by_noise[:, 4] = 0.0
    to = [q.to(dtype) for q in (states[-1], 3.0 * draw(STEPS, BATCH, seed=4), states, draw(BATCH, seed=5))]
    return [Trajectory(*to), weights.to(dtype), costates.to(dtype), by_noise.to(dtype)]


UNITS = {"compressed": (0.5, 2.0, 3.0), "linear": (0.0, 2.0, math.inf)}


def unit_of(name, dtype=torch.float64):
    mean, scale, c = UNITS[name]
    return Unit(torch.tensor(mean, dtype=dtype), torch.tensor(scale, dtype=dtype), c)


def inside(dtype=torch.float64):
    return Range(
        torch.tensor([0.1, 0.0, -0.1], dtype=dtype), torch.tensor([1.0, torch.inf, 2.0], dtype=dtype)
    )


@pytest.mark.parametrize("name", UNITS)
def test_the_derivative_of_the_loss_is_autograds_scaled_down_to_the_bound(name):
    window, weights, costates, by_noise = arguments()
    unit, bound = unit_of(name), 0.8
    found = weigh(window, weights, costates, by_noise, unit, bound, None, inside())
    for b in (0, 4, 11):
        # The discounted cost as a function of what the policy returned, linear with the derivative by_noise.
        shift = torch.zeros(STEPS, ACTIONS, dtype=torch.float64, requires_grad=True)
        total = (
            sum(weights[t, b] * window.costs[t, b] for t in range(STEPS)) + weights[-1, b] * window.values[b]
        )
        y = (total + (by_noise[:, b] * shift).sum() - unit.mean) / unit.scale
        loss = y if math.isinf(unit.compression) else unit.compression * torch.asinh(y / unit.compression)
        (expected,) = torch.autograd.grad(loss, shift)
        factor = min(1.0, bound / float(expected.norm())) if expected.norm() > 0 else 1.0
        assert found.discounted[b].item() == pytest.approx(float(total), rel=1e-12)
        assert found.bounds[b].item() == pytest.approx(factor, rel=1e-12)
        assert found.losses[b].item() == pytest.approx(loss.item() * factor, rel=1e-12)
        assert torch.allclose(found.by_results[:, b], expected * factor, rtol=1e-12, atol=1e-15)
    lengths = found.by_results.norm(dim=(0, 2))
    assert lengths.max() <= bound * (1 + 1e-12)
    assert (found.bounds < 1).any()
    assert found.unmoved.nonzero().flatten().tolist() == [4]
    assert found.any_unmoved
    near = (window.states[:-1] - inside().middle).abs() <= torch.tensor([1.0, 1e9, 2.0])
    assert torch.equal(found.typical, near.all(-1))


def test_what_is_not_finite_is_found_wherever_it_is():
    names = ["states", "costates", "by_noise", "costs", "values"]
    for b, name in enumerate(names):
        given = arguments()
        window, _, costates, by_noise = given
        where = {
            "states": window.states[-1],
            "costates": costates,
            "by_noise": by_noise[2],
            "costs": window.costs[1],
            "values": window.values,
        }[name]
        where[b] = torch.nan if b % 2 else torch.inf
        for backend in ("eager", "native"):
            found = weigh(*given, unit_of("compressed"), 1.0, None, inside(), backend)
            assert found.ok.logical_not().nonzero().flatten().tolist() == [b], (name, backend)
            assert found.left_out == 1
            assert found.bounds[b] == 1.0


def test_factors_that_are_given_are_used():
    given = arguments()
    first = weigh(*given, unit_of("compressed"), 0.5, None, inside())
    given[3] = given[3] * 7.0
    for backend in ("eager", "native"):
        again = weigh(*given, unit_of("compressed"), 0.5, first.bounds, inside(), backend)
        assert torch.equal(again.bounds, first.bounds)
        assert torch.allclose(again.by_results, 7.0 * first.by_results, rtol=1e-12)


def test_states_are_in_range_by_what_is_no_angle():
    env = make_env("pendulum")  # an angle and its velocity, at most 8 rad/s in the box
    held = Range.of_box(env, torch.zeros((), dtype=torch.float64), 2.0)
    x = torch.tensor([[1e6, 15.9], [0.0, 16.1], [torch.nan, 0.0], [torch.inf, 0.0], [0.0, torch.nan]])
    assert held.holds(x.double()).tolist() == [True, False, False, False, False]


def test_losses_are_increasing_and_their_slopes_are_derivatives():
    costs = torch.linspace(-100, 100, 2001, dtype=torch.float64, requires_grad=True)
    for name in UNITS:
        losses, slopes = compressed(costs, unit_of(name))
        (expected,) = torch.autograd.grad(losses.sum(), costs)
        assert torch.allclose(slopes.expand_as(costs), expected, rtol=1e-12)
        assert (losses.diff() > 0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("layout", ["rollouts last", "torch"])
@pytest.mark.parametrize("name", UNITS)
def test_compiled_and_eager_agree(name, layout, dtype):
    try:
        build._toolchain()
    except NativeUnsupportedError:
        pytest.skip("no C++ compiler")
    given = arguments(dtype, layout)
    ours, theirs = (
        weigh(*given, unit_of(name, dtype), 0.8, None, inside(dtype), backend)
        for backend in ("native", "eager")
    )
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    for field, a, b in zip(ours._fields, ours, theirs, strict=True):
        if isinstance(a, torch.Tensor) and a.is_floating_point():
            assert torch.allclose(a, b, rtol=tolerance, atol=tolerance), field
        else:
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, field
