"""Whether anything that a kernel was compiled from has changed, in microseconds.

A :class:`Watch` is made while everything is walked over (``solvers.compiler.fingerprint``).  It records which objects
the walk read from dicts, lists, cells, functions and attributes, and later compares the addresses of those that are
there now with them.  Both are kept alive, so an address stands for one object; objects that cannot change, such as
numbers, texts and tuples, are told by their address, too.  The comparison is C++ that calls Python's own C interface,
because a comparison in Python costs ten times as much.  What the interface has no function for (NumPy arrays, tensors,
sets, mappings of the user's own classes) is compared in Python.
"""

from __future__ import annotations

import array
import ctypes
import functools
import gc
import importlib.resources
import operator
import types
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from solvers.compiler.trace import NativeUnsupportedError

_DICT, _LIST, _CELL, _FUNCTION, _OWN_DICT, _TYPE, _ATTRIBUTE = range(7)
_INTERFACE = (
    *("PyDict_Next", "PyDict_Size", "PyList_Size", "PyList_GetItem", "PyCell_Get"),
    *("PyFunction_GetCode", "PyFunction_GetDefaults", "PyFunction_GetKwDefaults"),
    *("PyObject_Type", "PyObject_GenericGetDict", "PyObject_GetAttr", "Py_DecRef", "PyErr_Clear"),
)
"""In the order of the members of ``Interface`` in ``watch.cpp``."""


Load = Callable[[str], ctypes.CDLL]
"""Compiles C++ to a library, or raises NativeUnsupportedError: ``solvers.native.build.load``."""


@functools.lru_cache(maxsize=8)
def _comparison(load: Load) -> tuple[Any, Any]:
    """The compiled comparison and the functions of Python that it calls.

    Raises:
        NativeUnsupportedError: it cannot be compiled here.
        AttributeError: this Python lacks one of the functions.
    """
    found = [ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value for name in _INTERFACE]
    library = load(importlib.resources.files("solvers.compiler").joinpath("watch.cpp").read_text())
    # Called with the interpreter's lock held, which ctypes.CDLL would release.
    address = ctypes.cast(library.unchanged, ctypes.c_void_p).value
    assert address is not None
    pointer = ctypes.c_void_p
    function = ctypes.PYFUNCTYPE(ctypes.c_int, pointer, pointer, ctypes.c_int64)(address)
    return function, (pointer * len(found))(*found)


def available(load: Load) -> bool:
    """Whether there is a compiled comparison."""
    try:
        _comparison(load)
    except (NativeUnsupportedError, AttributeError):
        return False
    return True


