"""Mass and inertia of a capsule (a cylinder with half balls at its ends), the shape of links in MuJoCo's models.

``length`` is the cylinder's; the total length is ``length + 2 radius``.
"""

from __future__ import annotations

import math
from typing import Any

DENSITY = 1000.0  # kg/m³, MuJoCo's default for geoms (MuJoCo documentation, XML reference, geom density)


def capsule_mass(radius: float, length: float) -> float:
    """Mass kg of a capsule of ``DENSITY``, its sizes in m."""
    return DENSITY * math.pi * radius**2 * (length + 4 / 3 * radius)


def capsule_gyration(radius: Any, length: Any) -> Any:
    """Squared radius of gyration m² of a capsule about an axis through its centre, across its own.

    For numbers or tensors.  The masses of cylinder and half balls are as ``length`` to ``4 radius / 3``.
    About that axis the cylinder has ``(3 radius² + length²) / 12`` and the half balls, whose centres of mass
    lie ``3 radius / 8`` beyond the cylinder's ends, ``2 radius² / 5 + 3 radius length / 8 + length² / 4``
    (Meriam and Kraige, Engineering Mechanics: Statics, table D/4, and the parallel axis theorem).
    """
    balls = 4 / 3 * radius
    rod = (3 * radius**2 + length**2) / 12
    ends = 2 / 5 * radius**2 + 3 / 8 * radius * length + length**2 / 4
    return (length * rod + balls * ends) / (length + balls)
