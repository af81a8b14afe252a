"""Records of a comparison: one HDF5 file for one run of one contender on one task, and the plan of them all.

A comparison is a folder::

    DIR/comparison.json                               tasks, contenders, budget, seeds: written before the first run
    DIR/records/<task>/<contender>/<seed>.h5          one Record each, written when its run ends (see record_path)

Every record repeats what the plan says of its task and contender, so that a report can be made from records alone.
Nothing here is executed when it is read: numbers are HDF5 datasets, all else is JSON.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import itertools
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffsim.errors import ConfigError, RunFileError
from diffsim.runs.whole_files import write_whole
from diffsim.values import folder as absolute
from diffsim.values import shown

FORMAT, FORMAT_VERSION = "diffsim comparison record", 1
PLAN, RECORDS = "comparison.json", "records"

STATUSES = ("finished", "crashed", "diverged", "unfinished")
"""``finished``: came to the end of its budget; ``crashed``: ended by an error; ``diverged``: its numbers became
non-finite; ``unfinished``: was stopped or has not come to its end."""

AXES = ("environment_steps", "cpu_seconds", "wall_seconds", "gradient_evaluations")
"""What a curve can be drawn over; see :class:`Curve`."""

MEASURES = ("score", "success")
"""What a threshold can be a value of."""

KINDS = ("reference", "white box", "black box", "gradient-free", "imported", "ablation")
"""``reference``: the one contender that verdicts are about; ``white box``: another one that uses the simulator's
gradient; ``black box`` and ``gradient-free``: opponents; ``imported``: an opponent whose results come from another
program; ``ablation``: a contender that answers one question and enters no verdict."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Curve:
    """What was measured while a run trained: equally long float64 arrays ``[n]``, one entry an evaluation.

    The clocks stand still during import, start, compilation (see :class:`Overheads`) and evaluation.  An axis that
    is not known is NaN in every entry; else it is finite, not negative, and does not decrease.  ``score`` is finite:
    a run whose score is not has diverged, and its curve ends before.

    Raises:
        ConfigError: arrays that break this.
    """

    environment_steps: Floats
    """Control intervals simulated for training, all copies of the simulator together."""
    cpu_seconds: Floats
    """Process time, all threads and child processes together."""
    wall_seconds: Floats
    gradient_evaluations: Floats
    """Gradients of a loss with respect to the parameters of a network, one for each minibatch or rollout batch."""
    score: Floats
    """Mean undiscounted return over the fixed starts of the evaluation."""
    success: Floats
    """Share of the starts that succeed, in [0, 1]; NaN where the task declares no success."""

    def __post_init__(self) -> None:
        given = [np.asarray(getattr(self, name), dtype=np.float64) for name in CURVE]
        for name, array in zip(CURVE, given, strict=True):
            if array.ndim != 1:
                raise ConfigError(f"{name} of a curve must have one axis, got the shape {list(array.shape)}")
        lengths = {name: len(array) for name, array in zip(CURVE, given, strict=True)}
        if len(set(lengths.values())) > 1:
            raise ConfigError(f"the arrays of a curve must be equally long, got {lengths}")
        values = np.stack(given)  # a copy: the caller's may change
        values.setflags(write=False)
        for name, array in zip(CURVE, values, strict=True):
            object.__setattr__(self, name, array)
        axes = values[[CURVE.index(name) for name in AXES]]
        unknown = np.asarray(np.isnan(axes).all(axis=1))
        right = (np.isfinite(axes) & (axes >= 0)).all(axis=1) & (axes[:, 1:] >= axes[:, :-1]).all(axis=1)
        if not (unknown | right).all():
            name = AXES[int(np.argmin(unknown | right))]
            raise ConfigError(
                f"{name} of a curve must be finite, not negative and not decreasing, or NaN everywhere where it is "
                f"not known; got {getattr(self, name).tolist()[:20]}"
            )
        known = frozenset(
            name
            for name, without in zip(AXES, unknown, strict=True)
            if not without and (len(self) == 1 or getattr(self, name)[-1] > 0)
        )
        object.__setattr__(self, "_known", known)
        if not np.isfinite(self.score).all():
            raise ConfigError(
                "score of a curve must be finite; end the curve before and give the status 'diverged'"
            )
        share = self.success[~np.isnan(self.success)]
        if ((share < 0) | (share > 1)).any():
            raise ConfigError(f"success of a curve must be within [0, 1] or NaN, got {share.tolist()[:20]}")

    @classmethod
    def of(cls, score: ArrayLike, **others: ArrayLike) -> Curve:
        """A curve of what is known; the rest is NaN."""
        unknown = np.full(len(np.asarray(score)), np.nan)
        return cls(**{**dict.fromkeys(CURVE, unknown), **others, "score": score})  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.score)

    def knows(self, axis: str) -> bool:
        """Whether there is an entry, and ``axis`` was measured and went on.

        A search without gradients stays at 0 gradient evaluations: nothing can be said over them.
        """
        return axis in self._known  # type: ignore[attr-defined]


