"""Compiling CUDA C++ by NVRTC, once for every source, architecture and compiler, and launching what comes out.

NVRTC and the driver are reached through NVIDIA's packages cuda-core and cuda-bindings (the extra ``cuda``).  Compiling
needs no GPU.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import io
import logging
import re
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from lazy_registry.installation import cache_folder, install_command
from solvers.compiler.trace import NativeUnsupportedError

logger = logging.getLogger("solvers")

OPTIONS: dict[str, Any] = {
    "std": "c++17",
    "device_as_default_execution_space": True,
    "ptxas_options": ["-v"],
}
"""No fast math: a NaN must stay one.  Products and sums may be contracted, as g++ does it too."""


class Resources(NamedTuple):
    """What a thread of a kernel takes, as the assembler reports it."""

    registers: int
    stack_bytes: int
    spill_bytes: int
    """Bytes of registers that are stored to local memory, and loaded from there, together."""


class NoNvrtcError(NativeUnsupportedError):
    """cuda-core or NVRTC is not installed."""


@functools.cache
def version() -> str:
    """NVRTC's version.

    Raises:
        NoNvrtcError: there is none.
    """
    try:
        from cuda.bindings import nvrtc
        from cuda.core import Program  # noqa: F401  (it must be there as well)

        status, major, minor = nvrtc.nvrtcVersion()
    except Exception as error:  # what cannot be loaded has many classes
        raise NoNvrtcError(
            f"compiling for CUDA needs cuda-core and NVRTC: {install_command('cuda')} "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
        ) from error
    if int(status):
        raise NoNvrtcError(f"NVRTC does not tell its version: {status}")
    return f"{major}.{minor}"


def compiled(source: str, arch: str) -> tuple[bytes, str]:
    """The machine code of ``source`` for an architecture such as ``"sm_90"``, and what compiler and assembler say.

    Raises:
        NativeUnsupportedError: NVRTC is missing or fails.
    """
    version()
    from cuda.core import Program, ProgramOptions

    log = io.StringIO()
    try:
        program = Program(source, "c++", ProgramOptions(arch=arch, **OPTIONS))
        code = bytes(program.compile("cubin", logs=log).code)
    except Exception as error:  # cuda-core has its own classes, which are not public
        raise NativeUnsupportedError(f"NVRTC failed: {str(error)[:2000]}\n{log.getvalue()[:2000]}") from error
    return code, log.getvalue()


def resources(log: str) -> dict[str, Resources]:
    """By the kernels' names, from what :func:`compiled` says."""
    found = {}
    for part in log.split("Compiling entry function '")[1:]:
        name = part[: part.index("'")]
        stack = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part)
        used = re.search(r"Used (\d+) registers(?:.*?(\d+) bytes cumulative stack size)?", part)
        if stack and used:
            total = int(used.group(2) or stack.group(1))
            found[name] = Resources(int(used.group(1)), total, int(stack.group(2)) + int(stack.group(3)))
    return found


def cached(source: str, arch: str) -> bytes:
    """The machine code, from the cache if source, architecture and compiler are the same."""
    key = hashlib.sha256("\0".join((source, arch, version(), str(OPTIONS))).encode()).hexdigest()[:32]
    folder = cache_folder()
    for kept in folder.glob(f"{key}-*.cubin"):
        code = kept.read_bytes()
        if str(len(code)) == kept.stem.rpartition("-")[2]:  # whole
            return code
    started = time.perf_counter()
    code, _ = compiled(source, arch)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            built = Path(scratch, "kernel.cubin")
            built.write_bytes(code)
            built.replace(folder / f"{key}-{len(code)}.cubin")  # whole or not at all
    except OSError as error:
        logger.warning("the kernel could not be kept in %s: %s", folder, error)
    logger.info("compiled a kernel for %s in %.1f s", arch, time.perf_counter() - started)
    return code


class Kernels:
    """The kernels of a source on a CUDA device, whose context must be the current one.

    Args:
        shared: bytes of shared memory that a block of each kernel gets, by the kernel's name.

    Raises:
        NativeUnsupportedError: the source does not compile, or the device lacks what it takes.
    """

    def __init__(self, source: str, capability: tuple[int, int], shared: dict[str, int]) -> None:
        code = cached(source, f"sm_{capability[0]}{capability[1]}")
        from cuda.bindings import driver

        self._driver, self._shared = driver, shared
        self._module = self._ask("cuModuleLoadData", code)
        self._functions = {}
        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        for name, size in shared.items():
            function = self._functions[name] = self._ask("cuModuleGetFunction", self._module, name.encode())
            self._ask("cuFuncSetAttribute", function, attribute, size)

    def launch(self, name: str, blocks: int, threads: int, stream: int, arguments: ctypes.Structure) -> None:
        """Start a kernel on a stream, with one argument, which is copied; nothing waits."""
        addresses = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
        handle = self._driver.CUstream(stream)
        shared, at = self._shared[name], ctypes.addressof(addresses)
        self._ask("cuLaunchKernel", self._functions[name], blocks, 1, 1, threads, 1, 1, shared, handle, at, 0)

    def _ask(self, function: str, *arguments: Any) -> Any:
        """A driver function's result.

        Raises:
            NativeUnsupportedError: it fails.
        """
        status, *result = getattr(self._driver, function)(*arguments)
        if int(status):
            raise NativeUnsupportedError(f"{function} failed: {status.name}")
        return result[0] if result else None
