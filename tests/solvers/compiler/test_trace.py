"""Traces are what torch computes: single operations, random graphs of them, and what has no rule."""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from diffsim.rollouts import Rollout
from robotics_envs import check_env
from robotics_envs.base import Box, Env, Parameter
from robotics_envs.conformance import ConformanceError
from solvers.compiler.ir import Graph
from solvers.compiler.slots import array_of
from solvers.compiler.trace import NativeUnsupportedError, NotStraightLineError, trace, tracing
from solvers.methods.runge_kutta import RK4

F64 = torch.float64


def traced(function, *arguments):
    """The function's result by its trace, with numbers in place of nodes (constants are folded)."""
    examples = [(a, a.numpy().astype(object)) for a in arguments]
    results = trace(function, examples, Graph(), lambda q: q.numpy().astype(object))
    return [np.asarray(r, dtype=float) for r in results]


def spd(x):
    return x @ x.mT + 3 * torch.eye(3, dtype=F64)


# With numbers in place of nodes every operation folds, so its rule is compared with torch itself.
FUNCTIONS = {
    "remainder": lambda x: torch.remainder(7 * x, 2.0) + torch.fmod(7 * x, 2.0),
    "rounding": lambda x: torch.floor(3 * x) + torch.ceil(2 * x) + torch.trunc(5 * x) + torch.round(4 * x),
    "arcs": lambda x: torch.asin(x / 4) + torch.acos(x / 4) + torch.atan2(x, x.flip(0)),
    "softplus": lambda x: nn.functional.softplus(x) + nn.functional.softplus(30 * x),
    "elu": lambda x: nn.functional.elu(x) + nn.functional.selu(x) + nn.functional.leaky_relu(x),
    "gelu": lambda x: nn.functional.gelu(x, approximate="tanh") + nn.functional.hardtanh(x),
    "logs": lambda x: torch.log1p(x.abs()) + torch.expm1(x) + torch.lerp(x, 2 * x, 0.3),
    "norms": lambda x: x.norm(dim=-1) + torch.linalg.vector_norm(x, dim=0) + x.abs().sum(0) + x.norm(),
    "cross": lambda x: torch.linalg.cross(x, x.roll(1, 0)) + torch.cross(x, x.mT, dim=-1),
    "extremes": lambda x: x.amax(0) + x.amin(1) + x.amax() + torch.maximum(x, x.mT) + x.clamp_min(0.1),
    "variance": lambda x: x.var(0) + x.std(1) + x.mean() + x.prod(0) + x.cumsum(1),
    "solve": lambda x: torch.linalg.solve(x, x.mT) + torch.linalg.solve(x, x[0]),
    "cholesky": lambda x: (
        torch.cholesky_solve(x, torch.linalg.cholesky(spd(x))) + torch.linalg.cholesky_ex(spd(x)).L
    ),
    "triangular": lambda x: torch.linalg.solve_triangular(torch.linalg.cholesky(spd(x)), x, upper=False),
    "einsum": lambda x: torch.einsum("ij,kj->ik", x, x) + torch.outer(x[0], x[1]) + x.diagonal(),
    "in place with another shape": lambda x: (
        (x[0] @ x) + x.clone().t_() + x.clone().unsqueeze_(0).squeeze_(0)
    ),
    "index": lambda x: x[:, [2, 0, 1]] + x.index_select(0, torch.tensor([1, 1, 0])) + x[[0, 1, 2], [2, 1, 0]],
    "pad": lambda x: nn.functional.pad(x, (1, 0))[:, :3] + torch.tril(torch.ones(3, 3, dtype=F64)) * x,
    "shapes": lambda x: (
        x.reshape(-1)[2:5] + x.movedim(0, 1) + x.unflatten(1, (3, 1)).squeeze(-1) + x.expand(2, 3, 3)[1]
    ),
    "writing": lambda x: _written(x),
    "masks": lambda x: (
        torch.where((x > 0) & (x < 1) | (x == 2), x, -x) + (x > 0) * x + torch.logical_not(x > 0)
    ),
    "all and any": lambda x: (
        torch.where((x > 0).all(0), x, -x)
        + (x.isfinite().all(-1, keepdim=True) & (x > 0).any(1, keepdim=True)) * x
        + torch.where((x - x[0]).any(), 1.0, 2.0) * (x > -9).all()
    ),
    "constants": lambda x: (
        x * torch.tensor([1.0, 2.0, 3.0], dtype=F64) + torch.linspace(0, 1, 3, dtype=F64) + math.pi
    ),
    "powers": lambda x: x**2 + x.abs() ** 1.5 + x**-1 + x**3 + 2.0 ** (x / 3) + x.abs().pow(0.5) + x.square(),
}