class Watch:
    """What was read from mutable objects, and whether all of it is still there.

    Every method but :meth:`unchanged` records what one object holds now.
    """

    def __init__(self, load: Load) -> None:
        self._comparison = _comparison(load)
        self._words = array.array("q")
        self._alive: list[Any] = []
        self._seen: set[int] = set()
        self._others: list[Callable[[], bool]] = []
        self._tensors: list[Tensor] = []
        self._whole: list[Tensor] = []
        self._arguments: tuple[Any, ...] | None = None

    def _record(self, kind: int, value: Any, *held: Any) -> None:
        """``held`` is what was read from ``value``, or how and what; all of it is kept alive."""
        self._alive += (value, *held)
        self._words.extend((kind, id(value), len(held), *map(id, held)))

    def _is_new(self, value: Any) -> bool:
        if id(value) in self._seen:
            return False
        self._seen.add(id(value))
        self._alive.append(value)
        return True

    def mapping(self, value: Mapping[Any, Any]) -> None:
        if isinstance(value, types.MappingProxyType):
            (value,) = gc.get_referents(value)  # the dict behind it: of a class, or read-only for others
        if not self._is_new(value):
            return
        if isinstance(value, dict):
            self._record(_DICT, value, *(q for item in dict.items(value) for q in item))
        if type(value) is not dict and (not isinstance(value, dict) or value):
            # Its class may keep an order, or entries, of its own.
            self._compare(lambda: [part for entry in value.items() for part in entry])

    def sequence(self, value: Collection[Any]) -> None:
        if isinstance(value, (tuple, frozenset)) or not self._is_new(value):
            return
        if isinstance(value, list):
            self._record(_LIST, value, *list.__iter__(value))
        if type(value) is not list:
            self._compare(lambda: [*value])

    def cell(self, value: types.CellType) -> None:
        if self._is_new(value):
            try:
                self._record(_CELL, value, value.cell_contents)
            except ValueError:
                self._absent(_CELL, value)

    def _absent(self, kind: int, value: Any, *held: Any) -> None:
        """A record whose last entry is that there is nothing."""
        self._alive += (value, *held)
        self._words.extend((kind, id(value), len(held) + 1, *map(id, held), 0))

    def function(self, value: types.FunctionType) -> None:
        held = (value.__code__, value.__defaults__, value.__kwdefaults__)
        self._alive += (value, *held)
        self._words.extend((_FUNCTION, id(value), 3, *(0 if q is None else id(q) for q in held)))
        for each in (value.__dict__, value.__kwdefaults__):
            if each is not None:
                self.mapping(each)
        self._record(_OWN_DICT, value, value.__dict__)

    def attributes(self, value: Any) -> None:
        """The class of an object and the dict of its attributes, if it has one."""
        self._record(_TYPE, value, type(value))
        own = getattr(value, "__dict__", None)
        if isinstance(own, dict):
            self._record(_OWN_DICT, value, own)
            self.mapping(own)

    def slots(self, value: Any, names: Collection[str]) -> None:
        for name in names:
            if hasattr(value, name):
                self._record(_ATTRIBUTE, value, name, getattr(value, name))
            else:
                self._absent(_ATTRIBUTE, value, name)

    def tensor(self, value: Tensor) -> None:
        if self._is_new(value):
            (self._tensors if value.is_floating_point() else self._whole).append(value)

    def numbers(self, value: np.ndarray) -> None:
        """A NumPy array."""
        if not self._is_new(value):
            return
        if value.dtype.hasobject:
            self._compare(lambda: value.ravel().tolist())

        def now() -> tuple[Any, ...]:
            return value.dtype, value.shape, None if value.dtype.hasobject else value.tobytes()

        before = now()
        self._others.append(lambda: now() == before)

    def _compare(self, listed: Callable[[], list[Any]]) -> None:
        """Compare, by identity, what a function lists now with what it lists later."""
        before = listed()
        self._others.append(lambda: _same(listed(), before))

    def seal(self) -> Watch:
        """Make the recorded things comparable; nothing may be recorded afterwards."""
        self._kinds = self._of_tensors()
        address, words = self._words.buffer_info()
        function, interface = self._comparison
        self._arguments = (function, ctypes.addressof(interface), address, words)
        return self

    def _of_tensors(self) -> list[Any]:
        return [
            *[q.shape for q in self._tensors],
            *[q.dtype for q in self._tensors],
            *map(version_of, self._whole),
        ]

    def unchanged(self) -> bool:
        """Whether everything that was recorded is as it was."""
        assert self._arguments is not None
        function, *rest = self._arguments
        return (
            bool(function(*rest))
            and self._of_tensors() == self._kinds
            and all(each() for each in self._others)
        )


def version_of(tensor: Tensor) -> tuple[Any, ...]:
    """A key of the numbers of a tensor that a trace treats as constants, whole numbers mostly."""
    if tensor.is_inference():  # it counts no versions
        numbers: Any = tensor.detach().cpu().numpy().tobytes()
    else:
        numbers = (tensor._version, tensor.data_ptr())
    return tensor.shape, tensor.dtype, numbers


def _same(now: list[Any], before: list[Any]) -> bool:
    return len(now) == len(before) and all(map(operator.is_, now, before))
