"""``backend="native"``: rollouts in C++ generated from the simulator's step, the policy and the terminal value.

All three are traced once, differentiated as scalar expression graphs (``diffsim.rollouts.translation``) and inserted
into ``rollout.cpp``.  Batch size, horizon, dt and the values of tensors are run-time arguments.  Everything else is a
constant of the kernel; a change of a number among the attributes of simulator or modules leads to a new trace.
"""

from __future__ import annotations

import ctypes
import time
from typing import Any

import torch
from torch import Tensor

from diffsim.rollouts.agreement import compare_with_eager, few_of
from diffsim.rollouts.inputs import Engine, Inputs, Outcome, UnsupportedError
from diffsim.rollouts.noise import Noise
from diffsim.rollouts.stepwise import Stepwise
from diffsim.rollouts.threads import Pace
from diffsim.rollouts.traced import Traced, key_of, traced_once
from diffsim.rollouts.translation import Translation
from solvers.compiler.structs import Struct, fields
from solvers.compiler.trace import NativeUnsupportedError
from solvers.native import build
from solvers.native.traces import keep, recall, without_kept

_GROUPS = 32
"""Number of groups of blocks; gradients are summed within a group first, then over groups in order."""


TAPE_BYTES = 3_000_000, 20_000_000
"""The least and the largest tape that pays: a larger one does not stay in the caches, so that reading it takes as long
as evaluating the policy again; the time that a smaller one saves is lost to what it drives out of them."""


