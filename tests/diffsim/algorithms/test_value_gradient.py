"""The default algorithm, against formulas and plain automatic differentiation."""

import copy
import math

import pytest
import torch
from same_state import same
from test_algorithms import Drift, Exploding

from diffsim.algorithms.value_gradient import ValueGradient
from diffsim.assembly import assemble
from diffsim.config import Named, load_config
from diffsim.errors import ConfigError
from diffsim.optimizers import make_optimizer
from diffsim.rollouts.observed import observation_jacobian
from robotics_envs.base import Box
from robotics_envs.simulators.pendulum import Pendulum
from solvers.methods.runge_kutta import RK4

THIS = "test_value_gradient"


def build(env="pendulum", optimizer=None, **settings):
    top = {k: settings.pop(k) for k in ("updates", "seed", "dtype", "policy", "backend") if k in settings}
    window = settings.setdefault("window", 8)
    layers = [
        {"env": env, "updates": 8, "backend": "eager", **top},
        {
            "algorithm": {
                "name": "value_gradient",
                "batch": 16,
                "window_end": window,
                "reach": 1.5,
                **settings,
            }
        },
    ]
    return assemble(load_config(*layers, *([{"optimizer": optimizer}] if optimizer else []))).algorithm


class Gone(Exploding):
    """The state turns NaN in those rollouts that start above 3."""

    def dynamics(self, t, x, u, p):
        return torch.where(x > 3.0, torch.nan, -x + u)


class Steered(Drift):
    """Where the state is negative, actions move nothing."""

    def dynamics(self, t, x, u, p):
        return torch.where(x > 0, u, 0 * u)


class NotGone(Drift):
    def dynamics(self, t, x, u, p):
        return -x + u


class Plain(Pendulum):
    """Without the bound on the rate, which has a unit."""

    solver = RK4()


class Faster(Plain):
    """A second of its time takes half a second: twice the rates, four times the accelerations."""

    dt = Pendulum.dt / 2
    state_box = Box.symmetric(math.pi, 16.0)
    start_box = Box.symmetric(math.pi, 2.0)

    def dynamics(self, t, x, u, p):
        angle, rate = x.unbind(-1)
        slow = super().dynamics(t, torch.stack((angle, rate / 2), -1), u, p)
        return torch.stack((2 * slow[:, 0], 4 * slow[:, 1]), -1)

    def cost(self, x, u, p):
        return super().cost(x * x.new_tensor([1.0, 0.5]), u, p)

    def observe(self, x):
        return super().observe(x * x.new_tensor([1.0, 0.5]))


class OtherUnits(Plain):
    """The rate is measured in quarters of rad/s."""

    state_box = Box.symmetric(math.pi, 32.0)
    start_box = Box.symmetric(math.pi, 4.0)

    def _own(self, x):
        return x * x.new_tensor([1.0, 0.25])

    def dynamics(self, t, x, u, p):
        return super().dynamics(t, self._own(x), u, p) * x.new_tensor([1.0, 4.0])

    def cost(self, x, u, p):
        return super().cost(self._own(x), u, p)

    def observe(self, x):
        return 2.0 * super().observe(self._own(x)) - 1.0


class Dear(Plain):
    def cost(self, x, u, p):
        return 1024.0 * super().cost(x, u, p)


@pytest.mark.parametrize("other", ["Dear", "OtherUnits", "Faster"])
def test_units_do_not_matter(other):
    """Cost times 1,024, another unit of a state, another unit of time: the same policy to rounding."""
    plain, changed = (build(env=f"{THIS}:{name}", dtype="float64") for name in ("Plain", other))
    box, theirs = plain.env.state_box, changed.env.state_box
    assert (box != theirs) == (other != "Dear")
    for _ in range(6):
        plain.step()
        changed.step()
    for a, b in zip(plain.policy.parameters(), changed.policy.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-9)


