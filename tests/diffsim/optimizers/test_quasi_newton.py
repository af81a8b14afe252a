"""L-BFGS and L-BFGS-B: scenarios, curvature across them, failed line searches, bounds."""

import math

import pytest
import torch
from optimizer_parts import build, sphere, stored_and_read, vector
from same_state import same
from torch import nn

from diffsim.config import Named
from diffsim.errors import ConfigError
from diffsim.optimizers import (
    Objective,
    Scenarios,
    optimizer_settings,
)
from diffsim.optimizers.quasi_newton import LBFGSB


def scenarios_of_steps(batch, steps, **options):
    parameter = vector(1.0, 2.0)
    optimizer = build("lbfgs", [parameter], **options)
    found = [optimizer.scenarios(batch)]
    for _ in range(steps):
        optimizer.step(sphere(parameter))
        found.append(optimizer.scenarios(batch))
    return found


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, [(100, 0), (100, 50), (100, 50), (100, 50)]),
        ({"overlap": 0.0}, [(100, 0), (100, 0), (100, 0), (100, 0)]),
        ({"overlap": 1.0}, [(100, 0), (100, 100), (100, 100), (100, 100)]),
        ({"growth": 1.5}, [(100, 0), (150, 50), (225, 75), (338, 112)]),
        ({"growth": 1.5, "overlap": 1.0}, [(100, 0), (150, 100), (225, 150), (338, 225)]),
        ({"growth": 1.5, "max_scenarios": 180}, [(100, 0), (150, 50), (180, 75), (180, 90)]),
        ({"growth": 2.0, "max_scenarios": 10}, [(100, 0), (100, 50), (100, 50), (100, 50)]),
        ({"growth": 100.0, "max_scenarios": 500}, [(100, 0), (500, 50), (500, 250), (500, 250)]),
    ],
)
def test_scenarios_overlap_and_grow_as_stated(options, wanted):
    assert scenarios_of_steps(100, 3, **options) == [Scenarios(*pair) for pair in wanted]


def test_optimizers_without_a_memory_of_scenarios_always_want_fresh_ones():
    for name in ("adam", "cma_es"):
        assert build(name, [vector(1.0)]).scenarios(7) == Scenarios(7, 0)


def test_a_line_search_that_runs_into_nan_goes_back():
    parameter = vector(1.0)
    optimizer = build("lbfgs", [parameter], lr=10.0)
    report = optimizer.step(
        Objective.of([parameter], lambda: torch.sqrt(parameter).sum())
    )  # undefined below zero
    assert (report.finite, report.loss, report.grad_norm) == (False, 1.0, 0.5)
    assert (parameter.item(), optimizer.restarts) == (1.0, 1)


def poisoned_quartic(parameter, from_call):
    """``sum((x - 3)^4)``, NaN from the given evaluation on, and the points and values before."""
    seen = []

    def loss():
        value = ((parameter - 3) ** 4).sum()
        if len(seen) >= from_call:
            return value * torch.nan
        seen.append((float(value.detach()), parameter.detach().clone()))
        return value

    return Objective.of([parameter], loss), seen


def test_a_restart_lands_on_the_best_point_and_resumes_bit_for_bit():
    parameter = vector(0.0, 1.0)
    optimizer = build("lbfgs", [parameter])
    objective, seen = poisoned_quartic(parameter, 4)
    report = optimizer.step(objective)
    best = min(seen, key=lambda at: at[0])
    assert optimizer.restarts == 1
    assert best[0] < seen[0][0]
    assert report.finite
    assert torch.equal(parameter, best[1])

    resumed_parameter = nn.Parameter(parameter.detach().clone())
    resumed = build("lbfgs", [resumed_parameter])
    resumed.load_state_dict(stored_and_read(optimizer.state_dict()))
    assert resumed.restarts == 1
    for _ in range(3):
        for q, searching in ((parameter, optimizer), (resumed_parameter, resumed)):
            searching.step(poisoned_quartic(q, 10**9)[0])
    assert torch.equal(parameter, resumed_parameter)
    assert same(optimizer.state_dict(), resumed.state_dict())
    assert float(((parameter.detach() - 3) ** 4).sum()) < 1e-2 * best[0]


