"""One run: what its record holds, however it ends."""

import os
import signal

import numpy as np
import pytest
from short_comparison import SMALL, plan_of, run_of

from diffsim.comparison import judging, read_csv, read_tensorboard, worker
from diffsim.comparison.compare import planned, request
from diffsim.comparison.contenders import white_box
from diffsim.comparison.records import read_record
from diffsim.comparison.worker import record_of_the_dead, record_path, recorded, work
from diffsim.errors import DivergenceError
from diffsim.suites.index import read_row
from diffsim.suites.local import to_do
from diffsim.suites.plan import read_plan
from diffsim.suites.worker import CANCEL, DONE, RUN_FAILED, attempts
from robotics_envs.divergence import DivergenceError as SimulatorDivergence

FULL = "ours full"


def record(plan, run):
    return read_record(record_path(plan.root, run))


@pytest.mark.parametrize("name", [FULL, "ppo"])
def test_a_record_holds_all_that_was_measured_and_set(name, tmp_path):
    budget = ["400steps", "ppo:300steps"] if name == "ppo" else "400steps"
    plan = plan_of(tmp_path, ["ppo"] if name == "ppo" else [], budget=budget)
    run = run_of(plan, name)
    assert work(plan, run) == DONE
    found = record(plan, run)
    assert (found.status, found.error, found.contender, found.seed) == ("finished", "", name, 0)
    steps = found.curve.environment_steps
    limit = 300 if name == "ppo" else 400
    assert steps[0] == 0
    assert steps[-2] < limit <= steps[-1]
    assert (np.diff(found.curve.cpu_seconds) >= 0).all()
    assert found.curve.cpu_seconds[0] == found.curve.wall_seconds[0] == 0.0
    assert found.curve.gradient_evaluations[-1] >= (0 if name == "ppo" else 10)
    assert found.overheads.import_seconds > 0
    assert found.overheads.start_seconds > 0
    assert found.overheads.evaluation_seconds > 0
    assert found.overheads.compile_seconds >= 0
    assert found.overheads.total_seconds > found.overheads.evaluation_seconds
    assert found.protocol.deterministic
    assert found.protocol.episodes == 64
    assert found.settings["budget"]["steps"] == limit
    assert found.settings["settings"]["algorithm"]
    assert {"torch", "python"} <= set(found.provenance["versions"])
    assert found.provenance["command"] == "this test"
    assert "budget" in found.provenance["reason"]
    row = read_row(plan.folder(run))
    assert (row.state, row.last) == ("finished", pytest.approx(found.curve.score[-1]))


def test_curves_are_also_written_for_other_programs(tmp_path, scripted):
    """Point by point while the run trains, and anew by an attempt that begins again."""
    plan = plan_of(tmp_path)
    asked = request(
        [f"{tmp_path}/short_env.py:Short"], [], [SMALL], "1", ["2000steps"], ["csv", "tensorboard"]
    )
    planned(plan.root, asked).save()
    plan = read_plan(plan.root)
    run = plan.runs[-1]
    folder = plan.folder(run)
    for _ in range(2):
        assert work(plan, run) == DONE
        curve = record(plan, run).curve
        (of_csv,) = read_csv(folder / "history.csv", task="t", contender="c")
        for column in ("environment_steps", "score", "cpu_seconds", "gradient_evaluations"):
            assert getattr(of_csv.curve, column) == pytest.approx(getattr(curve, column)), column
        record_path(plan.root, run).unlink()
    assert len(list((folder / "tensorboard").glob("*tfevents*"))) == 2
    (of_events,) = read_tensorboard(
        folder / "tensorboard", task="t", contender="c", columns={"environment_steps": "environment_steps"}
    )
    assert of_events.curve.score == pytest.approx(curve.score)
    assert of_events.curve.environment_steps == pytest.approx(curve.environment_steps)


def test_equal_seeds_give_equal_curves_and_other_seeds_others(tmp_path):
    plan = plan_of(tmp_path, seeds="2", budget="200steps")
    again = plan_of(tmp_path, seeds="2", budget="200steps", out="again")
    for one in (plan, again):
        for seed in (0, 1):
            work(one, run_of(one, FULL, seed))
    first, second = ([record(one, run_of(one, FULL, seed)).curve for one in (plan, again)] for seed in (0, 1))
    assert np.array_equal(first[0].score, first[1].score)
    assert not np.array_equal(first[0].score, second[0].score)


@pytest.fixture
def scripted(monkeypatch):
    """Training and judging that compute nothing: updates of 40 steps, scores that depend on seed and steps alone."""

    def install(error=None, after=0):
        now = [0.0]

        def train(task, settings, seed, meter):
            meter.begin(None)
            for update in range(1, 1000):
                if update == after:
                    raise error
                now[0] = seed + 40 * update
                if not meter.go_on(40 * update, update, None):
                    return

        monkeypatch.setattr(white_box, "train", train)
        monkeypatch.setattr(judging, "make_judge", lambda task: lambda act: (now[0], 0.25))

    install()
    return install