def test_the_discount_follows_from_the_horizon():
    algorithm = build(updates=4)
    gammas = []
    for _ in range(4):
        algorithm.step()
        gammas.append(algorithm.objective.gamma)
    # Rates of 5 to 1 per episode of 200 intervals, geometrically in the share that is left: 1, 3/4, 1/2, 1/4.
    assert gammas == pytest.approx([math.exp(-(5**share) / 200) for share in (1.0, 0.75, 0.5, 0.25)])


def test_the_critic_is_fitted_to_fewer_and_fewer_of_the_last_updates():
    algorithm = build(updates=16, batch=8, window=2, critic_windows=8, critic_windows_end=1)
    kept = []
    for _ in range(16):
        algorithm.step()
        kept.append(len(algorithm._data))
    # 8 ** (1 - u / 16), rounded, after the first updates, in which there are no more yet.
    expected = [round(8 ** (1 - u / 16)) for u in range(16)]
    assert kept == [min(u + 1, most) for u, most in enumerate(expected)]
    assert kept[-1] == 1


def test_actions_are_the_policys_own():
    """Nothing is added to them: the states of a window are those of the policy of its update."""
    algorithm = build(window=4, dtype="float64")
    before = {name: q.clone() for name, q in algorithm.policy.state_dict().items()}
    algorithm.step()
    trajectory = algorithm.objective.trajectory
    algorithm.policy.load_state_dict(before)
    with torch.no_grad():
        again = algorithm.rollout(algorithm._x, 4, algorithm.params)
    assert torch.allclose(again.states, trajectory.states, rtol=1e-12)


# Of (1 - w) r + w b, with w, r and b uniform in (0, 1), (-1, 1) and (-8, 8): the share within ±1.
SLOW_ON_THE_WAY = 0.366


@pytest.mark.parametrize("between", [0.0, 0.5, 1.0])
def test_starts_are_fresh_reset_or_continued(between):
    algorithm = build(batch=4000, window=20, fresh=0.25, resets=0.5, between=between)
    algorithm.step()
    ends = algorithm._ends.clone()
    starts = algorithm._starts(4000, 0)
    went_on = (starts == ends).all(dim=1)
    assert not went_on[:1000].any()
    inside = ends[:, 1:].abs() <= 1.5 * 8.0  # the rate; angles do not count
    # Windows of 20 of the 200 intervals of an episode: a tenth restarts.
    share = float(went_on[1000:].float().mean() / inside[1000:].all(dim=1).float().mean())
    assert share == pytest.approx(0.9, abs=0.03)
    # Pendulum-v1 starts with rates within ±1, the box has ±8.
    slow = (starts[:, 1].abs() <= 1.0) & ~went_on
    assert slow[1000:2500][~went_on[1000:2500]].all()
    for part in (slice(0, 1000), slice(2500, 4000)):
        drawn = ~went_on[part]
        expected = (1 - between) / 8 + between * SLOW_ON_THE_WAY
        assert float(slow[part][drawn].float().mean()) == pytest.approx(expected, abs=0.05)


def test_lost_and_ended_windows_start_afresh():
    algorithm = build(batch=100, fresh=0.0, window=1)
    algorithm._uniform = lambda count: torch.ones(count)  # every window survives
    algorithm.step()
    algorithm._ends = torch.tensor([[50.0, 0.0], [0.0, 11.9], [0.0, 12.1], [torch.nan, 0.0]]).repeat(25, 1)
    starts = algorithm._starts(100, 0)
    assert (starts == algorithm._ends).all(dim=1).tolist() == [True, True, False, False] * 25
    assert starts.isfinite().all()
    ending = build(env="test_algorithms:Ending", batch=3, fresh=0.0, window=2)
    ending._uniform = lambda count: torch.ones(count)
    ending._ends = torch.tensor([[0.5], [1.5], [0.99]])
    assert (ending._starts(3, 0) == ending._ends).flatten().tolist() == [True, False, True]


def windows_of(algorithm, batch=16):
    """Scenarios of a step after three, which does not take place."""
    for _ in range(3):
        algorithm.step()
    x = algorithm.env.state_box.sample(batch, torch.Generator().manual_seed(3), algorithm.dtype)
    noise = 0.3 * torch.randn(
        algorithm.objective.steps, batch, 1, generator=torch.Generator().manual_seed(4), dtype=algorithm.dtype
    )
    algorithm.objective.begin(x, noise)
    return x, noise


