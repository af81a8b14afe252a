"""Runs of a suite as an array of Slurm jobs, submitted through submitit.

A job trains its run in a process of its own.  Told by Slurm that it will be preempted or has reached its time limit
(submitit asks for SIGUSR2), it has that process write a checkpoint and requeues itself.  The driver watches the queue
with ``squeue``, which needs no accounting, and submits again what died; it may be ended and resumed meanwhile.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from diffsim.errors import ConfigError, Interrupted, RunFileError
from diffsim.runs.signals import stop_on_signals
from diffsim.runs.whole_files import write_whole
from diffsim.suites.index import FAILED, FINAL, read_row
from diffsim.suites.plan import Plan, PlannedRun
from diffsim.suites.suite_file import SlurmConfig
from diffsim.suites.worker import CANCEL, LOG, MACHINE_FAILED, RUN_FAILED, is_working
from diffsim.values import pasted
from lazy_registry.installation import install_command

FOLDER = "slurm"
"""Of the suite's folder: scripts, logs and pickles of submitit."""
JOBS = "slurm.json"
POLL_SECONDS = 5.0
MOST_JOBS = 1000
"""Of an array: Slurm's default MaxArraySize is 1001."""
_ENDED = (
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT", "FORGOTTEN",
)  # fmt: skip

Say = Callable[[str], None]


class Task:
    """What a job executes; submitit pickles it."""

    def __init__(self, root: str, run: str, trust: bool) -> None:
        self.arguments = [root, run, *(["--trust"] if trust else [])]
        self._pid = 0

    def __call__(self) -> int:
        command = [sys.executable, "-m", "diffsim.suites.worker", *self.arguments]
        # Not subprocess: its waiting holds a lock that checkpoint(), inside of a signal handler, would wait for.
        # Slurm sends its signal to all processes of a job; this one answers for them.
        blocked = [signal.SIGUSR1, signal.SIGUSR2]
        self._pid = os.posix_spawn(sys.executable, command, os.environ, setsigmask=blocked)
        while not self._has_ended():
            time.sleep(0.2)
        code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        if code < 0 or code in (RUN_FAILED, MACHINE_FAILED):  # Slurm is to call the job failed, too
            raise RuntimeError(f"the run ended with status {code}; see its {LOG}")
        return code

    def checkpoint(self) -> Any:
        """Called by submitit inside of its signal handler: what the requeued job is to do."""
        from submitit.helpers import DelayedSubmission

        if self._pid:
            os.kill(self._pid, signal.SIGTERM)  # not yet waited for, so it is this process or its remains
            while not self._has_ended():
                time.sleep(0.05)
        again = Task("", "", False)
        again.arguments = self.arguments
        return DelayedSubmission(again)

    def _has_ended(self) -> bool:
        return os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None


def job_script(plan: Plan) -> str:
    """The script that sbatch gets, for reading."""
    slurm = _submitit()
    command = f"{sys.executable} -u -m submitit.core._submit {plan.root / FOLDER}"
    count = min(max(len(plan.runs), 1), MOST_JOBS)
    text: str = slurm._make_sbatch_string(
        command=command, folder=plan.root / FOLDER, map_count=count, **_parameters(plan)
    )
    worker = f"{sys.executable} -m diffsim.suites.worker {plan.root} RUN"
    return f"{text}\n# Each job of the array trains one RUN with:\n#   {worker}\n"


def drive(plan: Plan, todo: Sequence[PlannedRun], trust: bool, say: Say) -> None:
    """Submit what is not in the queue yet, and wait until all of ``todo`` is at its end or given up.

    Raises:
        Interrupted: a signal asked to stop waiting; the jobs go on.
    """
    recorded = _recorded(plan.root)
    jobs = {run.folder: recorded[run.folder] for run in todo if run.folder in recorded}
    queue = states(jobs.values())
    jobs = {folder: job for folder, job in jobs.items() if queue.get(job, "FORGOTTEN") not in _ENDED}
    if jobs:
        say(f"{len(jobs)} runs are in the queue already")
    failures: dict[str, tuple[int, int]] = {}
    by_folder = {run.folder: run for run in todo}
    waiting = [run for run in todo if run.folder not in jobs]
    with stop_on_signals() as stop:
        while jobs or waiting:
            if waiting:
                jobs.update(submit(plan, waiting, trust))
                _record(plan.root, jobs)
                say(f"submitted {len(waiting)} jobs: {_ids(jobs[run.folder] for run in waiting)}")
                waiting = []
            end = time.monotonic() + POLL_SECONDS
            while time.monotonic() < end and stop.signal is None:
                time.sleep(0.1)
            if stop.signal is not None:
                raise Interrupted(
                    f"no longer watching; the jobs go on. Watch again with: diffsim suite resume {pasted(plan.root)} "
                    f"--on slurm; stop them with: diffsim suite cancel {pasted(plan.root)}",
                    stop.signal,
                )
            cancelled = (plan.root / CANCEL).exists()
            try:
                queue = states(jobs.values())
                if cancelled:
                    _command("scancel", "--state=PENDING", *jobs.values())  # running ones see the file
            except RunFileError as error:
                say(f"{error}; asking again")
                continue
            for folder, job in list(jobs.items()):
                state = queue.get(job, "FORGOTTEN")
                if state in _ENDED and not is_working(plan.folder(by_folder[folder])):
                    del jobs[folder]
                    told = (
                        cancelled
                        or state == "CANCELLED"
                        or (plan.folder(by_folder[folder]) / CANCEL).exists()
                    )
                    if _again(plan, by_folder[folder], state, told, failures, say):
                        waiting.append(by_folder[folder])


