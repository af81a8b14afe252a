"""What traces of functions became, kept on disk for other processes.

To trace a large simulator takes seconds, as long as compiling it.  What is kept is known by content: by all numbers and
names that a fingerprint (:mod:`solvers.compiler.fingerprint`) holds, by the numbers and functions that these functions
read from their modules, by every source file of the packages that the functions are defined in, and by the versions of
Python and of the libraries.  Functions that are defined elsewhere depend on files that nobody knows, so they are traced
in every process; so is everything in a process that began before one of the files was changed.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import json
import os
import platform
import sys
import tempfile
import types
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lazy_registry.installation import cache_folder, process_started
from lazy_registry.source_places import is_users_file
from solvers.compiler.fingerprint import Identity

SWITCH = "DIFFSIM_TRACES"
"""The environment variable that switches this off where it is ``"0"``."""

_started = process_started()
"""When this process, or the one that it was forked from, began: its modules may be older than their files."""

_LIBRARIES = ("builtins", "abc", "functools", "torch", "numpy")
_SOURCES = ("*.py", "*.cpp", "*.h", "*.cu")


_used = ContextVar("traces_used", default=True)


@contextmanager
def without_kept() -> Iterator[None]:
    """Inside, nothing is read and nothing is kept."""
    token = _used.set(False)
    try:
        yield
    finally:
        _used.reset(token)


class _UnknownError(Exception):
    """Something has no known content."""


@dataclasses.dataclass(frozen=True)
class Key:
    """A digest of content, and the tensors of the fingerprint, in its order: their numbers do not count."""

    digest: str
    tensors: list[Tensor]

    @classmethod
    def of(cls, parts: Iterable[Any], packages: tuple[str, ...]) -> Key | None:
        """The key of a fingerprint's parts; None where something is not known by content.

        Args:
            packages: names of top-level packages whose source files are a part of the key.
        """
        if not _used.get() or os.environ.get(SWITCH) == "0":
            return None
        stamp = _stamp(packages)
        if stamp is None:
            return None
        tensors: dict[int, tuple[int, Tensor]] = {}
        functions: list[types.CodeType] = []
        digest = hashlib.sha256(stamp.encode())
        try:
            for part in parts:
                digest.update(_content(part, packages, tensors, functions).encode() + b"\0")
            digest.update(_read_by(functions, packages).encode())
        except _UnknownError:
            return None
        return cls(digest.hexdigest()[:32], [tensor for _, tensor in tensors.values()])

    def about(self, what: str) -> Key:
        """The key of something else that the same content decides."""
        digest = hashlib.sha256(f"{self.digest} {what}".encode())
        return Key(digest.hexdigest()[:32], self.tensors)

    @property
    def path(self) -> Path:
        return cache_folder() / f"{self.digest}.trace"


def kept(key: Key | None, make: Callable[[], Mapping[str, Any] | None]) -> Mapping[str, Any] | None:
    """What is kept under the key; if there is nothing, what ``make`` returns is kept.

    Args:
        make: what JSON holds; None for what cannot be kept.
    """
    found = recall(key)
    if found is None:
        found = make()
        if found is not None:
            keep(key, found)
    return found


def recall(key: Key | None) -> Mapping[str, Any] | None:
    """What is kept under the key; None if there is nothing."""
    if key is None:
        return None
    try:
        found = json.loads(zlib.decompress(key.path.read_bytes()))
    except (OSError, zlib.error, ValueError):  # none, or a part of one
        return None
    return found if isinstance(found, dict) else None


def keep(key: Key | None, made: Mapping[str, Any]) -> None:
    """Keep what JSON holds under the key, for other processes."""
    if key is None:
        return
    data, path = zlib.compress(json.dumps(made).encode(), 1), key.path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            written = Path(scratch, path.name)
            written.write_bytes(data)
            written.replace(path)  # whole or not at all, also for another process that writes the same
    except OSError:
        return  # a cache that cannot be written: the next process traces again


@functools.cache
def _stamp(packages: tuple[str, ...]) -> str | None:
    """A digest of the packages' source files and of versions; None where there are none, or one may have changed."""
    versions = platform.python_version(), torch.__version__, np.__version__
    digest = hashlib.sha256(repr((versions, packages)).encode())
    for package in packages:
        files = [file for folder in _folders(package) for kind in _SOURCES for file in folder.rglob(kind)]
        if not files:
            return None
        try:
            if any(file.stat().st_mtime >= _started for file in files):
                return None
            for file in sorted(files):
                digest.update(file.name.encode() + b"\0" + file.read_bytes())
        except OSError:
            return None
    return digest.hexdigest()


