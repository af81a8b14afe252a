"""Driving simulators with a trained policy, and stating the return with an interval."""

from __future__ import annotations

import logging
import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsim.assembly import assemble
from diffsim.config import RunConfig
from diffsim.errors import EvaluationError, RunFileError
from diffsim.isolation import torch_defaults
from diffsim.policy import Policy
from diffsim.rollouts import Rollout
from diffsim.runs import user_code
from diffsim.runs.references import EnvLike, RunLike, env_section
from diffsim.runs.runfile import RunFile
from diffsim.values import shown, whole_number
from lazy_registry.installation import install_command
from lazy_registry.registry import UnknownNameError
from lazy_registry.source_places import defined_at
from robotics_envs import ENVIRONMENTS
from robotics_envs.base import Env, Success
from robotics_envs.user_code import describe_failure

logger = logging.getLogger("diffsim")

LONGEST_EPISODE = 100_000
"""Steps after which an environment counts as one whose episodes never end."""


class LoadedPolicy:
    """A trained policy as a function from NumPy observations to NumPy actions, without exploration noise.

    ``policy(observation)``: ``[o] -> [m]`` or ``[B, o] -> [B, m]``, float32 whatever the policy computes
    in, which is what Gymnasium's boxes hold.
    """

    def __init__(self, module: Policy, observation_names: tuple[str, ...], name: str) -> None:
        self.module = module
        self.observation_names = observation_names
        self.name = name
        self.actions = module.centre.numel()

    def __call__(self, observation: Any) -> np.ndarray:
        """The actions for one observation or a batch.

        Raises:
            ValueError: the last axis is not the number of observations the policy was trained on.
        """
        array = np.asarray(observation)
        expected = len(self.observation_names)
        if array.ndim not in (1, 2) or array.shape[-1] != expected:
            raise EvaluationError(
                f"this policy takes [{expected}] or [B, {expected}] observations "
                f"({', '.join(self.observation_names)}), got an array of shape {list(array.shape)}"
            )
        with torch_defaults(), torch.no_grad():
            inputs = torch.as_tensor(array).to(self.module.mean)
            actions = self.module(inputs.reshape(-1, expected))
        return actions.cpu().numpy().astype(np.float32).reshape(*array.shape[:-1], self.actions)

    def __repr__(self) -> str:
        return f"LoadedPolicy({self.name!r}, {len(self.observation_names)} -> {self.actions})"


def load_policy(
    run: RunLike,
    checkpoint: str = "best",
    device: str = "cpu",
    *,
    env: EnvLike | None = None,
    trust: bool = False,
) -> LoadedPolicy:
    """The policy of a run, in its folder, file or RunFile.

    Args:
        run: the run.
        checkpoint: ``"best"``, by return from held-out starts in its own simulator while it trained (``"last"`` where
            nothing was measured), or ``"last"``.
        device: torch device that computes the actions.
        env: a simulator to use instead of the run's, for example of a file that was moved.
        trust: run the code stored in a run of somebody else.

    Raises:
        RunFileError: no run there, or one that cannot be read.
        TrustError: a run of somebody else names code of its own.
    """
    return LoadedRun(run, checkpoint, device, env, trust).policy


class LoadedRun:
    """A run's policy together with the simulator it was trained in, or with ``env`` instead."""

    def __init__(
        self,
        run: RunLike,
        checkpoint: str = "best",
        device: str = "cpu",
        env: EnvLike | None = None,
        trust: bool = False,
    ) -> None:
        self.file = RunFile(run)
        self.config = _runnable(self.file, env, trust)
        known = self.file.checkpoints()
        checkpoint = "last" if checkpoint == "best" and "best" not in known else checkpoint
        self.checkpoint = checkpoint
        self.update = int(known.get(checkpoint, {}).get("update", 0))
        with torch_defaults(self.config.threads or 1):
            assembly = assemble(self.config.model_copy(update={"device": device}))
            self.env: Env = assembly.env
            self.device, module = assembly.device, assembly.policy
            try:
                module.load_state_dict(self.file.checkpoint(checkpoint)["policy"])
            except RuntimeError as error:
                raise RunFileError(
                    f"the policy in {shown(self.file.path)} does not fit the simulator {self.config.env.name} and the "
                    f"network {self.config.policy.name}: {' '.join(str(error).split())}"
                ) from None
        module.eval()
        self.policy = LoadedPolicy(module, self.env.observation_names, shown(self.file.path))


