"""From a configuration to what it names: simulator, policy, algorithm, optimizer, device."""

from __future__ import annotations

from typing import Any

import torch

from diffsim.algorithms import ALGORITHMS
from diffsim.algorithms.base import Algorithm
from diffsim.config import Named, RunConfig, load_class, validate
from diffsim.errors import ConfigError, DiffsimError
from diffsim.optimizers import canonical, optimizer_settings
from diffsim.policy import make_policy
from robotics_envs import ENVIRONMENTS, JULIA
from robotics_envs.base import Env
from robotics_envs.conformance.stated import names_match_shapes, shapes_on
from robotics_envs.julia.installation import JuliaError
from robotics_envs.user_code import describe_failure


def resolve(config: RunConfig) -> RunConfig:
    """The configuration with the defaults of simulator, algorithm and optimizer written out.

    Raises:
        ConfigError: an unknown environment, algorithm, optimizer, device or option.
    """
    env = build_env(config)
    settings = algorithm_settings(config)
    resolve_device(config.device)
    constants = {name: c.value for name, c in env.constants.items()}
    return config.model_copy(
        update={
            "env": Named(name=config.env.name, **constants),
            "algorithm": Named(name=config.algorithm.name, **settings.model_dump()),
            "optimizer": Named(
                name=canonical(config.optimizer.name), **optimizer_settings(config.optimizer).model_dump()
            ),
        }
    )


def build_env(config: RunConfig) -> Env:
    """The simulator that the configuration names.

    Raises:
        ConfigError: there is none, it refuses its parameters, or its methods give wrong shapes.
    """
    name = config.env.name
    if name.startswith(JULIA):
        start_julia(config.threads)
    env_class = load_class(ENVIRONMENTS, name)
    if not (isinstance(env_class, type) and issubclass(env_class, Env)):
        raise ConfigError(f"environment {name!r} is no subclass of robotics_envs.base.Env: {env_class!r}")
    try:
        env = env_class(**config.env.options)
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


def start_julia(threads: int) -> None:
    """Start Julia with the threads of the run, unless it runs already or the environment names a number.

    Raises:
        ConfigError: it cannot be started.
    """
    from robotics_envs.julia import start

    try:
        start(threads)
    except JuliaError as error:
        raise ConfigError(str(error)) from None


def algorithm_settings(config: RunConfig) -> Any:
    return validate(
        load_class(ALGORITHMS, config.algorithm.name).Settings, config.algorithm.options, "algorithm"
    )


def build_algorithm(config: RunConfig) -> Algorithm:
    """Everything of a run that has state, fresh from its seed."""
    env = build_env(config)
    device = resolve_device(config.device)
    algorithm = load_class(ALGORITHMS, config.algorithm.name)
    try:
        policy = make_policy(config.policy, env, config.seed, device, getattr(torch, config.dtype))
        return algorithm(env, policy, config, algorithm_settings(config))
    except DiffsimError:
        raise
    except Exception as error:
        line = describe_failure(error)
        if line is None:
            raise
        raise ConfigError(line) from None


def resolve_device(name: str) -> torch.device:
    """The torch device called ``name``.

    Raises:
        ConfigError: no such device here.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {name!r} cannot be used here: {reason}") from None
    return device
