"""What a launcher of processes, such as torchrun, says of this one; without torch, which takes a second to load."""

from __future__ import annotations

import os


def launched() -> tuple[int, int]:
    """Rank and number of the processes that a launcher started; (0, 1) if there is none."""
    try:
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except (KeyError, ValueError):
        return 0, 1
