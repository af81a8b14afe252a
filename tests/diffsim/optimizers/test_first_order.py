"""First-order optimizers: learning rates, clipping, what is not finite."""

import copy
import math

import pytest
import torch
from optimizer_parts import build, sphere, vector
from same_state import same

from diffsim.errors import ConfigError
from diffsim.optimizers import (
    Objective,
)

REMAINING = [1.0, 0.95, 0.8, 0.5, 0.25, 0.01]


def rates(remaining=REMAINING, **options):
    """The learning rate of each step: how far SGD goes down a slope of one."""
    parameter = vector(0.0)
    optimizer = build("sgd", [parameter], lr=0.5, max_grad_norm=None, **options)
    moved = []
    for share in remaining:
        before = parameter.item()
        optimizer.step(Objective.of([parameter], lambda: parameter.sum()), share)
        moved.append(before - parameter.item())
    return moved


@pytest.mark.parametrize(
    ("options", "factor"),
    [
        ({}, lambda r: r),
        ({"schedule": "linear"}, lambda r: r),
        ({"schedule": {"name": "linear"}}, lambda r: r),
        ({"schedule": "cosine"}, lambda r: (1 + math.cos(math.pi * (1 - r))) / 2),
        ({"schedule": "constant"}, lambda r: 1.0),
        ({"schedule": "constant", "warm_up": 0.4}, lambda r: min(1.0, max(1 - r, 1e-3) / 0.4)),
        ({"schedule": "linear", "warm_up": 0.1}, lambda r: r * min(1.0, max(1 - r, 1e-3) / 0.1)),
    ],
)
def test_a_schedule_gives_the_stated_learning_rates(options, factor):
    assert rates(**options) == pytest.approx([0.5 * factor(r) for r in REMAINING], rel=1e-12)


@pytest.mark.parametrize("warm_up", [0.0, 0.3])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("StepLR", {"step_size": 2, "gamma": 0.5}),
        ("ExponentialLR", {"gamma": 0.7}),
        ("CosineAnnealingLR", {"T_max": 4}),
        ("OneCycleLR", {"max_lr": 0.9, "total_steps": 8, "cycle_momentum": False}),
    ],
)
def test_a_scheduler_of_torch_gives_its_own_learning_rates_times_the_warm_up(name, options, warm_up):
    inner = torch.optim.SGD([vector(0.0)], lr=0.5)
    scheduler = getattr(torch.optim.lr_scheduler, name)(inner, **options)
    wanted = []
    for r in REMAINING:
        wanted.append(inner.param_groups[0]["lr"] * (min(1.0, max(1 - r, 1e-3) / 0.3) if warm_up else 1.0))
        inner.step()
        scheduler.step()
    assert rates(schedule={"name": name, **options}, warm_up=warm_up) == pytest.approx(wanted, rel=1e-12)


def test_reduce_on_plateau_sees_the_loss():
    parameter = vector(0.0)
    schedule = {"name": "ReduceLROnPlateau", "patience": 1, "factor": 0.1}
    optimizer = build("sgd", [parameter], lr=1.0, schedule=schedule)
    seen = []
    for loss in (5.0, 4.0, 4.0, 4.0, 4.0, 3.0):
        seen.append(optimizer.inner.param_groups[0]["lr"])
        optimizer.step(Objective.of([parameter], lambda q=loss: 0.0 * parameter.sum() + q))
    assert seen == pytest.approx([1.0, 1.0, 1.0, 1.0, 0.1, 0.1])


def test_gradients_above_the_norm_are_scaled_down_to_it_and_others_are_left_alone():
    for limit, wanted in ((1.0, (2.4, 3.2)), (5.1, (0.0, 0.0))):
        parameter = vector(3.0, 4.0)
        optimizer = build("sgd", [parameter], lr=1.0, max_grad_norm=limit)
        report = optimizer.step(Objective.of([parameter], lambda p=parameter: (p**2).sum() / 2))
        assert report.grad_norm == pytest.approx(5.0)
        assert parameter.tolist() == pytest.approx(wanted)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("adam", {}),
        ("lamb", {}),
        ("lars", {}),
        ("nesterov", {"schedule": {"name": "StepLR", "step_size": 2}}),
        ("rmsprop", {"centered": True, "momentum": 0.9}),
    ],
)
def test_a_gradient_that_is_not_finite_leaves_parameters_and_state_bit_for_bit(name, options, poison):
    """One component is enough; so is the loss alone."""
    parameter = vector(1.0, 2.0, 3.0)
    optimizer = build(name, [parameter], **options)
    optimizer.step(sphere(parameter))
    before, state = parameter.detach().clone(), copy.deepcopy(optimizer.state_dict())
    slope = torch.tensor([1.0, poison, 1.0], dtype=torch.float64)
    for loss in (
        lambda: (parameter * slope).sum(),
        lambda: parameter.sum() + poison,
        lambda: (
            (parameter.sqrt() * (parameter - before).sqrt()).sum()
            if math.isnan(poison)
            else 1 / (parameter - before).sum()
        ),
    ):
        report = optimizer.step(Objective.of([parameter], loss))
        assert (report.finite, report.evaluations, report.gradients) == (False, 1, 1)
        assert torch.equal(parameter, before)
        assert same(optimizer.state_dict(), state)
    assert optimizer.step(sphere(parameter)).finite


def test_a_loss_that_does_not_depend_on_the_parameters_is_an_error():
    parameter = vector(1.0)
    with pytest.raises(ConfigError, match="does not depend on the policy"):
        build("adam", [parameter]).step(Objective.of([parameter], lambda: torch.tensor(1.0)))
