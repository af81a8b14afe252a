"""The models of suites of tasks: files that installed packages bring."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, NoReturn

from lazy_registry.installation import install_command
from robotics_envs.robots.errors import RobotFileError
from robotics_envs.robots.model import Options, RobotModel
from robotics_envs.robots.reading import read


def gymnasium_model(file: str, **options: Any) -> RobotModel:
    """A file of the installed package gymnasium, such as ``"hopper.xml"``.

    Raises:
        RobotFileError: gymnasium is not installed, or has no such file.
    """
    return _installed("gymnasium", "Gymnasium", Path("envs", "mujoco", "assets", file), options)


def dm_control_model(file: str, **options: Any) -> RobotModel:
    """A file of the suite of the installed package dm_control, such as ``"walker.xml"``.

    Raises:
        RobotFileError: dm_control is not installed, or has no such file.
    """
    return _installed("dm_control", "dm_control", Path("suite", file), options)


def refuse(task: str, file: str) -> NoReturn:
    """Say what of a suite's task is not simulated, in the words of the reader of its file.

    Raises:
        RobotFileError: always.
    """
    model = dm_control_model if task.startswith("dm_control:") else gymnasium_model
    try:
        read_all_the_same = model(file)
    except RobotFileError as error:
        raise RobotFileError(f"{task}: {error}") from None
    raise RobotFileError(
        f"{task} has no reward here; its robot can be had as mjcf:{read_all_the_same.source}"
    )


def _installed(package: str, title: str, file: Path, options: dict[str, Any]) -> RobotModel:
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise RobotFileError(
            f"the model is a file of {title}, which is not installed: {install_command('twins')}"
        )
    path = Path(found.origin).parent / file
    if not path.is_file():
        raise RobotFileError(
            f"the installed {package} has no {path}: {install_command('twins')} brings one that has"
        )
    return read(path, Options(**options))
