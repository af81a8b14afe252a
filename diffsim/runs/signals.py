"""Ctrl-C, SIGTERM and a closed terminal as a polite request to stop."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class StopRequest:
    """``signal`` is None until someone asks to stop."""

    signal: int | None = None


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """While inside, the first SIGINT, SIGTERM or SIGHUP is only noted; a second one acts as it did before.

    A signal that is ignored when this begins stays ignored: whoever started the process chose that (``nohup`` does).
    Outside the main thread Python cannot install handlers; nothing is changed there.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    names = ("SIGINT", "SIGTERM", "SIGHUP")
    watched = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in watched}
    # None: a handler that was not installed from Python, which could not be put back.
    before = {n: handler for n, handler in before.items() if handler not in (signal.SIG_IGN, None)}

    def note(number: int, _: FrameType | None) -> None:
        request.signal = number
        restore()

    def restore() -> None:
        for watched_number, handler in before.items():
            signal.signal(watched_number, handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield request
    finally:
        restore()
