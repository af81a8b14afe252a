"""What surrounds a rollout changes nothing: modes of torch, defaults of the process, copies, kinds of numbers."""

import copy
import logging
import multiprocessing
import pickle

import jaxtyping
import numpy as np
import pytest
import torch
from torch import nn

from diffsim.policy import MLP
from diffsim.rollouts import Noise, Rollout, Trajectory, randomised
from examples.cartpole import CartPole
from robotics_envs import ENVIRONMENTS, make_env
from robotics_envs.base import Box, Env
from robotics_envs.user_code import UserCodeError, construct_env

F32, F64 = torch.float32, torch.float64
BACKENDS = ["eager", "native", pytest.param("inductor", marks=pytest.mark.slow)]


@pytest.fixture(autouse=True)
def no_shape_checker():
    """The tests' own checker would answer before the messages that users see."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def generator(seed=0):
    return torch.Generator("cpu").manual_seed(seed)


def network(inputs=5, seed=0):
    torch.manual_seed(seed)
    return MLP(inputs, 1, (8,))


def loop(env, policy, x, steps):
    costs = []
    for _ in range(steps):
        x, cost = env.step(x, policy(env.observe(x)), env.params(x))
        costs.append(cost)
    return torch.stack(costs)


def gradients(costs, policy):
    return torch.autograd.grad(costs.sum(), list(policy.parameters()))


def near(got, right, tolerance=1e-4):
    return all(
        float((a - b).detach().abs().max() / b.detach().abs().max()) < tolerance
        for a, b in zip(got, right, strict=True)
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_inference_mode(backend):
    """Also on first use, with another batch size, and with tensors of that mode used outside of it."""
    env, policy = CartPole(), network()
    x = env.reset(5, generator())
    costs = loop(env, policy, x, 4)
    right = gradients(costs, policy)
    rollout = Rollout(env, policy, backend=backend)
    with torch.inference_mode():
        inside = env.reset(5, generator())
        p, controls = env.params(inside), torch.zeros(4, 5, 1)
        assert near([rollout(inside, 4).costs], [costs])
        assert rollout(env.reset(7, generator()), 4, p).costs.shape == (4, 7)
        assert rollout.returns(inside).shape == (5,)
        stacked = {k: torch.stack([v, v]) for k, v in policy.named_parameters()}
        assert rollout.population(stacked, inside, 4).shape == (2, 5)
    got = rollout(inside, 4, p).costs
    assert near([got, *gradients(got, policy)], [costs, *right])
    start = x.clone().requires_grad_()
    Rollout(env, backend=backend)(start, 4, p, controls=controls).costs.sum().backward()
    assert start.grad.any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("backward_inside", [True, False])
def test_backward_computes_under_the_autocast_of_forward(backend, backward_inside):
    env, policy = CartPole(), network()
    x = env.reset(5, generator())
    rollout = Rollout(env, policy, backend=backend)
    plain = rollout(x, 4).costs  # compiled without autocast
    with torch.autocast("cpu", dtype=torch.bfloat16):
        costs = loop(env, policy, x, 4)
        right = gradients(costs, policy)
        got = rollout(x, 4).costs
        found = gradients(got, policy) if backward_inside else None
        after = gradients(loop(env, policy, x, 4), policy)
    found = found or gradients(got, policy)
    assert torch.equal(got, costs)
    assert near(found, right, 0.02)  # bfloat16 has three digits
    assert all(a.dtype == F32 for a in found)
    # Nothing that was cast without a graph is left in autocast's cache.
    assert all(torch.equal(a, b) for a, b in zip(after, right, strict=True))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outside = gradients(plain, policy)
    assert near(outside, gradients(loop(env, policy, x, 4), policy))


def test_backward_under_autocast_is_that_of_the_lower_precision():
    """A gain that bfloat16 rounds to 1: in float32 the derivative would differ by a factor of four."""

    class Rounding(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(5, 1, bias=False)
            with torch.no_grad():
                self.layer.weight.fill_(1.001)

        def forward(self, o):
            return (self.layer(o).float() - o.sum(-1, keepdim=True).bfloat16().float()) ** 2

    env, policy = CartPole(), Rounding()
    x = 0.1 * env.reset(5, generator(1))
    results = []
    for rollout in (
        lambda: loop(env, policy, x, 2),
        lambda: Rollout(env, policy, backend="eager")(x, 2).costs,
    ):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            costs = rollout()
        results.append(gradients(costs, policy)[0])
    assert torch.allclose(*results, rtol=0.02, atol=1e-6)


SURROUNDINGS = ["float64", "float16", "meta"]


@pytest.fixture(params=SURROUNDINGS)
def surrounding(request):
    """A context with another default dtype or device."""

    def enter():
        if request.param == "meta":
            torch.set_default_device("meta")
        else:
            torch.set_default_dtype(getattr(torch, request.param))

    yield enter
    torch.set_default_device(None)
    torch.set_default_dtype(F32)


def same(got, right):
    return len(got) == len(right) and all(
        a.dtype == b.dtype and a.device == b.device and bool(((a == b) | ((a != a) & (b != b))).all())
        for a, b in zip(got, right, strict=True)
    )


def rollouts(backend, policy):
    env = CartPole()
    x = env.reset(5, generator())
    x[2, 0] = torch.nan
    p = {k: v.requires_grad_() for k, v in randomised(env.params(x), {"l": 0.1}, 5, 3).items()}
    rollout = Rollout(env, policy, terminal=lambda s: s[:, 1], backend=backend, on_failure="mark")
    got = rollout(x, 4, p)
    total = torch.where(got.ok, got.costs, 0.0).sum() + torch.where(got.ok, got.values, 0.0).sum()
    by = torch.autograd.grad(total, [*policy.parameters(), *p.values()])
    noisy = Rollout(env, lambda o, noise: o[:, :1] + noise, backend=backend)(x, 4, noise=Noise(3, 0.1))
    return [*got, *by, noisy.costs, rollout.returns(x)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_defaults_of_the_process_change_no_rollout(backend, surrounding):
    policy = network()
    right = rollouts(backend, policy)
    surrounding()
    assert same(rollouts(backend, policy), right)


def simulated(name):
    env, results = make_env(name), []
    for dtype in (F32, F64):
        x, u = env.reset(4, generator(), dtype), env.action_box.sample(4, generator(1), dtype)
        p = env.params(x)
        results += [x, u, *p.values(), *env.step(x, u, p), env.dynamics(0.0, x, u, p)]
        results += [env.cost(x, u, p), env.observe(x), env.done(x)]
    return results, repr([*env.scenery(), *env.draw(x[0].numpy(), u[0].numpy())])


def test_defaults_of_the_process_change_no_simulator(surrounding):
    right = {name: simulated(name) for name in ENVIRONMENTS}
    surrounding()
    for name in ENVIRONMENTS:
        results, picture = simulated(name)
        assert same(results, right[name][0]), name
        assert picture == right[name][1], name


class Source(nn.Module):
    """Random numbers from a source of its own."""

    def __init__(self, draw):
        super().__init__()
        self.layer, self.draw = nn.Linear(5, 1), draw

    def forward(self, o):
        return self.layer(o) + 0.1 * self.draw(len(o)).to(o)


def _own_generator():
    own = generator(3)
    return lambda n: torch.randn(n, 1, generator=own)


def _numpy_generator():
    own = np.random.default_rng(3)
    return lambda n: torch.from_numpy(own.normal(size=(n, 1)))


def _numpy_global():
    np.random.seed(3)  # noqa: NPY002
    return lambda n: torch.from_numpy(np.random.normal(size=(n, 1)))  # noqa: NPY002


@pytest.mark.parametrize("source", [_own_generator, _numpy_generator, _numpy_global])
@pytest.mark.parametrize("backend", ["eager", "native"])
def test_random_numbers_of_any_source_are_drawn_once(source, backend, caplog):
    """Otherwise the gradient would be that of another rollout than the one returned."""
    env = CartPole()
    torch.manual_seed(0)
    policy = Source(source())
    x = env.reset(4, generator())
    got = Rollout(env, policy, backend=backend)(x, 3)
    drawn = []
    policy.draw = source()
    if source is _numpy_generator:
        policy.draw(3), policy.draw(3)  # what was drawn while looking at the rollout cannot be put back
    replay = policy.draw
    policy.draw = lambda n: drawn.append(replay(n)) or drawn[-1]
    costs = loop(env, policy, x, 3)
    assert torch.allclose(got.costs, costs)
    assert near(gradients(got.costs, policy), gradients(costs, policy), 1e-5)
    assert "cannot be computed again" in caplog.records[0].getMessage()


def test_looking_at_a_rollout_leaves_generators_as_they_were():
    own = generator(3)
    policy = Source(lambda n: torch.randn(n, 1, generator=own) + torch.randn(n, 1))
    failing, x = nn.Sequential(policy, nn.Linear(7, 1)), CartPole().reset(4, generator())
    before, numpy = (own.get_state(), torch.get_rng_state()), np.random.get_state()[1].copy()  # noqa: NPY002
    with pytest.raises(RuntimeError):
        Rollout(CartPole(), failing)(x, 3)
    assert torch.equal(own.get_state(), before[0])
    assert torch.equal(torch.get_rng_state(), before[1])
    assert np.array_equal(np.random.get_state()[1], numpy)  # noqa: NPY002


def test_dropout_in_the_terminal_value_is_drawn_once():
    env, policy = CartPole(), network()
    value = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.Linear(16, 1), nn.Flatten(0))
    x = env.reset(4, generator()).requires_grad_()
    results = []
    for ours in (True, False):
        torch.manual_seed(7)
        if ours:
            values = Rollout(env, policy, terminal=value)(x, 2).values
        else:
            end = x
            for _ in range(2):
                end, _ = env.step(end, policy(env.observe(end)), env.params(x))
            values = value(end)
        results.append([values, *torch.autograd.grad(values.sum(), [x, *value.parameters()])])
    assert near(*results, 1e-6)


@pytest.mark.parametrize("backend", ["eager", "native"])
def test_without_gradient_random_numbers_and_buffers_are_those_of_a_loop(backend):
    """Preparing a back end runs the policy; nothing of that may be left behind."""

    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(5, 1)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, o):
            self.calls += 1.0
            return self.layer(nn.functional.dropout(o)) + 0.01 * self.calls

    env, policy = CartPole(), Counting()
    x, results = env.reset(4, generator()), []
    for ours in (True, False):
        policy.calls.zero_()
        torch.manual_seed(7)
        with torch.no_grad():
            costs = Rollout(env, policy, backend=backend)(x, 3).costs if ours else loop(env, policy, x, 3)
        results.append((costs, policy.calls.clone(), torch.get_rng_state()))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


# ---- copies


def used(backend):
    env, policy = CartPole(), network()
    rollout = Rollout(env, policy, terminal=network(4), backend=backend, on_failure="mark", threads=1)
    rollout.terminal = _first_state
    with torch.no_grad():
        rollout(env.reset(4, generator()), 3)
    return rollout


def _first_state(x):
    return x[:, 0]


COPIES = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda rollout: pickle.loads(pickle.dumps(rollout)),
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("backend", ["eager", "native"])
def test_a_copy_prepares_back_ends_of_its_own(how, backend):
    rollout = used(backend)
    x = rollout.env.reset(4, generator())
    right = rollout(x, 3)
    other = COPIES[how](rollout)
    assert not other.engines.prepared
    assert other.compile_seconds == 0.0
    assert rollout.engines.prepared
    got = other(x, 3)
    assert torch.equal(got.costs, right.costs)
    if how != "copy":  # weights of its own
        with torch.no_grad():
            for q in other.policy.parameters():
                q.add_(1.0)
        assert torch.equal(rollout(x, 3).costs, right.costs)
        assert not torch.equal(other(x, 3).costs, right.costs)
    by = torch.autograd.grad(other(x, 3).costs.sum(), list(other.policy.parameters()))
    assert all(q.isfinite().all() for q in by)


def _in_another_process(queue, rollout, x, noise):
    queue.put((rollout(x, 3).costs.detach().tolist(), noise, repr(rollout)))


def test_a_rollout_is_sent_to_a_spawned_process():
    rollout = used("eager")
    x = rollout.env.reset(4, generator())
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=_in_another_process, args=(queue, rollout, x, Noise(5, 0.5)))
    process.start()
    costs, noise, text = queue.get()
    process.join()
    assert costs == rollout(x, 3).costs.tolist()
    assert noise == Noise(5, 0.5)
    assert text == repr(rollout)


def test_what_comes_out_can_be_copied():
    rollout = used("eager")
    with torch.no_grad():
        got = rollout(rollout.env.reset(4, generator()), 3)
    for copied in (copy.deepcopy(got), pickle.loads(pickle.dumps(got))):
        assert isinstance(copied, Trajectory)
        assert same(copied, got)


def test_representations_are_one_line_with_name_sizes_and_back_end():
    text = repr(Rollout(CartPole(l=0.7), network(), backend="native"))
    assert "\n" not in text
    for part in (
        "CartPole",
        "4 states",
        "5 observations",
        "1 action,",
        "l = 0.7",
        "MLP of 57 parameters",
        "'native'",
    ):
        assert part in text
    assert "open loop" in repr(Rollout(CartPole()))
    assert len(repr(make_env("heat_rod").state_box)) < 120
    assert eval(repr(Box((0.0,), (1.0,)))) == Box((0.0,), (1.0,))


# ---- numbers


@pytest.mark.parametrize("two", [2, np.int64(2), np.uint8(2), np.array(2), torch.tensor(2)])
def test_whole_numbers_of_every_kind(two):
    env, x = CartPole(), torch.zeros(3, 4)
    rollout = Rollout(env, lambda o: o[:, :1], backend="eager", threads=two, expected_steps=two)
    assert rollout(x, two, truncate=two).costs.shape == (2, 3)
    assert Rollout(env)(x, two, controls=torch.zeros(2, 3, 1)).costs.shape == (2, 3)
    assert type(Noise(two).seed) is int
    assert torch.equal(Noise(two, start=two).at(0, 3, 1, x), Noise(2, start=2).at(0, 3, 1, x))
    assert env.reset(two, generator()).shape == (2, 4)
    assert env.action_box.sample(two, generator()).shape == (2, 1)
    p = randomised(env.params(x), {"l": 0.1}, two, two)
    assert torch.equal(p["l"], randomised(env.params(x), {"l": 0.1}, 2, 2)["l"])


@pytest.mark.parametrize(
    "wrong", [True, np.True_, torch.tensor(True), 2.0, np.float64(2), "2", None, -1, [2]]
)
def test_what_is_no_whole_number_is_refused(wrong):
    env, x = CartPole(), torch.zeros(3, 4)
    rollout = Rollout(env, lambda o: o[:, :1], backend="eager")
    calls = {
        "steps": lambda: rollout(x, wrong),
        "truncate": lambda: rollout(x, 2, truncate=wrong),
        "threads": lambda: Rollout(env, threads=wrong),
        "expected_steps": lambda: Rollout(env, expected_steps=wrong),
        "seed": lambda: Noise(wrong),
        "start": lambda: Noise(0, start=wrong),
        "batch": lambda: env.reset(wrong, generator()),
    }
    for name, call in calls.items():
        if wrong is None and name in ("truncate", "threads", "expected_steps"):
            continue
        with pytest.raises(ValueError, match=rf"{name} = .*: must be a whole number"):
            call()


@pytest.mark.parametrize("seed", [2**64, 10**30, -1, np.int64(-5)])
def test_seeds_beyond_their_range_are_refused_with_the_range(seed):
    with pytest.raises(ValueError, match=r"noise seed = .*from 0 to 2\*\*64 - 1"):
        Noise(seed)
    with pytest.raises(ValueError, match=r"seed = .*from 0 to 2\*\*64 - 1"):
        randomised({"l": torch.tensor(1.0)}, {"l": 0.1}, 2, seed)
    with pytest.raises(ValueError, match=r"start = .*from 0 to 2\*\*32 - 1"):
        Noise(0, start=2**32)
    assert Noise(2**64 - 1, start=2**32 - 1).seed == 2**64 - 1


@pytest.mark.parametrize("scale", [True, "1", float("nan"), -0.1, None])
def test_scales_that_are_no_numbers_are_refused(scale):
    with pytest.raises(ValueError, match="noise scale = "):
        Noise(0, scale)


# ---- sizes


@pytest.mark.parametrize("backend", ["auto", "eager", "native", "inductor"])
@pytest.mark.parametrize("gradient", [True, False])
def test_a_policy_of_the_wrong_number_of_actions_is_refused(backend, gradient, caplog):
    """Clipping would broadcast one output to all four motors."""
    env = make_env("quadrotor")
    x = env.reset(5, generator())
    for outputs in (1, 3, 5):
        rollout = Rollout(env, nn.Linear(22, outputs), backend=backend)
        with (
            torch.set_grad_enabled(gradient),
            pytest.raises(ValueError, match=rf"Linear .*\[5, {outputs}\], quadrotor .*\[5, 4\]"),
        ):
            rollout(x, 3)
        stacked = {k: torch.stack([v, v]) for k, v in rollout.policy.named_parameters()}
        with pytest.raises(ValueError, match=rf"Linear .*, {outputs}\], quadrotor .*, 4\]"):
            rollout.population(stacked, x, 3)
        with pytest.raises(ValueError, match=rf"\[5, {outputs}\]"):
            rollout.returns(x)
    for wrong in (
        lambda o: o[:, 0],
        lambda o: o[:1, :4],
        lambda o: o[:, :4].unsqueeze(0),
        lambda o: o[0, :4],
    ):
        with pytest.raises(ValueError, match="returned actions of shape"):
            Rollout(env, wrong, backend=backend)(x, 3)
    with pytest.raises(ValueError, match="returned list, expected a tensor"):
        Rollout(env, lambda o: o[:, :4].tolist(), backend=backend)(x, 3)
    assert not caplog.records  # no falling back first


def test_a_policy_for_other_observations_is_named_with_both_sizes():
    with pytest.raises(UserCodeError, match=r"policy Linear .*observations \[B, o\] = \[5, 5\].*5x5 and 4x1"):
        Rollout(CartPole(), nn.Linear(4, 1))(torch.zeros(5, 4), 3)


class WrongCost(CartPole):
    def cost(self, x, u, p):
        return super().cost(x, u, p).unsqueeze(-1)


class OneCost(CartPole):
    def cost(self, x, u, p):
        return super().cost(x, u, p).mean()


class WrongObservation(CartPole):
    def observe(self, x):
        return x


class WrongState(CartPole):
    def step(self, x, u, p):
        following, cost = super().step(x, u, p)
        return following[:, :3], cost


class OwnCost(CartPole):
    def step(self, x, u, p):
        following, cost = super().step(x, u, p)
        return following, cost.unsqueeze(-1)


@pytest.mark.parametrize("backend", ["eager", "native", "inductor"])
@pytest.mark.parametrize(
    ("env", "complaint"),
    [
        (
            WrongCost,
            r"cost returned the shape \[5, 1\], needed \[B\] = \[5\] \(\S*test_rollout_modes.py:\d+\)",
        ),
        (OneCost, r"cost returned the shape \[\], needed \[B\] = \[5\]"),
        (
            WrongObservation,
            r"observe returned .* \[5, 4\], expected \[B, o\] = \[5, 5\] \(position, cos_angle",
        ),
        (WrongState, r"next state .* \[5, 3\], expected \[B, n\] = \[5, 4\] \(position, angle"),
        (OwnCost, r"the cost with the shape \[5, 1\], expected \[B\] = \[5\]"),
    ],
)
def test_simulators_that_return_wrong_sizes_are_refused(env, complaint, backend, caplog):
    with pytest.raises(ValueError, match=complaint):
        Rollout(env(), nn.Linear(5, 1), backend=backend)(torch.zeros(5, 4), 3)
    assert not caplog.records


@pytest.mark.parametrize("backend", ["eager", "native"])
def test_terminal_values_and_ends_of_wrong_sizes_are_refused(backend):
    x = torch.zeros(5, 4)
    for terminal in (lambda x: x[:, :1], lambda x: x.sum()):
        with pytest.raises(ValueError, match=r"the terminal value <lambda> .*, expected \[B\] = \[5\]"):
            Rollout(CartPole(), network(), terminal=terminal, backend=backend)(x, 3)

    class WrongEnd(CartPole):
        def done(self, x):
            return x[:, :1] > 5

    with pytest.raises(ValueError, match=r"done returned torch.bool of shape \[5, 1\], expected"):
        Rollout(WrongEnd(), network(), backend=backend).returns(x)


def test_sizes_of_a_populations_inputs_are_checked():
    env, policy = CartPole(), network()
    rollout = Rollout(env, policy, backend="eager")
    stacked = {k: torch.stack([v, v]) for k, v in policy.named_parameters()}
    x = torch.zeros(3, 4)
    with pytest.raises(
        ValueError, match=r"noise has the shape \(2, 3, 2\), expected \[steps, R, m\] = \[2, 3, 1\]"
    ):
        rollout.population(stacked, x, 2, noise=torch.zeros(2, 3, 2))
    with pytest.raises(ValueError, match=r"p\['g'\] has the shape \(2,\), expected \[\], \[3\] or \[2, 3\]"):
        rollout.population(stacked, x, 2, {**env.params(x), "g": torch.ones(2)})
    with pytest.raises(ValueError, match=r"x0 has the shape \(6, 3\)"):
        rollout.population(stacked, x[:, :3], 2)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_step_takes_actions_of_its_size_only(name):
    env = make_env(name)
    x = env.reset(3, generator())
    p, m = env.params(x), len(env.action_box)
    for shape in ((3, m + 1), (3,), (m + 1,), (2, m)):
        with pytest.raises(ValueError, match=r"\[3, |components"):
            env.step(x, torch.zeros(shape), p)
    with pytest.raises(ValueError, match=rf"{m} components"):
        env.clip_action(torch.zeros(3, m + 1))


def test_a_step_names_states_and_parameters_of_wrong_sizes():
    env = CartPole()
    x, u = torch.zeros(3, 4), torch.zeros(3, 1)
    with pytest.raises(
        ValueError, match=r"states \[B, 4\] \(position, angle.*\[B, 1\] are needed, got \[3, 5\]"
    ):
        env.step(torch.zeros(3, 5), u, env.params(x))
    with pytest.raises(ValueError, match=r"parameters are \[\] or \[B\], got the shapes {'g': \[3, 1\]}"):
        env.step(x, u, {**env.params(x), "g": torch.ones(3, 1)})
    mapped = torch.func.vmap(env.step, in_dims=(0, None, None))
    assert mapped(torch.zeros(2, 3, 4), u, env.params(x))[0].shape == (2, 3, 4)
    assert env.step(x[0], u[0], env.params(x))[1].shape == ()


# ---- failures of the user's code


class Misspelt(CartPole):
    def dynamics(self, t, x, u, p):
        return super().dynamics(t, x, u, p) * p["m_poel"]


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.own = nn.Linear(3, 1), OwnError

    def forward(self, o):
        return self.layer(o)


class OwnError(Exception):
    """One that the user means to catch."""


class Stopping(nn.Module):
    def forward(self, o):
        raise OwnError("enough")


@pytest.mark.parametrize("backend", ["eager", "native", "inductor"])
def test_a_mistake_in_the_users_code_is_one_line(backend, caplog):
    x = torch.zeros(5, 4)
    for gradient in (True, False):
        with torch.set_grad_enabled(gradient), pytest.raises(UserCodeError) as caught:
            Rollout(Misspelt(), nn.Linear(5, 1), backend=backend)(x, 3)
        message = str(caught.value)
        assert "test_rollout_modes.py:" in message
        assert "in dynamics: p has no 'm_poel'; did you mean 'm_pole'? known: g, l, m_cart, m_pole" in message
        assert "\n" not in message
        assert caught.value.__cause__ is None
    with pytest.raises(
        UserCodeError, match=r"test_rollout_modes.py:\d+, in forward: RuntimeError: mat1 and mat2"
    ):
        Rollout(CartPole(), Odd(), backend=backend)(x, 3)
    with pytest.raises(OwnError, match="enough"):
        Rollout(CartPole(), Stopping(), backend=backend)(x, 3)
    assert not caplog.records


def test_a_simulator_may_be_a_class_or_a_name():
    for env in (CartPole, "examples/cartpole.py:CartPole", "pendulum"):
        assert isinstance(Rollout(env).env, Env)
    with pytest.raises(TypeError, match="a simulator is a name, a subclass"):
        Rollout(nn.Linear)
    assert construct_env("pendulum", g=3.7).constants["g"].value == 3.7


def test_messages_are_logged_once(caplog):
    env, policy = CartPole(), network()
    rollout = Rollout(env, policy, backend="native")
    with caplog.at_level(logging.WARNING, "diffsim"), torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in range(2):
            rollout(torch.zeros(5, 4), 2)
    assert [r.getMessage() for r in caplog.records] == [
        "torch.autocast is on, which compiled back ends do not follow: eager"
    ]