CURVE = tuple(field.name for field in dataclasses.fields(Curve))


@dataclass(frozen=True)
class Threshold:
    """A run reaches it at its first evaluation with ``measure`` ≥ ``value``.  Fixed before the runs."""

    value: float
    source: str
    """Where the value comes from."""
    measure: str = "score"
    """``score``, or ``success``: the share of starts that succeed."""

    def __post_init__(self) -> None:
        if self.measure not in MEASURES:
            raise ConfigError(
                f"measure of a threshold = {self.measure!r}; must be one of {', '.join(MEASURES)}"
            )
        if not math.isfinite(self.value):
            raise ConfigError(f"value of a threshold must be finite, got {self.value!r}")


@dataclass(frozen=True)
class Limits:
    """The scores that become 0 and 1 when tasks are pooled; nothing is clipped."""

    zero: float
    """Score of the middle of the action box, held from every start."""
    one: float
    """Best score known."""
    source: str

    def __post_init__(self) -> None:
        if not (math.isfinite(self.zero) and math.isfinite(self.one) and self.one > self.zero):
            raise ConfigError(f"limits must be finite with zero < one, got zero={self.zero}, one={self.one}")


@dataclass(frozen=True)
class Protocol:
    """How scores were measured: the same for every contender of a task."""

    judge: str
    """``simulator``, or another program as ``gymnasium:Hopper-v5``."""
    episodes: int
    """Number of fixed starts."""
    seed: int | None
    """Of the starts; None where each run has starts of its own."""
    starts: str = ""
    """What the starts are drawn from."""
    deterministic: bool = True
    """Whether the policy acts without exploration noise."""


@dataclass(frozen=True)
class Overheads:
    """Wall seconds beside training; NaN where not measured."""

    import_seconds: float = math.nan
    start_seconds: float = math.nan
    """From the end of import to the first training step, without compilation."""
    compile_seconds: float = math.nan
    evaluation_seconds: float = math.nan
    total_seconds: float = math.nan
    """The whole process, everything included."""


@dataclass(frozen=True)
class Task:
    """What is said of a task before the runs."""

    threshold: Threshold | None = None
    limits: Limits | None = None
    description: str = ""


