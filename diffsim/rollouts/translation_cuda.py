"""The CUDA text of a kernel: what :mod:`diffsim.rollouts.translation` traced, printed for ``rollout.cu``."""

from __future__ import annotations

import functools
import importlib.resources
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from diffsim.rollouts.translation import SPACES, Translation
from solvers.compiler.ir import Operand, inputs_of
from solvers.compiler.limits import check_lines
from solvers.compiler.print_block_layers import SPACES as BLOCK_SPACES
from solvers.compiler.print_block_layers import BlockNetworkPrinter
from solvers.compiler.print_cpp import CUDA, Printer
from solvers.compiler.structs import Struct
from solvers.compiler.trace import NativeUnsupportedError
from solvers.cuda.headers import with_headers

_PER_MULTIPROCESSOR = 113 * 1024
"""Bytes of shared memory with which two blocks fit on a multiprocessor of compute capability 9.0."""

_MOST = 160 * 1024
"""Bytes of shared memory that a block may have from compute capability 8.0 on, but for those of 8.6 and 8.9."""

_ROLLOUTS = ((64, _PER_MULTIPROCESSOR), (32, _MOST), (16, _MOST))
"""Numbers of rollouts in a block and the bytes that it may take; the first one that fits is taken."""

_THREADS = 2
"""Threads for each of them."""

_RESIDENT = 512
"""Threads of a multiprocessor among which its registers are divided, at 128 each."""


