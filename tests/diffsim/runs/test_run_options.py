"""Callbacks, stopping, starting from another policy, status, and what may be given as a simulator."""

import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from small_runs import assert_same, train, weights

import diffsim
from diffsim.algorithms.value_gradient import ValueGradient
from diffsim.errors import ConfigError, DivergenceError, Interrupted, OutOfMemoryError, RunFileError
from diffsim.runs.runfile import COLUMNS, RunFile
from robotics_envs.simulators.pendulum import Pendulum


class Mine(Pendulum):
    """A simulator of this module."""


# -- callbacks and ends ---------------------------------------------------------------------------


def test_a_callback_gets_every_row(tmp_path):
    rows = []
    run = train(tmp_path / "run", callback=lambda row: rows.append(dict(row)))
    history = run.history()
    assert [set(row) for row in rows] == [set(COLUMNS)] * 4
    for name in COLUMNS:
        np.testing.assert_array_equal(history[name], [row[name] for row in rows])


def test_a_callback_that_fails_loses_nothing(tmp_path):
    def fail(row):
        if row["update"] == 3:
            raise LookupError("the tracker is away")

    with pytest.raises(LookupError, match="the tracker is away"):
        train(tmp_path / "run", callback=[lambda row: None, fail])
    run = RunFile(tmp_path / "run")
    assert len(run.history()["update"]) == 3
    status = run.status()
    assert status["state"] == "crashed"
    assert "LookupError: the tracker is away" in status["reason"]
    assert "test_run_options.py, line" in status["reason"]
    diffsim.train(out=run, resume=True, quiet=True)
    assert_same(weights(run), weights(train(tmp_path / "whole")))


def test_logs_are_written_and_go_on(tmp_path):
    train(tmp_path / "run", log="csv")
    lines = (tmp_path / "run" / "history.csv").read_text().splitlines()
    assert len(lines) == 5
    assert lines[0].split(",") == list(COLUMNS)
    diffsim.train(out=tmp_path / "run", resume=True, updates=6, quiet=True, log="csv")
    assert len((tmp_path / "run" / "history.csv").read_text().splitlines()) == 7
    with pytest.raises(ConfigError, match=r"tensorbord.*did you mean 'tensorboard'"):
        train(tmp_path / "other", log=["tensorbord"])
    with pytest.raises(ConfigError, match=r"callback = 3: give a function"):
        train(tmp_path / "other", callback=3)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("stop", "done"),
    [({"env_steps": 300}, 3), ({"target_return": -1e9}, 2), ({"wall_seconds": 1e-6}, 1), ({}, 4)],
    ids=["env_steps", "target_return", "wall_seconds", "updates"],
)
def test_a_run_stops_where_it_is_told(tmp_path, stop, done):
    run = train(tmp_path / "run", stop=stop)  # an update takes 16 windows of 8 steps
    history = run.history()
    assert len(history["update"]) == done
    assert np.isfinite(history["return"][-1])  # the last update is evaluated
    status = run.status()
    assert status["state"] == "finished"
    assert (f"stop.{next(iter(stop))}" if stop else "all 4 updates done") in status["reason"]
    diffsim.train(out=run, resume=True, quiet=True)  # there is nothing left to do
    assert len(run.history()["update"]) == done


# -- going on -------------------------------------------------------------------------------------


def test_a_run_is_lengthened_and_says_what_that_means(tmp_path, capsys):
    run = train(tmp_path / "run")
    diffsim.train(out=run.folder, resume=True, updates=8, quiet=True)
    said = " ".join(capsys.readouterr().err.split())
    assert "8 updates instead of 4" in said
    assert "50% left, where 0% was left" in said
    assert run.config().updates == 8
    assert len(run.history()["update"]) == 8
    assert run.is_own()
    # From then on it is a run of eight updates: the next resume repeats it bit for bit.
    again = train(tmp_path / "again")
    seen = []

    def interrupt(row):
        seen.append(row["update"])
        if row["update"] == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        diffsim.train(out=again, resume=True, updates=8, quiet=True, callback=interrupt)
    assert seen == [5, 6]
    diffsim.train(out=again, resume=True, quiet=True)
    assert_same(weights(run), weights(again))


