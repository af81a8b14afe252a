"""A suite of trainings read as a comparison: what its plan and its run files say, and nothing else."""

import dataclasses
import math
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from run_files import make_run

from diffsim.cli import main
from diffsim.comparison.from_suite import comparison_in, comparison_of
from diffsim.errors import RunFileError
from diffsim.runs.runfile import RunFile
from diffsim.suites import index
from diffsim.suites.plan import read_plan, resolve
from diffsim.suites.suite_file import read_suite
from robotics_envs.simulators.pendulum import Pendulum

SUITE = """
[base]
updates = 10
evaluation = {{every = 5, episodes = 3}}
[matrix]
{matrix}
"""


def suite(folder, matrix, states=()):
    """The plan of a suite whose first runs have files: a state, and the returns of the evaluations."""
    (folder / "suite.toml").write_text(SUITE.format(matrix=matrix))
    plan = resolve(read_suite(folder / "suite.toml", str(folder / "out")))
    plan.root.mkdir()
    plan.save()
    for run, (state, returns) in zip(plan.runs, states, strict=False):
        make_run(plan.folder(run), returns, state=state, reason="" if state == "finished" else "not finite")
    return plan


def test_simulators_are_tasks_and_all_else_makes_a_contender(tmp_path):
    plan = suite(
        tmp_path,
        'env = ["pendulum", {name = "cartpole_swingup", pole_length = 0.5},\n'
        '  {name = "cartpole_swingup", pole_length = 0.6}]\n'
        'optimizer = ["adam", "lbfgs"]\nseed = "0..1"\noverrides = [{updates = 5, label = "short"}]\n'
        '[[exclude]]\nenv = "pendulum"\noptimizer = "lbfgs"',
    )
    found = comparison_of(plan)
    assert list(found.tasks) == [
        "pendulum",
        "cartpole_swingup pole_length=0.5",
        "cartpole_swingup pole_length=0.6",
    ]
    assert list(found.contenders) == ["adam-short", "lbfgs-short"]
    assert found.reference == "adam-short"
    assert found.skipped == {"pendulum/lbfgs-short": "not in the suite"}
    assert list(found.seeds) == [0, 1]
    assert found.tasks["pendulum"].threshold.measure == "success"
    assert found.tasks["pendulum"].limits is not None
    assert len(found.planned()) == len(plan.runs)
    assert not found.records


def test_records_hold_what_the_run_files_say(tmp_path, monkeypatch):
    states = [("finished", [-30.0, -20.0]), ("diverged", [-30.0]), ("stopped", [-25.0])]
    plan = suite(tmp_path, 'env = "pendulum"\nseed = "0..3"', states)
    finished, diverged, stopped = comparison_of(plan).of("pendulum", "adam")
    history = RunFile(plan.folder(plan.runs[0])).history()
    measured = np.flatnonzero(np.isfinite(history["return"]))
    assert finished.status == "finished"
    assert finished.curve.score.tolist() == [-30.0, -20.0]
    for axis, column in (
        ("environment_steps", "env_steps"),
        ("wall_seconds", "wall_seconds"),
        ("gradient_evaluations", "gradient_evaluations"),
        ("success", "success"),
    ):
        np.testing.assert_array_equal(getattr(finished.curve, axis), history[column][measured])
    assert not finished.curve.knows("cpu_seconds")
    assert finished.protocol.episodes == 3
    assert (diverged.status, diverged.error) == ("diverged", "not finite")
    assert stopped.status == "unfinished"  # and in no statistic
    # Now from the index: no file is opened.
    monkeypatch.setattr(index, "read_row", lambda _: pytest.fail("a run file was read again"))
    again = comparison_of(plan).of("pendulum", "adam")
    assert [one.curve.score.tolist() for one in again] == [[-30.0, -20.0], [-30.0], [-25.0]]


def test_a_finished_run_without_evaluations_is_in_no_statistic(tmp_path):
    plan = suite(tmp_path, 'env = "pendulum"\nseed = 0', [("finished", [math.nan])])
    (record,) = comparison_of(plan).records
    assert record.status == "unfinished"
    assert not len(record.curve)


def test_a_simulator_of_a_file_is_not_loaded(tmp_path):
    (tmp_path / "own.py").write_text("from robotics_envs.simulators.pendulum import Pendulum as Own\n")
    plan = suite(tmp_path, 'env = "own.py:Own"\nseed = 0', [("finished", [-1.0])])
    (tmp_path / "own.py").write_text("raise SystemExit('executed')\n")
    found = comparison_in(plan.root)
    assert list(found.tasks) == ["Own"]
    assert found.tasks["Own"].threshold.value == Pendulum.success_criterion.share  # as it was at the start
    assert found.tasks["Own"].description == "episodes of 200 intervals of 0.05 s; judged in it"
    # Plans of former versions did not note it.
    dataclasses.replace(plan, tasks={}).save()
    found = comparison_in(plan.root)
    assert found.tasks["Own"].threshold is None
    assert "does not load" in found.tasks["Own"].description


def test_a_report_of_a_suite_loads_no_torch(tmp_path):
    plan = suite(tmp_path, 'env = "pendulum"\nseed = "0..1"', [("finished", [-30.0, -20.0])] * 2)
    index.rows(plan)
    code = (
        "import sys; from diffsim.comparison.report import report; report(sys.argv[1], figures=False); "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(plan.root)], check=True)
    assert "upright" in (plan.root / "report" / "report.md").read_text()


def test_an_index_of_a_former_version_is_made_anew(tmp_path):
    import sqlite3

    plan = suite(tmp_path, 'env = "pendulum"\nseed = 0', [("finished", [-30.0, -20.0])])
    index.rows(plan)
    with sqlite3.connect(plan.root / index.INDEX) as base:
        base.execute("ALTER TABLE runs DROP COLUMN curve")
        base.execute("PRAGMA user_version = 0")
    (record,) = comparison_of(plan).records
    assert record.curve.score.tolist() == [-30.0, -20.0]
    assert [row.state for row in index.rows(read_plan(plan.root))] == ["finished"]


def test_the_command_writes_a_page_of_a_suite(tmp_path):
    states = [("finished", [-30.0, -20.0]), ("finished", [-40.0, -25.0]), ("finished", [-90.0, -60.0])]
    plan = suite(tmp_path, 'env = "pendulum"\noptimizer = ["adam", "sgd"]\nseed = "0..1"', states)
    result = CliRunner().invoke(main, ["report", str(plan.root), "--no-figures"], catch_exceptions=False)
    assert result.exit_code == 0
    page = (plan.root / "report" / "report.md").read_text()
    assert "Suite suite" in page
    assert "sgd" in page
    assert "1 of 4 planned runs has no record yet" in page
    assert not (plan.root / "report" / "figures").exists()
    with pytest.raises(RunFileError, match="no comparison in"):
        comparison_in(tmp_path)
