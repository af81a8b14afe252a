"""Simulators behind Gymnasium's interfaces, held to Gymnasium's and Stable-Baselines3's own checkers."""

import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env as gymnasium_check
from stable_baselines3.common.env_checker import check_env as sb3_check

import robotics_envs.gym
from robotics_envs import ENVIRONMENTS, DivergenceError, make_env
from robotics_envs.adapters.gym_adapter import GymEnv, GymVectorEnv
from robotics_envs.gym import ANY, EPISODE_STEPS, gym_id
from robotics_envs.simulators.pendulum import Pendulum

IDS = [gym_id(name) for name in ENVIRONMENTS]


@pytest.fixture(autouse=True)
def no_screen(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")


def test_ids_are_the_names_in_camel_case():
    assert gym_id("cartpole_swingup") == "diffsim/CartpoleSwingup-v0"
    assert set(IDS) < set(gymnasium.registry)


def test_registering_loads_no_torch_and_the_package_root_registers_nothing():
    code = (
        "import sys, gymnasium, robotics_envs, diffsim\n"
        "assert not [i for i in gymnasium.registry if i.startswith('diffsim')]\n"
        "import robotics_envs.gym\n"
        "gymnasium.spec('diffsim/Pendulum-v0')\n"
        "assert 'torch' not in sys.modules\n"
        "env = gymnasium.make('robotics_envs.gym:diffsim/Pendulum-v0')\n"
        "print(env.reset(seed=0)[0].shape)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.stdout == "(3,)\n", done.stderr


def test_stated_time_limits_are_the_simulators():
    assert {name: make_env(name).episode_steps for name in ENVIRONMENTS} == EPISODE_STEPS
    assert gymnasium.spec("diffsim/Pendulum-v0").max_episode_steps == 200


@pytest.mark.parametrize("environment_id", IDS)
def test_gymnasiums_checker_is_content(environment_id):
    """Warnings are errors here; both render modes are tried. Actions in [-1, 1], which the checker asks for."""
    env = gymnasium.make(environment_id, unit_actions=True, render_mode="rgb_array")
    gymnasium_check(env.unwrapped)
    env.close()


@pytest.mark.parametrize("environment_id", IDS)
def test_stable_baselines_checker_is_content(environment_id):
    sb3_check(gymnasium.make(environment_id, unit_actions=True))


@pytest.mark.parametrize("environment_id", IDS)
def test_in_the_simulators_own_units_the_range_of_actions_is_all_that_checkers_remark(environment_id):
    with warnings.catch_warnings(record=True) as remarks:
        warnings.simplefilter("always")
        env = gymnasium.make(environment_id).unwrapped
        gymnasium_check(env, skip_render_check=True)
        sb3_check(env)
    assert all("normalized" in str(remark.message) for remark in remarks), [str(r.message) for r in remarks]
    box = env.simulator.action_box
    assert env.action_space.low == pytest.approx(np.float32(box.low))
    assert env.action_space.high == pytest.approx(np.float32(box.high))


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_batch_and_single_step_alike(name):
    """From the same states under the same actions, to rounding; as the simulator itself says."""
    single, batch = GymEnv(name), GymVectorEnv(name, num_envs=4)
    env = single.simulator
    states = env.reset(4, torch.Generator().manual_seed(3), torch.float64).numpy()
    batch.reset(seed=0, options={"state": states})
    batch.action_space.seed(0)
    rewards, observations = [], []
    actions = [batch.action_space.sample() for _ in range(3)]
    for action in actions:
        observation, reward, *_ = batch.step(action)
        rewards.append(reward)
        observations.append(observation)
    x, cost = torch.tensor(states), torch.zeros(4, dtype=torch.float64)
    for i, state in enumerate(states):
        first, _ = single.reset(options={"state": state})
        assert first == pytest.approx(env.observe(torch.tensor(state[None]))[0].numpy(), rel=1e-6, abs=1e-6)
        for k, action in enumerate(actions):
            observation, reward, *_ = single.step(action[i])
            assert reward == pytest.approx(rewards[k][i], rel=1e-9, abs=1e-9)
            assert observation == pytest.approx(observations[k][i], rel=1e-5, abs=1e-5)
    for action, reward in zip(actions, rewards, strict=True):
        x, cost = env.step(x, torch.tensor(action, dtype=torch.float64), env.params(x))
        assert -cost.numpy() == pytest.approx(reward, rel=1e-9, abs=1e-9)


def test_make_vec_gives_the_batch_and_sync_gives_the_singles():
    fast = gymnasium.make_vec("diffsim/Pendulum-v0", num_envs=3)
    slow = gymnasium.make_vec("diffsim/Pendulum-v0", num_envs=3, vectorization_mode="sync")
    assert isinstance(fast.unwrapped, GymVectorEnv)
    assert fast.observation_space == slow.observation_space
    assert fast.action_space == slow.action_space
    assert fast.reset(seed=0)[0].shape == (3, 3)
    fast.close()
    slow.close()


def test_the_pendulum_is_gymnasiums_through_the_adapter():
    ours, theirs = gymnasium.make("diffsim/Pendulum-v0"), gymnasium.make("Pendulum-v1")
    theirs.reset(seed=0)
    ours.reset(options={"state": theirs.unwrapped.state})
    ours.action_space.seed(1)
    for step in range(200):
        action = ours.action_space.sample()
        a, b = ours.step(action), theirs.step(action)
        assert a[0] == pytest.approx(b[0], abs=1e-4)
        assert a[1] == pytest.approx(b[1], abs=1e-4)
        assert a[2:4] == b[2:4] == (False, step == 199)


def test_a_seed_decides_the_episode_and_no_seed_goes_on():
    env = GymEnv("pendulum")
    first, second = env.reset(seed=5)[0], env.reset()[0]
    assert not np.array_equal(first, second)
    assert np.array_equal(env.reset(seed=5)[0], first)
    assert np.array_equal(env.reset()[0], second)
    assert not np.array_equal(env.reset(seed=6)[0], first)


def test_observations_are_the_users_own():
    """Writing into what was handed out or handed in changes nothing inside."""

    class Plain(Pendulum):
        observation_names = ("angle", "rate")

        def observe(self, x):
            return x

    env, start = GymEnv(Plain(), dtype=torch.float32), np.array([0.5, 0.0], dtype=np.float32)
    observation, info = env.reset(options={"state": start})
    observation[:], info["state"][:], start[:] = 7.0, 7.0, 7.0
    after, *_ = env.step(np.zeros(1, dtype=np.float32))
    assert abs(after[0]) < 1.0


def test_rollouts_end_one_by_one_and_start_again_on_the_next_step():
    class Falling(Pendulum):
        def done(self, x):
            return x[..., 0].abs() > 1.0

    envs = GymVectorEnv(Falling(), num_envs=3, episode_steps=4)
    still = np.zeros((3, 1), dtype=np.float32)
    with pytest.raises(gymnasium.error.ResetNeeded):
        envs.step(still)
    envs.reset(seed=0, options={"state": [[0.9, 3.0], [0.0, 0.0], [0.0, 0.0]]})
    _, reward, terminated, truncated, _ = envs.step(still)
    assert terminated.tolist() == [True, False, False]
    assert reward[0] < 0
    _, reward, terminated, truncated, info = envs.step(still)  # the first one starts anew
    assert reward[0] == 0.0
    assert not terminated[0]
    assert not truncated.any()
    assert not np.array_equal(info["state"][0], [0.9, 3.0])
    assert info["state"][1] == pytest.approx([0.0, 0.0])
    for last in (False, True):
        *_, truncated, _ = envs.step(still)
        assert truncated.tolist()[1:] == [last, last]


def test_a_single_environment_wants_a_reset_after_its_end():
    env = GymEnv("pendulum", episode_steps=2)
    action = np.zeros(1, dtype=np.float32)
    with pytest.raises(gymnasium.error.ResetNeeded, match="call reset"):
        env.step(action)
    env.reset(seed=0)
    assert [env.step(action)[3] for _ in range(2)] == [False, True]
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(action)


def test_parameters_may_differ_between_rollouts():
    """On the moon and on Mars in one batch."""
    envs = GymVectorEnv("pendulum", num_envs=2, parameters={"g": [1.62, 3.72]})
    envs.reset(seed=0, options={"state": [[0.5, 0.0], [0.5, 0.0]]})
    *_, info = envs.step(np.zeros((2, 1), dtype=np.float32))
    rates = info["state"][:, 1]
    assert rates == pytest.approx([0.05 * 1.5 * g * np.sin(0.5) for g in (1.62, 3.72)])


def test_ones_own_simulator_from_a_file(tmp_path):
    (tmp_path / "my_env.py").write_text(
        "from robotics_envs.simulators.pendulum import Pendulum\n"
        "class MyEnv(Pendulum):\n    name = 'mine'\n    episode_steps = 3\n"
    )
    env = gymnasium.make(ANY, env=f"{tmp_path}/my_env.py:MyEnv")
    env.reset(seed=0)
    assert [env.step(np.zeros(1, dtype=np.float32))[3] for _ in range(3)] == [False, False, True]


def test_pictures_show_the_state():
    """The rod of the upright pendulum is above the pivot, that of the hanging one below."""
    env = GymEnv("pendulum", render_mode="rgb_array")
    halves = []
    for angle in (0.0, np.pi):
        env.reset(options={"state": [angle, 0.0]})
        ink = (env.render() != 255).any(axis=-1)
        halves.append(ink[:240].sum() > ink[240:].sum())
    assert halves == [True, False]


def test_a_window_shows_the_picture_and_closes_twice():
    import pygame

    env = GymEnv("pendulum", render_mode="human")
    env.reset(options={"state": [0.0, 0.0]})
    shown = pygame.surfarray.array3d(pygame.display.get_surface())
    reference = GymEnv("pendulum", render_mode="rgb_array")
    reference.reset(options={"state": [0.0, 0.0]})
    assert np.array_equal(shown.swapaxes(0, 1), reference.render())
    env.close()
    env.close()


def test_divergence_is_an_error_with_its_remedy():
    env = GymEnv("pendulum", dtype=torch.float32)
    env.reset(options={"state": [1e38, 3e38]})
    with pytest.raises(
        DivergenceError, match=r"pendulum diverged in 1 of 1 rollouts: .*Start inside state_box"
    ):
        env.step(np.zeros(1, dtype=np.float32))


def test_an_observation_beyond_float32_is_an_error():
    env = GymEnv("pendulum")
    with pytest.raises(DivergenceError, match=r"observation rate of rollout 0 is 1e\+60, beyond float32"):
        env.reset(options={"state": [0.0, 1e60]})


@pytest.mark.parametrize("limit", [None, 50, 300])
def test_the_time_limit_is_the_tasks_or_the_one_given(limit):
    """Shorter and longer; the spec states it."""
    env = gymnasium.make("diffsim/Pendulum-v0", **({} if limit is None else {"max_episode_steps": limit}))
    wanted = limit or 200
    assert env.spec.max_episode_steps == wanted
    env.reset(seed=0)
    ends = [env.step(np.zeros(1, dtype=np.float32))[3] for _ in range(wanted)]
    assert ends == [False] * (wanted - 1) + [True]


def test_what_the_user_hands_in_stays_the_users():
    """Arrays of parameters are copied; a draw that scribbles over its state changes nothing."""

    class Scribbling(Pendulum):
        def draw(self, x, u):
            shapes = super().draw(x, u)
            x.fill(0.0)
            u.fill(0.0)
            return shapes

    g = np.full(2, 9.8)
    envs = GymVectorEnv(Scribbling(), num_envs=2, parameters={"g": g}, render_mode="rgb_array")
    g[:] = 0.0
    envs.reset(options={"state": [[0.5, 0.0], [0.5, 0.0]]})
    envs.render()
    *_, info = envs.step(np.zeros((2, 1), dtype=np.float32))
    assert info["state"][:, 1] == pytest.approx(0.05 * 1.5 * 9.8 * np.sin(0.5))
    learned = torch.tensor(9.0, requires_grad=True) * 1.0
    assert not GymEnv("pendulum", parameters={"g": learned})._simulation.p["g"].requires_grad


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: GymEnv("pendulum", parameters={"m": -1.0}), r"parameter m = -1.0 kg is outside its range"),
        (lambda: GymEnv("pendulum", parameters={"m": float("nan")}), "parameter m = nan"),
        (
            lambda: GymEnv("pendulum", parameters={"g": "a"}),
            "parameter g is a number or one for each rollout",
        ),
        (
            lambda: GymVectorEnv("pendulum", num_envs=4, parameters={"g": [1.0, 2.0]}),
            r"one for each of 4 rollouts, got the shape \[2\]",
        ),
        (lambda: GymVectorEnv("pendulum", num_envs=True), "num_envs = True"),
        (lambda: GymEnv("pendulum").reset(options={"state": None}), "holds 2 finite numbers"),
        (lambda: GymEnv("pendulm"), "did you mean 'pendulum'"),
        (lambda: GymEnv("pendulum", parameters={"mass": 1.0}), "has no parameter 'mass'"),
        (lambda: GymEnv("pendulum", render_mode="ascii"), "unknown render_mode 'ascii'"),
        (lambda: GymEnv("pendulum", episode_steps=0), "episode_steps = 0"),
        (lambda: GymVectorEnv("pendulum", num_envs=0), "num_envs = 0"),
        (lambda: GymVectorEnv("pendulum", render_mode="human"), "drawn as 'rgb_array' only"),
        (
            lambda: GymEnv("pendulum").reset(options={"state": [1.0]}),
            r"holds 2 finite numbers \(angle, rate\)",
        ),
        (lambda: GymEnv("pendulum").reset(options={"sate": [1.0, 0.0]}), "knows the option 'state'"),
    ],
)
def test_bad_input_is_named(call, complaint):
    with pytest.raises((ValueError, TypeError), match=complaint):
        call()


