"""One suite over every optimizer: it descends, counts, resumes bit for bit and survives NaN."""

import pytest
import torch
from torch import nn

from diffsim.config import OptimizerConfig
from diffsim.errors import ConfigError
from diffsim.optimizers import TorchOptimizer, optimizer_classes

# Options without which an optimizer would not move on this problem within the test.
OPTIONS = {"adadelta": {"lr": 10.0}, "adafactor": {"lr": 0.1}, "asgd": {"lr": 0.02}, "sgd": {"lr": 0.02}}
NAMES = sorted(optimizer_classes())


def problem():
    """A quadratic bowl with its minimum 3 at 1, over two tensors of different shapes."""
    parameters = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.full((2, 2), 2.0))]
    curvature = torch.tensor([1.0, 4.0, 9.0])

    def objective():
        first, second = parameters
        return (curvature * (first - 1) ** 2).sum() + ((second - 1) ** 2).sum() + 3.0

    return parameters, objective


def make(name, parameters, **options):
    options = {"lr": 0.05, **OPTIONS.get(name, {}), **options}
    return TorchOptimizer(parameters, OptimizerConfig(name=name, **options))


@pytest.mark.parametrize("name", NAMES)
def test_it_descends(name):
    parameters, objective = problem()
    optimizer = make(name, parameters)
    first = optimizer.step(objective)
    assert first.loss == pytest.approx(21.0)
    assert first.grad_norm == pytest.approx((4 + 64 + 324 + 16) ** 0.5, rel=1e-6)
    for _ in range(60):
        report = optimizer.step(objective)
        assert report.finite
    assert float(objective().detach()) < 15.0


@pytest.mark.parametrize("name", NAMES)
def test_evaluations_are_counted_exactly(name):
    parameters, objective = problem()
    calls = 0

    def counted():
        nonlocal calls
        calls += 1
        return objective()

    optimizer = make(name, parameters)
    reported = sum(optimizer.step(counted).evaluations for _ in range(3))
    assert reported == calls
    assert (calls > 3) == (name == "lbfgs")


@pytest.mark.parametrize("name", NAMES)
def test_resuming_changes_no_bit(name):
    def steps(optimizer, objective, first, last):
        for i in range(first, last):
            optimizer.step(objective, remaining=1 - i / 8)

    straight, objective = problem()
    steps(make(name, straight, max_grad_norm=5.0), objective, 0, 8)

    parameters, objective = problem()
    optimizer = make(name, parameters, max_grad_norm=5.0)
    steps(optimizer, objective, 0, 4)
    saved = optimizer.state_dict()
    resumed, objective = problem()
    with torch.no_grad():
        for new, old in zip(resumed, parameters, strict=True):
            new.copy_(old)
    optimizer = make(name, resumed, max_grad_norm=5.0)
    optimizer.load_state_dict(saved)
    steps(optimizer, objective, 4, 8)
    assert all(map(torch.equal, straight, resumed))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_non_finite_objective_leaves_parameters_and_state_alone(name, poison):
    parameters, objective = problem()
    optimizer = make(name, parameters)
    optimizer.step(objective)
    before = [p.detach().clone() for p in parameters]
    report = optimizer.step(lambda: objective() * poison)
    assert not report.finite
    assert all(map(torch.equal, before, parameters))
    for _ in range(60):
        assert optimizer.step(objective).finite
    assert float(objective().detach()) < 15.0


def test_a_line_search_that_runs_into_nan_goes_back():
    parameter = nn.Parameter(torch.tensor([1.0]))
    optimizer = TorchOptimizer([parameter], OptimizerConfig(name="lbfgs", lr=10.0, max_iter=4))
    report = optimizer.step(lambda: torch.sqrt(parameter).sum())  # undefined below zero
    assert not report.finite
    assert parameter.item() == 1.0


def test_the_linear_schedule_scales_every_step():
    for schedule, expected in (("linear", 0.75), ("constant", 0.5)):
        parameter = nn.Parameter(torch.tensor([1.0]))
        config = OptimizerConfig(name="sgd", schedule=schedule, lr=0.25)
        TorchOptimizer([parameter], config).step(lambda p=parameter: 2 * p.sum(), remaining=0.5)
        assert parameter.item() == pytest.approx(expected)


def test_gradients_above_the_norm_are_scaled_down_to_it():
    parameter = nn.Parameter(torch.tensor([3.0, 4.0]))
    config = OptimizerConfig(name="sgd", lr=1.0, max_grad_norm=1.0)
    report = TorchOptimizer([parameter], config).step(lambda: (parameter**2).sum() / 2)
    assert report.grad_norm == pytest.approx(5.0)
    assert torch.allclose(parameter, torch.tensor([2.4, 3.2]))


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"name": "adm"}, r"unknown optimizer 'adm'; did you mean 'adam'\? known: .*lbfgs"),
        ({"name": "adam", "beta": 1}, r"unknown key 'optimizer.beta'; did you mean 'optimizer.betas'\?"),
        ({"name": "adam", "lr": -1.0}, "optimizer 'adam' with .*-1.0.*Invalid learning rate"),
        ({"name": "adam", "lr": "fast"}, "optimizer 'adam' with .*fast"),
        ({"name": "adam", "betas": 0.9}, "optimizer 'adam' with .*0.9"),
        ({"name": "lbfgs", "line_search_fn": "wolfe"}, "did you mean 'strong_wolfe'"),
    ],
)
def test_mistakes_are_named_at_construction(config, complaint):
    with pytest.raises(ConfigError, match=complaint):
        TorchOptimizer([nn.Parameter(torch.zeros(1))], OptimizerConfig(**config))
