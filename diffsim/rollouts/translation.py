"""From a simulator's step, a policy and a terminal value to the C++ of a kernel: traced, differentiated, printed."""

from __future__ import annotations

import copy
import functools
import importlib.resources
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from diffsim.rollouts.inputs import Inputs
from diffsim.rollouts.noise import Noise
from robotics_envs.base import Env
from solvers.compiler.differentiate import gradient
from solvers.compiler.ir import Function, Graph, Node, Operand, Place, Store, in_order, inputs_of
from solvers.compiler.layers import Held, Linear, Network
from solvers.compiler.limits import INLINE, check_lines
from solvers.compiler.print_cpp import Printer
from solvers.compiler.print_layers import SPACES as LAYER_SPACES
from solvers.compiler.print_layers import NetworkPrinter
from solvers.compiler.slots import Slots, array_of
from solvers.compiler.structs import Struct
from solvers.compiler.trace import NativeUnsupportedError, Tracer
from solvers.native import build
from solvers.native.units import divided

SPACES = {
    **LAYER_SPACES,
    # What functions read, of one vector of rollouts.
    "x": "in.x[{index}]",
    "timed": "in.timed[{index}]",
    "own": "in.own[{index}]",
    "shared": "splat(in.shared[{slot}][{index}])",
    "raw": "in.raw[{index}]",
    "dt": "splat(in.dt)",
    "by_next": "lambda[{index}]",
    "by_cost": "bar_cost",
    "by_value": "bar_value",
    # What they write.
    "next": "next[{index}]",
    "cost": "cost",
    "value": "result",
    "by_x": "by_x[{index}]",
    "by_raw": "by_raw[{index}]",
    "by_timed": "by_timed[{index}]",
    "by_own": "in.by_own[{index}]",
    "by_shared": "in.by_shared[{index}]",
}


Parameters = tuple[tuple[str, str], ...]


@functools.cache
def _template() -> str:
    return build.with_headers(
        importlib.resources.files("diffsim.rollouts").joinpath("rollout.cpp").read_text()
    )


