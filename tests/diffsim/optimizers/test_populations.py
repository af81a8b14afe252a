"""Population optimizers: draws, members that are lost, memory."""

import copy
import logging
import math
import tracemalloc

import numpy as np
import pytest
import torch
from optimizer_parts import build, sphere, vector
from same_state import same
from torch import nn

from diffsim.optimizers import (
    Objective,
)

POPULATIONS = ("cma_es", "openai_es", "pgpe", "pso", "differential_evolution")


def generations(name, count, change=lambda values: values, seed=4, **options):
    """The parameters after each generation on a sphere, and all candidates."""
    parameter = vector(1.0, -2.0, 0.5, 3.0)
    if name in ("pso", "differential_evolution"):
        options = {"reevaluate": False, **options}
    optimizer = build(name, [parameter], seed=seed, popsize=12, **options)
    points, candidates = [], []

    def values(c):
        candidates.append(c.clone())
        return change((c**2).sum(1))

    for _ in range(count):
        optimizer.step(Objective.of([parameter], lambda: (parameter**2).sum(), values))
        points.append(parameter.detach().clone())
    return optimizer, points, candidates


def replaced(which, by):
    def change(values):
        values = values.clone()
        values[which] = by
        return values

    return change


@pytest.mark.parametrize("name", ["cma_es", "openai_es", "pgpe"])
@pytest.mark.parametrize("lost", [math.nan, math.inf, -math.inf])
def test_members_without_a_finite_value_do_not_change_the_order_of_the_others(name, lost):
    """They count as the worst: what a huge value instead leads to is the same to the last bit."""
    which = [1, 5, 6]
    huge = torch.tensor([1e6, 1e6, 1e6], dtype=torch.float64)
    _, wanted, _ = generations(name, 6, replaced(which, huge))
    optimizer, found, _ = generations(name, 6, replaced(which, lost))
    _, undisturbed, _ = generations(name, 6)
    assert all(map(torch.equal, wanted, found))
    assert not torch.equal(undisturbed[-1], found[-1])
    assert math.isfinite(optimizer.best_loss)
    assert optimizer.best_loss == pytest.approx(float((optimizer.best**2).sum()), rel=1e-12)


@pytest.mark.parametrize("again", [True, False])
@pytest.mark.parametrize("name", ["pso", "differential_evolution"])
def test_what_a_swarm_remembers_is_never_replaced_by_a_member_without_a_finite_value(name, again):
    """Undefined above 1 in the first parameter; values fall, so that the worst of a step is soon good."""
    parameter = vector(0.9, 2.0, -2.0)
    optimizer = build(name, [parameter], seed=2, popsize=12, radius=2.0, reevaluate=again)

    def values(c):
        return torch.where(c[:, 0] > 1.0, math.nan, (c**2).sum(1))

    remembered = "pop" if name == "differential_evolution" else "local_best_location"
    usable = torch.zeros(12, dtype=torch.bool)
    for step in range(12):
        optimizer.step(Objective.of([parameter], parameter.sum, values))
        if step:  # a particle's memory is brought up to date at the beginning of the next step
            now = (parameter.new_tensor([0.9, 2.0, -2.0]) + 2.0 * getattr(optimizer.inner, remembered))[
                :, 0
            ] <= 1.0
            assert not bool((usable & ~now).any())
            usable = now
    assert parameter[0].item() <= 1.0


@pytest.mark.parametrize("name", ["pso", "differential_evolution"])
def test_the_only_member_with_a_finite_value_becomes_the_policy_of_a_swarm(name):
    parameter = vector(1.0, 2.0)
    optimizer = build(name, [parameter], popsize=8)
    candidates = []

    def values(c):
        candidates.append(c.clone())
        return torch.tensor([math.nan] * 5 + [5.0] + [math.nan] * 2, dtype=torch.float64)

    optimizer.step(Objective.of([parameter], parameter.sum, values))
    assert torch.equal(parameter, candidates[0][5])
    assert (optimizer.best_loss, optimizer.best.tolist()) == (5.0, parameter.tolist())


