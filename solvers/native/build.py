"""Compiling C++ to a shared library, once for every source, compiler and processor."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.resources
import importlib.util
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from lazy_registry.installation import cache_folder
from solvers.compiler.trace import NativeUnsupportedError
from solvers.native.units import units_of

logger = logging.getLogger("solvers")

FLAGS = ("-O2", "-std=c++17", "-fPIC", "-fno-math-errno", "-fno-trapping-math")
"""No -ffast-math: a NaN must stay one, and results must not depend on the order of rollouts."""

GCC_FLAGS = ("--param=lra-max-considered-reload-pseudos=10", "--param=avoid-fma-max-bits=0")
"""Of g++ only.  Less thought on what to spill takes half the time in a function of thousands of lines.  Tuned for AMD's
Zen, g++ takes products and sums apart in some loops that it fuses in others: then the bits of a rollout depend on how
many there are beside it."""

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
def _header(name: str) -> str:
    return importlib.resources.files("solvers.native").joinpath(name).read_text()


def with_headers(template: str) -> str:
    """The template with the vector functions, and those of layers, where it asks for them."""
    with_vectors = template.replace("// VECTORS", _header("vectors.h"), 1)
    return with_vectors.replace("// LAYERS", _header("layers.h"), 1)


NO_COMPILER = """\
there is no C++ compiler; without one, simulating takes 2 to 14 times as long.
Install one: apt-get install g++ (as root), or pip install ziglang"""
"""At most 80 columns a line.

