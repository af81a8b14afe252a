"""What surrounds a run in its process, set to what the run says, so that it changes no bit of it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch

_lock = threading.Lock()
_inside = 0
"""Runs that compute now, in threads of this process."""
_before: tuple[torch.dtype, str] = (torch.float32, "highest")
"""The process's default dtype and precision of matrix products, while a run computes."""


@contextlib.contextmanager
def torch_state(threads: int) -> Iterator[None]:
    """While inside, torch computes on ``threads`` CPU threads and otherwise as in a fresh process.

    That is: default dtype float32, default device CPU, no autocast, no inference mode, gradients on, denormal numbers
    kept, matrix products in full precision.  What the caller had set is restored at the end; the default dtype and the
    precision, which all threads of a process share, when the last of several runs ends.
    """
    global _inside, _before
    threads_before, flushes = torch.get_num_threads(), _flushes_denormals()
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        with _lock:
            if not _inside:
                _before = (torch.get_default_dtype(), torch.get_float32_matmul_precision())
                torch.set_default_dtype(torch.float32)
                torch.set_float32_matmul_precision("highest")
            _inside += 1
        torch.set_num_threads(threads)
        if flushes:
            torch.set_flush_denormal(False)
        try:
            yield
        finally:
            if flushes:
                torch.set_flush_denormal(True)
            torch.set_num_threads(threads_before)
            with _lock:
                _inside -= 1
                if not _inside:
                    torch.set_default_dtype(_before[0])
                    torch.set_float32_matmul_precision(_before[1])


def _flushes_denormals() -> bool:
    smallest = torch.finfo(torch.float64).tiny
    return float(torch.tensor(smallest, dtype=torch.float64, device="cpu") / 2) == 0.0
