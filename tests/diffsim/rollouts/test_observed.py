"""Compiled observations and their Jacobians, against torch."""

import copy
import logging
import math

import pytest
import torch

from diffsim.assembly import assemble
from diffsim.config import load_config
from diffsim.policy import ProjectedClip
from diffsim.rollouts import observed
from diffsim.rollouts.observed import Observed, observation_jacobian
from robotics_envs.base import Box
from robotics_envs.environments import ENVIRONMENTS, JULIA
from robotics_envs.simulators.pendulum import Pendulum
from solvers.compiler.trace import NativeUnsupportedError
from solvers.native import build

try:
    build._toolchain()
except NativeUnsupportedError:
    pytest.skip("no C++ compiler", allow_module_level=True)

NAMES = [name for name in ENVIRONMENTS if not name.startswith(JULIA)]


def parts(env, dtype="float64"):
    made = assemble(load_config({"env": env, "dtype": dtype}))
    return made.env, made.policy


def states(env, count=9, dtype=torch.float64, seed=3):
    return env.state_box.sample(count, torch.Generator().manual_seed(seed), dtype)


def observed_by(env, policy, backend="native"):
    made = Observed(env, policy, backend)
    return made, made._kernel(states(env, 1, policy.mean.dtype))


@pytest.mark.parametrize("name", NAMES)
def test_values_and_jacobians_of_every_simulator(name):
    env, policy = parts(name)
    made, kernel = observed_by(env, policy)
    assert kernel is not None
    x = states(env, 21)
    z, jacobian = policy.normalise(env.observe(x)), observation_jacobian(env, policy, x)
    for found, expected in ((made(x), z), (made.jacobian(x), jacobian)):
        assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12 * float(expected.abs().max()))
        assert found.shape == expected.shape


def test_in_single_precision():
    env, policy = parts("quadrotor", "float32")
    made, kernel = observed_by(env, policy)
    assert kernel is not None
    x = states(env, 33, torch.float32)
    assert torch.allclose(made(x), policy.normalise(env.observe(x)), rtol=1e-4, atol=1e-5)
    assert torch.allclose(made.jacobian(x), observation_jacobian(env, policy, x), rtol=1e-3, atol=1e-4)


def test_any_layout_and_number_of_states():
    env, policy = parts("pendulum")
    made, _ = observed_by(env, policy)
    x = states(env, 40).t().contiguous().t()[::3]
    assert torch.allclose(made(x), policy.normalise(env.observe(x)), rtol=1e-12)
    assert torch.allclose(made.jacobian(x), observation_jacobian(env, policy, x), rtol=1e-12)
    assert made(x[:0]).shape == (0, 3)
    for windows in (
        x.new_empty(4, 2, 11),
        x.new_empty(2, 4, 11).permute(1, 0, 2),
        x.new_empty(11, 4, 2).permute(1, 2, 0),
    ):
        if windows.shape[-1] != 2:
            windows = windows.transpose(1, 2)
        windows.copy_(states(env, 44).view(4, 11, 2))
        expected = policy.normalise(env.observe(windows.reshape(-1, 2))).unflatten(0, (4, 11))
        assert torch.allclose(made(windows), expected, rtol=1e-12)


class Tuned(Pendulum):
    """What is observed depends on numbers and tensors that may change."""

    factor = 2.0

    def __init__(self):
        super().__init__()
        self.offset = torch.zeros((), dtype=torch.float64)
        self.places = torch.tensor([0, 1])

    def observe(self, x):
        return super().observe(self.factor * x[:, self.places]) + self.offset


class Blind(Pendulum):
    def observe(self, x):
        return torch.zeros_like(super().observe(x))


class Branching(Pendulum):
    def observe(self, x):
        return super().observe(x if float(x.detach().sum()) > 0 else -x)


class Mixing(Pendulum):
    """Reads other states of the batch."""

    def observe(self, x):
        return super().observe(x - x.mean(0))


class Noisy(Pendulum):
    def observe(self, x):
        return super().observe(x) + torch.randn(3, dtype=x.dtype)


class OwnGradient(Pendulum):
    def observe(self, x):
        return super().observe(torch.cat((x[:, :1], 4 * Doubled.apply(x[:, 1:])), 1))


