"""The memory that a training needs, known before it starts, and batches that are divided where they do not fit.

Updates of a scratch copy of the run with a smaller batch are measured.  Memory is proportional to the batch.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffsim.assembly import Assembly, assemble
from diffsim.config import Named, RunConfig
from diffsim.isolation import torch_defaults
from diffsim.machine import free_memory_mb

SMALL = 2048
"""Rollouts of a shard that is measured: fewer do not take less in proportion."""
MOST_SHARDS = 16
LARGE_ON_CPU = 2**22
"""Control intervals of an update from which memory is measured on a CPU, where a smaller update needs little."""
MARGIN = 0.9
"""The share of the free memory that may be planned with."""
_UPDATES = 12
"""At most so many updates are measured of a batch: what an algorithm keeps of former updates adds up over some."""


def with_shards_that_fit(assembly: Assembly, say: Callable[[str], object]) -> Assembly:
    """The parts of a new run, its batch in as many shards as make it fit into the free memory.

    Says how much memory the run takes where that was measured: on a GPU, and of large batches on a CPU.  A batch that
    fits in no number of shards stays as it is: this is an estimate.
    """
    batch = getattr(assembly.algorithm_settings, "batch", None)
    if not isinstance(batch, int) or not _worth_measuring(assembly, batch):
        return assembly
    say("memory is measured on small batches")
    given, divides = assembly.given, assembly.divides_batches
    free, where = free_bytes(assembly.device), _name(assembly.device)
    shards = given.shards
    try:
        whole = assembly.config  # all defaults written out
        needed = first = expected_bytes(whole, batch, shards)
        while divides and needed > MARGIN * free and 2 * shards <= min(batch, MOST_SHARDS):
            shards *= 2
            needed = expected_bytes(whole, batch, shards)
    except Exception:  # of the user's code too
        return assembly  # the run itself meets the error, and says where
    if needed > MARGIN * free:
        say(
            f"memory: algorithm.batch = {batch:,} takes about {_gb(first)}"
            + (f", and in shards = {shards} still {_gb(needed)}" if shards > given.shards else "")
            + f"; {_gb(free)} are free on {where}, so it may run out of memory; a smaller "
            "algorithm.batch or shorter windows take less"
        )
        return assembly
    if shards == given.shards:
        say(f"memory: about {_gb(needed)} of {_gb(free)} that are free on {where}")
        return assembly
    say(
        f"memory: algorithm.batch = {batch:,} takes about {_gb(first)}, and {_gb(free)} are free on {where}: it is "
        f"computed in shards = {shards}, about {_gb(needed)}, with the same results up to rounding"
    )
    return assemble(given.model_copy(update={"shards": shards}))


def expected_bytes(config: RunConfig, batch: int, shards: int) -> float:
    """What updates with a ``batch`` in so many shards take beside what the process has before.

    Args:
        config: with the algorithm's defaults written out.
        batch: rollouts of an update.
        shards: parts that they are computed in.
    """
    small = min(batch, SMALL * shards)
    return _peak(config, small, shards) * batch / small


def free_bytes(device: torch.device) -> float:
    """Of a GPU, what torch holds and does not use included; or of this machine."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + unused)
    return 1e6 * free_memory_mb()


def what_to_do(error: Exception, update: int, assembly: Assembly) -> str:
    """Of memory that ran out in an update, in words."""
    said = str(error).splitlines()[0] if str(error) else type(error).__name__
    batch, shards = getattr(assembly.algorithm_settings, "batch", None), assembly.given.shards
    if batch is None or not assembly.divides_batches or 2 * shards > batch:
        return f"out of memory in update {update}: {said}"
    return (
        f"out of memory in update {update}, whose algorithm.batch = {batch:,} rollouts are computed "
        f"in shards = {shards}. Train into another folder with --set shards={2 * shards}, parts that are computed "
        "one after the other with the same results up to rounding, or with a smaller algorithm.batch. "
        f"What was said: {said}"
    )


def _worth_measuring(assembly: Assembly, batch: int) -> bool:
    if batch <= SMALL:
        return False
    given = [getattr(assembly.algorithm_settings, name, None) for name in ("window", "window_end", "horizon")]
    longest = max((n for n in given if isinstance(n, int)), default=assembly.env.episode_steps)
    return assembly.device.type == "cuda" or batch * longest >= LARGE_ON_CPU


def _peak(config: RunConfig, batch: int, shards: int) -> float:
    """Bytes that updates of a scratch copy have allocated at the same time, at most."""
    options = {**config.algorithm.options, "batch": batch}
    if "window_end" in options:
        options["window"] = max(options["window"], options["window_end"])
    small = config.model_copy(
        update={"shards": shards, "algorithm": Named(name=config.algorithm.name, **options)}
    )
    with torch_defaults(config.threads or 1):
        algorithm = assemble(small).algorithm
        highest, before = 0.0, -1.0
        with allocations(algorithm.device) as peak:
            for _ in range(min(_UPDATES, config.updates)):
                if peak() <= before:
                    break
                before = peak()
                algorithm.step()
                highest = peak()
    return highest


def allocations(device: torch.device) -> Any:
    """A context that gives a function: the largest number of bytes of tensors allocated since it was entered."""
    return _OnCuda(device) if device.type == "cuda" else _OnCpu()


class _OnCuda:
    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __enter__(self) -> Callable[[], float]:
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        return lambda: float(torch.cuda.max_memory_allocated(self.device) - before)

    def __exit__(self, *error: object) -> None:
        torch.cuda.empty_cache()


class _OnCpu(TorchDispatchMode):
    """Counts the storages of what operations return while they live."""

    def __init__(self) -> None:
        super().__init__()
        self.held = self.highest = 0.0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __enter__(self) -> Any:
        super().__enter__()
        return lambda: self.highest

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        size = float(storage.nbytes())
        self.held += size
        self.highest = max(self.highest, self.held)
        weakref.finalize(storage, self._release, size)

    def _release(self, size: float) -> None:
        self.held -= size


def _gb(number: float) -> str:
    return f"{number / 1e9:,.1f} GB"


def _name(device: torch.device) -> str:
    return "this machine" if device.type == "cpu" else str(device)
