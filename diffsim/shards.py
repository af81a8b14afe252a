"""A batch in a fixed number of parts.

Each shard of a batch is simulated on its own, one after the other or in several processes, and what comes out is put
together in the order of shards.  So results depend on the number of shards, which is a setting of the run, and not on
how many processes there are; and the graph of one shard at a time has to fit into memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffsim.config import RunConfig
from diffsim.processes import Team, current

_ALIGNED = 8
"""Bytes that the beginning of each tensor in a message is a multiple of."""


class Shards:
    """``count`` shards, of which this process computes some.

    Args:
        count: how many.
        team: the processes that share them.
    """

    def __init__(self, count: int = 1, team: Team | None = None) -> None:
        self.count = count
        self.team = Team() if team is None else team

    @classmethod
    def of(cls, config: RunConfig) -> Shards:
        """As a run has them, shared by the team that this process works in."""
        return cls(config.shards, current())

    def lengths(self, size: int) -> list[int]:
        """How many of ``size`` rows each shard has; the first ones may have one more than the others."""
        each, more = divmod(size, self.count)
        return [each + (number < more) for number in range(self.count)]

    def own(self, size: int) -> list[slice]:
        """Which of ``size`` rows the shards of this process have."""
        lengths = self.lengths(size)
        return [slice(sum(lengths[:k]), sum(lengths[: k + 1])) for k in self._numbers(self.team.rank)]

    def _numbers(self, rank: int) -> range:
        """The shards of a process."""
        return range(rank * self.count // self.team.size, (rank + 1) * self.count // self.team.size)

    def gather(
        self, own: Sequence[Sequence[Tensor]], lengths: Sequence[int], axes: Sequence[int]
    ) -> list[Tensor]:
        """Tensors of all shards, joined in the order of shards; the same in every process.

        Args:
            own: the tensors of each shard of this process.
            lengths: how many rows each of all shards has.
            axes: along which axis of each tensor the rows lie.

        Raises:
            ProcessError: another process has ended.
        """
        if self.team.size == 1:
            return [torch.cat(parts, axis) for parts, axis in zip(zip(*own, strict=True), axes, strict=True)]
        likes = own[0]

        def shape(k: int, length: int) -> list[int]:
            return [length if axis == axes[k] else n for axis, n in enumerate(likes[k].shape)]

        def size_of(k: int, length: int) -> int:
            used = torch.Size(shape(k, length)).numel() * likes[k].element_size()
            return -(-used // _ALIGNED) * _ALIGNED

        sizes = [
            sum(size_of(k, lengths[s]) for s in self._numbers(rank) for k in range(len(likes)))
            for rank in range(self.team.size)
        ]
        message = torch.zeros(sizes[self.team.rank], dtype=torch.uint8)
        at = 0
        for tensors in own:
            for tensor in tensors:
                content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
                message[at : at + len(content)] = content
                at += -(-len(content) // _ALIGNED) * _ALIGNED
        found: list[list[Tensor]] = [[] for _ in likes]
        for rank, received in enumerate(self.team.exchange(message, sizes)):
            at = 0
            for s in self._numbers(rank):
                for k, like in enumerate(likes):
                    wanted = torch.Size(shape(k, lengths[s]))
                    content = received[at : at + wanted.numel() * like.element_size()]
                    found[k].append(content.view(like.dtype).reshape(wanted).to(like.device))
                    at += size_of(k, lengths[s])
        return [torch.cat(parts, axis) for parts, axis in zip(found, axes, strict=True)]


WHOLE = Shards()
"""A batch that is not divided."""
