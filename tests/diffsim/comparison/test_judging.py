"""Measuring policies: everybody from the same starts, in the simulator or in Gymnasium."""

import numpy as np
import pytest
import torch

from diffsim.assembly import assemble
from diffsim.comparison.clock import Budget, Meter
from diffsim.comparison.contenders import stable_baselines, white_box
from diffsim.comparison.judging import GYM_SEED, SEED, SimulatorJudge, make_judge, protocol
from diffsim.config import load_config
from diffsim.rollouts import Rollout
from diffsim.runs.evaluation import successes_of
from diffsim.runs.validation import HELD_OUT


def test_scores_are_the_returns_and_successes_of_whole_episodes():
    assembly = assemble(load_config({"env": "double_pendulum", "dtype": "float64"}))
    env, policy = assembly.env, assembly.policy
    judge = SimulatorJudge(env, starts=8, backend="eager")
    score, success = judge(lambda o: policy(torch.as_tensor(o, dtype=torch.float64)).detach().numpy())
    returns, lengths, states = Rollout(env, policy).episodes(judge.starts, keep_states=True)
    assert lengths.max() < env.episode_steps  # an end before the time limit is in it
    assert score == pytest.approx(float(returns.mean()), rel=1e-4)
    assert success == float(successes_of(env, states).double().mean())


def test_a_judge_starts_from_the_same_states_every_time_and_for_everybody():
    one, other = SimulatorJudge("reacher", backend="eager"), SimulatorJudge("reacher", backend="eager")
    seen = []

    def act(observations):
        seen.append(observations.copy())
        return np.zeros((len(observations), 2), dtype=np.float32)

    one(act)
    one(act)
    other(act)
    assert np.array_equal(seen[0], seen[50])
    assert np.array_equal(seen[0], seen[100])
    assert len(seen[0]) == protocol("reacher").episodes


def test_the_starts_are_apart_from_those_of_training_and_validation():
    largest_seed = 2**31
    assert largest_seed + HELD_OUT < SEED
    assert protocol("pendulum").seed == SEED
    assert largest_seed <= GYM_SEED


class Recording:
    """A judge that keeps the observations of the first interval."""

    def __init__(self, task):
        self.judge, self.first = make_judge(task, backend="eager"), []

    def __call__(self, act):
        kept = []
        result = self.judge(lambda o: (kept.append(o.copy()), act(o))[1])
        self.first.append(kept[0])
        return result


def test_white_box_and_black_box_are_judged_from_equal_starts():
    seen = []
    for trainer, settings in (
        (white_box, {"algorithm": {"name": "full_horizon", "batch": 4, "horizon": 5}, "backend": "eager"}),
        (stable_baselines, {"algorithm": "ppo", "n_envs": 2, "n_steps": 8, "batch_size": 16}),
    ):
        judge = Recording("reacher")
        trainer.train("reacher", settings, 3, Meter(Budget(steps=30), judge))
        seen += judge.first
    assert len(seen) > 4
    assert all(np.array_equal(seen[0], other) for other in seen)


def test_tasks_of_gymnasium_are_judged_there():
    judge = make_judge("gym:InvertedPendulum-v5")
    score, success = judge(lambda o: np.zeros((len(o), 1), dtype=np.float32))
    again, _ = judge(lambda o: np.zeros((len(o), 1), dtype=np.float32))
    assert 5 < score == again < 200  # 1 for each interval until the pole falls
    assert success == 0.0
    # The pole balanced by hand: control of MuJoCo's motor in its own units.
    gains = np.array([0.5, 12.0, 0.8, 2.0])
    score, success = judge(lambda o: np.clip(o @ gains, -3, 3)[:, None])
    assert score == 1000.0
    assert success == 1.0
    assert protocol("gym:InvertedPendulum-v5").judge == "gymnasium:InvertedPendulum-v5"
