"""``backend="cuda_graph"``: a control interval and its vector-Jacobian product, each recorded once as a CUDA graph.

Launching the operations of a control interval one by one takes the host longer than a GPU needs to run them, up to
about 100,000 rollouts.  A recorded graph launches all of them at once.  It repeats the operations of ``eager`` on the
same memory, so inputs are copied to where they were when it was recorded.  Every batch size is recorded separately.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffsim.rollouts.inputs import Inputs, Outcome, UnsupportedError
from diffsim.rollouts.stepwise import Stepwise

_MOST_RECORDINGS = 8
"""The number of batch sizes that an engine keeps graphs of; the oldest is dropped first."""

_TIMED = ("noise", "controls")


class CudaGraph(Stepwise):
    """Recorded steps, one pair of graphs (step and vjp) per batch size."""

    compiled = True
    any_batch = False
    devices: ClassVar[tuple[str, ...]] = ("cuda",)
    """Types of devices that it runs on.  Elsewhere a recording is the function itself, which tests make use of."""

    @classmethod
    def prepare(cls, inputs: Inputs, gradient: bool) -> CudaGraph:
        if inputs.x0.device.type not in cls.devices:
            raise UnsupportedError(
                f"CUDA graphs run on CUDA devices, and this rollout is on {inputs.x0.device}"
            )
        engine = cls(gradient)
        if not inputs.stacked:
            engine._recording(inputs)
        return engine

    def __init__(self, gradient: bool) -> None:
        self.gradient = gradient
        self._recordings: dict[int, _Recording] = {}

    def _recording(self, inputs: Inputs) -> _Recording:
        """The graphs for this batch size and these modules, recorded if they are new."""
        batch = len(inputs.x0)
        found = self._recordings.get(batch)
        if found is None or found.addresses != _addresses(inputs):
            self._recordings.pop(batch, None)
            with torch.inference_mode(False):
                found = _Recording(inputs, self.gradient)
            while len(self._recordings) >= _MOST_RECORDINGS:
                self._recordings.pop(next(iter(self._recordings)))
            self._recordings[batch] = found
        return found

    def _forward(self, inputs: Inputs, keep_states: bool) -> Outcome:
        recording = self._recording(inputs)
        recording.load(inputs, inputs.x0)
        states = inputs.x0.new_empty(inputs.steps + 1, *inputs.x0.shape) if keep_states else None
        costs = inputs.x0.new_empty(inputs.steps, len(inputs.x0))
        for t in range(inputs.steps):
            if states is not None:
                states[t] = recording.x
            recording.load_interval(inputs, t)
            recording.advance()
            costs[t] = recording.cost
        last = recording.x.clone()
        if states is not None:
            states[-1] = last
        return Outcome(states, last, costs, None if inputs.terminal is None else inputs.value(last))

    def backward(self, inputs: Inputs, states: Tensor, by: Outcome, kept: Any = None) -> dict[Any, Tensor]:
        recording = self._recordings.get(len(inputs.x0))
        if recording is None or recording.addresses != _addresses(inputs):
            # Recording is not possible in the middle of a backward pass.
            return Stepwise().backward(inputs, states, by)
        recording.load(inputs, states[-1])
        if recording.totals:
            torch._foreach_zero_(list(recording.totals.values()))
        found = super().backward(inputs, states, by)
        found["x0"] = found["x0"].clone()
        for name, total in recording.totals.items():
            found[name] = found[name] + total if name in found else total.clone()
        return found

    def pull(self, inputs: Inputs, t: int, x: Tensor, by_next: Tensor, by_cost: Tensor) -> dict[Any, Tensor]:
        """As :meth:`Stepwise.pull`; what is summed over intervals is added to the recording's totals instead."""
        recording = self._recordings[len(inputs.x0)]
        recording.x.copy_(x)
        recording.by_next.copy_(by_next)
        recording.by_cost.copy_(by_cost)
        recording.load_interval(inputs, t)
        recording.pull()
        found = recording.pulled
        return {name: g if name == "x0" else g.clone() for name, g in found.items()}