@pytest.mark.parametrize("action", [[np.nan], [0.0, 0.0], 0.0])
def test_bad_actions_are_named(action):
    env = GymEnv("pendulum")
    env.reset(seed=0)
    with pytest.raises(ValueError, match="actions are finite numbers of shape"):
        env.step(np.array(action))


def test_registering_twice_changes_nothing():
    before = dict(gymnasium.registry)
    robotics_envs.gym.register_envs()
    assert gymnasium.registry == before


def test_every_parameter_keeps_its_default():
    for name in ENVIRONMENTS:
        env = make_env(name)
        p = GymEnv(name)._simulation.p
        assert {k: float(v) for k, v in p.items()} == {k: c.value for k, c in env.constants.items()}


def test_numpy_integers_and_classes_serve():
    envs = gymnasium.make_vec("diffsim/Pendulum-v0", num_envs=np.int64(2), episode_steps=np.int64(3))
    first = envs.reset(seed=np.int64(5))[0]
    assert np.array_equal(first, GymVectorEnv(Pendulum, 2).reset(seed=5)[0])
    assert type(envs.num_envs) is int
    assert np.array_equal(GymEnv(Pendulum).reset(seed=np.int32(5))[0], GymEnv("pendulum").reset(seed=5)[0])
    for wrong in (True, np.True_, 2.0, 0):
        with pytest.raises(ValueError, match=r"num_envs = .*must be a whole number of at least 1"):
            GymVectorEnv("pendulum", wrong)
        with pytest.raises(ValueError, match=r"episode_steps = .*must be a whole number of at least 1"):
            GymEnv("pendulum", episode_steps=wrong)


