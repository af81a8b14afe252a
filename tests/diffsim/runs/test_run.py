"""The training loop with a scripted algorithm: exactly when it evaluates, saves, stops and resumes."""

import math
import os
import signal
import threading
import time

import h5py
import numpy as np
import pytest
import torch

import diffsim
from diffsim.algorithms.base import Algorithm, Record
from diffsim.config import Settings
from diffsim.errors import ConfigError, DivergenceError, Interrupted, RunFileError
from diffsim.runs.evaluation import LoadedRun
from diffsim.runs.runfile import RunFile
from robotics_envs.simulators.pendulum import Pendulum

SCRIPT: dict[int, object] = {}
"""What the scripted algorithm does at an update: a Record to return, or a function to call first."""


class ScriptedSettings(Settings):
    pass


class Scripted(Algorithm):
    """Counts its updates in its state; drops or raises when the script says so."""

    Settings = ScriptedSettings

    def step(self):
        self.updates_done += 1
        action = SCRIPT.get(self.updates_done)
        if callable(action):
            action()
        elif action is not None:
            return action
        return Record(loss=1.0 / self.updates_done, grad_norm=2.0, env_steps=10, gradient_evaluations=3)

    def state_dict(self):
        return {"updates_done": self.updates_done, "policy": dict(self.policy.state_dict())}

    def load_state_dict(self, state):
        self.updates_done = state["updates_done"]


@pytest.fixture
def saves(monkeypatch):
    """After how many updates the file was written, in order."""
    script = SCRIPT.copy()
    SCRIPT.clear()
    written = []
    create, update = RunFile.create, RunFile.update

    def creating(self, *args):
        written.append(0)
        return create(self, *args)

    def updating(self, sections, config=None):
        update(self, sections, config)
        written.append(len(self.history()["update"]))

    monkeypatch.setattr(RunFile, "create", creating)
    monkeypatch.setattr(RunFile, "update", updating)
    yield written
    SCRIPT.clear()
    SCRIPT.update(script)


def train(out, **settings):
    defaults = {
        "env": "pendulum",
        "algorithm": "test_run:Scripted",
        "updates": 7,
        "checkpoint_every": 3,
        "evaluation": {"every": 2, "episodes": 3},
        "quiet": True,
    }
    return diffsim.train(out=out, **{**defaults, **settings})


def test_it_saves_at_the_start_at_each_interval_and_at_the_end(tmp_path, saves):
    train(tmp_path)
    assert saves == [0, 3, 6, 7]


def test_it_evaluates_at_each_interval_and_at_the_end(tmp_path, saves):
    history = train(tmp_path).history()
    evaluated = history["update"][np.isfinite(history["return"])]
    assert evaluated.tolist() == [2, 4, 6, 7]
    assert history["evaluation_steps"].tolist() == [0, 600, 600, 1200, 1200, 1800, 2400]
    SCRIPT.clear()
    history = train(tmp_path / "end", evaluation={"every": 0, "episodes": 1}).history()
    assert np.flatnonzero(np.isfinite(history["return"])).tolist() == [6]


def test_counts_accumulate(tmp_path, saves):
    history = train(tmp_path).history()
    assert history["env_steps"].tolist() == [10 * i for i in range(1, 8)]
    assert history["gradient_evaluations"].tolist() == [3 * i for i in range(1, 8)]
    assert history["loss"].tolist() == [1 / i for i in range(1, 8)]
    assert (np.diff(history["wall_seconds"]) > 0).all()
    assert not history["compile_seconds"].any()


def test_a_signal_saves_and_stops_and_resuming_ends_the_run(tmp_path, saves):
    before = signal.getsignal(signal.SIGTERM)
    SCRIPT[5] = lambda: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Interrupted, match=r"stopped after update 5 of 7.*--resume") as caught:
        train(tmp_path)
    assert caught.value.signal == signal.SIGTERM
    assert saves == [0, 3, 5]
    assert signal.getsignal(signal.SIGTERM) is before
    SCRIPT.clear()
    saves.clear()
    history = diffsim.train(out=tmp_path, resume=True, quiet=True).history()
    assert saves == [6, 7]
    assert history["update"].tolist() == list(range(1, 8))
    assert history["env_steps"][-1] == 70


def test_a_signal_during_the_last_update_is_no_interruption(tmp_path, saves):
    SCRIPT[7] = lambda: os.kill(os.getpid(), signal.SIGTERM)
    assert len(train(tmp_path).history()["update"]) == 7


