"""Rollouts that fail: named, or marked so that they contribute nothing to any gradient."""

import math

import pytest
import torch
from torch import nn

from diffsim.errors import ConfigError
from diffsim.policy import MLP
from diffsim.rollouts import Noise, Rollout
from robotics_envs import DivergenceError
from robotics_envs.base import Box, Env, Parameter
from solvers.compiler.trace import NativeUnsupportedError
from solvers.methods.runge_kutta import RK4
from solvers.native import build

F64 = torch.float64


@pytest.fixture(scope="module", autouse=True)
def compiler():
    try:
        build._toolchain()
    except NativeUnsupportedError:
        pytest.skip("there is no C++ compiler")


class Tank(Env):
    """A tank that drains; below zero the square root is NaN, and so is its derivative."""

    name = "tank"
    state_names = observation_names = ("level", "inflow")
    parameters = (Parameter("hole", 0.5, "1/s", low=0.0), Parameter("area", 1.0, "m²", low=0.0))
    action_box = Box.symmetric(1.0)
    start_box = state_box = Box((2.0, -0.1), (3.0, 0.1))
    dt, episode_steps = 0.1, 20
    solver = RK4()

    def dynamics(self, t, x, u, p):
        level, inflow = x.unbind(-1)
        rate = inflow - p["hole"] * torch.sqrt(level) / p["area"]
        return torch.stack((rate, u[..., 0] - inflow), -1)

    def cost(self, x, u, p):
        return (x[..., 0] - 1.0) ** 2 + p["area"] * 0.01 * u[..., 0] ** 2


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.network = MLP(2, 1, (8,)).to(F64)

    def forward(self, x, noise):
        return 3 * self.network(x) + 0.3 * noise


class Last(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.7, -0.4], dtype=F64))

    def forward(self, x):
        return torch.sqrt(x @ self.weight + 2.0)


STEPS, BATCH = 6, 7
FAILING = [1, 4]  # a level too low to last, and one that is NaN from the start


def given():
    generator = torch.Generator().manual_seed(0)
    x = Tank().reset(BATCH, generator, F64)
    x[1], x[4, 1] = torch.tensor([0.05, -0.4], dtype=F64), math.nan
    p = {"hole": torch.tensor(0.5, dtype=F64), "area": torch.linspace(0.8, 1.2, BATCH, dtype=F64)}
    noise = torch.randn(STEPS, BATCH, 1, generator=generator, dtype=F64)
    return x, p, noise


def leaves(x, p, timed, rows=None):
    """Copies that require gradients, of all rollouts or of ``rows``."""
    rows = torch.arange(BATCH) if rows is None else rows
    x, timed = x[rows].clone().requires_grad_(), timed[:, rows].clone().requires_grad_()
    p = {k: (v[rows] if v.ndim else v).clone().requires_grad_() for k, v in p.items()}
    return x, p, timed


def objective(trajectory, rows):
    """Of everything, also of what a failed rollout was before it failed, and masked by the caller."""
    return (
        trajectory.costs[:, rows].square().sum()
        + trajectory.last[:, 1][rows].sum()
        + trajectory.states[:, rows].cos().sum()
        + trajectory.values[rows].square().sum()
    )


