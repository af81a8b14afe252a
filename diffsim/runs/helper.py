"""A process that computes for another one: see :mod:`diffsim.processes`, which starts it."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from typing import TextIO

from diffsim.errors import DiffsimError, Interrupted
from diffsim.runs.run import trained


def _end_with(parent: TextIO) -> None:
    """End this process when the one that started it has gone: its end of the pipe is closed then."""
    parent.read()
    os._exit(1)


def main() -> None:
    """A helper: is told on its standard input what to train."""
    # Ctrl-C in the terminal reaches all processes; the one that was asked to train tells the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with, args=(sys.stdin,), daemon=True).start()
    try:
        trained(**order, processes=int(os.environ["WORLD_SIZE"]), quiet=True)
    except Interrupted as stop:
        sys.exit(128 + stop.signal)
    except DiffsimError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
