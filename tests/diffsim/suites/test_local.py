"""Suites on this machine: what is done is not done again, faults are told apart, and people can stop and go on."""

import errno
import json
import os
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from run_files import make_run
from suite_folders import call, change_pause, run_folders, same_parameters, start, write_suite

import diffsim
from diffsim.cli import main
from diffsim.errors import ConfigError, DivergenceError, RunFileError
from diffsim.runs.runfile import RunFile
from diffsim.runs.signals import stop_on_signals
from diffsim.suites import commands, local, worker
from diffsim.suites.index import rows
from diffsim.suites.plan import read_plan, resolve
from diffsim.suites.suite_file import read_suite
from diffsim.suites.worker import CANCEL, JOURNAL, LOG, PROGRESS, attempts, cause_of


def states(root):
    plan = read_plan(root)
    return {run.folder: row.state for run, row in zip(plan.runs, rows(plan), strict=True)}


def starts(folder):
    """How many processes worked on a run."""
    return (folder / LOG).read_text().count("--- ")


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Three runs that nothing disturbed."""
    folder = tmp_path_factory.mktemp("finished")
    write_suite(folder, '[matrix]\nseed = "0..2"\n', updates=8)
    code, printed = call("run", "suite.toml", "--out", "out", cwd=folder)
    assert code == 0, printed
    return folder, printed


def test_runs_of_a_suite_are_bit_for_bit_those_of_diffsim_train(finished, tmp_path, monkeypatch):
    folder, printed = finished
    assert "3 runs, 3 to do: " in printed.splitlines()[0]
    assert "GB of free memory" in printed.splitlines()[0]
    assert printed.splitlines()[-1] == "suite in out: 3 runs, 3 finished"
    monkeypatch.chdir(folder)
    run = read_plan(folder / "out").runs[1]
    alone = diffsim.train(out=tmp_path / "alone", quiet=True, **run.config)
    assert same_parameters(alone.folder, folder / "out" / "runs" / run.folder)
    assert alone.config() == RunFile(folder / "out" / "runs" / run.folder).config()


def test_an_extended_suite_runs_only_what_is_new(finished):
    folder, _ = finished
    before = {place: (place / "run.h5").read_bytes() for place in run_folders(folder / "out")}
    text = (folder / "suite.toml").read_text().replace('"0..2"', '"1..4"')
    (folder / "suite.toml").write_text(text)
    (folder / "out" / CANCEL).touch()  # of an earlier evening
    code, printed = call("run", "suite.toml", "--out", "out", cwd=folder)
    assert code == 0
    assert "4 runs, 2 to do" in printed
    assert {place: (place / "run.h5").read_bytes() for place in before} == before
    assert len(run_folders(folder / "out")) == 5
    assert all(starts(place) == 1 for place in run_folders(folder / "out"))


FAULTY_ENVS = """
import os, signal, time
from pathlib import Path
from robotics_envs.simulators.pendulum import Pendulum

def first_time(name):
    marker = Path(__file__).with_name(name)
    there = marker.exists()
    marker.touch()
    return not there

class Short(Pendulum):
    episode_steps = 10
    def reset(self, batch, generator, dtype):
        if batch == 2:  # that of training
            self.trouble()
        return super().reset(batch, generator, dtype)
    def trouble(self):
        pass

class Diverges(Short):
    def cost(self, x, u, p):
        return super().cost(x, u, p) / (0.0 * x[..., 0])

class Crashes(Short):
    def trouble(self):
        raise RuntimeError("the arm fell off")

class KilledOnce(Short):
    def trouble(self):
        if first_time("killed"):
            os.kill(os.getpid(), signal.SIGKILL)

class KilledAlways(Short):
    def trouble(self):
        os.kill(os.getpid(), signal.SIGKILL)

class HangsOnce(Short):
    def trouble(self):
        if first_time("hung"):
            time.sleep(1000)
"""
FAULTY = """
[base]
updates = 12
backend = "eager"
policy.hidden = [4]
evaluation = {every = 0, episodes = 1}
algorithm = {name = "full_horizon", batch = 2}
[matrix]
env = ["envs.py:Diverges", "envs.py:Crashes", "envs.py:KilledOnce", "envs.py:KilledAlways", "envs.py:HangsOnce",
       "envs.py:Short"]
