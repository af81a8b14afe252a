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
import types
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_unflatten

from solvers.compiler.differentiate import gradient
from solvers.compiler.fingerprint import Fingerprints, Held
from solvers.compiler.ir import Graph, Node, Operand, Place, Store, in_order
from solvers.compiler.limits import check_lines
from solvers.compiler.operations import OPERATIONS
from solvers.compiler.print_cpp import Printer
from solvers.compiler.slots import Slots, array_of
from solvers.compiler.structs import Struct, fields
from solvers.compiler.trace import NativeUnsupportedError, trace
from solvers.marching.inspection import check_field
from solvers.marching.problem import Leaves, Problem
from solvers.marching.step_size import StepSizeController
from solvers.methods.runge_kutta import ExplicitRungeKutta
from solvers.methods.tableau import ButcherTableau
from solvers.modes import AutocastState
from solvers.native import build

logger = logging.getLogger("solvers")

_SPACES = {
    # What the field and its gradient read, of a vector of rollouts.
    "t": "t",
    "x": "x[{index}]",
    "own": "values.own[{index}]",
    "shared": "splat(values.shared[{slot}][{index}])",
    "bar": "bar[{index}]",
    # What they write.
    "dx": "dx[{index}]",
    "saved": "saved[{index}]",
    "by_t": "gt",
    "by_x": "gx[{index}]",
    "by_own": "own[{index}]",
    "by_shared": "shared[{index}]",
}


@dataclass(frozen=True)
class Kernel:
    """A compiled field with the constants it was traced with."""

    library: ctypes.CDLL
    slots: Slots
    constants: tuple[Tensor, ...]
    """Tensors that the field holds, in the slots after those of u, p and parameters."""


