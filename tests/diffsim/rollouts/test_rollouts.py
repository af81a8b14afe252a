"""Every back end gives what a plain autograd loop over the simulator gives."""

import logging
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from diffsim.errors import ConfigError
from diffsim.policy import MLP, Policy
from diffsim.rollouts import Noise, Rollout, randomised
from examples.cartpole import CartPole
from robotics_envs import ENVIRONMENTS, make_env
from robotics_envs.base import Box, Env, Parameter
from solvers.compiler.trace import NativeUnsupportedError
from solvers.methods.runge_kutta import Euler
from solvers.native import build

F32, F64 = torch.float32, torch.float64
SIMULATORS = ["pendulum", "cartpole", "quadrotor", "arm7_point"]
"""On which everything is tried. The kernels of the others take minutes to compile in all."""
OTHERS = [name for name in ENVIRONMENTS if name not in SIMULATORS]
LARGE = ("arm7", "double_pendulum", "hopper", "satellite", "heat_rod")

try:
    build._toolchain()
except NativeUnsupportedError:
    pytest.skip("there is no C++ compiler", allow_module_level=True)


def simulator(name):
    return CartPole() if name == "cartpole" else make_env(name)


def random(*shape, dtype=F64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def make_policy(env, network=None, squash="tanh", dtype=F64, seed=0):
    o, m = len(env.observation_names), len(env.action_box)
    torch.manual_seed(seed)
    network = MLP(o, m, (16, 12)) if network is None else network(o, m)
    with torch.no_grad():
        for q in network.parameters():  # far from zero, so that every part of the gradient counts
            q.add_(0.1 * torch.randn_like(q))
    centre, spread = random(o, seed=1) * 0.1, 1.0 + torch.rand(o, generator=torch.Generator().manual_seed(2))
    return Policy(network, centre, spread, *env.action_box.bounds(centre), squash).to(dtype)


class FinalCost(nn.Module):
    """A terminal value: a network of what the policy would observe."""

    def __init__(self, env, dtype=F64):
        super().__init__()
        torch.manual_seed(7)
        self.env, self.network = env, MLP(len(env.observation_names), 1, (8,)).to(dtype)

    def forward(self, x):
        return 3.0 + self.network(self.env.observe(x)).squeeze(-1)


def loop(env, policy, x, steps, p, noise=None, controls=None, terminal=None, truncate=None):
    """The reference: plain autograd through everything."""
    states, costs = [x], []
    for t in range(steps):
        if truncate and t and t % truncate == 0:
            x = x.detach()
        if controls is not None:
            u = controls[t]
        else:
            o = env.observe(x)
            u = policy(o) if noise is None else policy(o, noise[t])
        x, cost = env.step(x, u, p)
        states.append(x)
        costs.append(cost)
    return x, torch.stack(costs), torch.stack(states), None if terminal is None else terminal(x)


def problem(env, batch, steps, dtype=F64):
    """Initial states, noise and parameters, the first of them with a value for every rollout."""
    x = env.reset(batch, torch.Generator().manual_seed(3), F64).to(dtype).requires_grad_()
    p = {name: value.to(dtype).requires_grad_() for name, value in env.params(x.detach()).items()}
    if p:
        first = next(iter(p))
        spread = torch.linspace(0.9, 1.1, batch, dtype=dtype) if batch > 1 else torch.ones(1, dtype=dtype)
        p[first] = (p[first].detach() * spread).requires_grad_()
    m = len(env.action_box)
    noise = (0.3 * random(steps, batch, m, seed=4)).to(dtype).requires_grad_()
    low, high = env.action_box.bounds(x.detach())
    controls = low + (high - low) * torch.rand(steps, batch, m, generator=torch.Generator().manual_seed(5))
    return x, p, noise, controls.to(dtype).detach().requires_grad_()


def objective(last, costs, states, values):
    """Every result with weights of its own."""
    total = (costs * torch.linspace(1, 2, costs.numel(), dtype=costs.dtype).reshape(costs.shape)).mean()
    total = (
        total
        + (last * torch.linspace(-1, 1, last.shape[1], dtype=last.dtype)).mean()
        + 0.1 * states.square().mean()
    )
    return total if values is None else total + values.square().mean()


def worst(got, right):
    """Largest difference in units of the largest number of the array that is right.

    The unit is at least a millionth of the largest number of all arrays: sums that cancel to zero are rounding.
    """
    got, right = list(got), list(right)
    least = 1e-6 * max(float(b.detach().abs().max()) for b in right) + 1e-30
    return max(
        float((a - b).detach().abs().max()) / max(float(b.detach().abs().max()), least)
        for a, b in zip(got, right, strict=True)
    )


def compare(env, policy, batch, steps, dtype, backend, tolerance, closed=True, terminal=None, caplog=None):
    x, p, noise, controls = problem(env, batch, steps, dtype)
    given = {"noise": noise} if closed else {"controls": controls}
    wanted = [x, *p.values(), *given.values()]
    if closed:
        wanted += [q for q in policy.parameters() if q.requires_grad]
    right = loop(env, policy, x, steps, p, terminal=terminal, **given)
    by_right = torch.autograd.grad(objective(*right), wanted, allow_unused=True)
    rollout = Rollout(env, policy if closed else None, terminal=terminal, backend=backend)
    got = rollout(x, steps, p, **given)
    got = (got.last, got.costs, got.states, got.values)
    by = torch.autograd.grad(objective(*got), wanted, allow_unused=True)
    pairs = [(g, r) for g, r in zip(by, by_right, strict=True) if r is not None and float(r.abs().max()) > 0]
    assert len(pairs) > len(p)  # nothing is compared with nothing
    assert worst([q for q in got if q is not None], [q for q in right if q is not None]) < tolerance
    assert worst(*zip(*pairs, strict=True)) < tolerance
    said = [
        record.getMessage()
        for record in ([] if caplog is None else caplog.records)
        if record.name == "diffsim"
    ]
    assert not said  # no falling back


@pytest.mark.parametrize("batch", [1, 63, 64, 1000])
@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-10), (F32, 1e-4)])
@pytest.mark.parametrize("name", SIMULATORS)
def test_native_closed_loop(name, dtype, tolerance, batch, caplog):
    env = simulator(name)
    policy, terminal = make_policy(env, dtype=dtype), FinalCost(env, dtype)
    compare(env, policy, batch, 3, dtype, "native", tolerance, terminal=terminal, caplog=caplog)


