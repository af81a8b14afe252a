"""Records are what they were after a round through files, and refuse what they cannot mean."""

import dataclasses
import json
import math

import numpy as np
import pytest
import synthetic

from diffsim.comparison import (
    Comparison,
    Contender,
    Curve,
    Limits,
    Overheads,
    Task,
    Threshold,
    read_comparison,
    read_record,
    record_path,
    write_comparison,
    write_record,
)
from diffsim.errors import ConfigError, RunFileError

TASK = Task(Threshold(-170.0, "before", "score"), Limits(-1280, -150, "table"), "swing up")


def record(**changes):
    made = synthetic.run(
        "pendulum", "PPO", 3, synthetic.rising(60, -150, -1280, 0.1), overheads=Overheads(1.0, compile_seconds=2.5),
        about_task=TASK, about_contender=Contender("reference", "x", "y", "z", "w"), budget={"cpu_seconds": 60},
        settings={"net": {"hidden": (64, 64)}, "lr": np.float32(0.5), "end": math.inf, "none": None},
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def test_a_record_survives_a_file(tmp_path):
    path = record_path(tmp_path, "pendulum", "PPO", 3)
    write_record(path, record())
    found = read_record(path)
    for name in (
        "environment_steps",
        "cpu_seconds",
        "wall_seconds",
        "gradient_evaluations",
        "score",
        "success",
    ):
        assert np.array_equal(getattr(found.curve, name), getattr(record().curve, name))
    assert math.isnan(found.overheads.start_seconds)
    assert found.overheads.compile_seconds == 2.5
    same = (
        "task",
        "contender",
        "seed",
        "status",
        "error",
        "about_task",
        "about_contender",
        "protocol",
        "budget",
    )
    assert all(getattr(found, name) == getattr(record(), name) for name in same)
    assert found.settings == {"net": {"hidden": [64, 64]}, "lr": 0.5, "end": "inf", "none": None}
    assert [p.name for p in path.parent.iterdir()] == ["3.h5"]


@pytest.mark.parametrize(
    "name", ["../../x", "..", ".", "a/b", "<script>", "mjcf:robot.xml", "a b", ".hidden"]
)
def test_names_stay_in_the_folder(tmp_path, name):
    path = record_path(tmp_path, name, name, 0)
    assert path.resolve().relative_to(tmp_path.resolve() / "records")
    assert len(path.relative_to(tmp_path).parts) == 4
    write_record(path, record(task=name, contender=name))
    (found,) = read_comparison(tmp_path).records
    assert (found.task, found.contender) == (name, name)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"cpu_seconds": [0.0, 2, 1]}, "not decreasing"),
        ({"cpu_seconds": [0.0, math.nan, 1]}, "NaN everywhere"),
        ({"environment_steps": [-1.0, 0, 1]}, "not negative"),
        ({"wall_seconds": [0.0, 1]}, "equally long"),
        ({"success": [0.0, 1.5, 1]}, "within"),
        ({"score": [0.0, math.inf, 1]}, "diverged"),
        ({"score": [[0.0, 1, 2]]}, "one axis"),
    ],
)
def test_curves_that_mean_nothing_are_refused(arrays, words):
    with pytest.raises(ConfigError, match=words):
        Curve.of(**{"score": [1.0, 2, 3], **arrays})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"status": "done"}, "status = 'done'"),
        ({"status": "crashed"}, "say why"),
        ({"seed": -1}, "negative"),
        ({"task": ""}, "needs a task"),
        ({"curve": Curve.of([])}, "at least one evaluation"),
    ],
)
def test_records_that_mean_nothing_are_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        record(**changes)


def test_what_json_cannot_hold_is_refused_before_anything_is_written(tmp_path):
    path = tmp_path / "x.h5"
    with pytest.raises(ConfigError, match="cannot be stored"):
        write_record(path, record(settings={"f": object()}))
    assert not path.exists()


def test_the_curve_is_a_copy():
    x = np.array([0.0, 1.0])
    curve = Curve.of([1.0, 2.0], cpu_seconds=x)
    x[0] = 9
    assert curve.cpu_seconds[0] == 0
    with pytest.raises(ValueError, match="read-only"):
        curve.score[0] = 1


def test_records_alone_make_the_comparison(tmp_path):
    synthetic.write(tmp_path, synthetic.six_tasks(2, 5))
    whole = read_comparison(tmp_path)
    (tmp_path / "comparison.json").unlink()
    alone = read_comparison(tmp_path)
    assert alone.tasks == dict(sorted(whole.tasks.items()))
    assert dict(alone.contenders) == dict(whole.contenders)
    assert alone.budget == whole.budget
    assert alone.reference == "diffsim"
    assert len(alone.records) == len(whole.records) == 72


def test_a_plan_without_all_records(tmp_path):
    plan = synthetic.six_tasks(2, 5)
    write_comparison(tmp_path, plan)
    assert read_comparison(tmp_path).records == ()
    first = plan.records[0]
    write_record(record_path(tmp_path, *first.key), first)
    damaged = record_path(tmp_path, *plan.records[1].key)
    damaged.write_bytes(b"half")
    found = read_comparison(tmp_path)
    assert [r.key for r in found.records] == [first.key]
    assert list(found.unreadable) == [damaged.relative_to(tmp_path).as_posix()]
    assert len(found.planned()) == 72


def test_skipped_pairs_are_not_planned():
    plan = Comparison({"a": Task(), "b": Task()}, {"x": Contender()}, [0, 1], skipped={"a/x": "too slow"})
    assert plan.planned() == [("b", "x", 0), ("b", "x", 1)]


def test_what_is_no_comparison_says_so(tmp_path):
    with pytest.raises(RunFileError, match="no comparison"):
        read_comparison(tmp_path)
    (tmp_path / "comparison.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(RunFileError, match="no plan of a comparison"):
        read_comparison(tmp_path)
    with pytest.raises(ConfigError, match="one contender is the reference"):
        Comparison({}, {"a": Contender("reference"), "b": Contender("reference")}, [])
    with pytest.raises(ConfigError, match="budget"):
        Comparison({}, {}, [], {"hours": 1})


def test_what_records_add_to_a_plan_is_not_missing_elsewhere(tmp_path):
    """Results of another program for one task, with a seed that nobody else has."""
    tasks, contenders = {"a": Task(), "b": Task()}, {"ours": Contender("reference"), "ppo": Contender()}
    plan = Comparison(tasks, contenders, [0, 1], skipped={"b/ppo": "not asked for"})
    write_comparison(tmp_path, plan)
    before = planned_in(tmp_path)
    assert before == set(plan.planned())
    added = [("a", "theirs", 57), ("c", "ours", 0)]
    for key in [*added, ("a", "ours", 0)]:
        write_record(record_path(tmp_path, *key), synthetic.run(*key, synthetic.rising(10, 1, 0, 1)))
    assert planned_in(tmp_path) == before | set(added)
    (tmp_path / "comparison.json").unlink()
    assert planned_in(tmp_path) == {*added, ("a", "ours", 0)}


def planned_in(folder):
    return set(read_comparison(folder).planned())
