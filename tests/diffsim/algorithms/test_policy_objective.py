"""The objective that algorithms hand to optimizers: one loss, its population, its two orders of gradients."""

import io

import h5py
import pytest
import torch
from same_state import same
from test_algorithms import Drift, build

from diffsim import state_tree
from diffsim.algorithms.policy_objective import PolicyObjective
from diffsim.config import ALGORITHMS, load_config
from diffsim.errors import ConfigError
from diffsim.optimizers import Vector
from diffsim.policy import make_policy
from diffsim.rollouts import Rollout
from robotics_envs.simulators.pendulum import Pendulum

FAMILIES = {
    "adam": {"name": "adam"},
    "alpha_order": {"name": "adam", "gradient": "alpha_order", "gradient_groups": 2},
    "lbfgs": {"name": "lbfgs", "growth": 1.3, "max_iter": 2},
    "lbfgsb": {"name": "lbfgsb", "low": -2.0, "high": 2.0, "max_iter": 2, "max_line_search": 5},
    "cma_es": {"name": "cma_es", "members": 6},
    "pgpe": {"name": "pgpe", "members": 6},
    "openai_es": {"name": "openai_es", "members": 6},
    "pso": {"name": "pso", "members": 6},
    "differential_evolution": {"name": "differential_evolution", "members": 6},
    "hand_over": {"name": "hand_over", "first": {"name": "cma_es", "members": 6}, "then": "lbfgs", "at": 0.5},
}

DEFAULT, LONG = (
    "value_gradient",
    ("lbfgsb", "hand_over", "differential_evolution", "pgpe", "openai_es", "pso"),
)
"""With the other algorithms these families are tested on demand."""


class Blind(Drift):
    """Drift without a gradient: forces come in steps of a tenth, and autograd is cut."""

    def dynamics(self, t, x, u, p):
        return super().dynamics(t, x, (10 * u.detach()).round() / 10, p)

    def cost(self, x, u, p):
        return (x[:, 0] - 1.0).detach() ** 2


class CountingRollout(Rollout):
    """Notes how many simulator steps are asked for."""

    def __call__(self, x, steps, *args, **kwargs):
        self.sizes.append(len(x) * steps)
        return super().__call__(x, steps, *args, **kwargs)

    def vjp(self, x, steps, *args, **kwargs):
        self.sizes.append(len(x) * steps)
        return super().vjp(x, steps, *args, **kwargs)

    def members(self, parameters, x, steps, *args, **kwargs):
        self.sizes.append(len(next(iter(parameters.values()))) * len(x) * steps)
        return super().members(parameters, x, steps, *args, **kwargs)


def objective_on(rollout, x, steps, params):
    objective = PolicyObjective(rollout, steps, params)
    objective.x = x
    return objective


def objective_of(algorithm):
    """What the next step of an algorithm hands to its optimizer."""
    captured = []
    step = algorithm.optimizer.step

    def capture(objective, remaining):
        captured.append(objective)
        return step(objective, remaining)

    algorithm.optimizer.step = capture
    algorithm.step()
    algorithm.optimizer.step = step
    return captured[0]


def _unbounded(algorithm):
    """Options without which only evaluations with gradient know how long the gradients of rollouts are."""
    return {"gradient_bound": 1e9} if algorithm == "value_gradient" else {}


