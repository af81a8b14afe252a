"""A task with MuJoCo's own steps: the same numbers as MuJoCo's, and as ours."""

import mujoco
import numpy as np
import pytest
import torch
from small_robots import JOINTS, TOUCHING

import diffsim
from diffsim.errors import EvaluationError
from robotics_envs.base import Parameter
from robotics_envs.environments import make_env
from robotics_envs.robots import RobotEnv, RobotFileError, from_mjcf, in_mujoco, kernels, read
from robotics_envs.robots.compiling import compiled


@pytest.mark.parametrize("xml", [TOUCHING["sphere"], JOINTS["dry friction"]], ids=["contact", "dry friction"])
def test_a_step_is_mj_step(xml, monkeypatch):
    monkeypatch.setattr(kernels, "_kernel", lambda *args: None)
    ours = from_mjcf(xml, check=False)
    judge = in_mujoco(ours)
    x = ours.reset(3, torch.Generator().manual_seed(0), torch.float64)
    u = ours.action_box.sample(3, torch.Generator().manual_seed(1), torch.float64)
    following, cost = judge.step(x, u, {})
    model = compiled(ours.model.source, ours.model.options)
    for i in range(3):
        data, n = mujoco.MjData(model), model.nq
        data.qpos[:], data.qvel[:], data.ctrl[:] = x[i, :n], x[i, n:], u[i]
        for _ in range(ours.frame_skip):
            mujoco.mj_step(model, data)
        assert following[i].tolist() == [*data.qpos, *data.qvel]
    with torch.no_grad():
        expected, own_cost = ours.step(x, u, {})
    np.testing.assert_allclose(following, expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(cost, own_cost, rtol=1e-12)


def test_a_task_keeps_its_cost_end_and_observation(monkeypatch):
    monkeypatch.setattr(kernels, "_kernel", lambda *args: None)
    ours = make_env("gym:InvertedPendulum-v5")
    judge = in_mujoco(ours)
    assert judge.foreign
    assert judge.gym_id is None
    x = ours.reset(4, torch.Generator().manual_seed(0), torch.float64)
    far = x + torch.tensor([0.0, 0.5, 0.0, 0.0])
    assert (judge.done(far) == ours.done(far)).all()
    assert (judge.observe(x) == ours.observe(x)).all()
    u = torch.full((4, 1), 5.0, dtype=torch.float64)  # beyond the bounds: clipped by both
    with torch.no_grad():
        for got, wanted in zip(judge.step(x, u, {}), ours.step(x, u, {}), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-8)


def test_a_changed_parameter_is_not_judged_as_if_it_were_not():
    class Windy(RobotEnv):
        model = read(JOINTS["dry friction"])
        name = "windy"
        parameters = (Parameter("wind", 0.0, "m/s"),)

    assert in_mujoco(Windy()).foreign
    with pytest.raises(RobotFileError, match="MuJoCo steps windy as in its file: leave wind at the default"):
        in_mujoco(Windy(wind=2.0))


def test_a_policy_is_judged_in_mujoco(tmp_path):
    (tmp_path / "rod.xml").write_text(
        '<mujoco model="rod"><worldbody><body><joint name="hinge" axis="0 1 0" damping=".1"/>'
        '<geom type="capsule" fromto="0 0 0 0 0 -.5" size=".05"/></body></worldbody>'
        '<actuator><motor joint="hinge" ctrlrange="-1 1"/></actuator></mujoco>'
    )
    run = diffsim.train(
        f"mjcf:{tmp_path / 'rod.xml'}", out=tmp_path / "run", updates=1, quiet=True, evaluation={"every": 0}
    )
    here, there = (diffsim.evaluate(run, episodes=5, mujoco=how) for how in (False, True))
    assert there.where == "MuJoCo:rod"
    np.testing.assert_allclose(there.returns, here.returns, rtol=1e-3)
    assert there.lengths.tolist() == here.lengths.tolist() == [250] * 5
    with pytest.raises(EvaluationError, match="mujoco and gym = 'Pendulum-v1': one at a time"):
        diffsim.evaluate(run, gym="Pendulum-v1", mujoco=True)
    (tmp_path / "rod.xml").unlink()
    with pytest.raises(Exception, match="there is no file"):
        diffsim.evaluate(run, episodes=5, mujoco=True)


def test_what_is_no_robot_from_a_file_cannot_be_stepped_by_mujoco(tmp_path):
    run = diffsim.train(
        "pendulum",
        out=tmp_path / "run",
        updates=1,
        quiet=True,
        algorithm={"batch": 4},
        evaluation={"every": 0},
    )
    with pytest.raises(
        EvaluationError, match="pendulum is no robot from an MJCF or URDF file, which MuJoCo could"
    ):
        diffsim.evaluate(run, mujoco=True)
