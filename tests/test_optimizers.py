"""The contract of every optimizer, schedules, scenarios, populations, hand-overs and mistakes."""

import copy
import io
import logging
import math
import tracemalloc

import h5py
import numpy as np
import pytest
import torch
from same_state import same
from torch import nn

from diffsim import state_tree
from diffsim.config import Named
from diffsim.errors import ConfigError
from diffsim.optimizers import (
    OPTIMIZERS,
    Objective,
    Scenarios,
    conformance,
    make_optimizer,
    optimizer_class,
    optimizer_settings,
)
from diffsim.optimizers.conformance import ConformanceError, check_optimizer
from diffsim.optimizers.first_order import Adam, AdamSettings, FirstOrder, optimizer_classes
from diffsim.optimizers.quasi_newton import LBFGSB

POPULATIONS = ("cma_es", "openai_es", "pgpe", "pso", "differential_evolution")


def build(name, parameters, seed=0, **options):
    return make_optimizer(parameters, Named(name=name, **options), seed)


def vector(*values, dtype=torch.float64):
    return nn.Parameter(torch.tensor(values, dtype=dtype))


def sphere(parameter, centre=0.0):
    """The squared distance to ``centre``, for optimizers of every kind."""
    return Objective(
        [parameter], lambda: ((parameter - centre) ** 2).sum(), lambda c: ((c - centre) ** 2).sum(1)
    )


def stored_and_read(state):
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", track_order=True) as file:
        state_tree.write(file, "state", state)
    with h5py.File(buffer, "r") as file:
        return state_tree.read(file["state"])


# -- The conformance suite -----------------------------------------------------------------------------------

# Learning rates that lead half of the way down the suite's bowl in 80 steps.
RATES = {
    "adadelta": {"lr": 10.0},
    "adafactor": {"lr": 0.1},
    "adagrad": {"lr": 0.5},
    "adam": {"lr": 0.05},
    "adamax": {"lr": 0.05},
    "adamw": {"lr": 0.05},
    "hand_over": {"first": {"name": "adam", "lr": 0.1}, "then": {"name": "sgd", "lr": 0.05}},
    "lamb": {"lr": 0.02},
    "lars": {"lr": 0.02, "trust_coefficient": 0.5},
    "momentum": {"lr": 0.02},
    "nadam": {"lr": 0.05},
    "nesterov": {"lr": 0.02},
    "radam": {"lr": 0.1},
    "rmsprop": {"lr": 0.05},
    "sgd": {"lr": 0.05},
}
VARIANTS = [
    ("adam", {"lr": 0.1, "schedule": {"name": "StepLR", "step_size": 3, "gamma": 0.9}}),
    ("adam", {"lr": 0.05, "schedule": "ReduceLROnPlateau"}),
    ("adam", {"schedule": {"name": "OneCycleLR", "max_lr": 0.05, "total_steps": 100}}),
    ("adam", {"lr": 0.1, "schedule": "cosine", "warm_up": 0.3, "max_grad_norm": 1.0}),
    ("adam", {"lr": 0.1, "gradient": "alpha_order", "gradient_groups": 2}),
    ("adam", {"lr": 0.1, "gradient": "zeroth_order", "gradient_groups": 2}),
    ("lbfgs", {"max_iter": 20, "history_size": 3}),
    ("lbfgs", {"line_search_fn": "none", "lr": 0.1}),
    ("hand_over", {"first": {"name": "adam", "lr": 0.1}, "then": {"name": "sgd", "lr": 0.05}, "at": 0.5}),
    ("hand_over", {"first": "cma_es", "then": {"name": "adam", "lr": 0.05}, "at": 0.25}),
    ("hand_over", {"first": "pgpe", "then": "lbfgs", "at": 0.5}),
    ("hand_over", {"first": {"name": "adam", "lr": 0.1}, "then": "lbfgsb", "patience": 2, "threshold": 10.0}),
    ("cma_es", {"covariance": "separable"}),
    ("cma_es", {"covariance": "limited_memory"}),
    ("openai_es", {"antithetic": False}),
    ("pgpe", {"shaping": "raw"}),
    ("openai_es", {"shaping": "nes"}),
    ("differential_evolution", {"base": "best"}),
    ("torch.optim.NAdam", {"lr": 0.05}),
    ("pytorch_optimizer.Lion", {"lr": 0.05}),
]


@pytest.fixture
def short_suite(monkeypatch):
    """A third of the steps: resuming at each of them costs their square."""
    monkeypatch.setattr(conformance, "STEPS", 4)


