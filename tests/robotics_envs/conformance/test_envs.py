"""Every simulator of the registry keeps the contract; the suite that says so can fail."""

import copy
import math
import pickle
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
import torch

from robotics_envs import ENVIRONMENTS, check_env, julia_sources, make_env
from robotics_envs.base import NEEDED, Box, Env, Parameter, Success
from robotics_envs.conformance import CHECKS, ConformanceError
from robotics_envs.simulators.pendulum import Pendulum
from solvers.methods.runge_kutta import Euler
from solvers.methods.symplectic import SemiImplicitEuler

LONG = (
    "arm7",
    "arm7_point",
    "car",
    "double_pendulum",
    "hopper",
    "quadrotor_eight",
    "reactor",
    "satellite",
    "trebuchet",
)
"""Simulators whose checks compile or differentiate for long."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LONG)) for name in ENVIRONMENTS]
)
def test_conformance(name):
    check_env(make_env(name))


@pytest.mark.parametrize("function", ["dynamics", "step", "cost"])
def test_gradients_of_the_pendulum_in_float64(function):
    """With respect to state, action, g, m and l at a hundred points, each parameter per rollout."""
    env, generator = make_env("pendulum"), torch.Generator().manual_seed(0)
    x = env.state_box.sample(100, generator, torch.float64)
    u = 0.9 * env.action_box.sample(100, generator, torch.float64)
    values = [v.expand(100) * (1 + 0.1 * x[:, 0] / 4) for v in env.params(x).values()]
    inputs = [v.clone().requires_grad_() for v in (x, u, *values)]

    def call(x, u, g, m, l):  # noqa: E741
        p = {"g": g, "m": m, "l": l}
        return env.dynamics(0.0, x, u, p) if function == "dynamics" else getattr(env, function)(x, u, p)

    assert torch.autograd.gradcheck(call, inputs)


class Detached(Pendulum):
    def dynamics(self, t, x, u, p):
        return super().dynamics(t, x.detach(), u, p)


class SilentMass(Pendulum):
    def dynamics(self, t, x, u, p):
        return super().dynamics(t, x, u, {**p, "m": torch.ones_like(p["m"])})


class Unclipped(Pendulum):
    def clip_action(self, u):
        return u


class Mixing(Pendulum):
    def cost(self, x, u, p):
        return super().cost(x, u, p) + x.mean()


class WrongDevice(Pendulum):
    def observe(self, x):
        return torch.zeros(x.shape[0], 3, dtype=x.dtype)


class GlobalRandom(Pendulum):
    def reset(self, batch, generator, dtype=torch.float32):
        return torch.rand(batch, 2, dtype=dtype)


class Infinite(Pendulum):
    def cost(self, x, u, p):
        return super().cost(x, u, p) + 1 / x[:, 0].clamp(min=0.0)


class NotANumber(Pendulum):
    def observe(self, x):
        return super().observe(x) * torch.tensor([1.0, 1.0, math.nan], dtype=x.dtype, device=x.device)


class WrongNames(Pendulum):
    observation_names = ("cos_angle", "sin_angle")


class OtherDynamics(Pendulum):
    solver = SemiImplicitEuler(project_velocity=lambda rate: 0.99 * rate)


class ScalarOnly(Pendulum):
    def cost(self, x, u, p):
        return super().cost(x, u, p) * float(p["m"].mean()) ** (p["m"].ndim)

    parameters = (*Pendulum.parameters[:1], Parameter("m", 2.0, "kg"), *Pendulum.parameters[2:])


class IgnoresItsSeed(Pendulum):
    def reset(self, batch, generator, dtype=torch.float32):
        return super().reset(batch, torch.Generator().manual_seed(0), dtype)


class DoubledGradient(Pendulum):
    def dynamics(self, t, x, u, p):
        return super().dynamics(t, 2 * x - x.detach(), u, p)


class MixedObservation(Pendulum):
    def observe(self, x):
        return super().observe(x) + x.mean()


class IdleAction(Pendulum):
    action_box = Box.symmetric(2.0, 1.0)


class NoTime(Pendulum):
    dt = 0.0
    episode_steps = 0


class FlatActions(Pendulum):
    action_box = Box((1.0,), (1.0,))


class Exploding(Pendulum):
    solver = Euler()

    def dynamics(self, t, x, u, p):
        return super().dynamics(t, x, u, p) + 100 * x**3


class Branching(Pendulum):
    def cost(self, x, u, p):
        return super().cost(x, u, p) if x.sum() < 1e9 else 2 * super().cost(x, u, p)


class NotDrawable(Pendulum):
    def draw(self, x, u):
        return ["a rod"]


class ForgotBoxes(Env):
    name = "forgot"
    state_names = "x"

    def dynamics(self, t, x, u, p):
        return -x

    def cost(self, x, u, p):
        return x[:, 0] ** 2


Incomplete = type("ForgotBoxes", (Env,), {"dynamics": ForgotBoxes.dynamics, "cost": ForgotBoxes.cost})


class ForgotSuper(Pendulum):
    def __init__(self):
        pass


class InPlace(Pendulum):
    def cost(self, x, u, p):
        x[:, 1] = 0.0
        return x[:, 0] ** 2


class Noisy(Pendulum):
    def dynamics(self, t, x, u, p):
        return super().dynamics(t, x, u, p) + torch.randn_like(x)


class Clocked(Pendulum):
    def dynamics(self, t, x, u, p):
        return super().dynamics(t, x, u, p) + t


class NumpyObservation(Pendulum):
    def observe(self, x):
        return super().observe(x).numpy()


class ShortReset(Pendulum):
    def reset(self, batch, generator, dtype=torch.float32):
        return super().reset(batch, generator, torch.float32)[:, :1]


class SameStarts(Pendulum):
    def reset(self, batch, generator, dtype=torch.float32):
        return super().reset(1, generator, dtype).expand(batch, -1)


class FarStarts(Pendulum):
    def reset(self, batch, generator, dtype=torch.float32):
        return 100 + super().reset(batch, generator, dtype)


class MixedEnd(Pendulum):
    def done(self, x):
        return (x[..., 1] - x[..., 1].mean()).abs() > 7


class OnlyWords(Env):
    """Success in words; the rest of the task is the pendulum's."""

    success_criterion = Success("upright", 0.9, "this test")
    for _name in ("dynamics", "cost", "observe"):
        vars()[_name] = vars(Pendulum)[_name]
    for _name in (*NEEDED, "angle_names", "parameters"):
        vars()[_name] = getattr(Pendulum, _name)


