"""The adapters on compiled code: the same episodes as in torch, to rounding."""

import copy
import logging
import pickle

import numpy as np
import pytest
import torch

from examples.cartpole import CartPole
from robotics_envs import DivergenceError, make_env
from robotics_envs.adapters.gym_adapter import GymEnv, GymVectorEnv, Simulation
from robotics_envs.adapters.sb3_adapter import SB3VecEnv
from robotics_envs.simulators.pendulum import Pendulum
from solvers.native import build

SMALL = ["pendulum", "cartpole_swingup", "quadrotor", "rocket_landing"]


def agree(one, two, tolerance=1e-5):
    for a, b in zip(one, two, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        if a.dtype == bool:
            assert (a == b).all()
        else:
            assert np.allclose(a, b, rtol=tolerance, atol=tolerance)


def pair(make, **arguments):
    return [make(backend=backend, **arguments) for backend in ("eager", "native")]


@pytest.mark.parametrize("name", SMALL)
def test_vector_episodes_with_ends_and_restarts_are_the_same(name, caplog):
    """Ends within the episode (where a simulator has some), truncations, and the observations after restarts."""
    envs = pair(lambda backend: GymVectorEnv(name, 5, episode_steps=30, backend=backend))
    random = np.random.default_rng(0)
    agree(*(env.reset(seed=3)[:1] for env in envs))
    ends = 0
    for _ in range(70):
        actions = random.uniform(envs[0].action_space.low, envs[0].action_space.high).astype(np.float32)
        steps = [env.step(actions) for env in envs]
        agree(*(step[:4] for step in steps))
        agree(*([step[4]["state"]] for step in steps))
        agree(*([env._simulation.u] for env in envs))
        ends += int((steps[0][2] | steps[0][3]).sum())
        assert envs[1]._simulation._made[1] is not None
    assert ends >= 10
    assert not caplog.records


@pytest.mark.parametrize("name", SMALL)
def test_terminations_come_in_the_same_step(name):
    """From states near the edge of the state box, where simulators with ends end soon."""
    envs = pair(lambda backend: Simulation(name, 64, backend=backend))
    states = envs[0].env.state_box.sample(64, torch.Generator().manual_seed(0), torch.float64) * 1.2
    for env in envs:
        env.reset(np.ones(64, dtype=bool), {"state": states})
    low, high = (np.array(q) for q in (envs[0].env.action_box.low, envs[0].env.action_box.high))
    random = np.random.default_rng(1)
    for _ in range(20):
        actions = random.uniform(low, high, (64, len(low)))
        agree(*(env.step(actions) for env in envs))
        agree(*([env.observation()] for env in envs))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_stable_baselines_episodes_are_the_same(dtype):
    envs = pair(
        lambda backend: SB3VecEnv("cartpole_swingup", 3, episode_steps=20, dtype=dtype, backend=backend)
    )
    random = np.random.default_rng(0)
    tolerance = 1e-5 if dtype == torch.float64 else 1e-3
    for env in envs:
        env.seed(1)
    agree(*([env.reset()] for env in envs))
    for k in range(45):
        actions = random.uniform(-1, 1, (3, 1)).astype(np.float32)
        steps = [(env.step_async(actions), env.step_wait())[1] for env in envs]
        agree(*(step[:3] for step in steps), tolerance)
        for one, two in zip(*(step[3] for step in steps), strict=True):
            assert one.keys() == two.keys()
            if one:
                assert (k + 1) % 20 == 0
                assert one["TimeLimit.truncated"] == two["TimeLimit.truncated"]
                agree(
                    *([info["terminal_observation"], info["episode"]["r"]] for info in (one, two)), tolerance
                )


def test_a_single_environment_and_given_states():
    envs = pair(lambda backend: GymEnv("pendulum", backend=backend))
    for state in (None, [2.0, -1.0]):
        options = None if state is None else {"state": state}
        agree(*(env.reset(seed=0, options=options)[:1] for env in envs))
        for _ in range(200):
            steps = [env.step(np.array([0.7], dtype=np.float32)) for env in envs]
            agree(*(step[:4] for step in steps))
            assert [type(q) for q in steps[0][1:4]] == [type(q) for q in steps[1][1:4]]
        assert steps[1][3]
        with pytest.raises(Exception, match="reset"):
            envs[1].step(np.zeros(1, dtype=np.float32))


def test_what_is_returned_is_not_written_into_later():
    env = GymVectorEnv("pendulum", 2, backend="native")
    env.reset(seed=0)
    actions = np.ones((2, 1), dtype=np.float32)
    first = env.step(actions)
    kept = copy.deepcopy(first)
    env.step(-actions)
    agree(first[:4], kept[:4], 0)
    agree([first[4]["state"]], [kept[4]["state"]], 0)


def test_parameters_for_each_rollout_and_changes_of_them():
    masses = np.array([0.5, 1.0, 2.0])
    envs = pair(lambda backend: Simulation("pendulum", 3, {"m": masses, "l": 1.3}, backend=backend))
    for env in envs:
        env.reset(np.ones(3, dtype=bool), {"state": [1.0, 0.5]})
    actions = np.full((3, 1), 0.3)
    for k in range(6):
        agree(*(env.step(actions) for env in envs))
        agree(*([env.state()] for env in envs))
        assert len(np.unique(envs[1].state()[:, 1])) == 3
        if k == 2:
            for env in envs:
                env.p["m"][0] = 3.0
                env.p["l"].fill_(0.8)


@pytest.mark.parametrize("change", ["attribute", "class", "solver"])
def test_a_change_of_the_simulator_is_seen(change, monkeypatch):
    class Own(Pendulum):
        gain = 1.0

        def cost(self, x, u, p):
            return self.gain * super().cost(x, u, p)

    envs = pair(lambda backend: Simulation(Own(), 2, backend=backend))
    for env in envs:
        env.reset(np.ones(2, dtype=bool), {"state": [1.0, 0.5]})
    for k in range(6):
        agree(*(env.step(np.full((2, 1), 0.3)) for env in envs))
        if k == 2:
            before = envs[1]._made
            if change == "class":
                Own.gain = 3.0
            for env in envs:
                if change == "attribute":
                    env.env.gain = 2.0
                elif change == "solver":
                    env.env.solver = make_env("cartpole_swingup").solver
    assert envs[1]._made is not before


def test_actions_that_are_not_finite_or_of_another_shape_are_refused():
    simulation = Simulation("pendulum", 2, backend="native")
    simulation.reset(np.ones(2, dtype=bool))
    for wrong in (np.full((2, 1), np.nan), np.array([[0.0], [np.inf]]), np.zeros((2, 2)), np.zeros(2)):
        before = simulation.state()
        with pytest.raises(ValueError, match="actions are finite numbers"):
            simulation.step(wrong)
        assert (simulation.state() == before).all()
        assert simulation.elapsed.max() == 0


class Exploding(CartPole):
    def dynamics(self, t, x, u, p):
        return torch.exp(1e3 * x.abs()) * (1.0 + u)


def test_states_that_are_not_finite_are_named(caplog):
    messages = []
    for backend in ("eager", "native"):
        simulation = Simulation(Exploding(), 2, backend=backend)
        simulation.reset(np.ones(2, dtype=bool), {"state": [1.0, 1.0, 1.0, 1.0]})
        with pytest.raises(DivergenceError) as caught:
            simulation.step(np.ones((2, 1)))
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


class Branching(Pendulum):
    def cost(self, x, u, p):
        return super().cost(x, u, p) if float(x.sum()) > 0 else super().cost(x, u, p) * 2


def test_what_has_no_code_is_computed_in_torch_and_said_once(caplog):
    envs = pair(lambda backend: Simulation(Branching(), 2, backend=backend))
    with caplog.at_level(logging.WARNING, "robotics_envs"):
        for env in envs:
            env.reset(np.ones(2, dtype=bool), {"state": [1.0, 0.5]})
        for _ in range(4):
            agree(*(env.step(np.ones((2, 1))) for env in envs), 0)
    assert len([r for r in caplog.records if "falls back" in r.message]) == 1


def test_without_a_compiler_everything_is_computed_in_torch(monkeypatch):
    def none(source):
        raise build.NoCompilerError("none")

    monkeypatch.setattr(build, "load", none)
    envs = pair(lambda backend: Simulation("pendulum", 2, backend=backend))
    for env in envs:
        env.reset(np.ones(2, dtype=bool), {"state": [1.0, 0.5]})
    for _ in range(3):
        agree(*(env.step(np.ones((2, 1))) for env in envs), 0)


def test_copies_go_on_from_the_same_state():
    simulation = Simulation("pendulum", 2, backend="native")
    simulation.reset(np.ones(2, dtype=bool), {"state": [1.0, 0.5]})
    simulation.step(np.ones((2, 1)))
    others = [copy.deepcopy(simulation), pickle.loads(pickle.dumps(simulation))]
    simulation.step(np.ones((2, 1)))
    for other in others:
        assert (other.state() != simulation.state()).any()
        other.step(np.ones((2, 1)))
        agree([other.state()], [simulation.state()], 1e-12)


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="unknown backend 'cuda'; known: eager, native"):
        GymEnv("pendulum", backend="cuda")


@pytest.mark.parametrize(
    "name", ["double_pendulum", "maglev", "arm7"]
)  # arm7's field is called, not written out
def test_larger_simulators(name, caplog):
    envs = pair(lambda backend: Simulation(name, 3, backend=backend))
    for env in envs:
        env.seed(np.random.default_rng(0))
        env.reset(np.ones(3, dtype=bool))
    low, high = (np.array(q) for q in (envs[0].env.action_box.low, envs[0].env.action_box.high))
    random = np.random.default_rng(1)
    for _ in range(5):
        actions = random.uniform(low, high, (3, len(low)))
        agree(*(env.step(actions) for env in envs))
        agree(*([env.observation()] for env in envs))
    assert envs[1]._made[1] is not None, [r.message for r in caplog.records]
