"""Compiled functions of the algorithms: loaded once, timed, and done without where they cannot be compiled."""

from __future__ import annotations

import ctypes
import logging
import time

from solvers.compiler.trace import NativeUnsupportedError
from solvers.native import build

logger = logging.getLogger("diffsim")

_seconds: dict[str, float] = {}
"""How long it took to load each source, or to compile it first."""
_failed: set[str] = set()


def compile_seconds() -> float:
    """Seconds that this process has spent on preparing the functions of algorithms so far."""
    return sum(_seconds.values())


def load(source: str, arguments: type[ctypes.Structure], what: str) -> ctypes.CDLL | None:
    """The compiled ``source``; None without a compiler, or where it fails, which is logged.

    Args:
        arguments: what its functions are passed; ``size_of_arguments`` of the source returns its size.
        what: is not compiled then, for the message.
    """
    if source in _failed:
        return None
    started = time.perf_counter()
    try:
        library = build.load(source)
        if source not in _seconds:
            _seconds[source] = time.perf_counter() - started
            if library.size_of_arguments() != ctypes.sizeof(arguments):
                raise NativeUnsupportedError("the compiler lays out arguments in another way than ctypes")
    except build.NoCompilerError:
        return None  # it has been logged
    except NativeUnsupportedError as error:
        logger.warning("%s are not compiled, torch computes them: %s", what, error)
        _failed.add(source)
        return None
    return library