@dataclass(frozen=True)
class Contender:
    """What is said of a contender before the runs, conflicts of interest included."""

    kind: str = "black box"
    description: str = ""
    source: str = ""
    """Where its settings come from, such as the RL Zoo at a commit."""
    tuned_by: str = ""
    tuning_effort: str = ""
    """Trials and compute spent on its settings, the search space, and on which tasks and seeds."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"kind of a contender = {self.kind!r}; must be one of {', '.join(KINDS)}")


@dataclass(frozen=True, eq=False)
class Record:
    """One run of one contender on one task.

    Raises:
        ConfigError: an unknown status, a negative seed, or a failure without its text.
    """

    task: str
    contender: str
    seed: int
    status: str
    curve: Curve
    protocol: Protocol
    error: str = ""
    """Why it crashed, diverged or was stopped."""
    overheads: Overheads = Overheads()
    about_task: Task = Task()
    about_contender: Contender = Contender()
    budget: Mapping[str, float] = field(default_factory=dict)
    """Where the comparison compares scores, by axis: :attr:`Comparison.budget`."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Everything that was set, such that the run can be repeated: names, numbers, texts, lists and tables of them."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """``versions`` (table by package), ``hardware``, ``threads``, ``load`` (mean of the machine), ``command``,
    ``date``, and whatever else is known."""

    def __post_init__(self) -> None:
        if not (self.task and self.contender):
            raise ConfigError(f"a record needs a task and a contender, got {self.task!r}, {self.contender!r}")
        if self.seed < 0:
            raise ConfigError(f"seed of a record must not be negative, got {self.seed}")
        if self.status not in STATUSES:
            raise ConfigError(f"status = {self.status!r}; must be one of {', '.join(STATUSES)}")
        if self.status in ("crashed", "diverged") and not self.error:
            raise ConfigError(f"a {self.status} run must say why in error")
        if self.status == "finished" and not len(self.curve):
            raise ConfigError("a finished run must have at least one evaluation")

    @property
    def failed(self) -> bool:
        """Whether it crashed or diverged."""
        return self.status in ("crashed", "diverged")

    @property
    def key(self) -> tuple[str, str, int]:
        return self.task, self.contender, self.seed


@dataclass(frozen=True)
class Comparison:
    """A plan and the records that there are."""

    tasks: Mapping[str, Task]
    contenders: Mapping[str, Contender]
    seeds: Sequence[int]
    budget: Mapping[str, float] = field(default_factory=dict)
    """Where scores are compared, by axis (:data:`AXES`), such as ``{"cpu_seconds": 60}``."""
    skipped: Mapping[str, str] = field(default_factory=dict)
    """Pairs that are not run, as ``"task/contender"``, each with the reason."""
    seeds_of: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """The seeds of pairs that are not run with all of ``seeds``, by ``"task/contender"``."""
    title: str = "Comparison"
    command: str = ""
    created: str = ""
    notes: Sequence[str] = ()
    """Remarks that the report prints, such as what was decided when."""
    records: Sequence[Record] = ()
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """Record files that could not be read, each with the reason."""

    def __post_init__(self) -> None:
        references = [name for name, contender in self.contenders.items() if contender.kind == "reference"]
        if len(references) > 1:
            raise ConfigError(f"one contender is the reference, got {', '.join(references)}")
        for axis, value in self.budget.items():
            if axis not in AXES or not value > 0:
                raise ConfigError(f"budget {axis} = {value!r}: needs a positive number of {', '.join(AXES)}")

    @property
    def reference(self) -> str | None:
        """The contender that verdicts are about."""
        return next((name for name, c in self.contenders.items() if c.kind == "reference"), None)

    def planned(self) -> list[tuple[str, str, int]]:
        """Task, contender and seed of every run that is to be made."""
        return [
            (task, contender, seed)
            for task in self.tasks
            for contender in self.contenders
            if self.plans(task, contender)
            for seed in self.seeds_of.get(f"{task}/{contender}", self.seeds)
        ]

    def plans(self, task: str, contender: str) -> bool:
        """Whether runs of a pair are to be made."""
        return f"{task}/{contender}" not in self.skipped

    def of(self, task: str, contender: str) -> list[Record]:
        """The records of a pair by seed."""
        return self._by_pair.get((task, contender), [])

    @functools.cached_property
    def _by_pair(self) -> dict[tuple[str, str], list[Record]]:
        found: dict[tuple[str, str], list[Record]] = {}
        for record in sorted(self.records, key=lambda record: record.seed):
            found.setdefault((record.task, record.contender), []).append(record)
        return found


# -- files --------------------------------------------------------------------------------------------


def record_path(folder: str | os.PathLike[str], task: str, contender: str, seed: int) -> Path:
    """Where the record of a run belongs in a comparison's folder, ``%``-escaped where a name needs it."""
    return Path(folder) / RECORDS / _file_name(task) / _file_name(contender) / f"{seed}.h5"


