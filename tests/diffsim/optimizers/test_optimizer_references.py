"""Step by step agreement with the libraries behind the optimizers, and with formulas of papers."""

import contextlib
import io
import math
import warnings

import numpy as np
import pytest
import pytorch_optimizer
import scipy.optimize
import torch
from torch import nn

from diffsim.config import Named
from diffsim.optimizers import Objective, Samples, make_optimizer
from diffsim.optimizers.alpha_order import blend

with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
    warnings.simplefilter("ignore")
    import cma
    import evox.algorithms
    from cma.restricted_gaussian_sampler import GaussVkDSampler
    from evotorch.algorithms import functional as evotorch

START = torch.tensor([-1.2, 1.0, -0.5, 0.8, 0.3], dtype=torch.float64)
SEED, MEMBERS = 9, 12


def build(name, parameters, seed=SEED, **options):
    return make_optimizer(parameters, Named(name=name, **options), seed)


def rosenbrock(x):
    return (100.0 * (x[..., 1:] - x[..., :-1] ** 2) ** 2 + (1.0 - x[..., :-1]) ** 2).sum(-1)


def bowl(x):
    """A skew bowl."""
    return ((x - 0.7) ** 2).sum(-1) + 3.0 * (x[..., 0] - 0.5 * x[..., 1]) ** 2 + x[..., 2] ** 4


def matrices():
    """Two parameters, the first a matrix: LARS and LAMB scale their steps parameter by parameter."""
    return [nn.Parameter(START[:4].reshape(2, 2).clone()), nn.Parameter(START[4:].clone())]


def joined(parameters):
    return torch.cat([p.reshape(-1) for p in parameters])


# -- Gradient methods ----------------------------------------------------------------------------------------

FIRST_ORDER = [
    ("sgd", torch.optim.SGD, {"lr": 1e-4, "weight_decay": 0.01}, {}),
    ("momentum", torch.optim.SGD, {"lr": 1e-4, "momentum": 0.8, "dampening": 0.1}, {}),
    ("nesterov", torch.optim.SGD, {"lr": 1e-4, "momentum": 0.8}, {"nesterov": True}),
    ("adagrad", torch.optim.Adagrad, {"lr": 0.05, "lr_decay": 0.01, "eps": 1e-9}, {}),
    ("rmsprop", torch.optim.RMSprop, {"lr": 0.01, "alpha": 0.9, "momentum": 0.5, "centered": True}, {}),
    ("adam", torch.optim.Adam, {"lr": 0.02, "betas": (0.8, 0.99), "eps": 1e-7, "amsgrad": True}, {}),
    ("adamw", torch.optim.AdamW, {"lr": 0.02, "betas": (0.8, 0.99), "weight_decay": 0.1}, {}),
    ("lamb", pytorch_optimizer.Lamb, {"lr": 0.02, "betas": (0.8, 0.99), "weight_decay": 0.01}, {}),
    (
        "lars",
        pytorch_optimizer.LARS,
        {"lr": 1e-3, "momentum": 0.8, "trust_coefficient": 0.1, "weight_decay": 0.01},
        {},
    ),
]


@pytest.mark.parametrize(("name", "kind", "options", "fixed"), FIRST_ORDER)
def test_gradient_methods_step_as_the_library_does(name, kind, options, fixed):
    """With a constant learning rate, without clipping, for 50 steps on Rosenbrock's function."""
    ours, theirs = matrices(), matrices()
    optimizer = build(name, ours, schedule="constant", max_grad_norm=None, **options)
    library = kind(theirs, **options, **fixed)
    for _ in range(50):
        report = optimizer.step(Objective.of(ours, lambda: rosenbrock(joined(ours))))
        library.zero_grad()
        loss = rosenbrock(joined(theirs))
        loss.backward()
        norm = float(torch.linalg.vector_norm(torch.cat([p.grad.reshape(-1) for p in theirs])))
        library.step()
        assert report.loss == pytest.approx(float(loss.detach()), rel=1e-12)
        assert report.grad_norm == pytest.approx(norm, rel=1e-12)
        assert torch.allclose(joined(ours), joined(theirs), rtol=1e-12, atol=0.0)
    assert float((joined(ours).detach() - START).abs().max()) > 1e-3