def test_the_second_signal_acts_as_it_always_did(tmp_path, saves):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)  # until the first is answered, a second would be the same one to the kernel
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)  # the second one ends this at once

    SCRIPT[5] = twice
    with pytest.raises(KeyboardInterrupt) as caught:
        train(tmp_path)
    assert not isinstance(caught.value, Interrupted)
    assert RunFile(tmp_path).checkpoint()["updates_done"] == 3


def test_training_in_a_thread_leaves_signals_alone(tmp_path, saves):
    results = []
    thread = threading.Thread(target=lambda: results.append(train(tmp_path)))
    thread.start()
    thread.join()
    assert len(results[0].history()["update"]) == 7


def test_an_exception_leaves_a_checkpoint_of_the_last_whole_update(tmp_path, saves):
    def fail():
        raise RuntimeError("the simulator broke")

    SCRIPT[5] = fail
    with pytest.raises(RuntimeError, match="the simulator broke"):
        train(tmp_path)
    assert saves == [0, 3, 4]
    SCRIPT.clear()
    assert diffsim.train(out=tmp_path, resume=True, quiet=True).history()["update"].tolist() == [
        1, 2, 3, 4, 5, 6, 7,
    ]  # fmt: skip


def test_dropped_steps_are_recorded_and_said(tmp_path, saves, capsys):
    SCRIPT[2] = Record(math.nan, math.inf, 10, 1, dropped="3 of 8 rollouts not finite")
    history = train(tmp_path).history()
    assert history["step_dropped"].tolist() == [0, 1, 0, 0, 0, 0, 0]
    assert math.isnan(history["loss"][1])
    assert "update 2: step dropped, 3 of 8 rollouts not finite" in capsys.readouterr().err


def test_ten_dropped_steps_in_a_row_end_the_run_with_advice(tmp_path, saves):
    bad = Record(math.nan, math.nan, 10, 1, dropped="8 of 8 rollouts not finite")
    SCRIPT.update(dict.fromkeys(range(5, 30), bad))
    SCRIPT[8] = None  # a good one in between starts the count again
    with pytest.raises(
        DivergenceError, match=r"10 updates in a row.*update 18: 8 of 8.*smaller optimizer.lr"
    ):
        train(tmp_path, updates=30)
    assert len(RunFile(tmp_path).history()["update"]) == 18


def test_the_best_checkpoint_is_that_of_the_best_evaluation(tmp_path, saves, monkeypatch):
    returns = iter([-5.0, -2.0, -3.0, -4.0])
    monkeypatch.setattr(
        Scripted, "episodes", lambda *_: (torch.tensor([next(returns)]), torch.zeros(201, 1, 2))
    )
    file = train(tmp_path)
    assert file.checkpoints()["best"] == {"update": 4, "return": -2.0}
    assert file.checkpoints()["last"] == {"update": 7}


def test_the_best_policy_is_what_is_loaded_unless_told_otherwise(tmp_path, saves, monkeypatch):
    returns = iter([-5.0, -2.0, -3.0, -4.0])
    monkeypatch.setattr(
        Scripted, "episodes", lambda *_: (torch.tensor([next(returns)]), torch.zeros(201, 1, 2))
    )
    file = train(tmp_path)
    loaded = [LoadedRun(file, *name) for name in ((), ("best",), ("last",))]
    assert [(one.checkpoint, one.update) for one in loaded] == [("best", 4), ("best", 4), ("last", 7)]


def test_without_a_measured_policy_the_last_one_is_loaded(tmp_path, saves, monkeypatch):
    nan = torch.full((1,), torch.nan)
    monkeypatch.setattr(Scripted, "episodes", lambda *_: (nan, torch.zeros(201, 1, 2)))
    loaded = LoadedRun(train(tmp_path))
    assert (loaded.checkpoint, loaded.update) == ("last", 7)


def test_held_out_starts_are_not_those_that_the_seed_of_the_run_gives(tmp_path, saves, monkeypatch):
    seen = []

    def episodes(self, x):
        seen.append(x)
        return torch.zeros(len(x)), torch.zeros(201, len(x), 2)

    monkeypatch.setattr(Scripted, "episodes", episodes)
    train(tmp_path, seed=5)
    assert all(torch.equal(x, seen[0]) for x in seen)
    assert not torch.equal(seen[0], Pendulum().reset(3, torch.Generator().manual_seed(5)))


def test_successes_are_shares_of_the_held_out_starts(tmp_path, saves, monkeypatch):
    upright, hanging = torch.zeros(201, 1, 2), torch.full((201, 1, 2), math.pi)
    states = iter([[hanging] * 3, [upright, hanging, hanging], [upright] * 3, [upright] * 3])
    monkeypatch.setattr(Scripted, "episodes", lambda *_: (torch.zeros(3), torch.cat(next(states), 1)))
    success = train(tmp_path).history()["success"]
    assert success[[1, 3, 5, 6]].tolist() == pytest.approx([0, 1 / 3, 1, 1])
    assert np.isnan(success[[0, 2, 4]]).all()


