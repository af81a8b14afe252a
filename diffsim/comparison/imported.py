"""Results of other programs as records: CSV files, TensorBoard's event files, monitors of episodes.

Scores of such logs are often returns of training episodes, with exploration noise and from starts that change; the
record's protocol says so, and the report prints it.  What a log does not say is NaN, and the contender is left out of
figures along axes that it does not know.
"""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffsim.comparison.records import AXES, CURVE, Contender, Curve, Protocol, Record, Task
from diffsim.errors import ConfigError
from diffsim.settings import whole_number
from diffsim.values import folder as absolute
from diffsim.values import shown
from lazy_registry.installation import install_command

COLUMNS: Mapping[str, Sequence[str]] = {
    "environment_steps": ("environment_steps", "env_steps", "time/total_timesteps", "timesteps", "total_timesteps",
                          "global_step", "steps"),
    "cpu_seconds": ("cpu_seconds", "process_time"),
    "wall_seconds": ("wall_seconds", "time/time_elapsed", "time_elapsed", "walltime"),
    "gradient_evaluations": ("gradient_evaluations", "train/n_updates", "n_updates"),
    "score": ("score", "return", "eval/mean_reward", "rollout/ep_rew_mean", "charts/episodic_return", "episode_return",
              "mean_reward"),
    "success": ("success", "eval/success_rate", "rollout/success_rate", "success_rate"),
}  # fmt: skip
"""Names by which columns of CSV files and tags of TensorBoard are known, the first found wins."""

IMPORTED = Contender("imported", "imported results")
WINDOW = 100
"""Episodes of a monitor whose mean return is its score, as Stable-Baselines3 prints it."""


def read_csv(
    path: str | os.PathLike[str],
    *,
    task: str,
    contender: str,
    seed: int = 0,
    columns: Mapping[str, str] | None = None,
    protocol: Protocol | None = None,
    about_task: Task | None = None,
    about_contender: Contender = IMPORTED,
) -> list[Record]:
    """The runs in a CSV file with a header; rows without a score, empty or NaN, are left out.

    Cells are separated by commas, or by semicolons or tabs where the header has no comma.

    Where the file has columns ``task``, ``contender`` or ``seed``, their values are those of the row, and each
    combination is a run.

    Args:
        path: the file.
        task: name of the task, where the file does not say.
        contender: name of the contender, likewise.
        seed: likewise.
        columns: names of the file's columns by those of :class:`Curve`, where they are not among :data:`COLUMNS`.
        protocol: how scores were measured.
        about_task: threshold and limits of the task.
        about_contender: what is said of the contender.

    Raises:
        ConfigError: the file cannot be read, has no column of scores, a cell that is no number, or a run that ends
            with scores that are NaN or infinite: whether it diverged must be said.
    """
    place = absolute(path)
    heads, rows = _table(_text(place), place)
    found = _columns(heads, columns or {}, place)
    runs: dict[tuple[str, str, int], list[Mapping[str, str]]] = {}
    for row in rows:
        names = (row.get("task") or task, row.get("contender") or contender)
        key = (*names, _whole("seed", row.get("seed") or seed, 0, place))
        runs.setdefault(key, []).append(row)
    told = protocol or _protocol(found["score"])
    records = []
    for key, lines in runs.items():
        arrays = _arrays(lines, found, place, ", ".join(map(str, key)))
        if len(arrays["score"]):
            records.append(_record(*key, arrays, told, about_task, about_contender, place))
    if not records:
        raise ConfigError(f"{shown(place)} has no score in its column {found['score']}")
    return records


def _arrays(
    lines: Sequence[Mapping[str, str]], columns: Mapping[str, str], place: Path, whose: str
) -> dict[str, np.ndarray]:
    """The columns of a curve at the rows that have a score.

    Programs leave cells empty of what they did not measure just then: of an axis the value of the rows above holds, and
    an axis whose first value comes after the first score is not known.
    """
    arrays = {name: _numbers(lines, column, place) for name, column in columns.items()}
    scored = np.flatnonzero(~np.isnan(arrays["score"]))
    written = [number for number, row in enumerate(lines) if (row[columns["score"]] or "").strip()]
    if written and written[-1] not in scored:
        raise ConfigError(
            f"{shown(place)}: the scores of {whose} end with NaN; if it diverged, leave these rows out and give its "
            "record the status 'diverged' and an error by dataclasses.replace, else leave the cells empty"
        )
    for name in set(AXES) & set(arrays):
        known = ~np.isnan(arrays[name])
        above = np.maximum.accumulate(np.where(known, np.arange(len(known)), -1))
        arrays[name] = np.where(above >= 0, arrays[name][above], np.nan)
        if np.isnan(arrays[name][scored]).any():
            arrays[name] = np.full(len(lines), np.nan)
    return {name: array[scored] for name, array in arrays.items()}