@pytest.mark.parametrize("max_eval", [None, 7])
def test_lbfgs_steps_as_torch_does(max_eval):
    """Strong Wolfe, each step with as many evaluations."""
    options = {
        "lr": 0.9,
        "max_iter": 5,
        "max_eval": max_eval,
        "history_size": 6,
        "tolerance_grad": 1e-9,
        "tolerance_change": 1e-14,
    }
    ours, theirs = nn.Parameter(START.clone()), nn.Parameter(START.clone())
    optimizer = build("lbfgs", [ours], line_search_fn="strong_wolfe", **options)
    library = torch.optim.LBFGS([theirs], line_search_fn="strong_wolfe", **options)
    for _ in range(8):
        calls = 0

        def closure():
            nonlocal calls
            calls += 1
            library.zero_grad()
            loss = rosenbrock(theirs)
            loss.backward()
            return loss.detach()

        loss = float(library.step(closure))
        report = optimizer.step(Objective.of([ours], lambda: rosenbrock(ours)))
        assert (report.evaluations, report.gradients) == (calls, calls)
        assert report.loss == pytest.approx(loss, rel=1e-12, abs=1e-12)
        assert torch.allclose(ours, theirs, rtol=0.0, atol=1e-12)
    assert optimizer.restarts == 0
    assert float(rosenbrock(ours.detach())) < 1e-2 * float(rosenbrock(START))


@pytest.mark.parametrize("max_iter", [1, 4])
def test_lbfgs_without_a_line_search_steps_as_torch_does(max_iter):
    """torch does not evaluate where such a step ends; it must be kept all the same, and so the curvature."""
    options = {"lr": 0.1, "max_iter": max_iter, "history_size": 6}
    ours, theirs = nn.Parameter(START.clone()), nn.Parameter(START.clone())
    tolerances = {"tolerance_grad": 1e-9, "tolerance_change": 1e-14}
    optimizer = build("lbfgs", [ours], line_search_fn="none", **tolerances, **options)
    library = torch.optim.LBFGS([theirs], **tolerances, **options)

    def closure():
        library.zero_grad()
        loss = bowl(theirs)
        loss.backward()
        return loss.detach()

    for _ in range(6):
        library.step(closure)
        optimizer.step(Objective.of([ours], lambda: bowl(ours)))
        assert torch.allclose(ours, theirs, rtol=0.0, atol=1e-12)
    assert optimizer.restarts == 0


@pytest.mark.parametrize("iterations", range(1, 16))
def test_lbfgsb_goes_where_scipy_goes(iterations):
    options = {"maxiter": iterations, "maxcor": 7, "ftol": 1e-13, "gtol": 1e-9, "maxls": 15}
    ours = nn.Parameter(START.clone())
    optimizer = build(
        "lbfgsb",
        [ours],
        max_iter=iterations,
        history_size=7,
        ftol=1e-13,
        gtol=1e-9,
        max_line_search=15,
        low=-1.25,
        high=0.9,
    )
    report = optimizer.step(Objective.of([ours], lambda: rosenbrock(ours)))

    def function(x):
        point = torch.tensor(x, requires_grad=True)
        loss = rosenbrock(point)
        (slope,) = torch.autograd.grad(loss, point)
        return float(loss.detach()), slope.numpy()

    inside = np.clip(START.numpy(), -1.25, 0.9)
    bounds = scipy.optimize.Bounds([-1.25] * 5, [0.9] * 5)
    found = scipy.optimize.minimize(
        function, inside, jac=True, method="L-BFGS-B", bounds=bounds, options=options
    )
    assert report.evaluations == found.nfev
    assert np.array_equal(ours.detach().numpy(), found.x)
    assert optimizer.best_loss <= found.fun


# -- CMA-ES --------------------------------------------------------------------------------------------------


def bare_cma(covariance, size):
    """pycma's own loop, with the normal draws that ours makes."""
    generator = torch.Generator().manual_seed(SEED)

    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).numpy()

    options = {"randn": randn, "seed": np.nan, "verbose": -9, "popsize": MEMBERS}
    if covariance == "separable":
        options["CMA_diagonal"] = True
    if covariance == "limited_memory":
        options = GaussVkDSampler.extend_cma_options(options)
        options["CMA_sampler_options"] = {"randn": randn, "kmax": size - 1}
    return cma.CMAEvolutionStrategy(START[:size].numpy(), 0.4, options)


