"""One optimizer that hands over to another."""

import math

import pytest
import torch
from optimizer_parts import build, sphere, vector

from diffsim.optimizers import (
    Objective,
)

SLOPE = {"name": "sgd", "max_grad_norm": None}


def sloping(steps, loss=lambda step: 0.0, **options):
    """Steps of a hand-over down a slope of one, of value ``loss``: their learning rates."""
    parameter = vector(0.0)
    optimizer = build("hand_over", [parameter], **options)
    moved, handed = [], []
    for step in range(steps):
        before = parameter.detach().clone()
        value = lambda at=before, k=step: (parameter - at).sum() + loss(k)
        optimizer.step(Objective.of([parameter], value), 1.0 - step / steps)
        moved.append(float(before - parameter.detach()))
        handed.append(optimizer.handed_over)
    return moved, handed


def test_each_part_of_a_hand_over_has_its_schedule_over_its_own_share():
    parts = {"first": {**SLOPE, "lr": 0.8}, "then": {**SLOPE, "lr": 0.1, "schedule": "cosine"}}
    moved, handed = sloping(8, at=0.25, **parts)
    shares = [1 - k / 6 for k in range(6)]
    cosine = [0.1 * (1 + math.cos(math.pi * (1 - s))) / 2 for s in shares]
    assert handed == [False] * 2 + [True] * 6
    assert moved == pytest.approx([0.8, 0.4, *cosine], rel=1e-12)


def test_a_plateau_hands_over_and_the_second_schedule_spans_the_rest():
    parts = {"first": {**SLOPE, "lr": 1.0}, "then": {**SLOPE, "lr": 0.1}}
    moved, handed = sloping(10, lambda k: 1.0, at=1.0, patience=3, **parts)
    assert handed == [False] * 4 + [True] * 6
    assert moved[:4] == pytest.approx([1.0, 0.9, 0.8, 0.7])
    assert moved[4:] == pytest.approx([0.1 * (1 - k / 6) for k in range(6)])


@pytest.mark.parametrize(("fall", "expected"), [(0.99, False), (0.9999, True)])
def test_progress_is_a_relative_fall_of_the_loss_above_the_threshold(fall, expected):
    parts = {"first": {**SLOPE, "lr": 1.0}, "then": {**SLOPE, "lr": 0.1}}
    _, handed = sloping(20, lambda k: 5.0 * fall**k, at=1.0, patience=4, threshold=1e-3, **parts)
    assert handed[-1] is expected


def test_what_a_plateau_starts_the_share_of_the_run_ends_at_the_latest():
    parts = {"first": {**SLOPE, "lr": 1.0}, "then": {**SLOPE, "lr": 0.1}}
    _, handed = sloping(10, lambda k: -float(k), at=0.7, patience=3, **parts)
    assert handed == [False] * 7 + [True] * 3


@pytest.mark.parametrize("better", ["mean", "best"])
@pytest.mark.parametrize("worse", [1.0, math.nan])
def test_the_second_part_starts_at_the_better_of_mean_and_best_on_the_objective_of_that_step(better, worse):
    parameter = vector(1.0, -2.0, 0.5)
    first, then = {"name": "cma_es", "popsize": 8}, {**SLOPE, "lr": 0.125, "schedule": "constant"}
    optimizer = build("hand_over", [parameter], first=first, then=then, at=0.5)
    for step in range(4):
        optimizer.step(sphere(parameter), 1.0 - step / 8)
    mean, best = parameter.detach().clone(), optimizer.best.clone()
    assert not torch.equal(mean, best)
    chosen = {"mean": mean, "best": best}[better]
    asked = []

    def values(candidates):
        asked.append(candidates.clone())
        near = (candidates - chosen).abs().sum(1) == 0.0
        return torch.where(near, -1.0, worse).double()

    report = optimizer.step(Objective.of([parameter], lambda: parameter.sum(), values), 0.5)
    assert len(asked) == 1
    assert torch.equal(asked[0], torch.stack([mean, best]))
    assert (report.evaluations, report.gradients) == (3, 1)
    assert torch.equal(parameter, chosen - 0.125)


def test_a_gradient_method_hands_over_where_it_stands_without_another_evaluation():
    parameter = vector(1.0, -2.0)
    optimizer = build("hand_over", [parameter], first={"name": "adam"}, then=SLOPE, at=0.5)
    reports = [optimizer.step(sphere(parameter), 1.0 - k / 4) for k in range(4)]
    assert optimizer.handed_over
    assert [r.evaluations for r in reports] == [1, 1, 1, 1]
