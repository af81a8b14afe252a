"""What may differ when a run goes on: its length, and where its files are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from diffsim.assembly import resolve
from diffsim.config import RunConfig, load_config
from diffsim.errors import ConfigError
from robotics_envs import JULIA

_LENGTH = ("updates", "stop")


def changed_on_resume(stored: RunConfig, values: Mapping[str, Any], done: int) -> RunConfig:
    """The stored configuration with another length, if ``values`` ask for one.

    Raises:
        ConfigError: they ask for any other change, or for fewer updates than are done.
    """
    if not values:
        return stored
    wanted = load_config(stored.model_dump(), values)
    if wanted.updates < done:
        raise ConfigError(f"updates = {wanted.updates}: {done} are done already; give at least as many")
    length = {key: getattr(wanted, key) for key in _LENGTH}
    rest = {key: value for key, value in values.items() if key not in _LENGTH}
    if rest:
        _refuse_changes(stored, rest)
    return stored.model_copy(update=length)


def with_moved_files(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """With the files that ``values`` name in place of stored ones of the same class that lie elsewhere."""
    changes = {}
    for key in ("env", "policy", "algorithm", "optimizer"):
        section = values.get(key)
        name = section.get("name") if isinstance(section, Mapping) else section
        if isinstance(name, str) and _same_class(name, getattr(config, key).name):
            changes[key] = getattr(config, key).model_copy(update={"name": name})
    return config.model_copy(update=changes)


def what_lengthening_means(old: RunConfig, new: RunConfig, done: int) -> str:
    """In words, for a run of which ``done`` updates are done."""
    if old.updates == new.updates:
        return f"the run now stops at: {new.stop.model_dump(exclude_none=True) or 'the end of its updates'}"
    before, after = 1 - done / old.updates, 1 - done / new.updates
    return (
        f"the run now has {new.updates:,} updates instead of {old.updates:,}. What depends on the share of the run "
        "that is left (schedules of learning rates, the hand-over between optimizers) goes on as in a run of "
        f"{new.updates:,} updates after its update {done:,}: at {after:.0%} left, where {before:.0%} was left"
    )


def _refuse_changes(stored: RunConfig, values: Mapping[str, Any]) -> None:
    """Say which setting was to be another."""
    moved = with_moved_files(stored, values)
    wanted = resolve(load_config(stored.model_dump(), values)).model_dump()
    changed = [
        f"{key} is {old!r} in the run, {new!r} was given"
        for key, old, new in _differences(moved.model_dump(), wanted)
    ]
    if changed:
        raise ConfigError(
            "a resumed run keeps its configuration, except for updates and stop: "
            + "; ".join(changed)
            + "; start a new run for that"
        )


def _same_class(one: str, other: str) -> bool:
    """Whether two names of files name a class of the same name in files of the same name."""
    (file, _, first), (stored, _, second) = one.rpartition(":"), other.rpartition(":")
    start = JULIA if one.startswith(JULIA) else ""
    return (
        first == second
        and one != other
        and file.endswith((".py", ".jl"))
        and Path(file.removeprefix(start)).name == Path(stored.removeprefix(start)).name
    )


def _differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        if old.get("name") != new.get("name"):  # options of another class are no changes of these
            yield f"{key}.name", old.get("name"), new.get("name")
            return
        for name in {**old, **new}:
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    elif isinstance(old, (list, tuple)) and isinstance(new, (list, tuple)):
        if list(old) != list(new):
            yield key, old, new
    elif old != new:
        yield key, old, new
