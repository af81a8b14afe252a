"""What the process around a run has set in torch does not change the run, nor the other way round."""

import contextlib
import functools
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

import diffsim
from diffsim.assembly import assemble
from diffsim.config import Named, PolicyConfig, load_config
from diffsim.isolation import drawing_from, torch_defaults
from diffsim.optimizers import Objective, make_optimizer
from diffsim.policy import MLP, initialised, make_policy
from robotics_envs import make_env

CPU = torch.device("cpu")


@contextlib.contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def default_device(device):
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


SURROUNDINGS = {
    "float64": lambda: default_dtype(torch.float64),
    "float16": lambda: default_dtype(torch.float16),
    "meta": lambda: default_device("meta"),
    "device context": lambda: torch.device("meta"),
    "two threads": lambda: threads(2),
    "four threads": lambda: threads(4),
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


class Own(nn.Module):
    """A user's network that says neither dtype nor device and draws in several ways."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.first = nn.Linear(inputs, 32)
        self.last = nn.Linear(32, outputs)
        nn.init.trunc_normal_(self.first.weight)
        self.gain = nn.Parameter(
            torch.rand(()) + torch.randn(3).mean() + nn.functional.dropout(torch.ones(8)).sum()
        )
        self.order = nn.Buffer(torch.randperm(32))

    def forward(self, z):
        return self.last(torch.tanh(self.first(z))[:, self.order]) * self.gain


@pytest.mark.parametrize("surrounding", SURROUNDINGS)
@pytest.mark.parametrize("name", ["mlp", "test_isolation:Own"])
def test_a_policy_is_the_same_whatever_surrounds_it(name, surrounding):
    def made():
        policy = make_policy(PolicyConfig(name=name), make_env("pendulum"), 3, CPU, torch.float32)
        assert not any(q.is_inference() for q in policy.state_dict().values())
        return policy.state_dict()

    wanted = made()
    random = torch.get_rng_state()
    with SURROUNDINGS[surrounding]():
        before = (torch.get_default_dtype(), torch.get_default_device(), torch.get_num_threads())
        found = made()
        assert before == (torch.get_default_dtype(), torch.get_default_device(), torch.get_num_threads())
    assert torch.equal(random, torch.get_rng_state())
    assert all(found[k].dtype == q.dtype and torch.equal(found[k], q) for k, q in wanted.items())


def updated(name):
    """Losses of three updates, and the policy."""
    short = {"horizon": 30} if name == "full_horizon" else {}
    settings = {
        "algorithm": {"name": name, "batch": 8, **short}, "policy": {"hidden": [8]}, "updates": 3,
    }  # fmt: skip
    with torch_defaults(threads=1):
        algorithm = assemble(load_config({"env": "pendulum", **settings})).algorithm
        losses = [algorithm.step().loss for _ in range(3)]
    return losses, algorithm.policy.state_dict()


updated_alone = functools.cache(updated)


@pytest.mark.parametrize("surrounding", SURROUNDINGS)
@pytest.mark.parametrize("algorithm", ["short_window", "full_horizon"])
def test_updates_inside_the_defaults_are_the_same_whatever_surrounds_them(algorithm, surrounding):
    losses, wanted = updated_alone(algorithm)
    with SURROUNDINGS[surrounding]():
        again, found = updated(algorithm)
    assert again == losses
    assert all(torch.equal(found[k], q) for k, q in wanted.items())


def test_initialised_draws_what_the_global_generator_would_with_that_seed():
    torch.manual_seed(5)
    wanted = MLP(3, 2).state_dict()
    found = initialised(lambda: MLP(3, 2), 5).state_dict()
    assert all(torch.equal(found[k], q) for k, q in wanted.items())


OPERATIONS = {
    "rand": lambda: torch.rand(7),
    "randn": lambda: torch.randn(40),
    "randint": lambda: torch.randint(3, 900, (7,)),
    "randperm": lambda: torch.randperm(9),
    "rand_like": lambda: torch.rand_like(torch.ones(7)),
    "randn_like": lambda: torch.randn_like(torch.ones(7)),
    "randint_like": lambda: torch.randint_like(torch.ones(7), 900),
    "normal": lambda: torch.normal(torch.zeros(7), torch.ones(7)),
    "normal_": lambda: torch.empty(40).normal_(),
    "uniform_": lambda: torch.empty(7).uniform_(),
    "bernoulli": lambda: torch.bernoulli(torch.full((64,), 0.5)),
    "multinomial": lambda: torch.multinomial(torch.ones(64), 9),
    "exponential_": lambda: torch.empty(7).exponential_(),
    "random_": lambda: torch.empty(7).random_(),
    "dropout": lambda: nn.functional.dropout(torch.ones(64)),
    "out": lambda: torch.rand(7, out=torch.empty(7)),
    "vmap": lambda: torch.func.vmap(lambda x: x + torch.randn(3), randomness="different")(torch.zeros(4, 3)),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_random_operation_draws_from_the_given_generator(operation):
    draw = OPERATIONS[operation]
    torch.manual_seed(8)
    wanted = draw(), draw()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    generator = torch.Generator().manual_seed(8)
    with drawing_from(generator):
        first = draw()
    with drawing_from(generator) as drawing:
        with drawing.paused():
            assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(1)))
        second = draw()
    torch.manual_seed(1)
    torch.rand(3)
    assert torch.equal(first, wanted[0])
    assert torch.equal(second, wanted[1])
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_generator_that_is_given_is_used_and_an_exception_puts_the_other_back():
    generator, other = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    before = generator.get_state()
    with drawing_from(generator):
        drawn = torch.rand(4, generator=other)
    assert torch.equal(drawn, torch.rand(4, generator=torch.Generator().manual_seed(2)))
    with pytest.raises(ZeroDivisionError), drawing_from(generator):
        torch.rand(int(torch.rand(4).numel() / 0))
    assert torch.equal(before, generator.get_state())


def test_the_default_dtype_comes_back_when_the_last_thread_has_left():
    inside, leave = threading.Event(), threading.Event()

    def other():
        with torch_defaults():
            inside.set()
            leave.wait(30)

    thread = threading.Thread(target=other)
    with default_dtype(torch.float64):
        with torch_defaults():
            thread.start()
            inside.wait(30)
        assert torch.get_default_dtype() == torch.float32
        leave.set()
        thread.join()
        assert torch.get_default_dtype() == torch.float64


TOGETHER = [
    {"optimizer": "adam"},
    {"optimizer": {"name": "cma_es", "popsize": 6}},
    {"optimizer": {"name": "pgpe", "popsize": 6}},
    {"optimizer": {"name": "pso", "popsize": 6}},
    {"optimizer": "adam", "seed": 1},
]


def test_trainings_in_threads_of_one_process_are_those_alone(tmp_path):
    """Beside them a thread draws from the global generator and seeds it, as other parts of a program may."""

    def losses(settings, out):
        shared = {"algorithm": {"batch": 8}, "policy": {"hidden": [8]}, "evaluation": {"episodes": 2}}
        return diffsim.train(
            "pendulum", out=tmp_path / out, updates=4, quiet=True, **shared, **settings
        ).history()["loss"]

    alone = [losses(settings, f"alone{i}") for i, settings in enumerate(TOGETHER)]
    stop = threading.Event()

    def disturb():
        while not stop.is_set():
            torch.manual_seed(0)
            torch.rand(3)

    disturbing = threading.Thread(target=disturb)
    disturbing.start()
    try:
        with ThreadPoolExecutor(len(TOGETHER)) as pool:
            together = list(pool.map(losses, TOGETHER, [f"together{i}" for i in range(len(TOGETHER))]))
    finally:
        stop.set()
        disturbing.join()
    assert all(map(np.array_equal, alone, together))


POPULATIONS = ["cma_es", "openai_es", "pgpe", "pso", "differential_evolution"]


@pytest.mark.parametrize("name", ["adam", "lbfgs", "lbfgsb", *POPULATIONS])
@pytest.mark.parametrize("surrounding", ["float64", "float16", "meta"])
def test_an_optimizer_steps_the_same_whatever_surrounds_it(name, surrounding):
    def stepped():
        parameter = nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float32, device="cpu"))
        options = {"popsize": 8} if name in POPULATIONS else {}
        optimizer = make_optimizer([parameter], Named(name=name, **options), 3)
        for _ in range(3):
            optimizer.step(Objective.of([parameter], lambda: (parameter**2).sum(), lambda c: (c**2).sum(1)))
        return parameter.tolist()

    wanted = stepped()
    with SURROUNDINGS[surrounding]():
        assert stepped() == wanted


FORKED = """
import os, sys, torch
from diffsim.errors import ConfigError
from diffsim.isolation import torch_defaults

big = torch.ones(600, 600)
torch.set_num_threads(2)
big @ big  # starts the threads that a forked process does not have
pid = os.fork()
if pid == 0:
    with torch_defaults(threads=1):
        assert (big @ big)[0, 0] == 600.0
        torch.linalg.qr(big)
    try:
        with torch_defaults(threads=2):
            os._exit(1)
    except ConfigError as error:
        os._exit(0 if "threads = 2" in str(error) and "spawn" in str(error) else 2)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_forked_process_computes_on_one_thread_and_refuses_more():
    """With more, OpenMP waits for threads that the fork left behind."""
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", FORKED], timeout=120).returncode == 0


def test_drawing_from_a_generator_does_not_load_torchs_compiler():
    """Which takes longer than loading torch."""
    code = (
        "import sys, torch\n"
        "from diffsim.isolation import drawing_from\n"
        "with drawing_from(torch.Generator().manual_seed(0)):\n"
        "    torch.rand(2)\n"
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
