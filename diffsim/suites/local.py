"""Runs of a suite on this machine: a process each, forked from this one, which has loaded what they need.

A forked process starts in milliseconds where a new one imports for seconds.  Runs that a fork cannot hold (Julia, a
GPU, several threads) are started as new processes.  What became of a run is read from its files, so it does not
matter which process, or how many drivers one after the other, worked on it.
"""

from __future__ import annotations

import fcntl
import heapq
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from diffsim.errors import ConfigError, Interrupted, RunFileError
from diffsim.machine import free_memory_mb
from diffsim.runs.signals import StopRequest, stop_on_signals
from diffsim.suites.gpus import Places, needs_gpu, visible_gpus
from diffsim.suites.index import FAILED, FINAL, RUN_FILE, read_row, rows
from diffsim.suites.plan import PLAN, RUNS, Plan, PlannedRun
from diffsim.suites.worker import CANCEL, LOG, PROGRESS, RUN_FAILED, is_working, note, output_to, work
from diffsim.values import counted, pasted, shown
from robotics_envs.environments import JULIA

DRIVER_LOCK = ".driver.lock"
POLL_SECONDS = 0.02
WATCH_SECONDS = 1.0
"""Between looks at the files of a running run."""
FORKED_MB, FRESH_MB = 100, 450
"""Memory of its own that a run of a default size needs, forked and as a new process (measured: 47 and 346)."""
LONGEST_BACKOFF = 300.0  # s
RUN_FILE_MB = 1.0
"""Space on the disk of a default run and of its next checkpoint."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Say = Callable[[str], None]


def check_folder(root: Path, count: int) -> None:
    """Make the folder of a suite of ``count`` runs, and write in it; runs that have a file need no more space.

    Raises:
        RunFileError: it cannot be made or written, or the disk has too little space.
    """
    try:
        (root / RUNS).mkdir(parents=True, exist_ok=True)
        probe = root / f".probe-{os.getpid()}"
        probe.write_bytes(b"\0" * 4096)
        probe.unlink()
        free = shutil.disk_usage(root).free / 1e6
        count -= sum((folder / RUN_FILE).exists() for folder in (root / RUNS).iterdir())
    except OSError as error:
        raise RunFileError(f"cannot write the suite in {root}: {error.strerror or error}") from None
    if free < count * RUN_FILE_MB:
        raise RunFileError(
            f"{root} has {free:,.0f} MB of free space, {count:,} runs need about {count * RUN_FILE_MB:,.0f} MB; "
            "free some, or choose another --out"
        )


def check_place(root: Path) -> None:
    """As :func:`check_folder`, without making anything.

    Raises:
        RunFileError: the folder is none, or cannot be made or written.
    """
    try:
        there = next(place for place in (root, *root.parents) if place.exists())
    except OSError as error:  # a name that is too long
        raise RunFileError(f"cannot write the suite in {root}: {error.strerror or error}") from None
    if not there.is_dir():
        raise RunFileError(f"cannot write the suite in {root}: {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise RunFileError(f"cannot write the suite in {root}: {there} cannot be written in")


@contextmanager
def driving(root: Path) -> Iterator[int]:
    """Held while a process drives the suite in a folder; gives the descriptor, which forked runs must close.

    Raises:
        RunFileError: another process drives it.
    """
    try:
        lock = os.open(root / DRIVER_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise RunFileError(f"cannot write the suite in {root}: {error.strerror or error}") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            whose = os.read(lock, 200).decode(errors="replace").strip() or "another process"
            raise RunFileError(
                f"{shown(root)} is being run by {whose}; look at it with: diffsim suite watch {pasted(root)}"
            ) from None
        os.ftruncate(lock, 0)
        os.write(lock, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield lock
    finally:
        os.close(lock)


def is_driven(root: Path) -> bool:
    """Whether a process drives the suite in a folder, as far as this machine can see."""
    try:
        with open(root / DRIVER_LOCK) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def to_do(plan: Plan, retry_failed: bool) -> list[PlannedRun]:
    """The runs that are not at their end; those that failed are, unless they are to be retried."""
    at_end = FINAL if retry_failed else (*FINAL, *FAILED)
    return [run for run, row in zip(plan.runs, rows(plan), strict=True) if row.state not in at_end]


def set_aside(plan: Plan, runs: Iterable[PlannedRun]) -> None:
    """Rename the files of ``runs`` that cannot be read, so that these runs begin again."""
    for run in runs:
        folder = plan.folder(run)
        if (folder / RUN_FILE).exists() and read_row(folder).state == "unreadable":
            (folder / RUN_FILE).replace(folder / f"{RUN_FILE}.damaged")


def take_back_cancel(plan: Plan) -> None:
    """Forget what was cancelled before."""
    for folder in (plan.root, *map(plan.folder, plan.runs)):
        (folder / CANCEL).unlink(missing_ok=True)


@dataclass
class Driver:
    """Starts the runs of a plan, at most ``workers`` at a time, and sees to each until it is at its end.

    Args:
        lock: what :func:`driving` gave.
        workers: as many as CPUs and memory allow if not given.
        say: gets one line for each thing that happens.
    """

    plan: Plan
    lock: int
    workers: int | None = None
    trust: bool = False
    say: Say = print
    _queue: list[tuple[float, int, PlannedRun]] = field(default_factory=list)
    _running: dict[str, Process] = field(default_factory=dict)
    _failures: dict[str, tuple[int, int]] = field(default_factory=dict)
    _ended: int = 0
    _told: bool = False
    _gpus: Places = field(default_factory=lambda: Places([], 1))

    def drive(self, todo: list[PlannedRun]) -> None:
        """Until all of ``todo`` is at its end or given up.

        Raises:
            Interrupted: a signal asked to stop; the runs have written checkpoints.
        """
        self._ended = len(self.plan.runs) - len(todo)
        self._gpus = self._places(todo)
        workers = self._workers(todo)
        for order, run in enumerate(todo):
            if is_working(self.plan.folder(run)):
                self.say(f"waiting for {run.folder}: a process of an earlier driver still trains it")
                self._running[run.folder] = _Orphan(run, self.plan.folder(run))
            else:
                self._queue.append((0.0, order, run))
        with stop_on_signals() as stop:
            try:
                while self._queue or self._running:
                    self._step(workers, stop)
            except BaseException:
                self._tell_all()
                raise
        if stop.signal is not None:
            raise Interrupted(
                f"stopped; go on with: diffsim suite resume {pasted(self.plan.root)}", stop.signal
            )

    def _step(self, workers: int, stop: StopRequest) -> None:
        if not (self.plan.root / PLAN).exists():
            raise RunFileError(
                f"the suite's folder has vanished: {self.plan.root}; bring it back, and go on with: "
                f"diffsim suite resume {pasted(self.plan.root)}"
            )
        cancelled = (self.plan.root / CANCEL).exists()
        if (stop.signal is not None or cancelled) and not self._told:
            self._told = True
            self.say(f"stopping: {counted(len(self._running), 'run')} to write a checkpoint and end")
            if not cancelled:  # which the runs see themselves; a second request would end them at once
                self._tell_all()
        if self._told:
            self._queue.clear()
        now = time.monotonic()
        while len(self._running) < workers and (run := self._next(now)) is not None:
            try:
                self._running[run.folder] = self._start(run)
            except OSError as error:  # a full disk, a folder that has vanished, no more processes
                self._retry(run, read_row(self.plan.folder(run)).done, error.strerror or str(error))
        for process in list(self._running.values()):
            code = process.poll()
            if code is not None:
                del self._running[process.run.folder]
                if process.gpu is not None:
                    self._gpus.give(process.gpu)
                self._judge(process.run, code)
            elif process.silent_for() > 60 * self.plan.local.hang_minutes:
                self.say(f"{process.run.folder}: no update for {process.silent_for() / 60:.1f} min, killed")
                process.kill()
        time.sleep(POLL_SECONDS)

    def _next(self, now: float) -> PlannedRun | None:
        """The first run of the queue whose time has come and that has a place; it leaves the queue."""
        waiting = []
        found = None
        while found is None and self._queue and self._queue[0][0] <= now:
            entry = heapq.heappop(self._queue)
            if needs_gpu(entry[2].settings, self._gpus.gpus) and self._gpus.free() is None:
                waiting.append(entry)
            else:
                found = entry[2]
        for entry in waiting:
            heapq.heappush(self._queue, entry)
        return found

    def _places(self, todo: list[PlannedRun]) -> Places:
        """The GPUs for runs that ask for any.

        Raises:
            ConfigError: there is none, and a run cannot do without.
        """
        local, devices = self.plan.local, {run.settings["device"] for run in todo}
        if not devices & {"cuda", "auto"}:
            return Places([], 1)
        gpus = visible_gpus() if local.gpus is None else list(local.gpus)
        if "cuda" in devices and not gpus:
            raise ConfigError(
                'runs with device = "cuda" need a GPU, and none is visible here; device = "auto" takes the CPU then'
            )
        if gpus:
            self.say(f"GPUs: {', '.join(gpus)}, {local.runs_per_gpu} runs at a time on each")
        return Places(gpus, local.runs_per_gpu)

    def _start(self, run: PlannedRun) -> Process:
        folder = self.plan.folder(run)
        folder.mkdir(exist_ok=True)
        cpus = self._free_cpus(int(run.settings["threads"])) if self.plan.local.pin else ()
        if can_be_forked(run, self._gpus.gpus):
            return _Forked(self.plan, run, self.trust, self.lock, cpus)
        gpu = self._gpus.free() if needs_gpu(run.settings, self._gpus.gpus) else None
        process = _Fresh(self.plan, run, self.trust, cpus, gpu)
        if gpu is not None:
            self._gpus.take(gpu)
        return process

    def _free_cpus(self, count: int) -> tuple[int, ...]:
        """The CPUs that the fewest runs are bound to."""
        bound = Counter(cpu for process in self._running.values() for cpu in process.cpus)
        return tuple(sorted(os.sched_getaffinity(0), key=lambda cpu: (bound[cpu], cpu))[:count])

    def _tell_all(self) -> None:
        for process in self._running.values():
            process.ask_to_stop()

    def _judge(self, run: PlannedRun, code: int) -> None:
        """What a run whose process has ended needs: nothing more, or another attempt."""
        folder = self.plan.folder(run)
        row = read_row(folder)
        total = len(self.plan.runs)
        if row.state in FINAL:
            self._ended += 1
            last = "" if row.last is None else f", return {row.last:.4g}"
            words = row.state if row.state == "finished" else f"{row.state}: {row.reason}"
            self.say(f"[{self._ended}/{total}] {run.folder}: {words}{last}, {row.wall_seconds or 0:.1f} s")
        elif code == RUN_FAILED or row.state in FAILED:
            self._ended += 1
            self.say(f"[{self._ended}/{total}] {run.folder}: failed: {row.reason}")
        elif self._told or (folder / CANCEL).exists():
            self.say(f"{run.folder}: stopped after update {row.done}")
        else:
            if code < 0:
                note(folder, "machine", f"killed by {signal.Signals(-code).name}")
            reason = f"killed by {signal.Signals(-code).name}" if code < 0 else row.reason
            self._retry(run, row.done, reason or "its process has ended")

    def _retry(self, run: PlannedRun, done: int, reason: str) -> None:
        failures, before = self._failures.get(run.folder, (0, -1))
        failures = 1 if done > before else failures + 1
        self._failures[run.folder] = failures, done
        if failures > self.plan.local.retries:
            self._ended += 1
            self.say(f"{run.folder}: given up after {failures} attempts without an update more; {reason}")
            return
        wait = min(self.plan.local.backoff_seconds * 4 ** (failures - 1), LONGEST_BACKOFF)
        self.say(f"{run.folder}: {reason}; goes on from update {done} in {wait:g} s")
        order = next(number for number, one in enumerate(self.plan.runs) if one is run)
        heapq.heappush(self._queue, (time.monotonic() + wait, order, run))

    def _workers(self, todo: list[PlannedRun]) -> int:
        """How many runs at a time, said before any starts."""
        local = self.plan.local
        threads = max((int(run.settings["threads"]) for run in todo), default=1)
        cpus = len(os.sched_getaffinity(0))
        each = local.memory_mb or (
            FORKED_MB if all(can_be_forked(run, self._gpus.gpus) for run in todo) else FRESH_MB
        )
        free = free_memory_mb()
        fitting = max(1, min(cpus // threads, int(0.9 * free // each)))
        workers = self.workers or local.workers or fitting
        self.say(
            f"{len(self.plan.runs)} runs, {len(todo)} to do: {min(workers, len(todo))} at a time on {cpus} CPUs, about "
            f"{each * min(workers, len(todo)) / 1000:.1f} GB of {free / 1000:.1f} GB of free memory"
        )
        if each * min(workers, len(todo)) > free:
            self.say("that is more memory than there is; fewer --workers would be safer")
        return workers


def can_be_forked(run: PlannedRun, gpus: Sequence[str] = ()) -> bool:
    """Whether a run works in a process forked from this one: torch's threads, CUDA and Julia do not survive a fork."""
    from robotics_envs.julia.runtime import started

    if "work" in run.settings:  # a comparison measures processes from their imports on
        return False
    on_cpu = run.settings["device"] == "cpu" or (run.settings["device"] == "auto" and not gpus)
    plain = run.settings["threads"] == 1 and on_cpu
    julia = str(run.settings["env"]["name"]).startswith(JULIA) or started() is not None
    return plain and not julia and threading.active_count() == 1


