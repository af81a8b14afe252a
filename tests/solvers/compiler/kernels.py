"""A smallest kernel: the numbers ``y`` that stores compute from the numbers ``x``."""

import ctypes

import numpy as np

from solvers.compiler.print_cpp import Printer
from solvers.native import build

_TEXT = """
typedef double T;
// VECTORS
struct In { const T* x; V* y; };
FUNCTIONS
extern "C" void run(const T* x, T* y) {
  V r[4096];
  for (V& v : r) v = V{};
  const In in{x, r};
  numbers(in, r);
  for (int k = 0; k < COUNT; k++) y[k] += r[k][0];
}
"""
SPACES = {"x": "splat(in.x[{index}])", "y": "y[{index}]", "added": "in.y[{index}]"}


def run(graph, stores, x, count):
    """The results of stores to the places y; ``count`` of them."""
    printer = Printer(graph, {**SPACES, "y": "y[{index}]"})
    functions = [
        *printer.functions(store.value for store in stores),
        printer.function("numbers", [("V*", "y")], stores),
    ]
    text = build.with_headers(_TEXT.replace("FUNCTIONS", "\n".join(functions)).replace("COUNT", str(count)))
    x, y = np.ascontiguousarray(x, float), np.zeros(count)
    pointer = lambda a: a.ctypes.data_as(ctypes.c_void_p)
    build.load(text).run(pointer(x), pointer(y))
    return y, text
