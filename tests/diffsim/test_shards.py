"""A batch in shards: the same bits for every number of processes, the whole batch's gradient, and lost processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import diffsim
from diffsim.algorithms.full_horizon import EpisodeObjective
from diffsim.algorithms.value_gradient import ValueGradient
from diffsim.assembly import assemble
from diffsim.config import load_config
from diffsim.errors import ConfigError, ProcessError
from diffsim.processes import Team, team_for
from diffsim.runs.runfile import RunFile
from diffsim.shards import Shards

ROOT = Path(__file__).parents[2]
SMALL = {
    "backend": "eager",
    "dtype": "float32",
    "algorithm": {"name": "value_gradient", "batch": 11, "window": 2, "window_end": 3, "critic_hidden": [4]},
    "policy": {"hidden": [4]},
    "evaluation": {"every": 0, "episodes": 1},
    "checkpoint_every": 2,
}
SHORT = """
import os, time
from robotics_envs.simulators.{module} import {base}
class Short({base}):
    episode_steps = 6
    def reset(self, batch, generator, dtype):
        pause = os.environ.get("PAUSE_OF_SHORT")
        if pause:
            with open(pause + ".seen", "a") as file:
                file.write(".")
            with open(pause) as file:
                time.sleep(float(file.read()))
        return super().reset(batch, generator, dtype)
"""


def tensors(state):
    """Everything in a stored state, in order, as one list."""
    if isinstance(state, dict):
        return [leaf for key in sorted(state, key=str) for leaf in tensors(state[key])]
    if isinstance(state, (list, tuple)):
        return [leaf for entry in state for leaf in tensors(entry)]
    return [state]


def same_state(one, other):
    """Whether two runs could go on with the same bits: networks, optimizers, critic, data, generators."""
    a, b = (tensors(RunFile(run).checkpoint("last")) for run in (one, other))
    return len(a) == len(b) and all(
        (torch.equal(x, y) or bool((x.isnan() == y.isnan()).all() and torch.equal(x.nan_to_num(), y.nan_to_num())))
        if isinstance(x, torch.Tensor)
        else x == y or x != x
        for x, y in zip(a, b, strict=True)
    )  # fmt: skip


def train(place, processes, updates=4, shards=4, **settings):
    return diffsim.train(
        out=place, processes=processes, updates=updates, shards=shards, quiet=True, **{**SMALL, **settings}
    )


@pytest.fixture
def short(tmp_path):
    path = tmp_path / "short_env.py"
    path.write_text(SHORT.format(module="pendulum", base="Pendulum"))
    return f"{path}:Short"


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs", {"name": "cma_es", "popsize": 6}])
def test_one_and_two_processes_give_the_same_bits(tmp_path, short, optimizer):
    for processes in (1, 2):
        train(tmp_path / str(processes), processes, env=short, optimizer=optimizer, shards=3)
    assert same_state(tmp_path / "1", tmp_path / "2")


WHOLE = [
    *((env, optimizer, "value_gradient", updates) for env in ("pendulum", "cartpole_swingup", "crane")
      for optimizer, updates in (("adam", 600), ("lbfgs", 100), ("cma_es", 40))),
    *(("cartpole_swingup", optimizer, algorithm, 30) for algorithm in ("short_window", "full_horizon")
      for optimizer in ("adam", "lbfgs", "cma_es")),
]  # fmt: skip
"""Adam's are default runs; a step of the others simulates many batches."""


@pytest.mark.slow
@pytest.mark.parametrize(("env", "optimizer", "algorithm", "updates"), WHOLE)
def test_one_two_and_four_processes_give_the_same_bits_in_whole_runs(
    tmp_path, env, optimizer, algorithm, updates
):
    settings = {"env": env, "optimizer": optimizer, "algorithm": algorithm, "backend": "auto"}
    settings |= {"evaluation": {"every": 50, "episodes": 64}, "policy": {"hidden": [64, 64]}}
    for processes in (1, 2, 4):
        train(tmp_path / str(processes), processes, updates, **settings)
    assert same_state(tmp_path / "1", tmp_path / "2")
    assert same_state(tmp_path / "1", tmp_path / "4")
    # Stopped, and resumed with another number.
    train(tmp_path / "resumed", 4, updates, stop={"env_steps": 20_000}, **settings)
    diffsim.train(out=tmp_path / "resumed", resume=True, stop={"env_steps": None}, processes=2, quiet=True)
    assert same_state(tmp_path / "1", tmp_path / "resumed")


