"""A kernel in several units is the kernel."""

import ctypes
import os
import re

import pytest
import torch

from solvers.compiler.trace import NativeUnsupportedError
from solvers.native import build, units
from solvers.native.function import FunctionKernel
from solvers.native.units import divided, units_of

try:
    build._toolchain()
except NativeUnsupportedError:
    pytest.skip("no C++ compiler", allow_module_level=True)

TEMPLATE = """\
typedef double T;
static T half(T a) { return 0.5 * a; }
// EMITTED
static T total = 0;
extern "C" double last(double a) { nothing(a, &total); first(a, &total); second(a, &total); return total; }
"""


def function(name, lines, head="static"):
    body = "".join(f"    *r += half(a) * {k}.0;\n" for k in range(lines))
    return f"{head} void {name}(T a, T* r) {{\n{body}}}"


def of(first, second):
    return divided(
        TEMPLATE,
        [
            "constexpr T KNOWN = 1.0;",
            function("nothing", 0),
            function("first", first) + "\n" + function("between", 3, "static inline"),
            function("second", second, "static __attribute__((noinline))"),
        ],
    )


def test_short_functions_stay_where_they_are():
    text = of(units._SHARE, units.LONG - 1)
    assert units_of(text) == 1
    assert text == TEMPLATE.replace(
        "// EMITTED", text[text.index("constexpr T KNOWN") : text.index("\nstatic T total")]
    )
    assert "UNIT" not in text


@pytest.fixture
def shares(monkeypatch, tmp_path):
    """Units of a few lines, and a cache of its own."""
    monkeypatch.setattr(units, "_SHARE", 20)
    monkeypatch.setattr(units, "LONG", 10)
    monkeypatch.setenv("DIFFSIM_CACHE", str(tmp_path))


def result(text, monkeypatch, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(cores))
    library = build.load(f"// {cores} cores\n{text}")
    library.last.restype, library.last.argtypes = ctypes.c_double, [ctypes.c_double]
    return library.last(3.0)


def test_a_long_function_is_in_one_unit_and_the_result_the_same(monkeypatch, shares):
    text = of(25, 30)
    assert units_of(text) == 2
    definitions = re.findall(r"#if !defined\(UNIT\) \|\| UNIT == (\d)\n.*?void (\w+)\(", text)
    assert sorted(definitions) == [("0", "first"), ("1", "second")]  # and below is in 0
    expected = 1.5 * (sum(range(25)) + sum(range(30)))
    for cores in (1, 2, 5):
        assert result(text, monkeypatch, cores) == expected


def test_what_the_compiler_says_of_any_unit_is_told(monkeypatch, shares):
    text = of(25, 30).replace("* 24.0", "* missing")
    for cores in (1, 3):
        with pytest.raises(NativeUnsupportedError, match=r"the C\+\+ compiler failed:[\s\S]*missing"):
            result(text, monkeypatch, cores)


def test_kernels_in_units_compute_the_same_bits(monkeypatch, shares):
    def field(x):
        a, b = x[:, 0], x[:, 1]
        for _ in range(20):
            a, b = (a * b).sin() + a, (a - b).cos() * b
        return torch.stack((a, b), 1)

    x = torch.randn(9, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    found = []
    for cores in (1, 4):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid, cores=cores: range(cores))
        monkeypatch.setenv("DIFFSIM_CACHE", os.environ["DIFFSIM_CACHE"] + str(cores))
        build._load.cache_clear()
        kernel = FunctionKernel(field, 2, torch.float64)
        found.append((kernel(x).detach(), torch.autograd.grad(kernel(x).sum(), x)[0]))
    assert all(map(torch.equal, *found))
    assert torch.allclose(found[0][0], field(x).detach(), rtol=1e-9)
    assert torch.allclose(found[0][1], torch.autograd.grad(field(x).sum(), x)[0], rtol=1e-8)
