"""CUDA rollouts on a CPU that executes the threads of a block in turn: the same text as on a device, which has more."""

from types import SimpleNamespace

import pytest
import torch
from test_rollouts import (
    F32,
    F64,
    OTHERS,
    SIMULATORS,
    Echo,
    FinalCost,
    Normalised,
    Pass,
    TwoHeads,
    compare,
    make_policy,
    objective,
    problem,
    simulator,
)
from torch import nn

from diffsim.policy import MLP
from diffsim.rollouts import Noise, Rollout, cuda_native
from diffsim.rollouts import engines as engines_module
from diffsim.rollouts.cuda_native import CudaNative
from diffsim.rollouts.inputs import UnsupportedError
from diffsim.rollouts.translation_cuda import laid_out
from examples.cartpole import CartPole
from solvers.compiler.fixed_point import fixed_point
from solvers.compiler.trace import NativeUnsupportedError
from solvers.cuda import nvrtc
from solvers.native import build

try:
    build._toolchain()
except NativeUnsupportedError:
    pytest.skip("there is no C++ compiler", allow_module_level=True)

SIZES = (1, 63, 64, 1000)


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setattr(CudaNative, "devices", ("cuda", "cpu"))


def agrees(name, dtype, tolerance, caplog, closed=True, steps=3, sizes=SIZES):
    env = simulator(name)
    policy, terminal = make_policy(env, dtype=dtype), FinalCost(env, dtype)
    for batch in sizes:
        compare(
            env,
            policy,
            batch,
            steps,
            dtype,
            "cuda_native",
            tolerance,
            closed,
            terminal if closed else None,
            caplog,
        )


@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [("cartpole", F64, 1e-10), ("cartpole", F32, 1e-4), ("pendulum", F64, 1e-10)],
)
def test_closed_loop(name, dtype, tolerance, caplog):
    agrees(name, dtype, tolerance, caplog)


def test_open_loop(caplog):
    agrees("pendulum", F32, 1e-4, caplog, closed=False)


@pytest.mark.slow
@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-10), (F32, 1e-4)])
@pytest.mark.parametrize("name", SIMULATORS)
def test_what_native_is_tried_on(name, dtype, tolerance, closed, caplog):
    agrees(name, dtype, tolerance, caplog, closed)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_every_other_simulator(name, caplog):
    agrees(name, F64, 1e-9, caplog, steps=8, sizes=(1, 63, 64))


@pytest.mark.parametrize("network", [Normalised, TwoHeads])
def test_layers(network, caplog):
    """Norms with scale and shift, activations that are no tanh, several users of one buffer, a head nobody reads."""
    env = CartPole()
    compare(env, make_policy(env, network), 70, 3, F64, "cuda_native", 1e-10, caplog=caplog)


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [(64, 64), (130,), (256, 256), (12, 3)])
@pytest.mark.parametrize("dtype", [F64, F32])
def test_widths(hidden, dtype, caplog):
    """With and without copies of the weights, and sums in and outside of the block's memory."""
    env = CartPole()
    policy = make_policy(env, lambda o, m: MLP(o, m, hidden), dtype=dtype)
    compare(env, policy, 70, 3, dtype, "cuda_native", 1e-4 if dtype == F32 else 1e-10, caplog=caplog)


class Damped(Echo):
    """A backward Euler step of dx/dt = u - x³, by Newton's method."""

    def step(self, x, u, p):
        def newton(q, given):
            start, push = given[:, :6], given[:, 6:]
            rest = q + 0.1 * q**3 - start - 0.1 * push
            moved = q - rest / (1 + 0.3 * q**2)
            return moved, torch.where(rest.abs().sum(-1) > 1e-12, 1.0, 0.0)

        following = fixed_point(newton, x, torch.cat((x, u), -1), 20)
        return following, following.square().sum(-1)


