"""Writers of training logs, used as ``train(..., callback=writer)``.

A writer is called after each update with the newest row of the history, by column name
(:data:`diffsim.runs.runfile.COLUMNS`). ``run.h5`` holds the same numbers; these files are for other programs. Each row
is written at once, by the thread that trains.
"""

from __future__ import annotations

import contextlib
import csv
import io
import math
import os
import socket
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from diffsim.errors import ConfigError
from diffsim.runs.whole_files import write_whole
from diffsim.values import folder as absolute
from lazy_registry.installation import install_command
from lazy_registry.registry import unknown

Row = Mapping[str, float]


class LogWriter(ABC):
    """A callback for rows that never ends training: after a failure it warns once and writes no more.

    Nothing is created before the first row.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = absolute(path)
        self._file: IO[Any] | None = None
        self._failed = False

    def __call__(self, row: Row) -> None:
        """Write one row."""
        if self._failed:
            return
        try:
            if self._file is None:
                self._file = self._open(row)
            self._write(self._file, row)
            self._file.flush()
        except Exception as error:  # whatever it is, it must not cost the run
            self._failed = True
            self.close()
            reason = getattr(error, "strerror", None) or error
            warnings.warn(
                f"{self.path} cannot be written: {reason}. This log ends here; training goes on, and the run file "
                "holds the whole history",
                stacklevel=2,
            )

    def close(self) -> None:
        """Close the file; closing again does nothing."""
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):  # every row was flushed; what failed then fails again
                file.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    @abstractmethod
    def _open(self, row: Row) -> IO[Any]:
        """The file, ready for this row: the first of a run, or of a run that is resumed."""

    @abstractmethod
    def _write(self, file: IO[Any], row: Row) -> None: ...


class CsvWriter(LogWriter):
    """A CSV file: a header, then one line per update; NaN is an empty cell.

    In a run that is resumed, lines of updates that are made again are replaced.
    """

    def _open(self, row: Row) -> IO[str]:
        kept = [list(row), *self._lines_before(row)]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, "".join(map(_line, kept)).encode())
        return open(self.path, "a", newline="", encoding="utf-8")

    def _lines_before(self, row: Row) -> list[list[str]]:
        if not self.path.exists():
            return []
        with open(self.path, newline="", encoding="utf-8") as file:
            header, *lines = list(csv.reader(file)) or [list(row)]
        if header != list(row):
            raise ValueError(f"it holds other columns ({', '.join(header)}); move it away")
        column = header.index("update")
        # A killed process may have left half a line.
        whole = [line for line in lines if len(line) == len(header) and line[column].isdigit()]
        return [line for line in whole if int(line[column]) < row["update"]]

    def _write(self, file: IO[str], row: Row) -> None:
        file.write(_line("" if math.isnan(value) else value for value in row.values()))


class TensorBoardWriter(LogWriter):
    """Event files in a folder, for ``tensorboard --logdir FOLDER``; the step is the update, NaN is left out.

    In a run that is resumed, TensorBoard discards the older values of updates that are made again.

    Raises:
        ConfigError: the package tensorboard is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        super().__init__(folder)
        if find_spec("tensorboard") is None:
            raise ConfigError(f"logging to TensorBoard needs tensorboard: {install_command('tensorboard')}")

    def _open(self, row: Row) -> IO[bytes]:
        from tensorboard.compat.proto.event_pb2 import SessionLog

        self.path.mkdir(parents=True, exist_ok=True)
        older = len(list(self.path.glob("*tfevents*")))
        # TensorBoard reads the files of a folder in the order of their names.
        start = f"events.out.tfevents.{int(time.time()):010d}.{older:04d}"
        file = open(self.path / f"{start}.{socket.gethostname()}.{os.getpid()}", "xb")  # noqa: SIM115, kept open
        self._put(file, file_version="brain.Event:2")
        if older:
            self._put(file, step=int(row["update"]), session_log=SessionLog(status=SessionLog.START))
        return file

    def _write(self, file: IO[bytes], row: Row) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [
            Summary.Value(tag=name, simple_value=float(value))
            for name, value in row.items()
            if name != "update" and not math.isnan(value)
        ]
        self._put(file, step=int(row["update"]), summary=Summary(value=values))

    def _put(self, file: IO[bytes], **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        RecordWriter(file).write(Event(wall_time=time.time(), **content).SerializeToString())


WRITERS: dict[str, tuple[type[LogWriter], str]] = {
    "csv": (CsvWriter, "history.csv"),
    "tensorboard": (TensorBoardWriter, "tensorboard"),
}
"""Writers by name, each with the name of its file or folder inside the folder of the run."""


def check_writers(names: Sequence[str]) -> None:
    """Refuse unknown names before anything is made.

    Raises:
        ConfigError: an unknown name.
    """
    for name in names:
        if name not in WRITERS:
            raise ConfigError(unknown("writer", name, WRITERS))


def make_writers(names: Sequence[str], folder: str | os.PathLike[str]) -> list[LogWriter]:
    """The writers called ``names``, which write into ``folder``.

    Raises:
        ConfigError: an unknown name, or a package that is not installed.
    """
    check_writers(names)
    return [kind(Path(folder) / place) for kind, place in (WRITERS[name] for name in dict.fromkeys(names))]


def _line(cells: Iterable[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()
