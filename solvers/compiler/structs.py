"""Structures that Python and a kernel share: one description gives the C++ text and the ctypes class."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from typing import Any, Union

import torch

Kind = Union[str, "Struct"]
"""``"int64"``, ``"uint64"``, ``"uint8"``, ``"double"``, ``"real"`` (the kernel's type T), one of them with ``*``, or a
struct."""

_CPP = {"int64": "int64_t", "uint64": "uint64_t", "uint8": "uint8_t", "double": "double", "real": "T"}
_CTYPES: dict[str, Any] = {
    "int64": ctypes.c_int64,
    "uint64": ctypes.c_uint64,
    "uint8": ctypes.c_uint8,
    "double": ctypes.c_double,
}


@dataclass(frozen=True)
class Field:
    """A member; ``count`` makes it an array, ``constant`` a pointer to what the kernel does not change."""

    name: str
    kind: Kind
    count: int | None = None
    constant: bool = False


@dataclass(frozen=True)
class Struct:
    """A structure of plain numbers, pointers and other structures."""

    name: str
    fields: tuple[Field, ...]

    def cpp(self) -> str:
        """The C++ definition."""
        members = []
        for field in self.fields:
            kind, star = field.kind, ""
            if isinstance(kind, Struct):
                text = kind.name
            else:
                text, star = _CPP[kind.rstrip("*")], "*" * kind.count("*")
            array = "" if field.count is None else f"[{field.count}]"
            members.append(f"  {'const ' if field.constant else ''}{text}{star} {field.name}{array};")
        return f"struct {self.name} {{\n" + "\n".join(members) + "\n};"

    def ctypes(self, dtype: torch.dtype | None = None) -> type[ctypes.Structure]:
        """The class for a kernel whose T is ``dtype``, which a struct without numbers of that type needs not."""
        return _ctypes_class(self, dtype if self._depends_on_type() else None)

    def _depends_on_type(self) -> bool:
        kinds = [field.kind for field in self.fields]
        return any(kind._depends_on_type() if isinstance(kind, Struct) else kind == "real" for kind in kinds)


@functools.lru_cache(maxsize=256)
def _ctypes_class(struct: Struct, dtype: torch.dtype | None) -> type[ctypes.Structure]:
    members: list[Any] = []
    made: Any
    for field in struct.fields:
        kind: Any = field.kind
        if isinstance(kind, Struct):
            made = kind.ctypes(dtype)
        elif kind.endswith("*"):
            made = ctypes.c_void_p
        elif kind == "real":
            if dtype is None:
                raise ValueError(f"{struct.name} has numbers of the kernel's type; say which that is")
            made = ctypes.c_double if dtype == torch.float64 else ctypes.c_float
        else:
            made = _CTYPES[kind]
        members.append((field.name, made if field.count is None else made * field.count))
    return type(struct.name, (ctypes.Structure,), {"_fields_": members})


def fields(kind: Kind, *names: str, count: int | None = None, constant: bool = False) -> tuple[Field, ...]:
    """Members of one kind."""
    return tuple(Field(name, kind, count, constant) for name in names)