def test_a_loop_until_it_settles(caplog):
    """Every thread ends its loop by itself; a vector of a CPU ends it together."""
    env = Damped()
    compare(env, make_policy(env), 70, 3, F64, "cuda_native", 1e-10, caplog=caplog)


def gradient(env, policy, batch, **arguments):
    x, p, noise, _ = problem(env, batch, 4)
    rollout = Rollout(env, policy, backend="cuda_native")
    got = rollout(x, 4, p, noise=noise, **arguments)
    wanted = [x, noise, *p.values(), *policy.parameters()]
    return torch.autograd.grad(objective(got.last, got.costs, got.states, got.values), wanted)


def test_no_order_of_threads_changes_a_bit(monkeypatch):
    """A missing barrier shows: what a thread reads of another depends on which of them comes first then."""
    env = CartPole()
    policy = make_policy(env)
    runs = [gradient(env, policy, 150) for _ in range(2)]
    monkeypatch.setattr(CudaNative, "reversed_threads", True)
    runs.append(gradient(env, policy, 150))
    for run in runs[1:]:
        assert all(map(torch.equal, runs[0], run))


def test_blocks_of_a_group_add_up(monkeypatch):
    env = CartPole()
    policy = make_policy(env)
    alone = gradient(env, policy, 333, truncate=2, costate_bound=0.5)
    monkeypatch.setattr(cuda_native, "GROUPS", 2)
    together = gradient(env, policy, 333, truncate=2, costate_bound=0.5)
    for a, b in zip(alone, together, strict=True):
        assert torch.allclose(a, b, rtol=1e-11, atol=1e-13)


def test_truncated_and_bounded_gradients_are_those_of_native():
    env = CartPole()
    policy = make_policy(env)
    x, p, noise, _ = problem(env, 70, 4)
    found = []
    for backend in ("native", "cuda_native"):
        got = Rollout(env, policy, backend=backend)(x, 4, p, noise=noise, truncate=2, costate_bound=0.5)
        total = objective(got.last, got.costs, got.states, got.values)
        found.append(torch.autograd.grad(total, [x, noise, *p.values(), *policy.parameters()]))
    for native, cuda in zip(*found, strict=True):
        assert torch.allclose(native, cuda, rtol=1e-10, atol=1e-12)


def test_noise_is_that_of_the_cpu_to_the_last_bit():
    x, noise = torch.zeros(300, 6, dtype=F32), Noise(2**63 + 11, start=2**31)
    native, cuda = (
        Rollout(Echo(), Pass(), backend=b)(x, 9, noise=noise).states for b in ("native", "cuda_native")
    )
    assert torch.equal(native, cuda)


def test_a_population_is_its_policies_one_by_one():
    env, members = CartPole(), 3
    policy = make_policy(env)
    x = env.reset(70, torch.Generator().manual_seed(0), F64)
    stacked = {
        name: torch.stack([q.detach() * (1 + 0.1 * k) for k in range(members)])
        for name, q in policy.named_parameters()
    }
    native, cuda = (
        Rollout(env, policy, backend=b).population(stacked, x, 5) for b in ("native", "cuda_native")
    )
    assert torch.allclose(native, cuda, rtol=1e-11)


# What does not fit --------------------------------------------------------------------------------


def test_a_layout_fits_two_blocks_or_is_refused():
    small = laid_out(134, 0, 5188, 4609, 4)
    assert (small.rollouts, small.threads) == (64, 128)
    assert small.staged
    assert small.sums_inside
    assert 2 * (small.backward_bytes + 1024) <= 228 * 1024
    wide = laid_out(520, 0, 70_000, 70_000, 4)
    assert (wide.rollouts, wide.staged, wide.sums_inside) == (32, 0, False)
    assert laid_out(518, 0, 70_000, 70_000, 8).rollouts == 16
    with pytest.raises(NativeUnsupportedError, match="KB of shared memory"):
        laid_out(2_000, 0, 0, 0, 4)


