"""Several processes that train one run together: who they are, how they are started, and what they exchange.

``torchrun -m diffsim train ...`` starts them on one machine or on many; ``diffsim train ... --processes N`` starts
them on this one, as helpers of the process that was asked.  They compute different shards of each batch
(:mod:`diffsim.shards`) and the same of everything else.  The process of rank 0 alone writes and prints.

What they exchange goes through gloo and the host's memory, whatever the device: in one order, so that the sums which
follow have the same bits for every number of processes.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from diffsim.errors import ConfigError, ProcessError
from diffsim.launcher import launched

TIMEOUT = timedelta(minutes=30)
"""How long a process waits for the others, which may compile or measure meanwhile."""
_CONNECT_TIMEOUT = timedelta(minutes=30)
_END_SECONDS = 30.0
_joined = 0  # how often this process has met others in the launcher's store: each time under other names


class Team:
    """The processes of one training; of one process where nothing else was asked for.

    Attributes:
        rank: the number of this process, from 0.
        size: how many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1, starts_others: bool = False) -> None:
        self.rank, self.size = rank, size
        self._starts_others = starts_others
        self._store: Any = None
        self._group: Any = None
        self._helpers: list[_Helper] = []

    @property
    def writes(self) -> bool:
        """Whether this process writes the run's file."""
        return self.rank == 0

    @contextmanager
    def at_work(self, order: Mapping[str, Any]) -> Iterator[None]:
        """Inside, algorithms that are made belong to this team; helpers are started, and ended at the end.

        Args:
            order: what :func:`diffsim.runs.run.trained` is called with in the helpers.
        """
        before = _current.set(self)
        try:
            if self._starts_others:
                self._start_helpers(order)
            yield
            self._end_helpers(_END_SECONDS)
        finally:
            _current.reset(before)
            self._group = None
            self._end_helpers(0.0)

    def _start_helpers(self, order: Mapping[str, Any]) -> None:
        try:
            text = json.dumps(order)
        except TypeError as error:
            raise ConfigError(
                f"processes = {self.size}: other processes cannot be given these settings: {error}"
            ) from None
        self._store = dist.TCPStore(
            "127.0.0.1", 0, self.size, True, timeout=_CONNECT_TIMEOUT, wait_for_workers=False
        )
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self._store.port)}
        for rank in range(1, self.size):
            self._helpers.append(_Helper(rank, {**address, "WORLD_SIZE": str(self.size)}, text))

    def _end_helpers(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        for helper in self._helpers:
            helper.end(max(end - time.monotonic(), 0.0))
        self._helpers = []

    def connect(self) -> None:
        """Wait for the others.  Nothing where there are none.

        Raises:
            ProcessError: they do not come.
        """
        global _joined
        if self.size == 1 or self._group is not None:
            return
        try:
            number = 1  # of helpers, each of which trains once, with a store of their own
            if self._store is None:
                self._store = next(iter(dist.rendezvous("env://", timeout=_CONNECT_TIMEOUT)))[0]
                _joined += 1
                number = _joined
            store = dist.PrefixStore(f"diffsim-{number}", self._store)
            self._await_others(store)
            with _on_loopback("127.0.0.1" if self._starts_others else os.environ.get("MASTER_ADDR", "")):
                self._group = dist.ProcessGroupGloo(store, self.rank, self.size, TIMEOUT)
        except (RuntimeError, ValueError) as error:
            raise self._lost(error) from error

    def _await_others(self, store: Any) -> None:
        """Until all have come; a helper that ends before is not waited for."""
        store.set(f"here-{self.rank}", "")
        end = time.monotonic() + _CONNECT_TIMEOUT.total_seconds()
        while not store.check([f"here-{rank}" for rank in range(self.size)]):
            if any(helper.process.poll() is not None for helper in self._helpers) or time.monotonic() > end:
                raise RuntimeError("the other processes did not begin")
            time.sleep(0.02)

    def exchange(self, payload: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        """The bytes ``[sizes[rank]]`` of every process, in the order of ranks; ``payload`` are those of this one.

        Raises:
            ProcessError: another process has ended.
        """
        if self.size == 1:
            return [payload]
        padded = payload.new_zeros(max(sizes))
        padded[: len(payload)] = payload
        received = [torch.empty_like(padded) for _ in sizes]
        try:
            self._group.allgather([received], [padded]).wait()
        except RuntimeError as error:
            raise self._lost(error) from error
        return [part[:size] for part, size in zip(received, sizes, strict=True)]

    def leave(self) -> None:
        """Go on alone, from here on with all shards: the others are lost."""
        self._group, self.rank, self.size = None, 0, 1

    def _lost(self, error: BaseException) -> ProcessError:
        # The connection breaks a moment before the system says how a process has ended.
        end = time.monotonic() + 2.0
        while self._helpers and time.monotonic() < end:
            for helper in self._helpers:
                if helper.process.poll() is not None:
                    return ProcessError(f"process {helper.rank} of {self.size} {helper.how_it_ended()}")
            time.sleep(0.02)
        reason = " ".join(str(error).split())[:200]
        return ProcessError(
            f"another one of the {self.size} processes has ended or does not answer ({reason})"
        )


_current: ContextVar[Team | None] = ContextVar("team", default=None)


def current() -> Team:
    """The team that this process works in."""
    return _current.get() or Team()


def team_for(processes: int | None, shards: int) -> Team:
    """The team of a training; without ``processes``, that of the launcher, if there is one and a batch has shards.

    Raises:
        ConfigError: more processes than shards.
    """
    rank, size = launched()
    starts_others = size == 1 and processes is not None and processes > 1
    if starts_others:
        size = int(processes or 1)
    elif processes is None and shards == 1:
        return Team()
    elif processes is not None and processes not in (1, size):
        raise ConfigError(
            f"processes = {processes}, but the launcher has started {size}; leave one of them out"
        )
    if size > shards:
        raise ConfigError(
            f"{size} processes need a batch in at least as many shards, and this run has shards = {shards}; set them "
            f"when the run is made, for example with --set shards={size}. They are part of the run: results depend on "
            "the number of shards, not on that of processes"
        )
    return Team(rank, size, starts_others)


class _Helper:
    """A process that computes for the one that started it."""

    def __init__(self, rank: int, environment: Mapping[str, str], order: str) -> None:
        self.rank = rank
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", "diffsim.runs.helper"],
            env={**os.environ, **environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            text=True,
        )
        assert self.process.stdin is not None
        with suppress(OSError):  # it has ended already, which is noticed when it is waited for
            self.process.stdin.write(order + "\n")
            self.process.stdin.flush()

    def how_it_ended(self) -> str:
        code = self.process.returncode
        how = (
            f"was killed by {signal.Signals(-code).name}"
            if code < 0
            else f"ended with the exit status {code}"
        )
        self._errors.seek(0)
        lines = [line for line in self._errors.read().splitlines() if line.strip()]
        return f"{how}: {lines[-1]}" if lines else how

    def end(self, seconds: float) -> None:
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.close()
        self._errors.close()


@contextmanager
def _on_loopback(address: str) -> Iterator[None]:
    """While gloo connects processes of one machine, it uses the loopback interface: host names may lead nowhere."""
    name, chosen = "GLOO_SOCKET_IFNAME", os.environ.get("GLOO_SOCKET_IFNAME")
    names = [interface for _, interface in socket.if_nameindex()]
    local = address in ("127.0.0.1", "localhost") and chosen is None and "lo" in names
    if local:
        os.environ[name] = "lo"
    try:
        yield
    finally:
        if local:
            del os.environ[name]
