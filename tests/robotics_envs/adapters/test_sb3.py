"""Stable-Baselines3 on a batch of rollouts: its own vector environment, and PPO as it comes."""

import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy

from robotics_envs.adapters.gym_adapter import GymEnv
from robotics_envs.adapters.sb3_adapter import SB3VecEnv
from robotics_envs.simulators.pendulum import Pendulum


def test_the_batch_steps_as_the_single_environment_does():
    """Also across an end: the observation is of the new start, and the old one's last is in the info."""
    envs = SB3VecEnv("pendulum", num_envs=3, episode_steps=4)
    envs.seed(7)
    first = envs.reset()
    again = SB3VecEnv("pendulum", num_envs=3, episode_steps=4)
    again.seed(7)
    assert np.array_equal(again.reset(), first)
    singles = [GymEnv("pendulum", unit_actions=True, episode_steps=4) for _ in range(3)]
    for env, (cos, sin, rate) in zip(singles, first, strict=True):
        env.reset(options={"state": [np.arctan2(sin, cos), rate]})
    rng, total = np.random.default_rng(0), np.zeros(3)
    for step in range(4):
        actions = rng.uniform(-1, 1, (3, 1)).astype(np.float32)
        observations, rewards, ended, infos = envs.step(actions)
        apart = [env.step(action) for env, action in zip(singles, actions, strict=True)]
        total += rewards
        assert rewards == pytest.approx([a[1] for a in apart], rel=1e-4)
        assert ended.tolist() == [step == 3] * 3
        shown = [i["terminal_observation"] for i in infos] if step == 3 else observations
        assert np.array(shown) == pytest.approx(np.array([a[0] for a in apart]), abs=1e-4)
    assert [i["TimeLimit.truncated"] for i in infos] == [True] * 3
    assert [i["episode"]["r"] for i in infos] == pytest.approx(total, rel=1e-4)
    assert [i["episode"]["l"] for i in infos] == [4] * 3
    assert np.abs(observations - np.array(shown)).max() > 0.1
    assert not envs.step(actions)[2].any()


def test_options_hold_for_one_reset():
    envs = SB3VecEnv("pendulum", num_envs=2)
    envs.set_options({"state": [0.5, 0.0]})
    expected = [np.cos(0.5), np.sin(0.5), 0.0]
    assert envs.reset() == pytest.approx(np.array([expected, expected]), abs=1e-6)
    assert np.abs(envs.reset() - expected).max() > 1e-3


def test_an_end_for_good_is_no_time_limit():
    class Falling(Pendulum):
        def done(self, x):
            return x[..., 0].abs() > 0.5

    envs = SB3VecEnv(Falling(), num_envs=64)
    envs.seed(0)
    envs.reset()
    *_, ended, infos = envs.step(np.zeros((64, 1), dtype=np.float32))
    assert ended.any()
    assert not any(infos[i]["TimeLimit.truncated"] for i in np.flatnonzero(ended))


@pytest.mark.slow
def test_a_stock_ppo_learns_to_balance_the_cartpole():
    """Default settings but for 64 steps of 32 rollouts, which is their default of 2,048 in all; of 1,000 possible.

    How many steps it takes depends on the processor's rounding: 49,152 on one, 73,728 on another.
    """
    model = PPO("MlpPolicy", SB3VecEnv("cartpole_balance", num_envs=32), n_steps=64, seed=0, device="cpu")
    judge = SB3VecEnv("cartpole_balance", num_envs=16)
    returns = [evaluate_policy(model, judge, n_eval_episodes=16)[0]]
    while returns[-1] < 800 and model.num_timesteps < 60 * 2048:
        model.learn(6 * 2048, reset_num_timesteps=False)
        returns.append(evaluate_policy(model, judge, n_eval_episodes=16)[0])
    assert returns[0] < 650
    assert returns[-1] >= 800, returns


@pytest.mark.parametrize("backend", ["eager", "native"])
def test_episodes_may_start_anywhere_in_the_state_box(backend):
    envs = SB3VecEnv("pendulum", num_envs=500, episode_steps=1, starts="state_box", backend=backend)
    task = SB3VecEnv("pendulum", num_envs=500, episode_steps=1, backend=backend)
    actions = np.zeros((500, 1), dtype=np.float32)
    for made, largest in ((envs, Pendulum.state_box.high[1]), (task, Pendulum.start_box.high[1])):
        made.seed(1)
        for rates in (made.reset()[:, 2], made.step(actions)[0][:, 2], made.step(actions)[0][:, 2]):
            assert np.abs(rates).max() <= largest
            assert rates.std() == pytest.approx(largest / np.sqrt(3), rel=0.1)
    envs.set_options({"state": [0.5, 0.0]})
    assert envs.reset()[:, 2] == pytest.approx(np.zeros(500))


def test_unknown_starts_are_refused():
    with pytest.raises(ValueError, match=r"starts = 'everywhere'; known: task, state_box"):
        SB3VecEnv("pendulum", num_envs=2, starts="everywhere")
