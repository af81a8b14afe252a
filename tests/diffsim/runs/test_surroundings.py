"""What surrounds a run in its process changes no bit of it."""

import contextlib
import multiprocessing
import threading

import numpy as np
import pytest
import torch

import diffsim


def losses(out, **settings):
    small = {"updates": 3, "evaluation": {"episodes": 4}, "algorithm": {"batch": 32}, "quiet": True}
    history = diffsim.train("pendulum", out=out, **small, **settings).history()
    return history["loss"].tobytes() + history["return"].tobytes()


@contextlib.contextmanager
def restored(get, put, value):
    before = get()
    put(value)
    try:
        yield
    finally:
        put(before)


SURROUNDINGS = {
    "float64": lambda: restored(torch.get_default_dtype, torch.set_default_dtype, torch.float64),
    "float16": lambda: restored(torch.get_default_dtype, torch.set_default_dtype, torch.float16),
    "meta device": lambda: torch.device("meta"),
    "three threads": lambda: restored(torch.get_num_threads, torch.set_num_threads, 3),
    "no gradient": torch.no_grad,
    "inference mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "fast matrix products": lambda: restored(
        torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "medium"
    ),
    "flushed denormals": lambda: restored(lambda: False, torch.set_flush_denormal, True),
    "another global seed": lambda: restored(
        torch.get_rng_state, torch.set_rng_state, torch.Generator().manual_seed(99).get_state()
    ),
}


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_a_run_is_the_same_to_the_bit_in_any_surroundings(tmp_path, name):
    plain = losses(tmp_path / "plain")
    with SURROUNDINGS[name]():
        assert losses(tmp_path / "other") == plain
        policy = diffsim.load_policy(tmp_path / "other")
        observation = np.array([1.0, 0.0, 0.5], dtype=np.float32)
        there = policy(observation)
    np.testing.assert_array_equal(there, diffsim.load_policy(tmp_path / "other")(observation))


@pytest.mark.parametrize("optimizer", ["adam", "cma_es"])
def test_runs_in_threads_of_one_process_equal_runs_alone(tmp_path, optimizer):
    settings = [{"seed": seed, "optimizer": optimizer} for seed in range(3)]
    alone = [losses(tmp_path / f"alone{i}", **s) for i, s in enumerate(settings)]
    found: dict[int, bytes] = {}
    threads = [
        threading.Thread(target=lambda i=i, s=s: found.update({i: losses(tmp_path / f"thread{i}", **s)}))
        for i, s in enumerate(settings)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(3)] == alone


def _train_in_child(out, queue):
    queue.put(losses(out))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_fork_after_a_training_trains_the_same(tmp_path):
    expected = losses(tmp_path / "parent")
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_train_in_child, args=(tmp_path / "child", queue))
    child.start()
    assert queue.get(timeout=120) == expected
    child.join()
