"""Fifty ``kill -9`` at random moments of one training, which ends as if nothing had happened."""

import os
import random
import subprocess
import sys
import time

import pytest
from same_state import same

from diffsim import RunFile
from diffsim.runs.runfile import COLUMNS

KILLS, UPDATES = 50, 800
ENV = """
import pathlib, time
from robotics_envs.simulators.pendulum import Pendulum

class Paced(Pendulum):
    def reset(self, batch, generator, dtype):
        if pathlib.Path("paced").exists():
            time.sleep(0.01)  # so that few updates are made between a row and the kill
        return super().reset(batch, generator, dtype)
"""
SETTINGS = [
    "--updates", str(UPDATES), "--set", "algorithm.batch=16", "--set", "checkpoint_every=1", "--set",
    "evaluation.every=1", "--set", "evaluation.episodes=2",
]  # fmt: skip
MEASURED = {"wall_seconds", "compile_seconds"}


def training(folder, *arguments):
    command = [sys.executable, "-m", "diffsim", "train", *arguments]
    return subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def finished(process):
    _, printed = process.communicate()
    assert process.returncode == 0, printed


def begin(folder, *arguments):
    (folder / "paced_env.py").write_text(ENV)
    return training(folder, "paced_env.py:Paced", "--out", "run", *SETTINGS, *arguments)


@pytest.mark.slow
def test_fifty_kills(tmp_path):
    undisturbed, tormented = tmp_path / "undisturbed", tmp_path / "tormented"
    undisturbed.mkdir()
    tormented.mkdir()
    finished(begin(undisturbed, "--quiet"))

    (tormented / "paced").touch()
    choose, done = random.Random(5), []
    process = begin(tormented)
    # Before the file is there, a run is started again rather than resumed.
    while not (tormented / "run" / "run.h5").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    for _ in range(KILLS):
        rows = choose.choice([0, 1, 2, 4, 8, 12])  # none: while it loads
        while rows:
            rows -= process.stderr.readline().startswith("update")
            assert process.poll() is None, process.stderr.read()
        time.sleep(choose.uniform(0, 0.05))
        process.kill()
        process.communicate()
        done.append(len(RunFile(tormented / "run").history()["update"]))
        assert done[-1] < UPDATES
        process = training(tormented, "--out", "run", "--resume")
    os.unlink(tormented / "paced")
    finished(process)

    assert done == sorted(done)
    assert len(set(done)) > KILLS / 4, done  # it was trained between the kills
    one, other = RunFile(undisturbed / "run"), RunFile(tormented / "run")
    for which in ("last", "best"):
        assert same(one.checkpoint(which), other.checkpoint(which))
    for column in set(COLUMNS) - MEASURED:
        expected, found = one.history()[column], other.history()[column]
        assert ((expected == found) | ((expected != expected) & (found != found))).all(), column
    assert [*(tormented / "run").glob("run.h5*")] == [other.path]  # nothing that a kill left unfinished