def test_parameters_are_exact_whatever_the_default_dtype():
    """A number must not pass through float32 on its way to float64."""
    for given in (9.81, [9.81, 9.81], np.float64(9.81)):
        envs = GymVectorEnv("pendulum", 2, parameters={"g": given})
        assert set(envs._simulation.p["g"].reshape(-1).tolist()) == {9.81}


def test_representations_name_simulator_and_sizes():
    envs = GymVectorEnv("cartpole_balance", 3)
    assert repr(envs) == str(envs)
    for part in ("cartpole_balance", "num_envs=3", "observations [3, 5]", "actions [3, 1]", "float64 on cpu"):
        assert part in repr(envs)
    assert "pendulum" in repr(GymEnv("pendulum", parameters={"g": 3.7}))


def test_advice_to_install_is_that_of_this_installation(monkeypatch):
    from lazy_registry.installation import install_command
    from robotics_envs.drawing import View, rasterise

    for module in ("PIL", "pygame"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError) as caught:
        rasterise([], View((0.0, 0.0), (1.0, 1.0)))
    assert install_command("render") in str(caught.value)
    env = GymEnv("pendulum", render_mode="human")
    monkeypatch.setattr(env._simulation, "picture", lambda i: np.zeros((4, 4, 3), dtype=np.uint8))
    with pytest.raises(gymnasium.error.DependencyNotInstalled) as caught:
        env.reset(seed=0)
    assert install_command("render") in str(caught.value)
