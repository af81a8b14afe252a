"""``kill -9`` at random moments, of workers, of drivers and of both: nothing is lost, nothing is done twice."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
from suite_folders import call, change_pause, run_folders, same_parameters, start, write_suite

from diffsim.suites.index import read_row
from diffsim.suites.plan import read_plan
from diffsim.suites.worker import LOG, attempts, is_working


def suite(folder, runs, updates=12):
    write_suite(
        folder, f'[matrix]\nseed = "0..{runs - 1}"\n[local]\nretries = 100\nbackoff_seconds = 0.0\n',
        updates=updates, checkpoint_every=1,
    )  # fmt: skip


def children(pid):
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def torment(folder, kills, seed, pause, gap, kinds):
    """Run the suite to its end, with so many kills on the way; how often each kind was struck.

    Until they are done, each update waits ``pause`` seconds.  Between kills are up to ``gap`` seconds.
    """
    choose = random.Random(seed)
    struck = {"worker": 0, "driver": 0, "both": 0}
    driver = None
    while sum(struck.values()) < kills:
        if driver is None:
            driver = start(*(("resume", "out") if (folder / "out" / "suite.json").exists() else
                             ("run", "suite.toml", "--out", "out")), cwd=folder, pause=pause)  # fmt: skip
            # The runs of this suite are shorter than the imports of a driver.
            end = time.monotonic() + 60
            while not children(driver.pid) and driver.poll() is None and time.monotonic() < end:
                time.sleep(0.01)
        time.sleep(choose.uniform(0, gap))
        if driver.poll() is not None:
            assert driver.returncode == 0, driver.communicate()[0]
            break
        kind = choose.choice(kinds)
        workers = children(driver.pid)
        if kind != "driver" and not workers:
            continue
        if kind != "worker":
            assert kill(driver.pid)
        victims = {"worker": [choose.choice(workers)] if workers else [], "driver": [], "both": workers}[kind]
        struck[kind] += sum(map(kill, victims)) > 0 or kind == "driver"
        if kind != "worker":
            driver.communicate()
            driver = None
    change_pause(folder, 0.0)
    if driver is not None:
        driver.communicate(timeout=300)
    code, printed = call("resume", "out", cwd=folder)
    assert code == 0, printed
    return struck


def check(folder, undisturbed):
    plan = read_plan(folder / "out")
    for run in plan.runs:
        place = plan.folder(run)
        assert read_row(place).state == "finished"
        assert not is_working(place)
        assert same_parameters(place, undisturbed / "out" / "runs" / run.folder), run.folder
        assert [entry["cause"] for entry in attempts(place)].count("done") <= 1
        assert [*place.glob("run.h5*")] == [place / "run.h5"]  # what a kill left unfinished has been replaced
        row = read_row(place)
        assert row.done == row.updates


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    def make(runs, updates=12):
        folder = tmp_path_factory.mktemp("undisturbed")
        suite(folder, runs, updates)
        code, printed = call("run", "suite.toml", "--out", "out", cwd=folder)
        assert code == 0, printed
        return folder

    return make


def test_ten_kills(tmp_path, undisturbed):
    suite(tmp_path, 6)
    struck = torment(tmp_path, 10, seed=3, pause=1.0, gap=0.3, kinds=["worker", "worker", "driver", "both"])
    assert sum(struck.values()) == 10, struck
    check(tmp_path, undisturbed(6))


@pytest.mark.slow
def test_a_hundred_kills(tmp_path, undisturbed):
    suite(tmp_path, 20)
    struck = torment(tmp_path, 100, seed=4, pause=1.5, gap=1.0, kinds=[*["worker"] * 18, "driver", "both"])
    assert sum(struck.values()) == 100, struck
    check(tmp_path, undisturbed(20))


def test_neighbours_of_a_killed_run_notice_nothing(tmp_path):
    suite(tmp_path, 3)
    driver = start("run", "suite.toml", "--out", "out", "--workers", 3, cwd=tmp_path, pause=0.1)
    while len(children(driver.pid)) < 3 or len([*tmp_path.glob("out/runs/*/progress.json")]) < 3:
        time.sleep(0.05)
        assert driver.poll() is None
    assert kill(children(driver.pid)[1])
    printed, _ = driver.communicate(timeout=120)
    assert driver.returncode == 0, printed
    assert printed.count("killed by SIGKILL; goes on from update") == 1
    starts = sorted((place / LOG).read_text().count("--- ") for place in run_folders(tmp_path / "out"))
    assert starts == [1, 1, 2]


def test_orphans_of_a_killed_driver_are_waited_for_and_not_run_twice(tmp_path):
    suite(tmp_path, 2)
    driver = start("run", "suite.toml", "--out", "out", "--workers", 2, cwd=tmp_path, pause=4.0)
    while len([*tmp_path.glob("out/runs/*/.worker.lock")]) < 2:
        time.sleep(0.05)
        assert driver.poll() is None
    kill(driver.pid)
    driver.communicate()
    second, waits = start("resume", "out", cwd=tmp_path, pause=4.0), 0
    while waits < 2:  # only then may the orphans go on at full pace
        line = second.stdout.readline()
        assert line, "the second driver has ended"
        waits += "a process of an earlier driver still trains it" in line
    change_pause(tmp_path, 0.0)
    printed, _ = second.communicate(timeout=300)
    assert second.returncode == 0, printed
    assert [(place / LOG).read_text().count("--- ") for place in run_folders(tmp_path / "out")] == [1, 1]
