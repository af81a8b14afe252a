"""The index says what the files say, and the tables say what the index says."""

import io
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from rich.console import Console
from run_files import make_run
from suite_folders import write_suite

import diffsim
from diffsim.cli import main
from diffsim.errors import ConfigError, RunFileError
from diffsim.runs.runfile import RunFile
from diffsim.suites import index, local, tables
from diffsim.suites.index import INDEX, read_row, read_rows, rows
from diffsim.suites.plan import read_plan, resolve
from diffsim.suites.suite_file import read_suite
from diffsim.suites.worker import LOG, WORKER_LOCK, note


@pytest.fixture
def plan(tmp_path):
    """Seeds 0 to 5: finished twice, diverged, killed, queued, and one that failed before it had a file."""
    write_suite(tmp_path, '[matrix]\nseed = "0..5"\n')
    plan = resolve(read_suite(tmp_path / "suite.toml", str(tmp_path / "out")))
    plan.root.mkdir()
    plan.save()
    states = [("finished", ""), ("finished", ""), ("diverged", "10 updates"), ("running", "")]
    for run, (state, reason) in zip(plan.runs, states, strict=False):
        make_run(plan.folder(run), [-30.0, -20.0 - run.seed], state=state, reason=reason)
    plan.folder(plan.runs[5]).mkdir()
    note(plan.folder(plan.runs[5]), "run", "RuntimeError: x", "Traceback ...")
    return plan


STATES = ["finished", "finished", "diverged", "killed", "queued", "failed"]


def test_rows_say_what_the_files_say(plan):
    found = rows(plan)
    assert [row.state for row in found] == STATES
    one = found[1]
    assert (one.last, one.best, one.done, one.updates, one.env_steps, one.seed) == (
        -21.0,
        -21.0,
        10,
        10,
        1000,
        0,
    )
    assert (one.env, one.algorithm, one.optimizer) == ("pendulum", "value_gradient", "adam")
    assert one.wall_seconds == pytest.approx(1.0)
    assert one.success == 0.0 or one.success is None
    assert found[2].reason == "10 updates"
    assert found[5].reason == "RuntimeError: x"
    assert rows(plan) == found  # now from the index
    assert [read_row(plan.folder(run)) for run in plan.runs[:4]] == found[:4]


def test_unchanged_files_are_not_read_again_and_changed_ones_are(plan, monkeypatch):
    rows(plan)
    read = []
    monkeypatch.setattr(index, "read_row", lambda folder: read.append(folder.name) or read_row(folder))
    rows(plan)
    assert read == []
    changed = plan.folder(plan.runs[0])
    (changed / "run.h5").unlink()
    make_run(plan.root / "other", [-1.0])
    (plan.root / "other" / "run.h5").rename(changed / "run.h5")
    note(plan.folder(plan.runs[3]), "machine", "killed by SIGKILL")
    found = rows(plan)
    assert sorted(read) == sorted([changed.name, plan.runs[3].folder])
    assert found[0].last == -1.0
    assert found[3].reason == "killed by SIGKILL"
    shutil.rmtree(changed)
    assert rows(plan)[0].state == "queued"


def test_the_index_is_never_the_truth(plan):
    found = rows(plan)
    (plan.root / INDEX).write_bytes(b"no database at all, but long enough to be taken for one" * 100)
    assert rows(plan) == found
    (plan.root / INDEX).unlink()
    assert rows(plan) == found
    (plan.root / INDEX).unlink()
    (plan.root / INDEX).mkdir()  # as good as a folder that cannot be written
    assert rows(plan) == found


def test_a_run_is_running_while_a_process_holds_its_lock(plan):
    from filelock import FileLock

    with FileLock(plan.folder(plan.runs[3]) / WORKER_LOCK):
        assert [row.state for row in rows(plan)][3] == "running"
    assert [row.state for row in rows(plan)][3] == "killed"


def test_an_unreadable_file_is_one_row(plan):
    (plan.folder(plan.runs[1]) / "run.h5").write_bytes(b"\x89HDF\r\n\x1a\n but no more")
    row = rows(plan)[1]
    assert row.state == "unreadable"
    assert "cannot be read as a run" in row.reason


def test_runs_that_the_suite_no_longer_names_are_kept_and_not_counted(plan):
    make_run(plan.root / "runs" / "old-s0-0123456789ab", [-1.0])
    assert len(rows(plan)) == 6
    assert "old-s0-0123456789ab" in read_rows(plan.root)


def test_status_counts_and_gives_reasons(plan):
    text = tables.status(plan)
    assert text.splitlines()[0].endswith("6 runs, 2 finished, 1 queued, 1 killed, 1 diverged, 1 failed")
    assert f"diverged: {plan.runs[2].folder}: 10 updates" in text
    assert f"failed: {plan.runs[5].folder}: RuntimeError: x" in text
    assert "go on with: diffsim suite resume" in text


