"""What may be given where a simulator, the folder of a run or a callback is meant."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from diffsim.config import RunConfig, loading, name_of_class
from diffsim.errors import ConfigError
from diffsim.runs.runfile import RunFile
from diffsim.values import folder
from lazy_registry.user_files import load_file
from robotics_envs.base import Env
from robotics_envs.environments import JULIA, robot_file

EnvLike: TypeAlias = "str | os.PathLike[str] | type[Env] | Env | Mapping[str, Any]"
"""A name, the path of a file with one simulator, a class, an instance, or a section with name and parameters."""
RunLike: TypeAlias = "str | os.PathLike[str] | RunFile"
"""A run's folder, its file, or a RunFile."""
Callback: TypeAlias = Callable[[Mapping[str, float]], object]
"""Gets the new row of the history after each update."""


def env_section(env: EnvLike) -> dict[str, Any]:
    """The section ``env`` of a configuration: name and physical parameters.

    Raises:
        ConfigError: no simulator is meant by it.
    """
    if isinstance(env, Mapping):
        section = dict(env)
        return {**section, **env_section(section["name"])} if "name" in section else section
    if isinstance(env, Env):
        return {"name": name_of_class(type(env)), **{name: c.value for name, c in env.constants.items()}}
    if isinstance(env, type):
        if not issubclass(env, Env):
            raise ConfigError(f"env = {env!r}: a simulator is a subclass of robotics_envs.Env")
        return {"name": name_of_class(env)}
    if not isinstance(env, (str, os.PathLike)):
        raise ConfigError(
            f"env = {env!r}: give a simulator's name, 'my_env.py:MyEnv', a file, a class or an instance"
        )
    name = os.fspath(env)
    return {"name": _only_simulator(name) if str(name).endswith(".py") else name}


def _only_simulator(file: str) -> str:
    """``"my_env.py:MyEnv"`` for a file that defines one simulator."""
    with loading("simulator", file):
        module = load_file(file)
    found = [
        name
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, Env) and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        what = f"several simulators: {', '.join(found)}" if found else "no subclass of robotics_envs.Env"
        raise ConfigError(f"{file} defines {what}; name one as '{Path(file).name}:MyEnv'")
    return f"{Path(file).expanduser().resolve()}:{found[0]}"


def run_folder(out: str | os.PathLike[str]) -> Path:
    """The folder of a new run.

    Raises:
        ConfigError: it is a file, or named like one, or empty.
    """
    if not os.fspath(out):
        raise ConfigError("out is empty: give the folder of the run, such as runs/first, or leave it out")
    place = folder(out)
    if place.is_file() or place.suffix == ".h5":
        raise ConfigError(f"out = {os.fspath(out)!r}: give a folder; the run becomes run.h5 in it")
    return place


def default_folder(config: RunConfig) -> Path:
    """``runs/pendulum``; of a simulator in a file ``my_env.py``, ``runs/my_env.MyEnv``."""
    if (robot := robot_file(config.env.name)) is not None:
        return Path("runs", robot.stem)
    start, _, name = config.env.name.rpartition(":")
    stem = Path(start.removeprefix(JULIA)).stem if start.endswith((".py", ".jl")) else start
    return Path("runs", f"{stem}.{name}".replace(":", ".").strip("."))


def callbacks_of(callback: Callback | Sequence[Callback]) -> list[Callback]:
    """The callbacks in one or several.

    Raises:
        ConfigError: one cannot be called.
    """
    callbacks: list[Any] = list(callback) if isinstance(callback, (list, tuple)) else [callback]
    for one in callbacks:
        if not callable(one):
            raise ConfigError(
                f"callback = {one!r}: give a function of a row of the history, or a list of them"
            )
    return callbacks
