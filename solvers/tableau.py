"""Butcher tableaus as data that check themselves."""

from __future__ import annotations

import math
from dataclasses import dataclass

Coefficients = tuple[float, ...]


@dataclass(frozen=True)
class ButcherTableau:
    """An explicit Runge–Kutta method: stages ``a`` (strictly lower rows), weights ``b``, nodes ``c``.

    On construction the row sums and all order conditions up to ``min(order, 4)`` are checked to
    1e-12 (Hairer, Nørsett, Wanner, Solving Ordinary Differential Equations I, §II.2, Table 2.1), so a
    mistyped coefficient raises ``ValueError`` instead of losing an order of convergence.
    """

    name: str
    order: int
    a: tuple[Coefficients, ...]
    b: Coefficients
    c: Coefficients
    source: str

    def __post_init__(self) -> None:
        stages = len(self.b)
        if len(self.c) != stages or len(self.a) != stages - 1:
            raise ValueError(f"tableau {self.name!r}: a, b, c do not describe {stages} stages")
        for i, row in enumerate(self.a, start=1):
            if len(row) != i:
                raise ValueError(f"tableau {self.name!r}: row {i} of a has {len(row)} entries, not {i}")
        for label, got, want in self._conditions():
            if not math.isclose(got, want, rel_tol=0.0, abs_tol=1e-12):
                raise ValueError(f"tableau {self.name!r}: {label} is {got!r}, must be {want!r}")

    def _conditions(self) -> list[tuple[str, float, float]]:
        """Every (label, left side, right side) that must agree."""
        rows = ((), *self.a)
        c, b = self.c, self.b

        def apply_a(v: Coefficients) -> Coefficients:
            return tuple(sum(x * y for x, y in zip(row, v, strict=False)) for row in rows)

        def weigh(*vs: Coefficients) -> float:
            return sum(bi * math.prod(v[i] for v in vs) for i, bi in enumerate(b))

        checks = [(f"sum of row {i} of a", sum(row), c[i]) for i, row in enumerate(rows)]
        ac, acc = apply_a(c), apply_a(tuple(x * x for x in c))
        by_order = {
            1: [("sum b", weigh(), 1.0)],
            2: [("sum b c", weigh(c), 1 / 2)],
            3: [("sum b c^2", weigh(c, c), 1 / 3), ("sum b a c", weigh(ac), 1 / 6)],
            4: [
                ("sum b c^3", weigh(c, c, c), 1 / 4),
                ("sum b c a c", weigh(c, ac), 1 / 8),
                ("sum b a c^2", weigh(acc), 1 / 12),
                ("sum b a a c", weigh(apply_a(ac)), 1 / 24),
            ],
        }
        for order, conditions in by_order.items():
            if order <= self.order:
                checks += conditions
        return checks


_HNW = "Hairer, Nørsett, Wanner, Solving Ordinary Differential Equations I, §II.1"

EULER = ButcherTableau("euler", 1, (), (1.0,), (0.0,), _HNW)
MIDPOINT = ButcherTableau("midpoint", 2, ((1 / 2,),), (0.0, 1.0), (0.0, 1 / 2), _HNW)
HEUN = ButcherTableau("heun", 2, ((1.0,),), (1 / 2, 1 / 2), (0.0, 1.0), _HNW)
RK4 = ButcherTableau(
    "rk4",
    4,
    ((1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)),
    (1 / 6, 1 / 3, 1 / 3, 1 / 6),
    (0.0, 1 / 2, 1 / 2, 1.0),
    _HNW,
)
