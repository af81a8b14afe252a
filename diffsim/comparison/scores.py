"""What records say at a budget: scores, areas under curves and times to the threshold, by rules that are explicit."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffsim.comparison.records import AXES, Comparison, Limits, Record
from diffsim.comparison.statistics import CONFIDENCE, RESAMPLES, interquartile_mean
from diffsim.comparison.step_curves import Floats, StepCurves
from diffsim.comparison.survival import Times
from diffsim.errors import ConfigError

FAILED = ("floor", "last", "left out")
CROSSINGS = ("first", "earliest", "lasting")


@dataclass(frozen=True)
class Rules:
    """How records are read; the defaults are those of the report, the rest answers what would change the verdict."""

    axis: str = "cpu_seconds"
    failed: str = "floor"
    """What a run counts as that crashed or diverged: ``floor`` (its last score, or that of the middle actions if that
    is less), ``last`` (its last score), ``left out``."""
    crossing: str = "first"
    """When a run reaches the threshold: at its ``first`` evaluation there; at the evaluation before that, the
    ``earliest`` that is possible; at the first from which on it stays there, ``lasting``."""
    hindsight: bool = False
    """Whether a run's score is the best so far, chosen by the evaluations that judge it, and not the present one."""
    overheads: bool = False
    """Whether clocks begin before import, start and compilation."""
    confidence: float = CONFIDENCE
    widen: bool = True
    resamples: int = RESAMPLES
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("axis", AXES), ("failed", FAILED), ("crossing", CROSSINGS)):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} = {getattr(self, name)!r}; must be one of {', '.join(known)}")

    def but(self, **changes: object) -> Rules:
        """These rules with some changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]


def normalised(scores: ArrayLike, limits: Limits) -> Floats:
    """Scores as shares of the way from the middle actions (0) to the best known (1); nothing is clipped."""
    return (np.asarray(scores, dtype=np.float64) - limits.zero) / (limits.one - limits.zero)


# -- one task of a comparison -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TaskData:
    """The records of one task that are at their end, read by rules; unfinished runs do not enter any statistic."""

    comparison: Comparison
    task: str
    rules: Rules

    @property
    def limits(self) -> Limits | None:
        return self.comparison.tasks[self.task].limits

    def records(self, contender: str) -> list[Record]:
        """The ended runs of a contender that know the axis, and the failed ones unless they are left out."""
        if contender not in self._read:
            self._read[contender] = self._records(contender)
        return self._read[contender]

    @functools.cached_property
    def _read(self) -> dict[str, list[Record]]:
        return {}

    def _records(self, contender: str) -> list[Record]:
        failed_too = self.rules.failed != "left out"
        return [
            record
            for record in self.comparison.of(self.task, contender)
            if (record.status == "finished" and record.curve.knows(self.rules.axis))
            or (
                record.failed
                and failed_too
                and (not len(record.curve) or record.curve.knows(self.rules.axis))
            )
        ]

    def along(self, record: Record) -> Floats:
        """The axis of a record ``[n]``."""
        values: Floats = getattr(record.curve, self.rules.axis)
        if self.rules.overheads and self.rules.axis.endswith("_seconds"):
            beside = record.overheads
            spent = (beside.import_seconds, beside.start_seconds, beside.compile_seconds)
            values = values + sum(s for s in spent if not math.isnan(s))
        return values

    def end(self) -> float:
        """The amount at which contenders are compared: the budget, or what half the runs of each contender cover.

        NaN where neither is known.
        """
        return self._end

    @functools.cached_property
    def _end(self) -> float:
        if self.rules.axis in self.comparison.budget:
            return float(self.comparison.budget[self.rules.axis])
        ends = []
        for contender in self.comparison.contenders:
            finished = [r for r in self.records(contender) if not r.failed]
            if finished:
                ends.append(float(np.median([self.along(r)[-1] for r in finished])))
        return min((end for end in ends if end > 0), default=math.nan)

    def floor(self) -> float:
        """The score of a policy that has learnt nothing: of the middle actions, or the lowest first evaluation."""
        return self._floor

    @functools.cached_property
    def _floor(self) -> float:
        if self.limits is not None:
            return self.limits.zero
        first = [r.curve.score[0] for r in self.comparison.records if r.task == self.task and len(r.curve)]
        return float(min(first, default=math.nan))

    def scores(self, contender: str, normalise: bool = False) -> Floats:
        """The score of every run at :meth:`end`, ``[runs]``."""
        if contender not in self._scores:
            self._scores[contender] = self.curves(contender, [self.end()])[:, 0]
        return self._normalised(self._scores[contender], normalise)

    @functools.cached_property
    def _scores(self) -> dict[str, Floats]:
        return {}

    def curves(self, contender: str, grid: ArrayLike) -> Floats:
        """The score of every run at each point of ``grid [m]``: ``[runs, m]``, with what failed runs count as."""
        values = self._counted(contender).at(grid)
        return np.where(np.isnan(values), self.floor(), values)

    def _counted(self, contender: str) -> StepCurves:
        """The curves of a contender, with what failed runs count as from their last evaluation on."""
        if contender not in self._curves:
            records = self.records(contender)
            scores = [r.curve.score for r in records]
            if self.rules.hindsight:
                scores = [np.fmax.accumulate(y) for y in scores]
            curves = StepCurves([self.along(r) for r in records], scores)
            if self.rules.failed == "floor":
                ended = np.flatnonzero([r.failed and len(r.curve) > 0 for r in records])
                last = ended, curves.lengths[ended] - 1
                curves.y[last] = np.minimum(curves.y[last], self.floor())
            self._curves[contender] = curves
        return self._curves[contender]

    @functools.cached_property
    def _curves(self) -> dict[str, StepCurves]:
        return {}

    def middle(self, contender: str, grid: Floats) -> tuple[Floats, Floats]:
        """The interquartile mean of a contender's curves at points of ``grid``, and these points.

        Only where every run has been evaluated and no finished run has ended, so that the line is always one of the
        same runs.
        """
        records = self.records(contender)
        evaluated = [self.along(r) for r in records if len(r.curve)]
        ends = [self.along(r)[-1] for r in records if not r.failed]
        start, end = max((x[0] for x in evaluated), default=math.inf), min(ends, default=math.inf)
        inside = grid[(grid >= start) & (grid <= end * (1 + 1e-12))]
        if not len(inside):
            return inside, inside
        return inside, interquartile_mean(self.curves(contender, inside), axis=0)

    def areas(self, contender: str, normalise: bool = False) -> Floats:
        """The mean score of every run from 0 to :meth:`end`, ``[runs]``."""
        found = self._counted(contender).means(self.end(), self.floor())
        return self._normalised(found, normalise)

    def times(self, contender: str) -> Times | None:
        """When runs reach the threshold; None where the task has none, or no run.

        A run that crashed or diverged before reaching it never does: it is censored where the last of all is, and not
        where it failed, since failing early would otherwise look fast.
        """
        if contender not in self._times:
            self._times[contender] = self._reaching(contender)
        return self._times[contender]

    @functools.cached_property
    def _times(self) -> dict[str, Times | None]:
        return {}

    def _reaching(self, contender: str) -> Times | None:
        threshold = self.comparison.tasks[self.task].threshold
        records = self.records(contender)
        end = self.end()
        if threshold is None or not records or math.isnan(end):
            return None
        measured = StepCurves(
            [self.along(r) for r in records], [getattr(r.curve, threshold.measure) for r in records]
        )
        place, found = self._crossing(measured, measured.y >= threshold.value)
        when = np.append(measured.x, np.full((len(records), 1), np.inf), axis=1)[
            np.arange(len(records)), place
        ]
        reached = found & (when <= end)
        seen = np.fmin(measured.last(measured.x), end)
        failed = np.array([record.failed for record in records])
        return Times(np.where(reached, when, np.where(failed, end, seen)), reached)

    def _crossing(
        self, curves: StepCurves, there: NDArray[np.bool_]
    ) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """The place of the evaluation that counts as the crossing, and whether there is one, ``[runs]`` each."""
        longest = there.shape[1]
        if self.rules.crossing == "lasting":
            away = ~there & (np.arange(longest) < curves.lengths[:, None])
            place = np.max(np.where(away, np.arange(1, longest + 1), 0), axis=1, initial=0)
            return place, place < curves.lengths
        found = np.asarray(there.any(axis=1))
        first = np.min(np.where(there, np.arange(longest), longest), axis=1, initial=longest)
        place = np.maximum(0, first - (self.rules.crossing == "earliest"))
        return np.where(found, place, longest), found

    def _normalised(self, values: Floats, normalise: bool) -> Floats:
        if not normalise:
            return values
        if self.limits is None:
            raise ConfigError(f"scores of {self.task} cannot be normalised: it has no limits")
        return normalised(values, self.limits)


def axes_known(comparison: Comparison) -> list[str]:
    """The axes that can be drawn, the one of the verdict first: the first of the budget, else CPU seconds if known."""
    known = [axis for axis in AXES if any(record.curve.knows(axis) for record in comparison.records)]
    wanted = [*comparison.budget, "cpu_seconds", *AXES]
    return sorted(known, key=wanted.index)


def pooled(data: Sequence[TaskData], contender: str) -> list[Floats]:
    """The normalised scores of a contender on the tasks that have limits and its runs."""
    return [
        scores
        for task in data
        if task.limits is not None and len(scores := task.scores(contender, normalise=True))
    ]
