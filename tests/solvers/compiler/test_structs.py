"""Structs are laid out alike by ctypes and the C++ compiler; limits say what they refuse."""

import ctypes

import pytest
import torch

from diffsim.rollouts.native import STRIDED, arguments_struct
from solvers.compiler import limits
from solvers.compiler.structs import Struct, fields
from solvers.compiler.trace import NativeUnsupportedError
from solvers.native import build
from solvers.native.adaptive import GRID, LEAF, SETTINGS

MIXED = Struct(
    "Mixed",
    (
        *fields("real", "a"),
        *fields("double", "b", count=3),
        *fields("real", "c", count=3),
        *fields(STRIDED, "d", count=2),
        *fields("real*", "e", constant=True),
    ),
)
STRUCTS = [STRIDED, LEAF, GRID, SETTINGS, MIXED, arguments_struct(0, 0, 0), arguments_struct(2, 3, 5)]


@pytest.mark.parametrize("struct", STRUCTS, ids=lambda s: s.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_member_is_where_the_compiler_puts_it(struct, dtype):
    made = struct.ctypes(dtype)
    names = [field.name for field in struct.fields]
    real = "double" if dtype == torch.float64 else "float"
    before = "" if struct is STRIDED else STRIDED.cpp()
    offsets = ", ".join(f"(long)offsetof({struct.name}, {name})" for name in names)
    library = build.load(
        f"#include <cstdint>\n#include <cstddef>\ntypedef {real} T;\n{before}\n{struct.cpp()}\n"
        f'extern "C" void layout(long* to) {{ long at[] = {{sizeof({struct.name}), {offsets}}}; '
        f"for (int k = 0; k < {len(names) + 1}; k++) to[k] = at[k]; }}"
    )
    found = (ctypes.c_long * (len(names) + 1))()
    library.layout(found)
    assert list(found) == [ctypes.sizeof(made), *(getattr(made, name).offset for name in names)]


def test_a_struct_with_numbers_of_the_kernels_type_needs_the_type():
    with pytest.raises(ValueError, match="Mixed has numbers of the kernel's type"):
        MIXED.ctypes()
    assert STRIDED.ctypes() is STRIDED.ctypes(torch.float64)


def test_more_lines_than_the_limit_are_refused(monkeypatch):
    limits.check_lines(["a\nb", "c"])
    monkeypatch.setattr(limits, "MOST_LINES", 2)
    with pytest.raises(NativeUnsupportedError, match="has 3 lines, more than the limit of 2"):
        limits.check_lines(["a\nb", "c"])