def _runnable(file: RunFile, env: EnvLike | None, trust: bool) -> RunConfig:
    """The configuration of a run with names that lead to code which may be executed, and can be, here."""
    config = file.config()
    sections: tuple[str, ...] = ("env", "policy")
    if env is not None:
        given = env_section(env)
        constants = {**config.env.options, **given} if len(given) == 1 else given
        config = config.model_copy(update={"env": type(config.env)(**constants)})
        sections = ("policy",)
    return user_code.consented(config, file.sources(), file.is_own(), trust, file.path, sections)


@dataclass(frozen=True)
class Evaluation:
    """Returns ``[episodes]`` of a policy in a simulator, and which of them succeeded.

    ``successes``, bool ``[episodes]``, and their ``criterion`` are None in Gymnasium, and where the simulator declares
    no success.
    """

    where: str
    seed: int
    returns: np.ndarray
    lengths: np.ndarray
    successes: np.ndarray | None = None
    criterion: Success | None = None

    @property
    def mean(self) -> float:
        return float(self.returns.mean())

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Student's t interval of the mean; NaN for a single episode."""
        from scipy import stats

        n = len(self.returns)
        if n < 2:
            return math.nan, math.nan
        half = stats.t.ppf((1 + confidence) / 2, n - 1) * self.returns.std(ddof=1) / math.sqrt(n)
        return self.mean - float(half), self.mean + float(half)

    def __str__(self) -> str:
        low, high = self.interval()
        interval = "no interval from one episode"
        if len(self.returns) > 1:
            interval = f"95% interval [{low:.1f}, {high:.1f}]"
        text = (
            f"mean return {self.mean:.1f}, {interval}, worst {self.returns.min():.1f}, "
            f"best {self.returns.max():.1f} over {len(self.returns)} episodes of {self.where} "
            f"from seed {self.seed}"
        )
        if self.successes is None or self.criterion is None:
            return text
        starts = len(self.successes)
        return (
            f"{text}; success from {int(self.successes.sum())} of {starts} starts, "
            f"{self.criterion.needed(starts)} needed ({self.criterion.words})"
        )


def evaluate(
    run: RunLike,
    gym: str | None = None,
    episodes: int = 100,
    seed: int = 1000,
    checkpoint: str = "best",
    *,
    env: EnvLike | None = None,
    trust: bool = False,
    any_gym: bool = False,
    mujoco: bool = False,
) -> Evaluation:
    """Measure a run's policy and append the result to its file.

    Args:
        run: the run's folder, file or RunFile.
        gym: id of a Gymnasium environment to drive; episode i starts from ``reset(seed=seed + i)``.
            ``None`` measures in the run's own simulator.
        episodes: how many episodes.
        seed: of the starting states.
        checkpoint: as in :func:`load_policy`.
        env: a simulator to measure in instead of the run's.
        trust: run the code stored in a run of somebody else.
        any_gym: drive ``gym`` also where it is not the simulator's twin.
        mujoco: of a robot from a file, the same task with MuJoCo's own steps.

    Raises:
        RunFileError: no run there, or one that cannot be read.
        TrustError: a run of somebody else names code of its own.
        EvaluationError: the environment does not exist or does not fit the policy.
    """
    episodes = whole_number("episodes", episodes, least=1, error=EvaluationError)
    seed = whole_number("seed", seed, error=EvaluationError)
    if mujoco and gym is not None:
        raise EvaluationError(f"mujoco and gym = {gym!r}: one at a time")
    loaded = LoadedRun(run, checkpoint, env=env, trust=trust)
    with torch_defaults(loaded.config.threads or 1):
        if mujoco:
            result = evaluate_in_mujoco(loaded, episodes, seed)
        elif gym is None:
            result = evaluate_in_simulator(loaded, episodes, seed)
        else:
            result = evaluate_in_gym(loaded, gym, episodes, seed, any_gym)
    low, high = result.interval()
    facts: dict[str, Any] = {
        "where": result.where,
        "checkpoint": loaded.checkpoint,
        "update": loaded.update,
        "episodes": episodes,
        "seed": seed,
        "mean": result.mean,
        "low": low,
        "high": high,
    }
    if result.successes is not None and result.criterion is not None:
        facts["successes"] = int(result.successes.sum())
        facts["needed"] = result.criterion.needed(episodes)
    try:
        loaded.file.append_evaluation(result.returns, facts)
    except RunFileError as error:
        logger.warning(f"the result is not stored: {error}")
    return result