Processor time of a policy update on one thread without the compiler over that with it, mean of 15 updates (torch 2.13,
AMD EPYC): pendulum 2.0, with windows of 16 control intervals 3.3, rocket landing 3.5, cart-pole swing-up 4.7, quadrotor
4.9; car 13.8, cart-pole swing-up with windows of 32 13.8.
"""


class NoCompilerError(NativeUnsupportedError):
    """There is no C++ compiler; its message has been logged, once a process."""


@dataclass(frozen=True)
class Toolchain:
    """A compiler: ``command`` begins its command line; ``about`` changes with its version and with the processor."""

    command: tuple[str, ...]
    about: str

    def build(self, source: Path, library: Path, isa: str) -> None:
        """Compile ``source`` to ``library``: with OpenMP, or where the compiler has none without, for one thread.

        Raises:
            NativeUnsupportedError: the compiler fails.
        """
        own = GCC_FLAGS if "Free Software Foundation" in self.about else ()
        compile_it = [*self.command, *FLAGS, *own, *INSTRUCTION_SETS[isa], "-Wno-psabi"]
        units, cores = units_of(source.read_text()), _cores()
        objects = [str(source.with_suffix(f".{unit}.o")) for unit in range(units)]

        def build(threads: Sequence[str]) -> str:
            """Nothing, or what the compiler complains about."""
            if min(units, cores) == 1:
                command = [*compile_it, *threads, "-shared", str(source), "-o", str(library), "-lm"]
                return _complaint(command)
            commands = [
                [*compile_it, *threads, f"-DUNIT={unit}", "-c", str(source), "-o", objects[unit]]
                for unit in range(units)
            ]
            with ThreadPoolExecutor(min(units, cores)) as pool:
                complaints = "".join(pool.map(_complaint, commands))
            link = [*compile_it, *threads, "-shared", *objects, "-o", str(library), "-lm"]
            return complaints or _complaint(link)

        complaint = build(["-fopenmp"])
        if complaint and build([]):
            raise NativeUnsupportedError(f"the C++ compiler failed:\n{complaint[:2000]}")

    def open(self, library: Path) -> ctypes.CDLL:
        """The library ``library``, loaded into this process."""
        # Another libm in the process, such as Julia's, must not lend a kernel its functions: they round differently.
        return ctypes.CDLL(str(library), mode=getattr(os, "RTLD_DEEPBIND", 0))


class Zig(Toolchain):
    """``zig c++`` of the Python package ziglang, or of a zig that ``$CXX`` names.  Kernels use one thread.

    Before zig links its first C++ program it compiles its own C++ library, for two minutes.  Kernels need little of
    that library: ``_RUNTIME`` defines it, and zig links without.
    """

    def build(self, source: Path, library: Path, isa: str) -> None:
        """See :meth:`Toolchain.build`."""
        compiled = source.with_suffix(".o")
        source.write_text(source.read_text() + _RUNTIME)
        processor = f"-mcpu={_ZIG_PROCESSORS[isa]}"
        options = ["-w", "-fno-exceptions", "-fno-sanitize=undefined", processor]
        link = ["-dynamic", "-fno-compiler-rt", "-O", "ReleaseFast", "-lc", "-lm", f"-femit-bin={library}"]
        for arguments in (
            ["c++", "-c", *FLAGS, *options, str(source), "-o", str(compiled)],
            ["build-lib", str(compiled), *link],
        ):
            # A cache for this call: the user's may be read-only, and filling one takes a tenth of a second.
            folder = str(source.parent)
            caches = {"ZIG_GLOBAL_CACHE_DIR": folder, "ZIG_LOCAL_CACHE_DIR": folder}
            done = _call([*self.command, *arguments], env={**os.environ, **caches})
            if done.returncode:
                raise NativeUnsupportedError(f"the C++ compiler failed:\n{done.stderr[:2000]}")

    def open(self, library: Path) -> ctypes.CDLL:
        """See :meth:`Toolchain.open`."""
        with contextlib.suppress(OSError):
            # Zig links glibc's vector functions only where glibc's development files are installed.
            ctypes.CDLL("libmvec.so.1", mode=ctypes.RTLD_GLOBAL)
        return super().open(library)


_ZIG_PROCESSORS = {"native": "native", "avx512": "x86_64_v4", "avx2": "x86_64_v3", "plain": "baseline"}
"""Zig has names of its own, and without one compiles for the processor at hand."""

_RUNTIME = r"""
#include <cstdlib>
#include <new>
static void* allocated(void* memory) {
  if (!memory) std::abort();
  return memory;
}
void* operator new(std::size_t size) { return allocated(std::malloc(size ? size : 1)); }
void* operator new(std::size_t size, std::align_val_t align) {
  const std::size_t a = std::size_t(align);
  return allocated(std::aligned_alloc(a, (size + a - 1) / a * a));
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }
_LIBCPP_BEGIN_NAMESPACE_STD
void __libcpp_verbose_abort(const char*, ...) noexcept { std::abort(); }
_LIBCPP_END_NAMESPACE_STD
"""


def _cores() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _complaint(command: list[str]) -> str:
    """What a command that fails writes; nothing if it does not."""
    done = _call(command)
    return done.stderr or "it says nothing" if done.returncode else ""


def _call(command: list[str], env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, env=env)


@functools.cache
def _toolchain() -> Toolchain:
    """The compiler: ``$CXX``, ``g++``, ``clang++``, or the one of the Python package ziglang.

    Raises:
        NoCompilerError: there is none.
        NativeUnsupportedError: there is one, and it does not run.
    """
    named = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if named is not None:
        command = shlex.split(named)
    elif importlib.util.find_spec("ziglang") is not None:
        command = [sys.executable, "-m", "ziglang", "c++"]
    else:
        _say_no_compiler()
        raise NoCompilerError(NO_COMPILER)
    zig = len(command) > 1 and command[-1] == "c++"
    try:
        version = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise NativeUnsupportedError(
            f"the C++ compiler {shlex.join(command)} does not run: {error}"
        ) from error
    processor = platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        processor += platform.processor()
    about = version + processor
    return Zig(tuple(command[:-1]), about + _RUNTIME) if zig else Toolchain(tuple(command), about)


@functools.cache
def _say_no_compiler() -> None:
    logger.warning(NO_COMPILER)


def load(source: str) -> ctypes.CDLL:
    """The compiled source; from the cache if it, the compiler and the processor are the same.

    Raises:
        NativeUnsupportedError: there is no compiler, or it fails.
    """
    return _load(source, instruction_set())


@functools.lru_cache(maxsize=256)
def _load(source: str, isa: str) -> ctypes.CDLL:
    toolchain = _toolchain()
    key = hashlib.sha256("\0".join((source, toolchain.about, *FLAGS, *GCC_FLAGS, isa)).encode()).hexdigest()[
        :32
    ]
    folder = cache_folder()
    library = _kept(folder, key)
    if library is None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _alone(folder / f"{key}.lock"):
                # Another process may have compiled the same meanwhile.
                library = _kept(folder, key) or _built(toolchain, source, isa, folder, key)
        except OSError as error:
            raise NativeUnsupportedError(f"the library could not be written to {folder}: {error}") from error
    try:
        return toolchain.open(library)
    except OSError as error:
        raise NativeUnsupportedError(f"the library does not load; remove {library}: {error}") from error


def _built(toolchain: Toolchain, source: str, isa: str, folder: Path, key: str) -> Path:
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        text, built = Path(scratch, "kernel.cpp"), Path(scratch, "kernel.so")
        text.write_text(source)
        toolchain.build(text, built, isa)
        library = folder / f"{key}-{_digest(built)}.so"
        built.replace(library)  # whole or not at all, also for a process that reads meanwhile
    logger.info("compiled a kernel in %.1f s", time.perf_counter() - started)
    return library


_LONGEST = 900.0
"""Seconds that another process is waited for which compiles the same kernel."""


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """While inside, no other process is.

    Not where the file system has no locks, or the other one takes too long: then several compile the same, of which
    each takes its own.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=_LONGEST)
    except (OSError, NotImplementedError, Timeout):
        yield
        return
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # those who wait hold what it was, and find the library
        lock.release()


def _kept(folder: Path, key: str) -> Path | None:
    """The library in the cache, if its content is what its name says: a damaged one would kill the process."""
    for library in folder.glob(f"{key}-*.so"):
        with contextlib.suppress(OSError):
            if _digest(library) == library.stem.rpartition("-")[2]:
                return library
    return None


def _digest(library: Path) -> str:
    return hashlib.blake2b(library.read_bytes(), digest_size=8).hexdigest()