@dataclass
class Translation:
    """The traced functions and the tensors that their C++ refers to."""

    inputs: Inputs
    gradient: bool
    graph: Graph = field(default_factory=Graph)

    def __post_init__(self) -> None:
        inputs, g = self.inputs, self.graph
        env = inputs.env
        n, m = len(env.state_names), len(env.action_box)
        self.n = n
        self.x = [g.input("x", i) for i in range(n)]
        self.made_noise = m if isinstance(inputs.noise, Noise) else 0
        self.timed_sizes = [m for q in (inputs.noise, inputs.controls) if isinstance(q, Tensor)]
        self.timed = [g.input("timed", k) for k in range(self.made_noise + sum(self.timed_sizes))]
        self.own_names = [k for k, v in inputs.p.items() if v.ndim == 1]
        self.own = [g.input("own", k) for k in range(len(self.own_names))]
        self.dt = g.input("dt")
        unknown = "a tensor that requires a gradient is neither p nor a parameter"
        self.slots = Slots(g, inputs.parameters, unknown, self.gradient, inputs.fixed)
        self.p: dict[str, tuple[Tensor, Any]] = {}
        for name, value in inputs.p.items():
            if value.ndim == 1:
                node, example = self.own[self.own_names.index(name)], value.detach()[:1].clone()
            else:
                (node,) = self.slots.nodes(self.slots.add(name, 1, value.requires_grad))
                example = value.detach().clone()
            self.p[name] = example, array_of([node], example.shape)
        self.policy = Network("Policy", g)
        self.value = Network("Value", g)
        self.results: list[Operand] = self._trace_step()
        self.value_result: Operand | None = self._trace_value() if inputs.terminal is not None else None
        self.policy.settle()
        self.value.settle()

    def _captured(self, tensor: Tensor) -> Any:
        slot = self.slots.captured(tensor)
        return Held(self.graph, slot, tuple(tensor.shape)) if isinstance(slot, int) else slot

    def _run(self, network: Network, function: Callable[[Tracer], list[Tensor]]) -> list[Any]:
        tracer = Tracer(self.graph, self._captured, network.rules)
        try:
            with torch.no_grad(), tracer:
                results = function(tracer)
            return [network.scalars(tracer.array(result)).reshape(-1) for result in results]
        except NativeUnsupportedError:
            raise
        except Exception as error:
            raise NativeUnsupportedError(f"the step could not be traced: {error}") from error

    def _trace_step(self) -> list[Operand]:
        """Nodes of the next state and the cost."""
        inputs = self.inputs

        x_example = inputs.x0.detach()[:1].clone()
        given = (inputs.noise_at(0), None if inputs.controls is None else inputs.controls[0])
        timed_examples = [q.detach()[:1].clone() for q in given if q is not None]

        def function(tracer: Tracer) -> list[Tensor]:
            x = tracer.bind(x_example, array_of(self.x, (1, self.n)))
            p = {name: tracer.bind(*pair) for name, pair in self.p.items()}
            timed, at = [], 0
            for tensor in timed_examples:
                size = tensor.numel()
                timed.append(tracer.bind(tensor, array_of(self.timed[at : at + size], (1, size))))
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

    def _trace_value(self) -> Operand:
        x_example = self.inputs.x0.detach()[:1].clone()

        def function(tracer: Tracer) -> list[Tensor]:
            x = tracer.bind(x_example, array_of(self.x, (1, self.n)))
            assert self.inputs.terminal is not None
            return [self.inputs.terminal(x)]

        (result,) = self._run(self.value, function)
        if result.size != 1:
            raise NativeUnsupportedError(f"the terminal value has {result.size} numbers for one rollout")
        return result[0]

    def _with_symbols(self, tracer: Tracer, p: dict[str, Tensor]) -> Env:
        """The simulator with a dt that is an argument, and a large vector field as a function that is called."""
        env = copy.copy(self.inputs.env)
        like = self.inputs.x0
        with tracer.paused():
            dt = tracer.bind(
                torch.tensor(float(env.dt), dtype=like.dtype, device=like.device), array_of([self.dt], ())
            )
        env.dt = dt  # type: ignore[misc, assignment]
        # By name and the shape of u; None for a small one, which is written out.  A field that were another function
        # at another stage would be noticed when the kernel is compared with torch.
        fields: dict[tuple[str, torch.Size], Function | None] = {}

        def calling(name: str) -> Callable[..., Tensor]:
            field = getattr(env, name)

            def called(t: Any, x: Tensor, u: Tensor, p_given: Any) -> Tensor:
                if x.shape != (1, self.n) or u.shape[0] != 1 or p_given is not p:
                    return field(t, x, u, p_given)
                time = [*tracer.array(t).reshape(-1)] if isinstance(t, Tensor) else [float(t)]
                control = self.policy.scalars(tracer.array(u))
                args = [*time, *tracer.array(x).reshape(-1), *control.reshape(-1)]
                key = (name, u.shape)
                if key not in fields:
                    with tracer.paused():
                        fields[key] = self._field(field, len(fields), t, x, u, p)
                function = fields[key]
                if function is None:
                    return field(t, x, u, p)
                with tracer.paused():
                    result = torch.zeros_like(x)
                return tracer.bind(result, array_of(self.graph.call(function, args), (1, self.n)))

            return called

        for name in env.called_fields:
            setattr(env, name, calling(name))
        return env

    def _field(
        self, dynamics: Callable[..., Tensor], number: int, t: Any, x: Tensor, u: Tensor, p: dict[str, Tensor]
    ) -> Function | None:
        """The vector field as a function of time, state and control; None if it is small."""
        nodes = self.graph.parameters(1 + self.n + u.numel())
        own = Tracer(self.graph, self._captured, self.policy.rules)
        for name, pair in self.p.items():
            own.bind(p[name], pair[1])
        clock = torch.as_tensor(t, dtype=x.dtype, device=x.device).clone()
        own.bind(clock, array_of(nodes[:1], ()))
        state = own.bind(x.clone(), array_of(nodes[1 : self.n + 1], (1, self.n)))
        control = own.bind(u.clone(), array_of(nodes[self.n + 1 :], tuple(u.shape)))
        with own:
            result = dynamics(clock, state, control, p)
        slopes = list(self.policy.scalars(own.array(result)).reshape(-1))
        if len(in_order(slopes)) <= INLINE or len(slopes) != self.n:
            return None
        return Function(f"field{number}", nodes, slopes)

    def _linears(self) -> list[Linear]:
        return [*self.policy.linears(), *self.value.linears()]

    def _offsets(self) -> dict[int, int]:
        """Where the gradients of slots that scalar expressions read gather, by slot."""
        weights = {op.weight for op in self._linears()}
        offsets: dict[int, int] = {}
        for k, slot in enumerate(self.slots.slots):
            if slot.wanted and k not in weights:
                offsets[k] = sum(self.slots.slots[i].size for i in offsets)
        return offsets

    def _gathered(self, offsets: dict[int, int]) -> dict[Node, Place]:
        """Where gradients by parameters add up, by the parameter."""
        gathered = {}
        for k, (name, node) in enumerate(zip(self.own_names, self.own, strict=True)):
            if self.inputs.p[name].requires_grad:
                gathered[node] = Place("by_own", k)
        for slot, offset in offsets.items():
            for j, node in enumerate(self.slots.nodes(slot)):
                gathered[node] = Place("by_shared", offset + j)
        return gathered

    def _pull(
        self,
        outputs: Sequence[Operand],
        bars: Sequence[Node],
        inputs: Sequence[tuple[Place, Node]],
        gathered: dict[Node, Place],
        adds: bool = False,
    ) -> list[Store]:
        """Stores of the gradient: by ``inputs`` to their places, and by all parameters."""
        weights = {op.weight for op in self._linears() if self.slots.slots[op.weight].wanted}
        read = inputs_of(outputs)
        if any(q.place.space == "shared" and q.place.slot in weights for q in read):
            raise NativeUnsupportedError("a weight matrix is used in a layer and outside of it")
        below = set(in_order(outputs))
        parameters = [node for node in gathered if node in below]
        found, effects = gradient(
            self.graph, outputs, bars, [*(node for _, node in inputs), *parameters], gathered
        )
        stores = [Store(place, term, adds) for (place, _), term in zip(inputs, found, strict=False)]
        stores += [
            Store(gathered[q], term, True) for q, term in zip(parameters, found[len(inputs) :], strict=True)
        ]
        return stores + effects

    def source(self, arguments: Sequence[Struct]) -> str:
        """The kernel's C++; ``arguments`` are the structs that it is passed."""
        offsets = self._offsets()
        gathered = self._gathered(offsets)
        printer = Printer(self.graph, SPACES)
        networks = [
            NetworkPrinter(network, printer, offsets, self.gradient) for network in (self.policy, self.value)
        ]
        # The number of vectors of a matrix's gradient depends on LANES: C++ computes it.
        at = [f"constexpr int GATHERED_0 = {sum(self.slots.slots[k].size for k in offsets)};"]
        spread: list[str] = []
        for network in networks:
            for op in network.network.linears():
                if self.slots.slots[op.weight].wanted:
                    network.gathered[op.target] = f"GATHERED_{len(spread)}"
                    spread.append(network.spread(op))
                    at.append(
                        f"constexpr int GATHERED_{len(spread)} = GATHERED_{len(spread) - 1} + {network.room(op)};"
                    )
        at.append(f"constexpr int BY_SHARED = GATHERED_{len(spread)};")
        structs = [network.to_cpp(self.pulled_prologue(network.network, gathered)) for network in networks]
        bodies = self.bodies(gathered)
        parts = [
            *at,
            *printer.functions(store.value for _, _, stores in bodies for store in stores),
            *structs,
            "static void spread_weights(const V* gathered, T* const* by, int64_t g) {",
            *spread,
            "}",
            *(printer.function(name, parameters, stores) for name, parameters, stores in bodies),
        ]
        check_lines(parts)
        structs_cpp = "\n".join(struct.cpp() for struct in arguments)
        template = self._constants(offsets) + _template().replace("// ARGUMENTS", structs_cpp, 1)
        return divided(template, parts)

    def pulled_prologue(self, network: Network, gathered: dict[Node, Place]) -> list[Store]:
        """Stores of the gradient of what fills a network's inputs."""
        if not self.gradient:
            return []
        stored = [store.value for store in network.prologue()]
        return self._pull(stored, network.cotangents(), self._by_x(), gathered, adds=True)

    def bodies(self, gathered: dict[Node, Place]) -> list[tuple[str, Parameters, list[Store]]]:
        """Name, parameters and stores of the functions of one rollout."""
        places = [*(Place("next", i) for i in range(self.n)), Place("cost")]
        to_next = (("V*", "next"), ("V&", "cost"))
        bodies: list[tuple[str, Parameters, list[Store]]] = [
            ("step", to_next, list(map(Store, places, self.results))),
            ("value", (("V&", "result"),), [Store(Place("value"), self.value_result or 0.0)]),
        ]
        if self.gradient:
            by_x = self._by_x()
            given, back = (("const V*", "lambda"), ("V", "bar_cost")), (("V*", "by_x"), ("V*", "by_raw"))
            bodies += [
                ("step_vjp", (*given, *back, ("V*", "by_timed")), self._step_vjp(by_x, gathered)),
                ("value_vjp", (("V", "bar_value"), *back), self._value_vjp(by_x, gathered)),
            ]
        return bodies

    def _by_x(self) -> list[tuple[Place, Node]]:
        return [(Place("by_x", i), node) for i, node in enumerate(self.x)]

    def _step_vjp(self, by_x: list[tuple[Place, Node]], gathered: dict[Node, Place]) -> list[Store]:
        g = self.graph
        bars = [*(g.input("by_next", i) for i in range(self.n)), g.input("by_cost")]
        timed = [(Place("by_timed", k), node) for k, node in enumerate(self.timed)]
        return self._pull(self.results, bars, [*by_x, *_by_raw(self.policy), *timed], gathered)

    def _value_vjp(self, by_x: list[tuple[Place, Node]], gathered: dict[Node, Place]) -> list[Store]:
        if self.value_result is None:
            return []
        bars = [self.graph.input("by_value")]
        raw = len(by_x)
        pulled = self._pull([self.value_result], bars, [*by_x, *_by_raw(self.value)], gathered)
        return [store._replace(adds=store.adds or k < raw) for k, store in enumerate(pulled)]

    def _constants(self, offsets: dict[int, int]) -> str:
        """Sizes, above everything else."""
        slots = self.slots.slots

        def array(name: str, values: Sequence[int]) -> str:
            return f"constexpr int {name}[] = {{{', '.join(map(str, [*values, 0]))}}};"

        lines = [
            f"typedef {'double' if self.inputs.x0.dtype == torch.float64 else 'float'} T;",
            f"constexpr int N = {self.n}, TIMED = {len(self.timed)}, TIMED_LEAVES = {len(self.timed_sizes)};",
            f"constexpr int OWN = {len(self.own)}, SHARED = {len(slots)};",
            f"constexpr int RAW = {max(len(self.policy.raw), len(self.value.raw))};",
            f"constexpr int MADE_NOISE = {self.made_noise};",
            array("TIMED_SIZES", self.timed_sizes),
            array("SIZES", [s.size for s in slots]),
            array("OFFSETS", [offsets.get(k, -1) for k in range(len(slots))]),
            f"constexpr bool HAS_VALUE = {str(self.value_result is not None).lower()};",
            f"#define GRADIENT {int(self.gradient)}",
        ]
        return "\n".join(lines) + "\n"


def _by_raw(network: Network) -> list[tuple[Place, Node]]:
    return [(Place("by_raw", i), node) for i, node in enumerate(network.raw.values())]
