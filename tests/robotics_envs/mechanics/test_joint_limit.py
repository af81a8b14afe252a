"""The soft joint limit is MuJoCo's, whatever its solver parameters."""

import math

import mujoco
import numpy as np
import pytest
import torch

from robotics_envs.mechanics.joint_limit import JointLimit

F64 = torch.float64
CHAIN = """
<mujoco>
  <option timestep="0.001"/>
  <worldbody>
    <body>
      <joint name="first" type="{kind}" axis="0 1 0" limited="true" range="-0.7 0.4" margin="{margin}"
             solreflimit="{solref}" solimplimit="{solimp}"/>
      <geom type="box" size="0.1 0.2 0.3" pos="0.1 0 0.5" mass="1.5"/>
      <body pos="0 0 1">
        <joint type="hinge" axis="0 1 0"/>
        <geom type="box" size="0.1 0.1 0.4" pos="0.1 0 0.3" mass="0.8"/>
      </body>
    </body>
  </worldbody>
  <compiler angle="radian"/>
</mujoco>
"""


def tensor(values):
    return torch.as_tensor(np.asarray(values), dtype=F64)


@pytest.mark.parametrize("kind", ["hinge", "slide"])
@pytest.mark.parametrize(
    ("time_constant", "damping_ratio", "margin", "impedance"),
    [
        (0.02, 1.0, 0.0, (0.9, 0.95, 0.001, 0.5, 2.0)),
        (0.08, 0.7, 0.0, (0.5, 0.99, 0.2, 0.3, 3.5)),
        (0.2, 1.5, 0.05, (0.2, 0.8, 0.5, 0.5, 1.0)),
        (0.03, 2.0, 0.1, (0.9, 0.6, 0.1, 0.9, 2.0)),
    ],
    ids=["MuJoCo's defaults", "soft and springy", "straight impedance", "softer with depth"],
)
def test_the_force_is_mujocos(kind, time_constant, damping_ratio, margin, impedance):
    text = CHAIN.format(
        kind=kind,
        margin=margin,
        solref=f"{time_constant} {damping_ratio}",
        solimp=" ".join(map(str, impedance)),
    )
    model = mujoco.MjModel.from_xml_string(text)
    data, rng = mujoco.MjData(model), np.random.default_rng(0)
    weight = float(model.dof_invweight0[0])
    limit = JointLimit(-0.7, 0.4, weight, time_constant, damping_ratio, margin, impedance)
    states, forces = [], []
    for _ in range(200):
        data.qpos[:], data.qvel[:] = rng.uniform([-1.2, -3], [0.9, 3]), rng.uniform(-3, 3, 2)
        mujoco.mj_forward(model, data)
        inverse = np.zeros((2, 2))
        mujoco.mj_solveM(model, data, inverse, np.eye(2))
        states.append((data.qpos[0], data.qvel[0], data.qacc_smooth[0], inverse[0, 0]))
        forces.append(data.qfrc_constraint[0])
    forces = tensor(forces)
    assert (forces > 0).sum() > 10
    assert (forces < 0).sum() > 10
    assert (forces == 0).sum() > 10
    assert torch.allclose(limit.force(*tensor(states).T), forces, rtol=1e-9, atol=1e-9)


def test_it_pushes_back_and_never_pulls():
    limit = JointLimit(-1.0, 1.0, 0.5)
    position = torch.linspace(-1.5, 1.5, 301, dtype=F64)
    for speed in (-20.0, 0.0, 20.0):
        velocity, zero = torch.full_like(position, speed), torch.zeros_like(position)
        force = limit.force(position, velocity, zero, zero + 2.0)
        assert (force * position <= 0).all()
        assert not force[position.abs() <= 1].any()
        mirrored = limit.force(-position, -velocity, zero, zero + 2.0)
        assert torch.allclose(mirrored, -force)


def test_a_critically_damped_stop_throws_the_joint_back_as_its_time_constant_says():
    """From rest at r0, impedance near 1: ``r0 (1 + t/T) exp(-t/T)`` until t = T, then ``r0 / (e T)`` without pull."""
    near_one = 0.9999
    limit = JointLimit(-9.0, 1.0, 1.0, 0.1, impedance=(near_one, near_one, 0.001, 0.5, 2.0))
    position, velocity = torch.full((1,), 1.2, dtype=F64), torch.zeros(1, dtype=F64)
    dt, inverse_inertia, zero = 1e-4, torch.full((1,), 3.0, dtype=F64), torch.zeros(1, dtype=F64)
    for step in range(1, 2001):
        velocity = velocity + dt * inverse_inertia * limit.force(position, velocity, zero, inverse_inertia)
        position = position + dt * velocity
        if step == 500:
            assert float(position) == pytest.approx(1 + 0.2 * 1.5 * math.exp(-0.5), abs=1e-4)
    assert float(velocity) == pytest.approx(-0.2 / (0.1 * math.e), abs=1e-3)
    assert float(position) == pytest.approx(1 + 0.2 / math.e, abs=1e-3)


def test_gradients_flow_beyond_the_limit_and_stay_finite_everywhere():
    position = tensor([-1.3, -1.0005, -1.0, 0.0, 1.0, 1.0003, 1.4])
    inputs = [position, 0.1 * position, -2 * position, torch.full_like(position, 0.7)]
    inputs += [tensor(-1.0), tensor(1.0), tensor(0.5)]
    for value in inputs:
        value.requires_grad_()

    def force(position, velocity, acceleration, inverse_inertia, low, high, weight):
        return JointLimit(low, high, weight).force(position, velocity, acceleration, inverse_inertia)

    gradients = torch.autograd.grad(force(*inputs).sum(), inputs)
    assert all(torch.isfinite(g).all() for g in gradients)
    assert gradients[0][[0, 1, 5, 6]].all()
    assert not gradients[0][3]
    smooth = [v.detach()[[0, 1, 5, 6]].requires_grad_() if v.ndim else v for v in inputs]
    assert torch.autograd.gradcheck(force, smooth)


def test_senseless_constants_are_refused():
    with pytest.raises(ValueError, match="impedance"):
        JointLimit(-1.0, 1.0, 1.0, impedance=(0.9, 1.0, 0.001, 0.5, 2.0))
    with pytest.raises(ValueError, match="time constant"):
        JointLimit(-1.0, 1.0, 1.0, time_constant=-100.0)
