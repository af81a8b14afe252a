"""``backend="native"``: rollouts in C++ made from the simulator's step, the policy and the terminal value.

All three are traced once, differentiated as scalar expression graphs (``solvers.native``) and put into
``rollout.cpp``.  Batch size, horizon, dt and every tensor's values are run-time arguments.  Tracing freezes what is
not a tensor; numbers among the attributes of the simulator and the modules are watched: another value traces anew.
"""

from __future__ import annotations

import copy
import ctypes
import functools
import importlib.resources
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsim.policy import PROJECTED_CLIP
from diffsim.rollouts.inputs import Engine, Inputs, Outcome, UnsupportedError
from diffsim.rollouts.layers import Held, Linear, Network, shared_input
from diffsim.rollouts.noise import Noise
from diffsim.rollouts.stepwise import Stepwise
from robotics_envs.base import Env
from solvers.native import build
from solvers.native.expressions import Graph, Node, in_order, to_cpp
from solvers.native.rules import elementwise
from solvers.native.trace import NativeUnsupportedError, Tracer

_MOST_NODES = 30_000  # beyond, the C++ compiler takes minutes
_INLINE = 400
"""Vector fields of at most so many operations are written out at every stage of the solver, larger ones called."""
_GROUPS = 32
"""Blocks of rollouts are divided into so many groups, whose gradients are summed apart and then in order."""


_OWN_RULES = {PROJECTED_CLIP: elementwise("clip", 1)}


@dataclass(frozen=True)
class Slot:
    """A shared input of the kernel: the tensor, and whether a gradient with respect to it is wanted."""

    tensor: Tensor | str
    """A tensor that is held, or the name of a physical parameter."""
    size: int
    wanted: bool


@functools.cache
def _template() -> str:
    return build.with_vectors(
        importlib.resources.files("diffsim.rollouts").joinpath("rollout.cpp").read_text()
    )


