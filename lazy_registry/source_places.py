"""Whose code a file holds, and where a function is written: for messages that name the user's own line."""

from __future__ import annotations

import inspect
import os
import sysconfig
from pathlib import Path

_PACKAGES = Path(__file__).resolve().parent.parent
_OURS = tuple(
    f"{_PACKAGES / name}{os.sep}" for name in ("lazy_registry", "solvers", "robotics_envs", "diffsim")
)
_INSTALLED = tuple(sorted({sysconfig.get_path(key) + os.sep for key in ("purelib", "platlib", "stdlib")}))
_TYPED = ("<stdin>", "<string>", "<ipython", "<python-input")
"""What Python calls the file of code typed at a prompt or given by ``python -c``."""


def defined_at(function: object) -> str:
    """`` (my_env.py:12)``, where a function, method or class is written; empty if unknown or in this project."""
    function = inspect.unwrap(function) if callable(function) else function
    try:
        file, line = inspect.getsourcefile(function), inspect.getsourcelines(function)[1]  # type: ignore[arg-type]
    except (OSError, TypeError):
        return ""
    return f" ({shown_path(file)}:{line})" if file and is_users_file(file) else ""


def is_users_file(filename: str, module: str = "__main__") -> bool:
    """Whether the code of a traceback's frame is the user's: not ours, not Python's, not an installed library's."""
    if filename.startswith("<"):
        # Dataclasses, too, make functions in a file "<string>", but not in the module __main__ of a prompt.
        return filename.startswith(_TYPED) and module == "__main__"
    return not os.path.abspath(filename).startswith((*_OURS, *_INSTALLED))


def shown_path(filename: str) -> str:
    """A path for messages: relative to the current folder where it lies below it."""
    relative = os.path.relpath(filename) if os.path.isabs(filename) else filename
    return filename if relative.startswith(os.pardir) else relative
