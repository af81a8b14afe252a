"""One test over all optimizers: what each reaches on known objectives, in how many evaluations."""

import math

import pytest
import torch
from torch import nn

from diffsim.config import Named
from diffsim.optimizers import Objective, make_optimizer

SEED = 1


class Problem:
    """An objective on vectors ``[..., n]``, its least value taken off, that counts what is asked of it."""

    size = 4
    start = 0.0

    def __init__(self):
        self.calls = 0
        self.point = nn.Parameter(torch.full((self.size,), self.start, dtype=torch.float64))
        self.noise = torch.Generator().manual_seed(7)

    def value(self, x):
        """The true value, without noise and uncounted."""
        raise NotImplementedError

    def objective(self):
        """The objective of one step."""
        disturbed = self.disturbed()

        def loss():
            self.calls += 1
            return disturbed(self.point)

        def population(candidates):
            self.calls += len(candidates)
            return disturbed(candidates)

        return Objective.of([self.point], loss, population)

    def disturbed(self):
        return self.value

    def here(self):
        """The true value at the parameters as they stand."""
        return float(self.value(self.point.detach()))


class Quadratic(Problem):
    size, start = 10, 3.0

    def value(self, x):
        return (torch.linspace(0.5, 2.0, 10, dtype=torch.float64) * (x - 1.0) ** 2).sum(-1)


class Noisy(Quadratic):
    """With another slope of deviation 1 added at each step."""

    def disturbed(self):
        slope = torch.randn(10, generator=self.noise, dtype=torch.float64)
        return lambda x: self.value(x) + (slope * x).sum(-1)