class NoWords(Pendulum):
    success_criterion = None


class TextForSuccess(Pendulum):
    success_criterion = "upright"


class SuccessOverTime(Pendulum):
    def success(self, states):
        return torch.cos(states[..., 0]) > 0.98


class SuccessAsNumber(Pendulum):
    def success(self, states):
        return super().success(states).to(states)


class SuccessOnTheProcessor(Pendulum):
    def success(self, states):
        return torch.ones(states.shape[1], dtype=torch.bool)


class SuccessInPlace(Pendulum):
    def success(self, states):
        return super().success(states.sub_(0.1))


class RandomSuccess(Pendulum):
    def success(self, states):
        return super().success(states) & (torch.rand(states.shape[1], device=states.device) < 0.5)


class RelativeSuccess(Pendulum):
    def success(self, states):
        away = states[-1].abs().sum(-1)
        return away <= away.median()


class AllOrNone(Pendulum):
    def success(self, states):
        return super().success(states) & (states[-1].abs() < 2).all()


class NaNSucceeds(Pendulum):
    def success(self, states):
        return ~(torch.cos(self.final_states(states, 2.0)[..., 0]) < 0.98).any(0)


class EndedEarly(Pendulum):
    def done(self, x):
        return x[..., 1].abs() > 7


class EndedAtTheGoal(EndedEarly):
    """An episode may end at its goal, if what follows does not count."""

    def success(self, states):
        return (states[..., 1].abs() > 7).any(0)


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        (OnlyWords, r"success_criterion is set and success\(states\) is missing"),
        (NoWords, "success is written and success_criterion is missing"),
        (TextForSuccess, "success_criterion = 'upright': a robotics_envs.base.Success is needed"),
        (SuccessOverTime, r"success gives \[201, 72\] torch.bool on cpu for states \[201, 72, 2\]"),
        (SuccessAsNumber, r"success gives \[72\] torch.float32 on cpu .* wanted \[72\] torch.bool"),
        (SuccessOnTheProcessor, "success gives .* on cpu for states .* torch.bool on meta"),
        (SuccessInPlace, "success writes into the states it is given"),
        (RandomSuccess, r"two equal calls of success differ[\s\S]*success draws from the global generator"),
        (RelativeSuccess, "a rollout's success depends on the others"),
        (AllOrNone, "a rollout's success depends on the others"),
        (NaNSucceeds, "72 episodes that are NaN from state 1 on count as a success"),
        (EndedEarly, "success depends on states after the episode's end"),
        (
            ForgotBoxes,
            r"observation_names is missing[\s\S]*state_box is missing[\s\S]*state_names = 'x': a tuple",
        ),
        (ForgotSuper, r"__init__ has to call super\(\).__init__"),
        (InPlace, "cost writes into the state or action it is given"),
        (Noisy, "two equal calls of dynamics differ"),
        (Clocked, "dynamics depends on t, but every step starts at t = 0"),
        (NumpyObservation, "observe gives ndarray, a torch tensor is needed"),
        (ShortReset, r"reset\(5, generator, torch.float64\) gives \[5, 1\] torch.float32, wanted \[5, 2\]"),
        (SameStarts, "gives all rollouts of a batch the same starting state"),
        (FarStarts, "episodes start far outside of state_box in rate"),
        (MixedEnd, "a rollout's done depends on the others"),
        (Detached, "dynamics depends on x but no gradient comes back: something cuts it"),
        (DoubledGradient, r"dynamics: the gradient by x is \S+, finite differences give \S+"),
        (IgnoresItsSeed, "reset ignores its seed"),
        (MixedObservation, "a rollout's observe depends on the others"),
        (IdleAction, "action component 1 changes neither the state nor the cost"),
        (NoTime, r"dt = 0.0: a control interval is a positive number[\s\S]*episode_steps = 0"),
        (FlatActions, "action_box has no width in component 0"),
        (Exploding, "not finite in torch.float32 after .* intervals of extreme actions"),
        (Branching, r"step under vmap[\s\S]*steps_are_straight_line"),
        (NotDrawable, "draw gives Line, Polygon, Circle, Text and Solid, not 'a rod'"),
        (SilentMass, "gradient with respect to m is zero everywhere"),
        (Unclipped, "does not act like the bound"),
        (Mixing, "depends on the others in its batch"),
        (WrongDevice, "observe gives"),
        (GlobalRandom, "reset draws from the global generator"),
        (Infinite, "non-finite values of cost"),
        (NotANumber, r"^(?![\s\S]*two equal calls)[\s\S]*1000 non-finite values of observation"),
        (WrongNames, "observe has 3 components, the names 2"),
        (OtherDynamics, "the solver's step and the dynamics differ"),
        (ScalarOnly, "give another result than the same scalars"),
    ],
)
def test_a_broken_simulator_is_named(broken, complaint):
    with pytest.raises(ConformanceError, match=complaint):
        check_env(broken())