def test_a_crash_is_recorded_with_its_traceback_and_the_curve_until_then(tmp_path, scripted, capfd):
    plan = plan_of(tmp_path)
    run = run_of(plan, FULL)
    scripted(KeyError("lost"), 20)
    assert work(plan, run) == RUN_FAILED
    found = record(plan, run)
    assert found.status == "crashed"
    assert "Traceback" in found.error
    assert "KeyError: 'lost'" in found.error
    assert len(found.curve) > 3
    assert 0 < found.curve.environment_steps[-1] < 2000
    row = read_row(plan.folder(run))
    assert (row.state, row.reason) == ("failed", "KeyError: 'lost'")
    assert run not in to_do(plan, retry_failed=False)
    assert run in to_do(plan, retry_failed=True)
    scripted()
    assert work(plan, run) == DONE
    assert record(plan, run).status == "finished"


def test_a_crash_before_anything_was_measured_is_recorded_too(tmp_path, monkeypatch, capfd):
    plan = plan_of(tmp_path)
    run = run_of(plan, FULL)

    def no_start(*args):
        raise TypeError("no such argument")

    monkeypatch.setattr(white_box, "train", no_start)
    assert work(plan, run) == RUN_FAILED
    assert record(plan, run).status == "crashed"
    assert len(record(plan, run).curve) == 0


@pytest.mark.parametrize("error", [DivergenceError("numbers"), SimulatorDivergence("a state is nan")])
def test_a_divergence_is_an_end_of_its_own_kind(error, tmp_path, scripted, capfd):
    plan = plan_of(tmp_path)
    run = run_of(plan, FULL)
    scripted(error, 20)
    assert work(plan, run) == DONE
    assert record(plan, run).status == "diverged"
    assert record(plan, run).error == str(error)
    assert read_row(plan.folder(run)).state == "diverged"
    assert run not in to_do(plan, retry_failed=True)


def test_a_full_disk_is_the_machines_fault_and_no_crash_of_the_contender(tmp_path, scripted, capfd):
    plan = plan_of(tmp_path)
    run = run_of(plan, FULL)
    scripted(OSError(28, "No space left on device"), 5)
    assert work(plan, run) == worker.MACHINE_FAILED
    assert not record_path(plan.root, run).exists()
    assert run in to_do(plan, retry_failed=False)


def test_what_is_recorded_is_not_run_again_even_if_its_journal_was_lost(tmp_path, scripted, monkeypatch):
    plan = plan_of(tmp_path)
    run = run_of(plan, FULL)
    work(plan, run)
    before = record_path(plan.root, run).stat().st_mtime_ns
    (plan.folder(run) / "attempts.jsonl").unlink()
    monkeypatch.setattr(white_box, "train", None)
    assert work(plan, run) == DONE
    assert record_path(plan.root, run).stat().st_mtime_ns == before
    assert read_row(plan.folder(run)).state == "finished"
    assert len(attempts(plan.folder(run))) == 1


@pytest.mark.parametrize("how", ["signal", "file"])
def test_a_run_that_is_asked_to_stop_leaves_no_record_and_begins_again(how, tmp_path, scripted, monkeypatch):
    plan = plan_of(tmp_path)
    run = run_of(plan, FULL)
    go_on = worker.Meter.go_on

    def stopping(self, steps, *args, **options):
        if steps > 500:
            if how == "signal":
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                (plan.root / CANCEL).touch()
                monkeypatch.setattr("diffsim.suites.worker.PROGRESS_SECONDS", 0.0)
        return go_on(self, steps, *args, **options)

    monkeypatch.setattr(worker.Meter, "go_on", stopping)
    assert work(plan, run) == 128 + signal.SIGTERM
    monkeypatch.setattr(worker.Meter, "go_on", go_on)
    (plan.root / CANCEL).unlink(missing_ok=True)
    assert recorded(plan, run) is None
    assert attempts(plan.folder(run))[-1]["cause"] == "stopped"
    assert read_row(plan.folder(run)).state == "stopped"
    assert run in to_do(plan, False)
    assert work(plan, run) == DONE
    assert record(plan, run).curve.environment_steps[0] == 0


def test_a_process_that_dies_again_and_again_is_recorded_with_its_last_curve(tmp_path, scripted):
    plan = plan_of(tmp_path)
    run = run_of(plan, FULL)
    work(plan, run)
    curve = record(plan, run).curve
    record_path(plan.root, run).unlink()
    with open(plan.folder(run) / worker.CURVE, "a") as lines:
        lines.write('{"environment_steps": 30')  # cut by the kill
    record_of_the_dead(plan, run, "killed by SIGSEGV")
    found = record(plan, run)
    assert (found.status, found.error) == ("crashed", "killed by SIGSEGV")
    assert np.array_equal(found.curve.score, curve.score)
    assert recorded(plan, run) is None
