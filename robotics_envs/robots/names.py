"""Robots by name: ``"mjcf:robot.xml"``, ``"urdf:arm.urdf?motors=true"``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from lazy_registry.registry import UnknownNameError, unknown
from robotics_envs.environments import robot_file
from robotics_envs.robots.env import RobotEnv, robot_class, urdf_class, with_parameters
from robotics_envs.robots.errors import RobotFileError
from robotics_envs.robots.model import CHOICES, Options


def robot_of_name(name: str) -> type[RobotEnv]:
    """The class of the robot that a name leads to; options follow a ``?``: ``"mjcf:a.xml?meshes=drop&floor=true"``.

    Raises:
        UnknownNameError: there is no such file or option.
        RobotFileError: an option has no such value, the file cannot be read, or holds what is not simulated here.
    """
    file = robot_file(name)
    assert file is not None
    options = {key: _value(name, key, text) for key, text in _options(name)}
    made = (urdf_class if name.startswith("urdf:") else robot_class)(file, **options)
    kind, _, rest = name.partition(":")
    given = rest.partition("?")[2]
    made.registry_name = f"{kind}:{Path(file).resolve()}" + (f"?{given}" if given else "")
    return made


def task_of_name(name: str, task: type[RobotEnv]) -> type[RobotEnv]:
    """A task with options: ``"gym:Hopper-v5?parameters=torso.mass,floor.friction"``, ``"gym:Hopper-v5?onset=0.01"``.

    Raises:
        UnknownNameError: there is no such option or parameter.
        RobotFileError: an option has no such value.
    """
    options = {key: _value(name, key, text) for key, text in _options(name, ("parameters", "onset"))}
    made = with_parameters(task, *options.get("parameters", ()), onset=options.get("onset"))
    made.registry_name = name
    return made


def _options(name: str, known: Sequence[str] | None = None) -> list[tuple[str, str]]:
    pairs = parse_qsl(name.partition("?")[2], keep_blank_values=True)
    known = [field.name for field in fields(Options)] if known is None else known
    for key, _ in pairs:
        if key not in known:
            raise UnknownNameError(unknown("option of a robot's file", key, known))
        if [other for other, _ in pairs].count(key) > 1:
            raise RobotFileError(f"{name}: {key} is given more than once")
    return pairs


def _value(name: str, key: str, text: str) -> Any:
    """The value of an option from its text."""
    if key in CHOICES:
        found = [choice for choice in CHOICES[key] if str(choice) == text]
        if not found:
            raise RobotFileError(f"{name}: {key} is {' or '.join(map(str, CHOICES[key]))}, got {text!r}")
        return found[0]
    if key == "keyframe":
        return text
    if key == "parameters":
        return tuple(part for part in text.split(",") if part)
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise RobotFileError(f"{name}: {key} = {text!r} is no number") from None
    if key == "control_range":
        return tuple(numbers)
    if len(numbers) > 1:
        raise RobotFileError(f"{name}: {key} is one number, got {text!r}")
    return numbers[0]
