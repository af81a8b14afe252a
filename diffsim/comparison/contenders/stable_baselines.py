"""Trains with Stable-Baselines3 and sb3-contrib as they are, on our simulators or in Gymnasium's own MuJoCo.

Settings are those of the RL Zoo's files: ``n_envs`` and ``normalize`` (VecNormalize) of the environments,
``n_timesteps``, ``noise_type``, and arguments of the algorithm's class.  Beside them:

- ``starts = "state_box"``: episodes start anywhere in the simulator's state box;
- ``standardise = true``: observations are standardised as for our policies;
- ``learning_rate = "lin_X"``: from X linearly to zero over ``n_timesteps``, where the run then ends;
- ``learning_rate = "budget_X"``: from X linearly to zero over the budget, whatever its unit.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
import stable_baselines3
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecNormalize

from diffsim.comparison.clock import Meter
from diffsim.isolation import torch_defaults
from diffsim.policy import observation_statistics
from robotics_envs.adapters.sb3_adapter import SB3VecEnv
from robotics_envs.base import Env
from robotics_envs.environments import GYM
from robotics_envs.robots.compiling import gymnasium_env
from robotics_envs.user_code import construct_env

CLASSES = {"ppo": "PPO", "sac": "SAC", "td3": "TD3", "tqc": "TQC", "crossq": "CrossQ"}
CONTRIB = ("tqc", "crossq")
NOT_OF_THE_CLASS = (
    "algorithm",
    "n_envs",
    "normalize",
    "n_timesteps",
    "starts",
    "standardise",
    "noise_type",
    "noise_std",
)
ENDLESS = 2**60


def load(settings: Mapping[str, Any]) -> None:
    """Import what training needs beside this module's own imports."""
    if settings["algorithm"] in CONTRIB:
        importlib.import_module("sb3_contrib")


def train(task: str, settings: Mapping[str, Any], seed: int, meter: Meter) -> None:
    """Learn until the budget is used, or a learning rate that falls over ``n_timesteps`` has come to zero."""
    with torch_defaults(1):
        bare = make_envs(task, settings)
        with meter.off_the_clock("compile"):  # the simulator's step, at the first call
            bare.reset()
            bare.step(np.zeros((bare.num_envs, *(bare.action_space.shape or ())), dtype=np.float32))
        envs = wrapped(bare, task, settings)
        model = make_model(envs, settings, seed, meter)
        learner = _Learner(model, envs, construct_env(task), meter)
        meter.begin(learner.act)
        ends = str(settings.get("learning_rate", "")).startswith("lin_")
        model.learn(int(settings["n_timesteps"]) if ends else ENDLESS, callback=learner)
        meter.end(model.num_timesteps, learner.gradients, learner.act, "the learning rate has come to zero")


def make_envs(task: str, settings: Mapping[str, Any]) -> VecEnv:
    """``n_envs`` copies of a task: of Gymnasium's own there, of any other in our compiled simulator."""
    count = int(settings.get("n_envs", 1))
    starts = settings.get("starts", "task")
    if not task.startswith(GYM):
        return SB3VecEnv(task, count, starts=starts, dtype=torch.float32, backend="native")
    env = construct_env(task)

    def make() -> gymnasium.Env[Any, Any]:
        made: gymnasium.Env[Any, Any] = gymnasium_env(task.removeprefix(GYM), disable_env_checker=True)
        if starts == "state_box":
            made = _FromStateBox(made, env)
        return made if made.observation_space.shape == (len(env.observation_names),) else _Seen(made, env)

    return DummyVecEnv([make] * count)


def wrapped(envs: VecEnv, task: str, settings: Mapping[str, Any]) -> VecEnv:
    """With observations standardised and returns normalised as the settings say."""
    if settings.get("standardise"):
        mean, scale = observation_statistics(construct_env(task), torch.device("cpu"), torch.float32)
        envs = Standardised(envs, mean.numpy(), scale.numpy())
    normalize = settings.get("normalize")
    if normalize:
        options = normalize if isinstance(normalize, Mapping) else {}
        # As the Zoo does it: returns are discounted as the algorithm discounts them.
        envs = VecNormalize(envs, **{"gamma": settings.get("gamma", 0.99), **options})
    return envs


def make_model(envs: VecEnv, settings: Mapping[str, Any], seed: int, meter: Meter) -> BaseAlgorithm:
    """The algorithm with its settings, on one thread of the CPU."""
    algorithm = settings["algorithm"]
    module = importlib.import_module("sb3_contrib") if algorithm in CONTRIB else stable_baselines3
    arguments = {name: value for name, value in settings.items() if name not in NOT_OF_THE_CLASS}
    for name in ("learning_rate", "clip_range"):
        if name in arguments:
            arguments[name] = _schedule(arguments[name], meter)
    if "policy_kwargs" in arguments:
        arguments["policy_kwargs"] = _policy_arguments(arguments["policy_kwargs"])
    if settings.get("noise_type") == "normal":
        zeros = np.zeros(envs.action_space.shape or ())
        arguments["action_noise"] = NormalActionNoise(zeros, zeros + settings["noise_std"])
    made: BaseAlgorithm = getattr(module, CLASSES[algorithm])(
        "MlpPolicy", envs, seed=seed, device="cpu", **arguments
    )
    return made


