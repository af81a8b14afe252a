"""What the algorithms compute, checked against formulas; and that stopping changes no bit."""

import math

import h5py
import pytest
import torch
from same_state import same

from diffsim import state_tree
from diffsim.algorithms import ALGORITHMS
from diffsim.assembly import assemble
from diffsim.config import load_config
from diffsim.errors import ConfigError
from diffsim.rollouts import Rollout
from robotics_envs.base import Box, Env, Parameter
from robotics_envs.simulators.pendulum import Pendulum
from solvers.methods.runge_kutta import Euler


def build(algorithm="short_window", env="pendulum", optimizer=None, **settings):
    options = {"batch": 4, "horizon": 12} if algorithm == "full_horizon" else {"batch": 8}
    chosen = {k: settings.pop(k) for k in ("updates", "seed", "dtype", "policy", "backend") if k in settings}
    layers = [
        {"env": env, "updates": 8, **chosen},
        {"algorithm": {"name": algorithm, **options, **settings}},
    ]
    if optimizer:
        layers.append({"optimizer": optimizer})
    return assemble(load_config(*layers)).algorithm


class Drift(Env):
    """x' = u + c with cost x: everything about it is known in closed form."""

    name = "drift"
    state_names = observation_names = ("x",)
    parameters = (Parameter("c", 1.0, "1/s"),)
    action_box = Box.symmetric(1.0)
    start_box = Box((0.0,), (0.0,))
    state_box = Box.symmetric(4.0)
    dt = 0.5
    episode_steps = 6
    solver = Euler()

    def dynamics(self, t, x, u, p):
        return u + p["c"].unsqueeze(-1)

    def cost(self, x, u, p):
        return x[:, 0] + 0 * u[:, 0]


class Ending(Drift):
    def done(self, x):
        return x[:, 0] >= 1.0


class Scaled(Pendulum):
    def cost(self, x, u, p):
        return 1024.0 * super().cost(x, u, p)


class Exploding(Drift):
    """The state turns NaN in those rollouts that start above 3."""

    def dynamics(self, t, x, u, p):
        return super().dynamics(t, x, u, p) + torch.where(x > 3.0, torch.nan, 0.0)


def test_a_rollout_is_the_simulator_stepped():
    algorithm = build(env="test_algorithms:Drift")
    x = torch.tensor([[0.0], [2.0]])
    with torch.no_grad():
        result = algorithm.rollout(x, 3, algorithm.params)
    assert result.states.shape == (4, 2, 1)
    for t in range(3):
        action = algorithm.policy(result.states[t])
        assert torch.allclose(result.states[t + 1], result.states[t] + 0.5 * (action + 1.0))
        assert torch.equal(result.costs[t], result.states[t, :, 0])


def test_noise_moves_the_actions():
    algorithm = build(env="test_algorithms:Drift")
    x, noise = torch.zeros(2, 1), torch.tensor([[[0.25], [-0.25]]])
    with torch.no_grad():
        result = algorithm.rollout(x, 1, algorithm.params, noise=noise)
        quiet = algorithm.rollout(x, 1, algorithm.params)
    assert torch.allclose(result.last - quiet.last, 0.5 * noise[0])


