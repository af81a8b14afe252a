"""Tasks of dm_control's suite beside dm_control itself."""

import os

os.environ.setdefault("MUJOCO_GL", "disabled")  # dm_control looks for a screen when it is imported

import gymnasium
import mujoco
import numpy as np
import pytest
import torch
from dm_control import suite

from lazy_registry.registry import UnknownNameError
from robotics_envs.environments import DM_CONTROL_TASKS, REFUSED_TASKS, make_env
from robotics_envs.robots import RobotFileError, kernels

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated")


def in_dm_control(name):
    """The environment, its solver run to the end."""
    domain, task = name.removeprefix("dm_control:").split("-")
    made = suite.load(domain, task, task_kwargs={"random": 0})
    option = made.physics.model.opt
    option.tolerance, option.iterations, option.ls_iterations = 0.0, 100, 100
    return made


def state(physics):
    return np.concatenate((physics.data.qpos, physics.data.qvel))


def flat(observation):
    """As Gymnasium flattens it: the parts in the order of their names."""
    return np.concatenate([np.ravel(observation[key]) for key in sorted(observation)])


def moved(physics, intervals, controls, steps):
    """The state that MuJoCo makes of the present one, its positions moved by 1e-12."""
    model = physics.model.ptr
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:] = physics.data.qpos + 1e-12, physics.data.qvel
    states = []
    for u in controls[:intervals]:
        data.ctrl[:] = u
        mujoco.mj_step(model, data, steps)
        states.append(np.concatenate((data.qpos, data.qvel)))
    return np.array(states)


@pytest.mark.parametrize(
    ("name", "seconds"),
    [
        ("dm_control:cheetah-run", 0.03),
        ("dm_control:walker-walk", 0.05),
        ("dm_control:hopper-hop", 0.04),
        *(pytest.param(name, 1.0, marks=pytest.mark.slow) for name in DM_CONTROL_TASKS),
    ],
)
def test_a_task_is_its_twin_in_dm_control(name, seconds, monkeypatch):
    monkeypatch.setattr(kernels, "_kernel", lambda *args: None)
    ours, theirs = make_env(name), in_dm_control(name)
    physics = theirs.physics
    theirs.reset()
    if "walker" in name:  # else it may start far above the ground
        physics.data.qpos[0] = -0.2
        physics.forward()
    x = torch.tensor(state(physics))[None]
    intervals = round(seconds / ours.dt)
    assert theirs.control_timestep() == pytest.approx(ours.dt)
    controls = np.random.default_rng(0).uniform(-1, 1, (intervals, len(ours.action_box)))
    response = moved(physics, intervals, controls, ours.frame_skip)
    with torch.no_grad():
        for u, other in zip(controls, response, strict=True):
            result = theirs.step(u)
            x, cost = ours.step(x, torch.tensor(u)[None], {})
            allowed = max(1e-9, 10 * np.abs(other - state(physics)).max())
            np.testing.assert_allclose(x[0].numpy(), state(physics), rtol=0, atol=allowed)
            seen = ours.observation_from_twin(flat(result.observation))
            np.testing.assert_allclose(ours.observe(x)[0].numpy(), seen, rtol=0, atol=allowed)
            assert float(cost) == pytest.approx(-result.reward, abs=allowed)


@pytest.mark.parametrize("name", DM_CONTROL_TASKS)
def test_reward_and_observation_are_dm_controls_in_all_states(name):
    ours, theirs = make_env(name), in_dm_control(name)
    physics = theirs.physics
    generator = torch.Generator().manual_seed(0)
    boxes = [box.sample(40, generator, torch.float64) for box in (ours.state_box, ours.start_box)]
    x, u = torch.cat(boxes), ours.action_box.sample(80, generator, torch.float64)
    x[::4, ours.model.positions] *= 3.0  # fast enough for the whole reward
    rewards, observations = [], []
    for at, control in zip(x.numpy(), u.numpy(), strict=True):
        with physics.reset_context():
            physics.set_state(at)
        physics.set_control(control)
        rewards.append(theirs.task.get_reward(physics))
        observations.append(ours.observation_from_twin(flat(theirs.task.get_observation(physics))))
    assert np.std(rewards) > 0.01
    np.testing.assert_allclose(ours.cost(x, u, {}).numpy(), -np.array(rewards), atol=1e-12)
    np.testing.assert_allclose(ours.observe(x).numpy(), np.array(observations), atol=1e-12)


