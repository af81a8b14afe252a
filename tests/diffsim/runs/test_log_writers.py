"""Logs for other programs: read back by those programs' own readers, resumed, and written to disks that fail."""

import csv
import importlib.util
import math
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from diffsim.errors import ConfigError
from diffsim.runs.log_writers import WRITERS, CsvWriter, TensorBoardWriter, make_writers
from diffsim.runs.runfile import COLUMNS
from lazy_registry.installation import install_command

NAN = float("nan")
needs_tensorboard = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed"
)
KINDS = [
    pytest.param(CsvWriter, id="csv"),
    pytest.param(TensorBoardWriter, id="tensorboard", marks=needs_tensorboard),
]


def row(update, loss=None, measured=NAN):
    values = {name: float(update) for name in COLUMNS}
    loss = 1 / update if loss is None else loss
    return {**values, "update": update, "loss": loss, "return": measured, "env_steps": 100 * update}


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def read_events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def test_csv_holds_the_rows_and_nan_is_empty(tmp_path):
    writer = CsvWriter(tmp_path / "logs" / "history.csv")
    writer(row(1, loss=np.float64(0.1) + 0.2))
    writer(row(2, loss=math.inf, measured=-170.0))
    lines = read_csv(tmp_path / "logs" / "history.csv")  # before it is closed: each row is there at once
    assert list(lines[0]) == list(COLUMNS)
    assert [line["update"] for line in lines] == ["1", "2"]
    assert [float(line["loss"]) for line in lines] == [0.1 + 0.2, math.inf]  # every bit
    assert [line["return"] for line in lines] == ["", "-170.0"]
    assert [line["env_steps"] for line in lines] == ["100", "200"]
    writer.close()
    writer.close()


def test_csv_of_a_resumed_run_replaces_the_rows_that_are_made_again(tmp_path):
    path = tmp_path / "history.csv"
    with_rows(CsvWriter(path), range(1, 8), loss=1.0)
    with open(path, "a") as file:
        file.write("8,1.0,")  # the process was killed here
    with_rows(CsvWriter(path), range(6, 9), loss=2.0)
    lines = read_csv(path)
    assert [int(line["update"]) for line in lines] == list(range(1, 9))
    assert [float(line["loss"]) for line in lines] == [1.0] * 5 + [2.0] * 3
    # Killed between the last cell and the end of its line.
    path.write_text(path.read_text().rstrip("\n"))
    with_rows(CsvWriter(path), [9], loss=3.0)
    assert [int(line["update"]) for line in read_csv(path)] == list(range(1, 10))


def with_rows(writer, updates, **values):
    for update in updates:
        writer(row(update, **values))
    writer.close()


def test_csv_does_not_touch_a_file_of_other_columns(tmp_path):
    path = tmp_path / "history.csv"
    path.write_text("a,b\n1,2\n")
    writer = CsvWriter(path)
    with pytest.warns(
        UserWarning, match=r"history.csv cannot be written: it holds other columns \(a, b\); move it"
    ):
        writer(row(1))
    writer(row(2))
    assert path.read_text() == "a,b\n1,2\n"


@needs_tensorboard
def test_tensorboard_reads_the_rows(tmp_path):
    writer = TensorBoardWriter(tmp_path / "tb")
    before = threading.active_count()
    writer(row(1))
    writer(row(2, measured=-170.0))
    assert threading.active_count() == before
    events = read_events(tmp_path / "tb")  # before it is closed
    assert events.keys() == COLUMNS.keys() - {"update"}
    assert events["loss"] == {1: 1.0, 2: 0.5}
    assert events["return"] == {2: -170.0}
    assert events["env_steps"] == {1: 100.0, 2: 200.0}
    writer.close()
    writer.close()


@needs_tensorboard
def test_tensorboard_of_a_resumed_run_discards_what_is_made_again(tmp_path):
    with_rows(TensorBoardWriter(tmp_path), range(1, 8), loss=1.0)
    with_rows(TensorBoardWriter(tmp_path), range(6, 9), loss=2.0)
    assert read_events(tmp_path)["loss"] == {u: 1.0 if u < 6 else 2.0 for u in range(1, 9)}


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_made_before_the_first_row(kind, tmp_path):
    writer = kind(tmp_path / "log")
    writer.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_a_place_that_cannot_be_written_is_said_once(kind, tmp_path):
    (tmp_path / "file").touch()
    writer = kind(tmp_path / "file" / "log")
    with pytest.warns(
        UserWarning, match=r"file/log cannot be written: (Not a dir|File ex).*training goes on"
    ) as said:
        with_rows(writer, range(1, 4))
    assert len(said) == 1
    writer.close()


FILLING = """
import resource, signal, sys, warnings
sys.path.insert(0, {tests!r})
from test_log_writers import CsvWriter, TensorBoardWriter, row
warnings.simplefilter("always")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))  # as a disk that is full after 2 kB
writer = {kind}({path!r})
for update in range(1, 200):
    writer(row(update))
writer.close()
print("trained to the end")
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limit of file sizes here")
@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_that_fills_up_costs_the_log_and_not_the_run(kind, tmp_path):
    code = FILLING.format(tests=os.path.dirname(__file__), kind=kind.__name__, path=str(tmp_path / "log"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "trained to the end\n"
    assert done.stderr.count("cannot be written: File too large") == 1
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    if kind is CsvWriter:
        # After the disk has space again, the resumed run repairs the torn line.
        with_rows(CsvWriter(tmp_path / "log"), [11])
        assert [int(line["update"]) for line in read_csv(tmp_path / "log")] == list(range(1, 12))


def test_writers_by_name(tmp_path):
    assert make_writers([], tmp_path) == []
    (writer, *others) = make_writers(["csv", "csv"], tmp_path)
    assert others == []
    assert repr(writer) == f"CsvWriter('{tmp_path}/history.csv')"
    with pytest.raises(
        ConfigError, match=r"unknown writer 'tensorbord'; did you mean 'tensorboard'\? known: csv, ten"
    ):
        make_writers(["csv", "tensorbord"], tmp_path)


@needs_tensorboard
def test_all_writers_by_name(tmp_path):
    writers = make_writers(list(WRITERS), tmp_path)
    for writer in writers:
        with_rows(writer, [1])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["history.csv", "tensorboard"]


def test_a_missing_tensorboard_is_named_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr("diffsim.runs.log_writers.find_spec", lambda name: None)
    with pytest.raises(ConfigError) as refused:
        make_writers(["tensorboard"], tmp_path)
    assert str(refused.value) == f"logging to TensorBoard needs tensorboard: {install_command('tensorboard')}"


def test_the_home_folder_and_a_changed_current_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert CsvWriter("~/a.csv").path == tmp_path / "a.csv"
    monkeypatch.chdir(tmp_path)
    writer = CsvWriter("b.csv")
    monkeypatch.chdir("/")
    with_rows(writer, [1])
    assert Path(tmp_path / "b.csv").exists()