def test_episodes_end_where_they_end():
    algorithm = build(env="test_algorithms:Drift")
    with torch.no_grad():  # a policy of zero action: x grows by 0.5 a step
        for p in algorithm.policy.parameters():
            p.zero_()
    x = torch.zeros(1, 1)
    full = algorithm.returns(x)
    assert full.tolist() == [-(0 + 0.5 + 1.0 + 1.5 + 2.0 + 2.5)]
    cut = Rollout(Ending(), algorithm.policy).returns(x)
    assert cut.tolist() == [-(0 + 0.5)]  # the step that starts at 1.0 never happens


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_gradient_is_that_of_the_objective(algorithm):
    """The first step's gradient against central differences, with the exact squash, in float64."""
    a = build(algorithm, dtype="float64", policy={"squash": "tanh"})
    if algorithm != "full_horizon":
        a.step()  # the critic has values only after its first fit
    captured = {}

    def capture(objective, remaining):
        captured["objective"] = objective
        captured["report"] = type(a.optimizer).step(a.optimizer, objective, remaining)
        return captured["report"]

    parameters = list(a.policy.parameters())
    before = [p.detach().clone() for p in parameters]
    a.optimizer.step, original = capture, a.optimizer.step
    if algorithm != "full_horizon":
        a._fit_critic = lambda *window: 0  # keep the objective what it was
    a.step()
    a.optimizer.step = original
    with torch.no_grad():
        for p, old in zip(parameters, before, strict=True):
            p.copy_(old)
    gradients = torch.autograd.grad(captured["objective"].loss(), parameters)
    norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
    assert captured["report"].grad_norm == pytest.approx(norm, rel=1e-9)
    generator, eps = torch.Generator().manual_seed(1), 1e-6
    for p, g in zip(parameters, gradients, strict=True):
        direction = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                p.add_(sign * eps * direction)
                values.append(float(captured["objective"].loss()))
                p.sub_(sign * eps * direction)
        slope = (values[0] - values[1]) / (2 * eps)
        assert slope == pytest.approx(float((g * direction).sum()), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    "optimizer",
    ["adam", "lbfgs", *(pytest.param(o, marks=pytest.mark.slow) for o in ("nadam", "sgd", "rmsprop"))],
)
@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
def test_four_save_load_four_is_eight(algorithm, optimizer, dtype, tmp_path):
    options = {"name": optimizer, "max_iter": 3} if optimizer == "lbfgs" else {"name": optimizer}
    straight, first, second = (build(algorithm, optimizer=options, dtype=dtype) for _ in range(3))
    records = [straight.step() for _ in range(8)]
    resumed = [first.step() for _ in range(4)]
    with h5py.File(tmp_path / "state.h5", "w") as file:
        state_tree.write(file, "state", first.state_dict())
    with h5py.File(tmp_path / "state.h5") as file:
        second.load_state_dict(state_tree.read(file["state"]))
    resumed += [second.step() for _ in range(4)]
    assert [r._replace(compile_seconds=0.0) for r in records] == [
        r._replace(compile_seconds=0.0) for r in resumed
    ]
    assert same(straight.state_dict(), second.state_dict())


def test_the_seed_determines_everything():
    runs = [build(seed=seed) for seed in (1, 1, 2)]
    for run in runs:
        for _ in range(3):
            run.step()
    assert same(runs[0].state_dict(), runs[1].state_dict())
    assert not same(runs[0].state_dict(), runs[2].state_dict())


@pytest.mark.parametrize(
    ("algorithm", "settings", "steps"),
    [
        ("value_gradient", {"batch": 8, "window": 3}, 24),
        ("short_window", {"batch": 8, "window": 3}, 24),
        ("full_horizon", {"batch": 4, "horizon": 12}, 48),
    ],
)
def test_environment_steps_are_counted_exactly(algorithm, settings, steps):
    record = build(algorithm, **settings).step()
    assert (record.env_steps, record.gradient_evaluations) == (steps, 1)
    many = build(algorithm, optimizer={"name": "lbfgs", "max_iter": 3}, **settings).step()
    assert many.gradient_evaluations > 1
    assert many.env_steps == many.gradient_evaluations * steps


def test_full_horizon_takes_the_tasks_episode_unless_told():
    assert build("full_horizon", horizon=None).horizon == 200


def _loss(algorithm, window):
    return algorithm.objective.terms(window).sum(0).mean()


def test_the_first_loss_is_the_mean_cost():
    algorithm = build("full_horizon", env="test_algorithms:Drift", horizon=3)
    for p in algorithm.policy.parameters():
        torch.nn.init.zeros_(p)
    assert algorithm.step().loss == pytest.approx((0 + 0.5 + 1.0) / 3)


def test_windows_start_afresh_or_where_the_last_one_ended():
    algorithm = build(batch=2000, continuing=0.5, survival=0.9)
    algorithm.step()
    ends = algorithm._ends.clone()
    starts = algorithm._draw()[0]
    went_on = (starts == ends).all(dim=1)
    assert not went_on[1000:].any()
    inside = ((ends - algorithm._middle).abs() <= 1.5 * algorithm._half_size) | algorithm._is_angle
    share = float(went_on[:1000].float().mean() / inside[:1000].all(dim=1).float().mean())
    assert share == pytest.approx(0.9, abs=0.04)
    limits = algorithm.env.state_box.bounds(starts)
    fresh = starts[1000:]
    assert ((fresh >= limits[0]) & (fresh <= limits[1])).all()


def test_a_window_that_left_the_box_starts_afresh_but_a_turned_angle_is_no_exit():
    algorithm = build(batch=100, continuing=1.0, survival=1.0)
    algorithm.step()
    algorithm._ends = torch.tensor([[50.0, 0.0], [0.0, 11.9], [0.0, 12.1]]).repeat(34, 1)[:100]
    went_on = (algorithm._draw()[0] == algorithm._ends).all(dim=1)
    assert went_on.tolist() == ([True, True, False] * 34)[:100]


