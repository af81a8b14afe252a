"""What may differ when a run goes on: its length, and where its files are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from diffsim.assembly import Assembly
from diffsim.config import RunConfig, absolute_name, load_config
from diffsim.errors import ConfigError
from diffsim.optimizers import canonical
from diffsim.runs.user_code import user_names
from robotics_envs.environments import JULIA

_LENGTH = ("updates", "doublings", "stop")
_SECTIONS = ("env", "policy", "algorithm", "optimizer")


def resumed_with(stored: RunConfig, values: Mapping[str, Any], done: int) -> RunConfig:
    """The stored configuration with ``values`` laid over it; it may be assembled, which executes the classes it names.

    A value may be the stored one, another length, or the present place of a file that was moved.

    Raises:
        ConfigError: ``values`` name another class, or fewer updates than are done.
    """
    if not values:
        return stored
    moved = _with_moved_files(stored, values)
    stored_values = moved.model_dump()
    if "updates" in values:
        del stored_values["doublings"]  # a length that is asked for is the length
    wanted = load_config(stored_values, values)
    if wanted.updates < done:
        raise ConfigError(f"updates = {wanted.updates}: {done} are done already; give at least as many")
    named = {section: (getattr(moved, section).name, getattr(wanted, section).name) for section in _SECTIONS}
    _refuse(
        (f"{section}.name", old, new)
        for section, (old, new) in named.items()
        if canonical(new) != canonical(old)
    )
    return wanted


def lengthened(
    stored: RunConfig, values: Mapping[str, Any], wanted: RunConfig, assembly: Assembly
) -> RunConfig:
    """The stored configuration with the length that ``wanted`` has, whose ``assembly`` has all options validated.

    Raises:
        ConfigError: ``wanted`` has other options than the stored configuration.
    """
    if any(key not in _LENGTH for key in values):
        given = assembly.config.model_dump(exclude=set(_LENGTH))
        for section, name in user_names(
            wanted
        ).items():  # assembled from other places than they are stored with
            top, _, part = section.partition(".")
            (given[top][part] if part else given[top])["name"] = name
        _refuse(_differences(_with_moved_files(stored, values).model_dump(exclude=set(_LENGTH)), given))
    return stored.model_copy(update={key: getattr(wanted, key) for key in _LENGTH})


def _with_moved_files(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """With the files that ``values`` name in place of stored ones of the same class that lie elsewhere."""
    changes = {}
    for key in _SECTIONS:
        section = values.get(key)
        name = absolute_name(section.get("name") if isinstance(section, Mapping) else section)
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


def _refuse(changes: Iterable[tuple[str, Any, Any]]) -> None:
    """Raise ConfigError if there is a change ``(setting, old value, new value)``."""
    changed = [f"{key} is {old!r} in the run, {new!r} was given" for key, old, new in changes]
    if changed:
        raise ConfigError(
            "a resumed run keeps its configuration, except for updates, doublings and stop: "
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