class IllConditioned(Problem):
    """Curvatures from 1 to 1e4 along axes of a fixed rotation."""

    size, start = 8, 1.0
    rotated = True

    def value(self, x):
        draws = torch.randn(8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        axes = torch.linalg.qr(draws).Q if self.rotated else torch.eye(8, dtype=torch.float64)
        return (torch.logspace(0, 4, 8, dtype=torch.float64) * ((x - 0.5) @ axes) ** 2).sum(-1)


class Aligned(IllConditioned):
    """The same along the parameters themselves."""

    rotated = False


class Rosenbrock(Problem):
    def __init__(self):
        super().__init__()
        with torch.no_grad():
            self.point.copy_(torch.tensor([-1.2, 1.0, -1.2, 1.0]))

    def value(self, x):
        return (100.0 * (x[..., 1:] - x[..., :-1] ** 2) ** 2 + (1.0 - x[..., :-1]) ** 2).sum(-1)


class Rastrigin(Problem):
    """From the valley of the local minimum at 2 in every parameter; the global one is at 0."""

    start = 2.2
    local = 4 * 3.9798

    def value(self, x):
        return (10.0 + x**2 - 10.0 * torch.cos(2.0 * math.pi * x)).sum(-1)


class Terraces(Problem):
    """Steps of height 1 that lead down to zero, on a slight bowl whose gradient leads up them to 3."""

    start = 1.1
    least = 4 * 0.05 * 2.75**2

    def value(self, x):
        return (torch.floor(4.0 * x.abs()) + 0.05 * (x - 3.0) ** 2).sum(-1) - self.least


class Stairs(Problem):
    """Steps alone: the gradient is zero wherever there is one."""

    start = 1.1

    def value(self, x):
        return (torch.floor(4.0 * x.abs()) + 0.0 * x).sum(-1)


def run(name, options, problem, evaluations, goal=-math.inf, seed=SEED):
    """Steps until so many evaluations are spent or the best point's true value is at most ``goal``.

    Returns:
        The true values at the best point and at the end, and the evaluations that it took.
    """
    optimizer = make_optimizer([problem.point], Named(name=name, **options), seed)
    spent, best = 0, math.inf
    while spent < evaluations and best > goal:
        spent += optimizer.step(problem.objective(), 1.0 - spent / evaluations).evaluations
        best = float(problem.value(optimizer.best))
        assert spent == problem.calls
    return best, problem.here(), spent


def sgd_like(**options):
    return {"max_grad_norm": None, **options}


FULL, SEPARABLE = {"covariance": "full"}, {"covariance": "separable"}
ITERATIONS = {"max_iter": 20}
WIDE = {"popsize": 100, "sigma": 2.0}
POLISHED = {"first": {"name": "cma_es", **WIDE}, "then": {"name": "lbfgs", **ITERATIONS}, "at": 0.75}
BOX = {"popsize": 40, "radius": 4.0, "reevaluate": False}
SMALL_BOX = {"popsize": 40, "radius": 2.0, "reevaluate": False}
SMOOTHED = {"lr": 0.1, "smoothing": 0.2}

REACHED = [
    # Gradient methods with a falling learning rate, where the slope is exact.
    ("sgd", sgd_like(lr=0.2), Quadratic, 100, 1e-8),
    ("momentum", sgd_like(lr=0.05), Quadratic, 150, 1e-5),
    ("nesterov", sgd_like(lr=0.05), Quadratic, 150, 1e-8),
    ("adagrad", {"lr": 1.0}, Quadratic, 200, 1e-8),
    ("rmsprop", {"lr": 0.05}, Quadratic, 200, 1e-8),
    ("adam", {"lr": 0.2}, Quadratic, 150, 1e-8),
    ("adamw", {"lr": 0.2}, Quadratic, 150, 1e-5),
    ("lars", {"lr": 0.1}, Quadratic, 200, 1e-7),
    ("lamb", {"lr": 0.1}, Quadratic, 300, 1e-5),
    # Curvature: what is quadratic or nearly so takes some tens of evaluations, whatever its condition.
    ("lbfgs", ITERATIONS, Quadratic, 50, 1e-8),
    ("lbfgs", ITERATIONS, IllConditioned, 120, 1e-8),
    ("lbfgs", ITERATIONS, Rosenbrock, 170, 1e-8),
    ("lbfgsb", ITERATIONS, Quadratic, 50, 1e-8),
    ("lbfgsb", ITERATIONS, IllConditioned, 470, 1e-8),
    ("lbfgsb", ITERATIONS, Rosenbrock, 200, 1e-8),
    # CMA-ES: the same without a gradient in some thousands; its diagonal, along the axes.
    ("cma_es", FULL, Quadratic, 5000, 1e-8),
    ("cma_es", FULL, IllConditioned, 6500, 1e-8),
    ("cma_es", FULL, Rosenbrock, 5000, 1e-8),
    ("cma_es", SEPARABLE, Quadratic, 4000, 1e-8),
    ("cma_es", SEPARABLE, Aligned, 4000, 1e-8),
    ("cma_es", {"covariance": "limited_memory"}, Quadratic, 5000, 1e-8),
    # Evolution strategies end as near as their last candidates are wide.
    ("pgpe", {"popsize": 40, "radius": 2.0}, Quadratic, 8000, 0.2),
    ("openai_es", {"popsize": 40, "sigma": 0.1, "lr": 0.1}, Quadratic, 8000, 0.05),
    ("pso", BOX, Quadratic, 9000, 1e-6),
    # Many valleys.
    ("cma_es", WIDE, Rastrigin, 15_000, 1e-8),
    ("pso", BOX | {"popsize": 64}, Rastrigin, 26_000, 1e-6),
    ("differential_evolution", BOX | {"base": "rand"}, Rastrigin, 21_000, 1e-8),
    # Steps: below the first one of height 1, for those that look further than the slope.
    ("adam", SMOOTHED | {"gradient": "zeroth_order"}, Terraces, 1800, 0.95),
    ("adam", SMOOTHED | {"gradient": "alpha_order", "bias_tolerance": 1.0}, Terraces, 1800, 0.95),
    ("cma_es", {}, Terraces, 3000, 0.5),
    ("openai_es", {"popsize": 40, "sigma": 0.2, "lr": 0.1}, Terraces, 3000, 0.5),
    ("pso", SMALL_BOX, Terraces, 3000, 0.1),
    ("differential_evolution", SMALL_BOX | {"base": "rand"}, Terraces, 3000, 0.1),
    ("adam", SMOOTHED | {"gradient": "alpha_order", "gradient_groups": 32}, Terraces, 6600, 0.95),
    ("adam", SMOOTHED | {"gradient": "zeroth_order"}, Stairs, 1800, 3.0),
    ("adam", SMOOTHED | {"gradient": "alpha_order"}, Stairs, 1800, 3.0),
    ("cma_es", {}, Stairs, 3000, 0.0),
    ("pgpe", {"popsize": 40, "radius": 2.0}, Stairs, 3000, 4.0),
    ("openai_es", {"popsize": 40, "sigma": 0.2, "lr": 0.1}, Stairs, 3000, 0.0),
    ("pso", SMALL_BOX, Stairs, 3000, 0.0),
    ("differential_evolution", SMALL_BOX | {"base": "rand"}, Stairs, 3000, 0.0),
]

# From 70: what the noise of the slopes leaves at the end.
AVERAGED = [
    ("sgd", sgd_like(lr=0.2), 200, 0.5),
    ("momentum", sgd_like(lr=0.05), 300, 0.5),
    ("nesterov", sgd_like(lr=0.05), 300, 0.5),
    ("adagrad", {"lr": 1.0}, 400, 0.2),
    ("rmsprop", {"lr": 0.05}, 400, 0.2),
    ("adam", {"lr": 0.2}, 300, 0.5),
    ("adamw", {"lr": 0.2}, 300, 0.5),
    ("lars", {"lr": 0.1}, 400, 1.0),
    ("lamb", {"lr": 0.1}, 600, 0.5),
    ("cma_es", {"popsize": 40}, 8000, 2.0),
    ("pgpe", {"popsize": 40, "radius": 2.0}, 8000, 2.0),
    ("openai_es", {"popsize": 40, "sigma": 0.1, "lr": 0.1}, 8000, 1.0),
    ("pso", {"popsize": 40, "radius": 4.0, "reevaluate": True}, 8000, 3.0),
    ("differential_evolution", {"popsize": 40, "radius": 4.0, "base": "rand", "reevaluate": True}, 8000, 4.0),
]


def label(value):
    return value.__name__ if isinstance(value, type) else None


@pytest.mark.parametrize(("name", "options", "problem", "evaluations", "value"), REACHED, ids=label)
def test_an_optimizer_reaches_the_value_of_its_class(name, options, problem, evaluations, value):
    problem = problem()
    before = problem.here()
    best, last, _ = run(name, options, problem, evaluations, value)
    assert before > 1.0
    assert min(best, last) <= value


@pytest.mark.parametrize(("name", "options", "evaluations", "value"), AVERAGED)
def test_an_optimizer_averages_noise_that_changes_from_step_to_step(name, options, evaluations, value):
    problem = Noisy()
    assert problem.here() == pytest.approx(50.0)
    _, last, _ = run(name, options, problem, evaluations)
    assert last <= value


@pytest.mark.parametrize(
    ("name", "options"),
    [("sgd", sgd_like(lr=0.001)), ("adam", {"lr": 0.1}), ("lbfgs", ITERATIONS), ("lbfgsb", ITERATIONS)],
)
def test_a_gradient_ends_in_the_valley_it_starts_in(name, options):
    best, last, _ = run(name, options, Rastrigin(), 200)
    assert min(best, last) == pytest.approx(Rastrigin.local, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "options"), [("sgd", sgd_like(lr=0.1)), ("adam", {"lr": 0.1}), ("lbfgs", ITERATIONS)]
)
def test_a_gradient_does_not_see_steps(name, options):
    """Of steps alone it moves nowhere; beside a slope that leads up them it follows the slope."""
    stairs = Stairs()
    run(name, options, stairs, 100)
    assert stairs.point.tolist() == [1.1] * 4


