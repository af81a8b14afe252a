"""Limits of what is compiled, each with one meaning."""

from __future__ import annotations

from collections.abc import Iterable

from solvers.compiler.trace import NativeUnsupportedError

MOST_LINES = 160_000
"""C++ lines made from the user's functions in one kernel.

Long bodies are split into functions, so that the cost of compiling grows in proportion.  g++ 12.2 took 4 s of
processor time and 230 MB for 15,000 lines (a step of HalfCheetah-v5 with its gradient), 11 s and 390 MB for 48,688 (of
Ant-v5), 58 s and 870 MB for 144,197 (of Humanoid-v5).
"""

INLINE = 400
"""A vector field of at most so many operations is written out at every stage of the solver; a larger one is called."""

SMALL_MATRIX = 32
"""A weight matrix of at most so many numbers is written out as scalar expressions; a larger one becomes a layer."""


def check_lines(parts: Iterable[str]) -> None:
    """Refuse C++ made from the user's functions that the C++ compiler would take minutes for.

    Raises:
        NativeUnsupportedError: there are more than ``MOST_LINES`` lines.
    """
    lines = sum(part.count("\n") + 1 for part in parts)
    if lines > MOST_LINES:
        raise NativeUnsupportedError(
            f"the C++ of the functions has {lines:,} lines, more than the limit of {MOST_LINES:,}; "
            "a simulator with fewer states, stages or substeps has fewer"
        )