class Native(Engine):
    """A compiled rollout."""

    watched = True
    any_batch = True
    library: Any
    arguments_type: type[ctypes.Structure]

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
        compared = None if (key := key_of(inputs, gradient)) is None else key.about(engine.library._name)
        try:
            if engine.from_disk and recall(compared) is not None:
                # Only what the key of the trace does not hold can differ: attributes of classes without a fingerprint.
                compare_with_eager(engine, inputs, gradient, steps=1)
            else:
                compare_with_eager(engine, inputs, gradient)
                keep(compared, {})
        except UnsupportedError:
            if not engine.from_disk:
                raise
            with without_kept():
                return cls.prepare(inputs, gradient)
        return engine

    def __init__(self, inputs: Inputs, gradient: bool) -> None:
        traced = self._compile(inputs, gradient)
        self.from_disk = traced.from_disk
        self.slots = traced.slots
        self.own_names = traced.own_names
        self.timed_sizes = traced.timed_sizes
        self.gradient = gradient
        self._sources = [slot.source for slot in self.slots]
        self._shaped = [q for q in self._sources if not isinstance(q, str)]
        self._paces = {"forward": Pace(), "backward": Pace()}
        self._tape: Tensor | None = None
        """Room that a rollout whose backward pass is over has left."""
        self._last: tuple[list[int], Any] | None = None
        """The addresses of shared tensors at the last call, and arguments that hold them."""

    def _compile(self, inputs: Inputs, gradient: bool) -> Traced:
        """Trace, and set ``library`` and ``arguments_type``."""

        def trace() -> Traced:
            # One eager run, so that cached tensors (bounds, tables) exist before the trace.
            Stepwise().forward(few_of(inputs), keep_states=False)
            q = Translation(inputs, gradient)
            traced = Traced("", q.slots.slots, q.own_names, q.timed_sizes)
            return traced._replace(source=q.source((STRIDED, _struct_of(traced))))

        traced = traced_once(inputs, gradient, trace)
        self.arguments_type = _struct_of(traced).ctypes(inputs.x0.dtype)
        self.library = build.load(traced.source)
        if self.library.size_of_arguments() != ctypes.sizeof(self.arguments_type):
            raise NativeUnsupportedError(
                "the compiler lays out the kernel's arguments in another way than ctypes"
            )
        return traced

    def _groups(self, inputs: Inputs) -> int:
        return min(_GROUPS, -(-len(inputs.x0) // 64))

    def _run(self, name: str, arguments: Any, inputs: Inputs) -> None:
        function, arguments.threads = getattr(self.library, name), inputs.threads
        blocks = 1 if inputs.most_threads <= inputs.threads else self._blocks_of(arguments)
        if blocks <= inputs.threads:
            function(ctypes.byref(arguments))
            return
        pace, work = self._paces[name], blocks * inputs.steps
        wants = pace.wants_most(work)
        if wants:
            arguments.threads = min(inputs.most_threads, blocks)
        started = time.perf_counter()
        function(ctypes.byref(arguments))
        pace.note(wants, work, time.perf_counter() - started)

    def _blocks_of(self, arguments: Any) -> int:
        size = self.library.rollouts_of_a_block()
        return arguments.members * -(-(arguments.batch // arguments.members) // size)

    def forward(self, inputs: Inputs, keep_states: bool, pulled: bool = False) -> tuple[Outcome, Any]:
        x0 = inputs.x0.detach()
        batch, n = x0.shape
        new = x0.new_empty
        states = new(inputs.steps + 1, n, batch) if keep_states else None
        last, costs = new(n, batch), new(inputs.steps, batch)
        values = new(batch) if inputs.terminal is not None else None
        arguments = self._arguments(inputs, x0)
        arguments.states, arguments.last, arguments.costs = _p(states), _p(last), _p(costs)
        arguments.values = _p(values)
        tape = self._taken(arguments, x0) if pulled else None
        arguments.tape, arguments.taped = _p(tape), tape
        self._run("forward", arguments, inputs)
        kept = None if states is None else states.transpose(1, 2)
        return Outcome(kept, last.t(), costs, values), arguments

    def backward(self, inputs: Inputs, states: Tensor, by: Outcome, kept: Any) -> dict[Any, Tensor]:
        x0 = inputs.x0.detach()
        batch, n = x0.shape
        arguments = self._arguments(inputs, x0) if kept is None else kept
        arguments.states = _p(states)
        arguments.by_costs = strided(by.costs, "tb")
        arguments.by_states = strided(by.states, "tbn")
        arguments.by_last = strided(by.last, "bn")
        arguments.by_values = strided(by.values, "b")
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
                gradients["p", name] = x0.new_empty(batch)
                arguments.by_own[k] = _p(gradients["p", name])
        rooms = []
        for k, slot in enumerate(self.slots):
            if not slot.wanted:
                continue
            room = x0.new_empty(arguments.groups + 1, slot.size)
            arguments.by_shared[k] = _p(room)
            rooms.append((slot, room))
        self._run("backward", arguments, inputs)
        if kept is not None and kept.tape:
            # Another rollout may write on it: a second backward pass evaluates the policy again.
            self._tape, kept.taped, kept.tape = kept.taped, None, None
        for slot, room in rooms:
            if isinstance(slot.source, str):
                gradients["p", slot.source] = room[-1, 0].clone()
            else:
                gradients[id(slot.source)] = room[-1].reshape(slot.source.shape).clone()
        return gradients

    def _taken(self, arguments: Any, x0: Tensor) -> Tensor | None:
        """A tape for these rollouts: the last one if it is free and large enough; None where it does not pay."""
        wanted = self._blocks_of(arguments) * arguments.steps * self.library.tape_of_an_interval()
        least, largest = TAPE_BYTES
        if not least <= wanted * x0.element_size() <= largest:
            return None
        tape, self._tape = self._tape, None
        return tape if tape is not None and len(tape) >= wanted else x0.new_empty(wanted)

    def _arguments(self, inputs: Inputs, x0: Tensor) -> Any:
        a = self._with_shared(inputs, x0)
        batch = x0.shape[0]
        a.batch, a.steps, a.members = batch, inputs.steps, inputs.members
        a.threads, a.groups = inputs.threads, self._groups(inputs)
        a.truncate, a.dt = inputs.truncate or 0, float(inputs.env.dt)
        a.costate_bound = inputs.costate_bound or 0.0
        a.x0 = strided(x0, "bn")
        for k, tensor in enumerate(q for q in (inputs.noise, inputs.controls) if isinstance(q, Tensor)):
            a.timed[k] = strided(tensor.detach(), "tbn")
        if isinstance(inputs.noise, Noise):
            a.noise_seed, a.noise_start = inputs.noise.seed, inputs.noise.start
            a.noise_scale = inputs.noise.scale
        keep = []
        if inputs.costate_bound is not None:
            keep.append(inputs.sizes())
            a.sizes = _p(keep[-1])
        if inputs.noise_of is not None:
            keep.append(inputs.noise_of.contiguous())
            a.noise_of = _p(keep[-1])
        for k, name in enumerate(self.own_names):
            a.own[k] = strided(inputs.p[name].detach(), "b")
        a.keep = keep
        return a

    def _with_shared(self, inputs: Inputs, x0: Tensor) -> Any:
        """New arguments with the addresses of the tensors that all rollouts share."""
        sources = [inputs.p[q] if isinstance(q, str) else q for q in self._sources]
        if not inputs.stacked:
            at = [q.data_ptr() for q in sources]
            if (
                self._last is not None
                and at == self._last[0]
                and all(map(Tensor.is_contiguous, self._shaped))
            ):
                return self.arguments_type.from_buffer_copy(self._last[1])
        a, plain = self.arguments_type(), not inputs.stacked
        keep = []
        for k, tensor in enumerate(sources):
            stacked = inputs.stacked.get(id(tensor))
            data = tensor if stacked is None else stacked
            if data.dtype != x0.dtype or data.device != x0.device or not data.is_contiguous():
                data, plain = data.detach().to(x0).contiguous(), False
            keep.append(data)
            a.shared[k], a.member[k] = _p(data), 0 if stacked is None else self.slots[k].size
        a.converted = keep
        if plain:
            self._last = at, self.arguments_type.from_buffer_copy(a)
        return a


STRIDED = Struct(
    "Strided", (*fields("real*", "data", constant=True), *fields("int64", "time", "rollout", "component"))
)
"""An array in the caller's layout."""
_Strided = STRIDED.ctypes()


def arguments_struct(timed: int, own: int, shared: int) -> Struct:
    """What a kernel with so many timed tensors, parameters of every rollout and shared slots is passed.

    ``noise_of [batch]`` is the number of the rollout whose noise each takes, null for its own.  ``member`` are the
    numbers from one member's values of a slot to the next, 0 if they are the same for all.  ``costate_bound`` is 0 for
    none; ``sizes [n]`` are the units it is measured in.

    Results are ``states [steps + 1, n, batch]``, ``last [n, batch]``, ``costs [steps, batch]``, ``values [batch]``;
    gradients ``by_x0 [n, batch]``, ``by_timed [steps, size, batch]``, ``by_own [batch]`` and ``by_shared [groups + 1,
    size]``, the last row of which is the sum of the others.  Pointers may be null where there is or is wanted nothing.
    """
    return Struct(
        "Arguments",
        (
            *fields("int64", "batch", "steps", "members", "threads", "groups", "truncate"),
            *fields("uint64", "noise_seed"),
            *fields("int64", "noise_start"),
            *fields("int64*", "noise_of", constant=True),
            *fields("double", "noise_scale", "dt", "costate_bound"),
            *fields("real*", "sizes", constant=True),
            *fields(STRIDED, "x0"),
            *fields(STRIDED, "timed", count=timed + 1),
            *fields(STRIDED, "own", count=own + 1),
            *fields("real*", "shared", count=shared + 1, constant=True),
            *fields("int64", "member", count=shared + 1),
            *fields("real*", "states", "last", "costs", "values", "tape"),
            *fields(STRIDED, "by_costs", "by_states", "by_last", "by_values"),
            *fields("real*", "by_x0"),
            *fields("real*", "by_timed", count=timed + 1),
            *fields("real*", "by_own", count=own + 1),
            *fields("real*", "by_shared", count=shared + 1),
        ),
    )


def _struct_of(traced: Traced) -> Struct:
    return arguments_struct(len(traced.timed_sizes), len(traced.own_names), len(traced.slots))


_NOTHING = _Strided(None, 0, 0, 0)


def strided(tensor: Tensor | None, axes: str) -> ctypes.Structure:
    """A tensor whose axes are time ``t``, rollout ``b`` and component ``n``, in this order."""
    if tensor is None:
        return _NOTHING
    at, strides = tensor.data_ptr(), tensor.stride()
    if axes == "bn":
        return _Strided(at, 0, *strides)
    if axes == "tbn":
        return _Strided(at, *strides)
    if axes == "tb":
        return _Strided(at, *strides, 0)
    return _Strided(at, 0, *strides, 0)


def _p(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
