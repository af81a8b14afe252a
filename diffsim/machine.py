"""What the machine has."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def free_memory_mb() -> float:
    """Of the machine, or of the control group that this process is in if that has less."""
    free = float("inf")
    with suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(float(line.split()[1]) / 1000 for line in lines if line.startswith("MemAvailable"))
    with suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        limit, used = (float((group / name).read_text()) for name in ("memory.max", "memory.current"))
        free = min(free, (limit - used) / 1e6)
    return free