@functools.cache
def _template() -> str:
    return build.with_headers(
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
_fingerprints = Fingerprints(most=16, load=build.load)


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
    if known is None or (isinstance(known, Kernel) and known.slots.stale()):
        try:
            known = _build(problem, leaves)
        except NativeUnsupportedError as error:
            known = str(error)
            if not isinstance(error, build.NoCompilerError):  # which is logged once, where it is found
                logger.warning("backend='native' falls back to 'eager': %s", error)
        key = _key(problem, leaves)  # again: a field that counts its calls has changed what it holds
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
        _held(problem.f.f),
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


def _held(field: Any) -> Held:
    """What a field holds; a method, which is another object each time it is looked up, by its parts."""
    parts = (field.__func__, field.__self__) if isinstance(field, types.MethodType) else (field,)
    return _fingerprints.of(*parts)


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
    unknown = "the field holds a parameter of a module that was not found in f, u or p"
    slots = Slots(graph, leaves.parameters, unknown)
    ones = tuple(1 for _ in batch)
    examples, arrays = [], []
    for k, (leaf, is_own) in enumerate(zip(tensors, own, strict=True)):
        held = problem.holds_controls and k < controls
        value = leaf.detach()[0] if held else leaf.detach()
        if is_own:
            value = value[tuple(slice(0, 1) for _ in batch)]
        examples.append(value)
        slot = slots.add(leaf, value.numel(), leaf.requires_grad, is_own, held)
        arrays.append(slots.array(slot, tuple(value.shape)))
    for q in leaves.parameters:
        slots.captured(q)
    given = len(slots.slots)

    def captured(tensor: Tensor) -> np.ndarray:
        slot = slots.captured(tensor)
        return slots.array(slot, tuple(tensor.shape)) if isinstance(slot, int) else slot

    def field(t: Tensor, x: Tensor, *values: Tensor) -> Tensor:
        it = iter(values)
        u = tree_unflatten([next(it) if isinstance(q, Tensor) else q for q in leaves.u_leaves], leaves.u_spec)
        p = tree_unflatten([next(it) if isinstance(q, Tensor) else q for q in leaves.p_leaves], leaves.p_spec)
        return problem.f.f(t, x, u, p)

    clock, state = graph.input("t"), [graph.input("x", i) for i in range(n)]
    examples = [torch.zeros(ones, dtype=x0.dtype), torch.zeros((*ones, n), dtype=x0.dtype), *examples]
    arrays = [array_of([clock], ones), array_of(state, (*ones, n)), *arrays]
    (result,) = trace(field, list(zip(examples, arrays, strict=True)), graph, captured)
    if result.size != n:
        raise NativeUnsupportedError(f"the traced field returns {result.size} numbers, not {n}")
    slopes = [q if isinstance(q, Node) else float(q) for q in result.reshape(-1)]
    source = _source(method.tableau, x0.dtype, graph, slots, clock, state, slopes)
    constants = tuple(slot.source.detach() for slot in slots.slots[given:])
    return Kernel(build.load(source), slots, constants)


def _source(
    table: ButcherTableau,
    dtype: torch.dtype,
    graph: Graph,
    slots: Slots,
    clock: Node,
    state: list[Node],
    slopes: list[Operand],
) -> str:
    """The kernel's C++: the tableau, the template, and the field with its gradient."""
    n, stages = len(state), len(table.b)
    places: dict[Node, Place] = {}
    for space, chosen in (("by_own", True), ("by_shared", False)):
        at = 0
        for k, slot in enumerate(slots.slots):
            if slot.own != chosen:
                continue
            if slot.wanted:
                places |= {node: Place(space, at + j) for j, node in enumerate(slots.nodes(k))}
            at += slot.size if slot.own or slot.wanted else 0
    bars = [graph.input("bar", i) for i in range(n)]
    found, _ = gradient(graph, slopes, bars, [clock, *state, *places])
    targets = [Place("by_t"), *(Place("by_x", i) for i in range(n))]
    pulled = [Store(place, term) for place, term in zip(targets, found, strict=False)]
    pulled += [Store(place, term, True) for place, term in zip(places.values(), found[n + 1 :], strict=True)]
    forward = [Store(Place("dx", i), slope) for i, slope in enumerate(slopes)]
    costly = [q for q in in_order(slopes) if q.op in OPERATIONS and OPERATIONS[q.op].costly]
    kept = {node: Place("saved", k) for k, node in enumerate(costly)}
    keeping = [*forward, *(Store(place, node) for node, place in kept.items())]
    printer = Printer(graph, _SPACES, ("const Values&", "values"))
    state_of = (("V", "t"), ("const V*", "x"))
    given = (*state_of, ("const V*", "saved"), ("const V*", "bar"))
    pulled_to = (("V*", "gx"), ("V&", "gt"), ("V*", "own"), ("V*", "shared"))
    parts = [
        printer.function("field", (*state_of, ("V*", "dx")), forward),
        printer.function("field_keeping", (*state_of, ("V*", "dx"), ("V*", "saved")), keeping),
        printer.function("field_vjp", (*given, *pulled_to), pulled, kept),
    ]
    check_lines(parts)
    wanted = ["true" if slot.wanted else "false" for slot in slots.slots] or ["false"]
    head = [
        f"typedef {'double' if dtype == torch.float64 else 'float'} T;",
        f"constexpr int N = {n}, STAGES = {stages}, USED = {stages - (table.b[-1] == 0.0)};",
        f"constexpr int ERROR_ORDER = {table.error_order}, LEAVES = {len(slots.slots)};",
        f"constexpr int OWN_SIZE = {sum(s.size for s in slots.slots if s.own)};",
        f"constexpr int SHARED_SIZE = {sum(s.size for s in slots.slots if s.wanted and not s.own)};",
        f"constexpr bool WANTED[] = {{{', '.join(wanted)}}};",
        *_tableau(table),
        f"constexpr int SAVED = {len(kept)};",
    ]
    text = _template().replace("// FIELD", "\n".join(parts), 1)
    text = text.replace("// ARGUMENTS", "\n".join(s.cpp() for s in (LEAF, GRID, SETTINGS)), 1)
    return "\n".join(head) + "\n" + text


def _tableau(table: ButcherTableau) -> list[str]:
    """The coefficients as C++ constants."""
    assert table.dense is not None
    assert table.b_error is not None
    stages = len(table.b)

    def numbers(values: Sequence[float]) -> str:
        return "{" + ", ".join(repr(float(v)) for v in values) + "}"

    rows = [[*row, *[0.0] * (stages - len(row))] for row in table.a]
    return [
        f"constexpr T A[STAGES][STAGES] = {{{', '.join(map(numbers, rows))}}};",
        f"constexpr T B[STAGES] = {numbers(table.b)}, C[STAGES] = {numbers(table.c)};",
        f"constexpr T E[STAGES] = {numbers(table.b_error)};",
        f"constexpr T DENSE[STAGES][4] = {{{', '.join(map(numbers, table.dense))}}};",
    ]


LEAF = Struct(
    "Leaf",
    (*fields("real*", "data", constant=True), *fields("int64", "size", "rollouts", "held", "controls")),
)
"""Where a slot's values are.

``size`` numbers of one rollout under one control; ``rollouts`` 1 if every rollout has its own; ``held`` numbers from
one control to the next, 0 if there is one; ``controls`` how many there are, 1 if not held.
"""
GRID = Struct(
    "Grid",
    (
        *fields("real*", "targets", constant=True),
        *fields("int64*", "controls", "at_target", "inside", "inside_ends", constant=True),
        *fields("real*", "ts", constant=True),
    ),
)
"""``targets``, ``controls`` and ``at_target`` (-1: no output) of ``[legs]``; ``inside``: the outputs strictly inside
legs, leg after leg, those of a leg up to its ``inside_ends``; ``ts [outputs]``."""
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
SETTINGS = Struct(
    "Settings", (*fields("int64", "batch", "legs", "outputs", "max_steps"), *fields("real", *_CONTROLLER))
)


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
        self.grid = GRID.ctypes(dtype)(
            self.targets.data_ptr(), *(v.data_ptr() for v in self.ints), self.ts.data_ptr()
        )
        c = problem.controller
        assert c is not None
        values = [getattr(c, name) for name in _CONTROLLER]
        self.settings = SETTINGS.ctypes(dtype)(
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
        leaf = LEAF.ctypes(dtype)
        self.leaves = (leaf * max(1, len(self.data)))()
        for k, (slot, data) in enumerate(zip(kernel.slots.slots, self.data, strict=True)):
            controls = len(data) if slot.held else 1
            stride = data.numel() // controls if slot.held else 0
            self.leaves[k] = leaf(data.data_ptr(), slot.size, int(slot.own), stride, controls)
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
        slots = self.kernel.slots.slots
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