def test_td_lambda_targets_are_the_weighted_mixture_of_n_step_returns():
    """Against the definition: (1 - L) sum_n L^(n-1) G_n + L^(T-1) G_T, Sutton and Barto eq. 12.3."""
    lam, discount, steps = 0.7, 0.9, 5
    algorithm = build(window=steps, td_lambda=lam, gamma=discount, dtype="float64", continuing=0.0)
    algorithm.step()
    x = algorithm.env.state_box.sample(8, torch.Generator().manual_seed(3), torch.float64)
    with torch.no_grad():
        window = algorithm.rollout(x, steps, algorithm.params)
    observe = algorithm.env.observe
    values = torch.stack(
        [algorithm.critic.values(algorithm.policy.normalise(observe(x))) for x in window.states]
    )
    algorithm._fit_critic(window)
    targets = algorithm._data[-1][1].view(steps, 8)
    for t in range(steps):
        returns = [
            sum(discount**k * window.costs[t + k] for k in range(n)) + discount**n * values[t + n]
            for n in range(1, steps - t + 1)
        ]
        expected = sum((1 - lam) * lam ** (n - 1) * g for n, g in enumerate(returns[:-1], start=1))
        expected = expected + lam ** (steps - t - 1) * returns[-1]
        assert torch.allclose(targets[t], expected, rtol=1e-10)


def test_nothing_counts_after_an_end():
    """In Ending, a rollout from 0.75 with zero action ends at 1.25: one cost, then nothing."""
    algorithm = build(env="test_algorithms:Ending", window=3, dtype="float64", gamma=0.9)
    algorithm.step()
    with torch.no_grad():
        for p in algorithm.policy.parameters():
            p.zero_()
        window = algorithm.rollout(torch.full((8, 1), 0.75).double(), 3, algorithm.params)
        loss = float(_loss(algorithm, window) * algorithm.critic.target.scale)
        assert loss == pytest.approx(0.75)
        algorithm._fit_critic(window)
        assert torch.allclose(algorithm._data[-1][1][:8], torch.full((8,), 0.75).double())
    algorithm._ends = window.states[-1]
    assert not (algorithm._draw()[0] == algorithm._ends).all(dim=1).any()


def test_the_unit_of_the_cost_does_not_matter():
    """Costs times 1,024 (exact in binary): the same policy after ten updates, to rounding."""
    plain, scaled = build(dtype="float64"), build(env="test_algorithms:Scaled", dtype="float64")
    for _ in range(10):
        plain.step()
        scaled.step()
    for a, b in zip(plain.policy.parameters(), scaled.policy.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-9)


def test_rollouts_that_explode_are_counted_and_change_nothing():
    algorithm = build(env="test_algorithms:Exploding", batch=64, window=2)
    before = {k: v.clone() for k, v in algorithm.policy.state_dict().items()}
    critic = algorithm.critic.state_dict()["network"]["0.weight"].clone()
    record = algorithm.step()
    assert record.dropped.endswith("of 64 rollouts not finite, first at control interval 1")
    assert 0 < int(record.dropped.split()[0]) < 32
    assert same(before, dict(algorithm.policy.state_dict()))
    assert torch.equal(critic, algorithm.critic.state_dict()["network"]["0.weight"])


class Constant(Drift):
    def cost(self, x, u, p):
        return torch.ones_like(x[:, 0])


class Column(Drift):
    def done(self, x):
        return x > 1.0


class NotAnEnv:
    pass


def test_a_cost_that_ignores_everything_is_named():
    for algorithm in ALGORITHMS:
        with pytest.raises(ConfigError, match="the loss does not depend on the policy"):
            build(algorithm, env="test_algorithms:Constant").step()


@pytest.mark.parametrize(
    ("env", "complaint"),
    [
        ("Column", r"done gives \[5, 1\] .*wanted \[5\] .*check_env finds more"),
        ("NotAnEnv", "is no subclass of robotics_envs.base.Env"),
        ("math", "is no subclass of robotics_envs.base.Env"),
    ],
)
def test_simulators_that_are_none_are_named(env, complaint):
    with pytest.raises(ConfigError, match=complaint):
        build(env=f"test_algorithms:{env}")


