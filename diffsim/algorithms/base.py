"""The base class of algorithms, and the record of an update."""

from __future__ import annotations

import abc
import warnings
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from diffsim.config import RunConfig
from diffsim.optimizers import make_optimizer
from diffsim.optimizers.base import Optimizer
from diffsim.policy import Policy
from diffsim.rollouts import Rollout
from diffsim.settings import Settings as AnySettings
from diffsim.shards import Shards
from robotics_envs.base import Costs, Env, EpisodeStates, Params, States


class Record(NamedTuple):
    """What one update did."""

    loss: float
    grad_norm: float
    env_steps: int
    """Environment steps used: all rollouts of all evaluations of the objective."""
    gradient_evaluations: int
    """Evaluations of the policy's objective with its gradient."""
    compile_seconds: float = 0.0
    """The part of the update's time that compiling rollouts took; it is recorded separately."""
    dropped: str = ""
    """Why the update left the parameters unchanged; empty if it changed them."""
    left_out: int = 0
    """How many rollouts were left out of the update because they were not finite."""


class Algorithm(abc.ABC):
    """Trains ``policy`` in ``env``; each call of ``step`` is one update.

    All random numbers come from ``self.generator``.  ``state_dict`` holds everything that later updates depend on, so
    saving and loading between any two updates changes no bit of what follows.

    Args:
        env: the simulator.
        policy: is trained in place.
        config: of the run, with all defaults written out.
        settings: the validated options of the algorithm.
        optimizer: of the policy's parameters.
    """

    Settings: ClassVar[type[AnySettings]]
    """The class of its options."""
    divides_batches: ClassVar[bool] = False
    """Whether it simulates its batches by :attr:`shards`; other algorithms are refused a run with several."""

    def __init__(
        self,
        env: Env,
        policy: Policy,
        config: RunConfig,
        settings: AnySettings,
        optimizer: Optimizer | None = None,
    ) -> None:
        self.env = env
        self.policy = policy
        self.config = config
        self.device: torch.device = policy.mean.device
        self.dtype: torch.dtype = policy.mean.dtype
        self.params = env.params(policy.mean)
        self.shards = Shards.of(config)
        self.generator = torch.Generator(self.device).manual_seed(config.seed)
        self.rollout = Rollout(env, policy, expected_steps=env.episode_steps)
        """Simulates; subclasses that train on other rollouts than whole episodes replace it."""
        if optimizer is None:
            warnings.warn(
                f"{type(self).__name__}: an algorithm is given its optimizer, as the fifth argument of its "
                "constructor, and hands it to Algorithm.__init__; four arguments will go in the next release",
                DeprecationWarning,
                stacklevel=3,
            )
            optimizer = make_optimizer(policy.parameters(), config.optimizer, config.seed)
        self.optimizer = optimizer
        self.updates_done = 0

    def __repr__(self) -> str:
        done = f"{self.updates_done} of {self.config.updates} updates"
        return f"{type(self).__name__}({self.env.name}, {self.optimizer!r}, {done})"

    def episodes(self, x: States) -> tuple[Costs, EpisodeStates]:
        """Whole episodes of the task from ``x [B, n]``, without exploration noise: returns ``[B]`` and states."""
        returns, _, states = self.rollout.episodes(x, self.params, self._no_noise(x), keep_states=True)
        return returns, states

    def returns(self, x: States) -> Costs:
        """Returns ``[B]`` of whole episodes of the task from ``x [B, n]``, without exploration noise."""
        return self.rollout.returns(x, self.params, self._no_noise(x))

    def _no_noise(self, x: States) -> Tensor | None:
        """What rollouts without noise are given, ``[m]``: zeros where those compiled for training take noise."""
        return None

    @property
    def _threads(self) -> int | None:
        """Of native rollouts; None for one, and more where they take long and no other process shares the batch."""
        return self.config.threads or (None if self.shards.count == 1 else 1)

    @property
    def training_params(self) -> Params:
        """The physical parameters of this update; ``self.params`` are those of evaluations."""
        return self.env.training_params(self.params, self.remaining)

    @property
    def remaining(self) -> float:
        """The fraction of the run that is left, in (0, 1]."""
        return 1.0 - self.updates_done / self.config.updates

    def lengthen(self, updates: int) -> None:
        """Go on as in a run of ``updates`` updates."""
        self.config = self.config.model_copy(update={"updates": updates})

    @abc.abstractmethod
    def step(self) -> Record:
        """Take one update."""

    @abc.abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue bit for bit: tensors, numbers, strings, None, dicts and lists."""

    @abc.abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that ``state_dict`` returned."""