def test_an_episode_may_end_at_its_goal():
    check_env(EndedAtTheGoal)


def test_a_simulator_may_declare_no_success():
    class NoSuccess(Pendulum):
        success_criterion = None
        success = Env.success

    check_env(NoSuccess)
    with pytest.raises(
        NotImplementedError, match=r"NoSuccess declares no success: write success\(self, states\)"
    ):
        NoSuccess().success(torch.zeros(201, 1, 2))


def test_a_class_or_a_name_serves_as_well_as_an_instance():
    check_env(Pendulum)
    check_env("examples/cartpole.py:CartPole")
    with pytest.raises(ConformanceError, match="observe has 3 components, the names 2"):
        check_env(WrongNames)
    for wrong in (int, 3, torch.nn.Linear(1, 1), None):
        with pytest.raises(ConformanceError, match="an instance, a class or a name; got"):
            check_env(wrong)


def test_names_may_be_lists():
    class Listed(Pendulum):
        state_names = ["angle", "rate"]  # noqa: RUF012
        observation_names = ["cos_angle", "sin_angle", "rate"]  # noqa: RUF012
        angle_names = ["angle"]  # noqa: RUF012
        parameters = list(Pendulum.parameters)  # noqa: RUF012

    assert Listed.state_names == ("angle", "rate")
    assert isinstance(Listed.parameters, tuple)
    check_env(Listed())


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("dt", "control interval in seconds"),
        ("solver", r"solvers.make_solver\('rk4'\)"),
        ("action_box", "Box of the m actions' bounds"),
        ("state_names", "tuple of the names"),
    ],
)
def test_a_missing_attribute_is_named_with_what_it_holds(name, how):
    with pytest.raises(
        AttributeError, match=rf"ForgotBoxes has no {name}: set it as a class attribute \(.*{how}"
    ):
        getattr(Incomplete(), name) if name == "state_names" else getattr(ForgotBoxes(), name)
    assert not hasattr(ForgotBoxes(), "dt")
    with pytest.raises(AttributeError, match="'Pendulum' object has no attribute 'tedious'"):
        getattr(Pendulum(), "tedious")  # noqa: B009
    with pytest.raises(
        AttributeError, match=r"its __init__ has to call super\(\).__init__\(\*\*parameters\)"
    ):
        getattr(ForgotSuper(), "constants")  # noqa: B009


