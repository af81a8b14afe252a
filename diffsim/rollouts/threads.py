"""How many threads a call of a native kernel has: a few, or the most, whichever has been faster.

The number changes no bit of a result, so that it may follow from what is measured.
"""

from __future__ import annotations

import math

LONG = 4e-3
"""Seconds of a call with few threads from which on more are tried: they need some 10 microseconds to begin, and wait
actively for a millisecond afterwards."""

_FIRST = 3
"""The number of calls with few, and then with the most threads, before one is chosen."""

_AGAIN = 50
"""After so many calls the other is tried once more: what else the processors do changes."""

_SHARE = 0.2
"""Coefficient of the moving average of the seconds of what was chosen."""


class Pace:
    """Seconds that a function takes for each unit of its work, with few threads and with the most."""

    def __init__(self) -> None:
        self._few = self._most = math.inf
        self._calls = 0

    def wants_most(self, work: float) -> bool:
        """Whether the next call, of so much work, is to have the most threads."""
        if self._calls < _FIRST or self._few * work <= LONG:
            return False
        if self._most == math.inf or self._calls < 2 * _FIRST:
            return True
        return (self._most < self._few) != (self._calls % _AGAIN == 0)

    def note(self, most: bool, work: float, seconds: float) -> None:
        """A call has taken so many seconds."""
        pace, old = seconds / work, self._most if most else self._few
        chosen = most == (self._most < self._few)
        if self._calls < 2 * _FIRST:
            # The first call reads the kernel from the disk, and any may have been held up.
            new = min(old, pace)
        else:
            new = old + _SHARE * (pace - old) if chosen and old < math.inf else pace
        if most:
            self._most = new
        else:
            self._few = new
        self._calls += 1