[local]
retries = 1
backoff_seconds = 0.1
hang_minutes = 0.05
"""


def test_faults_of_the_machine_are_tried_again_and_faults_of_the_run_are_recorded(tmp_path):
    (tmp_path / "envs.py").write_text(FAULTY_ENVS)
    (tmp_path / "suite.toml").write_text(FAULTY)
    code, printed = call("run", "suite.toml", "--out", "out", cwd=tmp_path)
    assert code == 1, printed
    found = {name.partition("-")[0]: state for name, state in states(tmp_path / "out").items()}
    assert found == {
        "Diverges": "diverged", "Crashes": "failed", "KilledOnce": "finished", "KilledAlways": "killed",
        "HangsOnce": "finished", "Short": "finished",
    }  # fmt: skip
    folders = {place.name.partition("-")[0]: place for place in run_folders(tmp_path / "out")}
    assert {name: starts(place) for name, place in folders.items()} == {
        "Diverges": 1, "Crashes": 1, "KilledOnce": 2, "KilledAlways": 2, "HangsOnce": 2, "Short": 1,
    }  # fmt: skip
    (crash,) = attempts(folders["Crashes"])
    assert crash["cause"] == "run"
    assert "the arm fell off" in crash["reason"]
    assert "in trouble" in crash["traceback"]
    assert "given up after 2 attempts without an update more; killed by SIGKILL" in printed
    assert "no update for 0.1 min, killed" in printed
    assert RunFile(folders["Crashes"]).checkpoint("last")  # readable
    # The same environment after its faults are mended elsewhere: failed ones on demand, diverged ones never.
    code, printed = call("resume", "out", "--retry-failed", cwd=tmp_path)
    assert "6 runs, 2 to do" in printed
    assert starts(folders["Crashes"]) == 2
    assert starts(folders["Diverges"]) == 1
    logs = CliRunner().invoke(main, ["suite", "logs", str(tmp_path / "out")]).output
    assert "RuntimeError: the arm fell off" in logs
    assert "Short-" not in logs


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (DivergenceError("x"), "run"),
        (ConfigError("x"), "run"),
        (ValueError("x"), "run"),
        (FileNotFoundError(errno.ENOENT, "x"), "run"),
        (OSError(errno.ENOSPC, "x"), "machine"),
        (OSError(errno.EIO, "x"), "machine"),
        (RunFileError("cannot write run.h5: No space left on device"), "machine"),
        (MemoryError(), "machine"),
        (torch.OutOfMemoryError("CUDA out of memory"), "machine"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"), "machine"),
    ],
)
def test_the_cause_of_an_error(error, cause):
    assert cause_of(error) == cause


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_driver_stops_runs_at_a_checkpoint_and_resume_goes_on(tmp_path, number):
    write_suite(tmp_path, '[matrix]\nseed = "0..2"\n', updates=60, checkpoint_every=1000)
    process = start("run", "suite.toml", "--out", "out", "--workers", 2, cwd=tmp_path, pause=0.3)
    wait_for(lambda: len([*tmp_path.glob("out/runs/*/progress.json")]) == 2)
    process.send_signal(number)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "go on with: diffsim suite resume out" in printed
    assert "Traceback" not in printed
    assert sorted(states(tmp_path / "out").values()) == ["queued", "stopped", "stopped"]
    done = [len(RunFile(place).history()["update"]) for place in run_folders(tmp_path / "out")]
    assert all(0 < count < 60 for count in done), done
    if number == signal.SIGTERM:
        return  # what follows does not depend on the signal
    with open(tmp_path / "short_env.py", "a") as file:
        file.write("# edited\n")
    _, printed = call("resume", "out", cwd=tmp_path)
    third = next(name for name, state in states(tmp_path / "out").items() if state == "failed")
    assert "were changed after the suite had been started" in printed  # of the run that had not begun
    assert [s for name, s in states(tmp_path / "out").items() if name != third] == ["finished", "finished"]


def test_cancel_stops_a_suite_or_a_run_from_any_machine(tmp_path):
    write_suite(tmp_path, '[matrix]\nseed = "0..1"\n', updates=1000, checkpoint_every=1000)
    process = start("run", "suite.toml", "--out", "out", "--workers", 2, cwd=tmp_path, pause=0.05)
    wait_for(lambda: len([*tmp_path.glob("out/runs/*/progress.json")]) == 2)
    # A second person meanwhile.
    code, printed = call("run", "suite.toml", "--out", "out", cwd=tmp_path, pause=0.05)
    assert (code, printed.count("\n")) == (1, 1)
    assert f"diffsim: out is being run by process {process.pid} on " in printed
    first, second = (run.folder for run in read_plan(tmp_path / "out").runs)
    said = CliRunner().invoke(main, ["suite", "cancel", str(tmp_path / "out"), first[:10]])
    assert said.exit_code == 0, said.output
    wait_for(lambda: states(tmp_path / "out")[first] == "stopped")
    assert states(tmp_path / "out")[second] == "running"
    watched = CliRunner().invoke(main, ["suite", "status", str(tmp_path / "out")]).output
    assert "2 runs, 1 running, 1 stopped" in watched
    assert f"{second}: update " in watched
    CliRunner().invoke(main, ["suite", "cancel", str(tmp_path / "out")])
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert states(tmp_path / "out") == {first: "stopped", second: "stopped"}
    assert "Traceback" not in printed
    wrong = CliRunner().invoke(main, ["suite", "cancel", str(tmp_path / "out"), "nothing"])
    assert "no run begins with 'nothing'" in wrong.output


def test_runs_that_a_fork_cannot_hold_get_a_process_of_their_own(tmp_path):
    write_suite(tmp_path, "[matrix]\nseed = 0\noverrides = [{threads = 1}, {threads = 2}]\n")
    code, printed = call("run", "suite.toml", "--out", "out", cwd=tmp_path)
    assert code == 0, printed
    plan = read_plan(tmp_path / "out")
    assert {run.config["threads"] for run in plan.runs} == {1, 2}
    commands = {run.config["threads"]: RunFile(plan.folder(run)).provenance()["command"] for run in plan.runs}
    assert "diffsim.suites.worker" in commands[2]
    assert "diffsim.suites.worker" not in commands[1]


def run_of(**settings):
    return SimpleNamespace(settings={"threads": 1, "device": "cpu", "env": {"name": "pendulum"}, **settings})


def test_what_can_be_forked(monkeypatch):
    monkeypatch.setattr(local.threading, "active_count", lambda: 1)
    assert local.can_be_forked(run_of())
    assert not local.can_be_forked(run_of(threads=2))
    assert not local.can_be_forked(run_of(device="cuda:0"))
    assert not local.can_be_forked(run_of(env={"name": "julia:pendulum"}))
    monkeypatch.setattr(local.threading, "active_count", lambda: 2)
    assert not local.can_be_forked(run_of())


@pytest.mark.parametrize("place", ["/proc/suite", "a_file/suite"])
def test_a_folder_that_cannot_be_written_is_said_before_anything_starts(tmp_path, place):
    (tmp_path / "a_file").write_text("")
    write_suite(tmp_path, "[matrix]\nseed = 0\n")
    result = CliRunner().invoke(
        main, ["suite", "run", str(tmp_path / "suite.toml"), "--out", str(tmp_path / place)]
    )
    assert result.exit_code == 1
    assert "cannot write the suite in" in result.output
    assert result.output.count("\n") == 1


def test_a_full_disk_is_said_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(local.shutil, "disk_usage", lambda _: SimpleNamespace(free=2e6))
    local.check_folder(tmp_path, 2)
    with pytest.raises(RunFileError, match="has 2 MB of free space, 3 runs need about 3 MB"):
        local.check_folder(tmp_path, 3)


def test_a_cancelled_run_is_asked_once(tmp_path, monkeypatch):
    """A second request would end it without a checkpoint."""
    asked = []
    monkeypatch.setattr(worker.os, "kill", lambda *request: asked.append(request))
    monkeypatch.setattr(worker, "PROGRESS_SECONDS", 0.0)
    report = worker.Heartbeat(tmp_path, (tmp_path / CANCEL,))
    with stop_on_signals():
        report({"update": 1, "return": float("nan")})
        assert json.loads((tmp_path / PROGRESS).read_text())["return"] is None
        assert asked == []
        (tmp_path / CANCEL).touch()
        report({"update": 2, "return": 0.0})
        assert asked == [(os.getpid(), signal.SIGTERM)]
        signal.raise_signal(signal.SIGTERM)  # noted
        report({"update": 3, "return": 0.0})
    assert len(asked) == 1


@pytest.fixture
def invoke(monkeypatch):
    """The command in this process, whose threads are left as they are."""
    monkeypatch.setattr(commands, "_one_thread", lambda: None)
    return lambda *args: CliRunner().invoke(main, ["suite", *map(str, args)])


def test_a_wrong_configuration_anywhere_starts_nothing(tmp_path, invoke):
    path = write_suite(tmp_path, '[matrix]\nseed = [0, 1]\noptimizer = ["adam", "adm"]\n')
    result = invoke("run", path, "--out", tmp_path / "out")
    assert result.exit_code == 2
    said = "2 of 4 runs cannot start, so none was started:\n  adm, seeds 0, 1: unknown optimizer 'adm'"
    assert said in result.output
    assert run_folders(tmp_path / "out") == []


def test_a_dry_run_writes_nothing(tmp_path, invoke):
    path = write_suite(tmp_path, "[matrix]\nseed = [0, 1]\n")
    result = invoke("run", path, "--out", tmp_path / "out", "--dry-run")
    assert result.exit_code == 0
    assert result.output.startswith("2 runs, 2 to do in ")
    assert not (tmp_path / "out").exists()


def test_the_journal_survives_a_line_that_was_cut(tmp_path):
    (tmp_path / JOURNAL).write_text('{"cause": "machine", "rea')
    local.note(tmp_path, "done", "finished")
    assert [line["cause"] for line in attempts(tmp_path)] == ["done"]
    assert json.loads((tmp_path / JOURNAL).read_text().splitlines()[-1])["reason"] == "finished"


def test_workers_are_bounded_by_cpus_memory_and_threads(tmp_path, monkeypatch):
    write_suite(tmp_path, '[matrix]\nseed = "0..9"\n')
    plan = resolve(read_suite(tmp_path / "suite.toml"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(local, "can_be_forked", lambda *_: True)
    said = []
    for free, expected in ((1e6, 8), (400, 3), (10, 1)):
        monkeypatch.setattr(local, "free_memory_mb", lambda free=free: free)
        assert local.Driver(plan, 0, say=said.append)._workers(list(plan.runs)) == expected
    assert "10 runs, 10 to do: 3 at a time on 8 CPUs, about 0.3 GB of 0.4 GB of free memory" in said
    assert local.Driver(plan, 0, workers=5, say=said.append)._workers(list(plan.runs)) == 5


def test_a_folder_that_vanishes_ends_the_suite_and_nothing_is_begun_in_its_place(tmp_path):
    matrix = '[matrix]\nseed = "0..1"\n'
    write_suite(tmp_path, matrix, updates=40)
    driver = start("run", "suite.toml", "--out", "a suite", cwd=tmp_path, pause=0.3)
    wait_for(lambda: list(tmp_path.glob("a suite/runs/*/progress.json")), 300)
    (tmp_path / "a suite").rename(tmp_path / "elsewhere")
    change_pause(tmp_path, 0.0)
    printed, _ = driver.communicate(timeout=300)
    assert driver.returncode == 1, printed
    assert "the suite's folder has vanished" in printed
    assert "diffsim suite resume 'a suite'" in printed
    plan = resolve(read_suite(tmp_path / "suite.toml", str(tmp_path / "a suite")))
    assert worker.work(plan, plan.runs[0]) == worker.MACHINE_FAILED
    assert not (tmp_path / "a suite").exists()
    (tmp_path / "elsewhere").rename(tmp_path / "a suite")
    code, printed = call("resume", "a suite", cwd=tmp_path)
    assert code == 0, printed
    assert "2 finished" in printed


def test_a_damaged_file_is_set_aside_on_request(tmp_path):
    write_suite(tmp_path, "[matrix]\nseed = 0\n")
    assert call("run", "suite.toml", "--out", "out", cwd=tmp_path)[0] == 0
    (place,) = run_folders(tmp_path / "out")
    damaged = (place / "run.h5").read_bytes()[:1000]
    (place / "run.h5").write_bytes(damaged)
    code, printed = call("resume", "out", cwd=tmp_path)
    assert code == 1
    assert "--retry-failed sets its file aside and begins again" in printed
    code, printed = call("resume", "out", "--retry-failed", cwd=tmp_path)
    assert code == 0, printed
    assert (place / "run.h5.damaged").read_bytes() == damaged
    assert "1 finished" in printed


def test_space_is_needed_for_runs_to_come_only(tmp_path, monkeypatch):
    monkeypatch.setattr(local.shutil, "disk_usage", lambda _: SimpleNamespace(free=1e6))
    for name in ("a", "b"):
        make_run(tmp_path / "runs" / name, [-1.0])
    local.check_folder(tmp_path, 3)
    with pytest.raises(RunFileError, match="2 runs need about 2 MB"):
        local.check_folder(tmp_path, 4)


@pytest.mark.parametrize("place", ["/proc/suite", "a_file", "n" * 300])
def test_a_dry_run_looks_at_the_folder(tmp_path, invoke, place):
    (tmp_path / "a_file").write_text("")
    path = write_suite(tmp_path, "[matrix]\nseed = 0\n")
    result = invoke("run", path, "--out", tmp_path / place, "--dry-run")
    if place.startswith("/proc") and os.access("/proc", os.W_OK):
        pytest.skip("this user may write everywhere")
    assert result.exit_code == 1
    assert "cannot write the suite in" in result.output


def test_cancel_says_when_nothing_runs(tmp_path, invoke):
    write_suite(tmp_path, "[matrix]\nseed = 0\n")
    plan = resolve(read_suite(tmp_path / "suite.toml", str(tmp_path / "out")))
    plan.root.mkdir()
    plan.save()
    assert "no run is running" in invoke("cancel", plan.root).output
