"""What a kernel was compiled from, as a key: equal for objects whose traces are equal."""

from __future__ import annotations

import functools
import operator
import types
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from solvers.compiler.watch import Load, Watch, available, version_of


class Identity:
    """A key for one object, kept alive so that no other takes its address."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and other.value is self.value


class Held:
    """A fingerprint that is hashed once, and the objects that it was taken of."""

    __slots__ = ("_hash", "key", "values")

    def __init__(self, key: tuple[Any, ...], values: tuple[Any, ...]) -> None:
        self.key, self.values, self._hash = key, values, hash(key)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Held) or (self.key is not other.key and self.key != other.key):
            return False
        self.key = other.key  # the next comparison of the two is short
        return True


class Fingerprints:
    """Fingerprints of some objects, taken again only after something has changed.

    Arguments as of :func:`fingerprint`, and ``most``, the number of them that are kept: an object whose parts change
    to and fro has several.  ``load`` compiles what watches for changes (``solvers.native.build.load``); without it,
    or where it fails, every fingerprint is taken again.
    """

    def __init__(
        self,
        by_value: tuple[type, ...] = (),
        opaque: Callable[[Any], bool] = lambda value: False,
        most: int = 4,
        load: Load | None = None,
    ) -> None:
        self._by_value, self._opaque, self._most = by_value, opaque, most
        self.load = load
        self._kept: list[tuple[Held, Watch]] = []

    def of(self, *values: Any) -> Held:
        """The fingerprint; the same object as before if nothing has changed."""
        for place, (held, seen) in enumerate(self._kept):
            if all(map(operator.is_, held.values, values)) and seen.unchanged():
                if place:
                    self._kept.insert(0, self._kept.pop(place))
                return held
        recorder = Watch(self.load) if self.load is not None and available(self.load) else None
        collected = _Collected(self._by_value, self._opaque, recorder)
        for value in values:
            collected.add(value)
        held = Held(tuple(collected.parts), values)
        if recorder is not None:
            # What changes and changes back is equal: then the earlier one is good again, with another watch.
            held = next((each for each, _ in self._kept if each.key == held.key and _same(each, held)), held)
            self._kept = [(held, recorder.seal()), *(q for q in self._kept if q[0] is not held)]
            del self._kept[self._most :]
        return held


def _same(one: Held, other: Held) -> bool:
    return len(one.values) == len(other.values) and all(map(operator.is_, one.values, other.values))


def fingerprint(
    *values: Any, by_value: tuple[type, ...] = (), opaque: Callable[[Any], bool] = lambda value: False
) -> tuple[Any, ...]:
    """A key that is equal for objects with equal traces.

    Numbers, strings and NumPy arrays are compared by value, at any depth of lists, dicts, attributes (also of classes
    and functions) and closures; functions by the identity of their code and by their defaults and closure, so that
    one made anew by the same ``def`` is the same; tensors and objects without attributes by identity; integer
    tensors, which a trace treats as constants, also by their version and place.  An object with a text ``trace_key`` is
    known by that alone.

    Args:
        by_value: hashable types that are compared by their own ``==``.
        opaque: objects that are never traced, so compared by identity.
    """
    collected = _Collected(by_value, opaque)
    for value in values:
        collected.add(value)
    return tuple(collected.parts)


_OF_MODULES = frozenset(vars(nn.Module())) - {"training", "_parameters", "_buffers", "_modules"}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_FOREIGN = ("builtins", "abc", "functools", "torch", "numpy")


class _Collected:
    def __init__(
        self, by_value: tuple[type, ...], opaque: Callable[[Any], bool], watch: Watch | None = None
    ) -> None:
        self.parts: list[Any] = []
        self._seen: dict[int, int] = {}
        self._by_value, self._opaque = by_value, opaque
        self._watch = watch
        """Records what is read."""

    def add(self, value: Any) -> None:
        parts, kind = self.parts, type(value)
        if kind is types.FunctionType:  # first, as most are
            if id(value) in self._seen:
                parts.append(self._seen[id(value)])
            else:
                self._seen[id(value)] = len(self._seen)
                self._add_function(value)
        elif value is None or kind in (str, bool, int):
            parts += (kind, value)
        elif isinstance(value, (int, float, complex, str, bytes)):
            parts += (kind, str(value))  # a NaN equals itself, 0.0 is not -0.0
        elif isinstance(value, Tensor):
            parts += (Identity(value), value.shape, value.dtype)
            if not value.is_floating_point():
                parts.append(version_of(value))
            if self._watch is not None:
                self._watch.tensor(value)
        elif isinstance(value, (np.ndarray, np.generic)):
            array = np.asarray(value)
            if self._watch is not None and isinstance(value, np.ndarray):
                self._watch.numbers(value)
            # An array of objects holds addresses.
            parts += (kind, array.dtype, array.shape)
            self.add(array.tolist() if array.dtype.hasobject else array.tobytes())
        elif id(value) in self._seen:
            parts.append(self._seen[id(value)])
        elif isinstance(value, (types.ModuleType, type)):
            parts.append(Identity(value))
        elif self._by_value and isinstance(value, self._by_value):
            parts.append(value)
        else:
            self._seen[id(value)] = len(self._seen)
            self._add_parts(value)

    def _add_function(self, value: types.FunctionType) -> None:
        self.parts.append(Identity(value.__code__))
        if self._watch is not None:
            self._watch.function(value)
        for held in (value.__defaults__, value.__kwdefaults__, value.__dict__):
            if held:
                self.add(held)
        for cell in value.__closure__ or ():
            self._add_cell(cell)

    def _add_all(self, *values: Any) -> None:
        for value in values:
            self.add(value)

    def _add_parts(self, value: Any) -> None:
        parts = self.parts
        if isinstance(value, (list, tuple, set, frozenset)):
            parts += (type(value), len(value))
            if self._watch is not None:
                self._watch.sequence(value)
            self._add_all(*value)
        elif isinstance(value, (dict, Mapping)):
            parts += (dict, len(value))
            if self._watch is not None:
                self._watch.mapping(value)
            for key, entry in value.items():
                parts.append(str(key))
                self.add(entry)
        elif isinstance(value, types.MethodType):
            parts.append(types.MethodType)
            self._add_all(value.__func__, value.__self__)
        elif isinstance(value, (staticmethod, classmethod)):
            self.add(value.__func__)
        elif isinstance(value, functools.partial):
            parts.append(functools.partial)
            self._add_all(value.func, value.args, value.keywords)
        elif isinstance(value, nn.Module):
            parts.append(type(value))
            if self._watch is not None:
                self._watch.attributes(value)
                for name in _HOOKS:
                    self._watch.mapping(getattr(value, name))
            parts += [Identity(hook) for name in _HOOKS for hook in getattr(value, name).values()]
            self._add_classes(_written_by_users(type(value))[0])  # type: ignore[arg-type]  # hashable
            for name, entry in vars(value).items():
                if name not in _OF_MODULES:
                    self.add(entry)
        elif hasattr(value, "__dict__") or hasattr(type(value), "__slots__"):
            self._add_attributes(value)
        else:
            parts.append(Identity(value))

    def _add_cell(self, cell: types.CellType) -> None:
        if self._watch is not None:
            self._watch.cell(cell)
        try:
            self.add(cell.cell_contents)
        except ValueError:  # it is filled later
            self.parts.append("empty")

    def _add_attributes(self, value: Any) -> None:
        if self._opaque(value):
            self.parts.append(Identity(value))
            return
        parts, kind = self.parts, type(value)
        if isinstance(key := getattr(value, "trace_key", None), str):
            parts += (kind, key)
            if self._watch is not None:
                self._watch.slots(value, ("trace_key",))
            return
        own, slots, is_foreign = _written_by_users(kind)  # type: ignore[arg-type]  # classes are hashable
        parts.append(kind)
        if is_foreign:
            parts.append(Identity(value))  # its state is not in attributes
        if self._watch is not None:
            self._watch.attributes(value)
            self._watch.slots(value, slots)
        self._add_named(getattr(value, "__dict__", {}))
        self._add_named({name: getattr(value, name) for name in slots if hasattr(value, name)})
        self._add_classes(own)

    def _add_classes(self, own: tuple[type, ...]) -> None:
        for base in own:
            if self._watch is not None:
                self._watch.mapping(vars(base))
            self._add_named(vars(base))

    def _add_named(self, names: Mapping[str, Any]) -> None:
        for name, entry in names.items():
            if name[:2] != "__" and name != "_abc_impl":
                self.parts.append(name)
                self.add(entry)


@functools.lru_cache(maxsize=512)
def _written_by_users(kind: type) -> tuple[tuple[type, ...], tuple[str, ...], bool]:
    """The classes of ``kind`` up to the first that Python or a large library defines, their slots, whether none is."""
    own: list[type] = []
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] in _FOREIGN:
            break
        own.append(base)
    slots: list[str] = []
    for base in own:
        named = base.__dict__.get("__slots__", ())
        slots += [named] if isinstance(named, str) else named
    return tuple(own), tuple(slots), not own