def test_the_loss_is_the_compressed_discounted_cost():
    algorithm = build(window=3, dtype="float64", gradient_bound=1e9, compression=2.0)
    x, noise = windows_of(algorithm)
    algorithm.objective.gamma = 0.8
    with torch.no_grad():
        window = algorithm.rollout(x, 3, algorithm.params, noise=noise)
        values = algorithm.critic.values(algorithm.policy.normalise(algorithm.env.observe(window.last)))
        c = window.costs
        y = (c[0] + 0.8 * c[1] + 0.64 * c[2] + 0.512 * values - algorithm.critic.target.mean) / (
            algorithm.critic.target.scale
        )
    assert float(values.abs().mean()) > 0.1  # or the last term would not be tested
    expected = float((2.0 * torch.asinh(y / 2.0)).mean())
    assert float(algorithm.objective.loss().detach()) == pytest.approx(expected, rel=1e-12)
    (values,) = (algorithm.objective.values(algorithm.objective.vector.read().unsqueeze(0)),)
    assert float(values) == pytest.approx(expected, rel=1e-12)


def gradient_through_everything(algorithm, x, noise, weights):
    """The gradient of the weighted mean of the losses by plain autograd through policy, simulator and critic."""
    policy, env, state, costs = algorithm.policy, algorithm.env, x, []
    for t in range(len(noise)):
        state, cost = env.step(state, policy(env.observe(state), noise[t]), algorithm.params)
        costs.append(cost * algorithm.objective.gamma**t)
    value = algorithm.critic.values(policy.normalise(env.observe(state)))
    total = sum(costs) + algorithm.objective.gamma ** len(noise) * value
    c = algorithm.settings.compression
    losses = c * torch.asinh(algorithm.critic.standardised(total) / c)
    return torch.autograd.grad((weights * losses).mean(), list(policy.parameters()))


@pytest.mark.parametrize("backend", ["eager", "native"])
def test_one_backward_pass_gives_the_policys_gradient(backend):
    algorithm = build(window=5, dtype="float64", backend=backend, gradient_bound=0.05)
    x, noise = windows_of(algorithm)
    found = algorithm.objective.gradient()
    weights = algorithm.objective.windows.bounds
    assert 0 < float((weights < 1).double().mean()) < 1
    expected = gradient_through_everything(algorithm, x, noise, weights)
    for ours, theirs in zip(found.parts, expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12)


def test_long_derivatives_are_bounded_and_the_factors_kept_for_a_step():
    bound = 0.05
    algorithm = build(window=5, dtype="float64", gradient_bound=bound)
    x, noise = windows_of(algorithm)
    algorithm.objective.loss()
    first = algorithm.objective.windows
    leaf = noise.clone().requires_grad_()
    with torch.enable_grad():
        window = algorithm.rollout(x, 5, algorithm.params, noise=leaf)
        losses = algorithm.objective.terms(window).squeeze(0)
    (by_action,) = torch.autograd.grad(losses.sum(), leaf)
    lengths = by_action.norm(dim=(0, 2))
    assert torch.allclose(first.bounds, (bound / lengths).clamp_max(1.0), rtol=1e-9)
    assert 0 < float((lengths > bound).double().mean()) < 1
    with torch.no_grad():
        for q in algorithm.policy.parameters():
            q.mul_(1.1)
    algorithm.objective.loss()
    assert algorithm.objective.windows is first
    algorithm.objective.begin(x, noise)
    algorithm.objective.loss()
    assert not torch.equal(algorithm.objective.windows.bounds, first.bounds)


