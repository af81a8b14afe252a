"""Suites of runs that take a fraction of a second, for the tests in this folder."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import torch

from diffsim.runs.runfile import RunFile

ROOT = Path(__file__).parents[3]
SHORT_ENV = """
import os, time
from robotics_envs.simulators.pendulum import Pendulum
class Short(Pendulum):
    episode_steps = 10
    def reset(self, batch, generator, dtype):
        with open(os.environ.get("PAUSE_OF_SHORT", os.devnull)) as file:
            time.sleep(float(file.read() or 0))
        return super().reset(batch, generator, dtype)
"""
BASE = """
[base]
env = "short_env.py:Short"
updates = {updates}
backend = "eager"
checkpoint_every = {checkpoint_every}
policy.hidden = [4]
evaluation = {{every = 0, episodes = 1}}
algorithm = {{name = "full_horizon", batch = 2}}
"""


def write_suite(folder, matrix, updates=4, checkpoint_every=2):
    """``suite.toml`` and its simulator in ``folder``; each update waits ``pause`` seconds."""
    folder.mkdir(exist_ok=True)
    (folder / "short_env.py").write_text(SHORT_ENV)
    path = folder / "suite.toml"
    path.write_text(BASE.format(updates=updates, checkpoint_every=checkpoint_every) + matrix)
    return path


def start(*args, cwd, pause=0.0, **options):
    """``diffsim suite ...`` as a process, in which each update of a run waits ``pause`` seconds, until they change."""
    change_pause(cwd, pause)
    return subprocess.Popen(
        [sys.executable, "-m", "diffsim", "suite", *map(str, args)],
        cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PAUSE_OF_SHORT": str(Path(cwd) / "pause")}, **options,
    )  # fmt: skip


def change_pause(folder, seconds):
    (Path(folder) / "new_pause").write_text(str(seconds))
    (Path(folder) / "new_pause").replace(Path(folder) / "pause")


def call(*args, cwd, **options):
    """The exit status of ``diffsim suite ...`` and what it printed."""
    process = start(*args, cwd=cwd, **options)
    try:
        printed, _ = process.communicate(timeout=1200)
    except BaseException:
        process.send_signal(signal.SIGTERM)
        raise
    return process.returncode, printed


def run_folders(root):
    return sorted((Path(root) / "runs").iterdir())


def parameters(folder):
    """The final policy of a run: its state by name."""
    return RunFile(folder).checkpoint("last")["policy"]


def same_parameters(one, other):
    a, b = parameters(one), parameters(other)
    return list(a) == list(b) and all(
        torch.equal(a[name], b[name]) if isinstance(a[name], torch.Tensor) else a[name] == b[name]
        for name in a
    )
