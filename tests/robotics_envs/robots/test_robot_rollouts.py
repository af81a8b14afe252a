"""Robots in compiled rollouts, and kernels of their fields."""

from collections import OrderedDict

import pytest
import torch
from small_robots import FRICTION, JOINTS, TOUCHING

from diffsim.assembly import assemble
from diffsim.config import load_config
from diffsim.rollouts.rollout import Rollout
from robotics_envs.robots import from_mjcf, kernels


@pytest.mark.parametrize(
    "xml",
    [JOINTS["dry friction"], TOUCHING["sphere"], FRICTION["sphere, elliptic, condim 3"]],
    ids=["dry friction", "contact", "elliptic"],
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


def test_the_check_of_a_simulator_compiles_nothing(monkeypatch):
    monkeypatch.setattr(kernels, "FunctionKernel", lambda *_: pytest.fail("a kernel was made for one call"))
    monkeypatch.setattr(kernels, "_kernels", OrderedDict())
    assembly = assemble(load_config({"env": "gym:HalfCheetah-v5", "policy": {"hidden": [4]}}))
    assert assembly.env.name == "half_cheetah_v5"
