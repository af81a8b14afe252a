"""What a report shows, as plain data: tables of texts, figures and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from diffsim.comparison.records import Comparison
from diffsim.comparison.statistics import Estimate


@dataclass(frozen=True)
class Table:
    """A table of texts.  ``numbers``: the same with numbers in full, for CSV; the texts if None."""

    name: str
    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[Sequence[Any]] | None = None
    columns: Sequence[str] = ()
    """Heads of the numbers."""
    classes: Sequence[str] = ()
    """A class of each row, such as that of its contender."""


@dataclass(frozen=True)
class Figure:
    """An inline SVG, and the same as a table."""

    name: str
    title: str
    caption: str
    svg: str
    table: Table


@dataclass(frozen=True)
class TaskView:
    """One task along one axis."""

    name: str
    facts: Sequence[tuple[str, str]]
    sentence: str
    detail: str
    outcome: str
    figures: Sequence[Figure]
    tables: Sequence[Table]


@dataclass(frozen=True)
class AxisView:
    """Everything that depends on the axis along which budgets are equal."""

    key: str
    label: str
    sentence: str
    detail: str
    outcome: str
    board: Sequence[Mapping[str, Any]]
    """A row a task, and one over all: name, outcome, cells by opponent."""
    opponents: Sequence[str]
    figures: Sequence[Figure]
    tables: Sequence[Table]
    tasks: Sequence[TaskView]


@dataclass(frozen=True)
class ContenderView:
    """A contender's name, place among the colours, and what is said of it."""

    number: int
    name: str
    kind: str
    facts: Sequence[tuple[str, str]] = field(default_factory=tuple)


def contender_views(comparison: Comparison) -> list[ContenderView]:
    """The contenders, the reference first."""
    order = sorted(comparison.contenders, key=lambda name: name != comparison.reference)
    found = []
    for number, name in enumerate(order):
        about = comparison.contenders[name]
        facts = [
            ("what", about.description),
            ("settings from", about.source or "not said"),
            ("tuned by", about.tuned_by or "not said"),
            ("tuning effort", about.tuning_effort or "not said"),
        ]
        found.append(ContenderView(number, name, about.kind, facts))
    return found


def three(value: Estimate) -> tuple[float, float, float]:
    """Value and ends, for a table of numbers."""
    return value.value, value.low, value.high


def spoken(table: Table) -> str:
    """The first rows of a table as one line, for who cannot see the figure."""
    return "; ".join(f"{row[0]}: {row[-1]}" for row in table.rows[:8])
