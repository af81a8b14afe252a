"""The file loses nothing: not to a kill, not to a second writer, not to a foreign or damaged file."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import h5py
import numpy as np
import pytest
import torch

from diffsim.config import load_config
from diffsim.errors import RunFileError
from diffsim.runs.runfile import COLUMNS, RunFile, checkpoint_writer, history_writer

CONFIG = load_config({"env": "pendulum", "seed": 3})


def sections(update):
    columns = {name: [float(i) for i in range(update)] for name in COLUMNS}
    state = {"weights": torch.full((3,), float(update)), "update": update}
    return {
        "history": history_writer(columns),
        "checkpoints/last": checkpoint_writer(state, update=update),
    }


@pytest.fixture
def file(tmp_path):
    file = RunFile(tmp_path / "run")
    file.folder.mkdir()
    file.create(CONFIG, {"python": "3"}, sections(2))
    return file


def test_what_is_written_is_read(file):
    assert file.config() == CONFIG
    assert file.provenance() == {"python": "3", "device": "cpu", "dtype": "float32", "seed": 3}
    assert file.history()["loss"].tolist() == [0.0, 1.0]
    assert file.history()["env_steps"].dtype == np.int64
    assert file.checkpoint()["weights"].tolist() == [2.0, 2.0, 2.0]
    assert file.checkpoints() == {"last": {"update": 2}}
    assert file.evaluations() == []


def test_a_folder_or_its_file_name_the_same_run(file):
    assert RunFile(file.folder).path == RunFile(file.path).path == RunFile(str(file.path)).path


def test_an_update_replaces_its_sections_and_keeps_the_rest(file):
    file.append_evaluation(np.array([-1.0, -2.0]), {"where": "Pendulum-v1", "mean": -1.5})
    best = {"checkpoints/best": checkpoint_writer({"weights": torch.zeros(1)}, update=1)}
    file.update(best)
    file.update(sections(5))
    assert len(file.history()["loss"]) == 5
    assert file.checkpoints() == {"last": {"update": 5}, "best": {"update": 1}}
    assert file.checkpoint("best")["weights"].tolist() == [0.0]
    (evaluation,) = file.evaluations()
    assert evaluation["where"] == "Pendulum-v1"
    assert evaluation["returns"].tolist() == [-1.0, -2.0]
    assert file.provenance()["python"] == "3"


def test_evaluations_are_numbered_in_order(file):
    for mean in (-3.0, -2.0, -1.0):
        file.append_evaluation(np.array([mean]), {"mean": mean})
    assert [e["mean"] for e in file.evaluations()] == [-3.0, -2.0, -1.0]


def test_the_file_does_not_grow_with_the_number_of_updates(file):
    file.update(sections(5))
    size = file.path.stat().st_size
    for _ in range(20):
        file.update(sections(5))
    assert file.path.stat().st_size == size


def test_a_second_run_in_the_same_place_is_refused(file):
    before = file.path.read_bytes()
    with pytest.raises(RunFileError, match=r"already holds a run; continue it with --resume"):
        file.create(CONFIG, {}, sections(1))
    assert file.path.read_bytes() == before


def test_a_full_disk_leaves_the_old_file(file, monkeypatch):
    before = file.path.read_bytes()

    def no_space(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(RunFileError, match="No space left on device; what it held before is unchanged"):
        file.update(sections(5))
    assert file.path.read_bytes() == before
    assert not list(file.folder.glob("*.tmp"))


def test_a_kill_at_any_moment_leaves_a_whole_file(file):
    """A process that rewrites the file in a loop is killed at twelve different moments."""
    # One process loads the packages; those to be killed are copies of it.
    code = textwrap.dedent(f"""
        import itertools, os, sys
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        from test_runfile import RunFile, sections
        file = RunFile({str(file.folder)!r})
        for _ in sys.stdin:
            if pid := os.fork():
                _, status = os.waitpid(pid, 0)
                print(os.waitstatus_to_exitcode(status), flush=True)
                continue
            first = len(file.history()["loss"]) + 1
            file.update(sections(first))
            print(os.getpid(), flush=True)
            for n in itertools.count(first + 1):
                file.update(sections(n))
    """)
    lengths = []
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    for i in range(12):
        process.stdin.write("again\n")
        process.stdin.flush()
        pid = int(process.stdout.readline())
        time.sleep(0.03 + 0.011 * i)
        os.kill(pid, signal.SIGKILL)
        assert int(process.stdout.readline()) == -signal.SIGKILL
        history, state = file.history(), file.checkpoint()
        assert len(history["loss"]) == state["update"] == int(state["weights"][0])
        lengths.append(state["update"])
    process.stdin.close()
    assert process.wait() == 0
    process.stdout.close()
    assert lengths == sorted(lengths)
    assert lengths[-1] > 10  # the loop did run


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_one_clear_line_and_stays_as_it_is(file, share):
    whole = file.path.read_bytes()
    cut = whole[: int(len(whole) * share)]
    file.path.write_bytes(cut)
    for read in (file.config, file.history, file.checkpoint, file.evaluations, file.provenance):
        with pytest.raises(RunFileError, match=r"run\.h5 cannot be read as a run") as caught:
            read()
        assert "\n" not in str(caught.value)
    with pytest.raises(RunFileError):
        file.update(sections(9))
    with pytest.raises(RunFileError):
        file.append_evaluation(np.zeros(1), {})
    assert file.path.read_bytes() == cut


def test_a_file_that_vanished_is_named(file):
    file.path.unlink()
    with pytest.raises(RunFileError, match="has vanished since it was opened"):
        file.update(sections(3))


def test_foreign_files_are_named_for_what_they_are(tmp_path):
    text = tmp_path / "text.h5"
    text.write_text("not HDF5 at all")
    with pytest.raises(RunFileError, match=r"text\.h5 cannot be read as a run: .*signature"):
        RunFile(text).config()
    foreign = tmp_path / "foreign.h5"
    with h5py.File(foreign, "w") as f:
        f["data"] = [1, 2, 3]
    with pytest.raises(RunFileError, match=r"is an HDF5 file, but not a diffsim run"):
        RunFile(foreign).config()
    with pytest.raises(RunFileError, match=r"no run at .*nowhere.*diffsim train ENV --out"):
        RunFile(tmp_path / "nowhere").config()


def test_a_file_of_a_later_format_is_refused(file):
    with h5py.File(file.path, "r+") as f:
        f.attrs["format_version"] = 99
    with pytest.raises(RunFileError, match="format version 99; this diffsim reads up to 2"):
        file.history()


def test_a_file_of_the_first_format_is_read_and_gone_on_with(file):
    # Not above: the process that is killed imports this file from its own folder.
    from first_format import write_entry_by_entry
    from same_state import same

    state = {"weights": torch.full((3,), 7.0), 0: [1, None, {"a/b": (2.5, "text")}]}
    with h5py.File(file.path, "r+") as f:
        f.attrs["format_version"] = 1
        for name in ("last", "best"):
            f.require_group(f"checkpoints/{name}").pop("state", None)
            write_entry_by_entry(f[f"checkpoints/{name}"], "state", state)
    assert same(file.checkpoint("best"), state)
    file.update(sections(5))
    assert same(file.checkpoint("best"), state)  # copied as it was
    assert file.checkpoint()["weights"].tolist() == [5.0, 5.0, 5.0]
    with h5py.File(file.path) as f:
        assert f.attrs["format_version"] == 2  # an older diffsim says so instead of failing at the new part


def test_a_state_whose_index_leads_outside_is_one_clear_line(file):
    with h5py.File(file.path, "r+") as f:
        state = f["checkpoints/last/state"]
        index = state["index"][()].decode().replace("[3]", "[3000]")
        del state["index"]
        state["index"] = index
    with pytest.raises(RunFileError, match="cannot be read as a run"):
        file.checkpoint()


def test_a_run_without_a_part_says_which(file):
    with h5py.File(file.path, "r+") as f:
        del f["history/loss"]
    with pytest.raises(RunFileError, match=r"cannot be read as a run: .*loss"):
        file.history()


def test_an_unknown_checkpoint_is_answered_with_the_list(file):
    with pytest.raises(RunFileError, match="unknown checkpoint 'lst'; did you mean 'last'"):
        file.checkpoint("lst")


def test_one_trainer_at_a_time(file):
    code = f"from diffsim import RunFile\nwith RunFile({str(file.folder)!r}).training_lock(): pass"
    with file.training_lock():
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "another process is training" in done.stderr
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_a_clear_error(file):
    file.folder.chmod(0o500)
    try:
        with pytest.raises(RunFileError, match="cannot write in"):
            file.append_evaluation(np.zeros(1), {})
        assert file.history()["loss"].size == 2
    finally:
        file.folder.chmod(0o700)
        shutil.rmtree(file.folder)