def test_parameters_of_numpy_are_numbers():
    for value in (np.float32(3.5), np.int64(3), np.float64(3.5)):
        assert Pendulum(g=value).constants["g"].value == float(value)
    with pytest.raises(ValueError, match="must be a number"):
        Pendulum(g=np.True_)


def gym_states(rng, count):
    """States beyond the box too: the angle is not wrapped and torque is clipped."""
    return rng.uniform([-10, -8], [10, 8], (count, 2)), rng.uniform(-3, 3, (count, 1)).astype(np.float32)


@pytest.mark.parametrize("constants", [{}, {"g": 9.0, "m": 1.3, "l": 0.7}], ids=["default", "other"])
def test_the_pendulum_steps_as_gymnasiums_does(constants):
    gym_env = gymnasium.make("Pendulum-v1").unwrapped
    for name, value in constants.items():
        setattr(gym_env, name, value)
    states, actions = gym_states(np.random.default_rng(0), 1000)
    env = make_env("pendulum", **constants)
    x = torch.from_numpy(states)
    ours, cost = env.step(x, torch.from_numpy(actions).double(), env.params(x))
    observations = env.observe(ours)
    gym_env.reset(seed=0)
    for i, (state, action) in enumerate(zip(states, actions, strict=True)):
        gym_env.state = state.copy()
        observation, reward, terminated, truncated, _ = gym_env.step(action)
        assert np.abs(ours[i].numpy() - gym_env.state).max() < 1e-6
        assert abs(-float(cost[i]) - float(reward)) < 1e-6
        assert np.abs(observations[i].numpy() - observation).max() < 1e-6
        assert not terminated
        assert not truncated


def test_the_pendulums_task_is_gymnasiums():
    gym_env = gymnasium.make("Pendulum-v1")
    env = make_env("pendulum")
    assert gym_env.spec.max_episode_steps == env.episode_steps
    assert gym_env.unwrapped.dt == env.dt
    assert gym_env.action_space.low.tolist() == list(env.action_box.low)
    assert gym_env.action_space.high.tolist() == list(env.action_box.high)
    assert {n: c.value for n, c in env.constants.items()} == {
        n: getattr(gym_env.unwrapped, n) for n in ("g", "m", "l")
    }
    starts = np.array([gym_env.reset(seed=i)[0] for i in range(2000)])
    angles, rates = np.arctan2(starts[:, 1], starts[:, 0]), starts[:, 2]
    ours = env.reset(2000, torch.Generator().manual_seed(0)).numpy()
    for gym_values, our_values in ((angles, ours[:, 0]), (rates, ours[:, 1])):
        quantiles = np.linspace(0, 1, 11)
        gap = np.quantile(gym_values, quantiles) - np.quantile(our_values, quantiles)
        assert np.abs(gap).max() < 0.06 * np.ptp(gym_values)


