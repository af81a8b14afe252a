"""A real Slurm on this machine: an array, preemption, the signal of the time limit, a killed job, a cancelled one."""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from suite_folders import ROOT, call, change_pause, same_parameters, start, write_suite

from diffsim.errors import ConfigError
from diffsim.suites import slurm
from diffsim.suites.plan import read_plan, resolve
from diffsim.suites.suite_file import read_suite
from diffsim.suites.tables import rows
from diffsim.suites.worker import LOG, PROGRESS, attempts

SCRIPT = ROOT / "tests" / "one_host_slurm.sh"
MATRIX = '[matrix]\nseed = "0..7"\n[slurm]\nmemory_gb = 0.3\npartition = "low"\n'


def why_there_is_none():
    missing = [
        name
        for name in ("slurmctld", "slurmd", "munged")
        if not shutil.which(name, path="/usr/sbin:/usr/bin")
    ]
    if missing:
        return f"no {', '.join(missing)}: apt-get install slurmctld slurmd slurm-client munge"
    if os.geteuid() != 0:
        return "a Slurm of one's own needs root"
    return "" if importlib.util.find_spec("submitit") else "no submitit: pip install -e '.[slurm]'"


@pytest.fixture
def started():
    """Starts a driver, and ends it where a test fails."""
    drivers = []
    yield lambda *args, **options: drivers.append(start(*args, **options)) or drivers[-1]
    for driver in drivers:
        driver.kill()
        driver.communicate()


@pytest.fixture
def cluster(tmp_path_factory, monkeypatch):
    if reason := why_there_is_none():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    folder = tmp_path_factory.mktemp("slurm")
    subprocess.run([SCRIPT, "start", folder], check=True, env={**os.environ, "CPUS": "4"})
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    yield
    subprocess.run([SCRIPT, "stop", folder], check=True)


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.1)
    return found


def jobs_in(states, shown="%i"):
    command = ["squeue", "-r", "-h", "-t", states, "-o", shown]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def processes_of(folder):
    """The job's process and the worker below it, of a run that is training."""
    worker = json.loads((folder / PROGRESS).read_text())["pid"]
    parent = Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1]
    return int(parent), worker


def test_an_array_survives_preemption_limits_kills_and_cancellation(cluster, started, tmp_path):
    undisturbed = tmp_path / "undisturbed"
    write_suite(undisturbed, MATRIX, updates=20, checkpoint_every=1000)
    code, printed = call("run", "suite.toml", "--out", "out", cwd=undisturbed)
    assert code == 0, printed

    folder = tmp_path / "disturbed"
    write_suite(folder, MATRIX, updates=20, checkpoint_every=1000)
    driver = started("run", "suite.toml", "--out", "out", "--on", "slurm", cwd=folder, pause=1.5)
    wait_for(lambda: len([*folder.glob("out/runs/*/progress.json")]) >= 4)
    plan = read_plan(folder / "out")
    jobs = slurm._recorded(plan.root)
    at_limit, killed, cancelled, _ = [run for run in plan.runs if (plan.folder(run) / PROGRESS).exists()]
    # What the limit sends. scancel would wait until the job runs again, and signal it once more.
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(["scancel", "--signal=USR2", jobs[at_limit.folder]], timeout=1)
    for pid in processes_of(plan.folder(killed)):
        os.kill(pid, signal.SIGKILL)
    subprocess.run(["scancel", jobs[cancelled.folder]], check=True)
    wait_for(lambda: len(jobs_in("RUNNING")) >= 4)
    wait_for(lambda: len([*folder.glob("out/runs/*/progress.json")]) >= 6)
    # As many CPUs as there are, so that jobs of the lower partition must go.
    subprocess.run(
        ["sbatch", "-J", "urgent", "-p", "high", "-c", "4", "--mem=100", "-o", "/dev/null", "--wrap", "sleep 1"],
        check=True, stdout=subprocess.DEVNULL, cwd=tmp_path,
    )  # fmt: skip
    wait_for(lambda: "high" in jobs_in("RUNNING,COMPLETING,COMPLETED", "%P"))
    change_pause(folder, 0.05)
    printed, _ = driver.communicate(timeout=300)
    assert driver.returncode == 1, printed  # the cancelled run is not finished
    found = {row.folder: row for row in rows(plan)}
    assert [row.folder for row in found.values() if row.state != "finished"] == [cancelled.folder], printed
    assert found[cancelled.folder].state == "stopped"
    assert 0 < found[cancelled.folder].done < 20
    assert f"{killed.folder}: its job ended (" in printed
    assert f"{at_limit.folder}: its job ended" not in printed  # it requeued itself
    causes = {run.folder: [entry["cause"] for entry in attempts(plan.folder(run))] for run in plan.runs}
    assert causes[at_limit.folder] == ["stopped", "done"]  # with a checkpoint, though none was due
    assert causes[killed.folder] == ["done"]
    preempted = [run for run in plan.runs if causes[run.folder] == ["stopped", "done"] and run != at_limit]
    assert preempted, (causes, printed)

    code, printed = call("resume", "out", "--on", "slurm", cwd=folder)
    assert code == 0, printed
    for run in plan.runs:
        place = plan.folder(run)
        assert same_parameters(place, undisturbed / "out" / "runs" / run.folder), run.folder
        assert [entry["cause"] for entry in attempts(place)].count("done") == 1
        assert (place / LOG).read_text().count("--- ") == 1 + (
            run in (at_limit, killed, cancelled, *preempted)
        )


