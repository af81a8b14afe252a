"""One run of a suite in one process: started or resumed, its output in a log, what became of it in a journal.

``python -m diffsim.suites.worker SUITE_FOLDER RUN`` does the same in a process of its own.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from diffsim.errors import (
    ConfigError,
    DiffsimError,
    DivergenceError,
    Interrupted,
    ProcessError,
    RunFileError,
    is_out_of_memory,
)
from diffsim.suites.plan import PLAN, Plan, PlannedRun

DONE, RUN_FAILED, MACHINE_FAILED = 0, 70, 75  # as sysexits.h: EX_SOFTWARE, EX_TEMPFAIL
WORKER_LOCK = ".worker.lock"
JOURNAL = "attempts.jsonl"
LOG = "log.txt"
PROGRESS = "progress.json"
CANCEL = "cancel"
"""A file of this name in the folder of a run, or of a suite, asks to stop at a checkpoint."""
UNTIL_EOF = "--until-eof"
"""Argument of a worker: its standard input is a pipe, whose other end belongs to the process that it works for."""
PROGRESS_SECONDS = 1.0
OTHER_WORK = {"comparison": "diffsim.comparison.worker"}
"""Modules with a ``work`` of their own for the runs of suites that are no trainings, by the setting ``work``."""
GRACE_SECONDS = 10.0
"""For a checkpoint, where that process is lost."""
_MACHINE_ERRORS = {
    getattr(errno, name)
    for name in (
        "ENOSPC",
        "EDQUOT",
        "EIO",
        "EROFS",
        "ESTALE",
        "ENOMEM",
        "EAGAIN",
        "EMFILE",
        "ENFILE",
        "EBUSY",
    )
    if hasattr(errno, name)
}


def work(plan: Plan, run: PlannedRun, trust: bool = False) -> int:
    """Train ``run`` to its end, from its last checkpoint where it has one; returns an exit status.

    0: it is finished; 70: the run itself failed, and would again; 75: the machine is to blame; 128 + n: signal n asked
    to stop, and a checkpoint was written.  A run that another process trains is waited for.
    """
    if "work" in run.settings:
        status: int = importlib.import_module(OTHER_WORK[run.settings["work"]]).work(plan, run)
        return status
    from diffsim.runs.run import trained
    from diffsim.runs.runfile import RunFile

    folder = plan.folder(run)
    if not (plan.root / PLAN).exists():
        return MACHINE_FAILED  # the folder has vanished: nothing may be begun anew in its place
    with FileLock(folder / WORKER_LOCK):
        file = RunFile(folder)
        try:
            report = Heartbeat(folder, (folder / CANCEL, plan.root / CANCEL))
            if file.exists():
                if file.status()["state"] in ("finished", "diverged"):
                    return DONE
                trained({}, folder, resume=True, callback=report, trust=trust, quiet=True)
            else:
                _check_sources(run)
                trained(run.config, folder, callback=report, quiet=True)
            if plan.prune:
                file.prune()
            note(folder, "done", "finished")
            return DONE
        except Interrupted as stop:
            note(folder, "stopped", str(stop))
            return 128 + stop.signal
        except Exception as error:
            traceback.print_exc()
            cause = cause_of(error)
            known = isinstance(error, DiffsimError)
            reason = str(error) if known else f"{type(error).__name__}: {error}"
            note(folder, cause, reason, "" if isinstance(error, DivergenceError) else traceback.format_exc())
            return RUN_FAILED if cause == "run" else MACHINE_FAILED


def cause_of(error: BaseException) -> str:
    """``"machine"`` where another attempt may go well, ``"run"`` where it would fail again."""
    if isinstance(error, (DivergenceError, ConfigError)):
        return "run"
    if isinstance(error, (ProcessError, RunFileError)) or is_out_of_memory(error):
        return "machine"
    if isinstance(error, OSError) and error.errno in _MACHINE_ERRORS:
        return "machine"
    return "machine" if "CUDA error" in str(error) else "run"


def _check_sources(run: PlannedRun) -> None:
    """Refuse to start a run under an identity that the user's files no longer have."""
    from diffsim.assembly import assemble
    from diffsim.config import load_config
    from diffsim.runs.user_code import user_names
    from diffsim.suites.plan import identity

    config = load_config(run.config)
    if user_names(config) and identity(assemble(config).config) != run.identity:
        raise ConfigError(
            f"files of {', '.join(user_names(config).values())} were changed after the suite had been started; "
            "run the suite again, which makes a new run of this one"
        )


