"""A trained policy outside: in Gymnasium, as a NumPy function, with an honest interval."""

import math

import gymnasium
import numpy as np
import pytest
import torch
from scipy import stats

import diffsim
from diffsim.errors import ConfigError, EvaluationError, RunFileError
from diffsim.rollouts import Rollout
from diffsim.runs.evaluation import Evaluation, LoadedRun, evaluate_in_simulator
from robotics_envs import ENVIRONMENTS
from robotics_envs.base import Env, Success
from robotics_envs.simulators.pendulum import Pendulum


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return diffsim.train(
        "pendulum", out=tmp_path_factory.mktemp("run"), updates=3, quiet=True,
        algorithm={"batch": 8}, evaluation={"every": 0, "episodes": 2},
    )  # fmt: skip


def test_a_policy_is_a_function_of_numpy_arrays(run):
    policy = diffsim.load_policy(run.folder)
    one = policy(np.array([1.0, 0.0, 0.5]))
    many = policy(np.array([[1.0, 0.0, 0.5], [0.0, 1.0, -0.5]], dtype=np.float32))
    assert (one.shape, many.shape) == ((1,), (2, 1))
    assert one.dtype == many.dtype == np.float32
    assert one == pytest.approx(many[0], abs=1e-6)
    assert policy([1, 0, 0]).shape == (1,)
    assert policy(np.zeros((0, 3))).shape == (0, 1)


@pytest.mark.parametrize("shape", [(), (2,), (4,), (2, 2), (1, 1, 3)])
def test_a_wrong_observation_is_named(run, shape):
    with pytest.raises(
        EvaluationError, match=r"takes \[3\] or \[B, 3\] observations \(cos_angle, sin_angle, rate\)"
    ):
        diffsim.load_policy(run.path)(np.zeros(shape))


def test_checkpoints_are_chosen_by_name(run):
    observation = np.array([0.5, 0.5, 1.0])
    last, best = (diffsim.load_policy(run.path, name)(observation) for name in ("last", "best"))
    assert last == best  # the only evaluation was after the last update
    with pytest.raises(RunFileError, match="unknown checkpoint 'bets'; did you mean 'best'"):
        diffsim.load_policy(run.path, "bets")


def test_the_loaded_policy_is_the_trained_one(run):
    loaded, weights = LoadedRun(run.path), run.checkpoint()["policy"]
    for name, tensor in loaded.policy.module.state_dict().items():
        assert torch.equal(tensor, weights[name])


def test_gymnasium_and_our_simulator_agree_on_whole_episodes(run):
    """The same starts, the same policy: returns agree as long as the rollouts are the same physics."""
    episodes = 4
    result = diffsim.evaluate(run, gym="Pendulum-v1", episodes=episodes, seed=50)
    loaded = LoadedRun(run.path)
    module, env = loaded.policy.module.double(), loaded.env
    starts = []
    for i in range(episodes):
        gym_env = gymnasium.make("Pendulum-v1")
        gym_env.reset(seed=50 + i)
        starts.append(gym_env.unwrapped.state)
    x = torch.as_tensor(np.array(starts))
    with torch.no_grad():
        ours = Rollout(env, module, backend="eager").returns(x).numpy()
    # Float32 actions and observations there, float64 here: close, not equal.
    assert np.abs(ours - result.returns).max() < 0.01 * np.abs(ours).max()
    assert result.lengths.tolist() == [200] * episodes


def test_evaluations_repeat_and_their_seeds_differ(run):
    first = diffsim.evaluate(run, gym="Pendulum-v1", episodes=3, seed=1)
    again = diffsim.evaluate(run, gym="Pendulum-v1", episodes=3, seed=1)
    shifted = diffsim.evaluate(run, gym="Pendulum-v1", episodes=3, seed=2)
    assert (first.returns == again.returns).all()
    assert first.returns[1:] == pytest.approx(shifted.returns[:-1])  # episode i starts from seed + i
    inside = diffsim.evaluate(run, episodes=3, seed=1)
    assert inside.where == "diffsim:pendulum"
    stored = run.evaluations()
    assert [e["mean"] for e in stored[-4:]] == [first.mean, again.mean, shifted.mean, inside.mean]
    assert (stored[-1]["returns"] == inside.returns).all()


def test_more_episodes_than_are_stepped_together(run):
    result = diffsim.evaluate(run, gym="Pendulum-v1", episodes=130, seed=0)
    last = diffsim.evaluate(run, gym="Pendulum-v1", episodes=1, seed=129)
    assert len(result.returns) == 130
    assert result.returns[-1] == pytest.approx(last.returns[0], rel=1e-4)


def test_the_interval_is_students():
    returns = np.random.default_rng(0).normal(-150, 30, 50)
    evaluation = Evaluation("x", 0, returns, np.ones(50))
    expected = stats.ttest_1samp(returns, 0).confidence_interval(0.95)
    assert evaluation.interval() == pytest.approx((expected.low, expected.high))


def test_one_episode_has_no_interval(run):
    evaluation = diffsim.evaluate(run, gym="Pendulum-v1", episodes=1)
    assert all(map(math.isnan, evaluation.interval()))
    assert "no interval from one episode" in str(evaluation)