def test_the_table_is_over_seeds_and_counts_what_failed(plan):
    heading, line = tables.table(plan).splitlines()[2:4]
    assert " ".join(heading.split()) == "runs finished failed return least largest success steps wall s"
    assert line.split()[:6] == ["Short", "2/6", "2", "-20.5", "-21", "-20"]
    every = tables.table(plan, every_run=True).splitlines()[2:]
    assert [line.split()[1] for line in every[1:7]] == STATES
    assert every[1].split()[2:5] == ["10/10", "-20", "-20"]


def test_logs_are_of_failed_runs_or_of_those_asked_for(plan):
    (plan.folder(plan.runs[5]) / LOG).write_text("Traceback: it broke\x1b[2J\n")
    (plan.folder(plan.runs[0]) / LOG).write_text("all went well\n")
    failed = tables.log_of(plan, None)
    assert "it broke" in failed
    assert "\x1b" not in failed
    assert "all went well" not in failed
    assert "all went well" in tables.log_of(plan, plan.runs[0].folder[:10])
    assert "no run begins with 'zzz'" in tables.log_of(plan, "zzz")


def test_watch_ends_when_nothing_runs_and_nothing_waits(plan, monkeypatch):
    monkeypatch.setattr(tables.time, "sleep", lambda _: make_run(plan.folder(plan.runs[4]), [-3.0]))
    monkeypatch.setattr(local, "is_driven", lambda root: True)
    out = Console(file=io.StringIO(), force_terminal=True, width=100)
    tables.watch(plan, out)
    assert "6 runs, 3 finished" in out.file.getvalue()


def test_watch_ends_where_runs_wait_and_nothing_drives_them(plan):
    out = Console(file=io.StringIO(), force_terminal=True, width=300)
    with local.driving(plan.root):
        assert local.is_driven(plan.root)
    assert not local.is_driven(plan.root)
    tables.watch(plan, out)
    assert f"diffsim suite resume {plan.root}" in out.file.getvalue()


def test_a_finished_run_without_its_file_says_so(plan):
    note(plan.folder(plan.runs[0]), "done", "finished")
    (plan.folder(plan.runs[0]) / "run.h5").unlink()
    row = rows(plan)[0]
    assert (row.state, row.reason) == ("killed", "its run.h5 is missing; it begins again")


def test_looking_at_a_suite_loads_no_torch(plan):
    rows(plan)
    code = (
        "import sys; sys.argv = ['diffsim', 'suite', 'status', sys.argv[1]]\n"
        "from diffsim.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "print(sorted({'torch', 'scipy', 'h5py'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, plan.root], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n"), done.stdout


def test_a_folder_without_a_suite_is_one_line(tmp_path):
    result = CliRunner().invoke(main, ["suite", "status", str(tmp_path)])
    assert result.exit_code == 1
    assert "no suite in" in result.output
    (tmp_path / "suite.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(RunFileError, match="format 99, this diffsim reads 1"):
        read_plan(tmp_path)


def test_a_plan_of_thousands_of_runs_stays_small(tmp_path):
    write_suite(tmp_path, '[matrix]\nseed = "0..1999"\n')
    plan = resolve(read_suite(tmp_path / "suite.toml", str(tmp_path / "out")))
    plan.root.mkdir()
    plan.save()
    assert os.path.getsize(plan.root / "suite.json") < 2000 * 100
    assert len(read_plan(plan.root).runs) == 2000


def test_pruned_runs_are_small_keep_what_can_be_shown_and_cannot_go_on(tmp_path):
    """The default configuration's file, with a shorter run."""
    settings = {"evaluation": {"every": 1, "episodes": 2}, "backend": "eager", "updates": 2}
    file = diffsim.train("pendulum", tmp_path / "run", quiet=True, **settings)
    before, history, policies = file.path.stat().st_size, file.history(), {}
    for name in ("last", "best"):
        policies[name] = file.checkpoint(name)["policy"]
    summary, last = file.summary(), file.checkpoints()["last"]
    file.prune()
    file.prune()
    assert file.path.stat().st_size < 100_000 < before
    assert file.summary() == summary
    assert all(
        np.array_equal(column, file.history()[name], equal_nan=True) for name, column in history.items()
    )
    for name, policy in policies.items():
        again = file.checkpoint(name)["policy"]
        assert all(
            torch.equal(again[key], policy[key]) for key in policy if isinstance(policy[key], torch.Tensor)
        )
    assert file.checkpoints()["last"] == {**last, "pruned": True}
    with pytest.raises(ConfigError, match=r"was pruned to its policies.*--init"):
        diffsim.train(out=file, resume=True, updates=4, quiet=True)
    settings["updates"] = 1
    assert diffsim.train("pendulum", tmp_path / "next", init=file, quiet=True, **settings).exists()
    diffsim.evaluate(file, episodes=1)


def test_only_finished_runs_are_pruned(plan):
    for row in rows(plan):
        file = RunFile(plan.root / "runs" / row.folder)
        if file.exists() and row.state not in ("finished", "unreadable"):
            with pytest.raises(ConfigError, match="only finished runs are pruned"):
                file.prune()