def test_a_policy_that_does_not_fit_runs_elsewhere_and_says_why(caplog):
    env = CartPole()
    policy = make_policy(env, lambda o, m: MLP(o, m, (512, 512)))
    Rollout(env, policy, backend="cuda_native")(env.reset(2, torch.Generator().manual_seed(0), F64), 1)
    (record,) = caplog.records
    assert "shared memory" in record.getMessage()


# Which back end is taken --------------------------------------------------------------------------


@pytest.mark.parametrize(("expected", "first"), [(None, "cuda_native"), (10**9, "cuda_native"), (0, "eager")])
def test_on_cuda_auto_takes_kernels_then_graphs(expected, first):
    env = CartPole()
    x = env.reset(4, torch.Generator().manual_seed(0), F64)
    rollout = Rollout(env, make_policy(env), expected_steps=expected)
    given = rollout._inputs(x, 2, None, None, None, None)
    elsewhere = SimpleNamespace(**{**vars(given), "x0": OnCuda(x)})
    names = rollout.engines.candidates(elsewhere, 100)
    assert names == (["eager"] if first == "eager" else ["cuda_native", "cuda_graph", "eager"])


class OnCuda:
    def __init__(self, tensor):
        self.device, self._tensor = torch.device("cuda"), tensor

    def __len__(self):
        return len(self._tensor)


def test_without_nvrtc_auto_says_so_once_and_goes_on(monkeypatch, caplog):
    def prepare(inputs, gradient):
        raise UnsupportedError("no NVRTC") from nvrtc.NoNvrtcError("no NVRTC")

    monkeypatch.setattr(CudaNative, "prepare", staticmethod(prepare))
    monkeypatch.setattr(
        engines_module.Engines, "candidates", lambda self, inputs, count: ["cuda_native", "eager"]
    )
    engines_module._say_no_nvrtc.cache_clear()
    env = CartPole()
    x = env.reset(2, torch.Generator().manual_seed(0), F64)
    for _ in range(2):
        Rollout(env, make_policy(env))(x, 1)
    (record,) = caplog.records
    assert "no NVRTC" in record.getMessage()


# The compiler for devices -------------------------------------------------------------------------

LOG = """\
ptxas info    : Compiling entry function 'backward' for 'sm_90'
ptxas         .     336 bytes stack frame, 72 bytes spill stores, 84 bytes spill loads
ptxas info    : Used 168 registers, used 1 barriers, 352 bytes cumulative stack size
ptxas info    : Compiling entry function 'reduce' for 'sm_90'
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 20 registers, used 0 barriers
"""


def test_resources_are_read_from_what_the_assembler_says():
    assert nvrtc.resources(LOG) == {
        "backward": nvrtc.Resources(168, 352, 156),
        "reduce": nvrtc.Resources(20, 0, 0),
    }


def test_nvrtc_compiles_the_kernels_of_a_policy_for_every_architecture():
    try:
        nvrtc.version()
    except nvrtc.NoNvrtcError as error:
        pytest.skip(str(error))
    env = CartPole()
    policy = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 1)).to(F32)
    rollout = Rollout(env, policy, backend="cuda_native")
    rollout(env.reset(2, torch.Generator().manual_seed(0)), 1)
    (engine,) = rollout.engines.prepared.values()
    for arch in ("sm_80", "sm_90", "sm_100"):
        code, log = nvrtc.compiled(engine.source, arch)
        assert code.startswith(b"\x7fELF")
        found = nvrtc.resources(log)
        assert set(found) == {"reduce", "backward", "forward"}
        assert all(0 < kernel.registers <= 255 for kernel in found.values())


def test_without_nvrtc_it_says_what_to_install(monkeypatch):
    nvrtc.version.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "cuda.core", None)
    try:
        with pytest.raises(nvrtc.NoNvrtcError, match=r"pip install .*\[cuda\]"):
            nvrtc.version()
    finally:
        nvrtc.version.cache_clear()
