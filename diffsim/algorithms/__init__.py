"""How policies are trained, one file an algorithm."""

from __future__ import annotations

from solvers.registry import Registry

ALGORITHMS = Registry(
    "algorithm",
    {
        "short_window": "diffsim.algorithms.short_window:ShortWindow",
        "full_horizon": "diffsim.algorithms.full_horizon:FullHorizon",
    },
)
