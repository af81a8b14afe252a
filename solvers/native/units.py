"""Long C++ in several units that compilers work on at the same time.

A kernel stays one source.  What is above its functions belongs to every unit; a long function is declared in all of
them and defined in one, where ``UNIT`` is the unit's number; everything below belongs to the first unit.  Without
``UNIT`` the source is the whole kernel, with the same functions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

MARK = "// UNITS"
"""Begins the line that tells the number of units."""

LONG = 400
"""A function of at least so many lines is defined in one unit only.  It is never inlined, so that the number of
compilers changes no bit."""
_SHARE = 5_000
"""Lines of long functions that are worth a unit: a compiler takes 0.2 to 0.3 s for what all units share."""
_MOST = 16

_FUNCTION = re.compile(
    r"^static (?:inline )?(?:__attribute__\(\(noinline\)\) )?(void \w+\([^\n]*\)) \{\n((?:[^\n]*\n)*?)\}$",
    re.MULTILINE,
)
_HIDDEN = '__attribute__((visibility("hidden"), noinline))'


def divided(template: str, functions: Sequence[str]) -> str:
    """The template with the functions at ``// EMITTED``, in as many units as their lengths are worth."""
    text = "\n".join(functions)
    sizes = {q.start(): q.group(2).count("\n") for q in _FUNCTION.finditer(text)}
    long = {at: size for at, size in sizes.items() if size >= LONG}
    count = min(_MOST, sum(long.values()) // _SHARE)
    if count < 2:
        return template.replace("// EMITTED", text, 1)
    # The longest first, each to the unit with the fewest lines; what is below takes about as long as a share.
    lines, unit = [_SHARE] + [0] * (count - 1), {}
    for at in sorted(long, key=lambda at: (-long[at], at)):
        unit[at] = lines.index(min(lines))
        lines[unit[at]] += long[at]

    def written(found: re.Match[str]) -> str:
        if found.start() not in unit:
            return found.group()
        head = f"{_HIDDEN} {found.group(1)}"
        return f"{head};\n#if {_in(unit[found.start()])}\n{head} {{\n{found.group(2)}}}\n#endif"

    above, below = template.split("// EMITTED", 1)
    return f"{MARK} {count}\n{above}{_FUNCTION.sub(written, text)}\n#if {_in(0)}\n{below.rstrip()}\n#endif\n"


def units_of(source: str) -> int:
    """The number of units of a source."""
    found = re.search(rf"^{MARK} (\d+)$", source, re.MULTILINE)
    return int(found[1]) if found else 1


def _in(unit: int) -> str:
    return f"!defined(UNIT) || UNIT == {unit}"