def _again(
    plan: Plan, run: PlannedRun, state: str, told: bool, failures: dict[str, tuple[int, int]], say: Say
) -> bool:
    """Whether a run whose job has ended is to be submitted again."""
    row = read_row(plan.folder(run))
    if row.state in (*FINAL, *FAILED):
        last = "" if row.last is None else f", return {row.last:.4g}"
        say(f"{run.folder}: {row.state}{': ' * bool(row.reason)}{row.reason}{last}")
        return False
    if told:
        say(f"{run.folder}: stopped after update {row.done}")
        return False
    count, before = failures.get(run.folder, (0, -1))
    count = 1 if row.done > before else count + 1
    failures[run.folder] = count, row.done
    if count > plan.slurm.retries:
        say(f"{run.folder}: given up after {count} jobs without an update more, the last one {state}")
        return False
    say(f"{run.folder}: its job ended ({state}) after update {row.done}; submitted again")
    return True


def submit(plan: Plan, runs: Sequence[PlannedRun], trust: bool) -> dict[str, str]:
    """Submit arrays of jobs; the job of each run by folder.

    Raises:
        ConfigError: there is no Slurm here, or it refuses the job.
    """
    slurm = _submitit()
    folder = plan.root / FOLDER
    folder.mkdir(exist_ok=True)
    submitted: dict[str, str] = {}
    try:
        # Preempted jobs count as timed out there: no number of them may end a run.
        executor = slurm.SlurmExecutor(folder=folder, max_num_timeout=1_000_000)
        executor.update_parameters(**_parameters(plan))
        for start in range(0, len(runs), MOST_JOBS):
            chunk = runs[start : start + MOST_JOBS]
            for run in chunk:
                plan.folder(run).mkdir(exist_ok=True)
            # Each task itself, whose checkpoint() submitit looks for: without it a job is not requeued at its limit.
            with executor.batch():
                jobs = [executor.submit(Task(str(plan.root), r.folder, trust)) for r in chunk]
            submitted.update({run.folder: job.job_id for run, job in zip(chunk, jobs, strict=True)})
    except Exception as error:  # submitit raises its own kinds, and RuntimeError where there is no srun
        raise ConfigError(f"Slurm takes no jobs from here: {' '.join(str(error).split())}") from error
    return submitted


def states(jobs: Iterable[str]) -> dict[str, str]:
    """The state of jobs by id; jobs that Slurm has forgotten, or never had, are missing.

    Raises:
        RunFileError: the controller does not answer.
    """
    ids = sorted({job.split("_")[0] for job in jobs})
    if not ids:
        return {}
    done = _command("squeue", "-a", "-r", "-h", "-t", "all", "-o", "%i|%T", "-j", ",".join(ids))
    if done.returncode and "Invalid job id" not in done.stderr:
        raise RunFileError(f"squeue does not answer: {' '.join(done.stderr.split())}")
    return {job: state for job, _, state in (line.partition("|") for line in done.stdout.split())}


def _command(*words: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError:
        raise ConfigError(
            f"there is no {words[0]} here: --on slurm needs a machine that submits jobs"
        ) from None
    except subprocess.TimeoutExpired:
        raise RunFileError(f"{words[0]} does not answer within 60 s") from None


def _parameters(plan: Plan) -> dict[str, Any]:
    config: SlurmConfig = plan.slurm
    wanted = {
        "job_name": plan.name,
        "partition": config.partition,
        "time": config.time_minutes,
        "mem": f"{round(1024 * config.memory_gb)}MB",
        "cpus_per_task": max([config.cpus, *(int(run.settings["threads"]) for run in plan.runs)]),
        "gpus_per_node": config.gpus or None,
        "array_parallelism": config.jobs_at_a_time,
        "signal_delay_s": config.signal_seconds,
        "setup": list(config.setup) or None,
        "stderr_to_stdout": True,
        "additional_parameters": {"requeue": True, **config.options},
    }
    return {name: value for name, value in wanted.items() if value is not None}


def _submitit() -> Any:
    try:
        from submitit.slurm import slurm
    except ImportError:
        raise ConfigError(f"--on slurm needs submitit; install it with: {install_command('slurm')}") from None
    return slurm


def _recorded(root: Path) -> dict[str, str]:
    with suppress(OSError, ValueError):
        found: dict[str, str] = json.loads((root / JOBS).read_text())
        return found
    return {}


def _record(root: Path, jobs: Mapping[str, str]) -> None:
    write_whole(root / JOBS, json.dumps({**_recorded(root), **jobs}).encode())


def _ids(jobs: Iterable[str]) -> str:
    return ", ".join(sorted({job.split("_")[0] for job in jobs}))
