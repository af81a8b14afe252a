"""Measuring policies of any origin from the same starts: in our simulators, or in Gymnasium's for its own tasks."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from diffsim.comparison.clock import Act, Judge
from diffsim.comparison.records import Protocol
from diffsim.runs.evaluation import successes_of
from robotics_envs.adapters.gym_adapter import Simulation
from robotics_envs.base import Env
from robotics_envs.environments import GYM, GYM_TASKS
from robotics_envs.robots.compiling import gymnasium_env
from robotics_envs.user_code import construct_env

STARTS = 64
"""Episodes of an evaluation in our simulators; a success criterion of 60 of 64 is exact with them."""
GYM_STARTS = 16
"""Episodes of an evaluation in Gymnasium, which steps them one after the other."""
SEED = 2**40 + 1
"""Of the starts. Training and validation draw theirs from seeds below 2^33, so that these are starts of their own."""
GYM_SEED = 2**31
"""The same for Gymnasium: episode i starts from ``reset(seed=GYM_SEED + i)``."""


def make_judge(task: str, backend: str = "native") -> Judge:
    """What measures all contenders of a task: tasks of Gymnasium there, all others in our simulator."""
    if task.startswith(GYM):
        return GymnasiumJudge(construct_env(task))
    return SimulatorJudge(task, backend=backend)


def protocol(task: str) -> Protocol:
    """How :func:`make_judge` measures, for a record."""
    if task.startswith(GYM):
        return Protocol(
            f"gymnasium:{task.removeprefix(GYM)}", GYM_STARTS, GYM_SEED, "reset of the environment"
        )
    return Protocol("simulator", STARTS, SEED, "initial states of the task")


class SimulatorJudge:
    """Whole episodes in one of our simulators, in float64, all in one batch."""

    def __init__(
        self, task: str | Env, starts: int = STARTS, seed: int = SEED, backend: str = "native"
    ) -> None:
        self._simulation = Simulation(task, starts, dtype=torch.float64, backend=backend)
        env = self._simulation.env
        self.starts = env.reset(starts, torch.Generator().manual_seed(seed), torch.float64)

    def __call__(self, act: Act) -> tuple[float, float]:
        simulation, env = self._simulation, self._simulation.env
        everyone = np.ones(simulation.batch, dtype=bool)
        simulation.reset(everyone, {"state": self.starts})
        total, alive = np.zeros(simulation.batch), everyone.copy()
        states = [simulation.state()]
        for _ in range(env.episode_steps):
            rewards, terminated, _ = simulation.step(np.asarray(act(simulation.observation())))
            total += np.where(alive, rewards, 0.0)
            alive &= ~terminated
            states.append(simulation.state())
            if not alive.any():
                break
        return float(total.mean()), success_share(env, states)


class GymnasiumJudge:
    """Whole episodes of a Gymnasium environment whose states are those of the simulator ``env``: MuJoCo's."""

    def __init__(self, env: Env, starts: int = GYM_STARTS, seed: int = GYM_SEED) -> None:
        self.env, self.seed = env, seed
        name = gymnasium_id(env)
        self._copies = [gymnasium_env(name, disable_env_checker=True) for _ in range(starts)]

    def __call__(self, act: Act) -> tuple[float, float]:
        copies, seen = self._copies, self.env.observation_from_twin
        observations = np.stack([copy.reset(seed=self.seed + i)[0] for i, copy in enumerate(copies)])
        total, alive = np.zeros(len(copies)), np.ones(len(copies), dtype=bool)
        states = [np.stack([_state(copy) for copy in copies])]
        while alive.any():
            actions = np.asarray(act(seen(observations).astype(np.float32)))
            for i in np.flatnonzero(alive):
                observations[i], reward, terminated, truncated, _ = copies[i].step(actions[i])
                total[i] += float(reward)
                alive[i] = not (terminated or truncated)
            states.append(np.stack([_state(copy) for copy in copies]))
        return float(total.mean()), success_share(self.env, states)


def gymnasium_id(env: Env) -> str:
    """``"Hopper-v5"`` of the simulator of ``"gym:Hopper-v5"``."""
    path = f"{type(env).__module__}:{type(env).__qualname__}"
    return next(name.removeprefix(GYM) for name, known in GYM_TASKS.items() if known == path)


def _state(copy: object) -> NDArray[np.float64]:
    data = copy.unwrapped.data  # type: ignore[attr-defined]
    return np.concatenate((data.qpos, data.qvel))


def success_share(env: Env, states: list[NDArray[np.float64]]) -> float:
    """The share of episodes that succeed, NaN where the simulator declares no success.

    ``states [B, n]`` of every instant; those after all episodes have ended may be missing.
    """
    if env.success_criterion is None:
        return float("nan")
    missing = env.episode_steps + 1 - len(states)
    whole = torch.from_numpy(np.stack([*states, *[states[-1]] * missing]))
    return float(successes_of(env, whole).double().mean())
