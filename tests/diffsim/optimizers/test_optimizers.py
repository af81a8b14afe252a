"""The contract of every optimizer: the conformance suite, states, objectives, mistakes."""

import copy
import math
import sys

import pytest
import torch
from optimizer_parts import build, sphere, vector

from diffsim.config import Named
from diffsim.errors import ConfigError
from diffsim.optimizers import (
    OPTIMIZERS,
    Objective,
    Samples,
    conformance,
    make_optimizer,
    optimizer_class,
    optimizer_settings,
)
from diffsim.optimizers.conformance import ConformanceError, check_optimizer
from diffsim.optimizers.first_order import Adam, AdamSettings, FirstOrder, optimizer_classes
from lazy_registry.installation import install_command

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
        (Forgetful, "resuming_changes_no_bit: resumed after step 1, it ends at other parameters"),
        (Credulous, "what_is_not_finite_is_never_kept: NaN at step .* parameters are not finite"),
        (Boastful, "what_is_not_finite_is_never_kept: NaN: best_loss is .*, but the value at best is"),
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
    objective = Objective.of(
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
    objective = Objective.of([parameter], lambda: loss(parameter))
    for name in ("adam", "lbfgs", "cma_es"):
        with pytest.raises(ConfigError, match=told):
            build(name, [parameter]).step(objective)


class Line(Objective):
    """x₁ + 2 x₂ as a subclass defines it, with a note of which of its methods was asked."""

    def __init__(self, parameter):
        super().__init__([parameter])
        self.parameter, self.asked = parameter, []

    def loss(self):
        self.asked.append("loss")
        return self.parameter[0] + 2 * self.parameter[1]


class Plane(Line):
    def population(self, candidates):
        self.asked.append("population")
        assert not torch.is_grad_enabled()
        return candidates[:, 0] + 2 * candidates[:, 1]


def test_an_objective_is_a_subclass_with_a_loss():
    parameter = vector(3.0, 1.0)
    objective = Line(parameter)
    assert objective.gradient().flat().tolist() == [1.0, 2.0]
    assert objective.values(torch.tensor([[0.0, 1.0], [5.0, 0.0]]).double()).tolist() == [2.0, 5.0]
    assert parameter.tolist() == [3.0, 1.0]
    assert objective.asked == ["loss"] * 3
    samples = objective.samples(2, None, torch.Generator().manual_seed(0))
    assert samples.first.tolist() == [[1.0, 2.0]] * 2
    assert (objective.evaluations, objective.gradients) == (6, 3)


def test_a_subclass_with_a_population_is_asked_for_it():
    objective = Plane(vector(3.0, 1.0))
    build("cma_es", objective.vector.parameters, popsize=4).step(objective)
    assert objective.asked == ["population"]
    assert (objective.evaluations, objective.gradients) == (4, 0)


def test_an_objective_without_a_loss_cannot_be_made():
    class Nothing(Objective):
        pass

    with pytest.raises(TypeError, match="abstract"):
        Nothing([vector(1.0)])


def test_the_old_call_with_functions_works_and_says_what_replaced_it():
    layer = torch.nn.Linear(2, 1)
    samples = Samples((7.0, None), torch.zeros(2), torch.zeros(2, 3), torch.zeros(2, 3))
    functions = (
        lambda: layer.weight.sum(),
        lambda c: c.sum(1),
        lambda groups, smoothing, generator: samples,
    )
    told = r"is now Objective\.of\(parameters, loss, population\)"
    with pytest.warns(DeprecationWarning, match=told):
        objective = Objective(layer.parameters(), *functions)
    assert isinstance(objective, Objective)
    assert len(objective.vector) == 3
    assert objective.gradient().flat().tolist() == [1.0, 1.0, 0.0]
    assert objective.values(torch.ones(2, 3)).tolist() == [3.0, 3.0]
    assert objective.samples(2, None, torch.Generator()) is samples
    assert (objective.evaluations, objective.gradients) == (4, 2)
    with pytest.warns(DeprecationWarning, match=told):
        named = Objective(parameters=layer.parameters(), loss=functions[0])
    assert named.gradient().norm == pytest.approx(2**0.5)


@pytest.mark.parametrize("shape", [(8, 1), (7,), ()])
def test_a_population_has_a_value_a_member(shape):
    parameter = vector(1.0, 2.0)
    objective = Objective.of([parameter], lambda: (parameter**2).sum(), lambda c: torch.ones(shape))
    with pytest.raises(ConfigError, match=r"tensor of shape \[8\], got one of shape"):
        build("cma_es", [parameter], popsize=8).step(objective)


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


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"name": "adm"}, r"unknown optimizer 'adm'; did you mean 'adam'\? known: .*lbfgs"),
        ({"name": "sparseadam"}, "unknown optimizer 'sparseadam'"),
        ({"name": "torch.optim.SparseAdam"}, "SparseAdam"),
        ({"name": "torch.optim.Nope"}, "optimizer 'torch.optim.Nope': .*no attribute 'Nope'"),
        ({"name": "no_such_library.Adam"}, "No module named 'no_such_library'"),
        ({"name": "torch.nn.Linear"}, "is not a subclass of torch.optim.Optimizer"),
        ({"name": "adam", "beta": 1}, r"unknown key 'optimizer.beta'; did you mean 'optimizer.betas'\?"),
        ({"name": "nadam", "beta": 1}, r"unknown key 'optimizer.beta'; did you mean 'optimizer.betas'\?"),
        ({"name": "cma_es", "sigm": 1}, r"unknown key 'optimizer.sigm'; did you mean 'optimizer.sigma'\?"),
        ({"name": "adam", "lr": "fast"}, "optimizer.lr = 'fast': .*number"),
        ({"name": "adam", "lr": -1.0}, "optimizer.lr = -1.0: .*greater than 0"),
        ({"name": "adam", "lr": True}, "optimizer.lr = True: .*not a truth value"),
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
        ({"name": "pgpe", "popsize": 7}, "popsize = 7 must be even for antithetic pairs"),
        ({"name": "openai_es", "betas": (0.9, 1.5)}, "optimizer.betas.1 = 1.5"),
        ({"name": "pso", "popsize": 3}, "optimizer.popsize = 3: .*4"),
        ({"name": "differential_evolution", "popsize": 3}, "popsize = 3: .*greater than or equal to 4"),
        ({"name": "cma_es", "covariance": "diagonal"}, "optimizer.covariance = 'diagonal': .*'separable'"),
        ({"name": "hand_over", "then": "sdg"}, r"unknown optimizer 'sdg'; did you mean 'sgd'\?"),
        (
            {"name": "hand_over", "then": {"name": "adam", "beta": 1}},
            r"unknown key 'optimizer.then.beta'; did you mean 'optimizer.then.betas'\?",
        ),
        ({"name": "hand_over", "first": {"name": "pgpe", "popsize": 2}}, "optimizer.first.popsize = 2"),
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


def test_optimizers_and_objectives_say_what_they_are_in_one_line():
    optimizer, objective = build("cma_es", [vector(0.0, 1.0)], popsize=8), sphere(vector(0.0, 1.0))
    assert repr(optimizer) == "CMAES(2 parameters, popsize=8, sigma=0.3, covariance='auto')"
    objective.gradient()
    assert repr(objective) == "FunctionObjective(2 parameters, 1 evaluations, 1 with a gradient)"
    for name in OPTIMIZERS:
        assert "\n" not in repr(build(name, [vector(0.0, 1.0)]))


@pytest.mark.parametrize(("name", "library"), [("pgpe", "evotorch"), ("pso", "evox")])
def test_a_missing_library_is_told_with_the_command_that_installs_it(name, library, monkeypatch):
    for module in [m for m in sys.modules if m.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConfigError) as caught:
        build(name, [vector(0.0, 1.0)])
    assert f"optimizer {name!r} needs {library}: {install_command('population')}" in str(caught.value)
