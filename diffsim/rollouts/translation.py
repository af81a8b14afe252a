"""From a simulator's step, a policy and a terminal value to the C++ of a kernel: traced, differentiated, printed."""

from __future__ import annotations

import copy
import functools
import importlib.resources
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsim.policy import PROJECTED_CLIP
from diffsim.rollouts.inputs import Inputs
from diffsim.rollouts.layers import Held, Linear, Network, shared_input
from diffsim.rollouts.noise import Noise
from robotics_envs.base import Env
from solvers.compiler.expressions import Graph, Node, in_order, to_cpp
from solvers.compiler.rules import elementwise
from solvers.compiler.trace import NativeUnsupportedError, Tracer
from solvers.native import build

_MOST_NODES = 40_000  # beyond, the C++ compiler takes minutes
_INLINE = 400
"""Vector fields of at most so many operations are inlined at every stage of the solver; larger ones are called."""


_OWN_RULES = {PROJECTED_CLIP: elementwise("clip", 1)}


@dataclass(frozen=True)
class Slot:
    """A shared input of the kernel: the tensor, and whether a gradient with respect to it is wanted."""

    tensor: Tensor | str
    """A tensor of a function, or the name of a physical parameter."""
    size: int
    wanted: bool


@functools.cache
def _template() -> str:
    return build.with_vectors(
        importlib.resources.files("diffsim.rollouts").joinpath("rollout.cpp").read_text()
    )


@dataclass
class Translation:
    """The traced functions and the tensors that their C++ refers to."""

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
        """The simulator with a dt that is an argument, and large vector fields as separate C++ functions."""
        env = copy.copy(self.inputs.env)
        like = self.inputs.x0
        with tracer.paused():
            dt = tracer.bind(
                torch.tensor(float(env.dt), dtype=like.dtype, device=like.device), _array([self.dt], ())
            )
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
                clock = own.bind(
                    torch.as_tensor(t, dtype=x.dtype, device=x.device).clone(), _array(nodes[:1], ())
                )
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
        """Offsets of the gradients of slots that scalar expressions read, by slot. Later calls may add slots."""
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
        weights = {f"splat(in.shared[{op.weight}]" for op in self._linears() if self.slots[op.weight].wanted}
        if any(node.name.partition("]")[0] + "]" in weights for node in below if node.op == "input"):
            raise NativeUnsupportedError("a weight matrix is used in a layer and outside of it")
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
        # The number of vectors of a matrix's gradient depends on LANES: C++ computes it.
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


def _array(nodes: Sequence[Node], shape: Sequence[int]) -> np.ndarray:
    array = np.empty(len(nodes), dtype=object)
    array[:] = nodes
    return array.reshape(tuple(shape))
