"""The one HDF5 file of a run: its layout, and writing it so that no moment can lose it.

::

    /                    attributes format = "diffsim-run", format_version, config (JSON), signature
    /provenance          attributes: versions, git revisions, device, dtype, seed, ...
    /history/<column>    one value per update (see COLUMNS)
    /sources/<section>   texts of the user's files that the run is made from; attributes name, origin, entry, sha256
    /status              attributes state (see STATES), reason, time
    /checkpoints/last    everything needed to resume bit for bit; attribute update
    /checkpoints/best    the policy with the best evaluation so far; attributes update, return
    /evaluations/<n>     dataset returns [episodes]; attributes where, seed, mean, low, high, ...

Every change writes a whole new file beside the old one, flushes it to the disk and renames it over the
old one, under a lock.  So a reader sees the old file or the new one, never half of either.  HDF5 itself
only sees copies in memory: another program that holds the file open neither blocks a run nor is blocked.
Reading executes nothing: there is no pickle, and sources are only texts.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from filelock import FileLock, Timeout

from diffsim.config import RunConfig, stored_config
from diffsim.errors import ConfigError, RunFileError
from diffsim.runs import authorship, user_code
from diffsim.runs.user_code import Source
from diffsim.runs.whole_files import write_whole
from diffsim.values import folder, pasted, shown
from lazy_registry.registry import unknown

FORMAT = "diffsim-run"
FORMAT_VERSION = 2
_READABLE = (1, 2)
"""Version 1 stored a checkpoint's state entry by entry (``diffsim.state_tree``); a file is of version 2 as soon as
anything is written in it."""
FILE_NAME = "run.h5"
TRAINING_LOCK = ".training.lock"

_UNREADABLE = (OSError, KeyError, ValueError, RuntimeError, TypeError, AttributeError)
"""What h5py and JSON raise on files that are no runs."""

COLUMNS: dict[str, type] = {
    "update": np.int64,
    "loss": np.float64,
    "return": np.float64,  # NaN where no evaluation was made
    "success": np.float64,  # the share of starts that succeed; NaN also where the simulator declares no success
    "env_steps": np.int64,
    "gradient_evaluations": np.int64,
    "evaluation_steps": np.int64,
    "wall_seconds": np.float64,
    "compile_seconds": np.float64,
    "grad_norm": np.float64,
    "step_dropped": np.int64,
    "left_out": np.int64,  # rollouts that were not finite
}
"""Of the history. Counts and seconds accumulate over the run; wall_seconds excludes evaluations,
checkpoints and compile_seconds; env_steps are those that training used, evaluation_steps those that
only measured."""

CURVE = ("env_steps", "wall_seconds", "gradient_evaluations", "return", "success")
"""What a summary says of each evaluation."""

Writer = Callable[[h5py.Group], None]


STATES = ("running", "finished", "stopped", "diverged", "crashed", "killed")
"""Of a run. ``stopped`` was asked for by a signal; ``killed`` is one that ended without being able to say why."""


class RunFile:
    """The run file at ``path``: the file, the folder that holds it, or another RunFile.

    The path is made absolute, so that it stays right when the program changes its current folder.
    """

    def __init__(self, path: str | os.PathLike[str] | RunFile) -> None:
        if isinstance(path, RunFile):
            path = path.path  # type: ignore[has-type]
        place = folder(path)
        self.path = place if place.is_file() or place.suffix == ".h5" else place / FILE_NAME

    def __repr__(self) -> str:
        return f"RunFile({shown(self.folder)!r})"

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def folder(self) -> Path:
        return self.path.parent

    def exists(self) -> bool:
        return self.path.exists()

    # -- writing ------------------------------------------------------------------------------

    def create(
        self,
        config: RunConfig,
        provenance: Mapping[str, Any],
        sections: Mapping[str, Writer],
        sources: Sequence[Source] = (),
        own: bool = True,
    ) -> None:
        """Write a new file with these sections, signed if configuration and sources are this user's ``own``.

        Raises:
            RunFileError: it exists already.
        """
        if self.exists():
            raise RunFileError(already_there(self.path))
        facts = {"device": config.device, **provenance, "dtype": config.dtype, "seed": config.seed}

        def write_provenance(group: h5py.Group) -> None:
            group.attrs.update(facts)

        def write_sources(group: h5py.Group) -> None:
            user_code.write(group, sources)

        made = {"format": FORMAT, "format_version": FORMAT_VERSION, **_signed(config, sources, own)}
        written = {"provenance": write_provenance, **({"sources": write_sources} if sources else {})}
        with self._writing():
            self._replace(made, {**written, **sections})

    def update(self, sections: Mapping[str, Writer], config: RunConfig | None = None) -> None:
        """Replace or add the named groups, and the configuration if one is given; all else stays as it is now.

        Raises:
            RunFileError: the file has gone, or cannot be read or written.
        """
        with self._writing():
            if not self.exists():
                raise RunFileError(
                    f"{self.path} has vanished since it was opened; nothing can be saved in it"
                )
            changed: dict[str, Any] = {} if config is None else _signed(config, self.sources(), self.is_own())
            with self._open() as old:
                kept = {}
                for top in {name.split("/")[0] for name in (*old, *sections)}:
                    if top in sections:
                        continue
                    inner = {name.split("/")[1] for name in sections if name.startswith(top + "/")}
                    names = [f"{top}/{n}" for n in old.get(top, ()) if n not in inner] if inner else [top]
                    kept.update({name: self._copier(old[name]) for name in names})
                changed = {**changed, "format_version": FORMAT_VERSION}
                self._replace({**old.attrs, **changed}, {**kept, **sections})

    def _copier(self, source: h5py.Group) -> Writer:
        def write(group: h5py.Group) -> None:
            try:
                group.attrs.update(source.attrs)
                for name in source:
                    source.copy(name, group)
            except _UNREADABLE as error:
                raise self._damaged(error) from error

        return write

    def prune(self) -> None:
        """Keep of a run that is finished the policies, the history and the evaluations; it cannot be resumed then.

        Raises:
            ConfigError: it is not finished.
        """
        status = self.status()
        if status["state"] != "finished":
            raise ConfigError(f"{shown(self.folder)} is {status['state']}; only finished runs are pruned")
        facts = self.checkpoints()["last"]
        if facts.get("pruned"):
            return
        history = {name: column.tolist() for name, column in self.history().items()}
        last = checkpoint_writer({"policy": self.checkpoint("last")["policy"]}, **facts, pruned=True)
        self.update({"history": history_writer(history, compressed=True), "checkpoints/last": last})

    def append_evaluation(self, returns: np.ndarray, attributes: Mapping[str, Any]) -> None:
        """Add an evaluation under the next free number."""

        def write(group: h5py.Group) -> None:
            group.create_dataset("returns", data=np.asarray(returns, dtype=np.float64))
            group.attrs.update(attributes)

        # The write lock is re-entrant: nobody takes the same number between the look and the write.
        with self._writing():
            with self._reading() as file:
                taken = [int(n) for n in file.get("evaluations", ())]
            self.update({f"evaluations/{max(taken, default=-1) + 1:04d}": write})

    @contextlib.contextmanager
    def training_lock(self) -> Iterator[None]:
        """Held while a process trains this run.

        Raises:
            RunFileError: another process holds it.
        """
        with contextlib.ExitStack() as stack:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                # A reader who asks for the status holds this lock for an instant.
                stack.enter_context(FileLock(self.folder / TRAINING_LOCK, timeout=0.5))
            except Timeout:
                raise RunFileError(
                    f"another process is training {self.folder}; wait for it or choose another --out"
                ) from None
            except OSError as error:
                raise RunFileError(f"cannot make a run in {self.folder}: {error.strerror or error}") from None
            yield

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        if not self.folder.is_dir():  # the lock would make it
            raise RunFileError(f"cannot write in {self.folder}: the folder is gone")
        try:
            # One lock per path in a process, so that nested use by one caller does not block itself.
            lock = FileLock(self.folder / ".write.lock", is_singleton=True)
            lock.acquire()
        except OSError as error:
            raise RunFileError(f"cannot write in {self.folder}: {error.strerror or error}") from None
        try:
            yield
        finally:
            lock.release()

    def _replace(self, attributes: Mapping[str, Any], sections: Mapping[str, Writer]) -> None:
        # Made in memory, so that a full disk is met by one plain write and not inside HDF5.
        image = io.BytesIO()
        with h5py.File(image, "w") as new:
            new.attrs.update(attributes)
            for name, write in sections.items():
                write(new.require_group(name))
        try:
            # The caller holds the lock, so one name does: what a killed process leaves is replaced by the next.
            write_whole(self.path, image.getbuffer(), temporary=self.path.name + ".tmp")
        except OSError as error:
            raise RunFileError(
                f"cannot write {self.path}: {error.strerror or error}; what it held before is unchanged"
            ) from None

    # -- reading ------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _open(self) -> Iterator[h5py.File]:
        """The file, open for reading."""
        if not self.path.exists():
            raise RunFileError(
                f"no run at {shown(self.path)}; 'diffsim train ENV --out {pasted(self.folder)}' makes one"
            )
        with contextlib.ExitStack() as stack:
            try:
                # Read as a whole: HDF5 would refuse a file that this or another program holds open.
                file = stack.enter_context(h5py.File(io.BytesIO(self.path.read_bytes()), "r"))
                form, version = file.attrs.get("format"), file.attrs.get("format_version")
            except _UNREADABLE as error:
                raise self._damaged(error) from error
            if form != FORMAT:
                raise RunFileError(f"{self.path} is an HDF5 file, but not a diffsim run")
            if version not in _READABLE:
                raise RunFileError(
                    f"{self.path} has format version {version}; this diffsim reads up to {FORMAT_VERSION}"
                )
            yield file

    @contextlib.contextmanager
    def _reading(self) -> Iterator[h5py.File]:
        """As ``_open``; every way in which the contents can be unreadable is one clear line."""
        with self._open() as file:
            try:
                yield file
            except (RunFileError, ConfigError):
                raise
            except _UNREADABLE as error:
                raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> RunFileError:
        if isinstance(error, PermissionError):
            return RunFileError(f"{self.path} cannot be read: {error.strerror or error}")
        reason = " ".join(str(error).strip("'\"").split())
        return RunFileError(f"{self.path} cannot be read as a run: {reason} (truncated, damaged or not HDF5)")

    def config(self) -> RunConfig:
        with self._reading() as file:
            return stored_config(json.loads(file.attrs["config"]))

    def sources(self) -> list[Source]:
        """The texts of the user's files that the run is made from."""
        with self._reading() as file:
            return user_code.read(file["sources"]) if "sources" in file else []

    def is_own(self) -> bool:
        """Whether the configuration and the sources carry the signature of this user."""
        with self._reading() as file:
            text, found = str(file.attrs["config"]), str(file.attrs.get("signature", ""))
            sources = user_code.read(file["sources"]) if "sources" in file else []
        return authorship.is_own(user_code.signed_parts(text, sources), found)

    def provenance(self) -> dict[str, Any]:
        with self._reading() as file:
            return {name: _python(value) for name, value in file["provenance"].attrs.items()}

    def status(self) -> dict[str, str]:
        """``state``, one of :data:`STATES`, ``reason`` and ``time``; of files without them, from the history."""
        with self._reading() as file:
            facts = (
                {name: str(value) for name, value in file["status"].attrs.items()} if "status" in file else {}
            )
            done = len(file["history/update"])
        if not facts:
            ended = done >= self.config().updates
            facts = {"state": "finished" if ended else "stopped", "reason": "", "time": ""}
        if facts["state"] in ("finished", "diverged"):
            return facts
        if self._is_training():
            return {**facts, "state": "running"}
        return {**facts, "state": "killed"} if facts["state"] == "running" else facts

    def summary(self) -> dict[str, Any]:
        """What a table of many runs says of one, from one opening of the file and without torch.

        Names, seed and length from its configuration; state and reason as they are stored, where ``"running"`` is also
        a run that was killed; the last row of the history as ``done``, ``env_steps``, ..., the last measured ``return``
        and ``success``, and the ``best`` return.  Numbers that there are not are None.  ``curve`` holds a list of
        :data:`CURVE` for each evaluation.
        """
        with self._reading() as file:
            config, history = json.loads(file.attrs["config"]), file["history"]
            returns = history["return"][()]
            done, measured = len(returns), np.flatnonzero(np.isfinite(returns))
            ended = "finished" if done >= config["updates"] else "stopped"  # of files that do not say
            status = dict(file["status"].attrs) if "status" in file else {"state": ended, "reason": ""}
            best = file["checkpoints/best"].attrs["return"] if "best" in file["checkpoints"] else None
            values = {"return": returns[measured[-1]] if len(measured) else None, "best": best}
            values["success"] = (
                history["success"][measured[-1]] if len(measured) and "success" in history else None
            )
            for name in ("env_steps", "gradient_evaluations", "wall_seconds", "compile_seconds"):
                values[name] = history[name][-1] if done else None
            columns = [
                history[name][()][measured].tolist() if name in history else [None] * len(measured)
                for name in CURVE
            ]
            return {
                **{key: config[key]["name"] for key in ("env", "algorithm", "optimizer")},
                **{key: config[key] for key in ("seed", "updates")},
                **{key: str(status[key]) for key in ("state", "reason")},
                **{key: None if value is None else _known(value.item()) for key, value in values.items()},
                "done": done,
                "curve": [list(map(_known, point)) for point in zip(*columns, strict=True)],
            }

    def _is_training(self) -> bool:
        """Whether a process trains this run now."""
        lock = self.folder / TRAINING_LOCK
        if not lock.exists():
            return False
        try:
            with FileLock(lock, timeout=0):
                return False
        except Timeout:
            return True
        except OSError:  # a folder that cannot be written: nobody trains in it
            return False

    def history(self) -> dict[str, np.ndarray]:
        """Arrays ``[updates]`` by column name; of columns that a file of an older version lacks, NaN or zeros."""
        with self._reading() as file:
            group = file["history"]
            return {
                name: _unknown(len(group["update"]), dtype)
                if name in _ADDED and name not in group
                else group[name][()]
                for name, dtype in COLUMNS.items()
            }

    def checkpoint(self, name: str = "last") -> dict[str, Any]:
        """The stored state of a checkpoint, tensors on the CPU; whoever loads it moves what must move."""
        with self._reading() as file:
            if name not in file["checkpoints"]:
                raise RunFileError(f"{self.path}: " + unknown("checkpoint", name, file["checkpoints"]))
            import diffsim.state_tree as state_tree  # brings torch, which other readers do without

            return state_tree.read(file["checkpoints"][name]["state"])

    def checkpoints(self) -> dict[str, dict[str, Any]]:
        """The attributes of every checkpoint by name."""
        with self._reading() as file:
            return {
                name: {k: _python(v) for k, v in group.attrs.items()}
                for name, group in file["checkpoints"].items()
            }

    def evaluations(self) -> list[dict[str, Any]]:
        """Attributes and ``returns`` of every evaluation, oldest first."""
        with self._reading() as file:
            return [
                {**{k: _python(v) for k, v in group.attrs.items()}, "returns": group["returns"][()]}
                for _, group in sorted(file.get("evaluations", {}).items())
            ]


