"""``diffsim compare`` as a process: killed and resumed, live in a terminal, its table."""

import os
import random
import signal
import time

import pytest
from short_comparison import SMALL, plan_of, run_diffsim, short, start

from diffsim.comparison.driving import Session, _forget_lost
from diffsim.comparison.records import read_comparison
from diffsim.comparison.worker import record_path, work
from diffsim.suites.index import read_row, rows
from diffsim.suites.local import to_do
from diffsim.suites.plan import read_plan
from diffsim.suites.tables import status as suite_status
from diffsim.suites.worker import is_working, note

ARGUMENTS = (
    "--against",
    "",
    "--ours",
    SMALL,
    "--budget",
    "1500steps",
    "--budget",
    "ours:4000steps",
    "--out",
    "out",
)


def records_of(root):
    found = (root / "records").glob("*/*/[0-9]*.h5")  # without files that are being written
    return {path: path.stat().st_mtime_ns for path in found}


def processes_of(root):
    """Those that work on runs of a comparison, by their command lines."""
    found = []
    for entry in os.listdir("/proc"):
        try:
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
        except (OSError, ValueError):
            continue
        if b"diffsim.suites.worker" in words and str(root).encode() in words:
            found.append(int(entry))
    return found


def kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def torment(folder, kills, seeds, choose):
    """Kill driver and workers so often, resume each time, and see that what was recorded stays as it is."""
    root, task = folder / "out", short(folder, "Paced")
    call = (task, *ARGUMENTS, "--seeds", str(seeds), "--workers", "2")
    done = {}
    for _ in range(kills):
        driver = start(*call, cwd=folder, pause=0.02)
        time.sleep(choose.uniform(0, 25))
        kill(driver.pid)
        for pid in processes_of(root):
            kill(pid)
        driver.communicate()
        now = records_of(root)
        assert {path: now[path] for path in done} == done
        done = now
    driver = start(*call, cwd=folder)
    printed, _ = driver.communicate(timeout=900)
    assert driver.returncode == 0, printed
    now = records_of(root)
    assert {path: now[path] for path in done} == done
    assert len(now) == 2 * seeds
    comparison = read_comparison(root)
    assert not comparison.unreadable
    assert all(record.status == "finished" for record in comparison.records)
    return printed


def test_a_comparison_that_was_killed_goes_on_and_repeats_nothing(tmp_path):
    task = short(tmp_path, "Paced")
    call = (task, *ARGUMENTS, "--seeds", "2", "--workers", "1")
    root = tmp_path / "out"
    done = {}
    for number in (1, 2, 3):
        driver = start(*call, cwd=tmp_path, pause=0.1)
        while len(records_of(root)) < number and driver.poll() is None:
            time.sleep(0.05)
        while len(processes_of(root)) == 0 and driver.poll() is None:
            time.sleep(0.05)
        kill(driver.pid)
        for pid in processes_of(root):
            kill(pid)
        driver.communicate()
        now = records_of(root)
        assert {path: now[path] for path in done} == done
        done = now
        assert number <= len(done) <= 4
    driver = start(*call, cwd=tmp_path)
    printed, _ = driver.communicate(timeout=900)
    assert driver.returncode == 0, printed
    now = records_of(root)
    assert {path: now[path] for path in done} == done
    assert len(now) == 4
    assert not [*root.glob("records/*/*/.*")]  # nor what was left of a killed one
    assert "next: diffsim report out" in printed
    lines = printed.splitlines()
    assert max(map(len, (line for line in lines if "ours full" in line and "/2" in line))) <= 80
    driver = start(*call, cwd=tmp_path)
    printed, _ = driver.communicate(timeout=900)
    assert driver.returncode == 0
    assert "every run is at its end" in printed
    assert records_of(root) == now


@pytest.mark.slow
def test_twenty_kills_repeat_no_finished_run(tmp_path):
    torment(tmp_path, 20, 4, random.Random(0))


def test_only_runs_whose_processes_died_are_recorded_as_crashed(tmp_path):
    """Neither those that were stopped nor those that have not begun."""
    plan = plan_of(tmp_path, seeds="2")
    session = Session(plan.root, None)
    for run, cause in zip(plan.runs, ("machine", "stopped", "stopped"), strict=False):
        note(plan.folder(run), cause, "killed by SIGSEGV")
    session._record_the_dead(plan)
    (record,) = read_comparison(plan.root).records
    assert record.contender == plan.runs[0].settings["contender"]
    assert (record.status, record.error) == ("crashed", "killed by SIGSEGV (attempt 1, the last)")


@pytest.mark.parametrize("gone", ["deleted", "damaged"])
@pytest.mark.parametrize("status", ["finished", "crashed"])
def test_a_lost_record_is_made_again(tmp_path, gone, status, monkeypatch):
    plan = plan_of(tmp_path)
    run = plan.runs[-1]
    if status == "crashed":
        trainer = "diffsim.comparison.contenders.white_box.train"
        monkeypatch.setattr(trainer, lambda *args: (_ for _ in ()).throw(ValueError("broken")))
    work(plan, run)
    state = "finished" if status == "finished" else "failed"
    _forget_lost(plan)
    assert rows(plan)[-1].state == state
    if gone == "deleted":
        record_path(plan.root, run).unlink()
        # Seen by diffsim suite status too, whose index knows journals alone.
        assert rows(plan)[-1].state == "queued"
        assert f"{len(plan.runs)} queued" in suite_status(plan)
        assert run in to_do(plan, False)
    else:
        record_path(plan.root, run).write_bytes(b"half a file")
    _forget_lost(plan)
    assert read_row(plan.folder(run)).state == "queued"
    assert run in to_do(plan, False)
    assert read_plan(plan.root) == plan
    assert not is_working(plan.folder(run))


@pytest.mark.slow
def test_the_command_makes_what_was_deleted_and_nothing_else(tmp_path):
    """Also through diffsim suite resume."""
    call = (short(tmp_path), *ARGUMENTS, "--seeds", "1")
    driver = start(*call, cwd=tmp_path)
    printed, _ = driver.communicate(timeout=900)
    assert driver.returncode == 0, printed
    root = tmp_path / "out"
    lost, kept = sorted(records_of(root))
    for again in (["compare", *call], ["suite", "resume", "out"]):
        before = records_of(root)
        lost.unlink()
        shown = run_diffsim("suite", "status", "out", cwd=tmp_path)
        assert "1 finished, 1 queued" in shown.stdout
        done = run_diffsim(*again, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        now = records_of(root)
        assert now.keys() == before.keys()
        assert now[kept] == before[kept]
        assert now[lost] != before[lost]