@pytest.mark.parametrize("backend", ["eager", "native"])
def test_the_policy_learns_nothing_from_windows_in_which_an_episode_ends(backend):
    """The derivative of such a window takes the time of the end as given; its values count for the critic alone."""
    algorithm = build(
        env="test_algorithms:Ending", window=3, batch=32, dtype="float64", backend=backend, gradient_bound=1e9
    )
    algorithm.step()
    x = torch.linspace(-2, 2, 32, dtype=torch.float64).unsqueeze(-1)
    noise = x.new_zeros(3, 32, 1)
    algorithm.objective.begin(x, noise)
    found, windows = algorithm.objective.gradient(), algorithm.objective.windows
    lives = (algorithm.rollout(x, 3, algorithm.params, noise=noise).states[..., 0] < 1.0).all(0)
    assert 0 < int(lives.sum()) < int((x < 1.0).sum())  # some end after they have begun
    assert torch.equal(windows.bounds, lives.double())
    expected = gradient_through_everything(algorithm, x, noise, lives)
    for ours, theirs in zip(found.parts, expected, strict=True):
        assert float(theirs.abs().max()) > 1e-6
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12)
    # They are not among those that meet the bound either.
    algorithm._longest = 2.0
    algorithm._adapt_length(windows)
    assert algorithm._longest == pytest.approx(2.04)


def test_windows_shrink_while_many_derivatives_meet_the_bound():
    strict = build(window=8, window_end=8, gradient_bound=1e-6, updates=30)
    loose = build(window=8, window_end=8, gradient_bound=1e6, updates=30)
    lengths = [[round(a.step().env_steps / 16) for _ in range(30)] for a in (strict, loose)]
    assert lengths[1] == [8] * 30
    # 5% a step, rounded.
    assert lengths[0] == [max(round(8 * 0.95**k), 1) for k in range(30)]
    for _ in range(10):
        strict._adapt_length(loose.objective.windows)
    assert strict._longest == pytest.approx(8 * 0.95**30 * 1.02**10)


def test_costates_are_derivatives_by_the_initial_state():
    algorithm = build(window=4, dtype="float64")
    x, noise = windows_of(algorithm)
    algorithm.objective.loss()
    found = algorithm.objective.windows
    eps = 1e-6
    for k in range(2):
        step = torch.zeros_like(x)
        step[:, k] = eps
        with torch.no_grad():
            ends = [
                algorithm.objective.discounted(
                    algorithm.rollout(x + s * step, 4, algorithm.params, noise=noise)
                )
                for s in (1, -1)
            ]
        assert torch.allclose((ends[0] - ends[1]) / (2 * eps), found.costates[:, k], rtol=1e-4, atol=1e-5)


def test_the_jacobian_of_the_observation():
    algorithm = build(dtype="float64")
    x = algorithm.env.state_box.sample(5, torch.Generator().manual_seed(0), torch.float64)
    found = observation_jacobian(algorithm.env, algorithm.policy, x)
    for i, one in enumerate(x):
        expected = torch.autograd.functional.jacobian(
            lambda y: algorithm.policy.normalise(algorithm.env.observe(y[None]))[0], one
        )
        assert torch.allclose(found[i], expected, rtol=1e-12, atol=1e-14)


def test_what_the_critic_learns_from():
    """TD(lambda) by its definition (Sutton and Barto, eq. 12.3), and costates in units of the box."""
    lam, steps = 0.7, 5
    algorithm = build(window=steps, td_lambda=lam, dtype="float64")
    x, _ = windows_of(algorithm)
    gamma = algorithm.objective.gamma
    algorithm.objective.loss()
    window, gradients = algorithm.objective.simulated(), algorithm.objective.windows
    observe = algorithm.env.observe
    values = torch.stack(
        [algorithm.critic.values(algorithm.policy.normalise(observe(q))) for q in window.states]
    )
    algorithm._fit_critic(window, gradients)
    rows = algorithm._data[-1]
    targets = rows.targets.view(steps, 16)
    for t in range(steps):
        returns = [
            sum(gamma**k * window.costs[t + k] for k in range(n)) + gamma**n * values[t + n]
            for n in range(1, steps - t + 1)
        ]
        expected = sum((1 - lam) * lam ** (n - 1) * g for n, g in enumerate(returns[:-1], start=1))
        expected = expected + lam ** (steps - t - 1) * returns[-1]
        assert torch.allclose(targets[t], expected, rtol=1e-10)
    sizes = torch.tensor([math.pi, 8.0], dtype=torch.float64)
    assert torch.equal(rows.costates, gradients.costates * sizes)
    assert torch.equal(rows.costs, gradients.costs)
    assert torch.allclose(
        rows.jacobians, observation_jacobian(algorithm.env, algorithm.policy, x) * sizes, rtol=1e-12
    )