@dataclass(frozen=True)
class Layout:
    """How a block divides its work and its shared memory, as ``rollout.cu`` does.

    Attributes:
        rollouts: in a block.
        threads: of a block, the first of which have a rollout each.
        widest: rows of activations, and of their cotangents.
        scratch: more rows.
        staged: numbers in the copy of the policy's weights, 0 without one.
        sums: numbers in which gradients by shared tensors gather.
        sums_inside: whether these are in shared memory; otherwise in global memory, for every group of blocks.
    """

    rollouts: int
    threads: int
    widest: int
    scratch: int
    staged: int
    sums: int
    sums_inside: bool
    itemsize: int

    @property
    def rows(self) -> int:
        """Bytes of a row of activations."""
        return (self.rollouts + 16 // self.itemsize) * self.itemsize

    @property
    def forward_bytes(self) -> int:
        """Shared memory of the kernel ``forward``."""
        return self.widest * self.rows + (self.threads + self.staged) * self.itemsize

    @property
    def backward_bytes(self) -> int:
        """Shared memory of the kernel ``backward``."""
        inside = self.sums if self.sums_inside else 0
        rows = (2 * self.widest + self.scratch) * self.rows
        return rows + (self.threads + self.staged + inside) * self.itemsize

    def resident(self, shared: int) -> int:
        """Blocks at once on a multiprocessor, of a kernel that takes so many bytes of shared memory."""
        return max(1, min(2 * _PER_MULTIPROCESSOR // shared, _RESIDENT // self.threads))


def laid_out(widest: int, scratch: int, staged: int, sums: int, itemsize: int) -> Layout:
    """The layout of a block.

    Raises:
        NativeUnsupportedError: the activations of the smallest block do not fit into shared memory.
    """
    for rollouts, limit in _ROLLOUTS:
        threads = _THREADS * rollouts
        layout = Layout(rollouts, threads, widest, scratch, 0, sums, False, itemsize)
        if layout.backward_bytes > limit:
            continue
        for weights, inside in ((staged, True), (staged, False), (0, True)):
            better = Layout(rollouts, threads, widest, scratch, weights, sums, inside, itemsize)
            if better.backward_bytes <= max(_PER_MULTIPROCESSOR, layout.backward_bytes):
                return better
        return layout
    raise NativeUnsupportedError(
        f"the {widest} features of the policy's layers take {layout.backward_bytes // 1024} KB of shared memory for "
        f"{rollouts} rollouts, more than {_MOST // 1024} KB; narrower or fewer layers take less"
    )


@functools.cache
def _template() -> str:
    return with_headers(importlib.resources.files("diffsim.rollouts").joinpath("rollout.cu").read_text())


class CudaTranslation(Translation):
    """The same traced functions for a block of rollouts.

    Attributes:
        layout: known after :meth:`source`.
    """

    layout: Layout

    def source(self, arguments: Sequence[Struct]) -> str:
        """The kernel's CUDA; ``arguments`` are the structs that it is passed."""
        offsets = self._offsets()
        scalars = self._scalars(offsets)
        gathered = self._gathered(scalars)
        printer = Printer(self.graph, {**SPACES, **BLOCK_SPACES, **_OF_A_THREAD}, dialect=CUDA)
        networks = [
            BlockNetworkPrinter(network, printer, offsets, self.gradient)
            for network in (self.policy, self.value)
        ]
        sums = sum(self.slots.slots[k].size for k in offsets)
        spread: list[str] = []
        for network in networks:
            for op in network.network.linears():
                if self.slots.slots[op.weight].wanted:
                    network.gathered[op.target] = str(sums)
                    spread.append(network.spread(op))
                    sums += int(network.room(op))
        self.layout = laid_out(
            max(self.policy.width, self.value.width, 1),
            max(network.scratch() for network in networks) if self.gradient else 0,
            networks[0].staged_size(),
            sums,
            8 if self.inputs.x0.dtype == torch.float64 else 4,
        )
        networks[0].staged = self.layout.staged > 0
        structs = [network.to_cpp(self.pulled_prologue(network.network, gathered)) for network in networks]
        bodies = self.bodies(gathered)
        parts = [
            *printer.functions(store.value for _, _, stores in bodies for store in stores),
            *structs,
            "INLINE void spread_weights(const T* sums, T* const* by, int64_t g) {",
            *spread,
            "}",
            *(printer.function(name, parameters, stores) for name, parameters, stores in bodies),
        ]
        check_lines(parts)
        text = _template().replace("// EMITTED", "\n".join(parts), 1)
        text = text.replace("// ARGUMENTS", "\n".join(struct.cpp() for struct in arguments), 1)
        return self._constants(offsets) + self._block_constants(offsets, scalars) + text

    def _scalars(self, offsets: dict[int, int]) -> dict[int, int]:
        """Where a thread gathers gradients of the slots that scalar expressions read, by slot."""
        roots: list[Operand] = [*self.results, self.value_result or 0.0]
        roots += [store.value for network in (self.policy, self.value) for store in network.prologue()]
        read = {q.place.slot for q in inputs_of(roots) if q.place.space == "shared"}
        scalars: dict[int, int] = {}
        for k in offsets:
            if k in read:
                scalars[k] = sum(self.slots.slots[i].size for i in scalars)
        return scalars

    def _block_constants(self, offsets: dict[int, int], scalars: dict[int, int]) -> str:
        layout = self.layout
        to = [offsets[k] + j for k in scalars for j in range(self.slots.slots[k].size)]
        lines = [
            f"constexpr int ROLLOUTS = {layout.rollouts}, THREADS = {layout.threads};",
            f"constexpr int WIDEST = {layout.widest}, SCRATCH_ROWS = {layout.scratch};",
            f"constexpr int FORWARD_BLOCKS = {layout.resident(layout.forward_bytes)};",
            f"constexpr int BACKWARD_BLOCKS = {layout.resident(layout.backward_bytes)};",
            f"constexpr int STAGED = {layout.staged}, BY_SHARED = {layout.sums};",
            f"constexpr bool SUMS_INSIDE = {str(layout.sums_inside).lower()};",
            f"constexpr int SCALARS = {len(to)};",
            f"constexpr int SCALAR_TO[] = {{{', '.join(map(str, [*to, 0]))}}};",
        ]
        return "\n".join(lines) + "\n"


_OF_A_THREAD = {"vector": "shared[{slot}][{index}]"}
