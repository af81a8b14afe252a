"""Memory that is measured before a run starts, and batches that are divided where they do not fit."""

import pytest
import torch

import diffsim
from diffsim.algorithms.base import Algorithm, Record
from diffsim.assembly import assemble
from diffsim.config import load_config
from diffsim.rollouts.native import TAPE_BYTES
from diffsim.runs import memory
from diffsim.runs.memory import allocations, expected_bytes, with_shards_that_fit

EAGER = {
    "env": "pendulum",
    "backend": "eager",
    "updates": 3,
    "algorithm": {"name": "full_horizon", "batch": 2048, "horizon": 10},
    "evaluation": {"episodes": 1},
}


@pytest.fixture
def small(monkeypatch):
    """Every batch of more than 512 rollouts is measured."""
    monkeypatch.setattr(memory, "SMALL", 512)
    monkeypatch.setattr(memory, "LARGE_ON_CPU", 1)


def test_allocations_are_counted_while_they_live():
    with allocations(torch.device("cpu")) as peak:
        a = torch.zeros(1000, dtype=torch.float64)
        assert peak() == 8000
        b = a + 1
        assert peak() == 16000
        view = b[:10].reshape(2, 5)  # in the memory of b
        assert peak() == 16000
        del b
        c = torch.zeros(500, dtype=torch.float64)  # b lives in its view
        assert peak() == 20000
        del view, c
        torch.zeros(1000, dtype=torch.float64)
        assert peak() == 20000
    a.clone()
    assert peak() == 20000


def test_what_autograd_keeps_for_backward_counts():
    x = torch.ones(1000, dtype=torch.float64, requires_grad=True)
    with allocations(torch.device("cpu")) as peak:
        y = x
        for _ in range(10):
            y = y.exp()  # keeps its result
        assert peak() == 80_000


@pytest.mark.parametrize("backend", ["eager", "native"])
def test_the_estimate_is_what_updates_of_the_whole_batch_allocate(backend, small):
    config = load_config(EAGER, {"backend": backend})
    whole = memory._peak(config, 2048, 1)
    assert whole > 2048 * 10 * 4  # a number for each interval at least
    # Native rollouts have a tape of a bounded size where that is faster, which is not in proportion.
    tape = TAPE_BYTES[1] if backend == "native" else 0
    assert expected_bytes(config, 2048, 1) == pytest.approx(whole, rel=0.2, abs=tape)


def test_the_longest_windows_of_a_run_are_measured(small, monkeypatch):
    seen = []
    monkeypatch.setattr(
        memory, "_peak", lambda config, batch, shards: seen.append(config.algorithm.options) or 1.0
    )
    with_shards_that_fit(
        assemble(load_config({"env": "pendulum", "algorithm": {"batch": 1024}})), lambda line: None
    )
    assert seen[0]["window_end"] == 32
    monkeypatch.undo()
    config = load_config({"env": "pendulum", "backend": "eager", "algorithm": {"window": 2}})
    short, long = (
        memory._peak(
            assemble(load_config(config.model_dump(), {"algorithm": {"window_end": n}})).config, 512, 1
        )
        for n in (4, 32)
    )
    assert long > 4 * short


def test_in_shards_the_graph_of_one_is_in_memory_at_a_time():
    config = load_config(EAGER)
    assert memory._peak(config, 2048, 4) < 0.5 * memory._peak(config, 2048, 1)


def test_a_batch_that_does_not_fit_is_divided_and_gives_the_same_policy(small, monkeypatch, tmp_path, capsys):
    config = load_config(EAGER)
    needed = [expected_bytes(config, 2048, shards) for shards in (1, 2, 4)]
    assert needed[0] > needed[1] > needed[2]
    whole = diffsim.train(out=tmp_path / "whole", **EAGER)
    assert f"memory: about {needed[0] / 1e9:,.1f} GB of" in " ".join(capsys.readouterr().err.split())

    monkeypatch.setattr(memory, "free_bytes", lambda device: needed[2] / memory.MARGIN + 1)
    divided = diffsim.train(out=tmp_path / "divided", **EAGER)
    assert (whole.config().shards, divided.config().shards) == (1, 4)
    said = " ".join(capsys.readouterr().err.split())
    assert "algorithm.batch = 2,048 takes about 0.0 GB, and 0.0 GB are free on this machine" in said
    assert "it is computed in shards = 4" in said
    one, other = (run.checkpoint("last")["policy"] for run in (whole, divided))
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-6)


def test_what_fits_in_no_number_of_shards_is_said_and_left_as_it_is(small, monkeypatch):
    assembly, said = assemble(load_config(EAGER)), []
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1000.0)
    assert with_shards_that_fit(assembly, said.append) is assembly
    assert "still 0.0 GB; 0.0 GB are free on this machine, so it may run out of memory" in said[-1]


def test_measuring_changes_no_bit_of_a_run(monkeypatch, tmp_path):
    plain = diffsim.train(out=tmp_path / "plain", quiet=True, **EAGER)
    monkeypatch.setattr(memory, "SMALL", 512)
    monkeypatch.setattr(memory, "LARGE_ON_CPU", 1)
    after = diffsim.train(out=tmp_path / "after", quiet=True, **EAGER)
    one, other = (run.checkpoint("last")["policy"] for run in (plain, after))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_small_batches_are_not_measured():
    said = []
    assembly = assemble(load_config({"env": "pendulum"}))
    assert with_shards_that_fit(assembly, said.append) is assembly
    assert said == []


class Failing(Algorithm):
    """An algorithm whose update fails."""

    class Settings(diffsim.settings.Settings):
        batch: int = 2048

    def step(self) -> Record:
        raise RuntimeError("no update")

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def test_a_run_that_fails_reports_its_own_error(small, tmp_path):
    with pytest.raises(RuntimeError, match="no update"):
        diffsim.train("pendulum", out=tmp_path / "run", algorithm=Failing, updates=1)