def test_other_changes_on_resume_are_refused(tmp_path):
    run = train(tmp_path / "run")
    with pytest.raises(ConfigError, match="4 are done already"):
        diffsim.train(out=run, resume=True, updates=3)
    with pytest.raises(ConfigError, match=r"seed is 0 in the run, 1 was given"):
        diffsim.train(out=run, resume=True, updates=8, seed=1)
    assert run.config().updates == 4


def test_a_run_starts_from_another_s_policy(tmp_path):
    first = train(tmp_path / "first", policy={"hidden": [8]})
    second = train(tmp_path / "second", init=first, updates=1, optimizer={"name": "sgd", "lr": 1e-30})
    assert second.config().policy.options["hidden"] == [8]
    for key, value in weights(first).items():
        torch.testing.assert_close(weights(second)[key], value, rtol=0, atol=1e-12)
    assert second.provenance()["initial_policy"] == str(first.path)
    assert second.provenance()["initial_policy_update"] == 4
    with pytest.raises(ConfigError, match=r"does not fit.*cartpole_swingup"):
        train(tmp_path / "third", "cartpole_swingup", init=first)
    assert not (tmp_path / "third" / "run.h5").exists()


def test_an_exception_inside_an_update_leaves_the_last_whole_one(tmp_path, monkeypatch):
    whole, fit = ValueGradient.step, ValueGradient._fit_critic

    def fails(self, *args):
        if self.updates_done == 3:  # the policy has moved already
            raise RuntimeError("out of luck")
        return fit(self, *args)

    monkeypatch.setattr(ValueGradient, "_fit_critic", fails)
    with pytest.raises(RuntimeError, match="out of luck"):
        train(tmp_path / "run", checkpoint_every=100, updates=6)
    monkeypatch.setattr(ValueGradient, "_fit_critic", fit)
    assert ValueGradient.step is whole
    run = RunFile(tmp_path / "run")
    assert len(run.history()["update"]) == 3
    assert run.status()["state"] == "crashed"
    diffsim.train(out=run, resume=True, quiet=True)
    assert_same(weights(run), weights(train(tmp_path / "undisturbed", updates=6)))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nMore"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9663676416 bytes."),
        MemoryError("no memory"),
    ],
    ids=["of the GPU", "of the machine", "of Python"],
)
def test_a_run_without_memory_says_what_to_change(tmp_path, monkeypatch, error):
    whole = ValueGradient._fit_critic

    def fails(self, *args):
        if self.updates_done == 2:
            raise error
        return whole(self, *args)

    monkeypatch.setattr(ValueGradient, "_fit_critic", fails)
    said = rf"in update 3.*algorithm\.batch = 16 .*--set shards=2, .*smaller.*{re.escape(str(error).splitlines()[0])}$"
    with pytest.raises(OutOfMemoryError, match=said) as caught:
        train(tmp_path / "run")
    assert caught.value.__cause__ is error
    monkeypatch.undo()
    assert len(RunFile(tmp_path / "run").history()["update"]) == 2
    diffsim.train(out=tmp_path / "run", resume=True, quiet=True)
    assert_same(weights(RunFile(tmp_path / "run")), weights(train(tmp_path / "whole")))


def test_a_diverged_run_says_what_to_change(tmp_path):
    with pytest.raises(DivergenceError):
        train(tmp_path / "run", updates=20, optimizer={"name": "adam", "lr": 1e36, "schedule": "constant"})
    run = RunFile(tmp_path / "run")
    status = run.status()
    assert status["state"] == "diverged"
    assert "optimizer.lr" in status["reason"]
    with pytest.raises(ConfigError, match=r"diverged and would again.*optimizer\.lr.*--init"):
        diffsim.train(out=run, resume=True)


def test_status_of_killed_and_running_runs(tmp_path):
    command = [
        sys.executable, "-m", "diffsim", "train", "pendulum", "--out", str(tmp_path / "run"), "--updates", "100000",
        "--quiet", "--set", "evaluation.every=0",
    ]  # fmt: skip
    process = subprocess.Popen(command)
    run = RunFile(tmp_path / "run")
    try:
        while not run.exists():
            time.sleep(0.05)
        assert run.status()["state"] == "running"
        with pytest.raises(RunFileError, match="another process is training"):
            diffsim.train(out=run, resume=True)
    finally:
        process.kill()
        process.wait()
    assert run.status()["state"] == "killed"


# -- what surrounds training ----------------------------------------------------------------------