def read_tensorboard(
    folder: str | os.PathLike[str],
    *,
    task: str,
    contender: str,
    columns: Mapping[str, str] | None = None,
    protocol: Protocol | None = None,
    about_task: Task | None = None,
    about_contender: Contender = IMPORTED,
) -> list[Record]:
    """The runs below a folder of TensorBoard: each folder with event files is one.

    The step of an event is taken for environment steps, its time for wall seconds since the first event.  The seed is
    the last number in the name of the run's folder, where all have different ones, else the place in their order.

    Args:
        folder: of one run, or of many.
        task: name of the task.
        contender: name of the contender.
        columns: tags by names of :class:`Curve`, where they are not among :data:`COLUMNS`.
        protocol: how scores were measured.
        about_task: threshold and limits of the task.
        about_contender: what is said of the contender.

    Raises:
        ConfigError: no event files, no scores in them, or the package tensorboard is missing.
    """
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ModuleNotFoundError:
        raise ConfigError(
            f"reading TensorBoard's files needs tensorboard: {install_command('tensorboard')}"
        ) from None
    root = absolute(folder)
    places = sorted({path.parent for path in root.rglob("*tfevents*")})
    if not places:
        raise ConfigError(f"no event files of TensorBoard below {shown(root)}")
    records = []
    for place, seed in zip(places, _seeds(places), strict=True):
        log = EventAccumulator(str(place), size_guidance={"scalars": 0}).Reload()
        tags = log.Tags()["scalars"]
        found = _columns(tags, columns or {}, place)
        events = log.Scalars(found["score"])
        steps = np.array([event.step for event in events], dtype=np.float64)
        clock = np.array([event.wall_time for event in events])
        arrays = {"score": np.array([event.value for event in events]), "environment_steps": steps}
        arrays["wall_seconds"] = clock - clock[0]
        for name, tag in found.items():
            if name != "score":
                series = log.Scalars(tag)
                # Tags are written at times of their own: the last value at or before that of the score.
                at = np.searchsorted([e.step for e in series], steps, side="right") - 1
                if (at >= 0).all():
                    arrays[name] = np.array([series[i].value for i in at], dtype=np.float64)
        told = protocol or _protocol(found["score"])
        records.append(_record(task, contender, seed, arrays, told, about_task, about_contender, place))
    return records


def read_monitor(
    source: str | os.PathLike[str] | Iterable[Mapping[str, Any]],
    *,
    task: str,
    contender: str,
    seed: int = 0,
    window: int = WINDOW,
    about_task: Task | None = None,
    about_contender: Contender = IMPORTED,
) -> list[Record]:
    """A run as its episodes: a file or folder of Stable-Baselines3's ``Monitor``, or Gymnasium's statistics.

    The score after each episode is the mean return of the last ``window`` ones.

    Args:
        source: a ``monitor.csv``; a folder of them, one for each copy of the environment, whose episodes are taken in
            the order of their ends; or what Gymnasium's ``RecordEpisodeStatistics`` puts into ``info["episode"]``, in
            order, each with ``r``, ``l`` and ``t``, where ``t`` are the seconds of that episode alone.
        task: name of the task.
        contender: name of the contender.
        seed: of the run.
        window: number of episodes.
        about_task: threshold and limits of the task.
        about_contender: what is said of the contender.

    Raises:
        ConfigError: no episode, or a file that is not of this kind.
    """
    window = _whole("window", window, 1)
    if isinstance(source, str | os.PathLike):
        place = absolute(source)
        files = sorted(place.glob("*monitor.csv")) if place.is_dir() else [place]
        episodes = sorted((e for file in files for e in _monitored(file)), key=lambda episode: episode[2])
        seconds = np.array([end for _, _, end in episodes])
    else:
        place = Path("info['episode']")
        episodes = [_episode(number, e) for number, e in enumerate(source)]
        seconds = np.cumsum([duration for _, _, duration in episodes])
    if not episodes:
        raise ConfigError(f"no episode in {place}")
    returns = np.array([r for r, _, _ in episodes])
    sums = np.concatenate([[0.0], np.cumsum(returns)])
    last = np.arange(1, len(returns) + 1)
    first = np.maximum(0, last - window)
    arrays = {
        "score": (sums[last] - sums[first]) / (last - first),
        "environment_steps": np.cumsum([length for _, length, _ in episodes]),
        "wall_seconds": seconds,
    }
    protocol = Protocol(
        f"training episodes, mean of the last {window}", window, 0, "those of training", False
    )
    return [_record(task, contender, seed, arrays, protocol, about_task, about_contender, place)]