class Heartbeat:
    """Callback of a run: at most once a second writes its newest row, and looks whether someone asks to stop."""

    def __init__(self, folder: Path, cancelled_by: tuple[Path, ...]) -> None:
        self.folder, self.cancelled_by = folder, cancelled_by
        self._last = -PROGRESS_SECONDS

    def __call__(self, row: Mapping[str, float]) -> None:
        now = time.monotonic()
        if now - self._last < PROGRESS_SECONDS:
            return
        self._last = now
        content = {
            **{key: None if value != value else value for key, value in row.items()},
            "pid": os.getpid(),
        }
        temporary = self.folder / f".{PROGRESS}"
        with suppress(OSError):  # nothing that a training may end for
            temporary.write_text(json.dumps(content))
            os.replace(temporary, self.folder / PROGRESS)
        # Once a request was noted, the handlers are those of before, and another would end the run at once.
        asked_already = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        if not asked_already and any(path.exists() for path in self.cancelled_by):
            os.kill(os.getpid(), signal.SIGTERM)


def note(
    folder: Path, cause: str, reason: str, trace: str = "", row: Mapping[str, Any] | None = None
) -> None:
    """Append an attempt's end to the journal of a run.  ``cause``: done, stopped, run or machine.

    ``row`` is what tables show of a run that has no run file.
    """
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    facts = {"time": now, "cause": cause, "reason": reason, "traceback": trace}
    line = json.dumps({**facts, "row": dict(row)} if row is not None else facts)
    # On a full disk the run's file and the log say what they can.
    with suppress(OSError), open(folder / JOURNAL, "ab") as journal:
        journal.write(f"\n{line}\n".encode())  # a crash may have cut the line before


def attempts(folder: Path) -> list[dict[str, Any]]:
    """The journal of a run, oldest first; a line that a crash cut is left out."""
    found = []
    with suppress(FileNotFoundError):
        for line in (folder / JOURNAL).read_bytes().splitlines():
            with suppress(ValueError):
                found.append(json.loads(line))
    return found


def is_working(folder: Path) -> bool:
    """Whether a process on this run is alive, of whatever driver."""
    try:
        if not (folder / WORKER_LOCK).exists():
            return False
        with FileLock(folder / WORKER_LOCK, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # a folder that cannot be written: nobody works in it
        return False


@contextmanager
def output_to(path: Path) -> Iterator[None]:
    """Inside, this process has no input, and what it and its children print is appended to ``path``."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    empty = os.open(os.devnull, os.O_RDONLY)
    for source, targets in ((empty, (0,)), (log, (1, 2))):
        for target in targets:
            os.dup2(source, target)
        os.close(source)
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    print(f"--- {now}, process {os.getpid()}", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()


def _stop_at_eof(pipe: int) -> None:
    """Stop this process at a checkpoint when the other end of the pipe is closed; end it if that takes long."""
    while os.read(pipe, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os._exit(MACHINE_FAILED)  # a run's file is whole at every moment


def main(arguments: list[str]) -> int:
    """Work on the run that ``arguments`` name: the suite's folder, the run's folder below runs/, and options.

    Options are --trust and --until-eof.
    """
    from diffsim.suites.plan import read_plan

    root, name = Path(arguments[0]), arguments[1]
    plan = read_plan(root)
    run = next(run for run in plan.runs if run.folder == name)
    plan.folder(run).mkdir(parents=True, exist_ok=True)
    if UNTIL_EOF in arguments:
        threading.Thread(target=_stop_at_eof, args=(os.dup(0),), daemon=True).start()
    with output_to(plan.folder(run) / LOG):
        return work(plan, run, "--trust" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