def test_a_full_disk_in_between_is_survived(tmp_path, monkeypatch, capsys):
    from diffsim.runs import runfile

    write, failing = runfile.write_whole, [False]

    def writes(path, content, temporary=None):
        if failing[0]:
            raise OSError(28, "No space left on device")
        write(path, content, temporary)

    monkeypatch.setattr(runfile, "write_whole", writes)
    run = train(
        tmp_path / "run",
        checkpoint_every=1,
        callback=lambda row: failing.__setitem__(0, row["update"] in (2, 3)),
    )
    assert "No space left on device" in capsys.readouterr().err
    assert len(run.history()["update"]) == 4


def test_a_folder_that_vanished_leaves_the_run_elsewhere(tmp_path):
    def vanish(row):
        if row["update"] == 2:
            (tmp_path / "run" / "run.h5").unlink()

    with pytest.raises(RunFileError, match=r"was written to \S+run.h5 instead") as caught:
        train(tmp_path / "run", callback=vanish)
    (rescued,) = (w for w in str(caught.value).split() if w.endswith("run.h5") and "diffsim-" in w)
    assert len(RunFile(rescued).history()["update"]) == 4


def test_another_program_holds_the_file(tmp_path):
    held = []

    def hold(row):
        if row["update"] == 1:
            held.append(h5py.File(tmp_path / "run" / "run.h5", "r+"))

    try:
        run = train(tmp_path / "run", callback=hold, checkpoint_every=1)
        assert len(run.history()["update"]) == 4
    finally:
        held[0].close()


def test_links_and_permissions_are_kept(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").mkdir()
    train(tmp_path / "disk" / "run", updates=1)
    target = tmp_path / "disk" / "run" / "run.h5"
    target.chmod(0o640)
    (tmp_path / "run" / "run.h5").symlink_to(target)
    diffsim.evaluate(tmp_path / "run", episodes=2)
    assert (tmp_path / "run" / "run.h5").is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert len(RunFile(target).evaluations()) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM])
def test_signals_that_the_parent_ignores_stay_ignored(tmp_path, number):
    before = signal.signal(number, signal.SIG_IGN)
    try:
        run = train(
            tmp_path / "run",
            callback=lambda row: os.kill(os.getpid(), number) if row["update"] == 2 else None,
        )
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)
    assert len(run.history()["update"]) == 4


def test_a_closed_terminal_stops_with_a_checkpoint(tmp_path):
    def hang_up(row):
        if row["update"] == 2:
            os.kill(os.getpid(), signal.SIGHUP)

    with pytest.raises(Interrupted, match="after update 2 of 4"):
        train(tmp_path / "run", callback=hang_up)
    assert RunFile(tmp_path / "run").status()["state"] == "stopped"


def test_the_stored_command_runs_again(tmp_path):
    out = tmp_path / "a run's folder"
    command = [
        sys.executable,
        "-m",
        "diffsim",
        "train",
        "pendulum",
        "--out",
        str(out),
        "--updates",
        "1",
        "--quiet",
    ]
    subprocess.run(command, check=True)
    stored = RunFile(out).provenance()["command"]
    first = weights(out)
    (out / "run.h5").unlink()
    subprocess.run(stored, shell=True, check=True)
    assert_same(first, weights(out))


# -- what may be given ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["class", "instance", "own class", "local class", "path", "file:class"])
def test_a_simulator_in_every_form(tmp_path, kind):
    class Local(Pendulum):
        pass

    (tmp_path / "my_env.py").write_text(
        "from robotics_envs.simulators.pendulum import Pendulum\n\n\nclass Only(Pendulum):\n    pass\n"
    )
    given, name = {
        "class": (Pendulum, "pendulum"),
        "instance": (Pendulum(g=3.0), "pendulum"),
        "own class": (Mine, f"{__name__}:Mine"),
        "local class": (Local, f"{__name__}:test_a_simulator_in_every_form.<locals>.Local"),
        "path": (tmp_path / "my_env.py", f"{tmp_path}/my_env.py:Only"),
        "file:class": (f"{tmp_path}/my_env.py:Only", f"{tmp_path}/my_env.py:Only"),
    }[kind]
    run = train(tmp_path / "run", given, updates=1)
    config = run.config()
    assert config.env.name == name
    assert config.env.options["g"] == (3.0 if kind == "instance" else 10.0)
    assert diffsim.evaluate(run, episodes=1).lengths.tolist() == [200]
    assert diffsim.render(given, out=tmp_path, steps=2, formats="html")[0].is_file()