def _file_name(name: str) -> str:
    # "." and ".." would lead elsewhere; a leading "." would hide.
    quoted = quote(name, safe=" ,:=+@()[]")
    return "%2E" + quoted[1:] if quoted.startswith(".") else quoted


def write_record(path: str | os.PathLike[str], record: Record) -> None:
    """Write a record, replacing the file as a whole; folders are made.

    Raises:
        ConfigError: settings or provenance that JSON cannot hold.
        RunFileError: it cannot be written; what was there before is unchanged.
    """
    import h5py

    facts = {
        field.name: getattr(record, field.name)
        for field in dataclasses.fields(Record)
        if field.name != "curve"
    }
    image = io.BytesIO()
    with h5py.File(image, "w") as file:
        file.attrs.update(format=FORMAT, format_version=FORMAT_VERSION)
        # A dataset and no attribute, which could not be longer than 64 kB.
        file["facts"] = _json(facts, "record")
        for name in CURVE:
            file.create_dataset(f"curve/{name}", data=getattr(record.curve, name))
    _write(absolute(path), image.getbuffer())


def read_record(path: str | os.PathLike[str]) -> Record:
    """The record in a file.

    Raises:
        RunFileError: there is none, or it cannot be read.
    """
    import h5py

    place = absolute(path)
    try:
        with h5py.File(io.BytesIO(place.read_bytes()), "r") as file:
            if file.attrs.get("format") != FORMAT:
                raise RunFileError(f"{shown(place)} is an HDF5 file, but no record of a comparison")
            version = int(file.attrs["format_version"])
            if version > FORMAT_VERSION:
                raise RunFileError(
                    f"{shown(place)} has format version {version}; this diffsim reads up to {FORMAT_VERSION}"
                )
            facts = json.loads(file["facts"][()])
            curve = Curve(**{name: file[f"curve/{name}"][()] for name in CURVE})
            return Record(
                **{
                    **facts,
                    "curve": curve,
                    "protocol": Protocol(**facts["protocol"]),
                    "overheads": Overheads(**_with_nan(facts["overheads"])),
                    "about_task": _task(facts["about_task"]),
                    "about_contender": Contender(**facts["about_contender"]),
                }
            )
    except RunFileError:
        raise
    except OSError as error:
        raise RunFileError(f"{shown(place)} cannot be read: {error.strerror or error}") from None
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).strip("'\"").split())
        raise RunFileError(f"{shown(place)} cannot be read as a record: {reason}") from None


def write_comparison(folder: str | os.PathLike[str], comparison: Comparison) -> None:
    """Write the plan of a comparison, ``DIR/comparison.json``; its records are written one by one.

    Raises:
        RunFileError: it cannot be written.
    """
    # Without seeds_of where there are none, which earlier versions do not know.
    left_out = ("records", "unreadable", *([] if comparison.seeds_of else ["seeds_of"]))
    facts = {
        f.name: getattr(comparison, f.name) for f in dataclasses.fields(Comparison) if f.name not in left_out
    }
    text = _json({"format": "diffsim comparison", "format_version": FORMAT_VERSION, **facts}, "comparison", 1)
    _write(absolute(folder) / PLAN, text.encode())