def evaluate_in_simulator(loaded: LoadedRun, episodes: int, seed: int) -> Evaluation:
    """Whole episodes in the simulator the run was trained in, all in one batch."""
    env, module = loaded.env, loaded.policy.module
    generator = torch.Generator().manual_seed(seed)
    x = env.reset(episodes, generator, module.mean.dtype).to(loaded.device)
    rollout = Rollout(env, module, expected_steps=env.episode_steps, threads=loaded.config.threads)
    where, criterion = f"diffsim:{env.name}", env.success_criterion
    if criterion is None:
        returns, lengths = rollout.episodes(x)
        return Evaluation(where, seed, returns.double().cpu().numpy(), lengths.cpu().numpy())
    returns, lengths, states = rollout.episodes(x, keep_states=True)
    successes = successes_of(env, states).cpu().numpy()
    return Evaluation(
        where, seed, returns.double().cpu().numpy(), lengths.cpu().numpy(), successes, criterion
    )


@torch.no_grad()
def evaluate_in_mujoco(loaded: LoadedRun, episodes: int, seed: int) -> Evaluation:
    """Whole episodes of the task of a robot from a file with MuJoCo's own steps, in float64.

    They start where those of :func:`evaluate_in_simulator` do.

    Raises:
        EvaluationError: the simulator is not a robot from a file, or the file cannot be read any more.
    """
    from robotics_envs.robots import RobotEnv, RobotFileError, in_mujoco

    module = loaded.policy.module
    if not isinstance(loaded.env, RobotEnv):
        raise EvaluationError(
            f"{loaded.env.name} is no robot from an MJCF or URDF file, which MuJoCo could step: leave out --mujoco"
        )
    try:
        env = in_mujoco(loaded.env)
    except (RobotFileError, UnknownNameError) as error:
        raise EvaluationError(f"MuJoCo cannot step {loaded.env.name}: {error}") from None
    dtype = module.mean.dtype
    x = env.reset(episodes, torch.Generator().manual_seed(seed), dtype).double()
    states, going = [x], ~env.done(x)
    returns, lengths = x.new_zeros(episodes), torch.zeros(episodes, dtype=torch.int64)
    p = env.params(x)
    while len(states) <= env.episode_steps:
        action = module(env.observe(x).to(device=loaded.device, dtype=dtype)).to(x)
        following, cost = env.step(x, action, p)
        returns -= torch.where(going, cost, 0.0)
        lengths += going
        x = torch.where(going.unsqueeze(-1), following, x)
        going = going & ~env.done(x)
        states.append(x)
    where, criterion = f"MuJoCo:{env.name}", env.success_criterion
    successes = None if criterion is None else successes_of(env, torch.stack(states)).cpu().numpy()
    return Evaluation(where, seed, returns.numpy(), lengths.numpy(), successes, criterion)


def successes_of(env: Env, states: Tensor) -> Tensor:
    """``env.success(states)``, ``[B]`` bool.

    Raises:
        EvaluationError: the simulator's code fails, or gives something else.
    """
    if not isinstance(env.success_criterion, Success):
        raise EvaluationError(
            f"{env.name}: success_criterion = {env.success_criterion!r}, a robotics_envs.Success is needed"
        )
    try:
        flags = env.success(states)
    except Exception as error:
        line = str(error) if isinstance(error, NotImplementedError) else describe_failure(error)
        if line is None:
            raise
        raise EvaluationError(line) from None
    if not isinstance(flags, Tensor) or flags.shape != states.shape[1:2] or flags.dtype != torch.bool:
        got = f"{flags.dtype} {list(flags.shape)}" if isinstance(flags, Tensor) else type(flags).__name__
        raise EvaluationError(
            f"{env.name}: success returned {got}, expected torch.bool of shape [B] = {list(states.shape[1:2])}"
            f"{defined_at(env.success)}"
        )
    return flags