def test_steps_smaller_than_an_ulp_of_a_float32_parameter_add_up():
    """One parameter jumps to and fro; the slope in the other moves it by 1e-8 a step, a sixth of its ulp."""
    jumping, creeping = vector(1.0, dtype=torch.float32), vector(1.0, dtype=torch.float32)
    optimizer = build("lbfgs", [jumping, creeping], max_iter=1)
    assert optimizer.point.dtype == torch.float64
    for step in range(12):
        target = 1.0 if step % 2 else -1.0
        optimizer.step(
            Objective.of(
                [jumping, creeping], lambda t=target: ((jumping - t) ** 2).sum() / 2 + 1e-8 * creeping.sum()
            )
        )
        if step == 0:
            assert creeping.item() == 1.0
            assert 0.0 < 1.0 - optimizer.point[1].item() < 3e-8
    assert creeping.item() < 1.0
    assert creeping.item() == optimizer.point[1].float().item()


def test_pairs_of_curvature_come_from_one_objective_though_it_changes_every_step():
    """Of ``x'Ax / 2 + b'x`` with another ``b`` at each step every pair must be ``y = A s``."""
    draws = torch.Generator().manual_seed(5)
    root = torch.randn(6, 6, generator=draws, dtype=torch.float64)
    matrix = root @ root.T + torch.eye(6, dtype=torch.float64)
    parameter = nn.Parameter(torch.randn(6, generator=draws, dtype=torch.float64))
    optimizer = build("lbfgs", [parameter], max_iter=3)
    checked = 0
    for _ in range(6):
        b = torch.randn(6, generator=draws, dtype=torch.float64)
        optimizer.step(
            Objective.of([parameter], lambda b=b: parameter @ matrix @ parameter / 2 + b @ parameter)
        )
        state = optimizer.inner.state[optimizer.point]
        for s, y in zip(state["old_stps"], state["old_dirs"], strict=True):
            assert torch.allclose(y, matrix @ s, rtol=0.0, atol=1e-10)
            checked += 1
    assert optimizer.restarts == 0
    assert checked > 30


def test_lbfgsb_evaluates_nothing_outside_its_bounds_and_ends_on_them():
    parameter = vector(0.0, 0.2, -0.1)
    optimizer = build("lbfgsb", [parameter], low=-0.3, high=0.7)
    points = []

    def loss():
        points.append(parameter.detach().clone())
        return ((parameter - torch.tensor([2.0, 0.5, -2.0], dtype=torch.float64)) ** 2).sum()

    for _ in range(3):
        optimizer.step(Objective.of([parameter], loss))
    assert parameter[0].item() == 0.7
    assert parameter[1].item() == pytest.approx(0.5, abs=1e-8)
    assert parameter[2].item() == -0.3
    assert all(bool(((p >= -0.3) & (p <= 0.7)).all()) for p in points)


def test_bounds_of_each_parameter_are_tensors_and_a_start_outside_moves_to_the_nearest_point_inside():
    parameters = [vector(5.0, -5.0), vector(0.0)]
    low = torch.tensor([0.0, -1.0, -math.inf], dtype=torch.float64)
    high = torch.tensor([1.0, 2.0, math.inf], dtype=torch.float64)
    optimizer = LBFGSB(parameters, optimizer_settings(Named(name="lbfgsb")), bounds=(low, high))
    assert [p.tolist() for p in parameters] == [[1.0, -1.0], [0.0]]
    for _ in range(3):
        optimizer.step(Objective.of(parameters, lambda: sum(((p - 9.0) ** 2).sum() for p in parameters)))
    assert parameters[0].tolist() == [1.0, 2.0]
    assert parameters[1].item() == pytest.approx(9.0, abs=1e-6)


def test_bounds_in_the_wrong_order_or_shape_are_errors():
    settings = optimizer_settings(Named(name="lbfgsb"))
    one, two = torch.ones(2), torch.full((2,), 2.0)
    with pytest.raises(ConfigError, match=r"low = 1.0 must be below high = 1.0"):
        build("lbfgsb", [vector(0.0)], low=1.0, high=1.0)
    with pytest.raises(ValueError, match="every low must be below its high"):
        LBFGSB([vector(0.0, 0.0)], settings, bounds=(two, one))
    with pytest.raises(ValueError, match=r"high has the shape \[2\], expected \[3\]"):
        LBFGSB([vector(0.0, 0.0, 0.0)], settings, bounds=(torch.zeros(3), two))