@functools.cache
def _folders(package: str) -> tuple[Path, ...]:
    found = importlib.util.find_spec(package)
    return tuple(Path(q).resolve() for q in (found.submodule_search_locations or ())) if found else ()


def _content(
    part: Any,
    packages: tuple[str, ...],
    tensors: dict[int, tuple[int, Tensor]],
    functions: list[types.CodeType],
) -> str:
    """What a part of a fingerprint is, the same in every process; the code of functions is also added to the list."""
    if part is None or isinstance(part, (str, int, float, bytes, torch.Size, torch.dtype)):
        return f"{type(part).__name__} {part!r}"
    if isinstance(part, type):
        return f"type {_named(part, packages)}"
    if isinstance(part, Identity):
        value = part.value
        if isinstance(value, Tensor):
            if not value.is_floating_point():
                raise _UnknownError  # a trace reads its numbers
            number, _ = tensors.setdefault(id(value), (len(tensors), value))
            return f"tensor {number} {value.requires_grad}"
        if isinstance(value, types.CodeType):
            functions.append(value)
            return f"code {_place(value, packages)}"
        if isinstance(value, (type, types.BuiltinFunctionType)):
            return f"named {_named(value, packages)}"
        if isinstance(value, torch.dtype):
            return repr(value)
        if isinstance(value, property):
            return "property"  # of a class that is known
        raise _UnknownError
    if isinstance(part, tuple):
        return " ".join(_content(each, packages, tensors, functions) for each in part)
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        _named(type(part), packages)
        return repr((type(part).__qualname__, dataclasses.astuple(part)))
    raise _UnknownError


def _named(value: Any, packages: tuple[str, ...]) -> str:
    module = value.__module__ or ""
    if module.partition(".")[0] not in (*packages, *_LIBRARIES):
        raise _UnknownError
    return f"{module}.{value.__qualname__}"


def _place(code: types.CodeType, packages: tuple[str, ...]) -> str:
    """Where a function is defined, in files that the key depends on."""
    place = _file(code.co_filename, packages)
    if place is None:
        raise _UnknownError
    return f"{place}:{code.co_firstlineno} {code.co_name}"


@functools.cache
def _file(name: str, packages: tuple[str, ...]) -> str | None:
    """A file in one of the packages or in torch."""
    file = Path(name).resolve()
    for root in (*packages, "torch"):
        for folder in _folders(root):
            if file.is_relative_to(folder):
                return f"{root}/{file.relative_to(folder)}"
    return None


def _read_by(functions: Iterable[types.CodeType], packages: tuple[str, ...]) -> str:
    """The numbers and functions of modules that functions read, and those which these functions read."""
    found: dict[str, str] = {}
    modules, left, seen = _modules(packages), list(functions), set()
    while left:
        one = left.pop()
        if one in seen:
            continue
        seen.add(one)
        left += [q for q in one.co_consts if isinstance(q, types.CodeType)]
        names = vars(modules[one.co_filename]) if one.co_filename in modules else {}
        for name in names.keys() & set(one.co_names):
            value = names[name]
            # What is read from a module, and what is read through a name of a module.
            read = [(f"{names['__name__']}.{name}", value)]
            if isinstance(value, types.ModuleType) and value.__name__.partition(".")[0] in packages:
                inside = vars(value)
                read += [
                    (f"{value.__name__}.{each}", inside[each]) for each in one.co_names if each in inside
                ]
            for path, q in read:
                if _is_plain(q):
                    found[path] = repr(q)
                for depth, layer in enumerate(_layers(q)):
                    found[f"{path} {depth}"] = _defined(layer, packages)
                    left.append(layer)
    return repr(sorted(found.items()))


def _layers(value: Any) -> Iterator[types.CodeType]:
    """The code of a function, and of what decorators wrapped."""
    for _ in range(10):
        if isinstance(value, types.FunctionType):
            yield value.__code__
        value = getattr(value, "__dict__", {}).get("__wrapped__")


def _is_plain(value: Any) -> bool:
    """Whether it is a number or a text, or a tuple of such, whose representation is the same in every process."""
    if isinstance(value, tuple):
        return type(value) is tuple and all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, complex, str, bytes))


def _defined(code: types.CodeType, packages: tuple[str, ...]) -> str:
    """Where a function that a module holds is defined: in one of the packages or a library, or nobody knows where."""
    file = code.co_filename
    if file.startswith("<") or is_users_file(file):
        raise _UnknownError
    return f"{_file(file, packages) or file}:{code.co_firstlineno} {code.co_name}"


def _modules(packages: tuple[str, ...]) -> dict[str, types.ModuleType]:
    """The modules of the packages that are loaded, by their files."""
    return {
        str(module.__file__): module
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] in packages and hasattr(module, "__file__")
    }