def _monitored(path: Path) -> list[tuple[float, float, float]]:
    """Return, length and time of the end of each episode; times from the start of the earliest copy are absolute."""
    head, _, body = _text(path).partition("\n")
    start = re.search(r'"t_start":\s*([0-9.eE+-]+)', head)
    if not head.startswith("#") or start is None:
        raise ConfigError(f"{shown(path)} is no file of Monitor: its first line has no t_start")
    heads, rows = _table(body, path)
    missing = {"r", "l", "t"} - set(heads)
    if missing:
        raise ConfigError(f"{shown(path)} has no column {', '.join(sorted(missing))}")
    if rows and None in rows[-1].values():
        rows.pop()  # the writer is at work, or was killed
    arrays = [_numbers(rows, name, path) for name in ("r", "l", "t")]
    return list(zip(*(array.tolist() for array in arrays), strict=True))


def _record(
    task: str,
    contender: str,
    seed: int,
    arrays: Mapping[str, Any],
    protocol: Protocol,
    about_task: Task | None,
    about_contender: Contender,
    place: Path,
) -> Record:
    try:
        unknown = np.full(len(arrays["score"]), np.nan)
        curve = Curve(**{**dict.fromkeys(CURVE, unknown), **arrays})
    except ConfigError as error:
        raise ConfigError(f"{shown(place)}: {error}") from None
    return Record(
        task,
        contender,
        seed,
        "finished",
        curve,
        protocol,
        about_task=about_task or Task(),
        about_contender=about_contender,
        provenance={"imported_from": place.name},
    )


def _columns(heads: Sequence[str], given: Mapping[str, str], place: Path) -> dict[str, str]:
    """The file's name of each column of a curve that it has."""
    for name, column in given.items():
        if name not in CURVE or column not in heads:
            raise ConfigError(
                f"columns: {name} = {column!r}; {shown(place)} has {', '.join(heads) or 'no columns'}"
            )
    twice = {head for head in heads if heads.count(head) > 1}
    found = dict(given)
    for name, known in COLUMNS.items():
        if name not in found and (first := next((k for k in known if k in heads), None)) is not None:
            found[name] = first
    if "score" not in found:
        raise ConfigError(
            f"{shown(place)} has no column of scores: it has {', '.join(heads) or 'none'}; name it, such as "
            "columns={'score': 'reward'}"
        )
    for column in found.values():
        if column in twice:
            raise ConfigError(f"{shown(place)} has two columns {column!r}; rename the one that is not meant")
    return found


def _numbers(rows: Sequence[Mapping[str, str]], column: str, place: Path) -> np.ndarray:
    try:
        return np.array([_number(row[column] or "") for row in rows])
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{shown(place)}, column {column}: {error}") from None


def _number(cell: str) -> float:
    text = cell.strip()
    truths = {"": math.nan, "true": 1.0, "false": 0.0}  # as pandas writes truth values
    return truths[text.lower()] if text.lower() in truths else float(text)


def _protocol(column: str) -> Protocol:
    training = any(part in column for part in ("rollout", "episod", "charts"))
    return Protocol(
        f"imported, {column}", 0, 0, "those of training" if training else "not said", not training
    )


def _seeds(places: Sequence[Path]) -> list[int]:
    numbers = [re.findall(r"\d+", place.name) for place in places]
    seeds = [int(found[-1]) for found in numbers if found]
    return seeds if len(set(seeds)) == len(places) else list(range(len(places)))


def _table(text: str, place: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The heads of a CSV file and its rows."""
    head = text.partition("\n")[0]
    separator = next((mark for mark in ",;\t" if mark in head), ",")
    reader = csv.DictReader(io.StringIO(text), delimiter=separator, skipinitialspace=separator != "\t")
    try:
        heads = [head.strip() for head in reader.fieldnames or ()]
        reader.fieldnames = heads
        rows = list(reader)
    except csv.Error as error:
        raise ConfigError(f"{shown(place)} is no CSV file: {error}") from None
    for number, row in enumerate(rows, 1):
        if None in row:
            raise ConfigError(
                f"{shown(place)}: row {number} has more than the {len(heads)} cells of the first line"
            )
    return heads, rows


def _whole(name: str, value: Any, least: int, place: Path | None = None) -> int:
    try:
        return whole_number(value, least)
    except ValueError as error:
        raise ConfigError(
            f"{'' if place is None else f'{shown(place)}: '}{name} = {value!r}: {error}"
        ) from None


def _episode(number: int, told: Mapping[str, Any]) -> tuple[float, float, float]:
    missing = [key for key in ("r", "l", "t") if key not in told]
    if missing:
        raise ConfigError(
            f"episode {number} has no {', '.join(missing)}; Gymnasium's info['episode'] has r, l and t"
        )
    return _scalar(told["r"]), _scalar(told["l"]), _scalar(told["t"])


def _scalar(value: Any) -> float:
    return float(np.asarray(value).reshape(-1)[0])


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{shown(path)} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from None
