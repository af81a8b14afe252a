"""Robots in compiled rollouts, and kernels of their fields."""

import copy
from collections import OrderedDict

import pytest
import torch
from small_robots import FRICTION, JOINTS, TOUCHING, TWO_FEET

from diffsim.assembly import assemble
from diffsim.config import load_config
from diffsim.policy import MLP
from diffsim.rollouts import native
from diffsim.rollouts.rollout import Rollout
from robotics_envs.environments import make_env
from robotics_envs.robots import from_mjcf, kernels
from robotics_envs.robots.wrenches import contact_wrenches
from solvers.compiler.trace import NativeUnsupportedError


@pytest.mark.parametrize(
    "xml",
    [
        JOINTS["dry friction"],
        TOUCHING["sphere"],
        FRICTION["sphere, elliptic, condim 3"],
        TWO_FEET.format(condim=4),
        TWO_FEET.format(condim=6),
    ],
    ids=["dry friction", "contact", "elliptic", "condim 4 and 3", "condim 6 and 3"],
)
def test_a_compiled_rollout_is_the_stepped_one(xml, caplog):
    env = from_mjcf(xml, check=False)
    torch.manual_seed(0)
    policy = torch.nn.Linear(len(env.observation_names), len(env.action_box), dtype=torch.float64)
    x0 = env.reset(6, torch.Generator().manual_seed(0), torch.float64)
    x0[:, 2 if len(env.state_names) > 4 else 0] -= 0.2  # into the floor, or to a limit
    results = {}
    for backend in ("native", "eager"):
        rollout = Rollout(env, policy, backend=backend)
        for q in policy.parameters():
            q.grad = None
        start = x0.clone().requires_grad_()
        out = rollout(start, 6)
        out.costs.sum().backward()
        results[backend] = [out.costs, start.grad, policy.weight.grad]
    assert not caplog.records
    for a, b in zip(*results.values(), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-9)


def test_the_forces_of_contacts_are_those_of_the_field_that_is_there(monkeypatch):
    """A cost that reads them calls the compiled field, and does not hold it a second time."""
    xml = TWO_FEET.format(condim=3).replace("<worldbody>", '<option integrator="RK4"/><worldbody>')
    plain = from_mjcf(xml, check=False)

    class Pressed(type(plain)):
        def cost_of_step(self, x, following, u, p):
            wrenches = contact_wrenches(self, following, u, p)
            return super().cost_of_step(x, following, u, p) + wrenches.square().sum((-2, -1))

    def lines(env):
        sources = []

        def refuse(source):
            if "rollouts_of_a_block" not in source:
                return load(source)
            sources.append(source)
            raise NativeUnsupportedError("only its source is wanted")

        load = native.build.load
        with monkeypatch.context() as m:
            m.setattr(native.build, "load", refuse)
            x0 = plain.reset(3, torch.Generator())
            Rollout(env, backend="native")(x0, 2, controls=torch.zeros(2, 3, len(env.action_box)))
        return sources[-1].count("\n")

    pressed = copy.copy(plain)
    pressed.__class__ = Pressed
    assert lines(pressed) < 1.2 * lines(plain)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "height"),
    [("gym:Ant-v5", 0.35), ("dm_control:hopper-hop", -0.05), ("dm_control:walker-walk", 0.0)],
)
def test_a_compiled_rollout_of_a_large_robot_is_the_stepped_one(name, height, monkeypatch, caplog):
    """Forward and gradient, in states on the ground, beside plain operations of torch."""
    env = make_env(name)
    torch.manual_seed(0)
    policy = MLP(len(env.observation_names), len(env.action_box), hidden=(16,)).double()
    x0 = env.reset(4, torch.Generator().manual_seed(0), torch.float64)
    x0[:, env.state_names.index("rootz") if "rootz" in env.state_names else 2] = height
    results = {}
    for backend in ("native", "eager"):
        if backend == "eager":
            monkeypatch.setattr(kernels, "_kernel", lambda *args: None)
        rollout = Rollout(env, policy, backend=backend)
        policy.zero_grad()
        start = x0.clone().requires_grad_()
        out = rollout(start, 2)
        out.costs.sum().backward()
        results[backend] = [
            out.states.detach(),
            out.costs.detach(),
            start.grad,
            *(q.grad for q in policy.parameters()),
        ]
    assert not caplog.records  # one of no kernel
    for a, b in zip(*results.values(), strict=True):
        assert float((a - b).abs().max()) <= 1e-10 * float(b.abs().max())


@pytest.mark.slow
def test_the_gradient_of_the_humanoids_compiled_rollout_is_that_of_differences(caplog):
    """Its accelerations are held against MuJoCo elsewhere.  Plain torch takes over a quarter of an hour for this."""
    env = make_env("gym:Humanoid-v5")
    torch.manual_seed(0)
    policy = MLP(len(env.observation_names), len(env.action_box), hidden=(16,)).double()
    rollout = Rollout(env, policy, backend="native")
    x0 = env.reset(16, torch.Generator().manual_seed(0), torch.float64)
    x0[:, 2] = 1.25  # the feet touch the ground
    along, weights = torch.randn(2, *x0.shape, dtype=x0.dtype)

    def reached(x):
        return (rollout(x, 2).states[-1] * weights).sum(-1)

    start = x0.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(reached(start).sum(), start)
    with torch.no_grad():
        difference = (reached(x0 + 1e-6 * along) - reached(x0 - 1e-6 * along)) / 2e-6
    assert not caplog.records  # one of no kernel
    by_gradient = (gradient * along).sum(-1)
    errors = (by_gradient - difference).abs() / difference.abs()
    assert float(errors.median()) <= 1e-6
    # In a few rollouts a contact may begin or end between the two.
    assert float((errors <= 1e-5).double().mean()) >= 0.75


def test_the_check_of_a_simulator_compiles_nothing(monkeypatch):
    monkeypatch.setattr(kernels, "FunctionKernel", lambda *_: pytest.fail("a kernel was made for one call"))
    monkeypatch.setattr(kernels, "_kernels", OrderedDict())
    assembly = assemble(load_config({"env": "gym:HalfCheetah-v5", "policy": {"hidden": [4]}}))
    assert assembly.env.name == "half_cheetah_v5"