@pytest.mark.parametrize("name", dict.fromkeys((*OPTIMIZERS, *optimizer_classes())))
def test_every_optimizer_keeps_the_contract(name, short_suite):
    check_optimizer(lambda parameters: build(name, parameters, seed=3, **RATES.get(name, {})))


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_every_variant_keeps_the_contract(name, options, short_suite):
    """Those that hand over do so in the middle of the suite's steps."""
    check_optimizer(lambda parameters: build(name, parameters, seed=3, **options))


class Miscounting(Adam):
    def step(self, objective, remaining=1.0):
        report = super().step(objective, remaining)
        return report._replace(evaluations=report.evaluations + 1)


class Forgetful(Adam):
    """Saves its moments, but not how many steps they come from."""

    def _state(self):
        state = copy.deepcopy(super()._state())
        for entries in state["inner"]["state"].values():
            entries["step"] *= 0
        return state


class Credulous(Adam):
    """Takes every step, whatever loss and gradient are."""

    def _step(self, objective, remaining):
        found = objective.gradient()
        self._saw(found.loss)
        for parameter, part in zip(self.vector.parameters, found.parts, strict=True):
            parameter.grad = part.clone()
        self._set_rates(remaining)
        self.inner.step()
        return found.loss, found.norm, True


class Boastful(Adam):
    """Keeps a best value that is not its point's."""

    def _saw(self, loss, point=None):
        super()._saw(loss - 1.0, point)


class Ascending(Adam):
    def options(self):
        return super().options() | {"maximize": True}


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        (
            Miscounting,
            "evaluations_are_counted: step 1 reports 2 evaluations, 1 with a gradient; there were 1 and 1",
        ),
        (Forgetful, "resuming_changes_no_bit: resumed after step 1, it ends elsewhere"),
        (Credulous, "what_is_not_finite_is_never_kept: NaN at step .* parameters are not finite"),
        (Boastful, "what_is_not_finite_is_never_kept: NaN: the best point is said to be worth"),
        (Ascending, "it_descends: 80 steps from 17.5 led to .*, not below 10.2"),
    ],
)
def test_the_suite_finds_a_breach_of_the_contract(kind, complaint):
    settings = AdamSettings(lr=0.05)
    with pytest.raises(ConformanceError, match=complaint) as caught:
        check_optimizer(lambda parameters: kind(parameters, settings))
    check = complaint.partition(":")[0]
    assert all(line.strip().startswith(check) for line in str(caught.value).splitlines()[1:])


def test_an_optimizer_that_crashes_is_reported_by_every_check():
    class Crashing(Adam):
        def _step(self, objective, remaining):
            raise RuntimeError("out of order")

    with pytest.raises(ConformanceError) as caught:
        check_optimizer(lambda parameters: Crashing(parameters, AdamSettings()))
    assert str(caught.value).count("RuntimeError: out of order") == 4


# -- Learning rates, clipping, what is not finite ------------------------------------------------------------

REMAINING = [1.0, 0.95, 0.8, 0.5, 0.25, 0.01]


def rates(remaining=REMAINING, **options):
    """The learning rate of each step: how far SGD goes down a slope of one."""
    parameter = vector(0.0)
    optimizer = build("sgd", [parameter], lr=0.5, max_grad_norm=None, **options)
    moved = []
    for share in remaining:
        before = parameter.item()
        optimizer.step(Objective([parameter], lambda: parameter.sum()), share)
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
        optimizer.step(Objective([parameter], lambda q=loss: 0.0 * parameter.sum() + q))
    assert seen == pytest.approx([1.0, 1.0, 1.0, 1.0, 0.1, 0.1])


def test_gradients_above_the_norm_are_scaled_down_to_it_and_others_are_left_alone():
    for limit, wanted in ((1.0, (2.4, 3.2)), (5.1, (0.0, 0.0))):
        parameter = vector(3.0, 4.0)
        optimizer = build("sgd", [parameter], lr=1.0, max_grad_norm=limit)
        report = optimizer.step(Objective([parameter], lambda p=parameter: (p**2).sum() / 2))
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
        report = optimizer.step(Objective([parameter], loss))
        assert (report.finite, report.evaluations, report.gradients) == (False, 1, 1)
        assert torch.equal(parameter, before)
        assert same(optimizer.state_dict(), state)
    assert optimizer.step(sphere(parameter)).finite


def test_a_loss_that_does_not_depend_on_the_parameters_is_an_error():
    parameter = vector(1.0)
    with pytest.raises(ConfigError, match="does not depend on the policy"):
        build("adam", [parameter]).step(Objective([parameter], lambda: torch.tensor(1.0)))


