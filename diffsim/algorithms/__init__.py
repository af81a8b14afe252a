"""How policies are trained, one file an algorithm."""

from __future__ import annotations

from diffsim.settings import Settings
from lazy_registry.registry import Registry

ALGORITHMS = Registry(
    "algorithm",
    {
        "short_window": "diffsim.algorithms.short_window:ShortWindow",
        "full_horizon": "diffsim.algorithms.full_horizon:FullHorizon",
    },
)


def built_in_settings(name: str) -> type[Settings] | None:
    """The class of the options of an algorithm in the registry; None for any other, whose code is not loaded here."""
    return ALGORITHMS.load(name).Settings if name in ALGORITHMS else None