class Doubled(torch.autograd.Function):
    """The identity, with another derivative."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, by):
        return 2 * by


class Clipped(Pendulum):
    """The derivative of a simulator's own clip is known to the compiler, and is not that of a clamp."""

    state_box = Box.symmetric(math.pi, 8.0)

    def observe(self, x):
        return super().observe(torch.cat((x[:, :1], ProjectedClip.apply(x[:, 1:])), 1))


def with_policy_of_pendulum(env):
    return env, parts("pendulum")[1]


@pytest.mark.parametrize("kind", [Branching, Mixing, OwnGradient])
def test_what_cannot_be_compiled_is_left_to_torch_and_said_once(kind, caplog):
    env, policy = with_policy_of_pendulum(kind())
    made = Observed(env, policy, "auto")
    x = states(env)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(made(x), policy.normalise(env.observe(x)))
        assert torch.equal(made.jacobian(x), observation_jacobian(env, policy, x))
    assert made._kernel(x) is None
    assert caplog.text.count("is not compiled, torch computes it") == 1


def test_asking_takes_no_random_numbers():
    env, policy = with_policy_of_pendulum(Noisy())
    x, results = states(env), []
    for backend in ("native", "eager"):
        torch.manual_seed(7)
        results.append(Observed(env, policy, backend)(x))
    assert torch.equal(*results)


def test_a_known_function_with_its_own_derivative():
    env, policy = with_policy_of_pendulum(Clipped())
    made, _ = observed_by(env, policy)
    x = states(env)
    assert torch.allclose(made.jacobian(x), observation_jacobian(env, policy, x), rtol=1e-12)


def test_an_observation_that_depends_on_nothing():
    env, policy = with_policy_of_pendulum(Blind())
    made, kernel = observed_by(env, policy)
    assert kernel is not None
    assert not made.jacobian(states(env)).any()
    assert torch.allclose(made(states(env)), (-policy.mean / policy.scale).expand(9, 3), rtol=1e-12)


CHANGES = {
    "a number": lambda env, policy: setattr(env, "factor", 3.0),
    "a number of the class": lambda env, policy: setattr(Tuned, "factor", 4.0),
    "a tensor's value": lambda env, policy: env.offset.fill_(0.5),
    "a tensor": lambda env, policy: setattr(env, "offset", torch.ones((), dtype=torch.float64)),
    "a tensor of another dtype": lambda env, policy: setattr(env, "offset", torch.ones(())),
    "whole numbers": lambda env, policy: env.places.copy_(torch.tensor([1, 0])),
    "the method": lambda env, policy: setattr(env, "observe", lambda x: Pendulum.observe(env, x) ** 2),
    "the mean": lambda env, policy: policy.mean.add_(1.0),
    "the scale": lambda env, policy: setattr(policy, "scale", 2 * policy.scale),
    "the normalisation": lambda env, policy: setattr(policy, "normalise", lambda z: z * 3.0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_nothing_stale_is_used(change, monkeypatch):
    monkeypatch.setattr(Tuned, "factor", 2.0)
    env, policy = with_policy_of_pendulum(Tuned())
    policy = copy.deepcopy(policy)
    made, kernel = observed_by(env, policy)
    assert kernel is not None
    x = states(env)
    before = made(x), made.jacobian(x)
    CHANGES[change](env, policy)
    now = policy.normalise(env.observe(x))
    assert not torch.allclose(now, before[0])
    assert torch.allclose(made(x), now, rtol=1e-12, atol=1e-13)
    assert torch.allclose(made.jacobian(x), observation_jacobian(env, policy, x), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_the_back_end_decides(backend, monkeypatch):
    monkeypatch.setattr(observed, "_Kernel", None)  # would fail if it were called
    env, policy = parts("pendulum")
    made, kernel = observed_by(env, policy, backend)
    assert kernel is None
    x = states(env)
    assert torch.equal(made(x), policy.normalise(env.observe(x)))
    assert torch.equal(made.jacobian(x), observation_jacobian(env, policy, x))


def test_a_copy_compiles_its_own():
    env, policy = parts("pendulum")
    made, _ = observed_by(env, policy)
    other = copy.deepcopy(made)
    other.policy.mean.add_(1.0)
    x = states(env)
    assert torch.allclose(other(x), other.policy.normalise(env.observe(x)), rtol=1e-12)
    assert torch.allclose(made(x), policy.normalise(env.observe(x)), rtol=1e-12)