@pytest.mark.parametrize("backend", ["eager", "native", "inductor"])
@pytest.mark.parametrize("kind", ["noise", "controls"])
def test_gradients_are_those_of_the_batch_without_the_failed_rollouts(backend, kind):
    if backend == "inductor" and kind == "controls":
        pytest.skip("the same code as with noise, and a minute of compiling")
    good = torch.tensor([b for b in range(BATCH) if b not in FAILING])
    results = []
    for rows, name in ((good, "eager"), (None, backend)):
        policy, terminal = (Noisy() if kind == "noise" else None), Last()
        x, p, timed = leaves(*given(), rows)
        rollout = Rollout(Tank(), policy, terminal=terminal, backend=name, on_failure="mark")
        trajectory = rollout(x, STEPS, p, **{kind: timed})
        ok = trajectory.ok
        wanted = [x, timed, *p.values(), *terminal.parameters(), *(policy.parameters() if policy else ())]
        by = torch.autograd.grad(objective(trajectory, ok), wanted)
        if rows is None:
            assert ok.tolist() == [b not in FAILING for b in range(BATCH)]
            assert torch.isnan(trajectory.costs[:, FAILING]).any(0).all()
            for tensor, axis in ((by[0], 0), (by[1], 1), (by[3], 0)):
                assert not tensor.index_select(axis, torch.tensor(FAILING)).any()
            by = (by[0][good], by[1][:, good], by[2], by[3][good], *by[4:])
        results.append(by)
    for got, right in zip(results[1], results[0], strict=True):
        assert float(right.abs().max()) > 0
        assert torch.allclose(got, right, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("backend", ["eager", "native"])
def test_a_failed_rollout_contributes_nothing_even_if_the_caller_does_not_mask_it(backend):
    """States before the failure are finite; their cotangents count for nothing all the same."""
    policy = Noisy()
    rollout = Rollout(Tank(), policy, backend=backend, on_failure="mark")
    x, p, noise = leaves(*given())
    states = rollout(x, STEPS, p, noise=noise).states
    (by_x,) = torch.autograd.grad(states[0].sum() + states[1, :, 1].sum(), x)
    assert by_x[FAILING].tolist() == [[0.0, 0.0]] * 2
    assert by_x[0].tolist() != [0.0, 0.0]


@pytest.mark.parametrize("backend", ["eager", "native"])
def test_generated_noise_stays_that_of_each_rollout(backend):
    """Replacing the failed rollouts in backward must not move the noise of the others."""
    policy, source = Noisy(), Noise(11, 2.0)
    x, p, _ = given()
    made = torch.stack([source.at(t, BATCH, 1, x) for t in range(STEPS)])
    results = []
    for noise in (source, made):
        inputs = x.clone().requires_grad_()
        trajectory = Rollout(Tank(), policy, backend=backend, on_failure="mark")(
            inputs, STEPS, p, noise=noise
        )
        total = trajectory.costs[:, trajectory.ok].sum()
        results.append([total, *torch.autograd.grad(total, [inputs, *policy.parameters()])])
    for a, b in zip(*results, strict=True):
        assert torch.isfinite(a).all()
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("backend", ["eager", "native"])
def test_without_a_failure_marking_changes_no_bit(backend):
    policy, terminal = Noisy(), Last()
    x, p, noise = given()
    x[FAILING] = x[0].clone()
    results = []
    for on_failure in (None, "mark", "raise"):
        inputs, q, timed = leaves(x, p, noise)
        rollout = Rollout(Tank(), policy, terminal=terminal, backend=backend, on_failure=on_failure)
        got = rollout(inputs, STEPS, q, noise=timed)
        assert (got.ok is None) == (on_failure is None)
        assert got.ok is None or got.ok.all()
        wanted = [inputs, timed, *q.values(), *policy.parameters(), *terminal.parameters()]
        results.append([*got[:4], *torch.autograd.grad(objective(got, slice(None)), wanted)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("backend", ["eager", "native"])
def test_by_default_nothing_is_checked(backend):
    x, p, noise = leaves(*given())
    trajectory = Rollout(Tank(), Noisy(), backend=backend)(x, STEPS, p, noise=noise)
    assert trajectory.ok is None
    last, costs, *_ = trajectory  # unpacking of the first fields goes on working
    assert last is trajectory.last
    assert costs is trajectory.costs


class Dropping(Noisy):
    """Random numbers: the step cannot be computed again, and plain autograd takes over."""

    def forward(self, x, noise):
        return super().forward(nn.functional.dropout(x, 0.3), noise)


def test_marks_under_plain_autograd():
    policy, terminal = Dropping(), Last()
    x, p, noise = given()
    ok = torch.tensor([b not in FAILING for b in range(BATCH)])
    replaced = torch.where(ok, torch.arange(BATCH), 0)
    results = []
    for fails in (True, False):
        rows = torch.arange(BATCH) if fails else replaced
        inputs, q, timed = leaves(x, p, noise, rows)
        torch.manual_seed(5)
        rollout = Rollout(Tank(), policy, terminal=terminal, on_failure="mark" if fails else None)
        got = rollout(inputs, STEPS, q, noise=timed)
        if fails:
            assert torch.equal(got.ok, ok)
            assert torch.isnan(got.last[FAILING]).all()
        wanted = [q["hole"], *policy.parameters(), *terminal.parameters(), inputs, timed, q["area"]]
        by = torch.autograd.grad(objective(got, ok), wanted)
        results.append([*by[:-3], by[-3][ok], by[-2][:, ok], by[-1][ok]])
        if fails:
            assert not by[-3][FAILING].any()
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("policy", [Noisy, Dropping])
@pytest.mark.parametrize("backend", ["eager", "native"])
def test_if_all_fail_every_gradient_is_zero(policy, backend):
    policy, terminal = policy(), Last()
    x, p, noise = leaves(*given())
    bad = torch.full_like(x, -1.0).detach().requires_grad_()
    rollout = Rollout(Tank(), policy, terminal=terminal, backend=backend, on_failure="mark")
    got = rollout(bad, STEPS, p, noise=noise)
    assert not got.ok.any()
    wanted = [bad, noise, *p.values(), *policy.parameters(), *terminal.parameters()]
    for by in torch.autograd.grad(torch.where(got.ok, got.costs, 0.0).sum() + got.values.sum(), wanted):
        assert not by.any()  # NaN would count as true


def test_a_state_that_fails_and_recovers_is_a_failure():
    """An infinite state in the middle whose costs and last state are finite."""

    class Passing(Tank):
        def step(self, x, u, p):
            following, cost = super().step(x, u, p)
            jump = torch.where(x[:, 1] > 5.0, torch.inf, following[:, 0])
            level = torch.where(x[:, 0].isinf(), 1.0, jump)
            return torch.stack((level, following[:, 1] * 0), -1), torch.where(x[:, 0].isinf(), 0.0, cost)

    x = torch.tensor([[2.0, 0.0], [2.0, 9.0]], dtype=F64, requires_grad=True)
    got = Rollout(Passing(), backend="eager", on_failure="mark")(
        x, 3, controls=torch.zeros(3, 2, 1, dtype=F64)
    )
    assert torch.isfinite(got.last).all()
    assert torch.isfinite(got.costs).all()
    assert got.ok.tolist() == [True, False]


@pytest.mark.parametrize("backend", ["eager", "native"])
@pytest.mark.parametrize("gradient", [True, False])
def test_raising_says_how_many_which_and_when(backend, gradient):
    x, p, noise = leaves(*given())
    rollout = Rollout(Tank(), Noisy(), backend=backend, on_failure="raise")
    with torch.set_grad_enabled(gradient):
        with pytest.raises(DivergenceError, match=r"tank diverged in 2 of 7 rollouts \(numbers 1, 4\)"):
            rollout(x, STEPS, p, noise=noise)
        low = x.detach().clone()
        low[4] = low[0].clone()
        with pytest.raises(
            DivergenceError, match=r"1 of 7 .*\(number 1\).* level .*interval [1-3], from 0\.[1-3] s"
        ):
            rollout(low.requires_grad_(gradient), STEPS, p, noise=noise)
        with pytest.raises(DivergenceError, match=r"1 of 7 .*\(number 1\)"):
            rollout(low, STEPS, p, noise=noise, keep_states=False)


def test_terminal_values_that_fail_are_failures():
    x, p, noise = given()
    x[FAILING] = x[0].clone()
    terminal = lambda last: torch.where(torch.arange(len(last)) == 2, torch.nan, last[:, 0])
    how = {"terminal": terminal, "backend": "eager"}
    assert Rollout(Tank(), Noisy(), on_failure="mark", **how)(x, 2, p, noise=noise[:2]).ok.tolist() == [
        b != 2 for b in range(BATCH)
    ]
    with pytest.raises(DivergenceError, match="the terminal value of rollout 2"):
        Rollout(Tank(), Noisy(), on_failure="raise", **how)(x, 2, p, noise=noise[:2])


def test_populations_and_returns():
    class Plain(nn.Linear):
        def __init__(self):
            super().__init__(2, 1, dtype=F64)

    policy = Plain()
    x, _, _ = given()
    stacked = {k: torch.stack([v, v]).detach() for k, v in policy.named_parameters()}
    for backend in ("eager", "native"):
        marked = Rollout(Tank(), policy, backend=backend, on_failure="mark").members(stacked, x, STEPS)
        assert marked.ok.tolist() == [b not in FAILING for b in range(BATCH)] * 2
        raising = Rollout(Tank(), policy, backend=backend, on_failure="raise")
        with pytest.raises(DivergenceError, match="4 of 14 rollouts"):
            raising.population(stacked, x, STEPS)
        with pytest.raises(DivergenceError, match=r"2 of 7 rollouts \(numbers 1, 4\)"):
            raising.returns(x)


def test_what_follows_an_end_cannot_make_returns_fail():
    class Ending(Tank):
        def done(self, x):
            return x[..., 0] < 2.0

    x = torch.tensor([[2.1, 0.0]], dtype=F64)
    policy = nn.Linear(2, 1, dtype=F64)
    with torch.no_grad():
        policy.weight.zero_()
        policy.bias.fill_(-1.0)
    returns = Rollout(Ending(), policy, backend="eager", on_failure="raise").returns(x)
    assert torch.isfinite(returns).all()


def test_an_unknown_word_is_refused():
    with pytest.raises(ConfigError, match="on_failure = 'ignore'; known: 'raise', 'mark', None"):
        Rollout(Tank(), Noisy(), on_failure="ignore")
