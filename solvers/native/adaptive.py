"""``backend="native"``: adaptive explicit Runge–Kutta solves in C++ made from the vector field.

The field is traced once for given shapes, differentiated as a scalar expression graph and compiled into the
kernel ``adaptive.cpp``, which runs a block of rollouts, one to a vector lane, from start to end.  The batch size,
times, tolerances, controls and parameters are run-time arguments.  The gradient is that of ``checkpoint``: the tape
holds time, step and state of every attempt.

Tracing fixes what is not a tensor: the branch that an ``if`` took and the values of globals.  Numbers in u, p, the
closure and an object's attributes are part of the kernel's key: another value is traced again.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.resources
import logging
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_unflatten

from solvers.compiler.expressions import EXPENSIVE, Graph, Node, in_order, to_cpp
from solvers.compiler.identity import Identity
from solvers.compiler.trace import NativeUnsupportedError, trace
from solvers.marching.inspection import check_field
from solvers.marching.problem import Leaves, Problem
from solvers.marching.step_size import StepSizeController
from solvers.methods.runge_kutta import ExplicitRungeKutta
from solvers.methods.tableau import ButcherTableau
from solvers.modes import AutocastState, first_derivatives_only
from solvers.native import build

logger = logging.getLogger("solvers")

_MOST_NODES = 20_000  # beyond, the C++ compiler takes minutes


@dataclass(frozen=True)
class Slot:
    """A tensor the kernel reads: a leaf of u or p, a module's parameter, or a constant of the field.

    ``own``: every rollout has its own values.  ``held``: one block of values a control.
    """

    own: bool
    held: bool
    size: int
    wanted: bool


@dataclass(frozen=True)
class Kernel:
    """A compiled field with the constants it was traced with."""

    library: ctypes.CDLL
    slots: tuple[Slot, ...]
    constants: tuple[Tensor, ...]
    keep_alive: object


@functools.cache
def _template() -> str:
    return build.with_vectors(
        importlib.resources.files("solvers.native").joinpath("adaptive.cpp").read_text()
    )


def unsupported(problem: Problem) -> str | None:
    """Why no kernel can solve this problem; None if one can."""
    method = problem.method
    if problem.controller is None or not isinstance(method, ExplicitRungeKutta) or not method.tableau.dense:
        return "only adaptive explicit Runge–Kutta methods (tsit5, dopri5) have a kernel"
    if type(problem.controller) is not StepSizeController:
        return f"a step-size controller of another class ({type(problem.controller).__name__}) has no kernel"
    if problem.events:
        return "events have no kernel"
    if problem.x0.device.type != "cpu":
        return f"the kernel runs on the CPU, the states are on {problem.x0.device}"
    if problem.ts.ndim > 1:
        return "times per rollout have no kernel"
    if AutocastState.now(problem.x0.device).enabled:
        return "a kernel computes in the states' precision, torch.autocast does not"
    return None


_logged: set[str] = set()
_kernels: OrderedDict[Any, Kernel | str] = OrderedDict()


def kernel_for(problem: Problem, leaves: Leaves) -> Kernel:
    """The kernel of a problem, cached in memory.

    Raises:
        NativeUnsupportedError: there is none; the message says why.
    """
    why = unsupported(problem)
    if why is not None:
        if why not in _logged:
            _logged.add(why)
            logger.warning("backend='native' falls back to 'eager': %s", why)
        raise NativeUnsupportedError(why)
    key = _key(problem, leaves)
    known = _kernels.get(key)
    if known is None:
        try:
            known = _build(problem, leaves)
        except NativeUnsupportedError as error:
            known = str(error)
            if not isinstance(error, build.NoCompilerError):  # which is logged once, where it is found
                logger.warning("backend='native' falls back to 'eager': %s", error)
        _kernels[key] = known
        if len(_kernels) > 128:
            _kernels.popitem(last=False)
    _kernels.move_to_end(key)
    if isinstance(known, str):
        raise NativeUnsupportedError(known)
    return known


def _key(problem: Problem, leaves: Leaves) -> Any:
    def of(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return tuple(leaf.shape), leaf.dtype, leaf.requires_grad
        return leaf if isinstance(leaf, (int, float, str, bool, type(None))) else id(leaf)

    return (
        _fingerprint(problem.f.f, 0),
        problem.x0.dtype,
        tuple(problem.x0.shape),
        problem.holds_controls,
        type(problem.method),
        leaves.u_spec,
        leaves.p_spec,
        tuple(map(of, leaves.u_leaves)),
        tuple(map(of, leaves.p_leaves)),
        tuple(map(id, leaves.parameters)),
    )


def _fingerprint(value: Any, depth: int) -> Any:
    """Equal for fields that trace alike: the code and what its closure holds, as far as that can be compared."""
    code = getattr(value, "__code__", None)
    if code is None or depth > 3:
        plain = isinstance(value, (int, float, str, bool, type(None)))
        return value if plain else Identity(value), _plain_attributes(value)
    bound = getattr(value, "__self__", None)
    cells = tuple(
        _fingerprint(cell.cell_contents, depth + 1) for cell in getattr(value, "__closure__", None) or ()
    )
    defaults = tuple(_fingerprint(d, depth + 1) for d in getattr(value, "__defaults__", None) or ())
    return code, cells, defaults, None if bound is None else (Identity(bound), _plain_attributes(bound))


def _plain_attributes(value: object) -> tuple[tuple[str, Any], ...]:
    """The numbers and strings among an object's attributes: another value is traced again."""
    attributes = getattr(value, "__dict__", {})
    return tuple((k, v) for k, v in attributes.items() if isinstance(v, (int, float, str, bool, type(None))))