def test_nothing_counts_after_an_end():
    """In Ending, a rollout from 0.75 with zero action ends at 1.25: one cost, then nothing."""
    algorithm = build(env="test_algorithms:Ending", window=3, dtype="float64")
    algorithm.step()
    with torch.no_grad():
        for q in algorithm.policy.parameters():
            q.zero_()
        window = algorithm.rollout(torch.full((8, 1), 0.75).double(), 3, algorithm.params)
        assert torch.allclose(algorithm.objective.discounted(window), torch.full((8,), 0.75).double())
        algorithm._fit_critic(window, None)
    assert torch.allclose(algorithm._data[-1].targets[:8], torch.full((8,), 0.75).double())


def test_windows_that_are_not_finite_are_left_out_and_counted():
    algorithm = build(env=f"{THIS}:Gone", batch=64, window=2, dtype="float64", gradient_bound=1e9)
    x = torch.linspace(-4, 4, 64, dtype=torch.float64).unsqueeze(-1)
    algorithm._starts = lambda count, kept: x
    record = algorithm.step()
    assert (record.left_out, record.dropped) == (8, "")  # those above 3
    kept = build(env=f"{THIS}:NotGone", batch=56, window=2, dtype="float64", gradient_bound=1e9)
    kept._starts = lambda count, kept: x[:56]
    kept._draw = lambda: x[:56]
    assert kept.step().loss == pytest.approx(record.loss, rel=1e-12)
    for a, b in zip(algorithm.policy.parameters(), kept.policy.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)
    assert all(q.isfinite().all() for rows in algorithm._data for q in rows)


class AlwaysGone(Drift):
    def dynamics(self, t, x, u, p):
        return super().dynamics(t, x, u, p) * torch.nan


def test_an_update_without_a_finite_window_is_dropped():
    algorithm = build(env=f"{THIS}:AlwaysGone", window=2)
    before = [q.clone() for q in algorithm.policy.parameters()]
    assert algorithm.step().dropped == "16 of 16 rollouts not finite, first at control interval 1"
    assert all(map(torch.equal, before, algorithm.policy.parameters()))


@pytest.mark.parametrize("optimizer", ["cma_es", "pgpe"])
def test_populations_need_no_gradient_and_the_critic_learns_values_only(optimizer):
    pytest.importorskip("evotorch" if optimizer == "pgpe" else "cma")
    algorithm = build(optimizer={"name": optimizer, "popsize": 6}, policy={"hidden": [4]}, batch=8, window=2)
    record = algorithm.step()
    assert record.gradient_evaluations == 0
    rows = algorithm._data[-1]
    assert (len(rows.z), len(rows.starts)) == (16, 0)
    assert algorithm.critic.fitted


def test_a_line_search_stays_on_one_function():
    """With strong Wolfe conditions the loss falls within a step, on its scenarios and with the factors of its start."""
    algorithm = build(dtype="float64", gradient_bound=0.01, batch=32)
    windows_of(algorithm, batch=32)
    search = make_optimizer(algorithm.policy.parameters(), Named(name="lbfgs", max_iter=4, overlap=0.0), 0)
    report = search.step(algorithm.objective, 0.5)
    windows = algorithm.objective.windows
    assert report.gradients > 1
    assert float(windows.bounds.min()) < 1
    after = float(algorithm.objective.loss().detach())
    assert algorithm.objective.windows is windows
    assert after < report.loss


def test_an_optimizer_may_keep_windows():
    a = build(batch=10, optimizer={"name": "lbfgs", "overlap": 0.4})
    a.step()
    x = a._x
    a.step()
    assert torch.equal(a._x[:4], x[-4:])
    assert not (a._x[4:, None] == x).all(-1)[:, -4:].any()