def _written(x):
    out = torch.zeros_like(x)
    out[:, 0] = x[:, 1]
    out[1, 1:] += 2 * x[2, :2]
    out.mul_(3.0)
    return out


@pytest.mark.parametrize("name", FUNCTIONS)
def test_operations(name):
    x = torch.tensor([[0.7, -1.3, 2.0], [1.9, 0.4, -0.6], [-0.2, 1.1, 0.9]], dtype=F64)
    (got,) = traced(FUNCTIONS[name], x)
    assert np.allclose(got, FUNCTIONS[name](x).numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("function", "error", "why"),
    [
        (
            lambda x: torch.fft.fft(x).real,
            NativeUnsupportedError,
            r"no C\+\+ for the operation aten._fft.*test_trace.py:\d+",
        ),
        (
            lambda x: x if x.sum() > 0 else -x,
            NotStraightLineError,
            r"test_trace.py:\d+.*torch.where instead of if",
        ),
        (lambda x: x * float(x[0, 0]), NotStraightLineError, "no float"),
        (
            lambda x: x[x > 0],
            NativeUnsupportedError,
            "index that depends on the state|decides what is computed",
        ),
        (lambda x: x + torch.rand(3), NotStraightLineError, "draws random numbers"),
        (lambda x: nn.functional.dropout(x, 0.5), NotStraightLineError, "draws random numbers"),
        (
            lambda x: x.undefined,
            NativeUnsupportedError,
            "could not be traced: 'Tensor' object has no attribute",
        ),
        (lambda x: 3.0, NativeUnsupportedError, "returns float, not a tensor"),
        (lambda x: nn.functional.gelu(x), NativeUnsupportedError, "gelu without approximate"),
    ],
)
def test_what_has_no_trace_says_where_it_came_from(function, error, why):
    x = torch.ones(3, 3, dtype=F64)
    nodes = np.empty((3, 3), dtype=object)
    graph = Graph()
    nodes[:] = [[graph.input("x", 3 * i + j) for j in range(3)] for i in range(3)]
    with pytest.raises(error, match=why):
        trace(function, [(x, nodes)], graph, lambda q: q.numpy().astype(object))


class Cutting(Env):
    """Detached parts, so that values and gradients differ in what they see."""

    name = "cutting"
    state_names = observation_names = ("a", "b")
    parameters = (Parameter("k", 0.7, "1", source="chosen"),)
    action_box = Box.symmetric(2.0)
    start_box = state_box = Box.symmetric(1.0, 1.0)
    dt = 0.1
    episode_steps = 10
    solver = RK4()

    def dynamics(self, t, x, u, p):
        a, b = x.unbind(-1)
        return torch.stack((p["k"] * b.detach() * a + u[:, 0], torch.sin(a).detach() - p["k"] * b), -1)

    def cost(self, x, u, p):
        return x.square().sum(-1) + (x[:, 0] * u[:, 0]).detach()


def gradients(env, backend, steps=3):
    x = env.reset(9, torch.Generator().manual_seed(0), F64).requires_grad_()
    p = {name: value.requires_grad_() for name, value in env.params(x.detach()).items()}
    u = (
        0.5
        * torch.randn(steps, 9, len(env.action_box), dtype=F64, generator=torch.Generator().manual_seed(1))
    ).requires_grad_()
    got = Rollout(env, backend=backend)(x, steps, p, controls=u)
    total = got.costs.sum() + got.last.sin().sum()
    return [got.last, got.costs, *torch.autograd.grad(total, [x, u, *p.values()])]


def test_detached_parts_have_no_gradient(caplog):
    eager, native = (gradients(Cutting(), backend) for backend in ("eager", "native"))
    assert not caplog.records
    for a, b in zip(eager, native, strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-12)


def test_check_env_says_where_a_step_is_not_straight_line():
    class Branching(Cutting):
        def cost(self, x, u, p):
            return x.square().sum(-1) * (2.0 if x.sum() > 0 else 1.0)

    with pytest.raises(
        ConformanceError, match=r"steps_are_straight_line: step: the value of a tensor.*test_trace.py:\d+"
    ):
        check_env(Branching())


# ---- Random graphs: programs over three values, one operation after the other.

