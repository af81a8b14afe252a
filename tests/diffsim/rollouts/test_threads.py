"""The number of threads that native rollouts have where nobody sets it."""

import pytest
import torch
from torch import nn

from diffsim import isolation
from diffsim.algorithms import value_gradient
from diffsim.assembly import assemble
from diffsim.config import load_config
from diffsim.isolation import available_threads, torch_defaults
from diffsim.rollouts import Rollout
from diffsim.rollouts.threads import LONG, Pace
from robotics_envs import make_env
from solvers.compiler.trace import NativeUnsupportedError
from solvers.native import build


def simulated(few, most, calls, work=100.0):
    """Which calls have the most threads, if a unit of work takes ``few(call)`` or ``most(call)`` seconds."""
    pace, wanted = Pace(), []
    for call in range(calls):
        wanted.append(pace.wants_most(work))
        pace.note(wanted[-1], work, work * (most if wanted[-1] else few)(call))
    return wanted


def test_short_calls_never_have_more():
    assert not any(simulated(lambda call: 0.9 * LONG / 100, lambda call: 0.0, 200))


def test_long_calls_have_what_is_faster_and_try_the_other_now_and_then():
    wanted = simulated(lambda call: 1.0, lambda call: 0.6, 200)
    assert wanted[:6] == [False] * 3 + [True] * 3
    assert [call for call in range(6, 200) if not wanted[call]] == [50, 100, 150]
    wanted = simulated(lambda call: 1.0, lambda call: 1.2, 200)
    assert [call for call in range(200) if wanted[call]] == [3, 4, 5, 50, 100, 150]


def test_what_else_the_processors_do_changes_the_choice():
    # Others begin to work at call 70, and stop at 220.
    wanted = simulated(lambda call: 1.0, lambda call: 0.6 if call < 70 or call > 220 else 2.0, 400)
    assert all(wanted[6:50])
    assert not any(wanted[80:100])
    assert all(wanted[260:300])


def test_one_slow_first_call_decides_nothing():
    assert not any(simulated(lambda call: 1.0 if call == 0 else 0.9 * LONG / 100, lambda call: 0.0, 50))


class Threads:
    """A kernel that notes the number of threads of its calls."""

    def __init__(self, library):
        self.library, self.seen = library, []

    def __getattr__(self, name):
        function = getattr(self.library, name)
        if name not in ("forward", "backward"):
            return function

        def call(arguments):
            self.seen.append(arguments._obj.threads)
            return function(arguments)

        return call


@pytest.fixture
def always(monkeypatch):
    """Every call is long, and more threads are faster."""
    try:
        build._toolchain()
    except NativeUnsupportedError:
        pytest.skip("no C++ compiler")
    monkeypatch.setattr(Pace, "wants_most", lambda self, work: True)


def gradients(rollout, x):
    x = x.clone().requires_grad_()
    trajectory = rollout(x, 8)
    found = torch.autograd.grad(trajectory.costs.sum(), [x, *rollout.policy.parameters()])
    return [trajectory.costs.detach(), *found]


def test_few_rollouts_that_take_long_have_all_threads_and_the_same_bits(always):
    env = make_env("cartpole_swingup")
    torch.manual_seed(0)
    policy = nn.Sequential(nn.Linear(len(env.observation_names), 1))
    x = env.state_box.sample(200, torch.Generator().manual_seed(0), torch.float32)
    before = torch.get_num_threads()
    results, numbers = [], []
    try:
        torch.set_num_threads(3)
        for given in (1, None):
            rollout = Rollout(env, policy, backend="native", threads=given)
            gradients(rollout, x)
            (engine,) = rollout.engines.prepared.values()
            engine.library = Threads(engine.library)
            results.append(gradients(rollout, x))
            numbers.append(engine.library.seen)
    finally:
        torch.set_num_threads(before)
    assert numbers == [[1, 1], [3, 3]]
    assert all(map(torch.equal, *results))


def test_threads_outside_of_a_run_are_known_inside():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert available_threads() == 3
        with torch_defaults(1), torch_defaults(2):
            assert torch.get_num_threads() == 2
            assert available_threads() == 3
        assert available_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_process_that_was_forked_has_one(monkeypatch):
    monkeypatch.setattr(isolation, "_forked", True)
    assert available_threads() == 1


@pytest.mark.parametrize(("changes", "expected"), [({}, None), ({"threads": 1}, 1), ({"shards": 2}, 1)])
def test_a_run_leaves_the_number_open_unless_others_work_beside_it(changes, expected):
    config = load_config({"env": "pendulum", "backend": "native", **changes})
    with torch_defaults(config.threads or 1):
        algorithm = assemble(config).algorithm
    assert isinstance(algorithm, value_gradient.ValueGradient)
    assert algorithm.rollout.threads == expected
