"""A real Ray on this machine: a worker killed, a node of two removed, a driver that is asked to stop."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from suite_folders import ROOT, call, change_pause, same_parameters, start, write_suite

from diffsim.errors import ConfigError
from diffsim.suites import ray_tasks
from diffsim.suites.index import rows
from diffsim.suites.plan import read_plan, resolve
from diffsim.suites.suite_file import read_suite
from diffsim.suites.worker import LOG, PROGRESS, attempts

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="no Ray: pip install -e '.[ray]'"
)
CLUSTER = """
import os, sys
from ray.cluster_utils import Cluster
# More than the head needs at first: room for what the other node loses.
head = {"num_cpus": 4, "object_store_memory": 80_000_000, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args=head)
second = cluster.add_node(num_cpus=2, object_store_memory=80_000_000)
cluster.wait_for_nodes()
print(cluster.address, flush=True)
for line in sys.stdin:
    if line.strip() == "remove":
        cluster.remove_node(second, allow_graceful=False)
        print("removed", flush=True)
cluster.shutdown()
"""


def wait_for(condition, seconds=900):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def parent_of(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def worker_of(folder):
    """The process that trains a run, 0 if none has begun."""
    try:
        return json.loads((folder / PROGRESS).read_text())["pid"]
    except (OSError, ValueError):
        return 0


def left_behind(folder):
    """Processes that name a folder in their command."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(folder) in words and "diffsim.suites.worker" in words:
            found.append(place.name)
    return found


def check(folder, undisturbed):
    plan = read_plan(folder / "out")
    for run in plan.runs:
        place = plan.folder(run)
        assert same_parameters(place, undisturbed / "out" / "runs" / run.folder), run.folder
        assert [entry["cause"] for entry in attempts(place)].count("done") == 1
    wait_for(lambda: not left_behind(folder), 30)


def undisturbed_suite(folder, matrix, updates):
    write_suite(folder, matrix, updates=updates)
    code, printed = call("run", "suite.toml", "--out", "out", cwd=folder)
    assert code == 0, printed
    return folder


@needs_ray
def test_the_run_of_a_killed_worker_is_begun_again_from_its_checkpoint(tmp_path):
    matrix = '[matrix]\nseed = "0..1"\n'
    undisturbed = undisturbed_suite(tmp_path / "undisturbed", matrix, 20)
    folder = tmp_path / "disturbed"
    write_suite(folder, matrix, updates=20)
    driver = start("run", "suite.toml", "--out", "out", "--on", "ray", cwd=folder, pause=0.5)
    try:
        first = wait_for(lambda: next((p for p in folder.glob("out/runs/*") if worker_of(p)), None))
        worker = worker_of(first)
        os.kill(parent_of(worker), signal.SIGKILL)
        wait_for(lambda: worker_of(first) != worker)
        change_pause(folder, 0.0)
        printed, _ = driver.communicate(timeout=900)
    finally:
        driver.kill()
        driver.communicate()
    assert driver.returncode == 0, printed
    assert "2 finished" in printed
    check(folder, undisturbed)
    # The lost worker's run wrote a checkpoint, and was begun again once.
    assert [entry["cause"] for entry in attempts(first)] == ["stopped", "done"]
    assert (first / LOG).read_text().count("--- ") == 2


