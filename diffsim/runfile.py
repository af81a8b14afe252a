"""The one HDF5 file of a run: its layout, and writing it so that no moment can lose it.

::

    /                    attributes format = "diffsim-run", format_version, config (JSON)
    /provenance          attributes: versions, git revisions, device, dtype, seed, ...
    /history/<column>    one value per update (see COLUMNS)
    /checkpoints/last    everything needed to resume bit for bit; attribute update
    /checkpoints/best    the policy with the best evaluation so far; attributes update, return
    /evaluations/<n>     dataset returns [episodes]; attributes where, seed, mean, low, high, ...

Every change writes a whole new file beside the old one, flushes it to the disk and renames it over the
old one, under a lock.  So a reader sees the old file or the new one, never half of either.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from filelock import FileLock, Timeout

from diffsim import state_tree
from diffsim.config import RunConfig, stored_config
from diffsim.errors import ConfigError, RunFileError
from solvers.registry import unknown

FORMAT = "diffsim-run"
FORMAT_VERSION = 1
FILE_NAME = "run.h5"

COLUMNS: dict[str, type] = {
    "update": np.int64,
    "loss": np.float64,
    "return": np.float64,  # NaN where no evaluation was made
    "env_steps": np.int64,
    "gradient_evaluations": np.int64,
    "evaluation_steps": np.int64,
    "wall_seconds": np.float64,
    "compile_seconds": np.float64,
    "grad_norm": np.float64,
    "step_dropped": np.int64,
}
"""Of the history. Counts and seconds accumulate over the run; wall_seconds excludes evaluations,
checkpoints and compile_seconds; env_steps are those that training used, evaluation_steps those that
only measured."""

Writer = Callable[[h5py.Group], None]


class RunFile:
    """The run file at ``path``, which may be the file or the folder that holds it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        path = Path(path)
        self.path = path if path.is_file() or path.suffix == ".h5" else path / FILE_NAME

    @property
    def folder(self) -> Path:
        return self.path.parent

    def exists(self) -> bool:
        return self.path.exists()

    # -- writing ------------------------------------------------------------------------------

    def create(
        self, config: RunConfig, provenance: Mapping[str, Any], sections: Mapping[str, Writer]
    ) -> None:
        """Write a new file with these sections.

        Raises:
            RunFileError: it exists already.
        """
        if self.exists():
            raise RunFileError(already_there(self.path))
        facts = {**provenance, "device": config.device, "dtype": config.dtype, "seed": config.seed}

        def write_provenance(group: h5py.Group) -> None:
            group.attrs.update(facts)

        attributes = {"format": FORMAT, "format_version": FORMAT_VERSION, "config": config.to_json()}
        with self._writing():
            self._replace(attributes, {"provenance": write_provenance, **sections})

    def update(self, sections: Mapping[str, Writer]) -> None:
        """Replace or add the named groups; everything else stays as it is in the file now.

        Raises:
            RunFileError: the file has gone, or cannot be read or written.
        """
        with self._writing():
            if not self.exists():
                raise RunFileError(
                    f"{self.path} has vanished since it was opened; nothing can be saved in it"
                )
            self._update(sections)

    def _update(self, sections: Mapping[str, Writer]) -> None:
        with self._open() as old:
            kept = {}
            for top in {name.split("/")[0] for name in (*old, *sections)}:
                if top in sections:
                    continue
                inner = {name.split("/")[1] for name in sections if name.startswith(top + "/")}
                names = [f"{top}/{n}" for n in old.get(top, ()) if n not in inner] if inner else [top]
                kept.update({name: _copier(old[name]) for name in names})
            self._replace(dict(old.attrs), {**kept, **sections})

    def append_evaluation(self, returns: np.ndarray, attributes: Mapping[str, Any]) -> None:
        """Add an evaluation under the next free number."""

        def write(group: h5py.Group) -> None:
            group.create_dataset("returns", data=np.asarray(returns, dtype=np.float64))
            group.attrs.update(attributes)

        # The write lock is re-entrant: nobody takes the same number between the look and the write.
        with self._writing():
            with self._open() as file:
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
                stack.enter_context(FileLock(self.folder / ".training.lock", timeout=0))
            except Timeout:
                raise RunFileError(
                    f"another process is training {self.folder}; wait for it or choose another --out"
                ) from None
            except OSError as error:
                raise RunFileError(f"cannot make a run in {self.folder}: {error.strerror}") from None
            yield

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            # One lock per path in a process, so that nested use by one caller does not block itself.
            with FileLock(self.folder / ".write.lock", is_singleton=True):
                yield
        except OSError as error:
            if isinstance(error, RunFileError):
                raise
            raise RunFileError(f"cannot write in {self.folder}: {error.strerror}") from None

    def _replace(self, attributes: Mapping[str, Any], sections: Mapping[str, Writer]) -> None:
        # Made in memory, so that a full disk is met by one plain write and not inside HDF5.
        image = io.BytesIO()
        with h5py.File(image, "w") as new:
            new.attrs.update(attributes)
            for name, write in sections.items():
                write(new.require_group(name))
        temporary = self.path.with_name(self.path.name + ".tmp")
        try:
            with open(temporary, "wb") as file:
                file.write(image.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise RunFileError(
                f"cannot write {self.path}: {error.strerror}; what it held before is unchanged"
            ) from None
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)  # makes the rename itself durable
        finally:
            os.close(folder)

    # -- reading ------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _open(self) -> Iterator[h5py.File]:
        """The file, open for reading; every way in which it can be unreadable is one clear line."""
        if not self.path.exists():
            folder = shlex.quote(str(self.folder))
            raise RunFileError(f"no run at {self.path}; 'diffsim train ENV --out {folder}' makes one")
        try:
            with h5py.File(self.path, "r") as file:
                if file.attrs.get("format") != FORMAT:
                    raise RunFileError(f"{self.path} is an HDF5 file, but not a diffsim run")
                version = file.attrs.get("format_version")
                if version != FORMAT_VERSION:
                    raise RunFileError(
                        f"{self.path} has format version {version}; this diffsim reads {FORMAT_VERSION}"
                    )
                yield file
        except (RunFileError, ConfigError):
            raise
        except (OSError, KeyError, ValueError, RuntimeError, TypeError) as error:
            reason = " ".join(str(error).strip("'\"").split())
            raise RunFileError(
                f"{self.path} cannot be read as a run: {reason} (truncated, damaged or not HDF5)"
            ) from error

    def config(self) -> RunConfig:
        with self._open() as file:
            return stored_config(json.loads(file.attrs["config"]))

    def provenance(self) -> dict[str, Any]:
        with self._open() as file:
            return {name: _python(value) for name, value in file["provenance"].attrs.items()}

    def history(self) -> dict[str, np.ndarray]:
        """Arrays ``[updates]`` by column name."""
        with self._open() as file:
            return {name: file["history"][name][()] for name in COLUMNS}

    def checkpoint(self, name: str = "last") -> dict[str, Any]:
        """The stored state of a checkpoint, tensors on the CPU; whoever loads it moves what must move."""
        with self._open() as file:
            if name not in file["checkpoints"]:
                raise RunFileError(f"{self.path}: " + unknown("checkpoint", name, file["checkpoints"]))
            return state_tree.read(file["checkpoints"][name]["state"])

    def checkpoints(self) -> dict[str, dict[str, Any]]:
        """The attributes of every checkpoint by name."""
        with self._open() as file:
            return {
                name: {k: _python(v) for k, v in group.attrs.items()}
                for name, group in file["checkpoints"].items()
            }

    def evaluations(self) -> list[dict[str, Any]]:
        """Attributes and ``returns`` of every evaluation, oldest first."""
        with self._open() as file:
            return [
                {**{k: _python(v) for k, v in group.attrs.items()}, "returns": group["returns"][()]}
                for _, group in sorted(file.get("evaluations", {}).items())
            ]


def history_writer(columns: Mapping[str, list[float]]) -> Writer:
    def write(group: h5py.Group) -> None:
        for name, dtype in COLUMNS.items():
            group.create_dataset(name, data=np.asarray(columns[name], dtype=dtype))

    return write


def checkpoint_writer(state: dict[str, Any], **attributes: float) -> Writer:
    def write(group: h5py.Group) -> None:
        state_tree.write(group, "state", state)
        group.attrs.update(attributes)

    return write


def already_there(path: Path) -> str:
    return (
        f"{path.parent} already holds a run; continue it with --resume, or choose another --out "
        "(nothing was changed)"
    )


def _copier(source: h5py.Group) -> Writer:
    def write(group: h5py.Group) -> None:
        group.attrs.update(source.attrs)
        for name in source:
            source.copy(name, group)

    return write


def _python(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