UNARY = {
    "sin": torch.sin,
    "cos": torch.cos,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "exp": lambda a: torch.exp(a.clamp(max=1.5)),
    "root": lambda a: torch.sqrt(1 + a * a),
    "log": lambda a: torch.log(1.5 + a * a),
    "inverse": lambda a: 1 / (1 + a * a),
    "square": lambda a: a**2,
    "softplus": nn.functional.softplus,
    "atan": torch.atan,
    "neg": torch.neg,
    "abs": lambda a: (a + 0.3137).abs(),
    "relu": lambda a: torch.relu(a - 0.2713),
    "clamp": lambda a: a.clamp(-0.7719, 0.8313),
    "elu": nn.functional.elu,
    "expm1": lambda a: torch.expm1(a.clamp(-2, 1)),
}
BINARY = {
    "add": lambda a, b: a + 0.5 * b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: torch.tanh(a) * b,
    "div": lambda a, b: a / (1.5 + torch.cos(b)),
    "max": lambda a, b: torch.maximum(a, b + 0.1171),
    "min": lambda a, b: torch.minimum(a, b - 0.0913),
    "where": lambda a, b: torch.where(a > 0.1379, a, 0.5 * b),
    "atan2": lambda a, b: torch.atan2(a, 2.5 + torch.sin(b)),
    "hypot": lambda a, b: torch.stack((a, b, torch.ones_like(a)), -1).norm(dim=-1),
    "solve": lambda a, b: _two_by_two(a, b),
}


def _two_by_two(a, b):
    one = torch.ones_like(a)
    matrix = torch.stack(
        (torch.stack((2.5 + torch.sin(a), torch.cos(b)), -1), torch.stack((torch.tanh(b), 2 * one), -1)), -2
    )
    return torch.linalg.solve(matrix, torch.stack((a, b), -1)).sum(-1)


unary = st.tuples(st.sampled_from(sorted(UNARY)), st.integers(0, 30), st.just(0))
binary = st.tuples(st.sampled_from(sorted(BINARY)), st.integers(0, 30), st.integers(0, 30))
programs = st.lists(st.one_of(unary, binary), min_size=1, max_size=8)


def run_program(program, values):
    values = list(values)
    for name, i, j in program:
        a, b = values[i % len(values)], values[j % len(values)]
        values.append(UNARY[name](a) if name in UNARY else BINARY[name](a, b))
    return torch.tanh(values[-1])


def random_simulator(all_programs):
    class Random(Env):
        name = "random"
        state_names = observation_names = tuple(f"x{i}" for i in range(len(all_programs)))
        parameters = (Parameter("k", 0.7, "1", source="chosen"),)
        action_box = Box.symmetric(9.0)
        start_box = state_box = Box.symmetric(*[1.5] * len(all_programs))
        dt = 0.1
        episode_steps = 10

        def dynamics(self, t, x, u, p):
            n = x.shape[-1]
            parts = [(x[:, i], x[:, (i + 1) % n], u[:, 0] * p["k"]) for i in range(n)]
            # The last term, so that no program is without one of its inputs.
            return torch.stack(
                [run_program(q, v) + 0.1 * v[2] for q, v in zip(all_programs, parts, strict=True)], -1
            )

        def cost(self, x, u, p):
            return self.dynamics(0.0, x, u, p).square().sum(-1)

        def step(self, x, u, p):
            return self.dynamics(0.0, x, u, p), self.cost(x, u, p)

    return Random()


# Not shrunk: every attempt compiles a kernel.
@settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(st.lists(programs, min_size=20, max_size=20))
def test_random_graphs(all_programs):
    """120 programs in six kernels: values and gradients as torch's."""
    env = random_simulator(all_programs)
    eager, native = (gradients(env, backend, steps=2) for backend in ("eager", "native"))
    for a, b in zip(eager, native, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-9)
    rollout = Rollout(env, backend="native")
    with torch.no_grad():
        rollout(
            env.reset(3, torch.Generator().manual_seed(0), F64), 1, controls=torch.zeros(1, 3, 1, dtype=F64)
        )
    assert [type(engine).__name__ for engine in rollout.engines.prepared.values()] == ["Native"]


def test_a_trace_is_taken_in_its_own_thread_only():
    """What another thread computes meanwhile is not traced, and is told so."""
    graph, seen = Graph(), []
    node = graph.input("x", 0)

    def function(x):
        with ThreadPoolExecutor(1) as other:
            seen.extend((tracing(), other.submit(tracing).result()))
        return 2.0 * x

    trace(function, [(torch.ones(1), array_of([node], (1,)))], graph, lambda tensor: tensor.numpy())
    assert seen == [True, False]