@pytest.mark.parametrize(
    ("gym", "complaint"),
    [
        ("Pendulm-v1", "Gymnasium cannot make 'Pendulm-v1'.*Pendulum"),
        ("CartPole-v1", r"takes actions Discrete\(2\); this policy gives 1 real numbers"),
        ("MountainCarContinuous-v0", r"this policy takes 3 \(cos_angle, sin_angle, rate\)"),
        ("nonsense", "Gymnasium cannot make 'nonsense'"),
    ],
)
def test_environments_that_do_not_fit_are_named(run, gym, complaint):
    before = run.path.read_bytes()
    with pytest.raises(EvaluationError, match=complaint):
        diffsim.evaluate(run, gym=gym, episodes=2)
    assert run.path.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "steps"),
    [("cartpole_balance", 1000), ("acrobot", 1000), ("double_pendulum", None), ("reacher", 50)],
)
def test_policies_run_in_the_foreign_twins_of_mujoco(name, steps, tmp_path, monkeypatch):
    """An untrained policy: the twin takes its actions, and it the twin's observations."""
    monkeypatch.setattr(ENVIRONMENTS.load(name), "episode_steps", 5)  # of our own evaluations
    trained = diffsim.train(
        name, out=tmp_path, updates=1, quiet=True, backend="eager",
        algorithm={"batch": 8}, evaluation={"every": 0, "episodes": 2},
    )  # fmt: skip
    result = diffsim.evaluate(trained, gym=LoadedRun(trained.path).env.gym_id, episodes=2, seed=0)
    assert np.isfinite(result.returns).all()
    if steps is not None:
        assert result.lengths.tolist() == [steps] * 2


@pytest.mark.parametrize("arguments", [{"episodes": 0}, {"episodes": 2.5}, {"seed": -1}, {"episodes": "3"}])
def test_impossible_numbers_are_named(run, arguments):
    ((name, value),) = arguments.items()
    with pytest.raises(EvaluationError, match=f"{name} = {value!r}"):
        diffsim.evaluate(run, **arguments)


def test_plotting_nothing_is_named(tmp_path):
    with pytest.raises(ConfigError, match="at least one run"):
        diffsim.plot([])


class Held:
    """A loaded run whose policy is a given torque, in a given simulator."""

    def __init__(self, env, torque=0.0):
        from types import SimpleNamespace

        self.env, self.device, self.config = env, torch.device("cpu"), SimpleNamespace(threads=None)
        module = torch.nn.Linear(3, 1)
        torch.nn.init.zeros_(module.weight)
        torch.nn.init.constant_(module.bias, torque)
        module.mean = torch.zeros(3)
        self.policy = SimpleNamespace(module=module)


class Hanging(Pendulum):
    """At rest upright (an equilibrium) or hanging, in turn."""

    def reset(self, batch, generator, dtype=torch.float32):
        angle = math.pi * (torch.arange(batch) % 4 == 3).to(dtype)
        return torch.stack((angle, torch.zeros(batch, dtype=dtype)), dim=-1)


def test_successes_are_those_of_the_simulators_states():
    result = evaluate_in_simulator(Held(Hanging()), 8, 0)
    assert result.successes.dtype == bool
    assert result.successes.tolist() == [True, True, True, False] * 2
    assert str(result).endswith(
        "from seed 0; success from 6 of 8 starts, 8 needed (upright, cos(angle) > 0.98, throughout the last 2 s)"
    )


def test_without_a_criterion_nothing_is_said(run):
    class Silent(Hanging):
        success_criterion = None
        success = Env.success

    silent, spoken = (evaluate_in_simulator(Held(env), 4, 3) for env in (Silent(), Hanging()))
    assert silent.successes is None
    assert (silent.returns == spoken.returns).all()
    assert str(silent).endswith("4 episodes of diffsim:pendulum from seed 3")
    twin = diffsim.evaluate(run, gym="Pendulum-v1", episodes=3, seed=1)
    assert twin.successes is None
    assert str(twin).endswith("3 episodes of Pendulum-v1 from seed 1")
    assert "successes" not in run.evaluations()[-1]


def test_the_number_of_successes_is_stored(run):
    result = diffsim.evaluate(run, episodes=20, seed=1)
    assert result.successes.shape == (20,)
    assert run.evaluations()[-1]["successes"] == result.successes.sum()
    assert run.evaluations()[-1]["needed"] == 19


@pytest.mark.parametrize(
    ("members", "complaint"),
    [
        ({"success": lambda self, states: states[-1, :, 0] > 0, "success_criterion": "up"}, "= 'up', a robotics_envs"),
        ({"success": lambda self, states: states[..., 0] > 0}, r"success returned torch.bool \[201, 4\], .* = \[4\]"),
        ({"success": lambda self, states: states[-1, :, 0]}, r"success returned torch.float32 \[4\]"),
        ({"success": lambda self, states: [True] * 4}, "success returned list"),
        ({"success": lambda self, states: states.cosine() > 0}, r"test_evaluation.py:\d+, in .*cosine"),
        ({"success": Env.success}, "declares no success: write success"),
    ],
)  # fmt: skip
def test_a_success_that_cannot_be_computed_is_named(members, complaint):
    env = type("Mine", (Hanging,), members)()
    with pytest.raises(EvaluationError, match=complaint):
        evaluate_in_simulator(Held(env), 4, 0)


def test_an_evaluation_says_how_many_are_needed():
    flags = np.arange(100) < 98
    result = Evaluation("x", 0, np.zeros(100), np.ones(100), flags, Success("upright", 0.95, "this test"))
    assert str(result).endswith("from seed 0; success from 98 of 100 starts, 95 needed (upright)")