@pytest.mark.parametrize("batch", [1, 63, 64, 1000])
@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-10), (F32, 1e-4)])
@pytest.mark.parametrize("name", SIMULATORS)
def test_native_open_loop(name, dtype, tolerance, batch, caplog):
    compare(simulator(name), None, batch, 3, dtype, "native", tolerance, closed=False, caplog=caplog)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LARGE)) for name in OTHERS]
)
def test_native_closed_loop_of_the_others(name, caplog):
    env = simulator(name)
    # Long enough for the hopper to land: in the air the ground's gradients are below 1e-16, and rounding.
    compare(env, make_policy(env, dtype=F64), 9, 8, F64, "native", 1e-9, caplog=caplog)


class Normalised(nn.Sequential):
    """Layer norm between the layers, with a skip connection."""

    def __init__(self, o, m):
        super().__init__(nn.Linear(o, 16), nn.LayerNorm(16), nn.SiLU(), nn.Linear(16, 16), nn.Linear(16, m))

    def forward(self, x):
        hidden = self[2](self[1](self[0](x)))
        return self[4](hidden + torch.tanh(self[3](hidden)))


class TwoHeads(nn.Module):
    """A Gaussian: mean and deviation from one trunk; noise goes through the deviation."""

    def __init__(self, o, m):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(o, 24), nn.ELU(), nn.Linear(24, 24), nn.ReLU())
        self.mean, self.log_std = nn.Linear(24, m), nn.Linear(24, m)

    def forward(self, observation, noise=None):
        hidden = self.trunk(observation)
        spread = torch.exp(self.log_std(hidden).clamp(-5, 2))
        return self.mean(hidden) + (0 if noise is None else spread * noise)


class OneLayer(nn.Module):
    """Two heads cut out of one layer, and a norm of the observation itself."""

    def __init__(self, o, m):
        super().__init__()
        self.norm, self.layer, self.m = nn.LayerNorm(o), nn.Linear(o, 40), m

    def forward(self, observation):
        both = nn.functional.gelu(self.layer(self.norm(observation)), approximate="tanh")
        return both[:, : self.m] * torch.sigmoid(both[:, self.m : 2 * self.m]) + both[:, 20:].mean(
            -1, keepdim=True
        )


NETWORKS = {
    "tanh": lambda o, m: MLP(o, m, (33, 20)),
    "relu": lambda o, m: MLP(o, m, (16,), "relu"),
    "elu": lambda o, m: MLP(o, m, (16,), "elu"),
    "silu": lambda o, m: MLP(o, m, (16, 16), "silu"),
    "softplus": lambda o, m: nn.Sequential(nn.Linear(o, 16), nn.Softplus(), nn.Linear(16, m)),
    "leaky": lambda o, m: nn.Sequential(nn.Linear(o, 16), nn.LeakyReLU(0.1), nn.Linear(16, m, bias=False)),
    "layer norm": Normalised,
    "cut heads": OneLayer,
    "feedback": lambda o, m: nn.Linear(o, m, bias=False),
    "wide": lambda o, m: MLP(o, m, (130,)),
}