def test_it_learns_what_is_easy_to_know():
    """Under Drift the best action is always the lowest one."""
    algorithm = build(env="test_algorithms:Drift", batch=64, updates=60, gamma=0.8, noise_std=0.0)
    for _ in range(60):
        algorithm.step()
    x = torch.linspace(-4, 4, 9).unsqueeze(-1)
    with torch.no_grad():
        assert (algorithm.policy(x) < -0.95).all()
        values = algorithm.critic.values(algorithm.policy.normalise(x))
    # At the optimum x stays where it is, so its cost-to-go is x / (1 - discount).
    slope = float(values[-1] - values[0]) / 8
    assert slope == pytest.approx(1 / (1 - 0.8), rel=0.1)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"windw": 3}, "unknown key 'algorithm.windw'; did you mean 'algorithm.window'"),
        ({"window": 0}, "algorithm.window = 0"),
        ({"batch": 1}, "algorithm.batch = 1"),
        ({"gamma": 1.0}, "algorithm.gamma = 1.0"),
        ({"noise_std": float("nan")}, "algorithm.noise_std = nan"),
        ({"critic_hidden": [0]}, "critic_hidden|hidden = "),
        ({"algorithm": "shrt_window"}, "unknown algorithm 'shrt_window'; did you mean 'short_window'"),
        ({"env": "pendulm"}, "unknown environment 'pendulm'; did you mean 'pendulum'"),
        ({"env": {"name": "pendulum", "m": -1}}, "parameter m = -1"),
        ({"env": {"name": "pendulum", "gg": 1}}, "unknown parameter of pendulum 'gg'; did you mean 'g'"),
    ],
)
def test_mistakes_are_named(settings, complaint):
    with pytest.raises(ConfigError, match=complaint):
        build(**settings)


def test_after_a_dropped_update_the_critic_still_counts():
    algorithm = build(env="test_algorithms:Drift", window=2, dtype="float64")
    algorithm.step()
    x = torch.zeros(8, 1, dtype=torch.float64)
    with torch.no_grad():
        window = algorithm.rollout(x, 2, algorithm.params)
        before = _loss(algorithm, window)
        algorithm._data, algorithm._ends = [], None  # what a dropped update leaves
        assert torch.equal(_loss(algorithm, window), before)


def test_the_loss_is_the_discounted_cost_and_the_discounted_value_at_the_end():
    algorithm = build(window=3, gamma=0.8, dtype="float64")
    for _ in range(3):
        algorithm.step()
    x = algorithm.env.state_box.sample(8, torch.Generator().manual_seed(3), torch.float64)
    with torch.no_grad():
        window = algorithm.rollout(x, 3, algorithm.params)
        values = algorithm.critic.values(algorithm.policy.normalise(algorithm.env.observe(window.last)))
        c = window.costs
        expected = (c[0] + 0.8 * c[1] + 0.64 * c[2] + 0.512 * values).mean() / algorithm.critic.target.scale
        assert float(values.abs().mean()) > 0.1  # or the last term would not be tested
        assert float(_loss(algorithm, window)) == pytest.approx(float(expected), rel=1e-12)


def test_noise_moves_the_windows_and_nothing_else_does():
    quiet, again, noisy = build(noise_std=0.0), build(noise_std=0.0), build(noise_std=0.4)
    losses = [algorithm.step().loss for algorithm in (quiet, again, noisy)]
    assert losses[0] == losses[1] != losses[2]


def test_draws_come_from_the_seed_of_the_run():
    assert [build(seed=seed).generator.initial_seed() for seed in (3, 4)] == [3, 4]


@pytest.mark.parametrize("windows", [1, 3])
def test_the_critic_is_fitted_to_as_many_windows_as_asked(windows):
    algorithm = build(critic_windows=windows)
    for update in range(1, 6):
        algorithm.step()
        assert len(algorithm._data) == min(update, windows)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_native_rollouts_train_as_eager_ones_and_resume_to_the_bit(algorithm):
    eager, native, stopped = (build(algorithm, backend=b) for b in ("eager", "native", "native"))
    records = [[a.step() for _ in range(6)] for a in (eager, native)]
    assert [type(e).__name__ for e in native.rollout.engines.prepared.values()] == ["Native"]
    for ours, theirs in zip(*records, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-3)
        assert ours.env_steps == theirs.env_steps
    for _ in range(3):
        stopped.step()
    resumed = build(algorithm, backend="native")
    resumed.load_state_dict(stopped.state_dict())
    for _ in range(3):
        resumed.step()
    assert same(resumed.state_dict(), native.state_dict())
    x = native.env.reset(5, torch.Generator().manual_seed(0))
    assert torch.allclose(
        native.returns(x), Rollout(native.env, native.policy, backend="eager").returns(x), rtol=1e-3
    )
    assert len(native.rollout.engines.prepared) == 1  # evaluation takes the kernel of training
    assert records[1][0].compile_seconds > 0
    assert not any(record.compile_seconds for record in (*records[0], *records[1][1:]))


def test_an_algorithm_says_what_it_is_in_one_line():
    text = repr(build())
    assert text.startswith("ShortWindow(pendulum, Adam(")
    assert text.endswith("updates)")
    assert "\n" not in text