@pytest.mark.parametrize("covariance", ["full", "separable", "limited_memory"])
def test_cma_es_goes_where_pycma_goes(covariance):
    """Mean and step size, 40 generations; in every fifth some members are lost and count as the worst."""
    parameter = nn.Parameter(START.clone())
    optimizer = build("cma_es", [parameter], sigma=0.4, popsize=MEMBERS, covariance=covariance)
    library = bare_cma(covariance, len(START))
    for generation in range(40):
        lost = [2, 7] if generation % 5 == 4 else []

        def values(candidates, lost=lost):
            found = rosenbrock(candidates)
            found[lost] = torch.tensor([math.inf, math.nan], dtype=torch.float64)[: len(lost)]
            return found

        report = optimizer.step(Objective.of([parameter], parameter.sum, values))
        candidates = library.ask()
        told = [float(rosenbrock(torch.from_numpy(c))) for c in candidates]
        for i in lost:
            told[i] = 1e300
        library.tell(candidates, told)
        assert report.loss == pytest.approx(min(told), rel=1e-12)
        assert np.allclose(parameter.detach().numpy(), library.mean, rtol=0.0, atol=1e-12)
        assert optimizer.inner.sigma == pytest.approx(library.sigma, rel=1e-12)
    assert float(rosenbrock(parameter.detach())) < 0.5 * float(rosenbrock(START))


