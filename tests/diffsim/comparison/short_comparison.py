"""Comparisons that take a fraction of a second, for the tests in this folder."""

import os
import subprocess
import sys
from pathlib import Path

from diffsim.comparison.compare import planned, request

ROOT = Path(__file__).parents[3]
SHORT_ENV = """
import os, time
import torch
from robotics_envs.simulators.pendulum import Pendulum
class Short(Pendulum):
    episode_steps = 10
class Paced(Short):
    def reset(self, batch, generator, dtype=torch.float32):
        time.sleep(float(os.environ.get("PAUSE_OF_SHORT", 0)))
        return super().reset(batch, generator, dtype)
"""
SMALL = "full:algorithm.name=full_horizon,algorithm.batch=4,policy.hidden=[4],backend=eager"


def short(folder, name="Short"):
    """The name of a pendulum with episodes of 10 intervals, in a file of its own; Paced takes its time to start."""
    (folder / "short_env.py").write_text(SHORT_ENV)
    return f"{folder}/short_env.py:{name}"


def plan_of(folder, against=(), ours=(SMALL,), seeds="1", budget="2000steps", out="out"):
    asked = request([short(folder)], against, ours, seeds, [budget] if isinstance(budget, str) else budget)
    plan = planned(folder / out, asked, "this test")
    for run in plan.runs:
        plan.folder(run).mkdir(parents=True, exist_ok=True)
    plan.save()
    return plan


def run_of(plan, contender, seed=0):
    return next(r for r in plan.runs if (r.settings["contender"], r.seed) == (contender, seed))


def start(*args, cwd, pause=0.0, **options):
    """``diffsim compare ...`` as a process, in which drawing initial states takes ``pause`` seconds."""
    return subprocess.Popen(
        [sys.executable, "-m", "diffsim", "compare", *map(str, args)],
        cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PAUSE_OF_SHORT": str(pause), "COLUMNS": "80"}, **options,
    )  # fmt: skip


def run_diffsim(*args, cwd):
    """``diffsim ...`` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "diffsim", *map(str, args)], cwd=cwd, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80"},
    )  # fmt: skip