class Process:
    """A process that works on a run."""

    def __init__(self, run: PlannedRun, folder: Path) -> None:
        self.run, self.folder = run, folder
        self.cpus: tuple[int, ...] = ()
        self.gpu: str | None = None
        self._seen: tuple[int, ...] = ()
        self._changed = self._looked = time.monotonic()

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it works."""
        raise NotImplementedError

    def ask_to_stop(self) -> None:
        raise NotImplementedError

    def kill(self) -> None:
        raise NotImplementedError

    def touched(self) -> None:
        """From now on, silence is measured anew."""
        self._changed = time.monotonic()

    def silent_for(self) -> float:
        """Seconds since the files of the run last changed."""
        now = time.monotonic()
        if now - self._looked >= WATCH_SECONDS:
            self._looked = now
            times = []
            for name in (PROGRESS, LOG, "run.h5"):
                with suppress(OSError):
                    times.append((self.folder / name).stat().st_mtime_ns)
            if tuple(times) != self._seen:
                self._seen, self._changed = tuple(times), now
        return now - self._changed


class _Forked(Process):
    def __init__(self, plan: Plan, run: PlannedRun, trust: bool, lock: int, cpus: tuple[int, ...]) -> None:
        super().__init__(run, plan.folder(run))
        self.cpus = cpus
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        self._process = multiprocessing.get_context("fork").Process(
            target=_forked, args=(plan, run, trust, lock, cpus), name=run.folder
        )
        # Until the child has handlers of its own, a signal for it must wait.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            self._process.start()
        except OSError as error:
            raise RunFileError(f"no process can be started: {error.strerror or error}") from None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def poll(self) -> int | None:
        return self._process.exitcode

    def ask_to_stop(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        with suppress(OSError):
            os.killpg(self._process.pid or 0, signal.SIGKILL)


def _forked(plan: Plan, run: PlannedRun, trust: bool, lock: int, cpus: tuple[int, ...]) -> None:
    if cpus:
        os.sched_setaffinity(0, cpus)
    os.close(lock)  # else it would be held for as long as this process lives, whatever becomes of the driver
    os.setsid()  # Ctrl-C in the terminal is for the driver, which tells its runs
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    with output_to(plan.folder(run) / LOG):
        sys.exit(work(plan, run, trust))


def thread_variables(run: PlannedRun) -> dict[str, str]:
    """Environment variables that give a run's process as many threads as its configuration says."""
    names = ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"]
    if "JULIA_NUM_THREADS" not in os.environ:
        names.append("JULIA_NUM_THREADS")
    return dict.fromkeys(names, str(run.settings["threads"]))


class _Fresh(Process):
    def __init__(
        self, plan: Plan, run: PlannedRun, trust: bool, cpus: tuple[int, ...], gpu: str | None
    ) -> None:
        super().__init__(run, plan.folder(run))
        self.cpus, self.gpu = cpus, gpu
        chosen = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
        command = [sys.executable, "-m", "diffsim.suites.worker", str(plan.root), run.folder]
        self._process = subprocess.Popen(
            [*command, *(["--trust"] if trust else [])],
            env={**os.environ, **thread_variables(run), **chosen},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        if cpus:  # before it has made threads of its own
            with suppress(OSError):
                os.sched_setaffinity(self._process.pid, cpus)

    def poll(self) -> int | None:
        return self._process.poll()

    def ask_to_stop(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        with suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)


class _Orphan(Process):
    """A process that an earlier driver started; it stops when its run's folder says so."""

    def poll(self) -> int | None:
        return None if is_working(self.folder) else 0

    def ask_to_stop(self) -> None:
        (self.folder / CANCEL).touch()

    def silent_for(self) -> float:
        return 0.0  # it cannot be killed from here: its number may by now be another process's