def test_files_with_no_or_several_simulators_are_refused(tmp_path):
    file = tmp_path / "many.py"
    file.write_text(
        "from robotics_envs.simulators.pendulum import Pendulum\n\n\nclass A(Pendulum):\n    pass\n\n\n"
        "class B(Pendulum):\n    pass\n"
    )
    with pytest.raises(ConfigError, match=r"several simulators: A, B; name one as 'many.py:MyEnv'"):
        train(tmp_path / "run", file)
    file.write_text("x = 1\n")
    with pytest.raises(ConfigError, match=r"no subclass of robotics_envs\.Env"):
        train(tmp_path / "run", file)
    with pytest.raises(ConfigError, match=r"subclass of robotics_envs\.Env"):
        train(tmp_path / "run", dict)


@pytest.mark.parametrize("kind", ["folder", "file", "text", "RunFile"])
def test_a_run_in_every_form(tmp_path, kind):
    run = train(tmp_path / "run", updates=1)
    given = {"folder": run.folder, "file": run.path, "text": str(run.folder), "RunFile": run}[kind]
    assert diffsim.load_policy(given)(np.zeros(3)).shape == (1,)
    assert len(diffsim.evaluate(given, episodes=np.int64(2)).returns) == 2
    assert diffsim.plot(given) is not None
    assert diffsim.render(given, steps=2, rollouts=np.int32(1), formats="html")
    assert RunFile(given).path == run.path


def test_paths_stay_right_when_the_folder_changes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = train("run", updates=1)
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    assert diffsim.evaluate(run, episodes=1).returns.shape == (1,)
    assert Path(os.fspath(run)) == tmp_path / "run" / "run.h5"


def test_settings_files_name_files_beside_them(tmp_path, monkeypatch):
    lab = tmp_path / "lab"
    lab.mkdir()
    (lab / "env.py").write_text(
        "from robotics_envs.simulators.pendulum import Pendulum\n\n\nclass Mine(Pendulum):\n    pass\n"
    )
    (lab / "net.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Sequential):\n    def __init__(self, i, o):\n"
        "        super().__init__(nn.Linear(i, o))\n"
    )
    (lab / "run.toml").write_text('env = "env.py:Mine"\nupdates = 1\n[policy]\nname = "net.py:Net"\n')
    monkeypatch.chdir(tmp_path)
    command = [
        sys.executable,
        "-m",
        "diffsim",
        "train",
        "--config",
        "lab/run.toml",
        "--out",
        "run",
        "--quiet",
    ]
    subprocess.run(command, check=True)
    config = RunFile("run").config()
    assert config.env.name == f"{lab}/env.py:Mine"
    assert config.policy.name == f"{lab}/net.py:Net"


def test_a_foreign_environment_that_is_no_twin_is_refused(tmp_path):
    import gymnasium

    run = train(tmp_path / "run", updates=1)
    other = "OtherPendulum-v0"  # of the same spaces
    entry = "gymnasium.envs.classic_control:PendulumEnv"
    gymnasium.register(other, entry, max_episode_steps=7, disable_env_checker=True)
    try:
        with pytest.raises(
            diffsim.DiffsimError, match=r"known to be the same task as pendulum, whose twin is Pen"
        ):
            diffsim.evaluate(run, gym=other, episodes=1)
        assert run.evaluations() == []
        assert diffsim.evaluate(run, gym=other, episodes=2, any_gym=True).lengths.tolist() == [7, 7]
    finally:
        del gymnasium.registry[other]
    assert diffsim.evaluate(run, gym="diffsim/Pendulum-v0", episodes=1).lengths.tolist() == [200]


def test_lengths_are_measured(tmp_path):
    run = train(tmp_path / "run", "cartpole_balance", updates=1)
    lengths = diffsim.evaluate(run, episodes=8).lengths
    assert lengths.shape == (8,)
    # Ends of this simulator's own: fall over from a state close to the bound.
    from diffsim.rollouts import Rollout
    from diffsim.runs.evaluation import LoadedRun

    loaded = LoadedRun(run)
    x = loaded.env.reset(8, torch.Generator().manual_seed(1000), torch.float32)
    returns, counted = Rollout(loaded.env, loaded.policy.module).episodes(x)
    assert counted.tolist() == lengths.tolist()
    assert returns.shape == (8,)
