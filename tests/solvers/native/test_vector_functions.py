"""The elementary functions of compiled kernels against float64, over all floats or a dense part of them."""

import ctypes
from pathlib import Path

import numpy as np
import pytest

from solvers.compiler.trace import NativeUnsupportedError
from solvers.native import build

try:
    build._toolchain()
except NativeUnsupportedError:
    pytest.skip("there is no C++ compiler", allow_module_level=True)

SOURCE = """
typedef float T;
// VECTORS
#define OVER(name, expression)                                        \\
  extern "C" void over_##name(const float* in, float* out, long count) { \\
    for (long k = 0; k + LANES <= count; k += LANES) {                 \\
      V a, r;                                                          \\
      std::memcpy(&a, in + k, sizeof a);                               \\
      r = expression;                                                  \\
      std::memcpy(out + k, &r, sizeof r);                              \\
    }                                                                  \\
  }
OVER(sin, v_sin(a)) OVER(cos, v_cos(a)) OVER(exp, v_exp(a)) OVER(tanh, v_tanh(a))
OVER(minimum, v_minimum(a, splat(0))) OVER(maximum, v_maximum(a, splat(0)))
OVER(floor, v_floor(a)) OVER(sqrt, v_sqrt(a))
"""
SETS = ["native", "avx512", "avx2", "plain"]


def available(isa):
    """Whether this processor runs what is compiled for the instruction set."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = next(line for line in lines if line.startswith("flags")).split()
    except (OSError, StopIteration):
        return isa in ("native", "plain")
    return isa in ("native", "plain") or {"avx512": "avx512f", "avx2": "avx2"}[isa] in flags


@pytest.fixture(params=SETS)
def functions(request, monkeypatch):
    if not available(request.param):
        pytest.skip(f"this processor has no {request.param}")
    monkeypatch.setenv("DIFFSIM_ISA", request.param)
    library = build.load(build.with_headers(SOURCE))

    def over(name, x):
        x = np.ascontiguousarray(x, np.float32)
        x = np.concatenate((x, np.zeros(-len(x) % 16, np.float32)))
        out = np.empty_like(x)
        pointer = ctypes.POINTER(ctypes.c_float)
        getattr(library, f"over_{name}")(
            x.ctypes.data_as(pointer), out.ctypes.data_as(pointer), ctypes.c_long(len(x))
        )
        return x, out

    return over


def every(low, high, step):
    """Every ``step``-th float between two positive ones, and their negatives."""
    bits = np.arange(np.float32(low).view(np.uint32), np.float32(high).view(np.uint32), step, dtype=np.uint32)
    x = bits.view(np.float32)
    return np.concatenate((x, -x))


def worst_relative(got, right):
    return float(np.max(np.abs(got - right) / np.maximum(np.abs(right), 1e-37)))


# A prime stride: all low-order bits occur. About ten million arguments a function.
@pytest.mark.parametrize(
    ("name", "low", "high", "bound"),
    [
        ("tanh", 1e-30, 100.0, 4e-7),
        ("exp", 1e-30, 87.0, 2.5e-7),
        ("sin", 1e-30, 1.5, 2e-7),
        ("cos", 1e-30, 1.5, 2e-7),
    ],
)
def test_relative_errors(functions, name, low, high, bound):
    x, got = functions(name, every(low, high, 211))
    assert worst_relative(got, getattr(np, name)(x.astype(np.float64))) < bound


@pytest.mark.parametrize("name", ["sin", "cos"])
def test_sine_and_cosine_up_to_large_angles(functions, name):
    x, got = functions(name, np.concatenate((every(0.1, 1e5, 211), every(1e5, 3e38, 40_009))))
    assert np.max(np.abs(got - getattr(np, name)(x.astype(np.float64)))) < 1.5e-7


def test_ends_of_the_range(functions):
    inf, nan = np.inf, np.nan
    with np.errstate(all="ignore"):
        for name, arguments, right in (
            ("exp", [89.0, 1000.0, inf, -103.0, -200.0, -inf, 0.0], [inf, inf, inf, 1.4e-45, 0.0, 0.0, 1.0]),
            ("tanh", [inf, -inf, 20.0, -20.0, 0.0, -0.0], [1, -1, 1, -1, 0.0, -0.0]),
            ("sin", [0.0], [0.0]),
            ("cos", [0.0], [1.0]),
            ("minimum", [nan, 3.0, -3.0], [nan, 0.0, -3.0]),
            ("maximum", [nan, 3.0, -3.0], [nan, 3.0, 0.0]),
            ("floor", [1.5, -1.5, nan], [1.0, -2.0, nan]),
            ("sqrt", [4.0, -1.0], [2.0, nan]),
        ):
            _, got = functions(name, np.array(arguments))
            right = np.array(right, np.float32)
            assert np.array_equal(got[: len(right)], right, equal_nan=True), name
            assert np.array_equal(np.signbit(got[: len(right)]), np.signbit(right)) or np.isnan(right).any()
            if name in ("exp", "tanh", "sin", "cos"):
                assert np.isnan(functions(name, np.array([nan, nan]))[1][:2]).all()
    assert np.isnan(functions("sin", np.array([inf, -inf]))[1][:2]).all()