class _Recording:
    """The two graphs of a batch size, and the memory that they read and write.

    Attributes:
        x: ``[B, n]``, the states before an interval; ``advance`` puts those after it there.
        cost: ``[B]``, of the last interval.
        by_next, by_cost: cotangents of the states after an interval and of its cost.
        pulled: gradients of the last interval by state, noise and controls, as far as they are wanted.
        totals: gradients by what all intervals share, summed since they were set to zero.
        addresses: where parameters and buffers of the modules were.
    """

    def __init__(self, inputs: Inputs, gradient: bool) -> None:
        self.addresses = _addresses(inputs)
        self.x = inputs.x0.detach().clone()
        self.by_next, self.by_cost = torch.zeros_like(self.x), torch.zeros_like(self.x[:, 0])
        # A copy of an expanded tensor is contiguous.
        self.p = {
            name: torch.clone(v.detach(), memory_format=torch.contiguous_format)
            for name, v in inputs.p.items()
        }
        self.noise, self.controls = inputs.noise_at(0), None
        self.noise = None if self.noise is None else self.noise.detach().clone()
        if inputs.controls is not None:
            self.controls = inputs.controls[0].detach().clone()
        self.pulled: dict[Any, Tensor] = {}
        self.totals: dict[Any, Tensor] = {}
        noise, controls = (
            None
            if held is None
            else held.unsqueeze(0).requires_grad_(isinstance(given, Tensor) and given.requires_grad)
            for held, given in ((self.noise, inputs.noise), (self.controls, inputs.controls))
        )
        p = {name: v.detach().requires_grad_(inputs.p[name].requires_grad) for name, v in self.p.items()}
        self._one = replace(inputs, x0=self.x, steps=1, p=p, noise=noise, controls=controls, noise_of=None)
        self.cost = torch.zeros_like(self.x[:, 0])
        try:
            self.advance = recorded(self._advance, self.x.device)
            if gradient:
                self.pull = recorded(self._pull, self.x.device)
        except Exception as error:  # what cannot be recorded has many classes
            raise UnsupportedError(
                f"its steps wait for the device, which a CUDA graph cannot record ({type(error).__name__}: "
                f"{str(error).splitlines()[0] if str(error) else ''})"
            ) from error

    def load(self, inputs: Inputs, x: Tensor) -> None:
        """Put states and physical parameters where the graphs read them."""
        self.x.copy_(x)
        if self.p:
            torch._foreach_copy_(list(self.p.values()), [inputs.p[name].detach() for name in self.p])

    def load_interval(self, inputs: Inputs, t: int) -> None:
        """The same for the noise or the controls of an interval."""
        if self.noise is not None:
            self.noise.copy_(inputs.noise_at(t).detach())  # type: ignore[union-attr]
        if self.controls is not None:
            self.controls.copy_(inputs.controls[t].detach())  # type: ignore[index]

    @torch.no_grad()
    def _advance(self) -> None:
        following, cost = Stepwise().step(self._one, 0, self.x)
        self.x.copy_(following)
        self.cost.copy_(cost)

    def _pull(self) -> None:
        found = Stepwise().pull(self._one, 0, self.x, self.by_next, self.by_cost)
        with torch.no_grad():
            self.pulled = {name: found.pop(name) for name in ("x0", *_TIMED) if name in found}
            for name, gradient in found.items():
                if name not in self.totals:  # in the calls before recording
                    self.totals[name] = torch.zeros_like(gradient, memory_format=torch.contiguous_format)
            if found:
                torch._foreach_add_([self.totals[name] for name in found], list(found.values()))


def _addresses(inputs: Inputs) -> list[int]:
    held = (q for module in inputs.modules for q in (*module.parameters(), *module.buffers()))
    return [q.data_ptr() for q in held]


def recorded(function: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """What a call launches as one CUDA graph, to be replayed; on another device the function itself.

    Raises:
        RuntimeError: the function waits for the device.
    """
    if device.type != "cuda":
        function()  # as there: a call before it counts
        return function
    aside, before = torch.cuda.Stream(device), torch.cuda.get_sync_debug_mode()
    aside.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(aside):
        function()  # constants and libraries are set up on the first call
        torch.cuda.set_sync_debug_mode("error")
        try:
            function()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    torch.cuda.current_stream(device).wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()

    def replay() -> None:
        graph.replay()

    replay.function = function  # type: ignore[attr-defined]  # keeps alive what the graph reads
    return replay