def _build(problem: Problem, leaves: Leaves) -> Kernel:
    """Trace and compile, and check the result against the field itself on the whole batch."""
    # Before the trace, which would change buffers itself and fix the present value of a counter.
    check_field(problem, "checkpoint", sees_captured=False, per_rollout=True, recomputed=True)
    batch = problem.x0.shape[:-1]
    tensors = [leaf for leaf in (*leaves.u_leaves, *leaves.p_leaves) if isinstance(leaf, Tensor)]
    fitting = [_fits(problem, leaf, k < _count(leaves.u_leaves)) for k, leaf in enumerate(tensors)]
    # A leaf whose first sizes are the batch's is taken for one value per rollout; the check shows if it is not.
    problems = []
    for own in [fitting] if not any(fitting) else [fitting, [False] * len(fitting)]:
        kernel = _compile(problem, leaves, tensors, own)
        off = _disagreement(problem, leaves, kernel)
        if off is None:
            return kernel
        problems.append(off)
    raise NativeUnsupportedError(
        f"the compiled field differs from f by {problems[0]:.3g} (relative); does f mix rollouts, or branch on values? "
        f"(batch {tuple(batch)})"
    )


def _count(leaves: list[Any]) -> int:
    return sum(isinstance(leaf, Tensor) for leaf in leaves)


def _fits(problem: Problem, leaf: Tensor, is_control: bool) -> bool:
    batch = problem.x0.shape[:-1]
    shape = leaf.shape[1:] if is_control and problem.holds_controls else leaf.shape
    return len(batch) > 0 and shape[: len(batch)] == batch


