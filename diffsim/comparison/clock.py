"""The budget of a run, its clock, and the curve that is measured while it trains.

Seconds are those of training alone: the clock stands still while something is compiled or evaluated, which is counted
apart.  CPU seconds are the time that this process has computed, on all its threads.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from diffsim.errors import ConfigError, DivergenceError

POINTS = 40
"""Fixed points of evaluation per limit of a budget."""
SPAN = 400.0
"""The ratio of the last point to the first: the points grow geometrically, so that times are known to 16% anywhere."""
_PATTERN = re.compile(r"(\d+(?:\.\d*)?(?:e\d+)?)\s*(s|steps)")

Act = Callable[[Any], Any]
"""A deterministic policy: observations ``[B, o]`` to actions ``[B, m]`` in the units of the action box."""


@dataclass(frozen=True)
class Budget:
    """What ends a run, whatever comes first; a limit that is None ends nothing."""

    cpu_seconds: float | None = None
    steps: int | None = None
    """Environment steps of training."""

    @classmethod
    def parse(cls, text: str) -> Budget:
        """``"60s"``, ``"100000steps"``, ``"1e5steps"``, or both as ``"60s+1e5steps"``.

        Raises:
            ConfigError: it is none of these.
        """
        limits: dict[str, Any] = {}
        for part in text.lower().replace("e+", "e").split("+"):
            found = _PATTERN.fullmatch(part.strip())
            value = float(found[1]) if found else math.nan
            name = "cpu_seconds" if found and found[2] == "s" else "steps"
            if not (0 < value < 1e15) or name in limits or (name == "steps" and value % 1):
                raise ConfigError(
                    f"budget {text!r}: needs CPU seconds as 60s, environment steps as 100000steps, or both as "
                    "60s+100000steps, whichever is reached first"
                )
            limits[name] = value if name == "cpu_seconds" else int(value)
        return cls(**limits)

    def __str__(self) -> str:
        parts = [f"{self.cpu_seconds:g} CPU s"] if self.cpu_seconds is not None else []
        parts += [f"{self.steps:,} steps"] if self.steps is not None else []
        return " or ".join(parts)

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are set, by the name of the axis in a record."""
        named = {"cpu_seconds": self.cpu_seconds, "environment_steps": self.steps}
        return {name: float(limit) for name, limit in named.items() if limit is not None}

    def used(self, cpu_seconds: float, steps: int) -> float:
        """The share that is used, 1 or more at the end."""
        shares = [
            amount / limit
            for amount, limit in ((cpu_seconds, self.cpu_seconds), (steps, self.steps))
            if limit is not None
        ]
        return max(shares)


class Judge(Protocol):
    """Measures a policy from fixed starts."""

    def __call__(self, act: Act) -> tuple[float, float]:
        """Mean return and share of successes; the share is NaN where no success is declared."""


@dataclass(frozen=True)
class Point:
    """One evaluation: the fields of a record's curve."""

    environment_steps: int
    cpu_seconds: float
    wall_seconds: float
    gradient_evaluations: int
    score: float
    success: float


class Meter:
    """The clock of a run and its curve; a contender's training calls :meth:`go_on` after every step of its own.

    Args:
        budget: ends the run.
        judge: measures the policy.
        report: called with every new point and the share of the budget that is used.
        check: called in every :meth:`go_on`; may raise to stop the run.
    """

    def __init__(
        self,
        budget: Budget,
        judge: Judge,
        report: Callable[[Point, float], object] = lambda point, used: None,
        check: Callable[[], object] = lambda: None,
    ) -> None:
        self.budget, self.judge = budget, judge
        self._report, self._check = report, check
        self.points: list[Point] = []
        self.seconds: dict[str, float] = {"compile": 0.0, "evaluation": 0.0}
        """Wall seconds off the clock, by what they were spent on."""
        self.reason = ""
        """Why the run came to its end."""
        self._off = (0.0, 0.0)
        self._began: tuple[float, float] | None = None
        self._measured: Any = object()
        self._steps = 0
        self._waiting = {axis: _points(limit) for axis, limit in budget.limits.items()}

    @property
    def cpu_seconds(self) -> float:
        return 0.0 if self._began is None else time.process_time() - self._began[0] - self._off[0]

    @property
    def wall_seconds(self) -> float:
        return 0.0 if self._began is None else time.perf_counter() - self._began[1] - self._off[1]

    @property
    def remaining(self) -> float:
        """The share of the budget that is left, in [0, 1]."""
        return max(0.0, 1.0 - self.budget.used(self.cpu_seconds, self._steps))

    @contextmanager
    def off_the_clock(self, what: str) -> Iterator[None]:
        """Inside, the clock stands still; the wall seconds are counted under ``what``."""
        cpu, wall = time.process_time(), time.perf_counter()
        try:
            yield
        finally:
            self.take_off(time.process_time() - cpu, time.perf_counter() - wall, what)

    def take_off(self, cpu: float, wall: float, what: str) -> None:
        """Set the clock back by seconds that were no training."""
        self.seconds[what] += wall
        if self._began is not None:
            self._off = self._off[0] + cpu, self._off[1] + wall

    def begin(self, act: Act) -> None:
        """Measure the untrained policy and start the clock."""
        self._evaluate(0, 0, act, 0)
        self._began = time.process_time(), time.perf_counter()
        self._off = (0.0, 0.0)

    def go_on(self, steps: int, gradients: int, act: Act, version: Any = None) -> bool:
        """Whether the budget has something left; evaluates the policy where a fixed point was reached.

        Args:
            steps, gradients: environment steps and gradient evaluations of training so far.
            act: the present policy.
            version: equal as long as the policy is the same, which then is not measured again; None if not known.
        """
        self._check()
        self._steps = steps
        over = self.budget.used(self.cpu_seconds, steps) >= 1.0
        if over:
            self.reason = self.reason or f"budget of {self.budget} used"
        if self._due(steps) or over:
            self._evaluate(steps, gradients, act, version)
        return not over

    def end(self, steps: int, gradients: int, act: Act, reason: str) -> None:
        """Training ended by itself: measure the last policy."""
        self.reason = self.reason or reason
        if self.points[-1].environment_steps != steps:
            self._evaluate(steps, gradients, act, None)

    def _due(self, steps: int) -> bool:
        at = {"cpu_seconds": self.cpu_seconds, "environment_steps": float(steps)}
        due = False
        for axis, waiting in self._waiting.items():
            while waiting and at[axis] >= waiting[0]:
                waiting.pop(0)
                due = True
        return due

    def _evaluate(self, steps: int, gradients: int, act: Act, version: Any) -> None:
        cpu, wall = self.cpu_seconds, self.wall_seconds
        if version is not None and version == self._measured:
            score, success = self.points[-1].score, self.points[-1].success
        else:
            with self.off_the_clock("evaluation"):
                score, success = self.judge(act)
            if not math.isfinite(score):
                raise DivergenceError(
                    f"the return of the policy after {steps:,} environment steps is {score}"
                )
        self._measured = version
        self.points.append(Point(steps, cpu, wall, gradients, score, success))
        with self.off_the_clock("evaluation"):
            self._report(self.points[-1], self.budget.used(cpu, steps))

    def columns(self) -> Mapping[str, Sequence[float]]:
        """The curve by the names of a record's columns."""
        names = Point.__dataclass_fields__
        rows = [asdict(point) for point in self.points]
        return {name: [row[name] for row in rows] for name in names}


def _points(limit: float) -> list[float]:
    return [limit * SPAN ** (k / (POINTS - 1) - 1.0) for k in range(POINTS - 1)]
