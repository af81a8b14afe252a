"""Tasks beside Gymnasium's own environments, and robots over whole seconds beside MuJoCo."""

import gymnasium
import mujoco
import numpy as np
import pytest
import torch
from small_robots import JOINTS, TOUCHING

from robotics_envs.environments import GYM_TASKS, make_env
from robotics_envs.robots import RobotEnv, from_mjcf, kernels
from robotics_envs.robots.comparison import converged
from robotics_envs.robots.compiling import gymnasium_env
from robotics_envs.robots.wrenches import contact_wrenches

# Name and control intervals.
TWINS = [
    ("gym:HalfCheetah-v5", 6),
    ("gym:InvertedPendulum-v5", 25),
    ("gym:InvertedDoublePendulum-v5", 4),
    ("gym:Reacher-v5", 3),
    pytest.param("gym:HalfCheetah-v5", 25, marks=pytest.mark.slow),
    pytest.param("gym:Hopper-v5", 25, marks=pytest.mark.slow),
    pytest.param("gym:Walker2d-v5", 25, marks=pytest.mark.slow),
    pytest.param("gym:Ant-v5", 8, marks=pytest.mark.slow),
    pytest.param("gym:Humanoid-v5", 4, marks=pytest.mark.slow),
]


def exact(env):
    """A Gymnasium environment whose solver runs to the end, and that sees the state that a step reaches.

    Where it looks at places and forces, Gymnasium sees those of the last of the stages of RK4 (docs/robots.md).
    """
    made = env.unwrapped
    option = made.model.opt
    option.solver = mujoco.mjtSolver.mjSOL_NEWTON
    option.tolerance, option.iterations, option.ls_iterations = 0.0, 100, 100

    def simulate(control, steps, stock=made._step_mujoco_simulation):
        stock(control, steps)
        mujoco.mj_forward(made.model, made.data)
        mujoco.mj_rnePostConstraint(made.model, made.data)

    made._step_mujoco_simulation = simulate
    return env


@pytest.mark.parametrize(("name", "intervals"), TWINS)
def test_a_task_is_its_twin_in_gymnasium(name, intervals, monkeypatch):
    monkeypatch.setattr(kernels, "_kernel", lambda *args: None)  # so few intervals take less than compiling
    ours = make_env(name)
    theirs = exact(gymnasium.make(name.removeprefix("gym:")))
    rng = np.random.default_rng(0)
    x = ours.reset(1, torch.Generator().manual_seed(1), torch.float64)
    theirs.reset(seed=0)
    n = ours.model.positions
    theirs.unwrapped.set_state(x[0, :n].numpy(), x[0, n:].numpy())
    assert ours.dt == pytest.approx(theirs.unwrapped.dt)
    with torch.no_grad():
        for _ in range(intervals):
            u = rng.uniform(*(np.array(b) for b in (ours.action_box.low, ours.action_box.high)))
            observation, reward, terminated, *_ = theirs.step(u)
            x, cost = ours.step(x, torch.tensor(u)[None], {})
            observation = ours.observation_from_twin(observation)
            np.testing.assert_allclose(ours.observe(x)[0].numpy(), observation, rtol=1e-8, atol=1e-8)
            assert bool(ours.done(x)) == terminated
            if "InvertedPendulum" in name:  # the shaped part has no twin
                cost = cost - (x[:, 1] / 0.2).square()
            assert float(cost) == pytest.approx(-reward, abs=1e-8)
            if terminated:
                break


@pytest.mark.parametrize("name", GYM_TASKS)
def test_resets_and_ends_are_gymnasiums(name):
    ours, theirs = make_env(name), gymnasium.make(name.removeprefix("gym:")).unwrapped
    x = ours.reset(4000, torch.Generator().manual_seed(0), torch.float64)
    starts = []
    for seed in range(150):
        theirs.reset(seed=seed)
        starts.append(np.concatenate((theirs.data.qpos, theirs.data.qvel)))
    np.testing.assert_allclose(x.mean(0), np.mean(starts, 0), atol=0.05)
    np.testing.assert_allclose(x.std(0), np.std(starts, 0), rtol=0.25, atol=1e-4)
    if hasattr(theirs, "is_healthy"):
        wide = ours.state_box.sample(300, torch.Generator().manual_seed(1), torch.float64)
        wide[:, 1:3] = wide[:, 1:3] * 1.4 - 0.1
        if ours.unseen == 2:
            wide[:, 2] = torch.linspace(0.0, 2.5, len(wide), dtype=torch.float64)
        for state, done in zip(wide.numpy(), ours.done(wide), strict=True):
            theirs.set_state(*np.split(state, [ours.model.positions]))
            assert bool(done) != theirs.is_healthy


