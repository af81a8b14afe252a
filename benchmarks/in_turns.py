"""Timing pieces of work in turns: what else the machine does falls on all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any


def timed(work: Callable[[], Any], repetitions: int) -> float:
    """Mean seconds of a call."""
    begun = time.perf_counter()
    for _ in range(repetitions):
        work()
    return (time.perf_counter() - begun) / repetitions


def spread(values: Sequence[float], unit: float = 1e6) -> dict[str, float]:
    """Median, 10th and 90th percentile, in microseconds if the values are seconds."""
    ordered = sorted(values)
    tenth = len(ordered) // 10
    return {
        "median": statistics.median(ordered) * unit,
        "low": ordered[tenth] * unit,
        "high": ordered[-1 - tenth] * unit,
    }