@pytest.mark.parametrize("before", [0, 3])
@pytest.mark.parametrize("name", POPULATIONS)
def test_a_generation_without_any_finite_value_teaches_nothing(name, before):
    """Parameters and search are as they were; only what is drawn next may differ."""
    optimizer, _, _ = generations(name, before)
    parameter = optimizer.vector.parameters[0]
    point, state = parameter.detach().clone(), copy.deepcopy(optimizer.state_dict())
    suggested = [q.clone() for q in optimizer.suggestions()]
    report = optimizer.step(Objective.of([parameter], lambda: parameter.sum(), lambda c: c.sum(1) * math.nan))
    after = optimizer.state_dict()
    assert (report.finite, report.evaluations, report.gradients) == (False, 12, 0)
    assert math.isnan(report.loss)
    assert torch.equal(parameter, point)
    assert all(map(torch.equal, optimizer.suggestions(), suggested))
    assert same((after["best"], after["best_loss"]), (state["best"], state["best_loss"]))
    if name == "cma_es":
        for key in ("mean", "sigma", "pc", "countiter", "countevals", "sm.C"):
            assert same(after["inner"][key], state["inner"][key])
    else:
        ignored = {"generator"}
        assert same(*({k: v for k, v in q.items() if k not in ignored} for q in (after, state)))
    assert optimizer.step(sphere(parameter)).finite


@pytest.mark.parametrize("shaping", ["centered", "raw"])
@pytest.mark.parametrize("name", ["pgpe", "openai_es"])
def test_a_plateau_does_not_break_an_evolution_strategy(name, shaping):
    """All values are equal for three generations, so that raw differences are zero; then it descends."""
    _, points, _ = generations(name, 3, lambda values: 0.0 * values, shaping=shaping)
    assert all(bool(p.isfinite().all()) for p in points)
    _, points, _ = generations(name, 1, shaping=shaping)
    plateau = iter([0.0, 0.0, 0.0] + [1.0] * 57)
    _, after, _ = generations(name, 60, lambda values: next(plateau) * values, shaping=shaping)
    assert float((after[-1] ** 2).sum()) < float((points[0] ** 2).sum())


@pytest.mark.parametrize("name", ["pgpe", "openai_es"])
def test_antithetic_pairs_mirror_each_other_at_the_centre(name):
    _, points, candidates = generations(name, 4)
    centres = [torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64), *points[:-1]]
    for centre, members in zip(centres, candidates, strict=True):
        assert torch.allclose((members[0::2] + members[1::2]) / 2, centre.expand(6, 4), rtol=0.0, atol=1e-12)
        assert len(torch.unique(members, dim=0)) == 12
    _, _, candidates = generations(name, 1, antithetic=False)
    assert not torch.allclose(
        (candidates[0][0::2] + candidates[0][1::2]) / 2, centres[0].expand(6, 4), atol=1e-3
    )


@pytest.mark.parametrize("name", POPULATIONS)
def test_a_population_draws_from_its_own_seed_alone(name):
    """The same seed repeats, another differs, the global generators stay where they are."""
    torch.manual_seed(11)
    before = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    _, first, _ = generations(name, 4, seed=1)
    after = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert all(map(np.array_equal, before[1], after[1]))
    torch.manual_seed(12)
    np.random.seed(12)  # noqa: NPY002
    _, again, _ = generations(name, 4, seed=1)
    _, other, _ = generations(name, 4, seed=2)
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[-1], other[-1])


def test_the_policy_becomes_the_mean_of_cma_es():
    """Recombination by hand: log weights of the better half (Hansen, arXiv 1604.00772, (49)), first step."""
    optimizer, points, candidates = generations("cma_es", 1)
    order = (candidates[0] ** 2).sum(1).argsort()
    weights = torch.log(torch.tensor(6.5)) - torch.log(torch.arange(1.0, 7.0))
    wanted = (weights / weights.sum()).double() @ candidates[0][order[:6]]
    assert torch.allclose(points[0], wanted, rtol=0.0, atol=1e-6)
    assert torch.equal(points[0], torch.from_numpy(optimizer.inner.mean))