@pytest.mark.parametrize("squash", ["tanh", "clip"])
@pytest.mark.parametrize("network", NETWORKS)
def test_policies(network, squash, caplog):
    env = CartPole()
    policy = make_policy(env, NETWORKS[network], squash)
    compare(env, policy, 21, 4, F64, "native", 1e-10, caplog=caplog)


def test_a_policy_with_two_heads(caplog):
    env = CartPole()
    torch.manual_seed(0)
    compare(env, TwoHeads(5, 1).to(F64), 21, 4, F64, "native", 1e-10, caplog=caplog)


@pytest.mark.parametrize("backend", ["eager", "inductor"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-10), (F32, 1e-4)])
def test_other_back_ends(backend, dtype, tolerance, caplog):
    env = simulator("pendulum")
    policy, terminal = make_policy(env, dtype=dtype), FinalCost(env, dtype)
    compare(env, policy, 5, 3, dtype, backend, tolerance, terminal=terminal, caplog=caplog)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 63, 64, 1000])
@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-10), (F32, 1e-4)])
@pytest.mark.parametrize("name", SIMULATORS)
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_every_simulator_on_other_back_ends(backend, name, dtype, tolerance, batch, caplog):
    env = simulator(name)
    compare(env, make_policy(env, dtype=dtype), batch, 3, dtype, backend, tolerance, caplog=caplog)
    compare(env, None, batch, 3, dtype, backend, tolerance, closed=False, caplog=caplog)


@pytest.mark.parametrize("backend", ["eager", "native"])
@pytest.mark.parametrize("truncate", [1, 3, 100])
def test_truncation_cuts_the_gradient_between_stretches(backend, truncate):
    env = CartPole()
    policy = make_policy(env)
    x, p, noise, _ = problem(env, 5, 8)
    wanted = [x, *p.values(), *policy.parameters()]
    right = loop(env, policy, x, 8, p, noise, truncate=truncate)
    got = Rollout(env, policy, backend=backend)(x, 8, p, noise=noise, truncate=truncate)
    by_right = torch.autograd.grad(objective(*right), wanted)
    by = torch.autograd.grad(objective(got.last, got.costs, got.states, None), wanted)
    assert worst(by, by_right) < 1e-10