# -- Quasi-Newton --------------------------------------------------------------------------------------------


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
        Objective([parameter], lambda: torch.sqrt(parameter).sum())
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

    return Objective([parameter], loss), seen


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
            Objective(
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
        optimizer.step(Objective([parameter], lambda b=b: parameter @ matrix @ parameter / 2 + b @ parameter))
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
        optimizer.step(Objective([parameter], loss))
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
        optimizer.step(Objective(parameters, lambda: sum(((p - 9.0) ** 2).sum() for p in parameters)))
    assert parameters[0].tolist() == [1.0, 2.0]
    assert parameters[1].item() == pytest.approx(9.0, abs=1e-6)


def test_bounds_in_the_wrong_order_or_shape_are_errors():
    settings = optimizer_settings(Named(name="lbfgsb"))
    one, two = torch.ones(2), torch.full((2,), 2.0)
    with pytest.raises(ConfigError, match=r"low = 1.0 must be below high = 1.0"):
        build("lbfgsb", [vector(0.0)], low=1.0, high=1.0)
    with pytest.raises(ValueError, match="every low must be below its high"):
        LBFGSB([vector(0.0, 0.0)], settings, bounds=(two, one))
    with pytest.raises(ValueError, match=r"high has the shape \(2,\), expected \[3\]"):
        LBFGSB([vector(0.0, 0.0, 0.0)], settings, bounds=(torch.zeros(3), two))


# -- Populations ---------------------------------------------------------------------------------------------


def generations(name, count, change=lambda values: values, seed=4, **options):
    """The parameters after each generation on a sphere, and all candidates."""
    parameter = vector(1.0, -2.0, 0.5, 3.0)
    if name in ("pso", "differential_evolution"):
        options = {"reevaluate": False, **options}
    optimizer = build(name, [parameter], seed=seed, members=12, **options)
    points, candidates = [], []

    def values(c):
        candidates.append(c.clone())
        return change((c**2).sum(1))

    for _ in range(count):
        optimizer.step(Objective([parameter], lambda: (parameter**2).sum(), values))
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
    optimizer = build(name, [parameter], seed=2, members=12, radius=2.0, reevaluate=again)

    def values(c):
        return torch.where(c[:, 0] > 1.0, math.nan, (c**2).sum(1))

    remembered = "pop" if name == "differential_evolution" else "local_best_location"
    usable = torch.zeros(12, dtype=torch.bool)
    for step in range(12):
        optimizer.step(Objective([parameter], parameter.sum, values))
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
    optimizer = build(name, [parameter], members=8)
    candidates = []

    def values(c):
        candidates.append(c.clone())
        return torch.tensor([math.nan] * 5 + [5.0] + [math.nan] * 2, dtype=torch.float64)

    optimizer.step(Objective([parameter], parameter.sum, values))
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
    report = optimizer.step(Objective([parameter], lambda: parameter.sum(), lambda c: c.sum(1) * math.nan))
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
        optimizer = build(name, [parameter], seed=4, members=12, radius=4.0, reevaluate=again)
        reports = [
            optimizer.step(
                Objective([parameter], parameter.sum, lambda c, k=step: ((c - 0.5) ** 2).sum(1) + 100.0 * k)
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
            optimizer = build("cma_es", [parameter], members=8)
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
    assert full.members == 4 + int(3 * math.log(200))


# -- Hand-over -----------------------------------------------------------------------------------------------

SLOPE = {"name": "sgd", "max_grad_norm": None}


def sloping(steps, loss=lambda step: 0.0, **options):
    """Steps of a hand-over down a slope of one, of value ``loss``: their learning rates."""
    parameter = vector(0.0)
    optimizer = build("hand_over", [parameter], **options)
    moved, handed = [], []
    for step in range(steps):
        before = parameter.detach().clone()
        value = lambda at=before, k=step: (parameter - at).sum() + loss(k)
        optimizer.step(Objective([parameter], value), 1.0 - step / steps)
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
    first, then = {"name": "cma_es", "members": 8}, {**SLOPE, "lr": 0.125, "schedule": "constant"}
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

    report = optimizer.step(Objective([parameter], lambda: parameter.sum(), values), 0.5)
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


# -- Mistakes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"name": "adm"}, r"unknown optimizer 'adm'; did you mean 'adam'\? known: .*lbfgs"),
        ({"name": "sparseadam"}, "unknown optimizer 'sparseadam'"),
        ({"name": "torch.optim.SparseAdam"}, "SparseAdam"),
        ({"name": "torch.optim.Nope"}, "optimizer 'torch.optim.Nope': .*no attribute 'Nope'"),
        ({"name": "no_such_library.Adam"}, "No module named 'no_such_library'"),
        ({"name": "torch.nn.Linear"}, "is no subclass of torch.optim.Optimizer"),
        ({"name": "adam", "beta": 1}, r"unknown key 'optimizer.beta'; did you mean 'optimizer.betas'\?"),
        ({"name": "nadam", "beta": 1}, r"unknown key 'optimizer.beta'; did you mean 'optimizer.betas'\?"),
        ({"name": "cma_es", "sigm": 1}, r"unknown key 'optimizer.sigm'; did you mean 'optimizer.sigma'\?"),
        ({"name": "adam", "lr": "fast"}, "optimizer.lr = 'fast': .*number"),
        ({"name": "adam", "lr": -1.0}, "optimizer.lr = -1.0: .*greater than 0"),
        ({"name": "adam", "lr": True}, "optimizer.lr = True: .*a truth value is no number"),
        ({"name": "adam", "lr": math.nan}, "optimizer.lr = nan"),
        ({"name": "adam", "betas": 0.9}, "optimizer.betas = 0.9"),
        ({"name": "adam", "betas": (0.9, 1.0)}, r"optimizer.betas.1 = 1.0: .*less than 1"),
        ({"name": "torch.optim.NAdam", "betas": (0.9, 1.5)}, "optimizer NAdam with .*1.5"),
        ({"name": "adam", "schedule": "linaer"}, r"unknown schedule 'linaer'; did you mean 'linear'\?"),
        (
            {"name": "adam", "schedule": {"name": "StepLR", "stepsize": 3}},
            r"unknown key 'optimizer.schedule.stepsize'; did you mean 'optimizer.schedule.step_size'\?",
        ),
        ({"name": "adam", "schedule": "StepLR"}, "optimizer.schedule StepLR with .*step_size"),
        ({"name": "adam", "gradient": "second_order"}, "optimizer.gradient = 'second_order'"),
        ({"name": "lbfgs", "line_search_fn": "wolfe"}, "optimizer.line_search_fn = 'wolfe': .*strong_wolfe"),
        ({"name": "lbfgs", "overlap": 1.5}, "optimizer.overlap = 1.5"),
        ({"name": "pgpe", "members": 7}, "members = 7 must be even for antithetic pairs"),
        ({"name": "openai_es", "betas": (0.9, 1.5)}, "optimizer.betas.1 = 1.5"),
        ({"name": "pso", "members": 3}, "optimizer.members = 3: .*4"),
        ({"name": "differential_evolution", "members": 3}, "members = 3: .*greater than or equal to 4"),
        ({"name": "cma_es", "covariance": "diagonal"}, "optimizer.covariance = 'diagonal': .*'separable'"),
        ({"name": "hand_over", "then": "sdg"}, r"unknown optimizer 'sdg'; did you mean 'sgd'\?"),
        (
            {"name": "hand_over", "then": {"name": "adam", "beta": 1}},
            r"unknown key 'optimizer.then.beta'; did you mean 'optimizer.then.betas'\?",
        ),
        ({"name": "hand_over", "first": {"name": "pgpe", "members": 2}}, "optimizer.first.members = 2"),
        ({"name": "hand_over", "at": 1.5}, "optimizer.at = 1.5: .*less than or equal to 1"),
    ],
)
def test_mistakes_are_named_at_construction(config, complaint):
    with pytest.raises(ConfigError, match=complaint):
        make_optimizer([vector(0.0, 0.0)], Named(**config))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_policy_without_trainable_parameters_is_an_error(name):
    with pytest.raises(ConfigError, match="nothing to optimize: the policy has no trainable parameters"):
        make_optimizer([], Named(name=name))


def test_every_optimizer_of_torch_that_can_train_a_policy_is_offered():
    offered = {kind.__name__ for kind in optimizer_classes().values()}
    assert {"Adam", "NAdam", "Adadelta", "Rprop"} <= offered
    assert offered.isdisjoint({"SparseAdam", "Muon", "Optimizer"})


def test_an_unknown_name_is_answered_by_each_known_one_once():
    with pytest.raises(ConfigError) as caught:
        optimizer_class("adm")
    known = str(caught.value).partition("known: ")[2].partition(" (")[0].split(", ")
    assert set(known) == {*OPTIMIZERS, *optimizer_classes()}
    assert len(known) == len(set(known))


def test_names_do_not_mind_case_and_dotted_ones_lead_to_the_class():
    assert optimizer_class("CMA_ES") is optimizer_class("cma_es")
    assert optimizer_class("torch.optim.LBFGS") is optimizer_class("lbfgs")
    assert optimizer_class("diffsim.optimizers.first_order.Adam") is Adam
    assert issubclass(optimizer_class("torch.optim.NAdam"), FirstOrder)
    assert isinstance(build("torch.optim.NAdam", [vector(0.0)]).inner, torch.optim.NAdam)


# -- What a state fits, what an objective may be -------------------------------------------------------------


def test_a_state_of_another_kind_or_size_is_refused():
    optimizer = build("adam", [vector(1.0, 2.0, 3.0)])
    state = optimizer.state_dict()
    with pytest.raises(ConfigError, match="state of Adam for 3 parameters does not fit Adam for 2"):
        build("adam", [vector(1.0, 2.0)]).load_state_dict(state)
    with pytest.raises(ConfigError, match="does not fit LBFGS for 3"):
        build("lbfgs", [vector(1.0, 2.0, 3.0)]).load_state_dict(state)
    with pytest.raises(ConfigError, match="state of NAdam for 3 parameters does not fit RAdam"):
        build("radam", [vector(1.0, 2.0, 3.0)]).load_state_dict(
            build("nadam", [vector(1.0, 2.0, 3.0)]).state_dict()
        )
    with pytest.raises(ConfigError, match="state of None"):
        optimizer.load_state_dict({})


@pytest.mark.parametrize("name", ["adam", "lbfgs", "lbfgsb", "cma_es", "pgpe", "pso"])
def test_frozen_parameters_stay_and_the_others_move(name):
    free, frozen = vector(1.0, 2.0), vector(3.0, 4.0)
    frozen.requires_grad_(False)
    optimizer = build(name, [frozen, free])
    objective = Objective(
        [frozen, free], lambda: (free**2).sum() + frozen.sum(), lambda c: (c**2).sum(1) + frozen.sum()
    )
    for _ in range(3):
        optimizer.step(objective)
    assert frozen.tolist() == [3.0, 4.0]
    assert free.tolist() != [1.0, 2.0]


@pytest.mark.parametrize(("name", "option"), [("adam", "lr"), ("openai_es", "lr"), ("cma_es", "sigma")])
def test_a_step_beyond_the_largest_number_is_not_taken(name, option):
    parameter = vector(1.0, 2.0, dtype=torch.float32)
    optimizer = build(name, [parameter], **{option: 1e39})
    report = optimizer.step(sphere(parameter))
    assert not report.finite
    assert parameter.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("loss", "told"),
    [
        (lambda p: p, r"without dimensions, got one of shape \[2\]"),
        (lambda p: p[:1], r"got one of shape \[1\]"),
        (lambda p: 3.0, "got float 3.0"),
    ],
)
def test_a_loss_must_be_a_scalar(loss, told):
    parameter = vector(1.0, 2.0)
    objective = Objective([parameter], lambda: loss(parameter))
    for name in ("adam", "lbfgs", "cma_es"):
        with pytest.raises(ConfigError, match=told):
            build(name, [parameter]).step(objective)