def states_of(env, generator, count=40):
    return env.state_box.sample(count, generator, torch.float64)


@pytest.mark.parametrize("name", ["gym:Hopper-v5", "gym:Walker2d-v5", "gym:InvertedDoublePendulum-v5"])
def test_the_step_that_ends_an_episode_is_rewarded_as_in_gymnasium(name):
    ours, theirs = make_env(name), exact(gymnasium.make(name.removeprefix("gym:"))).unwrapped
    theirs.reset(seed=0)
    x = states_of(ours, torch.Generator().manual_seed(0))
    x[:, 2] += torch.linspace(-1.0, 1.0, len(x))  # many fall
    rng, ends = np.random.default_rng(0), []
    for state in x.numpy():
        theirs.set_state(*np.split(state, 2))
        u = rng.uniform(ours.action_box.low, ours.action_box.high)
        _, reward, terminated, *_ = theirs.step(u)
        following = torch.tensor(np.concatenate((theirs.data.qpos, theirs.data.qvel)))[None]
        cost = ours.cost_of_step(torch.tensor(state)[None], following, torch.tensor(u)[None], {})
        assert float(cost) == pytest.approx(-reward, rel=1e-9)
        ends.append(terminated)
    assert 0 < sum(ends) < len(x)


@pytest.mark.parametrize(
    ("name", "seen"), [("gym:Ant-v5", 27), pytest.param("gym:Humanoid-v5", 45, marks=pytest.mark.slow)]
)
def test_forces_of_contacts_are_mujocos(name, seen):
    """At states on the ground; with them reward and observation are Gymnasium's."""
    ours, theirs = make_env(name), exact(gymnasium.make(name.removeprefix("gym:"))).unwrapped
    theirs.reset(seed=0)
    rng = np.random.default_rng(0)
    states, actions, forces = [], [], []
    for k in range(6):
        for _ in range(8 + 3 * k):
            u = rng.uniform(ours.action_box.low, ours.action_box.high)
            observation = theirs.step(u)[0]
        states.append(np.concatenate((theirs.data.qpos, theirs.data.qvel)))
        actions.append(u)
        forces.append(theirs.data.cfrc_ext[1:].copy())
        np.testing.assert_allclose(ours.observation_from_twin(observation), states[-1][2:], atol=1e-12)
    assert len(ours.observation_names) == seen == len(states[-1][2:])
    x, u = torch.tensor(np.array(states)), torch.tensor(np.array(actions))
    ours.dynamics = lambda t, x, u, p: ours.rates(ours.packed(x, u, p))  # without a kernel
    with torch.no_grad():
        found = contact_wrenches(ours, x, u, {}).numpy()
    assert np.abs(forces).max() > 1.0
    np.testing.assert_allclose(found, np.array(forces), rtol=1e-7, atol=1e-7 * np.abs(forces).max())


@pytest.mark.parametrize(
    ("name", "written_out", "order"),
    [
        (
            "gym:Reacher-v5",
            "reacher",
            [0, 1, 4, 5, 2, 3],
        ),  # the target of the written-out reacher has no velocity
        ("gym:InvertedDoublePendulum-v5", "double_pendulum", [0, 1, 2, 3, 4, 5]),
    ],
)
def test_written_out_simulators_move_as_the_models_do(name, written_out, order):
    read, own = make_env(name), make_env(written_out)
    x = states_of(read, torch.Generator().manual_seed(0))
    u = read.action_box.sample(len(x), torch.Generator().manual_seed(1), torch.float64)
    rates = read.rates(read.packed(x, u, {}))
    assert torch.allclose(
        own.dynamics(0.0, x[:, order], u, own.params(x)), rates[:, order], rtol=1e-9, atol=1e-9
    )


def test_every_task_is_named_as_in_gymnasium():
    for name in GYM_TASKS:
        made = make_env(name)
        assert gymnasium.spec(name.removeprefix("gym:")).max_episode_steps == made.episode_steps
        assert made.gym_id in (None, name.removeprefix("gym:"))