@pytest.mark.slow
def test_a_job_that_reaches_its_time_limit_requeues_itself_with_a_checkpoint(cluster, started, tmp_path):
    """Slurm's own signal: it may come a minute earlier than asked for."""
    matrix = '[matrix]\nseed = 0\n[slurm]\nmemory_gb = 0.3\npartition = "low"\ntime_minutes = 2\nsignal_seconds = 60\n'
    undisturbed, folder = tmp_path / "undisturbed", tmp_path / "disturbed"
    write_suite(undisturbed, matrix, updates=120, checkpoint_every=1000)
    code, printed = call("run", "suite.toml", "--out", "out", cwd=undisturbed)
    assert code == 0, printed
    write_suite(folder, matrix, updates=120, checkpoint_every=1000)
    driver = started("run", "suite.toml", "--out", "out", "--on", "slurm", cwd=folder, pause=3.0)
    place = wait_for(lambda: next(folder.glob("out/runs/*/progress.json"), None), 300).parent
    wait_for(lambda: attempts(place), 600)
    change_pause(folder, 0.0)
    printed, _ = driver.communicate(timeout=600)
    assert driver.returncode == 0, printed
    *before, last = [entry["cause"] for entry in attempts(place)]
    assert set(before) == {"stopped"}  # more than once where the machine is slow
    assert last == "done"
    assert (place / LOG).read_text().count("--- ") == len(before) + 1
    assert "its job ended" not in printed  # it requeued itself
    assert same_parameters(place, undisturbed / "out" / "runs" / place.name)


@pytest.fixture
def plan(tmp_path):
    options = 'setup = ["module load cuda"]\noptions = {account = "lab", qos = "long"}\ntime_minutes = 90\ngpus = 1\n'
    write_suite(tmp_path, MATRIX + options)
    return resolve(read_suite(tmp_path / "suite.toml", str(tmp_path / "out")))


def test_the_job_script_says_what_the_file_asks_for(plan):
    pytest.importorskip("submitit")
    script = slurm.job_script(plan)
    for line in ("array=0-7%8", "partition=low", "time=90", "mem=307MB", "cpus-per-task=1", "gpus-per-node=1",
                 "account=lab", "qos=long", "signal=USR2@90", "requeue", "open-mode=append"):  # fmt: skip
        assert f"#SBATCH --{line}\n" in script, line
    assert "\nmodule load cuda\n" in script
    assert "-m diffsim.suites.worker " in script


def answers(monkeypatch, returncode=0, stdout="", stderr=""):
    done = subprocess.CompletedProcess([], returncode, stdout, stderr)
    monkeypatch.setattr(slurm.subprocess, "run", lambda *_, **__: done)


def test_a_controller_that_does_not_answer_is_no_end_of_jobs(monkeypatch):
    answers(monkeypatch, stdout="7_0|RUNNING\n7_1|CANCELLED\n")
    assert slurm.states(["7_0", "7_1", "7_2"]) == {"7_0": "RUNNING", "7_1": "CANCELLED"}
    answers(monkeypatch, 1, stderr="slurm_load_jobs error: Invalid job id specified")
    assert slurm.states(["7_0"]) == {}
    answers(monkeypatch, 1, stderr="slurm_load_jobs error: Unable to contact slurm controller")
    with pytest.raises(slurm.RunFileError, match="squeue does not answer: slurm_load_jobs error: Unable"):
        slurm.states(["7_0"])


def test_without_slurm_one_line_says_so(monkeypatch, plan):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match="there is no squeue here"):
        slurm.states(["7_0"])
    pytest.importorskip("submitit")
    plan.root.mkdir()
    with pytest.raises(ConfigError, match=r"Slurm takes no jobs from here: Could not detect .srun"):
        slurm.submit(plan, plan.runs, False)


def test_the_work_of_a_job_is_stopped_by_submitits_checkpoint(monkeypatch, tmp_path):
    """Also inside of a signal handler, where the waiting of the call itself is interrupted."""
    pytest.importorskip("submitit")
    (tmp_path / "stub").write_text(
        "#!/bin/sh\ntrap 'echo stopped > stopped; exit 143' TERM\nwhile :; do sleep 0.05; done\n"
    )
    (tmp_path / "stub").chmod(0o755)
    monkeypatch.setattr(slurm.sys, "executable", str(tmp_path / "stub"))
    monkeypatch.chdir(tmp_path)
    task, again = slurm.Task("root", "run", True), []
    before = signal.signal(signal.SIGUSR2, lambda *_: again.append(task.checkpoint()))
    try:
        timer = subprocess.Popen(["/bin/sh", "-c", f"sleep 0.5; kill -USR2 {os.getpid()}"])
        assert task() == 143
        timer.wait()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert (tmp_path / "stopped").exists()
    assert again[0].function.arguments == task.arguments == ["root", "run", "--trust"]