def test_windows_grow_geometrically():
    algorithm = build(window=2, window_end=32, updates=4)
    algorithm._adapt_length = lambda windows: setattr(algorithm, "_longest", 1e9)
    steps = []
    for _ in range(4):
        record = algorithm.step()
        steps.append(record.env_steps / 16)
        assert algorithm.objective.noise.shape == (steps[-1], 16, 1)
    assert steps == [2, 4, 8, 16]  # with the share of the run that is done


def test_windows_that_actions_do_not_move_start_afresh():
    algorithm = build(env=f"{THIS}:Steered", fresh=0.0, window=2, dtype="float64")
    algorithm._uniform = lambda count: torch.ones(count)  # every window survives
    x = torch.tensor([[-1.0], [1.0]], dtype=torch.float64).repeat(8, 1)
    algorithm._starts = lambda count, kept: x
    algorithm.step()
    assert algorithm._ends.isfinite().flatten().tolist() == [False, True] * 8
    with torch.no_grad():
        algorithm.policy.network[-1].bias.fill_(
            -5.0
        )  # beyond its bound no action has an effect, which is no reason
    algorithm.step()
    assert algorithm._ends.isfinite().all()


def test_windows_are_no_longer_than_an_episode():
    algorithm = build(env="test_algorithms:Drift", window=50)
    assert algorithm.step().env_steps == 16 * 6


def test_an_observation_that_does_not_depend_on_the_state_has_a_zero_jacobian():
    class Blind(Drift):
        def observe(self, x):
            return torch.zeros_like(x)

    algorithm = build(env="test_algorithms:Drift")
    x = torch.zeros(3, 1)
    assert observation_jacobian(Blind(), algorithm.policy, x).tolist() == [[[0.0]]] * 3


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"windw": 3}, "unknown key 'algorithm.windw'; did you mean 'algorithm.window'"),
        ({"discount_end": 0.0}, "algorithm.discount_end = 0.0"),
        ({"fresh": 1.5}, "algorithm.fresh = 1.5"),
        ({"gradient_bound": 0.0}, "algorithm.gradient_bound = 0.0"),
        ({"reach": -1.0}, "algorithm.reach = -1.0"),
    ],
)
def test_mistakes_are_named(settings, complaint):
    with pytest.raises(ConfigError, match=complaint):
        build(**settings)


def test_it_is_the_default():
    assert isinstance(assemble(load_config({"env": "pendulum"})).algorithm, ValueGradient)


@pytest.mark.parametrize("env", ["pendulum", "test_algorithms:Ending"])
def test_compiled_and_eager_updates_agree(env):
    algorithms = [build(env=env, dtype="float64", backend=b, batch=40, window=5) for b in ("native", "eager")]
    for _ in range(5):
        records = [algorithm.step() for algorithm in algorithms]
        assert records[0].loss == pytest.approx(records[1].loss, rel=1e-8)
    ours, theirs = (a.state_dict() for a in algorithms)
    for part in ("policy", "critic"):
        nets = [s["policy"] if part == "policy" else s["critic"]["network"] for s in (ours, theirs)]
        for name, value in nets[0].items():
            assert torch.allclose(value, nets[1][name], rtol=1e-7, atol=1e-9)
    assert torch.equal(ours["generator"], theirs["generator"])


def test_a_compiled_run_resumes_bit_for_bit_with_one_thread_and_two():
    options = {"backend": "native", "batch": 300, "window": 3, "policy": {"hidden": [8]}}
    straight, stopped, resumed = (build(**options) for _ in range(3))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        for _ in range(6):
            straight.step()
        torch.set_num_threads(2)
        for _ in range(3):
            stopped.step()
        resumed.load_state_dict(copy.deepcopy(stopped.state_dict()))
        for _ in range(3):
            resumed.step()
    finally:
        torch.set_num_threads(before)
    assert same(straight.state_dict(), resumed.state_dict())