def test_parameters_change_the_physics_and_carry_gradients():
    env = Pendulum(g=5.0, l=2.0)
    x = torch.tensor([[0.5, 0.0]], dtype=torch.float64)
    u = torch.zeros(1, 1, dtype=torch.float64)
    p = {k: v.requires_grad_() for k, v in env.params(x).items()}
    rate = env.dynamics(0.0, x, u, p)[0, 1]
    assert float(rate) == pytest.approx(3 * 5 / (2 * 2) * np.sin(0.5))
    (slope,) = torch.autograd.grad(rate, p["g"])
    assert float(slope) == pytest.approx(3 / (2 * 2) * np.sin(0.5))


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_simulators_can_be_copied_and_sent(twin_of):
    env = Pendulum(g=3.7)
    twin = twin_of(env)
    assert twin.constants == env.constants
    assert type(twin.constants) is type(env.constants)
    x, u = torch.ones(2, 2), torch.ones(2, 1)
    assert torch.equal(twin.step(x, u, twin.params(x))[0], env.step(x, u, env.params(x))[0])


def test_clipping_cuts_the_gradient_where_it_says_so():
    env, x = Pendulum(), torch.zeros(3, 2)
    u = torch.tensor([[-3.0], [1.0], [3.0]], requires_grad=True)
    following, _ = env.step(x, u, env.params(x))
    (gradient,) = torch.autograd.grad(following[:, 1].sum(), u)
    assert gradient[:, 0].tolist() == [0.0, pytest.approx(3 * 0.05), 0.0]


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [
        ({"mass": 1.0}, "unknown parameter of pendulum 'mass'; known: g, l, m"),
        ({"m": 0.0}, "parameter m = 0.0 kg is outside its range"),
        ({"l": -1.0}, "parameter l = -1.0 m"),
        ({"g": float("nan")}, "parameter g = nan"),
        ({"g": "10"}, "parameter g must be a number, got '10'"),
        ({"m": True}, "parameter m must be a number, got True"),
    ],
)
def test_impossible_parameters_are_refused(parameters, complaint):
    with pytest.raises(ValueError, match=complaint):
        Pendulum(**parameters)


def test_half_sizes_of_a_box_are_units_of_its_components():
    half = Box((-1.0, 2.0, 5.0), (3.0, 2.0, 5.5)).half_sizes(torch.zeros(1, dtype=torch.float64))
    assert half.tolist() == [2.0, 1.0, 0.25]
    assert half.dtype == torch.float64


@pytest.mark.parametrize(
    ("low", "high"), [((0.0,), (1.0, 2.0)), ((1.0,), (0.0,)), ((), ()), ((0.0,), (np.inf,))]
)
def test_a_box_checks_itself(low, high):
    with pytest.raises(ValueError, match="box bounds"):
        Box(low, high)


def test_another_solver_changes_the_integration():
    class Forward(Pendulum):
        solver = Euler()

    check_env(Forward())
    x, u = torch.tensor([[1.0, 2.0]]), torch.zeros(1, 1)
    env = Forward()
    assert float(env.step(x, u, env.params(x))[0][0, 0]) == pytest.approx(1.0 + 0.05 * 2.0)


def test_the_julia_sources_are_found():
    assert (julia_sources() / "Project.toml").is_file()


COMPILE = """
import sys, warnings, torch
from robotics_envs import make_env
warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`")
torch.set_num_threads(1)
for name in sys.argv[1:]:
    torch._dynamo.reset()
    env = make_env(name)
    env.substeps = 1  # more of the same would only take longer
    x = env.reset(3, torch.Generator().manual_seed(0), torch.float64)
    u, p = env.action_box.sample(3, torch.Generator().manual_seed(1), torch.float64), env.params(x)
    compiled = torch.compile(lambda x, u: (*env.step(x, u, p), env.observe(x)), backend="eager", fullgraph=True)
    for a, b in zip(compiled(x, u), (*env.step(x, u, p), env.observe(x)), strict=True):
        assert torch.equal(a, b), name
    print(name)
"""


@pytest.mark.parametrize(
    "names",
    [["pendulum", "quadrotor"], pytest.param([*ENVIRONMENTS], marks=pytest.mark.slow)],
    ids=["two", "all"],
)
def test_steps_and_observations_compile_in_one_graph(names):
    """In a process of its own: the shape checks of these tests would break the graph."""
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", COMPILE, *names], capture_output=True, text=True
    )
    assert done.stdout.split() == names, done.stderr


def test_each_check_is_named_before_it_runs():
    seen: list[str] = []
    check_env("pendulum", seen.append)
    assert seen == [check.__name__ for check in CHECKS]
