"""Julia inside this process: the only module that imports juliacall.

Environment variables, import order, threads, signals and forks are handled here, because each of them can be set
only once, before Julia starts.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from robotics_envs.julia.installation import ADJOINTS, MODULE, PACKAGE, SETUP, Installation, JuliaError, find

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["JuliaError", "Runtime", "start", "started"]

_INT, _POINTER, _TEXT = ctypes.c_int64, ctypes.c_void_p, ctypes.c_char_p
# Loading runs a user's file, which may use Python: with the GIL.  Simulating may not, and lets others run.
_SIGNATURES = (
    ctypes.PYFUNCTYPE(_INT, _TEXT, _TEXT, _TEXT, _INT),
    ctypes.PYFUNCTYPE(_INT, _INT, _TEXT, _INT),
    ctypes.PYFUNCTYPE(_INT, _TEXT, _INT),
    ctypes.CFUNCTYPE(_INT, *[_INT] * 6, *[_POINTER] * 6),
    ctypes.CFUNCTYPE(_INT, *[_INT] * 5, *[_POINTER] * 6),
    ctypes.CFUNCTYPE(_INT, *[_INT] * 4, *[_POINTER] * 8),
    ctypes.CFUNCTYPE(_INT, *[_INT] * 4, _POINTER),
    ctypes.CFUNCTYPE(_INT, *[_INT] * 6, *[_POINTER] * 5),
    ctypes.CFUNCTYPE(_INT, *[_INT] * 5, *[_POINTER] * 6),
)
_INTERRUPTED = -2

# Of juliacall only the start is used: its own calls would compile for seconds before the first of ours.
_LOAD = f"""
try
    import {PACKAGE}
    {PACKAGE}.entry_points()
catch error
    "error = " * repr(String(first(split(sprint(showerror, error), '\\n'))))
