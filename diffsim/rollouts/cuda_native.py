"""``backend="cuda_native"``: whole rollouts in one CUDA kernel generated from simulator, policy and terminal value.

What ``native`` is on a CPU: the same trace, printed for ``rollout.cu`` and compiled by NVRTC for the device at hand.
Kernels are launched on torch's current stream, and nothing waits for the device.
"""

from __future__ import annotations

import ctypes
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffsim.rollouts.agreement import compare_with_eager, few_of
from diffsim.rollouts.inputs import Inputs, Outcome, UnsupportedError
from diffsim.rollouts.native import STRIDED, Native, arguments_struct
from diffsim.rollouts.stepwise import Stepwise
from diffsim.rollouts.traced import Traced
from diffsim.rollouts.translation_cuda import CudaTranslation, Layout
from solvers.compiler.structs import Struct, fields
from solvers.compiler.trace import NativeUnsupportedError
from solvers.cuda import nvrtc
from solvers.native import build

GROUPS = 1024
"""The most groups of blocks; gradients are summed within a group first, then over groups in order."""

_MOST_ARGUMENTS = 4096
"""Bytes of a kernel's arguments that every CUDA accepts."""

_REDUCING = 128
"""Threads in a block of the kernel that adds the groups' sums."""


def written(inputs: Inputs, gradient: bool) -> tuple[CudaTranslation, type[ctypes.Structure], str]:
    """The trace of a rollout, the class of its kernels' arguments and their CUDA C++.

    Raises:
        NativeUnsupportedError: it holds what has no CUDA, or does not fit into a block's memory.
    """
    translation = CudaTranslation(inputs, gradient)
    sizes = len(translation.timed_sizes), len(translation.own_names), len(translation.slots.slots)
    struct = Struct("Arguments", (*arguments_struct(*sizes).fields, *fields("real*", "outside")))
    arguments = struct.ctypes(inputs.x0.dtype)
    size = ctypes.sizeof(arguments)
    if size > _MOST_ARGUMENTS:
        raise NativeUnsupportedError(
            f"the kernel's {sizes[2]} shared tensors and parameters take {size} bytes of arguments, CUDA has "
            f"{_MOST_ARGUMENTS}"
        )
    same = f'static_assert(sizeof(Arguments) == {size}, "Arguments differ from those of ctypes");'
    return translation, arguments, f"{translation.source((STRIDED, struct))}\n{same}\n"


class CudaNative(Native):
    """A compiled rollout on a CUDA device."""

    devices: ClassVar[tuple[str, ...]] = ("cuda",)
    """Types of devices that it runs on.  On a CPU, which executes the threads of a block in turn, for tests."""
    reversed_threads: ClassVar[bool] = False
    """Whether a CPU executes them in the other order, which must not change a bit."""

    layout: Layout

    @classmethod
    def prepare(cls, inputs: Inputs, gradient: bool) -> CudaNative:
        device = inputs.x0.device
        if device.type not in cls.devices:
            raise UnsupportedError(f"its kernels run on CUDA devices, the states are on {device}")
        if inputs.x0.dtype not in (torch.float32, torch.float64):
            raise UnsupportedError(f"its kernels take float32 and float64, not {inputs.x0.dtype}")
        try:
            if device.type == "cuda":
                nvrtc.version()  # before tracing, which takes longer
            engine = cls(inputs, gradient)
        except NativeUnsupportedError as error:
            raise UnsupportedError(str(error)) from error
        compare_with_eager(engine, inputs, gradient)
        return engine

    def _compile(self, inputs: Inputs, gradient: bool) -> Traced:
        # One eager run, so that cached tensors (bounds, tables) exist before the trace.
        Stepwise().forward(few_of(inputs), keep_states=False)
        translation, self.arguments_type, source = written(inputs, gradient)
        self.layout, self.source = translation.layout, source
        device = inputs.x0.device
        if device.type == "cuda":
            shared = {"forward": self.layout.forward_bytes}
            if gradient:
                shared |= {"backward": self.layout.backward_bytes, "reduce": 0}
            with torch.cuda.device(device):
                self.library = nvrtc.Kernels(source, torch.cuda.get_device_capability(device), shared)
        else:
            # Compiling takes most of a test's time.
            head = f'#pragma GCC optimize("O0")\n#define REVERSED {int(self.reversed_threads)}\n'
            self.library = build.load(head + source)
        return Traced(source, translation.slots.slots, translation.own_names, translation.timed_sizes)

    def _taken(self, arguments: Any, x0: Tensor) -> Tensor | None:
        return None  # its layers are computed again

    def _groups(self, inputs: Inputs) -> int:
        # As few as need no more rounds than the most would: every group has equally many blocks.
        blocks = self._blocks(inputs.members, len(inputs.x0))
        return -(-blocks // -(-blocks // GROUPS))

    def _blocks(self, members: int, batch: int) -> int:
        return members * -(-(batch // members) // self.layout.rollouts)

    def _run(self, name: str, arguments: Any, inputs: Inputs) -> None:
        x0, threads = inputs.x0, self.layout.threads
        if x0.device.type != "cuda":
            getattr(self.library, name)(ctypes.byref(arguments))
            return
        stream = torch.cuda.current_stream(x0.device).cuda_stream
        with torch.cuda.device(x0.device):
            if name == "forward":
                blocks = self._blocks(arguments.members, arguments.batch)
                self.library.launch("forward", blocks, threads, stream, arguments)
                return
            self.library.launch("backward", arguments.groups, threads, stream, arguments)
            most = max((slot.size for slot in self.slots if slot.wanted), default=0)
            if most:
                self.library.launch("reduce", -(-most // _REDUCING), _REDUCING, stream, arguments)

    def backward(self, inputs: Inputs, states: Tensor, by: Outcome, kept: Any) -> dict[Any, Tensor]:
        arguments = self._arguments(inputs, inputs.x0.detach()) if kept is None else kept
        if not self.layout.sums_inside:
            outside = inputs.x0.new_empty(arguments.groups * self.layout.sums)
            arguments.outside = outside.data_ptr()
        return super().backward(inputs, states, by, arguments)