def read_comparison(folder: str | os.PathLike[str]) -> Comparison:
    """The plan of a comparison and all its records.

    Records that are not in the plan are left in: a contender may have been added later.  Of its tasks and seeds only
    those are taken for planned that it has records of.  Without ``comparison.json`` that holds for all: the plan is
    what the records say.  Files that cannot be read are named in ``unreadable``.

    Raises:
        RunFileError: neither a plan nor a record there, or a plan that cannot be read.
    """
    root = absolute(folder)
    records: dict[tuple[str, str, int], Record] = {}
    unreadable = {}
    for path in sorted((root / RECORDS).glob("*/*/*.h5")):
        if path.name.startswith("."):  # being written now
            continue
        name = path.relative_to(root).as_posix()
        try:
            record = read_record(path)
        except RunFileError as error:
            unreadable[name] = str(error)
            continue
        if record.key in records:
            unreadable[name] = f"a second record of {record.task}, {record.contender}, seed {record.seed}"
            continue
        records[record.key] = record
    plan = _read_plan(root / PLAN)
    if plan is None and not records and not unreadable:
        raise RunFileError(
            f"no comparison in {shown(root)}: it has no {PLAN}, no {RECORDS}/*/*/*.h5, and is no suite (suite.json)"
        )
    budget = next((record.budget for record in records.values()), {})
    plan = {"tasks": {}, "contenders": {}, "seeds": [], "budget": budget} if plan is None else plan
    pairs = {f"{task}/{contender}" for task in plan["tasks"] for contender in plan["contenders"]}
    for record in records.values():
        plan["tasks"].setdefault(record.task, record.about_task)
        plan["contenders"].setdefault(record.contender, record.about_contender)
    seeds = sorted({*plan["seeds"], *(seed for _, _, seed in records)})
    plan |= _pairs_of(plan, pairs, seeds, records)
    try:
        return Comparison(
            **{**plan, "seeds": seeds, "records": tuple(records.values()), "unreadable": unreadable}
        )
    except (ConfigError, TypeError) as error:
        raise RunFileError(f"{shown(root)} holds no valid comparison: {error}") from None


def _pairs_of(
    plan: Mapping[str, Any], planned: set[str], seeds: Sequence[int], keys: Iterable[tuple[str, str, int]]
) -> dict[str, Any]:
    """``skipped`` and ``seeds_of`` of a plan to which records have added: ``planned`` are its own pairs."""
    skipped, seeds_of = dict(plan.get("skipped", {})), {}
    found: dict[str, list[int]] = {}
    for task, contender, seed in keys:
        found.setdefault(f"{task}/{contender}", []).append(seed)
    for task, contender in itertools.product(plan["tasks"], plan["contenders"]):
        pair = f"{task}/{contender}"
        wanted = set(found.get(pair, ()))
        if pair in planned and pair not in skipped:
            wanted |= set(plan.get("seeds_of", {}).get(pair, plan["seeds"]))
        elif wanted:
            skipped.pop(pair, None)
        else:
            skipped.setdefault(pair, "no record")
            continue
        if sorted(wanted) != list(seeds):
            seeds_of[pair] = sorted(wanted)
    return {"skipped": skipped, "seeds_of": seeds_of}


def _read_plan(path: Path) -> dict[str, Any] | None:
    try:
        facts = json.loads(path.read_bytes())
        if facts.pop("format", None) != "diffsim comparison":
            raise ValueError("it is no plan of a comparison")
        if (version := facts.pop("format_version", None)) != FORMAT_VERSION:
            raise ValueError(f"format version {version!r}; this diffsim reads {FORMAT_VERSION}")
        facts["tasks"] = {name: _task(task) for name, task in facts["tasks"].items()}
        facts["contenders"] = {name: Contender(**c) for name, c in facts["contenders"].items()}
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunFileError(f"{shown(path)} cannot be read: {error.strerror or error}") from None
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise RunFileError(f"{shown(path)} cannot be read: {error}") from None
    return dict(facts)


def _task(facts: Mapping[str, Any]) -> Task:
    threshold, limits = facts["threshold"], facts["limits"]
    return Task(
        threshold=Threshold(**threshold) if threshold else None,
        limits=Limits(**limits) if limits else None,
        description=facts["description"],
    )


def _with_nan(numbers: Mapping[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else value for name, value in numbers.items()}


def _write(path: Path, content: bytes | memoryview) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
    except OSError as error:
        raise RunFileError(f"cannot write {shown(path)}: {error.strerror or error}") from None


def _json(facts: Mapping[str, Any], what: str, indent: int | None = None) -> str:
    try:
        return json.dumps(dict(_plain_items(facts)), allow_nan=False, ensure_ascii=False, indent=indent)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"this {what} cannot be stored as JSON: {error}") from None


def _plain_items(table: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        yield str(key), _plain(value)


def _plain(value: Any) -> Any:
    """``value`` as JSON holds it: NaN as null, infinities as texts, arrays and tuples as lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return dict(_plain_items(value))
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset | range):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value