def _schedule(value: Any, meter: Meter) -> float | Callable[[float], float]:
    """A number, or a function of the share that remains, from ``lin_X`` and ``budget_X``."""
    if not isinstance(value, str):
        return float(value)
    kind, _, number = value.partition("_")
    first = float(number)
    return {"lin": lambda left: left * first, "budget": lambda left: meter.remaining * first}[kind]


def _policy_arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    """With the name of an activation replaced by its class, and lists that were tuples."""
    arguments = dict(options)
    if "activation_fn" in arguments:
        arguments["activation_fn"] = getattr(torch.nn, arguments["activation_fn"])
    if "betas" in arguments.get("optimizer_kwargs", {}):
        optimizer = arguments["optimizer_kwargs"]
        arguments["optimizer_kwargs"] = {**optimizer, "betas": tuple(optimizer["betas"])}
    return arguments


class _Learner(BaseCallback):
    """Stops learning at the end of the budget, has the policy measured, and counts gradient steps."""

    def __init__(self, model: BaseAlgorithm, envs: VecEnv, env: Env, meter: Meter) -> None:
        super().__init__()
        self.model, self.envs, self.meter = model, envs, meter
        self._of_gymnasium = isinstance(envs.unwrapped, DummyVecEnv)
        low, high = (np.array(bound, dtype=np.float32) for bound in (env.action_box.low, env.action_box.high))
        self._centre, self._half = (low + high) / 2, (high - low) / 2
        self._counted = 0
        policy: Any = model.policy
        # Of those that have a critic apart, which learns at every gradient step, the actor may do so less often.
        optimizer = policy.critic.optimizer if getattr(policy, "critic", None) else policy.optimizer
        optimizer.register_step_post_hook(self._count)

    @property
    def gradients(self) -> int:
        return self._counted

    def _count(self, *_: Any) -> None:
        self._counted += 1

    def _on_step(self) -> bool:
        normalising = isinstance(self.envs, VecNormalize) and self.envs.norm_obs
        return self.meter.go_on(
            self.model.num_timesteps, self._counted, self.act, None if normalising else self._counted
        )

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Deterministic actions in the units of the task's action box."""
        for wrapper in _wrappers(self.envs):
            if isinstance(wrapper, Standardised):
                observations = wrapper.standardised(observations)
            elif isinstance(wrapper, VecNormalize):
                observations = np.asarray(wrapper.normalize_obs(observations))
        actions, _ = self.model.predict(observations, deterministic=True)
        if self._of_gymnasium:
            return actions
        return self._centre + self._half * np.clip(actions, -1.0, 1.0)


def _wrappers(envs: VecEnv) -> list[VecEnvWrapper]:
    """From the innermost to the outermost."""
    found = []
    while isinstance(envs, VecEnvWrapper):
        found.append(envs)
        envs = envs.venv
    return found[::-1]


class Standardised(VecEnvWrapper):
    """Observations less a fixed mean, over a fixed scale, ``[o]`` each."""

    def __init__(self, envs: VecEnv, mean: np.ndarray, scale: np.ndarray) -> None:
        super().__init__(envs)
        self.mean, self.scale = mean, scale

    def standardised(self, observations: np.ndarray) -> np.ndarray:
        return ((observations - self.mean) / self.scale).astype(np.float32)

    def reset(self) -> np.ndarray:
        return self.standardised(self.venv.reset())  # type: ignore[arg-type]

    def step_wait(self) -> Any:
        observations, rewards, ended, infos = self.venv.step_wait()
        for i in np.flatnonzero(ended):
            infos[i]["terminal_observation"] = self.standardised(infos[i]["terminal_observation"])
        return self.standardised(observations), rewards, ended, infos  # type: ignore[arg-type]


class _Seen(gymnasium.ObservationWrapper[Any, Any, Any]):
    """A task of Gymnasium's of which a policy sees what our simulator of it observes."""

    def __init__(self, env: gymnasium.Env[Any, Any], simulator: Env) -> None:
        super().__init__(env)
        self._translate = simulator.observation_from_twin
        shape = (len(simulator.observation_names),)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, shape, np.float64)

    def observation(self, observation: Any) -> Any:
        return self._translate(observation)


class _FromStateBox(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A MuJoCo task of Gymnasium's whose episodes start anywhere in the state box of our simulator of it."""

    def __init__(self, env: gymnasium.Env[Any, Any], simulator: Env) -> None:
        super().__init__(env)
        self._box = simulator.state_box

    def reset(self, **arguments: Any) -> tuple[Any, dict[str, Any]]:
        _, info = self.env.reset(**arguments)
        task: Any = self.env.unwrapped
        state = task.np_random.uniform(self._box.low, self._box.high)
        positions = task.model.nq
        task.set_state(state[:positions], state[positions:])
        return task._get_obs(), info