@dataclass
class Translation:
    """The traced functions with everything that their C++ refers to."""

    inputs: Inputs
    gradient: bool
    graph: Graph = field(default_factory=Graph)
    slots: list[Slot] = field(default_factory=list)
    functions: list[str] = field(default_factory=list)
    """C++ of vector fields that are called."""

    def __post_init__(self) -> None:
        inputs, g = self.inputs, self.graph
        self._slot_of: dict[int, int] = {}
        self._offsets: dict[int, int] = {}
        env = inputs.env
        n, m = len(env.state_names), len(env.action_box)
        self.n = n
        self.x = [g.input(f"in.x[{i}]") for i in range(n)]
        self.made_noise = m if isinstance(inputs.noise, Noise) else 0
        self.timed_sizes = [m for q in (inputs.noise, inputs.controls) if isinstance(q, Tensor)]
        self.timed = [g.input(f"in.timed[{k}]") for k in range(self.made_noise + sum(self.timed_sizes))]
        self.own_names = [k for k, v in inputs.p.items() if v.ndim == 1]
        self.own = [g.input(f"in.own[{k}]") for k in range(len(self.own_names))]
        self.dt = g.input("splat(in.dt)")
        self.p: dict[str, tuple[Tensor, np.ndarray]] = {}
        for name, value in inputs.p.items():
            if value.ndim == 1:
                node, example = self.own[self.own_names.index(name)], value.detach()[:1].clone()
            else:
                slot = self._new_slot(name, 1, value.requires_grad)
                node, example = g.input(shared_input(slot, 0)), value.detach().clone()
            self.p[name] = example, _array([node], example.shape)
        trainable = {id(q) for q in inputs.parameters}

        def captured(tensor: Tensor) -> Any:
            if not tensor.is_floating_point():
                return tensor.detach().numpy().astype(object)
            if tensor.requires_grad and id(tensor) not in trainable:
                raise NativeUnsupportedError("a tensor that requires a gradient is neither p nor a parameter")
            if id(tensor) not in self._slot_of:
                self._slot_of[id(tensor)] = self._new_slot(tensor, tensor.numel(), tensor.requires_grad)
            return Held(g, self._slot_of[id(tensor)], tuple(tensor.shape))

        self._captured = captured
        self.policy = Network("Policy", g, _OWN_RULES)
        self.value = Network("Value", g, _OWN_RULES)
        self.results: list[Node | float] = self._trace_step()
        self.value_result: Node | float | None = self._trace_value() if inputs.terminal is not None else None
        self.policy.settle()
        self.value.settle()

    def _new_slot(self, tensor: Tensor | str, size: int, wanted: bool) -> int:
        self.slots.append(Slot(tensor, size, wanted and self.gradient))
        return len(self.slots) - 1

    def _run(self, network: Network, function: Callable[[Tracer], list[Tensor]]) -> list[np.ndarray]:
        tracer = Tracer(self.graph, self._captured, network.rules)
        try:
            with torch.no_grad(), tracer:
                results = function(tracer)
            return [network.scalars(tracer.array(result)).reshape(-1) for result in results]
        except NativeUnsupportedError:
            raise
        except Exception as error:
            raise NativeUnsupportedError(f"the step could not be traced: {error}") from error

    def _trace_step(self) -> list[Node | float]:
        """Nodes of the next state and the cost."""
        inputs = self.inputs

        x_example = inputs.x0.detach()[:1].clone()
        given = (inputs.noise_at(0), None if inputs.controls is None else inputs.controls[0])
        timed_examples = [q.detach()[:1].clone() for q in given if q is not None]

        def function(tracer: Tracer) -> list[Tensor]:
            x = tracer.bind(x_example, _array(self.x, (1, self.n)))
            p = {name: tracer.bind(*pair) for name, pair in self.p.items()}
            timed, at = [], 0
            for tensor in timed_examples:
                size = tensor.numel()
                timed.append(tracer.bind(tensor, _array(self.timed[at : at + size], (1, size))))
                at += size
            noise = timed.pop(0) if inputs.noise is not None else None
            u = timed[0] if timed else inputs.act(x, noise)
            env = self._with_symbols(tracer, p)
            return list(env.step(x, u, p))

        next_x, cost = self._run(self.policy, function)
        if next_x.size != self.n or cost.size != 1:
            raise NativeUnsupportedError(
                f"step returns {next_x.size} states and {cost.size} costs for one rollout"
            )
        return [*next_x, *cost]

    def _trace_value(self) -> Node | float:
        x_example = self.inputs.x0.detach()[:1].clone()

        def function(tracer: Tracer) -> list[Tensor]:
            x = tracer.bind(x_example, _array(self.x, (1, self.n)))
            assert self.inputs.terminal is not None
            return [self.inputs.terminal(x)]

        (result,) = self._run(self.value, function)
        if result.size != 1:
            raise NativeUnsupportedError(f"the terminal value has {result.size} numbers for one rollout")
        return result[0]

    def _with_symbols(self, tracer: Tracer, p: dict[str, Tensor]) -> Env:
        """The simulator with a dt that is an argument, and large vector fields as C++ functions of their own."""
        env = copy.copy(self.inputs.env)
        like = self.inputs.x0
        with tracer.paused():
            dt = tracer.bind(torch.tensor(float(env.dt), dtype=like.dtype), _array([self.dt], ()))
        env.dt = dt  # type: ignore[misc, assignment]
        dynamics = env.dynamics
        known: dict[tuple[str, ...], str] = {}
        small = False

        def called(t: Any, x: Tensor, u: Tensor, p_given: Any) -> Tensor:
            nonlocal small
            if small or x.shape != (1, self.n) or u.shape[0] != 1 or p_given is not p:
                return dynamics(t, x, u, p_given)
            time = [*tracer.array(t).reshape(-1)] if isinstance(t, Tensor) else [float(t)]
            args = [*time, *tracer.array(x).reshape(-1), *self.policy.scalars(tracer.array(u)).reshape(-1)]
            nodes = [self.graph.input(f"a[{k}]") for k in range(len(args))]
            own = Tracer(self.graph, self._captured, self.policy.rules)
            with tracer.paused():
                for name, pair in self.p.items():
                    own.bind(p[name], pair[1])
                clock = own.bind(torch.as_tensor(t, dtype=x.dtype).clone(), _array(nodes[:1], ()))
                state = own.bind(x.clone(), _array(nodes[1 : self.n + 1], (1, self.n)))
                control = own.bind(u.clone(), _array(nodes[self.n + 1 :], tuple(u.shape)))
                with own:
                    result = dynamics(clock, state, control, p)
            slopes = list(self.policy.scalars(own.array(result)).reshape(-1))
            small = len(in_order([q for q in slopes if isinstance(q, Node)])) <= _INLINE
            if small or len(slopes) != self.n:
                return dynamics(t, x, u, p)
            key = tuple(str(q.number if isinstance(q, Node) else q) for q in slopes)
            if key not in known:
                known[key] = self._function(f"field{len(known)}", slopes, nodes)
            results = self.graph.call(known[key], args, self.n)
            return tracer.bind(result, _array(results, (1, self.n)))

        env.dynamics = called  # type: ignore[method-assign, assignment]
        return env

    def _function(self, name: str, slopes: list[Node | float], nodes: list[Node]) -> str:
        """Print a vector field and its gradient; returns the name."""
        body = to_cpp([(f"r[{i}] =", q) for i, q in enumerate(slopes)])
        self.functions.append(f"static void {name}(const In& in, const V* a, V* r) {{\n{body}\n}}")
        if self.gradient:
            bars = [self.graph.input(f"a[{len(nodes) + i}]") for i in range(len(slopes))]
            results = self.pull(slopes, bars, {f"r[{k}] =": node for k, node in enumerate(nodes)})
            self.functions.append(
                f"static void {name}_vjp(const In& in, const V* a, V* r) {{\n{to_cpp(results)}\n}}"
            )
        return name

    def _linears(self) -> list[Linear]:
        return [*self.policy.linears(), *self.value.linears()]

    def offsets(self) -> dict[int, int]:
        """Where the gradients of slots gather that scalar expressions read, by slot. Later calls may add slots."""
        weights = {op.weight for op in self._linears()}
        for k, slot in enumerate(self.slots):
            if slot.wanted and k not in weights and k not in self._offsets:
                self._offsets[k] = sum(self.slots[i].size for i in self._offsets)
        return self._offsets

    def pull(
        self,
        outputs: Sequence[Node | float],
        bars: Sequence[Node],
        inputs: dict[str, Node],
    ) -> list[tuple[str, Node | float]]:
        """Assignments of the gradient: to ``inputs`` by C++ target (``"by_x[0] ="``), and to all parameters."""
        below = set(in_order([q for q in outputs if isinstance(q, Node)]))
        gathered: dict[str, Node] = {}
        for k, (name, node) in enumerate(zip(self.own_names, self.own, strict=True)):
            if self.inputs.p[name].requires_grad and node in below:
                gathered[f"in.by_own[{k}] +="] = node
        for slot, offset in self.offsets().items():
            for j in range(self.slots[slot].size):
                node = self.graph.input(shared_input(slot, j))
                if node in below:
                    gathered[f"in.by_shared[{offset + j}] +="] = node
        gradients = self.graph.gradient(outputs, bars, [*inputs.values(), *gathered.values()])
        return list(zip([*inputs, *gathered], gradients, strict=True))

    def source(self) -> str:
        """The kernel's C++."""
        g, n = self.graph, self.n
        offsets = self.offsets()
        x_bars = {f"by_x[{i}] =": node for i, node in enumerate(self.x)}
        x_added = {f"by_x[{i}] +=": node for i, node in enumerate(self.x)}
        raw_of = lambda net: {f"by_raw[{i}] =": node for i, node in enumerate(net.raw.values())}
        # How many vectors gather a matrix's gradient depends on the lanes: C++ counts them.
        at = [f"constexpr int GATHERED_0 = {sum(self.slots[k].size for k in offsets)};"]
        spread: list[str] = []
        for network in (self.policy, self.value):
            for op in network.linears():
                if self.slots[op.weight].wanted:
                    op.gathered = f"GATHERED_{len(spread)}"
                    spread.append(network.spread(op))
                    at.append(f"constexpr int GATHERED_{len(spread)} = {op.gathered} + {network.room(op)};")
        at.append(f"constexpr int BY_SHARED = GATHERED_{len(spread)};")
        structs = []
        for network in (self.policy, self.value):
            stored = [node for _, node in network.prologue()]
            pulled = self.pull(stored, network.cotangents(), x_added) if self.gradient else []
            structs.append(network.to_cpp(pulled, offsets, self.gradient))
        targets = [f"next[{i}] =" for i in range(n)] + ["cost ="]
        step = to_cpp(list(zip(targets, self.results, strict=True)))
        parts = [*at, *self.functions, *structs]
        spreading = "\n".join(spread)
        parts.append(
            f"static void spread_weights(const V* gathered, T* const* by, int64_t g) {{\n{spreading}\n}}"
        )
        parts.append(f"static inline void step(const In& in, V* next, V& cost) {{\n{step}\n}}")
        has_value = self.value_result is not None
        result = to_cpp([("result =", self.value_result if self.value_result is not None else 0.0)])
        parts.append(f"static inline void value(const In& in, V& result) {{\n{result}\n}}")
        if self.gradient:
            bars = [g.input(f"lambda[{i}]") for i in range(n)] + [g.input("bar_cost")]
            timed = {f"by_timed[{k}] =": node for k, node in enumerate(self.timed)}
            pulled = self.pull(self.results, bars, {**x_bars, **raw_of(self.policy), **timed})
            parts.append(
                "static inline void step_vjp(const In& in, const V* lambda, V bar_cost, V* by_x, V* by_raw, "
                f"V* by_timed) {{\n{to_cpp(pulled)}\n}}"
            )
            pulled = []
            if self.value_result is not None:
                pulled = self.pull(
                    [self.value_result], [g.input("bar_value")], {**x_added, **raw_of(self.value)}
                )
            parts.append(
                "static inline void value_vjp(const In& in, V bar_value, V* by_x, V* by_raw) {\n"
                f"{to_cpp(pulled)}\n}}"
            )
        size = sum(len(part.splitlines()) for part in parts)
        if size > _MOST_NODES:
            raise NativeUnsupportedError(f"the step has {size} scalar operations, more than {_MOST_NODES}")
        raw = max(len(self.policy.raw), len(self.value.raw))
        slots = self.slots

        def array(name: str, values: Sequence[int]) -> str:
            return f"constexpr int {name}[] = {{{', '.join(map(str, [*values, 0]))}}};"

        head = [
            f"typedef {'double' if self.inputs.x0.dtype == torch.float64 else 'float'} T;",
            f"constexpr int N = {n}, TIMED = {len(self.timed)}, TIMED_LEAVES = {len(self.timed_sizes)};",
            f"constexpr int OWN = {len(self.own)}, SHARED = {len(slots)}, RAW = {raw};",
            f"constexpr int MADE_NOISE = {self.made_noise};",
            array("TIMED_SIZES", self.timed_sizes),
            array("SIZES", [s.size for s in slots]),
            array("OFFSETS", [offsets.get(k, -1) for k in range(len(slots))]),
            f"constexpr bool HAS_VALUE = {str(has_value).lower()};",
            f"#define GRADIENT {int(self.gradient)}",
        ]
        return "\n".join(head) + "\n" + _template().replace("// EMITTED", "\n".join(parts), 1)


