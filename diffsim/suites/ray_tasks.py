"""Runs of a suite as tasks of a Ray cluster: a plain task each, which starts the run's own process and waits for it.

Ray decides where a task runs, and starts it again elsewhere where its worker or its node is lost.  All else is as on
one machine (:mod:`diffsim.suites.local`): the run goes on from its checkpoint, and its files say what became of it.
"""

from __future__ import annotations

import heapq
import logging
import os
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from diffsim.errors import ConfigError
from diffsim.suites.gpus import Places
from diffsim.suites.local import Driver, Process, Say, thread_variables
from diffsim.suites.plan import Plan, PlannedRun
from diffsim.suites.worker import MACHINE_FAILED, UNTIL_EOF, is_working, note
from diffsim.values import counted
from lazy_registry.installation import install_command

OBJECT_STORE_BYTES = 100_000_000
"""Of a Ray that is started here; results of tasks are exit statuses."""
_QUIET_SECONDS = 60.0


def drive(plan: Plan, lock: int, todo: list[PlannedRun], workers: int | None, trust: bool, say: Say) -> None:
    """Run all of ``todo`` until it is at its end or given up, on the cluster that the suite names.

    Raises:
        ConfigError: there is no Ray, or no such cluster.
        Interrupted: a signal asked to stop; the runs have written checkpoints.
    """
    ray = _connected(plan)
    try:
        RayDriver(plan, lock, workers, trust, say, ray=ray, task=_task(ray)).drive(todo)
    finally:
        ray.shutdown()


def _connected(plan: Plan) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Of a Ray that is started here: its workers would be at the lowest priority, and with them the runs.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Ray would take the GPUs away from tasks that ask for none; a run that wants one says so by its device.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise ConfigError(f"--on ray needs Ray; install it with: {install_command('ray')}") from None
    address = plan.ray.address or os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"address": address} if address else {
        "address": "local", "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES
    }  # fmt: skip
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"no Ray cluster at {address or 'this machine'}: {reason}") from None
    return ray


def _task(ray: Any) -> Any:
    # Inside of a function, so that Ray sends its text: workers then load neither diffsim nor torch.
    def train(arguments: list[str], environment: Mapping[str, str]) -> int:
        import os
        import subprocess
        import sys
        import time

        command = [sys.executable, "-m", "diffsim.suites.worker", *arguments]
        # The pipe tells the run's process when this one is lost: it is closed then.
        process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                time.sleep(0.05)
        except BaseException:  # how Ray cancels a task
            process.terminate()
            process.wait()
            raise
        return process.returncode

    # A worker that has run a task is not used again: nothing of one run can reach another.
    return ray.remote(max_calls=1)(train)


@dataclass
class RayDriver(Driver):
    """As :class:`Driver`, with tasks of Ray in place of processes of this machine."""

    ray: Any = None
    task: Any = None

    def _places(self, todo: list[PlannedRun]) -> Places:
        return Places([], 1)  # Ray gives them to its tasks

    def _next(self, now: float) -> PlannedRun | None:
        due = self._queue and self._queue[0][0] <= now
        return heapq.heappop(self._queue)[2] if due else None

    def _start(self, run: PlannedRun) -> Process:
        self.plan.folder(run).mkdir(exist_ok=True)
        return _Task(
            self.plan, run, self.trust, self.ray, self.task.options(**resources(self.plan, run)).remote
        )

    def _workers(self, todo: list[PlannedRun]) -> int:
        found = self.ray.cluster_resources()
        workers = self.workers or self.plan.ray.runs_at_a_time
        nodes = sum(node["Alive"] for node in self.ray.nodes())
        self.say(
            f"{len(self.plan.runs)} runs, {len(todo)} to do: as tasks on {counted(nodes, 'node')} with "
            f"{found.get('CPU', 0):g} CPUs and {found.get('GPU', 0):g} GPUs, at most {workers} at a time"
        )
        for run in todo:
            wanted = resources(self.plan, run)
            if wanted["num_cpus"] > found.get("CPU", 0) or wanted["num_gpus"] > found.get("GPU", 0):
                self.say(
                    f"{run.folder} asks for {wanted['num_cpus']:g} CPUs and {wanted['num_gpus']:g} GPUs, more than "
                    "there are: it waits until the cluster grows"
                )
                break
        return workers


def resources(plan: Plan, run: PlannedRun) -> dict[str, Any]:
    """What a task asks Ray for."""
    config = plan.ray
    wanted: dict[str, Any] = {
        "num_cpus": max(config.cpus, run.settings["threads"]),
        "num_gpus": config.gpus,
        "max_retries": config.retries,
    }
    if config.memory_gb is not None:
        wanted["memory"] = int(config.memory_gb * 1e9)
    if config.resources:
        wanted["resources"] = dict(config.resources)
    return wanted


class _Task(Process):
    def __init__(
        self, plan: Plan, run: PlannedRun, trust: bool, ray: Any, submit: Callable[..., Any]
    ) -> None:
        super().__init__(run, plan.folder(run))
        self._ray = ray
        environment = thread_variables(run)
        if "PYTHONPATH" in os.environ:
            environment["PYTHONPATH"] = os.environ["PYTHONPATH"]
        arguments = [str(plan.root), run.folder, UNTIL_EOF, *(["--trust"] if trust else [])]
        self._result = submit(arguments, environment)

    def poll(self) -> int | None:
        ready, _ = self._ray.wait([self._result], timeout=0)
        if not ready:
            return None
        errors = self._ray.exceptions
        try:
            return int(self._ray.get(self._result))
        except errors.TaskCancelledError:
            return 128 + signal.SIGTERM
        except errors.RayError as error:  # lost more often than is tried again, or the node has no diffsim
            note(self.folder, "machine", f"Ray: {' '.join(str(error).split())[:300]}")
            return MACHINE_FAILED

    def ask_to_stop(self) -> None:
        with suppress(self._ray.exceptions.RayError, ValueError):
            self._ray.cancel(self._result, force=False)

    def kill(self) -> None:
        with suppress(self._ray.exceptions.RayError, ValueError):
            self._ray.cancel(self._result, force=True)

    def silent_for(self) -> float:
        silent = super().silent_for()
        if silent > _QUIET_SECONDS and not is_working(self.folder):
            self.touched()  # it waits for resources
            return 0.0
        return silent
