"""Compiling C++ to a shared library, once for every source, compiler and processor."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.resources
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from solvers.native.trace import NativeUnsupportedError

logger = logging.getLogger("solvers")

FLAGS = (
    "-O2",
    "-std=c++17",
    "-fPIC",
    "-shared",
    "-fopenmp",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wno-psabi",
)
"""No -ffast-math: a NaN must stay one, and results must not depend on the order of rollouts."""

INSTRUCTION_SETS = {
    "native": ("-march=native",),
    "avx512": ("-march=x86-64-v4",),
    "avx2": ("-march=x86-64-v3",),
    "plain": (),
}
"""By the name that ``$DIFFSIM_ISA`` may give; without one, all that the processor at hand has (``native``)."""


def instruction_set() -> str:
    """The name of the instruction set to compile for.

    Raises:
        NativeUnsupportedError: ``$DIFFSIM_ISA`` names none.
    """
    name = os.environ.get("DIFFSIM_ISA", "native")
    if name not in INSTRUCTION_SETS:
        raise NativeUnsupportedError(f"$DIFFSIM_ISA = {name!r}; known: {', '.join(INSTRUCTION_SETS)}")
    return name


@functools.cache
def _vectors() -> str:
    return importlib.resources.files("solvers.native").joinpath("vectors.h").read_text()


def with_vectors(template: str) -> str:
    """The template with the vector functions where it asks for them."""
    return template.replace("// VECTORS", _vectors(), 1)


def cache_folder() -> Path:
    """Where libraries are kept: ``$DIFFSIM_CACHE``, or ``diffsim`` in the user's cache folder."""
    named = os.environ.get("DIFFSIM_CACHE")
    return (
        Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "diffsim"
    )


@functools.cache
def _toolchain() -> tuple[str, str]:
    """The compiler, and a text that changes with its version and with the processor it compiles for."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise NativeUnsupportedError("there is no C++ compiler (g++, clang++ or $CXX)")
    try:
        version = subprocess.run(
            [*shlex.split(compiler), "--version"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise NativeUnsupportedError(f"the C++ compiler {compiler} does not run: {error}") from error
    processor = platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        processor += platform.processor()
    return compiler, version + processor


def load(source: str) -> ctypes.CDLL:
    """The compiled source; from the cache if it, the compiler and the processor are the same.

    Raises:
        NativeUnsupportedError: there is no compiler, or it fails.
    """
    return _load(source, instruction_set())


@functools.lru_cache(maxsize=256)
def _load(source: str, isa: str) -> ctypes.CDLL:
    compiler, about = _toolchain()
    flags = (*FLAGS, *INSTRUCTION_SETS[isa])
    key = hashlib.sha256("\0".join((source, about, *flags)).encode()).hexdigest()[:32]
    folder = cache_folder()
    library = _kept(folder, key)
    if library is None:
        started = time.perf_counter()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                text, built = Path(scratch, "kernel.cpp"), Path(scratch, "kernel.so")
                text.write_text(source)
                done = subprocess.run(
                    [*shlex.split(compiler), *flags, str(text), "-o", str(built), "-lm"],
                    capture_output=True,
                    text=True,
                )
                if done.returncode:
                    raise NativeUnsupportedError(f"the C++ compiler failed:\n{done.stderr[:2000]}")
                library = folder / f"{key}-{built.stat().st_size}.so"
                built.replace(library)  # whole or not at all, also for another process that builds the same
        except OSError as error:
            raise NativeUnsupportedError(f"the library could not be written to {folder}: {error}") from error
        logger.info("compiled a kernel in %.1f s", time.perf_counter() - started)
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise NativeUnsupportedError(f"the library does not load; remove {library}: {error}") from error


def _kept(folder: Path, key: str) -> Path | None:
    """The library in the cache, if it is as long as its name says: a part of one would kill the process."""
    for library in folder.glob(f"{key}-*.so"):
        if library.is_file() and str(library.stat().st_size) == library.stem.rpartition("-")[2]:
            return library
    return None
