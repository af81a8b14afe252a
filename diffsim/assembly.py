"""From a configuration to what it names: simulator, policy, optimizer and algorithm, each made once."""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch

from diffsim.algorithms.base import Algorithm
from diffsim.config import ALGORITHMS, Named, RunConfig, load_class, validate
from diffsim.errors import ConfigError, DiffsimError
from diffsim.optimizers import canonical, optimizer_class
from diffsim.optimizers.base import Optimizer
from diffsim.policy import Policy, make_policy
from diffsim.settings import Settings
from robotics_envs.base import Env
from robotics_envs.conformance.stated import names_match_shapes, shapes_on
from robotics_envs.environments import ENVIRONMENTS, JULIA
from robotics_envs.julia.installation import JuliaError
from robotics_envs.user_code import describe_failure
from solvers.compiler.structure import structure_only


def assemble(config: RunConfig) -> Assembly:
    """What ``config`` names.  Training, resuming, evaluating and rendering share it.

    Mistakes in the configuration are a :class:`ConfigError` when the part that they concern is asked for.
    """
    return Assembly(config)


@dataclass(frozen=True, eq=False)
class Assembly:
    """The parts of a run.  Each is made when it is first asked for, and once.

    Whoever asks for ``env`` and ``policy`` only, as evaluation does, executes no code of the algorithm and of the
    optimizer.
    """

    given: RunConfig

    @cached_property
    def config(self) -> RunConfig:
        """The given configuration with the defaults of simulator, algorithm and optimizer written out.

        Raises:
            ConfigError: an unknown environment, algorithm, optimizer, device or option, or an impossible value.
        """
        given, constants = self.given, {name: c.value for name, c in self.env.constants.items()}
        algorithm, _, optimizer = self.algorithm_settings, self.device, self.optimizer_settings
        return given.model_copy(
            update={
                "env": Named(name=given.env.name, **constants),
                "algorithm": Named(name=given.algorithm.name, **algorithm.model_dump()),
                "optimizer": Named(name=canonical(given.optimizer.name), **optimizer.model_dump()),
            }
        )

    @cached_property
    def env(self) -> Env:
        """The simulator.

        Raises:
            ConfigError: there is none, it refuses its parameters, or its methods give wrong shapes.
        """
        return _made_env(self.given)

    @cached_property
    def device(self) -> torch.device:
        """Where the policy computes.

        Raises:
            ConfigError: no such device here.
        """
        name = self.given.device
        try:
            device = device_named(name)
            torch.empty(1, device=device).cpu()
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"device {name!r} cannot be used here: {reason}") from None
        return device

    @cached_property
    def policy(self) -> Policy:
        """The policy, freshly initialised from the seed.

        Raises:
            ConfigError: an unknown network or option, or a network that fails.
        """
        given = self.given
        with _explained():
            return make_policy(given.policy, self.env, given.seed, self.device, getattr(torch, given.dtype))

    @cached_property
    def algorithm_settings(self) -> Settings:
        """The validated options of the algorithm."""
        return validate(self._algorithm_class.Settings, self.given.algorithm.options, "algorithm")

    @cached_property
    def optimizer_settings(self) -> Settings:
        """The validated options of the optimizer."""
        return validate(self._optimizer_class.Settings, self.given.optimizer.options, "optimizer")

    @property
    def divides_batches(self) -> bool:
        """Whether the algorithm can simulate a batch in several shards."""
        return bool(getattr(self._algorithm_class, "divides_batches", False))

    @cached_property
    def _algorithm_class(self) -> type[Algorithm]:
        return load_class(ALGORITHMS, self.given.algorithm.name)

    @cached_property
    def _optimizer_class(self) -> type[Optimizer]:
        return optimizer_class(self.given.optimizer.name)

    @cached_property
    def optimizer(self) -> Optimizer:
        """The optimizer of the policy's parameters."""
        with _explained():
            return self._optimizer_class(self.policy.parameters(), self.optimizer_settings, self.given.seed)

    @cached_property
    def algorithm(self) -> Algorithm:
        """The algorithm, which holds all that changes while a run trains; fresh from the seed."""
        self._check_shards()
        made, parts = self._algorithm_class, (self.env, self.policy, self.config, self.algorithm_settings)
        with _explained():
            return made(*parts, self.optimizer) if _takes_optimizer(made) else made(*parts)

    def _check_shards(self) -> None:
        """Raises ConfigError where the algorithm cannot divide its batches, or there are not enough rollouts in one."""
        shards, name = self.given.shards, self.given.algorithm.name
        if shards > 1 and not self.divides_batches:
            raise ConfigError(
                f"shards = {shards}: algorithm {name!r} does not divide its batches; shards = 1, or set its "
                "divides_batches once it does"
            )
        batch = getattr(self.algorithm_settings, "batch", shards)
        if batch < shards:
            raise ConfigError(
                f"shards = {shards}: a batch of algorithm.batch = {batch} has not so many parts"
            )


def device_named(name: str) -> torch.device:
    """The device of torch that a configuration names.

    ``"auto"``, and ``"cuda"`` without a number, are the GPU of this process: of several that share a machine, each has
    its own (LOCAL_RANK, which torchrun sets).
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    return torch.device(name)


def _takes_optimizer(made: type[Algorithm]) -> bool:
    """Whether a class has the present constructor; that of version 0.1 had four arguments."""
    parameters = inspect.signature(made).parameters.values()
    return len(parameters) > 4 or any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters)


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """While inside, what a user's code raises becomes a ConfigError with the file and the line."""
    try:
        yield
    except DiffsimError:
        raise
    except Exception as error:
        line = describe_failure(error)
        if line is None:
            raise
        raise ConfigError(line) from None


def _made_env(config: RunConfig) -> Env:
    name = config.env.name
    if name.startswith(JULIA):
        _start_julia(config.threads or 1)
    env_class = load_class(ENVIRONMENTS, name)
    if not (isinstance(env_class, type) and issubclass(env_class, Env)):
        raise ConfigError(f"environment {name!r} is no subclass of robotics_envs.base.Env: {env_class!r}")
    try:
        env = env_class(**config.env.options)
        with structure_only():
            complaints = [*names_match_shapes(env), *shapes_on(env, getattr(torch, config.dtype), "cpu")]
    except Exception as error:
        line = describe_failure(error, env_class, config.env.options)
        if line is None and not isinstance(error, (ValueError, TypeError, JuliaError)):
            raise
        raise ConfigError(f"environment {name!r}: {line or error}") from None
    if complaints:
        raise ConfigError(
            f"environment {name!r}: {'; '.join(complaints)}; robotics_envs.check_env finds more"
        )
    return env


def _start_julia(threads: int) -> None:
    """Start Julia with the threads of the run, unless it runs already or the environment names a number.

    Raises:
        ConfigError: it cannot be started.
    """
    from robotics_envs.julia import start

    try:
        start(threads)
    except JuliaError as error:
        raise ConfigError(str(error)) from None
