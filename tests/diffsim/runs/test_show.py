"""Runs as text in 80 columns: one in full, several as a table."""

import h5py
import pytest
from click.testing import CliRunner
from run_files import make_run

from diffsim.cli import main
from diffsim.runs.runfile import RunFile


def show(*paths):
    return CliRunner().invoke(main, ["show", *map(str, paths)], env={"COLUMNS": ""})


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """The paths of runs are short, as a user's are who stands beside them."""
    monkeypatch.chdir(tmp_path)


def rows(output):
    """The table of ``show``, cells by heading, of runs whose line names everything."""
    lines = output.split("\n\n")[1].splitlines()
    return [line.split() for line in lines]


def test_several_runs_are_a_table(tmp_path):
    for seed in (0, 1):
        make_run(tmp_path / f"runs/s{seed}", [-900.0, -170.25 + seed, -200.0], seed=seed, steps=10_000)
    result = show("runs/s0", "runs/s1")
    assert result.exit_code == 0
    assert result.output.startswith(
        "2 runs, simulator pendulum, algorithm value_gradient, optimizer adam; last and\n  best are returns\n\n"
    )
    assert rows(result.output) == [
        ["run", "seed", "state", "updates", "last", "best", "steps", "wall", "s"],
        ["runs/s0", "0", "finished", "15/15", "-200", "-170.2", "150.0k", "2"],
        ["runs/s1", "1", "finished", "15/15", "-200", "-169.2", "150.0k", "2"],
    ]


def test_mixed_runs_fit_eighty_columns_and_lose_nothing(tmp_path):
    make_run(tmp_path / "runs/short", [-1.0])
    name = "runs/a_run_with_quite_a_long_name_that_does_not_fit_into_its_column"
    make_run(tmp_path / name, [-1234.5] * 3, env="quadrotor_planar", optimizer="cma_es", seed=2**62, steps=10**9,
             wall=10_000.0, algorithm={"name": "full_horizon"}, state="stopped", updates=1000)  # fmt: skip
    output = show("runs/short", name).output
    assert max(map(len, output.splitlines())) <= 80
    squeezed = "".join(output.split())
    for text in (
        "quadrotor_planar,full_horizon",
        "cma_es",
        "pendulum",
        "stopped",
        "15/1000",
        "15.0G",
        "-1234",
    ):
        assert text in squeezed, text
    for line in output.splitlines():
        assert "…" not in line


def test_a_wide_terminal_gets_a_column_for_everything(tmp_path, monkeypatch):
    make_run(tmp_path / "runs/a", [-1.0])
    make_run(tmp_path / "runs/b", [-2.0], env="acrobot", optimizer="lbfgs")
    output = CliRunner().invoke(main, ["show", "runs/a", "runs/b"], env={"COLUMNS": "160"}).output
    assert rows(output)[0] == [
        "run", "simulator", "optimizer", "seed", "state", "updates", "last", "best", "steps", "wall", "s",
    ]  # fmt: skip
    assert rows(output)[2][:4] == ["runs/b", "acrobot", "lbfgs", "0"]


def test_the_state_is_the_files_and_the_reason_follows(tmp_path):
    make_run(tmp_path / "done", [-1.0])
    make_run(
        tmp_path / "bad", [-1.0], state="diverged", reason="10 updates in a row were dropped: a smaller lr"
    )
    make_run(tmp_path / "old", [-1.0], state="", updates=50)
    make_run(tmp_path / "new", [], state="stopped", updates=50)
    result = show("done", "bad", "old", "new")
    assert [row[2] for row in rows(result.output)[1:]] == ["finished", "diverged", "stopped", "stopped"]
    assert rows(result.output)[4][3:6] == ["0/50", "-", "-"]
    assert "\n\nbad: 10 updates in a row were dropped: a smaller lr\n" in result.output


def test_what_cannot_be_read_is_a_row_with_the_reason(tmp_path):
    make_run(tmp_path / "good", [-1.0])
    make_run(tmp_path / "future", [-1.0])
    with h5py.File("future/run.h5", "a") as file:
        file.attrs["format_version"] = 99
    make_run(tmp_path / "odd", [-1.0])
    with h5py.File("odd/run.h5", "a") as file:
        del file["history/return"]
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no run")
    result = show("good", "future", "odd", "empty", "notes.txt", "nowhere")
    assert result.exit_code == 0
    states = {row[0]: row[-1] if len(row) == 2 else row[2] for row in rows(result.output)[1:]}
    unreadable = dict.fromkeys(["future", "odd", "empty", "notes.txt", "nowhere"], "unreadable")
    assert states == {"good": "finished", **unreadable}
    text = " ".join(result.output.split())
    assert "future: " in text
    assert "has format version 99" in text
    assert "empty: no run at empty/run.h5" in text or f"empty: no run at {tmp_path}/empty/run.h5" in text
    assert "notes.txt cannot be read as a run" in text
    assert "odd/run.h5 cannot be read as a run" in text


def test_nothing_readable_is_an_error(tmp_path):
    result = show("a", "b")
    assert result.exit_code == 1
    assert "none of these is a run that can be read:" in result.output
    assert "Traceback" not in result.output


def test_one_run_is_shown_in_full_in_eighty_columns(tmp_path):
    make_run(tmp_path / "run", [-1234.56] * 20, steps=10**9, wall=1e4, state="stopped", updates=10**6,
             reason="SIGTERM after update 100, " + "and more words " * 10)  # fmt: skip
    result = show("run")
    assert result.output.startswith(
        "run/run.h5: stopped, 100 of 1000000 updates\n  SIGTERM after update 100, and"
    )
    assert max(map(len, result.output.splitlines())) <= 80
    assert (
        "history\n  update       loss    return      env_steps   gradients   wall_s  grad_norm\n"
        in result.output
    )
    assert "100,000,000,000" in result.output
    assert "best: after update 5, return -1234.6" in result.output


def test_a_run_without_an_update(tmp_path):
    make_run(tmp_path / "run", [], state="stopped")
    output = show("run").output
    assert "history\n  no update yet" in output
    assert "'diffsim evaluate run' makes one" in output


def test_evaluations_are_wrapped(tmp_path):
    file = make_run(tmp_path / "run", [-1.0])
    facts = {"where": "dm_control/some-long-name-of-an-environment-v0", "checkpoint": "best", "update": 5,
             "episodes": 100, "seed": 1000, "mean": -170.0, "low": -180.0, "high": -160.0}  # fmt: skip
    RunFile(file).append_evaluation([-170.0], facts)
    lines = show("run").output.splitlines()
    assert max(map(len, lines)) <= 80
    assert "(update 5): mean return -170.0 [-180.0, -160.0]" in " ".join(" ".join(lines).split())