def _known(value: float | None) -> float | None:
    return None if value != value else value


_ADDED = ("success", "left_out")
"""Columns that files of version 0.1.0 lack."""


def _unknown(count: int, dtype: type) -> np.ndarray:
    return np.full(count, np.nan if issubclass(dtype, np.floating) else 0, dtype)


def history_writer(columns: Mapping[str, list[float]], compressed: bool = False) -> Writer:
    options = {"compression": "gzip", "shuffle": True} if compressed else {}

    def write(group: h5py.Group) -> None:
        for name, dtype in COLUMNS.items():
            group.create_dataset(name, data=np.asarray(columns[name], dtype=dtype), **options)

    return write


def status_writer(state: str, reason: str = "") -> Writer:
    def write(group: h5py.Group) -> None:
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        group.attrs.update(state=state, reason=reason, time=now)

    return write


def checkpoint_writer(state: dict[str, Any], **attributes: float) -> Writer:
    import diffsim.state_tree as state_tree

    def write(group: h5py.Group) -> None:
        state_tree.write(group, "state", state)
        group.attrs.update(attributes)

    return write


def _signed(config: RunConfig, sources: Sequence[Source], own: bool) -> dict[str, str]:
    # Consent to run somebody else's code once does not make it this user's.
    text = config.to_json()
    return {"config": text, "signature": user_code.signature(text, sources) if own else ""}


def already_there(path: Path) -> str:
    return (
        f"{shown(path.parent)} already holds a run; continue it with --resume, or choose another --out "
        "(nothing was changed)"
    )


def _python(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