end
"""

_OURS = (signal.SIGINT, signal.SIGTERM)
_lock = threading.Lock()
_runtime: Runtime | None = None


class Runtime:
    """A running Julia with DiffSimEnvs loaded.

    Calls go through C function pointers over plain memory: they hold no GIL, use no Python object, and may come
    from any thread (Julia adopts it).  Created by :func:`start`.

    Attributes:
        threads: number of Julia threads that a batch is divided among.
        versions: of Julia (``"julia"``) and of the packages that simulate.
    """

    def __init__(self, threads: int, versions: Mapping[str, str], addresses: Sequence[int]) -> None:
        self.threads, self.versions = threads, versions
        functions = [kind(address) for kind, address in zip(_SIGNATURES, addresses, strict=True)]
        self._open, self._last_error, self._load_adjoints = functions[:3]
        self._evaluate, self._pull, self._adjoint, self._reset, self._window, self._pull_window = functions[
            3:
        ]
        self._adjoints_loaded = False

    def open(self, file: str, name: str) -> dict[str, Any]:
        """The declarations of the simulator ``name`` of ``file`` (empty: of DiffSimEnvs).

        ``number`` identifies it in later calls.

        Raises:
            JuliaError: the file does not load, or the simulator is not complete; with Julia's message and line.
        """
        _refuse_fork()
        found = tomllib.loads(_text(self._open, file.encode(), name.encode()))
        if "error" in found:
            raise JuliaError(found["error"])
        return found

    def load_adjoints(self) -> None:
        """Load SciMLSensitivity's adjoints; takes seconds at the first call, later calls return at once.

        Raises:
            JuliaError: the project does not have the package.
        """
        if self._adjoints_loaded:
            return
        _refuse_fork()
        said = _text(self._load_adjoints)
        if said:
            raise JuliaError(f"adjoints need the Julia package {ADJOINTS[0]}, run {SETUP} --adjoints: {said}")
        self._adjoints_loaded = True

    def evaluate(self, number: int, *arguments: int) -> int:
        """``DiffSimEnvs.c_evaluate``; the number of rollouts that failed."""
        return self._checked(number, self._evaluate, arguments)

    def pull(self, number: int, *arguments: int) -> None:
        """``DiffSimEnvs.c_pull``."""
        self._checked(number, self._pull, arguments)

    def adjoint(self, number: int, *arguments: int) -> None:
        """``DiffSimEnvs.c_adjoint``."""
        self._checked(number, self._adjoint, arguments)

    def reset(self, number: int, *arguments: int) -> None:
        """``DiffSimEnvs.c_reset``."""
        self._checked(number, self._reset, arguments)

    def window(self, number: int, *arguments: int) -> int:
        """``DiffSimEnvs.c_window``; the number of rollouts that failed."""
        return self._checked(number, self._window, arguments)

    def pull_window(self, number: int, *arguments: int) -> None:
        """``DiffSimEnvs.c_pull_window``."""
        self._checked(number, self._pull_window, arguments)

    def _checked(self, number: int, function: Any, arguments: tuple[int, ...]) -> int:
        if _forked:
            _refuse_fork()
        code = function(number, *arguments)
        if code >= 0:
            return code
        if code == _INTERRUPTED:
            raise KeyboardInterrupt
        raise JuliaError(_text(self._last_error, number))


def _text(function: Any, *arguments: Any) -> str:
    """The text that a Julia function writes; the function returns its length."""
    capacity = 64_000
    buffer = ctypes.create_string_buffer(capacity)
    length = function(*arguments, buffer, capacity)
    return buffer.raw[: min(length, capacity)].decode(errors="replace")


def started() -> Runtime | None:
    """The running Julia, if there is one."""
    return _runtime


def start(threads: int | None = None) -> Runtime:
    """The running Julia, started if it is not.

    Args:
        threads: Julia threads that a batch is divided among; ``PYTHON_JULIACALL_THREADS`` and ``JULIA_NUM_THREADS``
            take precedence; 1 by default.  Only the first call sets it; later calls with another number have no
            effect.  Results do not depend on it.

    Raises:
        JuliaError: no Julia is set up, it cannot be started here, or its packages do not load.
    """
    global _runtime
    _refuse_fork()
    with _lock:
        if _runtime is None:
            if threads is not None and threads < 1:
                raise JuliaError(f"Julia needs at least one thread, got {threads}")
            if threading.current_thread() is not threading.main_thread():
                raise JuliaError(
                    "Julia can only be started from the main thread, whose signals it needs: call "
                    "robotics_envs.julia.start() there first; other threads may use it then"
                )
            _runtime = _start(threads)
        return _runtime


def _start(threads: int | None) -> Runtime:
    earlier = "juliacall" in sys.modules
    installation = None if earlier else find()
    told = "JULIA_NUM_THREADS" in os.environ or "PYTHON_JULIACALL_THREADS" in os.environ
    if threads is not None and not told:
        os.environ["PYTHON_JULIACALL_THREADS"] = str(threads)
    # Julia's threads synchronise through its SIGSEGV handler.  Without that handler, garbage collection with more than
    # one thread (an adopted one counts) is a segmentation fault.
    if os.environ.setdefault("PYTHON_JULIACALL_HANDLE_SIGNALS", "yes") != "yes":
        raise JuliaError(
            "PYTHON_JULIACALL_HANDLE_SIGNALS has to be yes or unset: otherwise threads in Julia end in "
            "segmentation faults.  Ctrl-C raises KeyboardInterrupt all the same"
        )
    with _python_keeps_its_signals(), warnings.catch_warnings():
        # A warning about torch imported before; harmless with signals handled (measured, docs/julia.md).
        warnings.simplefilter("ignore")
        try:
            import juliacall
        except Exception as error:
            raise _does_not_load(installation, error) from error
        config = dict(juliacall.CONFIG)
        if hasattr(juliacall, "Main"):  # Julia runs, also where it is Julia that has loaded Python
            config["inited"] = True
        installation = _settings_of(config, earlier) or installation
        library = ctypes.PyDLL(None)
        found = _load(library)
    if "error" in found:
        raise _does_not_load(installation, found["error"])
    if "lib" in config:
        _leave_julia(library)
    else:
        # Julia has loaded Python: this thread returns to it by itself.  PythonCall's setting is not for children.
        os.environ.pop("PYTHON_JULIACALL_INIT", None)
    if earlier and not told and threads not in (None, found["threads"]):
        warnings.warn(
            f"juliacall was imported before Julia's first environment, and threads = {found['threads']} was settled "
            f"then: for {threads}, call robotics_envs.julia.start({threads}) before that import, or set "
            f"PYTHON_JULIACALL_THREADS={threads}; it changes the speed only",
            stacklevel=3,
        )
    return Runtime(found["threads"], found["versions"], found["addresses"])


def _settings_of(config: Mapping[str, Any], earlier: bool) -> Installation | None:
    """What juliacall has started Julia with; nothing where Julia was there first and has loaded Python.

    ``config`` is ``juliacall.CONFIG``.  It holds what was in force at juliacall's first import, by whomever, with
    Python's options ``-X juliacall-...``, which the environment does not show.

    Raises:
        JuliaError: it has started none, or one that leaves its signals to Python.
    """
    if not config["inited"]:
        raise JuliaError("juliacall was told to start no Julia: unset PYTHON_JULIACALL_INIT")
    if "lib" not in config:  # the library that juliacall has opened
        return None
    if config["opt_handle_signals"] != "yes":
        way_out = (
            "it was imported before Julia's first environment: call robotics_envs.julia.start() before that import, or "
            "set PYTHON_JULIACALL_HANDLE_SIGNALS=yes"
            if earlier
            else "drop the option -X juliacall-handle-signals"
        )
        raise JuliaError(
            "juliacall has started Julia without Julia's signal handling, where threads in Julia end in "
            f"segmentation faults; {way_out}.  Ctrl-C raises KeyboardInterrupt all the same"
        )
    return Installation(config["exepath"], config["project"], "juliacall")


def _load(library: ctypes.PyDLL) -> dict[str, Any]:
    """Load DiffSimEnvs into the running Julia; its entry points, or an ``error``."""
    library.jl_eval_string.restype = _POINTER
    library.jl_string_ptr.argtypes, library.jl_string_ptr.restype = (_POINTER,), _TEXT
    return tomllib.loads(library.jl_string_ptr(library.jl_eval_string(_LOAD.encode())).decode())


def _does_not_load(installation: Installation | None, reason: object) -> JuliaError:
    running = (
        "the running Julia"
        if installation is None
        else f"{installation.executable} with the project {installation.project}"
    )
    return JuliaError(
        f"{running} does not load {PACKAGE} "
        f"({str(reason).strip().splitlines()[0]}); run {SETUP}; python -m {MODULE} status shows what is there"
    )


@contextmanager
def _python_keeps_its_signals() -> Iterator[None]:
    """Julia blocks SIGINT and SIGTERM in this thread and lets one of its own threads wait for them; undo that.

    The kernel prefers the main thread for a signal to the process, so it is Python's handler that runs: Ctrl-C raises
    KeyboardInterrupt, or does what ``signal.signal`` says, also with many Julia threads.
    """
    before = {number: signal.getsignal(number) for number in _OURS}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _leave_julia(library: ctypes.PyDLL) -> None:
    """Tell Julia that this thread is outside of it while Python runs.

    Otherwise garbage collection started by another thread would wait for this thread to return to Julia.
    """
    library.jl_gc_safe_enter.restype, library.jl_gc_safe_leave.argtypes = ctypes.c_int8, (ctypes.c_int8,)
    state = library.jl_gc_safe_enter()
    # Registered after juliacall's own handler, which ends Julia, so that it runs before that.
    atexit.register(lambda: None if _forked else library.jl_gc_safe_leave(state))


_forked = False


def _note_fork() -> None:
    global _forked
    _forked = _runtime is not None


os.register_at_fork(after_in_child=_note_fork)


def _refuse_fork() -> None:
    if _forked:
        raise JuliaError(
            "Julia was started before this process was forked, and a child has none of its threads: use the start "
            "method 'spawn' or 'forkserver' (multiprocessing.get_context('spawn'), "
            "DataLoader(multiprocessing_context='spawn')), or make the first Julia environment after the fork"
        )
