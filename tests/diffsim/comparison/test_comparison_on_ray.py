"""``diffsim compare --on ray`` on a real Ray of this machine: a worker is killed, and its run begins again."""

import importlib.util
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from short_comparison import SMALL, short, start

from diffsim.cli import main
from diffsim.comparison.records import read_comparison
from diffsim.suites.plan import read_plan
from diffsim.suites.worker import LOG, PROGRESS, attempts, is_working

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="no Ray: pip install -e '.[ray]'"
)


def wait_for(condition, seconds=900):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def worker_of(folder):
    """The process that works on a run, 0 if none has come to its first evaluation."""
    try:
        return int(json.loads((folder / PROGRESS).read_text())["pid"])
    except (OSError, ValueError, KeyError):
        return 0


def parent_of(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.slow
@needs_ray
def test_the_run_of_a_killed_worker_begins_again_and_the_others_do_not(tmp_path):
    call = (
        short(tmp_path, "Paced"),
        "--against",
        "",
        "--ours",
        SMALL,
        "--seeds",
        "2",
        "--budget",
        "4000steps",
    )
    driver = start(*call, "--out", "out", "--on", "ray", "--workers", "2", cwd=tmp_path, pause=0.1)
    try:
        first = wait_for(
            lambda: (
                next((p for p in tmp_path.glob("out/runs/*") if worker_of(p) and is_working(p)), None)
                or driver.poll() is not None
            )
        )
        assert driver.poll() is None, driver.communicate()[0]
        before = worker_of(first)
        os.kill(parent_of(before), signal.SIGKILL)  # Ray's own process, of which the run hears by its pipe
        wait_for(lambda: worker_of(first) not in (0, before))
        printed, _ = driver.communicate(timeout=900)
    finally:
        driver.kill()
        driver.communicate()
    assert driver.returncode == 0, printed
    assert "as tasks on 1 node " in printed
    comparison = read_comparison(tmp_path / "out")
    assert len(comparison.records) == 4
    assert all(record.status == "finished" for record in comparison.records)
    plan = read_plan(tmp_path / "out")
    for run in plan.runs:
        causes = [entry["cause"] for entry in attempts(plan.folder(run))]
        assert causes == (["stopped", "done"] if plan.folder(run) == first else ["done"])
    assert (first / LOG).read_text().count("--- ") == 2
    again = start(*call, "--out", "out", "--on", "ray", cwd=tmp_path)
    printed, _ = again.communicate(timeout=900)
    assert again.returncode == 0, printed
    assert "every run is at its end" in printed


def test_without_ray_one_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    call = ["compare", short(tmp_path), "--against", "", "--seeds", "1", "--budget", "50steps"]
    done = CliRunner().invoke(main, [*call, "--on", "ray", "--out", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert "--on ray needs Ray; install it with: pip install" in done.output