def _compile(problem: Problem, leaves: Leaves, tensors: list[Tensor], own: list[bool]) -> Kernel:
    x0, method = problem.x0, problem.method
    assert isinstance(method, ExplicitRungeKutta)
    batch, n = x0.shape[:-1], x0.shape[-1]
    controls = _count(leaves.u_leaves)
    graph = Graph()
    slots: list[Slot] = []
    inputs: list[list[Node]] = []

    def slot(shape: tuple[int, ...], own: bool, held: bool, wanted: bool) -> np.ndarray:
        size = int(np.prod(shape))
        before = sum(s.size for s in slots if s.own)
        text = f"values.own[{before} + {{}}]" if own else f"splat(values.shared[{len(slots)}][{{}}])"
        nodes = [graph.input(text.format(j)) for j in range(size)]
        slots.append(Slot(own, held, size, wanted))
        inputs.append(nodes)
        array = np.empty(size, dtype=object)
        array[:] = nodes
        return array.reshape(shape)

    ones = tuple(1 for _ in batch)
    examples, arrays = [torch.zeros(ones, dtype=x0.dtype), torch.zeros((*ones, n), dtype=x0.dtype)], []
    for k, (leaf, is_own) in enumerate(zip(tensors, own, strict=True)):
        held = problem.holds_controls and k < controls
        value = leaf.detach()[0] if held else leaf.detach()
        if is_own:
            value = value[tuple(slice(0, 1) for _ in batch)]
        examples.append(value)
        arrays.append(slot(tuple(value.shape), is_own, held, leaf.requires_grad))
    parameters = {id(q): slot(tuple(q.shape), False, False, True) for q in leaves.parameters}
    constants: list[Tensor] = []

    def constant(tensor: Tensor) -> np.ndarray:
        if id(tensor) in parameters:
            return parameters[id(tensor)]
        if isinstance(tensor, nn.Parameter) and tensor.requires_grad:
            raise NativeUnsupportedError(
                "the field holds a parameter of a module that was not found in f, u or p"
            )
        constants.append(tensor.detach())
        return slot(tuple(tensor.shape), False, False, False)

    def field(t: Tensor, x: Tensor, *values: Tensor) -> Tensor:
        it = iter(values)
        u = tree_unflatten([next(it) if isinstance(q, Tensor) else q for q in leaves.u_leaves], leaves.u_spec)
        p = tree_unflatten([next(it) if isinstance(q, Tensor) else q for q in leaves.p_leaves], leaves.p_spec)
        return problem.f.f(t, x, u, p)

    time = np.empty((), dtype=object)
    time[()] = clock = graph.input("t")
    state = np.empty(n, dtype=object)
    state[:] = state_nodes = [graph.input(f"x[{i}]") for i in range(n)]
    arrays = [time.reshape(ones), state.reshape(*ones, n), *arrays]
    (result,) = trace(field, list(zip(examples, arrays, strict=True)), graph, constant)
    if result.size != n:
        raise NativeUnsupportedError(f"the traced field returns {result.size} numbers, not {n}")
    outputs = [q if isinstance(q, Node) else float(q) for q in result.reshape(-1)]
    cotangents = [graph.input(f"bar[{i}]") for i in range(n)]
    wanted = [
        (k, j, node) for k, nodes in enumerate(inputs) if slots[k].wanted for j, node in enumerate(nodes)
    ]
    gradients = graph.gradient(outputs, cotangents, [clock, *state_nodes, *(node for _, _, node in wanted)])
    if len(in_order([q for q in gradients if isinstance(q, Node)])) > _MOST_NODES:
        raise NativeUnsupportedError(f"the field has more than {_MOST_NODES} scalar operations")
    source = _source(method.tableau, x0.dtype, n, slots, outputs, gradients, wanted)
    return Kernel(build.load(source), tuple(slots), tuple(constants), problem.f.f)


def _source(
    table: ButcherTableau,
    dtype: torch.dtype,
    n: int,
    slots: list[Slot],
    outputs: list[Node | float],
    gradients: list[Node | float],
    wanted: list[tuple[int, int, Node]],
) -> str:
    stages = len(table.b)
    assert table.dense is not None
    assert table.b_error is not None

    def numbers(values: Any) -> str:
        return "{" + ", ".join(repr(float(v)) for v in values) + "}"

    rows = [[*row, *[0.0] * (stages - len(row))] for row in table.a]
    own_sizes = [s.size if s.own else 0 for s in slots]
    shared_sizes = [s.size if s.wanted and not s.own else 0 for s in slots]
    head = [
        f"typedef {'double' if dtype == torch.float64 else 'float'} T;",
        f"constexpr int N = {n}, STAGES = {stages}, USED = {stages - (table.b[-1] == 0.0)};",
        f"constexpr int ERROR_ORDER = {table.error_order}, LEAVES = {len(slots)};",
        f"constexpr int OWN_SIZE = {sum(own_sizes)}, SHARED_SIZE = {sum(shared_sizes)};",
        f"constexpr bool WANTED[] = {{{', '.join(['true' if s.wanted else 'false' for s in slots] or ['false'])}}};",
        f"constexpr T A[STAGES][STAGES] = {{{', '.join(map(numbers, rows))}}};",
        f"constexpr T B[STAGES] = {numbers(table.b)}, C[STAGES] = {numbers(table.c)};",
        f"constexpr T E[STAGES] = {numbers(table.b_error)};",
        f"constexpr T DENSE[STAGES][4] = {{{', '.join(map(numbers, table.dense))}}};",
    ]
    slopes: list[tuple[str, Node | float]] = [(f"dx[{i}] =", node) for i, node in enumerate(outputs)]
    costly = [q for q in in_order([o for o in outputs if isinstance(o, Node)]) if q.op in EXPENSIVE]
    kept = {node: f"saved[{k}]" for k, node in enumerate(costly)}
    head.append(f"constexpr int SAVED = {len(kept)};")
    keep: list[tuple[str, Node | float]] = [(f"{name} =", node) for node, name in kept.items()]
    results: list[tuple[str, Node | float]] = [("gt =", gradients[0])]
    results += [(f"gx[{i}] =", node) for i, node in enumerate(gradients[1 : n + 1])]
    for (k, j, _), node in zip(wanted, gradients[n + 1 :], strict=True):
        name, sizes = ("own", own_sizes) if slots[k].own else ("shared", shared_sizes)
        results.append((f"{name}[{sum(sizes[:k]) + j}] +=", node))
    body = (
        "static inline void field(const Values& values, V t, const V* x, V* dx) {\n"
        f"{to_cpp(slopes)}\n}}\n"
        "static inline void field_keeping(const Values& values, V t, const V* x, V* dx, V* saved) {\n"
        f"{to_cpp([*slopes, *keep])}\n}}\n"
        "static inline void field_vjp(const Values& values, V t, const V* x, const V* saved, const V* bar, V* gx,"
        f" V& gt, V* own, V* shared) {{\n{to_cpp(results, kept)}\n}}"
    )
    return "\n".join(head) + "\n" + _template().replace("// FIELD", body)


