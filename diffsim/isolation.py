"""Keeps the settings of the process out of a run: default dtype and device, threads, gradient modes, random state.

A run is determined by its configuration.  What the calling program has set in torch, and what its other threads draw
from torch's global generator, must not change it; nor must a run change these for the program.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from diffsim.errors import ConfigError


@contextlib.contextmanager
def torch_defaults(threads: int | None = None) -> Iterator[None]:
    """Inside, torch is as in a fresh process: default dtype float32, default device CPU, gradients recorded.

    Inference mode and autocast are off, matrix products have full precision, denormal numbers are kept.  Everything is
    put back at the end.  All of these belong to the calling thread, except the default dtype and the precision: they
    hold for the whole process while any thread is inside.

    Args:
        threads: CPU threads of torch inside; None leaves their number as it is.

    Raises:
        ConfigError: ``threads`` is more than 1 in a process that was forked after torch had been loaded.
    """
    if threads is not None and threads > 1 and _forked:
        raise ConfigError(
            f"threads = {threads}: this process was forked from one that had loaded torch, and torch's threads do not "
            "survive a fork: it would wait for them for ever. Start processes with "
            "multiprocessing.get_context('spawn'), or set threads = 1"
        )
    with contextlib.ExitStack() as stack:
        if threads is not None:
            stack.callback(_outside.reset, _outside.set(available_threads()))
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(threads)
        stack.enter_context(_shared_by_threads())
        # Entered only where needed: a device context slows down every call of torch.
        if torch.get_default_device() != torch.device("cpu"):
            stack.enter_context(torch.device("cpu"))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if not torch.is_grad_enabled():
            stack.enter_context(torch.enable_grad())
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if _flushes_denormals():
            torch.set_flush_denormal(False)
            stack.callback(torch.set_flush_denormal, True)
        yield


_outside: ContextVar[int | None] = ContextVar("threads_outside", default=None)


def available_threads() -> int:
    """CPU threads that torch has outside of :func:`torch_defaults`: as many as processors, if nobody has set fewer.

    One in a process that was forked, which threads do not survive.
    """
    if _forked:
        return 1
    outside = _outside.get()
    return torch.get_num_threads() if outside is None else outside


_forked = False


def _note_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):  # there is no fork on Windows
    os.register_at_fork(after_in_child=_note_fork)

_shared_lock = threading.Lock()
_shared_users = 0
_shared_before = (torch.float32, "highest")


@contextlib.contextmanager
def _shared_by_threads() -> Iterator[None]:
    """Default dtype and precision of matrix products, of which torch has one for all threads.

    The first to enter remembers them, the last to leave puts them back.
    """
    global _shared_users, _shared_before
    with _shared_lock:
        if _shared_users == 0:
            _shared_before = (torch.get_default_dtype(), torch.get_float32_matmul_precision())
        _shared_users += 1
        _set_shared(torch.float32, "highest")
    try:
        yield
    finally:
        with _shared_lock:
            _shared_users -= 1
            if _shared_users == 0:
                _set_shared(*_shared_before)


def _set_shared(dtype: torch.dtype, precision: str) -> None:
    if torch.get_default_dtype() != dtype:
        torch.set_default_dtype(dtype)
    if torch.get_float32_matmul_precision() != precision:
        torch.set_float32_matmul_precision(precision)


def _flushes_denormals() -> bool:
    smallest = torch.finfo(torch.float64).tiny
    return float(torch.tensor(smallest, dtype=torch.float64, device="cpu") / 2) == 0.0


class drawing_from(contextlib.AbstractContextManager["drawing_from"]):
    """Inside, whatever draws from torch's global generator of the CPU draws from ``generator`` instead.

    For code that cannot be given a generator: constructors of modules, and libraries.  The global generator is neither
    read nor written, so several threads can be inside at once, and other code may draw from the global one meanwhile.
    If an exception leaves the block, ``generator`` is put back to where it was.  :func:`torch_defaults` hold inside.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self._before = generator.get_state()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> drawing_from:
        self._before = self.generator.get_state()
        self._begin()
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        self._stack.close()
        if kind is not None:
            self.generator.set_state(self._before)

    def _begin(self) -> None:
        self._stack.enter_context(torch_defaults())
        self._stack.enter_context(_Draws(self.generator))

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, as outside of the block: for code that is called back."""
        self._stack.close()
        try:
            yield
        finally:
            self._begin()


class _Draws(TorchDispatchMode):
    """Gives ``generator`` to every random operation on the CPU that has none; of the calling thread only."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags or kwargs.get("generator") is not None:
            return func(*args, **kwargs)
        if torch.device(kwargs.get("device") or _device_of(args)).type != "cpu":
            return func(*args, **kwargs)
        seeded = _overload_with_generator(func)
        if seeded is not None:
            return seeded(*args, **{**kwargs, "generator": self.generator})
        with _global_generator_lock, torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self.generator.get_state())
            result = func(*args, **kwargs)
            self.generator.set_state(torch.get_rng_state())
            return result


# Not in the class body, where torch would wrap it in a function that imports its compiler at the first call, which
# takes longer than importing torch.
_Draws.__torch_dispatch__ = _Draws.dispatch  # type: ignore[assignment, method-assign]

_global_generator_lock = (
    threading.Lock()
)  # for operations that know the global generator only, such as dropout


def _device_of(arguments: tuple[Any, ...]) -> torch.device:
    return next((q.device for q in arguments if isinstance(q, Tensor)), torch.device("cpu"))


@functools.cache
def _overload_with_generator(operation: Any) -> Any:
    """The overload of ``operation`` with the same arguments and a generator; None if there is none."""
    wanted = {argument.name for argument in operation._schema.arguments} | {"generator"}
    packet = operation.overloadpacket
    for overload in (operation._overloadname, *packet.overloads()):
        candidate = getattr(packet, overload)
        if {argument.name for argument in candidate._schema.arguments} == wanted:
            return candidate
    return None