@pytest.mark.parametrize("shape", [(8, 1), (7,), ()])
def test_a_population_has_a_value_a_member(shape):
    parameter = vector(1.0, 2.0)
    objective = Objective([parameter], lambda: (parameter**2).sum(), lambda c: torch.ones(shape))
    with pytest.raises(ConfigError, match=r"tensor of shape \[8\], got one of shape"):
        build("cma_es", [parameter], members=8).step(objective)


def test_a_schedule_that_has_come_to_its_end_is_an_error_that_names_it():
    parameter = vector(1.0)
    schedule = {"name": "OneCycleLR", "max_lr": 0.1, "total_steps": 2}
    optimizer = build("sgd", [parameter], schedule=schedule)

    def steps():
        for _ in range(4):
            optimizer.step(sphere(parameter))

    with pytest.raises(ConfigError, match=r"optimizer.schedule .*OneCycleLR.*total"):
        steps()


def test_names_may_be_written_as_the_literature_does():
    assert optimizer_class("CMA-ES") is optimizer_class("cma_es")
    assert optimizer_class("Adam") is optimizer_class("adam")


def test_a_hand_over_part_without_a_name_is_the_usual_one():
    settings = optimizer_settings(Named(name="hand_over", then={"lr": 0.25}))
    assert (settings.first.name, settings.then.name, settings.then.options["lr"]) == ("adam", "sgd", 0.25)