def test_a_gradient_beside_steps_follows_the_slope_up_them():
    terraces = Terraces()
    before = terraces.here()
    run("adam", {"lr": 0.1}, terraces, 300)
    assert terraces.point.tolist() == pytest.approx([3.0] * 4, abs=0.05)
    assert terraces.here() > before + 20.0


def test_a_diagonal_covariance_does_not_fit_a_rotated_valley():
    _, _, full = run("cma_es", FULL, IllConditioned(), 6500, 1e-8)
    best, _, separable = run("cma_es", SEPARABLE, IllConditioned(), 6500, 1e-8)
    assert full < 3000
    assert separable >= 6500
    assert best > 1e-5


def test_the_full_covariance_does_not_mind_a_rotation():
    """It needs about as many evaluations to 1e-8 along the axes as rotated."""
    needed = [run("cma_es", FULL, kind(), 6500, 1e-8)[2] for kind in (Aligned, IllConditioned)]
    assert max(needed) < 1.5 * min(needed)


def test_a_population_that_hands_over_to_curvature_needs_fewer_evaluations():
    """Once CMA-ES is in the global valley of Rastrigin's function a few gradients replace its generations."""
    alone, _, alone_spent = run("cma_es", WIDE, Rastrigin(), 15_000, 1e-10)
    both, _, both_spent = run("hand_over", POLISHED, Rastrigin(), 4000, 1e-10)
    assert max(alone, both) <= 1e-10
    assert both_spent < 0.8 * alone_spent