@pytest.mark.parametrize(
    "xml", [JOINTS["actuators"], JOINTS["limits"], JOINTS["ball joints"], TOUCHING["sphere"]],
    ids=["implicitfast", "limits", "ball joints", "contact"],
)  # fmt: skip
def test_a_second_of_random_actions_ends_where_mujoco_does(xml):
    env = from_mjcf(xml, check=False)
    model = converged(env.model)
    data, other = mujoco.MjData(model), mujoco.MjData(model)
    rng = np.random.default_rng(4)
    low, high = model.actuator_ctrlrange.T
    x = torch.tensor(np.concatenate((data.qpos, data.qvel)))[None]
    other.qpos[:] += 1e-12
    with torch.no_grad():
        for _ in range(round(1.0 / env.dt)):
            u = rng.uniform(low, high)
            x, _ = env.step(x, torch.tensor(u)[None], {})
            for d in (data, other):
                d.ctrl[:] = u
                for _ in range(env.frame_skip):
                    mujoco.mj_step(model, d)
    ours, theirs, moved = x[0].numpy(), *(np.concatenate((d.qpos, d.qvel)) for d in (data, other))
    # What MuJoCo makes of a start that is moved by 1e-12, and a little rounding.
    assert np.abs(ours - theirs).max() < max(1e-9, 10 * np.abs(moved - theirs).max())


def running(env, speed, length):
    """An episode ``[length, 1, n]`` of a body that keeps its pose and moves forward at a constant speed in m/s."""
    x = torch.zeros(length, len(env.state_names), dtype=torch.float64)
    x[:, 1] = 1.25 if env.name != "half_cheetah_v5" else 0.0
    x[:, 0] = 3.0 + speed * env.dt * torch.arange(length)
    return x[:, None]


@pytest.mark.parametrize(("name", "fast"), [("HalfCheetah", 4.8), ("Hopper", 2.8), ("Walker2d", 2.0)])
def test_success_is_to_be_fast_enough_and_alive_to_the_end(name, fast):
    env = make_env(f"gym:{name}-v5")
    length = env.episode_steps + 1
    states = torch.cat([running(env, speed, length) for speed in (1.001 * fast, 0.999 * fast, fast + 1)], 1)
    assert env.success(states).tolist() == [True, False, True]
    states[500, 2, 2] = torch.nan if name == "HalfCheetah" else 1.5  # falls, and is carried on
    assert env.success(states).tolist() == [True, False, False]


def test_what_a_frame_of_tasks_states_is_not_replaced_by_what_the_model_says():
    class Frame(RobotEnv):
        episode_steps = 7
        frame_skip = 3

    class Task(Frame):
        model = make_env("gym:Hopper-v5").model
        name = "task"

    assert (Task.episode_steps, Task.frame_skip) == (7, 3)
    assert Task.dt == pytest.approx(3 * Task.model.timestep)


def test_success_of_the_inverted_pendulum_is_to_live_for_950_intervals():
    env = make_env("gym:InvertedPendulum-v5")
    states = torch.zeros(1001, 4, 4)
    states[951:, 0, 1] = 0.3
    states[950, 1, 1] = 0.3
    states[10, 2, 1] = torch.nan
    assert env.success(states).tolist() == [True, False, False, True]


@pytest.mark.parametrize("name", GYM_TASKS)
def test_tasks_of_gymnasium_declare_success_with_its_source(name):
    criterion = make_env(name).success_criterion
    assert criterion is not None
    threshold = gymnasium.spec(name.removeprefix("gym:")).reward_threshold
    assert (f"{threshold:g}" if threshold else "this project's choice") in criterion.source


def test_a_task_is_made_without_what_mujoco_says_about_its_file(tmp_path, monkeypatch, capfd):
    """HalfCheetah's file has a word that MuJoCo calls deprecated, to the terminal and into a file."""
    monkeypatch.chdir(tmp_path)
    before, said = mujoco.get_mju_user_warning(), []
    mujoco.set_mju_user_warning(said.append)
    try:
        assert gymnasium_env("HalfCheetah-v5").spec.id == "HalfCheetah-v5"
        assert ("".join(capfd.readouterr()), said) == ("", [])
        assert not list(tmp_path.iterdir())
        # Of other files it is said as before.
        mujoco.MjModel.from_xml_string(
            TOUCHING["sphere"].replace("<option", '<compiler settotalmass="1"/><option')
        )
        assert len(said) == 1
        assert "settotalmass" in said[0]
    finally:
        mujoco.set_mju_user_warning(before)