class _Leaf(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("size", ctypes.c_int64),
        ("rollouts", ctypes.c_int64),
        ("held", ctypes.c_int64),
        ("controls", ctypes.c_int64),
    ]


class _Grid(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_void_p)
        for name in ("targets", "controls", "at_target", "inside", "inside_ends", "ts")
    ]


def _settings_type(dtype: torch.dtype) -> type[ctypes.Structure]:
    real = ctypes.c_double if dtype == torch.float64 else ctypes.c_float

    class Settings(ctypes.Structure):
        _fields_ = [
            *((name, ctypes.c_int64) for name in ("batch", "legs", "outputs", "max_steps")),
            *((name, real) for name in _CONTROLLER),
        ]

    return Settings


_CONTROLLER = (
    "rtol",
    "atol",
    "safety",
    "smallest",
    "largest",
    "integral",
    "proportional",
    "first_step",
    "max_step",
)
_SETTINGS = {dtype: _settings_type(dtype) for dtype in (torch.float32, torch.float64)}


class Run:
    """One forward solve's arguments and, after it, its results; the backward pass uses them again."""

    def __init__(self, problem: Problem, leaves: Leaves, kernel: Kernel) -> None:
        x0, grid = problem.x0, problem.grid
        self.problem, self.kernel = problem, kernel
        self.library, dtype = kernel.library, x0.dtype
        self.real = ctypes.c_double if dtype == torch.float64 else ctypes.c_float
        self.x0 = x0.detach().contiguous()
        self.ts, self.targets = problem.ts.detach().contiguous(), grid.targets.detach().contiguous()
        self.start = float(grid.start.detach())
        self.batch = max(1, x0.shape[:-1].numel())
        inside = [i for leg in grid.inside for i in leg]
        ends = np.cumsum([len(leg) for leg in grid.inside])
        indices = (grid.controls, grid.at_target, inside, ends.tolist())
        self.ints = [torch.tensor(v, dtype=torch.int64, device="cpu") for v in indices]
        self.grid = _Grid(self.targets.data_ptr(), *(v.data_ptr() for v in self.ints), self.ts.data_ptr())
        c = problem.controller
        assert c is not None
        values = [getattr(c, name) for name in _CONTROLLER]
        self.settings = _SETTINGS[dtype](
            self.batch,
            len(grid.controls),
            len(self.ts),
            min(problem.max_steps, 2**62),
            *(v or 0.0 for v in values),
        )
        tensors = [leaf for leaf in (*leaves.u_leaves, *leaves.p_leaves) if isinstance(leaf, Tensor)]
        self.data = [
            q.detach().to(dtype).contiguous() for q in (*tensors, *leaves.parameters, *kernel.constants)
        ]
        self.leaves = (_Leaf * max(1, len(self.data)))()
        for k, (slot, data) in enumerate(zip(kernel.slots, self.data, strict=True)):
            controls = len(data) if slot.held else 1
            stride = data.numel() // controls if slot.held else 0
            self.leaves[k] = _Leaf(data.data_ptr(), slot.size, int(slot.own), stride, controls)
        self.tape: int | None = None

    def slopes(self) -> Tensor:
        """The compiled field at the start."""
        out = torch.empty_like(self.x0)
        control = self.problem.grid.controls[0] if self.problem.holds_controls else 0
        self.library.slopes(
            ctypes.byref(self.leaves), _p(self.x0), self.real(self.start), ctypes.c_int64(control), _p(out),
            ctypes.c_int64(self.batch),
        )  # fmt: skip
        return out

    def forward(self, keep_tape: bool) -> Tensor:
        """Solve; the states at the outputs."""
        batch = self.x0.shape[:-1]
        xs = self.x0.new_empty((len(self.ts), *self.x0.shape))
        xs[0] = self.x0
        self.status, self.accepted, self.rejected = (
            self.x0.new_empty(batch, dtype=torch.int64) for _ in range(3)
        )
        self.failed_at, self.last_step = (self.x0.new_empty(batch) for _ in range(2))
        missed = self.ints[2]
        xs[missed] = torch.nan
        run = self.library.forward
        run.restype = ctypes.c_void_p
        self.tape = run(
            ctypes.byref(self.settings), ctypes.byref(self.grid), ctypes.byref(self.leaves), _p(self.x0),
            self.real(self.start), _p(xs), _p(self.status), _p(self.accepted), _p(self.rejected),
            _p(self.failed_at), _p(self.last_step), ctypes.c_int64(keep_tape),
            ctypes.c_int64(torch.get_num_threads()),
        )  # fmt: skip
        if self.tape is not None:
            release = self.library.release
            release.argtypes = [ctypes.c_void_p]
            weakref.finalize(self, release, self.tape)
        return xs

    def backward(self, by_xs: Tensor) -> tuple[Tensor, list[Tensor], Tensor, Tensor, Tensor]:
        """Gradients by x0, by the wanted slots, by start, targets and ts."""
        lanes = int(self.library.lanes())
        blocks = -(-self.batch // lanes)
        by_xs = by_xs.contiguous()
        by_x0 = torch.zeros_like(self.x0)
        legs, outputs = len(self.targets), len(self.ts)
        by_targets, by_start, by_ts = (self.x0.new_zeros((blocks, k)) for k in (legs, 1, outputs))
        slots = self.kernel.slots
        per_slot = []
        own, shared = ((ctypes.c_void_p * max(1, len(slots)))() for _ in range(2))
        for k, (slot, data) in enumerate(zip(slots, self.data, strict=True)):
            if not slot.wanted:
                continue
            gradient = torch.zeros_like(data) if slot.own else data.new_zeros((blocks, *data.shape))
            (own if slot.own else shared)[k] = gradient.data_ptr()
            per_slot.append(gradient)
        self.library.backward(
            ctypes.c_void_p(self.tape), ctypes.byref(self.settings), ctypes.byref(self.grid),
            ctypes.byref(self.leaves), _p(by_xs), _p(by_x0), own, shared, _p(by_targets), _p(by_start), _p(by_ts),
            ctypes.c_int64(torch.get_num_threads()),
        )  # fmt: skip
        wanted = [slot for slot in slots if slot.wanted]
        gradients = [g if slot.own else g.sum(0) for slot, g in zip(wanted, per_slot, strict=True)]
        return by_x0, gradients, by_start.sum(), by_targets.sum(0), by_ts.sum(0)


def _p(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _disagreement(problem: Problem, leaves: Leaves, kernel: Kernel) -> float | None:
    """How far the compiled field is from ``f`` at the start, if it is too far."""
    compiled = Run(problem, leaves, kernel).slopes()
    with torch.no_grad():
        t = problem.grid.start.detach().expand(problem.x0.shape[:-1])
        exact = problem.f.f(t, problem.x0.detach(), problem.held(0), problem.p)
    scale = 1.0 + exact.abs().max()
    difference = float(((compiled - exact).abs() / scale).max())
    return None if difference < (1e-11 if exact.dtype == torch.float64 else 1e-4) else difference


class NativeMarch(torch.autograd.Function):
    """``apply(run, leaves, x0, start, targets, ts, *leaves.tensors())``."""

    @staticmethod
    def forward(ctx: Any, run: Run, leaves: Leaves, xs: Tensor, *tensors: Tensor) -> Tensor:
        ctx.run, ctx.leaves = run, leaves
        ctx.save_for_backward(*tensors)
        return xs.clone() if xs.requires_grad else xs

    @staticmethod
    @first_derivatives_only
    def backward(ctx: Any, by_xs: Tensor) -> Any:
        _ = ctx.saved_tensors
        by_x0, gradients, by_start, by_targets, by_ts = ctx.run.backward(by_xs)
        ok = (ctx.run.status == 0).unsqueeze(-1)
        by_x0 = by_x0 + torch.where(ok, by_xs[0], 0.0)
        dtypes = [q.dtype for q in ctx.leaves.tensors()]
        moved = [g.to(d) for g, d in zip(gradients, dtypes, strict=True)]
        return None, None, None, by_x0, by_start, by_targets, by_ts, *moved