class Native(Engine):
    """A compiled rollout."""

    @classmethod
    def prepare(cls, inputs: Inputs, gradient: bool) -> Native:
        if inputs.x0.device.type != "cpu":
            raise UnsupportedError(f"native kernels run on the CPU, the states are on {inputs.x0.device}")
        if inputs.x0.dtype not in (torch.float32, torch.float64):
            raise UnsupportedError(f"native kernels take float32 and float64, not {inputs.x0.dtype}")
        try:
            engine = cls(inputs, gradient)
        except NativeUnsupportedError as error:
            raise UnsupportedError(str(error)) from error
        _compare(engine, inputs, gradient)
        return engine

    def __init__(self, inputs: Inputs, gradient: bool) -> None:
        # Once for real: tensors that are made on first use and kept (bounds, tables) exist before the trace.
        Stepwise().forward(_few(inputs), keep_states=False)
        translation = Translation(inputs, gradient)
        self.library = build.load(translation.source())
        self.slots = translation.slots
        self.own_names = translation.own_names
        self.timed_sizes = translation.timed_sizes
        self.gradient = gradient
        self.arguments_type = _arguments_type(len(self.timed_sizes), len(self.own_names), len(self.slots))
        if self.library.size_of_arguments() != ctypes.sizeof(self.arguments_type):
            raise NativeUnsupportedError("the compiler lays out the kernel's arguments in an unknown way")

    def forward(self, inputs: Inputs, keep_states: bool) -> tuple[Outcome, Any]:
        x0 = inputs.x0.detach()
        batch, n = x0.shape
        new = x0.new_empty
        states = new(inputs.steps + 1, n, batch) if keep_states else None
        last, costs = new(n, batch), new(inputs.steps, batch)
        values = new(batch) if inputs.terminal is not None else None
        arguments = self._arguments(inputs, x0)
        arguments.states, arguments.last, arguments.costs = _p(states), _p(last), _p(costs)
        arguments.values = _p(values)
        self.library.forward(ctypes.byref(arguments))
        kept = None if states is None else states.transpose(1, 2)
        return Outcome(kept, last.t(), costs, values), arguments

    def backward(self, inputs: Inputs, states: Tensor, by: Outcome, kept: Any) -> dict[Any, Tensor]:
        x0 = inputs.x0.detach()
        batch, n = x0.shape
        arguments = kept
        arguments.states = _p(states)
        arguments.by_costs = _strided(by.costs, "tb")
        arguments.by_states = _strided(by.states, "tbn")
        arguments.by_last = _strided(by.last, "bn")
        arguments.by_values = _strided(by.values, "b")
        gradients: dict[Any, Tensor] = {}
        by_x0 = x0.new_empty(n, batch)
        gradients["x0"] = by_x0.t()
        arguments.by_x0 = _p(by_x0)
        timed = [k for k in ("noise", "controls") if isinstance(getattr(inputs, k), Tensor)]
        for k, (name, size) in enumerate(zip(timed, self.timed_sizes, strict=True)):
            if getattr(inputs, name).requires_grad:
                gradient = x0.new_empty(inputs.steps, size, batch)
                arguments.by_timed[k], gradients[name] = _p(gradient), gradient.transpose(1, 2)
        for k, name in enumerate(self.own_names):
            if inputs.p[name].requires_grad:
                gradients[name] = x0.new_empty(batch)
                arguments.by_own[k] = _p(gradients[name])
        rooms = []
        for k, slot in enumerate(self.slots):
            if not slot.wanted:
                continue
            room = x0.new_empty(arguments.groups + 1, slot.size)
            arguments.by_shared[k] = _p(room)
            rooms.append((slot, room))
        self.library.backward(ctypes.byref(arguments))
        for slot, room in rooms:
            if isinstance(slot.tensor, str):
                gradients[slot.tensor] = room[-1, 0].clone()
            else:
                gradients[id(slot.tensor)] = room[-1].reshape(slot.tensor.shape).clone()
        return gradients

    def _arguments(self, inputs: Inputs, x0: Tensor) -> Any:
        a = self.arguments_type()
        batch = x0.shape[0]
        a.batch, a.steps, a.members = batch, inputs.steps, inputs.members
        a.threads, a.groups = inputs.threads, min(_GROUPS, -(-batch // 64))
        a.truncate, a.dt = inputs.truncate or 0, float(inputs.env.dt)
        a.x0 = _strided(x0, "bn")
        for k, tensor in enumerate(q for q in (inputs.noise, inputs.controls) if isinstance(q, Tensor)):
            a.timed[k] = _strided(tensor.detach(), "tbn")
        if isinstance(inputs.noise, Noise):
            a.noise_seed, a.noise_start = inputs.noise.seed, inputs.noise.start
            a.noise_scale = inputs.noise.scale
        keep = []
        for k, name in enumerate(self.own_names):
            a.own[k] = _strided(inputs.p[name].detach(), "b")
        for k, slot in enumerate(self.slots):
            tensor = inputs.p[slot.tensor] if isinstance(slot.tensor, str) else slot.tensor
            stacked = inputs.stacked.get(id(tensor))
            data = tensor if stacked is None else stacked
            if data.dtype != x0.dtype or not data.is_contiguous():
                data = data.detach().to(x0.dtype).contiguous()
            keep.append(data)
            a.shared[k], a.member[k] = _p(data), 0 if stacked is None else slot.size
        a.keep = keep
        return a


class _Strided(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), *((k, ctypes.c_int64) for k in ("time", "rollout", "component"))]


@functools.cache
def _arguments_type(timed: int, own: int, shared: int) -> type[ctypes.Structure]:
    p, i = ctypes.c_void_p, ctypes.c_int64

    class Arguments(ctypes.Structure):
        _fields_ = [
            *((k, i) for k in ("batch", "steps", "members", "threads", "groups", "truncate")),
            ("noise_seed", ctypes.c_uint64),
            ("noise_start", i),
            ("noise_scale", ctypes.c_double),
            ("dt", ctypes.c_double),
            ("x0", _Strided),
            ("timed", _Strided * (timed + 1)),
            ("own", _Strided * (own + 1)),
            ("shared", p * (shared + 1)),
            ("member", i * (shared + 1)),
            *((k, p) for k in ("states", "last", "costs", "values")),
            *((k, _Strided) for k in ("by_costs", "by_states", "by_last", "by_values")),
            ("by_x0", p),
            ("by_timed", p * (timed + 1)),
            ("by_own", p * (own + 1)),
            ("by_shared", p * (shared + 1)),
        ]

    return Arguments


def _strided(tensor: Tensor | None, axes: str) -> _Strided:
    if tensor is None:
        return _Strided(None, 0, 0, 0)
    strides = dict(zip(axes, tensor.stride(), strict=True))
    return _Strided(tensor.data_ptr(), strides.get("t", 0), strides.get("b", 0), strides.get("n", 0))


def _p(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _array(nodes: Sequence[Node], shape: Sequence[int]) -> np.ndarray:
    array = np.empty(len(nodes), dtype=object)
    array[:] = nodes
    return array.reshape(tuple(shape))


def _compare(engine: Native, inputs: Inputs, gradient: bool) -> None:
    """Run a few rollouts for two control intervals on both back ends, and refuse where they differ."""
    few = _few(inputs)
    eager = Stepwise()
    states = []
    gradients = []
    for back_end in (eager, engine):
        outcome, kept = back_end.forward(few, keep_states=True)
        results = [outcome.costs, outcome.last, *([] if outcome.values is None else [outcome.values])]
        states.append(results)
        if gradient:
            ones = Outcome(
                None, torch.ones_like(few.x0), *(q if q is None else torch.ones_like(q) for q in outcome[2:])
            )
            assert outcome.states is not None
            gradients.append(back_end.backward(few, outcome.states, ones, kept))
    tolerance = 1e-9 if few.x0.dtype == torch.float64 else 1e-3
    for right, got in zip(*states, strict=True):
        _agree("the next state or cost", right, got, tolerance)
    if gradient:
        for name, tensor in few.named().items():
            if tensor.requires_grad:
                zero = torch.zeros_like(tensor)
                _agree("the gradient", gradients[0].get(name, zero), gradients[1].get(name, zero), tolerance)


def _agree(what: str, right: Tensor, got: Tensor, tolerance: float) -> None:
    if not right.isfinite().all():
        return  # nothing to compare with
    difference = float((right - got).abs().max() / (1.0 + right.abs().max()))
    if not difference < tolerance:
        raise UnsupportedError(
            f"{what} of the compiled step differs from torch's by {difference:.2g} (relative); does the step mix "
            "rollouts, branch on values or hold a torch.autograd.Function of its own?"
        )


def _few(inputs: Inputs) -> Inputs:
    """Three rollouts and two control intervals of these inputs."""
    some = slice(0, 3)
    moved: dict[str, Any] = {
        name: q.detach()[:1, some].expand(2, -1, -1).requires_grad_(q.requires_grad)
        if isinstance(q, Tensor)
        else q
        for name, q in (("noise", inputs.noise), ("controls", inputs.controls))
    }
    p = {k: (v[some] if v.ndim else v).detach().requires_grad_(v.requires_grad) for k, v in inputs.p.items()}
    x0 = inputs.x0.detach()[some].clone().requires_grad_(inputs.x0.requires_grad)
    return replace(inputs, x0=x0, steps=2, p=p, threads=1, members=1, stacked={}, truncate=None, **moved)