@pytest.mark.parametrize("name", DM_CONTROL_TASKS)
def test_names_lengths_and_spaces_are_those_of_the_environment_that_judges(name):
    shimmy = pytest.importorskip("shimmy")
    gymnasium.register_envs(shimmy)
    env, theirs = make_env(name), in_dm_control(name)
    assert env.gym_id == f"dm_control/{name.removeprefix('dm_control:')}-v0"
    space = gymnasium.wrappers.FlattenObservation(gymnasium.make(env.gym_id)).observation_space
    assert env.observation_from_twin(np.zeros(space.shape)).shape == (len(env.observation_names),)
    assert theirs._step_limit == pytest.approx(env.episode_steps)
    assert theirs.action_spec().minimum.tolist() == list(env.action_box.low)
    assert "this project's choice" in env.success_criterion.source


@pytest.mark.parametrize("name", ["dm_control:walker-run", "dm_control:hopper-hop"])
def test_starts_are_dm_controls(name):
    ours, theirs = make_env(name), in_dm_control(name)
    x = ours.reset(4000, torch.Generator().manual_seed(0), torch.float64)
    starts = []
    for _ in range(300):
        theirs.reset()
        starts.append(state(theirs.physics))
    spread = np.std(starts, 0)
    np.testing.assert_allclose(x.mean(0), np.mean(starts, 0), atol=0.25 * max(spread))
    np.testing.assert_allclose(x.std(0), spread, rtol=0.15, atol=1e-12)
    assert (np.array(starts) >= np.array(ours.start_box.low) - 1e-9).all()
    assert (np.array(starts) <= np.array(ours.start_box.high) + 1e-9).all()


@pytest.mark.slow
def test_a_cheetah_settles_as_dm_controls_does(monkeypatch):
    monkeypatch.setattr(kernels, "_kernel", lambda *args: None)
    ours, theirs = make_env("dm_control:cheetah-run"), in_dm_control("dm_control:cheetah-run")
    drawn = []
    step = theirs.physics.step
    monkeypatch.setattr(
        theirs.physics, "step", lambda nstep=1: (drawn.append(state(theirs.physics)), step(nstep))[1]
    )
    settled = []
    for _ in range(3):
        theirs.reset()
        settled.append(state(theirs.physics))
    x = torch.tensor(np.array(drawn))
    low, high = (torch.tensor(b) for b in (ours.start_box.low, ours.start_box.high))
    assert ((x >= low) & (x <= high)).all()
    with torch.no_grad():
        np.testing.assert_allclose(ours.settled(x).numpy(), settled, atol=1e-8)


def test_walkers_succeed_that_stand_at_the_end_and_are_fast_enough():
    env = make_env("dm_control:walker-walk")
    states = torch.zeros(1001, 4, 18, dtype=torch.float64)
    at = env.dt * torch.arange(1001)
    states[:, 0, 1] = 0.7 * at
    states[:, 1, 1] = 0.6 * at
    states[:, 2, 1] = states[:, 3, 1] = 0.7 * at
    states[900, 2, 0] = -0.2
    states[900:, 3, 2] = 0.5
    assert env.success(states).tolist() == [True, False, False, False]
    assert make_env("dm_control:walker-stand").success(states).tolist() == [True, True, False, False]
    assert not make_env("dm_control:walker-run").success(states).any()


def test_hoppers_succeed_that_stand_at_the_end_and_are_fast_enough():
    env = make_env("dm_control:hopper-hop")
    states = torch.zeros(1001, 3, 14, dtype=torch.float64)
    states[:, :, 5] = 0.1
    states[:, 0, 0] = 1.1 * env.dt * torch.arange(1001)
    states[:, 2, 0] = states[:, 0, 0]
    states[-1, 2, 5] = 2.6  # folded
    assert env.success(states).tolist() == [True, False, False]
    assert make_env("dm_control:hopper-stand").success(states).tolist() == [True, True, False]


def test_a_wrong_name_is_refused_with_the_nearest_right_one():
    with pytest.raises(UnknownNameError, match="did you mean 'dm_control:walker-walk'"):
        make_env("dm_control:walker-wlk")


@pytest.mark.parametrize("name", REFUSED_TASKS)
def test_tasks_that_cannot_be_simulated_are_refused_in_words(name):
    words = {
        "swimmer.xml": "a fluid",
        "quadruped.xml": "actuators with a state",
        "pusher_v5.xml": "contacts between",
    }
    with pytest.raises(RobotFileError, match=f"^{name}: .*holds what is not simulated here") as found:
        make_env(name)
    assert words[REFUSED_TASKS[name]] in str(found.value)