def evaluate_in_gym(
    loaded: LoadedRun, gym_id: str, episodes: int, seed: int, any_gym: bool = False
) -> Evaluation:
    """Whole episodes in another environment of Gymnasium's, stepped side by side so the policy sees a batch.

    Ids that begin with ``dm_control/`` are those of dm_control's suite, through shimmy.  In the simulator's
    foreign twin, observations pass through ``Env.observation_from_twin``.

    Raises:
        EvaluationError: Gymnasium is not installed, or has no such environment, or it is not the simulator's
            twin and ``any_gym`` is not set, or its spaces differ from what the policy was trained on, or an
            episode does not end.
    """
    policy = loaded.policy
    returns, lengths = np.zeros(episodes), np.zeros(episodes, dtype=np.int64)
    together = min(episodes, 128)
    envs = [_make(gym_id) for _ in range(together)]
    translate = loaded.env.observation_from_twin if gym_id == loaded.env.gym_id else lambda o: o
    try:
        _check_spaces(policy, envs[0], gym_id, translate)
        if not any_gym:
            _check_twin(loaded, gym_id)
        for first in range(0, episodes, together):
            live = list(range(first, min(first + together, episodes)))
            observations = {i: envs[i - first].reset(seed=seed + i)[0] for i in live}
            while live:
                actions = policy(translate(np.stack([observations[i] for i in live])))
                still = []
                for i, action in zip(live, actions, strict=True):
                    observations[i], reward, terminated, truncated, _ = envs[i - first].step(action)
                    returns[i] += float(reward)
                    lengths[i] += 1
                    if not (terminated or truncated):
                        still.append(i)
                live = still
                if lengths.max() > LONGEST_EPISODE:
                    raise EvaluationError(
                        f"an episode of {gym_id} has not ended after {LONGEST_EPISODE:,} steps"
                    )
    finally:
        for env in envs:
            env.close()
    return Evaluation(gym_id, seed, returns, lengths)


def _check_twin(loaded: LoadedRun, gym_id: str) -> None:
    if _is_twin(loaded, gym_id):
        return
    twin = loaded.env.gym_id
    raise EvaluationError(
        f"{gym_id} is not known to be the same task as {loaded.env.name}"
        + (f", whose twin is {twin}" if twin else ", which has no twin in Gymnasium")
        + ": what it observes and rewards may mean something else. "
        "To drive it all the same: --any-gym (in Python any_gym=True)"
    )


def _is_twin(loaded: LoadedRun, gym_id: str) -> bool:
    """Whether a Gymnasium id is declared to be the run's simulator, or is made from it."""
    if gym_id == loaded.env.gym_id:
        return True
    name, own = loaded.config.env.name, gym_id.rpartition(":")[2]
    if name not in ENVIRONMENTS or not own.startswith("diffsim/"):
        return False
    from robotics_envs.gym import gym_id as id_of

    return own == id_of(name)


def _make(gym_id: str) -> Any:
    """A Gymnasium environment with a flat observation."""
    try:
        import gymnasium
    except ModuleNotFoundError:
        raise EvaluationError(f"evaluating with --gym needs Gymnasium: {install_command('gym')}") from None
    if gym_id.startswith("diffsim/"):
        import robotics_envs.gym  # noqa: F401, registers them
    if gym_id.startswith("dm_control/"):
        # dm_control looks for a screen when it is imported, of which stepping has no need.
        os.environ.setdefault("MUJOCO_GL", "disabled")
        try:
            import dm_control  # noqa: F401
            import shimmy
        except ModuleNotFoundError as error:
            raise EvaluationError(f"{gym_id} needs more ({error}): {install_command('twins')}") from None
        gymnasium.register_envs(shimmy)
    from robotics_envs.robots.compiling import gymnasium_env

    try:
        env: Any = gymnasium_env(gym_id)
    except (gymnasium.error.Error, ModuleNotFoundError, TypeError) as error:
        raise EvaluationError(f"Gymnasium cannot make {gym_id!r}: {error}") from None
    if isinstance(env.observation_space, gymnasium.spaces.Dict):
        env = gymnasium.wrappers.FlattenObservation(env)
    return env


def _check_spaces(policy: LoadedPolicy, env: Any, gym_id: str, translate: Any) -> None:
    from gymnasium.spaces import Box

    if not isinstance(env.action_space, Box) or env.action_space.shape != (policy.actions,):
        raise EvaluationError(
            f"{gym_id} takes actions {env.action_space}; this policy gives {policy.actions} real numbers"
        )
    wanted, space = (len(policy.observation_names),), env.observation_space
    if not isinstance(space, Box) or translate(np.zeros(space.shape)).shape != wanted:
        raise EvaluationError(
            f"{gym_id} gives observations {space}; this policy takes {wanted[0]} "
            f"({', '.join(policy.observation_names)})"
        )
