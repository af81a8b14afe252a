"""One place that says which numbers and paths are accepted, from Python, TOML and the command line alike."""

from __future__ import annotations

import numbers
import os
import shlex
from pathlib import Path
from typing import Any

from diffsim.errors import ConfigError, DiffsimError
from solvers import validation

LARGEST = 2**63 - 1
"""Of seeds and counts: what a 64-bit signed integer holds, in torch and in HDF5."""


def whole_number(
    name: str,
    value: Any,
    least: int = 0,
    most: int = LARGEST,
    error: type[DiffsimError] = ConfigError,
) -> int:
    """``value`` as an int: a whole number of Python or NumPy, or a float that is whole, such as ``1e3``.

    Raises:
        ConfigError: it is none, or outside ``least`` to ``most``; or the given ``error`` instead.
    """
    is_whole_float = (
        isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral) and value % 1 == 0
    )
    try:
        return validation.whole_number(name, int(float(value)) if is_whole_float else value, least, most)
    except ValueError as refusal:
        raise error(str(refusal)) from None


def folder(path: str | os.PathLike[str]) -> Path:
    """An absolute path with ``~`` replaced by the home folder; links are kept.

    Absolute, because the program may change its current folder afterwards.
    """
    return Path(os.path.abspath(Path(path).expanduser()))


def shown(path: Path) -> str:
    """A path for messages: relative to the current folder if it lies below that."""
    here = Path.cwd()
    return str(path.relative_to(here)) if here in path.parents else str(path)


def pasted(path: Path) -> str:
    """A path for commands that are to be copied from a message into a shell."""
    return shlex.quote(shown(path))


def printable(text: str) -> str:
    """Text of unknown origin with control characters spelled out, which a terminal would obey; lines stay lines."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def counted(number: int, noun: str) -> str:
    """``1 run``, ``2,000 runs``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
