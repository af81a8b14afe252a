"""Many rollouts of a simulator as one vector environment of Stable-Baselines3 (extra ``rl``).

    from stable_baselines3 import PPO
    from robotics_envs.adapters.sb3_adapter import SB3VecEnv

    PPO("MlpPolicy", SB3VecEnv("cartpole_balance", num_envs=32)).learn(200_000)

Stable-Baselines3 has its own interface for vector environments and would step Gymnasium environments one by one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from robotics_envs.adapters.gym_adapter import Array, Simulation
from robotics_envs.base import Env
from solvers.validation import whole_number

STARTS = ("task", "state_box")


class SB3VecEnv(VecEnv):
    """A batch of ``num_envs`` rollouts; one that ends is restarted within the same step.

    Actions are in [-1, 1] and scaled to the action box, as Stable-Baselines3 asks for.  Further arguments
    are those of
    :class:`robotics_envs.adapters.gym_adapter.GymVectorEnv` but for ``render_mode``, which is ``rgb_array``.  With
    ``starts="state_box"`` episodes start anywhere in the simulator's state box, as training through the simulator may,
    instead of from the initial states of the task.
    """

    def __init__(
        self, env: Env | type[Env] | str, num_envs: int, starts: str = "task", **arguments: Any
    ) -> None:
        if starts not in STARTS:
            raise ValueError(f"starts = {starts!r}; known: {', '.join(STARTS)}")
        self._starts = starts
        self._simulation = Simulation(env, num_envs, unit_actions=True, **arguments)
        num_envs = self._simulation.batch
        self._random = np.random.default_rng()
        self._actions: Array | None = None
        self._returns = np.zeros(num_envs)
        self._started = time.time()
        super().__init__(num_envs, self._simulation.observation_space(), self._simulation.action_space())
        self.render_mode = "rgb_array"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._simulation!r}>"

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed the next reset; NumPy integers are accepted."""
        return super().seed(None if seed is None else whole_number("seed", seed, least=0))

    def reset(self) -> Array:
        seed = self._seeds[0]
        if seed is not None:
            self._random = np.random.default_rng(seed)
        self._simulation.seed(self._random)
        self._restart(np.ones(self.num_envs, dtype=bool), self._options[0] or None)
        self._returns[:] = 0.0
        self._reset_seeds()
        self._reset_options()
        return self._simulation.observation()

    def _restart(self, which: Array, options: dict[str, Any] | None = None) -> None:
        simulation = self._simulation
        if self._starts == "state_box" and options is None:
            box = simulation.env.state_box
            options = {"state": box.sample(self.num_envs, simulation.generator, simulation.dtype)}
        simulation.reset(which, options)

    def step_async(self, actions: Array) -> None:
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        simulation = self._simulation
        assert self._actions is not None
        reward, _, truncated = simulation.step(self._actions)
        observation, ended = simulation.observation(), simulation.ended.copy()
        self._returns += reward
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if ended.any():
            for i in np.flatnonzero(ended):
                infos[i] = {
                    "terminal_observation": observation[i],
                    "TimeLimit.truncated": bool(truncated[i]),
                    # What Monitor would add, so that training logs returns.
                    "episode": {
                        "r": float(self._returns[i]),
                        "l": int(simulation.elapsed[i]),
                        "t": round(time.time() - self._started, 6),
                    },
                }
            self._restart(ended)
            self._returns[ended] = 0.0
            fresh = simulation.observation()
            observation = np.where(ended[:, None], fresh, observation)
        return observation, reward.astype(np.float32), ended, infos

    def get_images(self) -> Sequence[Any]:
        return [self._simulation.picture(i) for i in range(self.num_envs)]

    def close(self) -> None:
        """Does nothing: no resource is open."""

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        # Stable-Baselines3 reads this in its constructor, before render_mode is set.
        owner: Any = self if attr_name == "render_mode" else self._simulation.env
        value = getattr(owner, attr_name, None) if owner is self else getattr(owner, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        raise AttributeError(
            "one simulator serves all rollouts: give parameters=... when making the environment"
        )

    def env_method(
        self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any
    ) -> list[Any]:
        method = getattr(self._simulation.env, method_name)
        return [method(*args, **kwargs) for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[Any], indices: VecEnvIndices = None) -> list[bool]:
        # Episodes carry what Monitor would add; there are no other wrappers.
        name = wrapper_class.__name__
        return [name == "Monitor" for _ in self._get_indices(indices)]