class Misjudged(Pendulum):
    """A simulator whose success fails."""

    def success(self, states):
        raise KeyError("missing")


def test_a_success_that_fails_is_said_once_and_stops_nothing(tmp_path, saves, capsys):
    file = train(tmp_path, env="test_run:Misjudged", quiet=False)
    assert file.status()["state"] == "finished"
    assert np.isnan(file.history()["success"]).all()
    assert capsys.readouterr().err.count("successes are not counted: ") == 1


def test_rollouts_that_were_left_out_are_counted_and_said_once(tmp_path, saves, capsys):
    def record(count):
        return Record(1.0, 1.0, env_steps=10, gradient_evaluations=1, left_out=count)

    SCRIPT.update({2: record(3), 4: record(2)})
    history = train(tmp_path, quiet=False).history()
    assert history["left_out"].tolist() == [0, 3, 0, 2, 0, 0, 0]
    assert capsys.readouterr().err.count("were left out") == 1


def test_a_file_without_the_newer_columns_is_read(tmp_path, saves):
    file = train(tmp_path)
    with h5py.File(file.path, "a") as handle:
        del handle["history/success"], handle["history/left_out"]
    history = file.history()
    assert np.isnan(history["success"]).all()
    assert history["left_out"].tolist() == [0] * 7


def test_a_resumed_run_remembers_its_best(tmp_path, saves, monkeypatch):
    returns = iter([-5.0, -1.0, -3.0, -4.0])
    monkeypatch.setattr(
        Scripted, "episodes", lambda *_: (torch.tensor([next(returns)]), torch.zeros(201, 1, 2))
    )
    SCRIPT[5] = lambda: os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(Interrupted):
        train(tmp_path)
    SCRIPT.clear()
    assert diffsim.train(out=tmp_path, resume=True, quiet=True).checkpoints()["best"]["update"] == 4


def test_a_folder_with_a_run_is_refused_and_unchanged(tmp_path, saves):
    before = train(tmp_path).path.read_bytes()
    with pytest.raises(RunFileError, match="already holds a run"):
        train(tmp_path)
    assert (tmp_path / "run.h5").read_bytes() == before


def test_a_mistake_makes_no_folder(tmp_path, saves):
    for mistake in ({"env": "pendulm"}, {"optimizer": "adm"}, {"device": "abacus"}, {"policy": "mpl"}):
        with pytest.raises(ConfigError):
            train(tmp_path / "new", algorithm="short_window", **mistake)
    assert not (tmp_path / "new").exists()


def test_a_place_that_cannot_hold_a_run_is_named(tmp_path, saves):
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "run.h5"):
        with pytest.raises(ConfigError, match="give a folder"):
            train(place)
    with pytest.raises(ConfigError, match="out is empty"):
        train("")
    with pytest.raises(RunFileError, match=r"cannot make a run in .*: Not a directory"):
        train(tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "mine"


def test_resuming_needs_a_run(tmp_path):
    with pytest.raises(RunFileError, match="no run at"):
        diffsim.train(out=tmp_path / "nothing", resume=True)
    assert not (tmp_path / "nothing").exists()
    with pytest.raises(ConfigError, match="resume needs the folder"):
        diffsim.train(resume=True)


def test_resuming_keeps_the_configuration(tmp_path, saves):
    train(tmp_path, updates=3)
    with pytest.raises(ConfigError, match=r"seed is 0 in the run, 1 was given; .*start a new run"):
        diffsim.train(out=tmp_path, resume=True, seed=1)
    with pytest.raises(ConfigError, match=r"env.m is 1.0 in the run, 2.0 was given"):
        diffsim.train({"name": "pendulum", "m": 2.0}, out=tmp_path, resume=True)
    diffsim.train("pendulum", out=tmp_path, resume=True, seed=0, updates=3, quiet=True)


def test_resuming_a_finished_run_changes_nothing(tmp_path, saves):
    before = train(tmp_path).path.read_bytes()
    diffsim.train(out=tmp_path, resume=True, quiet=True)
    assert (tmp_path / "run.h5").read_bytes() == before


def test_the_file_holds_the_whole_configuration(tmp_path, saves):
    config = train(tmp_path, env={"name": "pendulum", "m": 2.0}).config()
    assert config.env.options == {"g": 10.0, "m": 2.0, "l": 1.0}
    facts = RunFile(tmp_path).provenance()
    assert facts["version_torch"] == torch.__version__
    assert {"git_revision", "device", "dtype", "seed", "python", "platform"} <= facts.keys()
