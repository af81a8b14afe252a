"""Kernels of rollouts whose trace another process has kept."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from solvers.compiler.trace import NativeUnsupportedError
from solvers.native import build, traces

try:
    build._toolchain()
except NativeUnsupportedError:
    pytest.skip("no C++ compiler", allow_module_level=True)

SCRIPT = Path(__file__).with_name("traced_runs.py")


def run(cache, *arguments):
    environment = {**os.environ, "DIFFSIM_CACHE": str(cache), traces.SWITCH: "1"}
    done = subprocess.run(
        [sys.executable, SCRIPT, *arguments], env=environment, check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", ["pendulum", "arm7", "trebuchet"])
def test_another_process_does_not_trace_and_computes_the_same_bits(name, tmp_path):
    # Kept are the trace, what was found when the rollout was looked at, and that the kernel agrees with torch.
    assert run(tmp_path, "same", name) == [1, 1, 3, True, 1, 1, 1, True, False]
    assert run(tmp_path, "same", name) == [0, 0, 3, True, 0, 0, 0, True, False]


def test_what_a_trace_depends_on_leads_to_a_new_one(tmp_path):
    assert run(tmp_path, "changes") == [1, 2, 3, 4, 5, 6, 6]


def test_a_kernel_that_differs_from_torch_is_traced_anew(tmp_path):
    assert run(tmp_path, "other_globals", "unseen") == [1, 3, 2, 3, True, False]
    # In a process with the variables that the trace was kept with, it is good.
    assert run(tmp_path, "other_globals", "unseen")[:2] == [0, 3]


def test_global_variables_belong_to_what_a_trace_is_known_by(tmp_path):
    assert run(tmp_path, "other_globals", "seen") == [1, 3, 2, 6, True, False]
    assert run(tmp_path, "other_globals", "seen") == [0, 6, 0, 6, True, False]


def test_simulators_of_users_are_traced_in_every_process(tmp_path):
    assert run(tmp_path, "of_users") == [2, 0]


def test_a_robot_is_traced_and_compared_with_mujoco_once(tmp_path):
    pytest.importorskip("mujoco")
    *first, sums = run(tmp_path, "robot")
    assert first[0] == first[2] == 1
    assert first[1] >= 1
    assert run(tmp_path, "robot") == [0, 0, 0, sums]