@pytest.mark.parametrize("backend", ["eager", "native"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_population_has_the_losses_of_its_members_one_by_one(algorithm, backend):
    a = build(algorithm, dtype="float64", backend=backend, **_unbounded(algorithm))
    a.step()  # the critic has values only after its first fit
    a._fit_critic = lambda *window: 0  # keep the objective what it was
    objective = objective_of(a)
    vector = Vector(a.policy.parameters())
    start = vector.read()
    draws = torch.randn(5, len(start), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    candidates = start + 0.3 * draws
    before = objective.evaluations
    values = objective.values(candidates)
    for candidate, value in zip(candidates, values, strict=True):
        vector.write(candidate)
        assert objective.gradient().loss == pytest.approx(float(value), rel=1e-9)
    assert len(set(values.tolist())) == 5
    assert objective.evaluations - before == 5 + 5


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_groups_of_rollouts_have_the_mean_of_the_whole_gradient(algorithm):
    a = build(algorithm, dtype="float64", batch=12, **_unbounded(algorithm))
    a.step()
    a._fit_critic = lambda *window: 0
    objective = objective_of(a)
    objective.noise_std, objective.noise = (
        0.3,
        0.3
        * torch.randn(
            objective.steps, 12, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64
        ),
    )
    samples = objective.samples(4, None, torch.Generator())
    whole = objective.gradient()
    assert torch.allclose(samples.first.mean(0), whole.flat(), rtol=1e-9, atol=1e-12)
    assert float(samples.losses.mean()) == pytest.approx(whole.loss, rel=1e-9)


def test_both_orders_estimate_the_same_gradient_where_the_simulator_is_smooth():
    """Drift is linear and actions stay inside their box: the gradient is known to both, but for noise."""
    env, batch, steps = Drift(), 40_000, 3
    config = load_config({"env": "pendulum", "policy": {"hidden": [4]}}).policy
    policy = make_policy(config, env, 0, torch.device("cpu"), torch.float64)
    x = torch.rand(batch, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    objective = objective_on(Rollout(env, policy), x, steps, env.params(x))
    samples = objective.samples(20, 0.1, torch.Generator().manual_seed(2))
    first, zeroth = samples.first.mean(0), samples.zeroth.mean(0)
    error = samples.zeroth.std(0) / 20**0.5
    assert ((first - zeroth).abs() <= 4.5 * error + 1e-12).all()
    moved = first.abs() > 1e-3
    assert float(error[moved].mean()) < 0.2 * float(first[moved].abs().mean())  # or it would prove nothing


def test_zeroth_order_sees_through_what_cuts_the_gradient():
    a = build(
        env="test_policy_objective:Blind", algorithm="full_horizon", dtype="float64", batch=4000, horizon=3
    )
    x = a.env.reset(4000, a.generator, a.dtype)
    objective = objective_on(a.rollout, x, 3, a.params)
    samples = objective.samples(8, 0.3, torch.Generator().manual_seed(0))
    assert not samples.first.any()
    bias = samples.zeroth[:, -1]  # the last layer's: pushing right leads to 1, so the loss falls
    assert float(bias.mean()) < -4 * float(bias.std()) / 8**0.5


def test_gradients_of_a_simulator_without_any_are_refused_with_a_way_out():
    with pytest.raises(ConfigError, match=r"simulator has no gradient \(cma_es, pgpe"):
        build("full_horizon", env="test_policy_objective:Blind").step()


@pytest.mark.parametrize("name", ["cma_es", "pgpe"])
def test_a_population_trains_where_there_is_no_gradient(name):
    """One interval from 0: drift alone leads to 0.5 and costs 0.25, full force to 1 and nothing."""
    a = build(
        "full_horizon", env="test_policy_objective:Blind", horizon=2, optimizer={"name": name, "members": 16},
        policy={"hidden": [4]}, updates=40,
    )  # fmt: skip

    def cost_after_an_interval():
        with torch.no_grad():
            return float(a.rollout(torch.zeros(1, 1), 2, a.params).costs[1])

    assert cost_after_an_interval() == pytest.approx(0.25)
    for _ in range(40):
        a.step()
    assert cost_after_an_interval() == pytest.approx(0.0, abs=1e-12)


def test_a_whole_population_is_one_batch():
    """10,000 rollouts: the simulator is stepped once an interval, for all of them."""
    env, sizes = Pendulum(), []
    config = load_config({"env": "pendulum"}).policy
    policy = make_policy(config, env, 0, torch.device("cpu"), torch.float32)
    step = env.step

    def counted(x, u, p):
        sizes.append(len(x))
        return step(x, u, p)

    env.step = counted
    x = env.reset(20, torch.Generator().manual_seed(0))
    objective = objective_on(Rollout(env, policy, backend="eager"), x, 3, env.params(x))
    start = objective.vector.read()
    values = objective.values(
        start.repeat(500, 1) + torch.linspace(0, 0.1, 500, dtype=torch.float64)[:, None]
    )
    # A look at a few rollouts comes first.
    assert [size for size in sizes if size > 3] == [10_000] * 3
    assert values.isfinite().all()
    assert objective.evaluations == 500


def test_policies_that_cannot_be_batched_go_one_after_the_other_and_it_is_said_once(caplog):
    class Reading(torch.nn.Linear):
        """Reads a number of its own, which torch.vmap refuses."""

        def forward(self, x):
            return super().forward(x) * (1.0 + 0.0 * self.bias.sum().item())

    env, noise = Pendulum(), torch.zeros(4, 5, 1)
    plain = make_policy(load_config({"env": "pendulum"}).policy, env, 0, torch.device("cpu"), torch.float32)
    plain.network = torch.nn.Linear(3, 1)
    reading = make_policy(load_config({"env": "pendulum"}).policy, env, 0, torch.device("cpu"), torch.float32)
    reading.network = Reading(3, 1)
    draws = torch.Generator().manual_seed(0)
    stacks = {k: torch.randn(6, *q.shape, generator=draws) for k, q in plain.named_parameters()}
    x = env.reset(5, draws)
    batched, single = (Rollout(env, p, backend="eager") for p in (plain, reading))
    with caplog.at_level("WARNING", logger="diffsim"):
        got = [single.population(stacks, x, 4, noise=noise) for _ in range(2)]
    assert torch.allclose(got[0], batched.population(stacks, x, 4, noise=noise), rtol=1e-5)
    assert torch.equal(got[0], got[1])
    assert sum("one policy after the other" in r.message for r in caplog.records) == 1


@pytest.mark.parametrize(
    ("algorithm", "family"),
    [
        pytest.param(algorithm, family, marks=[pytest.mark.slow] * (algorithm != DEFAULT and family in LONG))
        for algorithm in ALGORITHMS
        for family in FAMILIES
    ],
)
def test_every_family_counts_every_rollout_and_resumes_to_the_bit(algorithm, family):
    def made():
        shorter = {"horizon": 4} if algorithm == "full_horizon" else {}
        return build(algorithm, optimizer=FAMILIES[family], policy={"hidden": [4]}, updates=6, **shorter)

    straight = made()
    straight.rollout.__class__ = CountingRollout
    sizes = straight.rollout.sizes = []
    saved = []
    for _ in range(6):
        buffer = io.BytesIO()
        with h5py.File(buffer, "w") as file:
            state_tree.write(file, "state", straight.state_dict())
        saved.append(buffer)
        sizes.clear()
        record = straight.step()
        assert record.env_steps == sum(sizes)
        assert not record.dropped
    for first in (1, 3, 4):
        resumed = made()
        with h5py.File(saved[first], "r") as file:
            resumed.load_state_dict(state_tree.read(file["state"]))
        for _ in range(first, 6):
            resumed.step()
        assert same(resumed.state_dict(), straight.state_dict()), first


def test_scenarios_stay_as_far_as_the_optimizer_asks():
    a = build("full_horizon", batch=10, optimizer={"name": "lbfgs", "overlap": 0.3, "growth": 1.5})
    seen = []
    for _ in range(3):
        a.step()
        seen.append(a._x.clone())
    assert [len(x) for x in seen] == [10, 15, 22]
    assert torch.equal(seen[1][:3], seen[0][-3:])
    assert torch.equal(seen[2][:4], seen[1][-4:])
    assert not (seen[1][3:, None] == seen[0]).all(-1).any()


def test_windows_that_stay_do_so_with_their_noise_and_others_go_on():
    a = build(batch=10, optimizer={"name": "lbfgs", "overlap": 0.4}, continuing=1.0, survival=1.0)
    a.step()
    (x, noise), ends = a._windows, a._ends
    a.step()
    (new_x, new_noise) = a._windows
    assert torch.equal(new_x[:4], x[-4:])
    assert torch.equal(new_noise[:, :4], noise[:, -4:])
    assert torch.equal(new_x[4:], ends[:6])  # of those that did not stay
    assert not (new_noise[:, 4:] == noise[:, :6]).any()


def test_all_windows_may_stay():
    a = build(batch=6, optimizer={"name": "lbfgs", "overlap": 1.0})
    a.step()
    x, noise = a._windows
    a.step()
    assert torch.equal(a._windows[0], x)
    assert torch.equal(a._windows[1], noise)


def test_handing_over_to_a_gradient_where_there_is_none_is_an_error():
    """The critic at the end of a window has a gradient, but none that reaches the policy."""
    first = {"name": "cma_es", "members": 6}
    a = build(
        env="test_policy_objective:Blind",
        optimizer={"name": "hand_over", "first": first, "then": "adam"},
        updates=4,
    )
    for _ in range(2):
        a.step()
    with pytest.raises(ConfigError, match="does not depend on the policy"):
        a.step()


def test_frozen_parameters_stay_as_they_are():
    a = build("full_horizon", optimizer={"name": "cma_es", "members": 6}, policy={"hidden": [4]})
    layer = a.policy.network[0]
    layer.weight.requires_grad_(False)
    x = a.env.reset(4, torch.Generator().manual_seed(0))
    objective = objective_on(a.rollout, x, 3, a.params)
    assert len(objective.vector) == sum(p.numel() for p in a.policy.parameters()) - layer.weight.numel()
    start = objective.vector.read()
    values = objective.values(torch.stack((start, start + 0.1)))
    assert float(values[0]) == pytest.approx(objective.gradient().loss, rel=1e-5)
    assert values[0] != values[1]


def test_too_small_a_batch_for_groups_is_refused():
    a = build("full_horizon", batch=4, optimizer={"name": "adam", "gradient": "zeroth_order"})
    with pytest.raises(ConfigError, match="gradient_groups = 8 needs a batch of 16 or more, got 4"):
        a.step()
