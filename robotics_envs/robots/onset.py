"""Contacts whose onset is softened, for training: an option, with which evaluations are still MuJoCo's.

MuJoCo's impedance d of a contact (``solimp``) may be above 0 as soon as two geoms touch: the force jumps there, and a
gradient through a rollout knows nothing of the jump.  With an onset of w metres the impedance at a depth r is

    d(r) s(r / w),   s(y) = y² (3 - 2 y) for 0 <= y <= 1, and 1 beyond,

so that acceleration is a differentiable function of the depth where a contact begins.  At depths of w and more, and
everywhere for w = 0, it is MuJoCo's.  For a constant d that is nearly ``solimp="0 d w 0.5 2"``.  docs/robots.md has
measurements.  Joint limits, whose force jumps in the same way, are softened over as many metres (slides) or radians
(hinges).  Dry friction and equality constraints stay as they are, and contacts of bodies that cannot be shifted
(``body_invweight0`` of 0), which MuJoCo makes hard whatever their impedance.
"""

from __future__ import annotations

import math
import numbers
from dataclasses import replace
from typing import Any

from robotics_envs.robots.errors import RobotFileError
from robotics_envs.robots.model import Options
from robotics_envs.robots.scalars import Scalar, clamp, is_zero, larger, mul, neg, where

ONSET = "onset"
"""The name of the option and of the physical parameter."""
ANNEALED = 0.5
"""The share of a run's updates in which the onset falls linearly to 0.  A run that goes on to twice its updates has
trained half of them by then: its contacts are not softened again."""
LONGEST_WINDOW = 0.3
"""Seconds up to which gradients through softened contacts were found to be right (docs/robots.md)."""
_LEAST = 1e-9  # m, so that nothing is divided by 0


def with_onset(options: Options) -> Options:
    """The options with the onset as a parameter of the simulator, if it is above 0.

    Raises:
        RobotFileError: it is no length.
    """
    onset = checked(options.onset)
    names = options.parameters if onset == 0 or ONSET in options.parameters else (*options.parameters, ONSET)
    return replace(options, onset=onset, parameters=names)


def checked(onset: Any) -> float:
    """An onset in m.

    Raises:
        RobotFileError: it is not a finite number of at least 0.
    """
    is_number = isinstance(onset, numbers.Real) and not isinstance(onset, bool)
    if not (is_number and math.isfinite(onset) and onset >= 0):
        raise RobotFileError(
            f"onset = {onset!r}: give a finite length in metres, such as 0.01, over which contacts set in while a "
            "policy is trained; 0 leaves them as they are in MuJoCo"
        )
    return float(onset)


def begun(gap: Scalar, onset: Scalar) -> Scalar:
    """s above, at a distance of ``gap`` from where the contact begins, negative inside."""
    if is_zero(onset):
        return 1.0
    way = clamp(mul(neg(gap), 1.0 / larger(onset, _LEAST)), 0.0, 1.0)
    return where(onset > 0, mul(mul(way, way), 3.0 - 2.0 * way), 1.0, like=onset)


def annealed(onset: float, left: float) -> float:
    """The onset when ``left``, the share of a run that is left, has gone from 1 to its value."""
    return onset * max(0.0, 1.0 - (1.0 - left) / ANNEALED)


def note(onset: float) -> str:
    """What a person who trains has to know."""
    return (
        f"training softens the onset of contacts over {onset:g} m (of joint limits: {onset:g} m or rad), falling to 0 "
        f"in the first {ANNEALED:.0%} of the updates; evaluations do not soften it"
    )