@pytest.mark.parametrize("part", ["last", "costs", "states", "values"])
def test_each_part_of_the_result_alone(part):
    """Absent cotangents are zeros, and an expanded one (of a sum) is read as such."""
    env = CartPole()
    policy, terminal = make_policy(env), FinalCost(env)
    x, p, noise, _ = problem(env, 5, 4)
    wanted = [x, noise, *policy.parameters(), *terminal.parameters()]
    got = Rollout(env, policy, terminal=terminal, backend="native")(x, 4, p, noise=noise)
    right = dict(
        zip(
            ("last", "costs", "states", "values"),
            loop(env, policy, x, 4, p, noise, terminal=terminal),
            strict=True,
        )
    )
    by = torch.autograd.grad(getattr(got, part).sum(), wanted, allow_unused=True)
    by_right = torch.autograd.grad(right[part].sum(), wanted, allow_unused=True)
    zero = lambda g, q: torch.zeros_like(q) if g is None else g
    for g, r, q in zip(by, by_right, wanted, strict=True):
        assert torch.allclose(zero(g, q), zero(r, q), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("batch", [1, 100, 300, 1000])
def test_threads_change_no_bit(batch):
    env = CartPole()
    policy, terminal = make_policy(env, dtype=F32), FinalCost(env, F32)
    x, p, noise, _ = problem(env, batch, 5, F32)
    results = []
    for threads in (1, 2, 3):
        rollout = Rollout(env, policy, terminal=terminal, backend="native", threads=threads)
        got = rollout(x, 5, p, noise=noise)
        wanted = [x, noise, *p.values(), *policy.parameters(), *terminal.parameters()]
        results.append([*got[:4], *torch.autograd.grad(objective(*got[:3], got.values), wanted)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_a_rollout_does_not_depend_on_its_neighbours():
    env = CartPole()
    policy = make_policy(env, dtype=F32)
    x, p, noise, _ = problem(env, 150, 5, F32)
    rollout = Rollout(env, policy, backend="native")
    together = rollout(x, 5, p, noise=noise)
    (by,) = torch.autograd.grad(together.costs.sum(), x)
    for b in (0, 17, 63, 64, 149):
        own = {k: v[b : b + 1] if v.ndim else v for k, v in p.items()}
        alone = rollout(x[b : b + 1], 5, own, noise=noise[:, b : b + 1])
        assert torch.equal(alone.states[:, 0], together.states[:, b])
        assert torch.equal(torch.autograd.grad(alone.costs.sum(), x)[0][b], by[b])


@pytest.mark.parametrize("backend", ["eager", "native"])
def test_a_population_is_its_policies_one_by_one(backend):
    env = CartPole()
    policy = make_policy(env)
    x, p, _, _ = problem(env, 18, 6)
    stacked = {k: v.detach() + 0.1 * random(3, *v.shape, seed=9) for k, v in policy.named_parameters()}
    starts = x.detach().reshape(3, 6, 4)
    each = {k: v.detach().reshape(3, 6) if v.ndim else v.detach() for k, v in p.items()}
    before = [q.clone() for q in policy.parameters()]
    got = Rollout(env, policy, backend=backend).population(stacked, starts, 6, each)
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))
    for k in range(3):
        member = make_policy(env)
        member.load_state_dict({**member.state_dict(), **{name: v[k] for name, v in stacked.items()}})
        own = {name: v[k] if v.ndim else v for name, v in each.items()}
        costs = loop(env, member, starts[k], 6, own)[1].sum(0)
        assert torch.allclose(got[k], costs, rtol=1e-12)
    shared = Rollout(env, policy, backend=backend).population(stacked, starts[0], 6)
    assert torch.allclose(shared[0], Rollout(env, policy, backend=backend).population(stacked, starts, 6)[0])
    # A population of one is that one, and not the rollout's own policy.
    for k in range(3):
        one = {name: v[k : k + 1] for name, v in stacked.items()}
        alone = Rollout(env, policy, backend=backend).population(one, starts[0], 6)
        assert torch.allclose(alone[0], shared[k], rtol=1e-12)


def test_noise_is_the_same_everywhere_and_follows_its_seed():
    env = CartPole()
    policy = make_policy(env, dtype=F32)
    x = env.reset(150, torch.Generator().manual_seed(0))
    runs = {}
    for backend, threads in (("eager", 1), ("native", 1), ("native", 2)):
        rollout = Rollout(env, policy, backend=backend, threads=threads)
        with torch.no_grad():
            runs[backend, threads] = rollout(x, 6, noise=Noise(5, 0.5)).states
            second_half = rollout(runs[backend, threads][3], 3, noise=Noise(5, 0.5, start=3)).states
            other = rollout(x, 6, noise=Noise(6, 0.5)).states
        assert torch.equal(second_half, runs[backend, threads][3:])
        assert not torch.equal(other, runs[backend, threads])
    assert torch.equal(runs["native", 1], runs["native", 2])
    assert torch.allclose(runs["native", 1], runs["eager", 1], rtol=1e-4, atol=1e-4)


class Echo(Env):
    """The next state is the action: what a policy gives comes out bit for bit."""

    name = "echo"
    state_names = observation_names = tuple("abcdef")
    action_box = Box.symmetric(*[9.0] * 6)
    start_box = state_box = Box.symmetric(*[1.0] * 6)
    dt = 0.1
    episode_steps = 10

    def dynamics(self, t, x, u, p):
        return u

    def cost(self, x, u, p):
        return x.sum(-1)

    def step(self, x, u, p):
        return u, self.cost(x, u, p)


class Pass(nn.Module):
    def forward(self, observation, noise):
        return observation * 0 + noise


@pytest.mark.parametrize("dtype", [F32, F64])
def test_noise_is_equal_to_the_last_bit(dtype):
    """Integers by Philox, normal numbers by operations that every processor rounds alike."""
    x, noise = torch.zeros(3000, 6, dtype=dtype), Noise(2**63 + 11, start=2**31)
    eager, native = (
        Rollout(Echo(), Pass(), backend=b)(x, 9, noise=noise).states for b in ("eager", "native")
    )
    assert torch.equal(eager, native)
    standard = native[1:].double()
    assert abs(float(standard.mean())) < 0.01
    assert abs(float(standard.std()) - 1) < 0.01
    assert abs(float((standard**4).mean()) - 3) < 0.05
    correlations = torch.corrcoef(standard.flatten(0, 1).T) - torch.eye(6, dtype=F64)
    assert float(correlations.abs().max()) < 0.03


def test_philox_gives_its_published_numbers():
    """Random123's known answers (kat_vectors, philox4x32 10 rounds), for counters of zeros and of pi's digits."""
    from diffsim.rollouts.noise import _philox

    one = lambda v: torch.tensor([v], dtype=torch.int64)
    words = [int(w) for w in _philox(one(0), 0, 0, 0, 0)]
    assert words == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    words = [int(w) for w in _philox(one(pi[0]), *pi[1:], 0xA4093822 | 0x299F31D0 << 32)]
    assert words == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


def test_parameters_vary_by_their_spread():
    p = {"m": torch.tensor(2.0), "l": torch.tensor(0.5)}
    drawn = randomised(p, {"m": 0.1}, 20_000, seed=3)
    assert drawn["l"] is p["l"]
    logs = torch.log(drawn["m"] / 2.0)
    assert float(logs.mean()) == pytest.approx(0, abs=0.005)
    assert float(logs.std()) == pytest.approx(0.1, rel=0.03)
    assert torch.equal(drawn["m"][:10], randomised(p, {"m": 0.1}, 10, seed=3)["m"])
    with pytest.raises(ValueError, match="spread names k"):
        randomised(p, {"k": 0.1}, 4, seed=0)


def test_tensors_are_read_where_they_are():
    """Changed weights, buffers, parameters, dt and horizon need no new kernel; a new number in the simulator does."""
    env = CartPole()
    policy = make_policy(env)
    x, p, _, _ = problem(env, 4, 3)
    rollout = Rollout(env, policy, backend="native")
    rollout(x, 3, p)
    compiled = rollout.compile_seconds
    with torch.no_grad():
        for q in (*policy.parameters(), policy.mean):
            q.mul_(1.5)
    moved = {k: (v * 1.1).detach().requires_grad_() for k, v in p.items()}
    for steps in (2, 5):
        assert worst([rollout(x, steps, moved).last], [loop(env, policy, x, steps, moved)[0]]) < 1e-12
    assert rollout.compile_seconds == compiled
    env.dt = 0.02
    assert worst([rollout(x, 3, p).last], [loop(env, policy, x, 3, p)[0]]) < 1e-12
    policy.register_buffer("mean", policy.mean + 1.0)  # another tensor in its place
    assert worst([rollout(x, 3, p).last], [loop(env, policy, x, 3, p)[0]]) < 1e-12


class Branching(CartPole):
    def dynamics(self, t, x, u, p):
        return super().dynamics(t, x, u, p) * (2.0 if x[0, 0] > 0 else 1.0)


class Straight(torch.autograd.Function):
    """A rounding whose gradient is one: a trace of its forward cannot see that."""

    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Rounded(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 1)

    def forward(self, o):
        return Straight.apply(3 * self.layer(o))


class Leaking(CartPole):
    def dynamics(self, t, x, u, p):
        return super().dynamics(t, x, u, p) * (1.0 if max(x.detach().flatten().tolist()) > 100 else 1.1)


class Mixing(CartPole):
    def cost(self, x, u, p):
        return super().cost(x, u, p) / len(x)


class Twice(nn.Module):
    """A penalty on a layer's own weight."""

    def __init__(self):
        super().__init__()
        self.layer, self.last = nn.Linear(5, 40), nn.Linear(40, 1)

    def forward(self, o):
        return self.last(torch.tanh(self.layer(o))) + 1e-4 * self.layer.weight.square().sum()


class Ragged(nn.Module):
    """A convolution: nothing has a rule for it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv1d(1, 1, 5)

    def forward(self, o):
        return self.layer(o.unsqueeze(1)).squeeze(1)


@pytest.mark.parametrize(
    ("env", "policy", "why"),
    [
        (
            Branching(),
            nn.Linear(5, 1),
            r"decides what is computed .*test_rollouts.py:\d+: return super.*torch.where",
        ),
        (CartPole(), Rounded(), "does not see the gradient of torch.autograd.Function Straight"),
        (Leaking(), nn.Linear(5, 1), r"leave torch \(tolist .*test_rollouts.py"),
        (Mixing(), nn.Linear(5, 1), "does the step mix rollouts"),
        (CartPole(), Twice(), "a weight matrix is used in a layer and outside of it"),
        (CartPole(), Ragged(), r"no C\+\+ for the operation aten.convolution"),
    ],
)
def test_what_cannot_be_compiled_runs_on_another_back_end_and_says_why_once(env, policy, why, caplog):
    policy = policy.to(F64)
    x = env.reset(3, torch.Generator().manual_seed(0), F64)
    rollout = Rollout(env, policy, backend="native")
    with caplog.at_level(logging.WARNING, "diffsim"):
        for _ in range(2):
            got = rollout(x, 3)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert re.search(why, caplog.records[0].getMessage(), re.DOTALL)
    right = loop(env, policy, x, 3, env.params(x))
    by = [torch.autograd.grad(costs.sum(), policy.parameters()) for costs in (got.costs, right[1])]
    assert worst(*by) < 1e-12


def test_auto_weighs_compiling_against_what_it_saves(caplog):
    env = CartPole()
    policy = make_policy(env, dtype=F32)
    x = env.reset(64, torch.Generator().manual_seed(0))
    for expected, name in ((10, "Stepwise"), (100_000, "Native"), (None, "Native")):
        rollout = Rollout(env, policy, expected_steps=expected)
        rollout(x, 2)
        assert [type(engine).__name__ for engine in rollout.engines.prepared.values()] == [name]
    assert not caplog.records


def test_lost_gradients_are_refused():
    env = CartPole()
    gain = torch.ones(5, 1, dtype=F64, requires_grad=True)

    class Closure(nn.Module):
        def forward(self, o):
            return o @ gain

    x = env.reset(3, torch.Generator().manual_seed(0), F64).requires_grad_()
    with pytest.raises(ValueError, match=r"shape \(5, 1\) that requires a gradient.*nn.Parameter"):
        Rollout(env, Closure())(x, 2)


@pytest.mark.parametrize("backend", ["eager", "native"])
def test_second_derivatives_are_refused(backend):
    env = CartPole()
    x, p, _, _ = problem(env, 2, 2)
    costs = Rollout(env, make_policy(env), backend=backend)(x, 2, p).costs
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(costs.sum(), x, create_graph=True)


def test_writing_into_what_backward_needs_is_noticed():
    env = CartPole()
    policy = make_policy(env)
    x, p, _, _ = problem(env, 2, 2)
    costs = Rollout(env, policy, backend="native")(x, 2, p).costs
    with torch.no_grad():
        next(policy.parameters()).add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        costs.sum().backward()


def test_mistakes_are_named():
    env = CartPole()
    policy = make_policy(env)
    x = env.reset(3, torch.Generator().manual_seed(0), F64)
    rollout = Rollout(env, policy)
    with pytest.raises(ConfigError, match="unknown backend 'nativ'; did you mean 'native'"):
        Rollout(env, policy, backend="nativ")
    for arguments, keywords, complaint in (
        ((x[:, :3], 2), {}, r"x0 has the shape \(3, 3\); cartpole needs \[B, 4\]"),
        ((x[:0], 2), {}, "B >= 1"),
        ((x, 0), {}, "steps = 0"),
        ((x, 2.0), {}, "steps = 2.0"),
        ((x, 2, {"g": torch.tensor(9.81)}), {}, "missing or unknown: l, m_cart, m_pole"),
        ((x, 2, {**env.params(x), "g": torch.ones(2, dtype=F64)}), {}, r"p\['g'\] has the shape \(2,\)"),
        ((x, 2), {"noise": torch.zeros(2, 3, dtype=F64)}, r"noise has the shape \(2, 3\)"),
        ((x, 2), {"noise": torch.zeros(2, 3, 1)}, "noise is torch.float32.*x0 torch.float64"),
        ((x, 2), {"controls": torch.zeros(2, 3, 1, dtype=F64)}, "controls instead of a policy"),
        ((x.float(), 2), {}, "policy has torch.float64"),
        ((x.to(torch.int64), 2), {}, "dtype torch.int64"),
        ((x, 2), {"truncate": 0}, "truncate = 0"),
    ):
        with pytest.raises(ValueError, match=complaint):
            rollout(*arguments, **keywords)
    with pytest.raises(ValueError, match="needs a policy or controls"):
        Rollout(env)(x, 2)
    stacked = {k: torch.stack([v, v]) for k, v in policy.named_parameters()}
    with pytest.raises(ValueError, match=r"missing or unknown: network\.0\.bias"):
        rollout.population({k: v for k, v in stacked.items() if k != "network.0.bias"}, x, 2)
    with pytest.raises(ValueError, match=r"network.0.bias has the shape \(3,\), expected \(2, 16\)"):
        rollout.population({**stacked, "network.0.bias": torch.zeros(3)}, x, 2)
    for wrong in ({"seed": -1}, {"seed": 1.5}, {"seed": 0, "scale": -1.0}, {"seed": 0, "start": 2**40}):
        with pytest.raises(ValueError, match="noise"):
            Noise(**wrong)


def test_nan_states_stay_nan_and_stay_alone():
    env = CartPole()
    policy = make_policy(env, dtype=F32)
    x = env.reset(70, torch.Generator().manual_seed(0))
    right = Rollout(env, policy, backend="native")(x, 4)
    x[13] = torch.nan
    got = Rollout(env, policy, backend="native")(x, 4)
    assert got.states[:, 13].isnan().all()
    assert got.costs[:, 13].isnan().all()
    others = torch.arange(70) != 13
    assert torch.equal(got.states[:, others], right.states[:, others])


@pytest.mark.parametrize("isa", ["avx512", "avx2", "plain"])
def test_every_instruction_set(isa, monkeypatch, caplog):
    """One kernel source for all; the cache keeps them apart."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    if isa != "plain" and {"avx512": "avx512f", "avx2": "avx2"}[isa] not in flags:
        pytest.skip(f"this processor has no {isa}")
    monkeypatch.setenv("DIFFSIM_ISA", isa)
    for dtype, tolerance in ((F64, 1e-10), (F32, 1e-4)):
        env = CartPole()
        policy, terminal = make_policy(env, NETWORKS["layer norm"], dtype=dtype), FinalCost(env, dtype)
        compare(env, policy, 37, 3, dtype, "native", tolerance, terminal=terminal, caplog=caplog)


def test_an_unknown_instruction_set_is_a_fall_back(monkeypatch, caplog):
    env = CartPole()
    x = env.reset(3, torch.Generator().manual_seed(0), F64)
    monkeypatch.setenv("DIFFSIM_ISA", "avx1024")
    assert torch.isfinite(Rollout(env, make_policy(env))(x, 2).costs).all()
    assert "'avx1024'; known: native, avx512, avx2, plain" in caplog.records[-1].getMessage()
    assert len(caplog.records) == 1


class Watched(CartPole):
    """Everything a number can hide in."""

    gain = 1.0

    def __init__(self):
        super().__init__()
        self._hidden, self.items, self.table = 1.0, [1.0, 2.0], {"a": 1.0}
        inner = 1.0

        def put(value):
            nonlocal inner
            inner = value

        self.put, self.factor = put, lambda: inner
        self.order, self.mask = torch.tensor([0, 1]), torch.tensor([True, False])
        self.shape = torch.cos

    def cost(self, x, u, p):
        factor = self.gain * self._hidden * self.items[1] * self.table["a"] * self.factor()
        return factor * self.shape(x[:, self.order[1]]) + torch.where(self.mask, x[:, :2], 2 * x[:, 2:]).sum(
            -1
        )


def _swap_activation(env, policy):
    policy.network[1] = nn.Sigmoid()


def _new_weights(env, policy):
    for a, b in zip(policy.network.parameters(), MLP(5, 1, (24, 12)).to(F64).parameters(), strict=True):
        a.data = b.data


CHANGES = {
    "activation": _swap_activation,
    "hook": lambda env, policy: policy.network[0].register_forward_hook(lambda module, inputs, out: 2 * out),
    "class attribute": lambda env, policy: setattr(type(env), "gain", 3.0),
    "private number": lambda env, policy: setattr(env, "_hidden", 2.0),
    "list": lambda env, policy: env.items.__setitem__(1, 5.0),
    "dict": lambda env, policy: env.table.__setitem__("a", 5.0),
    "function": lambda env, policy: setattr(env, "shape", torch.sin),
    "index": lambda env, policy: env.order.copy_(torch.tensor([1, 0])),
    "mask": lambda env, policy: env.mask.copy_(torch.tensor([False, False])),
    "box": lambda env, policy: setattr(env, "action_box", Box.symmetric(0.01)),
    "solver": lambda env, policy: setattr(env, "solver", Euler()),
    "shape": _new_weights,
    "attribute past __setattr__": lambda env, policy: vars(env).update(_hidden=2.0),
    "variable of a closure": lambda env, policy: env.put(5.0),
    "physical parameter": lambda env, policy: setattr(
        env, "constants", {k: replace(v, value=1.5 * v.value) for k, v in env.constants.items()}
    ),
    "weights of another layout": lambda env, policy: setattr(
        policy.network[2].weight, "data", policy.network[2].weight.data.t().contiguous().t()
    ),
    "transposed weights": lambda env, policy: setattr(
        policy.network[2].weight, "data", policy.network[2].weight.data.t()
    ),
}
EQUAL = {"weights of another layout"}


@pytest.mark.parametrize("calls", [1, 3])  # from the second call on, changes are watched for
@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_a_change_is_seen(change, calls, monkeypatch):
    monkeypatch.setattr(Watched, "gain", 1.0)
    env = Watched()
    policy = make_policy(env, lambda o, m: MLP(o, m, (16, 16)))
    x = env.reset(5, torch.Generator().manual_seed(0), F64)
    rollout = Rollout(env, policy, backend="native")
    for _ in range(calls):
        first = rollout(x, 4).costs
    CHANGES[change](env, policy)
    right = loop(env, policy, x, 4, env.params(x))[1]
    assert (worst([first], [right]) < 1e-12) == (change in EQUAL)
    assert worst([rollout(x, 4).costs], [right]) < 1e-12


def test_changes_of_the_rollout_and_of_its_arguments_are_seen():
    """What is no part of simulator and policy: which they are, which gradients are wanted, and p."""
    env = CartPole()
    policy, other = make_policy(env), make_policy(env, seed=1)
    x = env.reset(5, torch.Generator().manual_seed(0), F64)
    rollout = Rollout(env, policy, backend="native")

    def gradients(p=None):
        parameters = [q for q in rollout.policy.parameters() if q.requires_grad]
        given = env.params(x) if p is None else p
        both = [rollout(x, 3, p).costs, loop(env, rollout.policy, x, 3, given)[1]]
        leaves = [*parameters, *(v for v in given.values() if v.requires_grad)]
        one, two = (torch.autograd.grad(costs.sum(), leaves, allow_unused=True) for costs in both)
        assert [q is None for q in one] == [q is None for q in two]
        assert (
            worst([both[0], *filter(torch.is_tensor, one)], [both[1], *filter(torch.is_tensor, two)]) < 1e-9
        )

    def thrice(p=None):
        for _ in range(3):
            gradients(p)

    thrice()
    next(policy.parameters()).requires_grad_(False)
    thrice()
    next(policy.parameters()).requires_grad_(True)
    thrice()
    rollout.policy = other
    thrice()
    names = [*env.params(x)]
    p = env.params(x)
    p[names[0]] = p[names[0]].expand(5).clone()
    thrice(p)
    p[names[1]].requires_grad_()
    thrice(p)
    # The same tensors in the same order under other names.
    swapped = {names[1]: p[names[0]].detach(), names[0]: p[names[1]].detach(), **{k: p[k] for k in names[2:]}}
    thrice(swapped)
    p[names[1]].requires_grad_(False)
    thrice(p)
    rollout.terminal = lambda state: state.square().sum(-1)
    assert rollout(x, 3, p).values is not None
    with pytest.raises(ValueError, match="shape"):
        rollout(x[:4], 3, p)


class Drawing(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 1).to(F64)
        self.register_buffer("calls", torch.zeros((), dtype=F64))

    def forward(self, o):
        return self.layer(nn.functional.dropout(o, 0.5, self.training)) + self.calls


class Counting(Drawing):
    def forward(self, o):
        self.calls += 1.0
        return self.layer(o) + 0.01 * self.calls


@pytest.mark.parametrize(
    ("kind", "why"), [(Drawing, "draws from torch's global generator"), (Counting, "changes a buffer")]
)
@pytest.mark.parametrize("backend", ["eager", "native"])
def test_what_changes_when_it_is_computed_again_is_computed_once(kind, why, backend, caplog):
    env, results = CartPole(), []
    policy = kind()
    x = env.reset(5, torch.Generator().manual_seed(0), F64)
    for ours in (False, True):
        torch.manual_seed(3)
        policy.calls.zero_()
        run = lambda: Rollout(env, policy, backend=backend)(x, 4).costs
        costs = run() if ours else loop(env, policy, x, 4, env.params(x))[1]
        results.append(
            [costs, *torch.autograd.grad(costs.sum(), list(policy.parameters())), policy.calls.clone()]
        )
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
    assert why in caplog.records[0].getMessage()


def test_a_buffer_changed_before_backward_is_noticed():
    env = CartPole()
    policy = make_policy(env)
    x = env.reset(5, torch.Generator().manual_seed(0), F64)
    for backend in ("eager", "native"):
        costs = Rollout(env, policy, backend=backend)(x, 3).costs
        policy.scale.mul_(1.5)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            costs.sum().backward()


@pytest.mark.parametrize("damage", ["half of it", "other bytes", "zeros"])
def test_a_damaged_library_is_built_again(damage, tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFSIM_CACHE", str(tmp_path))
    source = 'extern "C" int three() { return 3; }'
    build._load.cache_clear()
    assert build.load(source).three() == 3
    (library,) = tmp_path.glob("*.so")
    whole = library.read_bytes()
    library.unlink()
    middle = len(whole) // 2
    zeros = bytes(len(whole) - middle)
    rest = {"half of it": b"", "other bytes": zeros[1:] + b"x", "zeros": zeros}
    library.write_bytes(whole[:middle] + rest[damage])
    build._load.cache_clear()
    assert build.load(source).three() == 3


def test_names_of_parameters_are_the_simulators_own():
    class Named(CartPole):
        parameters = (
            *CartPole.parameters,
            Parameter("x0", 0.3, "m", source="chosen"),
            Parameter("noise", 0.2, "1"),
        )

        def cost(self, x, u, p):
            return (x[:, 0] - p["x0"]).square() * p["noise"]

    env = Named()
    compare(env, make_policy(env), 7, 3, F64, "native", 1e-10)


def test_a_population_with_a_frozen_parameter():
    env = CartPole()
    policy = make_policy(env)
    policy.network[0].weight.requires_grad_(False)
    x = env.reset(4, torch.Generator().manual_seed(0), F64)
    stacked = {k: torch.stack([v, 1.1 * v]).detach() for k, v in policy.named_parameters()}
    eager, native = (Rollout(env, policy, backend=b).population(stacked, x, 3) for b in ("eager", "native"))
    assert torch.allclose(eager, native, rtol=1e-12)
    assert not torch.allclose(eager[0], eager[1])
