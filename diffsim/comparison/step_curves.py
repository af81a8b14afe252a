"""Curves of runs that were evaluated at different places, read all at once.

Between evaluations the last one counts: nothing is interpolated towards an evaluation that is still to come.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


class StepCurves:
    """Values ``y`` of runs at places ``x``, one array ``[n]`` a run, which does not decrease in x; n may be 0.

    Attributes:
        lengths: ``[runs]``, the n of each run.
        x: ``[runs, longest]``, infinite behind the last place of a run.
        y: ``[runs, longest]``, NaN there.
    """

    def __init__(self, x: Sequence[ArrayLike], y: Sequence[ArrayLike]) -> None:
        self.lengths = np.array([len(places) for places in map(np.asarray, x)], dtype=np.intp)
        inside = np.arange(max(self.lengths, default=0)) < self.lengths[:, None]
        self.x = np.full(inside.shape, np.inf)
        self.y = np.full(inside.shape, np.nan)
        if len(self.lengths):
            self.x[inside] = np.concatenate([np.asarray(places, dtype=np.float64) for places in x])
            self.y[inside] = np.concatenate([np.asarray(values, dtype=np.float64) for values in y])

    def __len__(self) -> int:
        return len(self.lengths)

    def last(self, values: Floats) -> Floats:
        """The last entry of every run of ``values [runs, longest]``, NaN where it has none: ``[runs]``."""
        padded = np.concatenate([values, np.full((len(self), 1), np.nan)], axis=1)
        return np.asarray(padded[np.arange(len(self)), self.lengths - 1])

    def at(self, grid: ArrayLike) -> Floats:
        """The last value at or before each point of ``grid [m]``, NaN before the first: ``[runs, m]``.

        Of equal places the last counts.
        """
        points = np.asarray(grid, dtype=np.float64)
        # One point at a time: all together would take the memory of runs x longest x m.
        counts = [(self.x <= point).sum(axis=1) for point in points]
        places = np.array(counts, dtype=np.intp).reshape(len(points), len(self)).T - 1
        padded = np.concatenate([self.y, np.full((len(self), 1), np.nan)], axis=1)  # place -1 is this NaN
        return np.asarray(np.take_along_axis(padded, places, axis=1), dtype=np.float64)

    def means(self, end: float, before: float = math.nan) -> Floats:
        """The mean of every curve over [0, ``end``]; ``before`` holds until the first evaluation: ``[runs]``."""
        edges = np.pad(np.minimum(self.x, end), ((0, 0), (1, 1)), constant_values=((0, 0), (0.0, end)))
        values = np.pad(self.y, ((0, 0), (1, 0)), constant_values=before)
        widths = np.diff(edges, axis=1)
        # A value that holds for no time, such as that before a first evaluation at 0, may be NaN.
        return np.asarray(np.where(widths > 0, values * widths, 0.0).sum(axis=1) / end, dtype=np.float64)