@pytest.mark.slow
@needs_ray
def test_runs_of_a_lost_node_go_on_on_another(tmp_path):
    matrix = '[matrix]\nseed = "0..3"\n'
    undisturbed = undisturbed_suite(tmp_path / "undisturbed", matrix, 30)
    folder = tmp_path / "disturbed"
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT), "RAY_worker_niceness": "0",
                   "PAUSE_OF_SHORT": str(folder / "pause"),
                   # As docs/suites.md says: a node that is lost is noticed within seconds.
                   "RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "3"}  # fmt: skip
    cluster = subprocess.Popen(
        [sys.executable, "-c", CLUSTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    driver = None
    try:
        address = cluster.stdout.readline().strip()
        write_suite(folder, f'{matrix}[ray]\naddress = "{address}"\n', updates=30)
        driver = start("run", "suite.toml", "--out", "out", "--on", "ray", cwd=folder, pause=1.0)
        places = wait_for(
            lambda: (p := [*folder.glob("out/runs/*")]) and len(p) == 4 and all(map(worker_of, p)) and p
        )
        before = {place: worker_of(place) for place in places}
        print("remove", file=cluster.stdin, flush=True)
        assert cluster.stdout.readline().strip() == "removed"
        lost = time.monotonic()
        wait_for(lambda: any((p / LOG).read_text().count("--- ") == 2 for p in places))
        begun = time.monotonic() - lost
        moved = wait_for(lambda: [p for p in places if worker_of(p) not in (0, before[p])])
        print(
            f"begun again {begun:.1f} s after the node was lost, trains after {time.monotonic() - lost:.1f} s"
        )
        change_pause(folder, 0.0)
        printed, _ = driver.communicate(timeout=900)
        assert driver.returncode == 0, printed
        assert 1 <= len(moved) < 4
    finally:
        if driver is not None:
            driver.kill()
            driver.communicate()
        cluster.stdin.close()
        cluster.wait(60)
        cluster.stdout.close()
    check(folder, undisturbed)


@pytest.mark.slow
@needs_ray
def test_a_signal_to_the_driver_stops_runs_at_a_checkpoint(tmp_path):
    matrix = '[matrix]\nseed = "0..1"\n'
    undisturbed = undisturbed_suite(tmp_path / "undisturbed", matrix, 20)
    folder = tmp_path / "disturbed"
    write_suite(folder, matrix, updates=20)
    driver = start("run", "suite.toml", "--out", "out", "--on", "ray", cwd=folder, pause=0.5)
    wait_for(lambda: (p := [*folder.glob("out/runs/*")]) and len(p) == 2 and all(map(worker_of, p)))
    driver.send_signal(signal.SIGTERM)
    printed, _ = driver.communicate(timeout=900)
    assert driver.returncode == 128 + signal.SIGTERM, printed
    plan = read_plan(folder / "out")
    assert {row.state for row in rows(plan)} == {"stopped"}
    assert not left_behind(folder)
    code, printed = call("resume", "out", "--on", "ray", cwd=folder)
    assert code == 0, printed
    check(folder, undisturbed)


class Task:
    """A task of Ray as a driver sees it; ``outcomes`` are statuses and exceptions."""

    def __init__(self, outcomes):
        self.outcomes, self.asked, self.cancelled = list(outcomes), [], []

    # What ray.remote returns:
    def options(self, **wanted):
        self.asked.append(wanted)
        return self

    def remote(self, arguments, environment):
        return arguments, environment

    # What ray is:
    class exceptions:
        class RayError(Exception):
            pass

        class TaskCancelledError(RayError):
            pass

    def wait(self, results, timeout):
        return (results, []) if self.outcomes else ([], results)

    def get(self, result):
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def cancel(self, result, force):
        self.cancelled.append(force)

    def cluster_resources(self):
        return {"CPU": 8.0}

    def nodes(self):
        return [{"Alive": True}, {"Alive": False}]


@pytest.fixture
def plan(tmp_path):
    options = "[ray]\ncpus = 2\ngpus = 0.25\nmemory_gb = 3\nretries = 5\nresources = {big = 1}\n"
    write_suite(tmp_path, f"[matrix]\nseed = 0\n[local]\nbackoff_seconds = 0.0\n{options}")
    made = resolve(read_suite(tmp_path / "suite.toml", str(tmp_path / "out")))
    made.folder(made.runs[0]).mkdir(parents=True)
    made.save()
    return made


def drive(plan, *outcomes):
    said, fake = [], Task(outcomes)
    ray_tasks.RayDriver(plan, 0, None, False, said.append, ray=fake, task=fake).drive(list(plan.runs))
    return said, fake


def test_tasks_ask_for_what_the_file_says(plan):
    assert read_plan(plan.root).ray == plan.ray
    wanted = {
        "num_cpus": 2,
        "num_gpus": 0.25,
        "max_retries": 5,
        "memory": 3_000_000_000,
        "resources": {"big": 1},
    }
    said, fake = drive(plan, 70)
    assert fake.asked == [wanted]
    assert "1 runs, 1 to do: as tasks on 1 node with 8 CPUs and 0 GPUs" in said[0]
    assert "more than there are: it waits until the cluster grows" in said[1]


def test_what_the_run_itself_raises_is_not_tried_again_and_a_lost_machine_is(plan):
    said, fake = drive(plan, 75, Task.exceptions.RayError("its node died"), 70)
    assert len(fake.asked) == 3
    assert "failed" in said[-1]
    said, fake = drive(plan, 70)
    assert len(fake.asked) == 1
    reasons = [entry["reason"] for entry in attempts(plan.folder(plan.runs[0]))]
    assert "Ray: its node died" in reasons


def test_without_ray_one_line_says_so(monkeypatch, plan):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"--on ray needs Ray; install it with: pip install .*\[ray\]"):
        ray_tasks.drive(plan, 0, [], None, False, print)