def test_a_run_is_resumed_with_another_number_of_processes(tmp_path, short):
    train(tmp_path / "whole", 1, env=short, updates=4)
    stopped = train(tmp_path / "parts", 2, env=short, updates=4, stop={"env_steps": 1})
    assert len(stopped.history()["update"]) == 1
    diffsim.train(out=tmp_path / "parts", resume=True, stop={"env_steps": None}, processes=3, quiet=True)
    assert same_state(tmp_path / "whole", tmp_path / "parts")
    whole, parts = (RunFile(tmp_path / name).history() for name in ("whole", "parts"))
    for column in ("loss", "return", "env_steps", "gradient_evaluations", "left_out"):
        assert whole[column].tolist()[-1] == parts[column].tolist()[-1]


def built(**settings):
    return assemble(load_config({"env": "pendulum", **SMALL, "dtype": "float64", **settings})).algorithm


@pytest.mark.parametrize("algorithm", ["value_gradient", "short_window", "full_horizon"])
def test_shards_give_the_gradient_and_the_values_of_the_whole_batch(algorithm):
    options = {"name": algorithm, "batch": 11, **({"horizon": 5} if algorithm == "full_horizon" else {})}
    whole, divided = (built(algorithm=options, shards=shards).objective for shards in (1, 3))
    x = whole.rollout.env.reset(11, torch.Generator().manual_seed(1), torch.float64)
    for objective in (whole, divided):
        objective.begin(x, None if algorithm == "full_horizon" else x.new_zeros(objective.steps, 11, 1))
    one, other = whole.gradient(), divided.gradient()
    # Before the critic is fitted the scale is that of the costs of all windows, however they are divided.
    assert other.loss == pytest.approx(one.loss, rel=1e-12)
    assert other.norm == pytest.approx(one.norm, rel=1e-10)
    torch.testing.assert_close(other.flat(), one.flat(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(divided.simulated().states, whole.simulated().states)
    torch.testing.assert_close(divided.simulated().costs, whole.simulated().costs)
    if algorithm == "value_gradient":
        for a, b in zip(divided.windows, whole.windows, strict=True):
            torch.testing.assert_close(a, b)
    if algorithm == "full_horizon":
        candidates = whole.vector.read() + torch.tensor([[0.1], [-0.2]], dtype=torch.float64)
        torch.testing.assert_close(divided.values(candidates), whole.values(candidates))


def test_windows_that_are_not_finite_count_once_however_they_are_divided():
    whole, divided = (built(shards=shards).objective for shards in (1, 11))
    x = whole.rollout.env.reset(11, torch.Generator().manual_seed(1), torch.float64)
    x[2] = torch.nan  # the whole of a shard
    for objective in (whole, divided):
        objective.begin(x, x.new_zeros(objective.steps, 11, 1))
    one, other = whole.gradient(), divided.gradient()
    assert one.finite
    assert other.loss == pytest.approx(one.loss, rel=1e-12)
    torch.testing.assert_close(other.flat(), one.flat(), rtol=1e-9, atol=1e-12)
    assert divided.simulated().costs.shape == (divided.steps, 11)
    assert divided.windows.ok.tolist() == whole.windows.ok.tolist()
    x[:] = torch.nan
    divided.begin(x, x.new_zeros(divided.steps, 11, 1))
    assert not divided.gradient().finite


def test_only_one_shard_is_simulated_at_a_time(monkeypatch):
    sizes, objective = (
        [],
        built(algorithm={"name": "full_horizon", "batch": 11, "horizon": 5}, shards=4).objective,
    )
    evaluate = EpisodeObjective.evaluate
    monkeypatch.setattr(
        EpisodeObjective, "evaluate", lambda self, x, noise: sizes.append(len(x)) or evaluate(self, x, noise)
    )
    x = objective.rollout.env.reset(11, torch.Generator().manual_seed(1), torch.float64)
    objective.begin(x)
    objective.gradient()
    assert sizes == [3, 3, 3, 2]
    assert objective.evaluations == objective.gradients == 1  # of the whole batch


class Exchanged(Team):
    """A process of several, whose messages a test passes on."""

    def __init__(self, rank, size, messages):
        super().__init__(rank, size)
        self.messages = messages

    def exchange(self, payload, sizes):
        assert len(payload) == sizes[self.rank]
        self.messages[self.rank] = payload
        return [self.messages[rank] if rank in self.messages else torch.zeros(n, dtype=torch.uint8)
                for rank, n in enumerate(sizes)]  # fmt: skip


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_gathering_is_joining_in_the_order_of_shards(size):
    generator, rows = torch.Generator().manual_seed(0), 13
    batch = (
        torch.randn(4, rows, 3, generator=generator),
        torch.rand(rows, generator=generator) < 0.5,
        torch.randn(rows, generator=generator, dtype=torch.float64),
    )
    messages, found = {}, None
    for rank in range(size):
        shards = Shards(5, Exchanged(rank, size, messages) if size > 1 else None)
        own = [[batch[0][:, rows_], batch[1][rows_], batch[2][rows_]] for rows_ in shards.own(rows)]
        found = shards.gather(own, shards.lengths(rows), [1, 0, 0])
    assert all(torch.equal(a, b) for a, b in zip(found, batch, strict=True))


def test_fewer_rows_than_shards_leave_some_empty():
    shards = Shards(4)
    assert shards.lengths(2) == [1, 1, 0, 0]
    (found,) = shards.gather([(torch.arange(2.0)[rows],) for rows in shards.own(2)], shards.lengths(2), [0])
    assert found.tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("settings", "processes", "complaint"),
    [
        ({}, 2, "2 processes need a batch in at least as many shards, and this run has shards = 1"),
        ({"shards": 3}, 4, "4 processes need"),
        ({"shards": 12}, None, r"shards = 12: a batch of algorithm.batch = 11"),
        ({"shards": 0}, None, "shards = 0"),
    ],
)
def test_what_cannot_be_divided_is_said_before_anything_starts(tmp_path, settings, processes, complaint):
    with pytest.raises(ConfigError, match=complaint):
        diffsim.train("pendulum", tmp_path / "out", processes=processes, quiet=True, **{**SMALL, **settings})
    assert not (tmp_path / "out" / "run.h5").exists()


def test_an_algorithm_that_does_not_divide_its_batches_is_refused_shards(monkeypatch):
    monkeypatch.setattr(ValueGradient, "divides_batches", False)
    with pytest.raises(ConfigError, match="'value_gradient' does not divide its batches"):
        built(shards=2)


def test_a_launcher_is_joined_only_by_runs_that_have_shards(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert team_for(None, 1).size == 1  # a script that trains another run in each process
    assert (team_for(None, 2).rank, team_for(2, 2).size) == (1, 2)
    with pytest.raises(ConfigError, match="2 processes need"):
        team_for(2, 1)
    with pytest.raises(ConfigError, match="processes = 3, but the launcher has started 2"):
        team_for(3, 4)


def test_the_number_of_shards_stays_with_the_run(tmp_path, short):
    train(tmp_path / "out", None, env=short, updates=1, shards=2)
    with pytest.raises(ConfigError, match="shards is 2 in the run, 3 was given"):
        diffsim.train(out=tmp_path / "out", resume=True, shards=3, quiet=True)


def command(*words):
    return [sys.executable, "-m", *map(str, words)]


@pytest.fixture
def in_background(tmp_path, short):
    """Starts trainings, and ends those that a failed test leaves."""
    started = []

    def begin(*before, **options):
        started.append(_training(tmp_path, short, *before, **options))
        return started[-1]

    yield begin
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def _training(tmp_path, short, *before, updates=20, processes=()):
    """A training as a command, each of whose updates waits for the number in the file ``pause``."""
    (tmp_path / "pause").write_text("0.5")
    settings = {"algorithm": "full_horizon", "algorithm.batch": 4, "policy.hidden": [4], "backend": "eager"}
    settings |= {"shards": 2, "checkpoint_every": 1000, "evaluation.every": 0, "evaluation.episodes": 1}
    given = [word for key, value in settings.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    return subprocess.Popen(
        [*command(*before), "train", short, "--out", "out", "--updates", str(updates), *given, *processes],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PAUSE_OF_SHORT": str(tmp_path / "pause")},
    )  # fmt: skip


def children(pid):
    """The ids of the processes that one has started."""
    found = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for file in found for child in file.read_text().split()]


def wait_until(condition, seconds=900):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def progressed(tmp_path):
    """Whether both processes are training: each draws initial states once an update, of which one is a try."""
    seen = tmp_path / "pause.seen"
    return seen.exists() and len(seen.read_text()) > 10


def gone(pids):
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def undisturbed(tmp_path, short, updates):
    algorithm = {"name": "full_horizon", "batch": 4}
    settings = {**SMALL, "checkpoint_every": 1000, "algorithm": algorithm}
    return diffsim.train(short, tmp_path / "whole", updates=updates, shards=2, quiet=True, **settings)


def test_a_process_that_dies_ends_the_run_with_a_checkpoint_of_the_last_whole_update(
    tmp_path, short, in_background
):
    process = in_background("diffsim", processes=("--processes", "2"))
    wait_until(lambda: progressed(tmp_path))
    (helper,) = children(process.pid)
    os.kill(helper, signal.SIGKILL)
    (tmp_path / "pause").write_text("0")
    printed, _ = process.communicate(timeout=900)
    assert process.returncode == 1
    assert "process 1 of 2 was killed by SIGKILL" in printed
    assert gone([helper])
    run = RunFile(tmp_path / "out")
    assert run.status()["state"] == "crashed"
    done = len(run.history()["update"])
    assert run.checkpoints()["last"]["update"] == done
    diffsim.train(out=tmp_path / "out", resume=True, processes=1, quiet=True)
    undisturbed(tmp_path, short, 20)
    assert same_state(tmp_path / "whole", tmp_path / "out")


def test_helpers_end_with_the_process_that_started_them(tmp_path, in_background):
    process = in_background("diffsim", processes=("--processes", "2"))
    wait_until(lambda: progressed(tmp_path))
    helpers = children(process.pid)
    process.kill()
    process.communicate()
    wait_until(lambda: gone(helpers))
    assert RunFile(tmp_path / "out").status()["state"] == "killed"


@pytest.mark.parametrize("to", ["first", "second", "all"])
def test_a_signal_to_any_process_stops_all_at_the_same_update(tmp_path, in_background, to):
    process = in_background("diffsim", processes=("--processes", "2"))
    wait_until(lambda: progressed(tmp_path))
    (helper,) = children(process.pid)
    if to == "all":  # Ctrl-C in a terminal
        os.killpg(process.pid, signal.SIGINT)
    else:
        os.kill(process.pid if to == "first" else helper, signal.SIGTERM)
    printed, _ = process.communicate(timeout=900)
    number = signal.SIGINT if to == "all" else signal.SIGTERM
    assert process.returncode == 128 + number, printed
    assert "--resume" in printed
    assert gone([helper])
    run = RunFile(tmp_path / "out")
    assert run.status()["state"] == "stopped"
    assert run.checkpoints()["last"]["update"] == len(run.history()["update"]) > 0


def test_torchrun_trains_one_run_with_all_its_processes(tmp_path, short, in_background):
    (tmp_path / "pause").write_text("0")
    launcher = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "diffsim")
    process = in_background(*launcher, updates=3)
    (tmp_path / "pause").write_text("0")
    printed, _ = process.communicate(timeout=900)
    assert process.returncode == 0, printed
    assert printed.count("finished: 3 updates") == 1
    undisturbed(tmp_path, short, 3)
    assert same_state(tmp_path / "whole", tmp_path / "out")


def test_processes_that_compute_other_numbers_are_told(monkeypatch, tmp_path, short):
    from diffsim.runs.progress import Progress
    from diffsim.runs.run import Run

    class Other(Team):
        def exchange(self, payload, sizes):
            other = payload.clone()
            other.view(torch.float64)[1] += 1
            return [payload, other]

    assembly = assemble(load_config({"env": short, **SMALL}))
    run = Run(RunFile(tmp_path / "out"), assembly.config, assembly, Progress(quiet=True), team=Other(0, 2))
    with pytest.raises(ProcessError, match=r"processes \[1\] have come to other parameters than process 0"):
        run._agreed({"update": 7}, None)
