"""Writing a file so that a reader, or a crash, meets the old file or the whole new one."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path


def write_whole(
    path: Path, content: bytes | memoryview | Callable[[Path], object], temporary: str | None = None
) -> None:
    """Replace ``path`` by ``content``: bytes, or a function that writes to the path it is given.

    A link is followed, so that the file it leads to is replaced; the permissions of the old file are kept.  The data
    are flushed to the disk before the new file takes the place of the old one.  ``temporary`` names the file that is
    written first, for a caller that holds a lock; without it every thread has its own.

    Raises:
        OSError: it cannot be written; the old file is unchanged.
    """
    path = Path(os.path.realpath(path))
    # The suffix stays the last part of the name: writers of images choose the format by it.
    name = temporary or f".{os.getpid()}-{threading.get_ident()}-{path.name}"
    partial = path.with_name(name)
    try:
        if callable(content):
            partial.touch()
            content(partial)
        else:
            partial.write_bytes(content)
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        with contextlib.suppress(FileNotFoundError):
            os.chmod(partial, stat.S_IMODE(path.stat().st_mode))
        os.replace(partial, path)
    except BaseException:
        # Whatever clean-up meets, the first error is the one to report.
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # makes the rename itself durable
    finally:
        os.close(folder)