# -- Evolution strategies ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shaping", ["centered", "linear", "nes", "raw"])
@pytest.mark.parametrize("antithetic", [True, False])
def test_pgpe_goes_where_evotorch_goes(shaping, antithetic):
    parameter = nn.Parameter(START.clone())
    optimizer = build(
        "pgpe",
        [parameter],
        popsize=MEMBERS,
        radius=0.9,
        max_speed=0.2,
        lr=0.07,
        momentum=0.8,
        stdev_lr=0.15,
        stdev_max_change=0.25,
        shaping=shaping,
        antithetic=antithetic,
    )
    state = evotorch.pgpe(
        center_init=START.clone(),
        center_learning_rate=0.07,
        stdev_learning_rate=0.15,
        objective_sense="min",
        ranking_method=shaping,
        optimizer="clipup",
        optimizer_config={"max_speed": 0.2, "momentum": 0.8},
        radius_init=0.9,
        stdev_max_change=0.25,
        symmetric=antithetic,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        for _ in range(20):
            optimizer.step(Objective.of([parameter], parameter.sum, bowl))
            population = evotorch.pgpe_ask(state, popsize=MEMBERS)
            state = evotorch.pgpe_tell(state, population, bowl(population))
            assert torch.allclose(parameter, state.optimizer_state.center, rtol=1e-12, atol=1e-12)
            assert torch.allclose(optimizer.inner.stdev, state.stdev, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("antithetic", [True, False])
def test_openai_es_goes_where_evotorch_goes_with_adam_and_one_fixed_deviation(antithetic):
    parameter = nn.Parameter(START.clone())
    optimizer = build(
        "openai_es",
        [parameter],
        popsize=MEMBERS,
        sigma=0.2,
        lr=0.03,
        betas=(0.8, 0.99),
        antithetic=antithetic,
        shaping="centered",
    )
    state = evotorch.pgpe(
        center_init=START.clone(),
        center_learning_rate=0.03,
        stdev_learning_rate=0.0,
        objective_sense="min",
        ranking_method="centered",
        optimizer="adam",
        optimizer_config={"beta1": 0.8, "beta2": 0.99},
        stdev_init=0.2,
        symmetric=antithetic,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        for _ in range(20):
            optimizer.step(Objective.of([parameter], parameter.sum, bowl))
            population = evotorch.pgpe_ask(state, popsize=MEMBERS)
            state = evotorch.pgpe_tell(state, population, bowl(population))
            assert torch.allclose(parameter, state.optimizer_state.center, rtol=1e-12, atol=1e-12)
    assert torch.equal(optimizer.inner.stdev, torch.full((5,), 0.2, dtype=torch.float64))


def test_pgpe_moves_by_clipup_along_the_ranked_gradient():
    """By hand: centred ranks, half differences of pairs, and ClipUp (arXiv 2008.02387, algorithm 1).

    A unit step along the gradient is added to the velocity, which is cut at the highest speed.
    """
    parameter = nn.Parameter(START.clone())
    optimizer = build(
        "pgpe",
        [parameter],
        popsize=MEMBERS,
        radius=0.9,
        max_speed=0.15,
        lr=0.1,
        momentum=0.9,
        shaping="centered",
    )
    velocity, centre = torch.zeros(5, dtype=torch.float64), START.clone()
    speeds = []
    for _ in range(8):
        asked = []

        def values(candidates, asked=asked):
            asked.append(candidates.clone())
            return bowl(candidates)

        optimizer.step(Objective.of([parameter], parameter.sum, values))
        (candidates,) = asked
        ranks = bowl(candidates).argsort(descending=True).argsort().double() / (MEMBERS - 1) - 0.5
        noise = candidates[0::2] - centre
        slope = ((ranks[0::2] - ranks[1::2]).unsqueeze(1) / 2 * noise).sum(0)
        velocity = 0.9 * velocity + 0.1 * slope / slope.norm()
        speeds.append(float(velocity.norm()))
        velocity = velocity * min(1.0, 0.15 / speeds[-1])
        centre = centre + velocity
        assert torch.allclose(parameter, centre, rtol=0.0, atol=1e-12)
    assert speeds[0] == pytest.approx(0.1)
    assert max(speeds) > 0.15


def test_the_defaults_of_pgpe_are_clipups_rules():
    """Highest speed: a fifteenth of the radius; step: half of that; radius: the norm of the deviations."""
    optimizer = build("pgpe", [nn.Parameter(START.clone())], radius=3.0)
    state = optimizer.inner.optimizer_state
    assert float(state.max_speed) == pytest.approx(0.2, rel=1e-12)
    assert float(state.center_learning_rate) == pytest.approx(0.1, rel=1e-12)
    assert float(optimizer.inner.stdev.norm()) == pytest.approx(3.0, rel=1e-12)


# -- Swarms --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "make"),
    [
        (
            "pso",
            {"inertia": 0.5, "cognitive": 1.5, "social": 1.2},
            lambda low, high: evox.algorithms.PSO(MEMBERS, low, high, w=0.5, phi_p=1.5, phi_g=1.2),
        ),
        (
            "differential_evolution",
            {"base": "rand", "weight": 0.6, "crossover": 0.7},
            lambda low, high: evox.algorithms.DE(
                MEMBERS, low, high, base_vector="rand", differential_weight=0.6, cross_probability=0.7
            ),
        ),
        (
            "differential_evolution",
            {"base": "best", "weight": 0.6, "crossover": 0.7},
            lambda low, high: evox.algorithms.DE(
                MEMBERS, low, high, base_vector="best", differential_weight=0.6, cross_probability=0.7
            ),
        ),
    ],
)
def test_swarms_go_where_evox_goes_in_the_box(name, options, make):
    """The same draws, one member at the start, in coordinates from -1 to 1: the swarm and the best of it."""
    parameter = nn.Parameter(START.clone())
    optimizer = build(name, [parameter], popsize=MEMBERS, radius=1.5, reevaluate=False, **options)
    best = [math.inf, START]

    def evaluate(z):
        points = START + 1.5 * z
        values = bowl(points)
        if float(values.min()) < best[0]:
            best[:] = [float(values.min()), points[values.argmin()]]
        return values

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        edge = torch.ones(5, dtype=torch.float64)
        swarm = make(-edge, edge)
        for key, buffer in list(swarm.named_buffers()):
            setattr(swarm, key, buffer.double().clone())
        for key in {"pop", "local_best_location"} & set(dict(swarm.named_buffers())):
            getattr(swarm, key)[0] = 0.0
        swarm.evaluate = evaluate
        for generation in range(20):
            optimizer.step(Objective.of([parameter], parameter.sum, bowl))
            swarm.step() if generation else swarm.init_step()
            assert torch.allclose(optimizer.inner.pop, swarm.pop, rtol=0.0, atol=1e-12)
            assert torch.allclose(parameter, best[1], rtol=0.0, atol=1e-12)
    assert best[0] < 0.5 * float(bowl(START))


# -- The alpha-order gradient --------------------------------------------------------------------------------


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def estimates(first, zeroth):
    return Samples((0.0, None), torch.zeros(len(first), dtype=torch.float64), first, zeroth)


def test_the_blend_of_two_orders_by_hand():
    """Two estimates of one component each: variances of the means as weights, then the bound by the bias."""
    first = torch.tensor([[1.0], [3.0]], dtype=torch.float64)  # mean 2, variance of the mean 1
    zeroth = torch.tensor([[1.0], [5.0]], dtype=torch.float64)  # mean 3, variance of the mean 4
    found = blend(estimates(first, zeroth), 2.0)
    assert found.alpha == pytest.approx(0.8)
    assert found.gradient.item() == pytest.approx(0.8 * 2.0 + 0.2 * 3.0)
    # The difference is 1, the radius 1.96 * 2; with a tolerance of 1.1 radii 0.392 of it may pass.
    found = blend(estimates(first, zeroth), 1.1)
    assert found.alpha == pytest.approx(0.392)
    assert found.gradient.item() == pytest.approx(3.0 - 0.392)


def test_the_blend_takes_the_weight_of_least_variance_over_all_components():
    first, zeroth = 0.5 * normal(400, 6, seed=1) + 1.0, 1.5 * normal(400, 6, seed=2) + 1.0
    found = blend(estimates(first, zeroth), 2.0)
    v1, v0 = (float(((g - g.mean(0)) ** 2).sum() / 399 / 400) for g in (first, zeroth))
    weights = torch.linspace(0, 1, 1001, dtype=torch.float64)
    least = weights[(weights**2 * v1 + (1 - weights) ** 2 * v0).argmin()]
    assert found.alpha == pytest.approx(v0 / (v0 + v1), rel=1e-12)
    assert found.alpha == pytest.approx(float(least), abs=1e-3)
    assert torch.allclose(found.gradient, found.alpha * first.mean(0) + (1 - found.alpha) * zeroth.mean(0))


@pytest.mark.parametrize("tolerance", [1.0, 1.5, 2.0])
def test_the_bias_of_the_blend_stays_within_the_tolerance(tolerance):
    """The first order is off by 3 in each component: the blend is off by the stated radii."""
    first, zeroth = torch.full((50, 4), 4.0, dtype=torch.float64), normal(50, 4) + 1.0
    found = blend(estimates(first, zeroth), tolerance)
    radius = 1.96 * float(zeroth.var(0).sum() / 50) ** 0.5
    assert float((found.gradient - zeroth.mean(0)).norm()) == pytest.approx((tolerance - 1.0) * radius)


def sampled(function, groups):
    parameter = nn.Parameter(torch.full((3,), 0.1, dtype=torch.float64))
    objective = Objective.of([parameter], lambda: function(parameter))
    samples = objective.samples(groups, 0.2, torch.Generator().manual_seed(0))
    assert (objective.evaluations, objective.gradients) == (groups + 1, groups)
    return samples


def test_where_the_first_order_is_biased_the_zeroth_has_the_weight():
    """Steps have the slope zero everywhere; smoothed by noise of deviation 0.2 it is the density."""
    samples = sampled(lambda p: (p > 0).double().sum() + 0.0 * p.sum(), 3000)
    found = blend(samples, 1.5)
    density = math.exp(-0.5 * 0.5**2) / (0.2 * math.sqrt(2 * math.pi))
    assert float(samples.first.abs().max()) == 0.0
    assert found.alpha < 0.1
    assert torch.allclose(found.gradient, torch.full((3,), density, dtype=torch.float64), rtol=0.15)
    radius = 1.96 * float(samples.zeroth.var(0).sum() / 3000) ** 0.5
    assert float((found.gradient - samples.zeroth.mean(0)).norm()) <= 0.5 * radius * (1 + 1e-9)


def test_where_the_objective_is_smooth_the_first_order_has_the_weight():
    found = blend(sampled(lambda p: ((p - 1.0) ** 2).sum(), 1000), 2.0)
    assert found.alpha > 0.95
    assert torch.allclose(found.gradient, torch.full((3,), -1.8, dtype=torch.float64), rtol=0.02)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_estimates_that_are_not_finite_have_no_weight(poison):
    good, bad = normal(6, 3, seed=1), normal(6, 3, seed=2)
    bad[4, 1] = poison
    found = blend(estimates(bad, good), 2.0)
    assert found.alpha == 0.0
    assert torch.equal(found.gradient, good.mean(0))
    found = blend(estimates(good, bad), 2.0)
    assert found.alpha == 1.0
    assert torch.equal(found.gradient, good.mean(0))


def test_both_orders_of_a_quadratic_estimate_the_gradient_of_the_smoothed_one():
    """Of ``|x - 1|^2`` that is the gradient itself; the zeroth order's are the stated quotients."""
    samples = sampled(lambda p: ((p - 1.0) ** 2).sum(), 3000)
    exact = torch.full((3,), -1.8, dtype=torch.float64)
    for kind in (samples.first, samples.zeroth):
        error = (kind.mean(0) - exact).abs() / (kind.var(0) / len(kind)).sqrt()
        assert float(error.max()) < 4.0
    noise = (samples.first - exact) / 2.0
    rise = ((noise - 0.9) ** 2).sum(1) - 3 * 0.81
    assert torch.allclose(samples.zeroth, rise.unsqueeze(1) * noise / 0.04, rtol=1e-9, atol=1e-9)


def test_adam_records_the_weight_of_its_blend():
    parameter = nn.Parameter(torch.full((3,), 0.1, dtype=torch.float64))
    optimizer = build("adam", [parameter], gradient="alpha_order", gradient_groups=600, smoothing=0.2)
    optimizer.step(Objective.of([parameter], lambda: ((parameter - 1.0) ** 2).sum()))
    smooth = optimizer.alpha
    with torch.no_grad():
        parameter.fill_(0.1)
    optimizer.step(
        Objective.of([parameter], lambda: 10.0 * (parameter > 0).double().sum() + 0.0 * parameter.sum())
    )
    assert smooth > 0.9
    assert optimizer.alpha < 0.5