@pytest.mark.parametrize("name", ["pgpe", "openai_es"])
def test_the_policy_becomes_the_centre_of_an_evolution_strategy(name):
    _, points, candidates = generations(name, 5)
    for point, members in zip(points, candidates[1:], strict=False):
        assert torch.allclose(members.mean(0), point, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("name", ["pso", "differential_evolution"])
def test_the_policy_becomes_the_best_member_of_a_swarm(name):
    optimizer, points, candidates = generations(name, 5)
    for step, point in enumerate(points):
        members = torch.cat(candidates[: step + 1])
        assert torch.equal(point, members[(members**2).sum(1).argmin()])
    assert optimizer.best_loss == float((points[-1] ** 2).sum())


@pytest.mark.parametrize("name", ["pso", "differential_evolution"])
def test_a_swarm_values_what_it_remembers_again_when_the_objective_changes(name):
    """The floor rises by 100 a step: without a second look the first values remembered always win."""
    ends, counts = {}, {}
    for again in (True, False):
        parameter = vector(1.0, -2.0, 0.5, 3.0)
        optimizer = build(name, [parameter], seed=4, popsize=12, radius=4.0, reevaluate=again)
        reports = [
            optimizer.step(
                Objective.of(
                    [parameter], parameter.sum, lambda c, k=step: ((c - 0.5) ** 2).sum(1) + 100.0 * k
                )
            )
            for step in range(15)
        ]
        ends[again] = float(((parameter.detach() - 0.5) ** 2).sum())
        counts[again] = [r.evaluations for r in reports]
    assert counts[False] == [12] * 15
    assert counts[True][0] == 12
    assert min(counts[True][1:]) >= 24
    assert ends[True] < 0.5 * ends[False]


@pytest.mark.parametrize("name", ["pso", "differential_evolution"])
def test_a_swarm_searches_the_box_around_the_start_and_begins_with_the_start(name):
    start = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    _, _, candidates = generations(name, 8, radius=0.25)
    assert torch.equal(candidates[0][0], start)
    assert float((torch.cat(candidates) - start).abs().max()) <= 0.25 + 1e-12


def test_cma_es_of_a_hundred_thousand_parameters_needs_no_square_of_memory(caplog):
    """Measured are construction and one step of three, for measuring makes a step thirty times slower."""
    parameter = nn.Parameter(torch.full((100_000,), 0.5))
    before = parameter.detach().clone()
    tracemalloc.start()
    try:
        with caplog.at_level(logging.WARNING, logger="diffsim"):
            optimizer = build("cma_es", [parameter], popsize=8)
        first = optimizer.step(sphere(parameter))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    reports = [first] + [optimizer.step(sphere(parameter)) for _ in range(2)]
    assert optimizer.covariance == "limited_memory"
    (record,) = caplog.records
    assert "100,000 parameters" in record.getMessage()
    assert "limited-memory" in record.getMessage()
    assert [r.evaluations for r in reports] == [8, 8, 8]
    assert min(r.loss for r in reports[1:]) < first.loss
    assert float((parameter.detach() - before).abs().min()) > 0.0
    assert 8 * 100_000 * 8 < peak < 200 * 100_000 * 8


def test_the_form_of_the_covariance_goes_by_the_number_of_parameters(caplog):
    with caplog.at_level(logging.INFO, logger="diffsim"):
        full = build("cma_es", [nn.Parameter(torch.zeros(200))])
        chosen = build("cma_es", [nn.Parameter(torch.zeros(2000))], covariance="separable")
        assert (full.covariance, chosen.covariance, caplog.records) == ("full", "separable", [])
        assert build("cma_es", [nn.Parameter(torch.zeros(2000))]).covariance == "separable"
    assert "2,000 parameters" in caplog.text
    assert full.popsize == 4 + int(3 * math.log(200))
