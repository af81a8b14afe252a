"""Butcher tableaus, whose order conditions are checked when they are made."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass

import numpy as np

Coefficients = tuple[float, ...]
Tree = tuple["Tree", ...]
"""A rooted tree as the sorted tuple of the subtrees under its root."""


@functools.cache
def rooted_trees(order: int) -> tuple[Tree, ...]:
    """All rooted trees with ``order`` vertices; one order condition each (HNW I, §II.2)."""
    if order == 1:
        return ((),)
    trees: set[Tree] = set()
    for sizes in _partitions(order - 1):
        for children in itertools.product(*(rooted_trees(size) for size in sizes)):
            trees.add(tuple(sorted(children, key=repr)))
    return tuple(sorted(trees, key=repr))


def _partitions(total: int, largest: int | None = None) -> list[tuple[int, ...]]:
    if total == 0:
        return [()]
    top = min(total, largest or total)
    return [(k, *rest) for k in range(top, 0, -1) for rest in _partitions(total - k, k)]


def vertices(tree: Tree) -> int:
    """The order of a tree."""
    return 1 + sum(vertices(child) for child in tree)


def density(tree: Tree) -> int:
    """γ(t): the order condition of a tree is ``sum_i b_i Φ_i(t) = 1/γ(t)`` (HNW I, Definition II.2.10)."""
    return vertices(tree) * math.prod(density(child) for child in tree)


def elementary_weights(tree: Tree, a: np.ndarray) -> np.ndarray:
    """Φ_i(t) for every stage i (HNW I, Definition II.2.9)."""
    result = np.ones(len(a))
    for child in tree:
        result = result * (a @ elementary_weights(child, a))
    return result


@dataclass(frozen=True, repr=False)
class ButcherTableau:
    """A Runge–Kutta method: stages ``a``, weights ``b``, nodes ``c``.

    Row i of ``a`` holds the coefficients of the stages before it, and its own where the method is
    diagonally implicit (row i then has i + 1 entries instead of i).

    ``b_error``: weights of ``x_new - x_embedded``; the embedded solution has order ``error_order - 1``.
    ``dense[i]``: polynomial coefficients of ``b_i(θ) = sum_k dense[i][k] θ^(k+1)``, of order ``dense_order``.

    On construction the row sums and every order condition are checked to 1e-12, by trees: of ``b`` up to
    ``order``, of ``b - b_error`` up to ``error_order - 1``, of ``b(θ)`` up to ``dense_order`` and b(1) = b. A
    mistyped coefficient raises ``ValueError`` instead of losing an order of convergence.  Conditions:
    Hairer, Nørsett, Wanner, Solving Ordinary Differential Equations I (HNW I), Theorem II.2.13 and §II.6.
    """

    name: str
    order: int
    a: tuple[Coefficients, ...]
    b: Coefficients
    c: Coefficients
    source: str
    b_error: Coefficients | None = None
    error_order: int = 0
    dense: tuple[Coefficients, ...] | None = None
    dense_order: int = 0

    @property
    def implicit(self) -> bool:
        """Whether the stages are solved for (rows of ``a`` hold a diagonal entry)."""
        return len(self.a[0]) == 1

    def __repr__(self) -> str:
        error = f", embedded order {self.error_order - 1}" if self.b_error is not None else ""
        dense = f", dense output of order {self.dense_order}" if self.dense is not None else ""
        kind = "implicit" if self.implicit else "explicit"
        return (
            f"ButcherTableau({self.name!r}, {kind}, order {self.order}, {len(self.b)} stages{error}{dense})"
        )

    def __post_init__(self) -> None:
        stages = len(self.b)
        if len(self.c) != stages or len(self.a) != stages:
            raise ValueError(f"tableau {self.name!r}: a, b, c do not describe {stages} stages")
        for i, row in enumerate(self.a):
            if len(row) != i + self.implicit:
                raise ValueError(
                    f"tableau {self.name!r}: row {i} of a has {len(row)} entries, not {i + self.implicit}"
                )
        for label, got, want in self._conditions():
            if not math.isclose(got, want, rel_tol=0.0, abs_tol=1e-12):
                raise ValueError(f"tableau {self.name!r}: {label} is {got!r}, must be {want!r}")

    def _conditions(self) -> list[tuple[str, float, float]]:
        """Every (label, left side, right side) that must agree."""
        stages = len(self.b)
        a = np.zeros((stages, stages))
        for i, row in enumerate(self.a):
            a[i, : len(row)] = row
        b = np.array(self.b)
        checks = [(f"sum of row {i} of a", float(a[i].sum()), self.c[i]) for i in range(stages)]

        def require(label: str, weights: np.ndarray, order: int, theta: float = 1.0) -> None:
            for k in range(1, order + 1):
                for tree in rooted_trees(k):
                    left = float(weights @ elementary_weights(tree, a))
                    checks.append(
                        (f"{label} order condition {tree} of order {k}", left, theta**k / density(tree))
                    )

        require("the", b, self.order)
        if self.b_error is not None:
            require("the embedded solution's", b - np.array(self.b_error), self.error_order - 1)
        if self.dense is not None:
            for theta in (0.25, 0.5, 0.75):
                powers = np.array([theta ** (k + 1) for k in range(len(self.dense[0]))])
                require(
                    f"at θ = {theta} the dense output's",
                    np.array(self.dense) @ powers,
                    self.dense_order,
                    theta,
                )
            ends = np.array(self.dense).sum(axis=1)
            checks += [(f"b_{i}(1)", float(ends[i]), self.b[i]) for i in range(stages)]
        return checks


_HNW = "Hairer, Nørsett, Wanner, Solving Ordinary Differential Equations I, §II.1"

EULER = ButcherTableau("euler", 1, ((),), (1.0,), (0.0,), _HNW)
MIDPOINT = ButcherTableau("midpoint", 2, ((), (1 / 2,)), (0.0, 1.0), (0.0, 1 / 2), _HNW)
HEUN = ButcherTableau("heun", 2, ((), (1.0,)), (1 / 2, 1 / 2), (0.0, 1.0), _HNW)
RK4 = ButcherTableau(
    "rk4",
    4,
    ((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)),
    (1 / 6, 1 / 3, 1 / 3, 1 / 6),
    (0.0, 1 / 2, 1 / 2, 1.0),
    _HNW,
)


def _polynomials(factored: tuple[tuple[float, tuple[Coefficients, ...]], ...]) -> tuple[Coefficients, ...]:
    """Expand ``lead · θ · product of factors`` (highest power first in each factor) to dense coefficients."""
    rows = []
    for lead, factors in factored:
        product = np.array([lead, 0.0])
        for factor in factors:
            product = np.polymul(product, factor)
        ascending = product[::-1][1:]
        rows.append(tuple(float(v) for v in np.pad(ascending, (0, 4 - len(ascending)))))
    return tuple(rows)


_TSIT5_B = (
    0.09646076681806523,
    0.01,
    0.4798896504144996,
    1.379008574103742,
    -3.290069515436081,
    2.324710524099774,
    0.0,
)
TSIT5 = ButcherTableau(
    "tsit5",
    5,
    (
        (),
        (0.161,),
        (-0.008480655492356989, 0.335480655492357),
        (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
        (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
        (
            5.86145544294642,
            -12.92096931784711,
            8.159367898576159,
            -0.071584973281401,
            -0.02826905039406838,
        ),
        _TSIT5_B[:6],
    ),
    _TSIT5_B,
    (0.0, 0.161, 0.327, 0.9, 0.9800255409045097, 1.0, 1.0),
    "Tsitouras, Runge–Kutta pairs of order 5(4) satisfying only the first column simplifying assumption, "
    "Computers & Mathematics with Applications 62 (2011) 770–775",
    b_error=(
        0.00178001105222577714,
        0.0008164344596567469,
        -0.007880878010261995,
        0.1447110071732629,
        -0.5823571654525552,
        0.45808210592918697,
        -1 / 66,
    ),
    error_order=5,
    dense=_polynomials(
        (
            (
                -1.0530884977290216,
                ((1.0, -1.3299890189751412), (1.0, -1.4364028541716351, 0.7139816917074209)),
            ),
            (0.1017, ((1.0, 0.0), (1.0, -2.1966568338249754, 1.2949852507374631))),
            (2.490627285651252793, ((1.0, 0.0), (1.0, -2.38535645472061657, 1.57803468208092486))),
            (-16.54810288924490272, ((1.0, 0.0), (1.0, -1.21712927295533244), (1.0, -0.61620406037800089))),
            (47.37952196281928122, ((1.0, 0.0), (1.0, -1.203071208372362603), (1.0, -0.658047292653547382))),
            (-34.87065786149660974, ((1.0, 0.0), (1.0, -1.2), (1.0, -0.666666666666666667))),
            (2.5, ((1.0, 0.0), (1.0, -1.0), (1.0, -0.6))),
        )
    ),
    dense_order=4,
)


def _dopri5_dense(b: Coefficients) -> tuple[Coefficients, ...]:
    """HNW I, §II.6, the dense output of DOPRI5 as ``b_i(θ)``, from its coefficients ``d``.

    ``x(θ) = x + θ(Δ + (1-θ)(r + θ(Δ - h k7 - r + (1-θ) h Σ d_i k_i)))`` with ``r = h k1 - Δ``.
    """
    d = (
        -12715105075 / 11282082432,
        0.0,
        87487479700 / 32700410799,
        -10690763975 / 1880347072,
        701980252875 / 199316789632,
        -1453857185 / 822651844,
        69997945 / 29380423,
    )
    rows = []
    for i in range(7):
        first, last = float(i == 0), float(i == 6)
        r = first - b[i]
        inner = b[i] - last - r
        # θ b + θ(1-θ) r + θ²(1-θ) inner + θ²(1-θ)² d
        rows.append((b[i] + r, -r + inner + d[i], -inner - 2 * d[i], d[i]))
    return tuple(rows)


_DOPRI5_B = (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0)
DOPRI5 = ButcherTableau(
    "dopri5",
    5,
    (
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        _DOPRI5_B[:6],
    ),
    _DOPRI5_B,
    (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
    "Dormand, Prince, A family of embedded Runge–Kutta formulae (1980); HNW I, Table II.5.2 and §II.6",
    b_error=(71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
    error_order=5,
    dense=_dopri5_dense(_DOPRI5_B),
    dense_order=4,
)

_HW2 = "Hairer, Wanner, Solving Ordinary Differential Equations II"

BACKWARD_EULER = ButcherTableau("backward_euler", 1, ((1.0,),), (1.0,), (1.0,), f"{_HW2}, §IV.3")
IMPLICIT_MIDPOINT = ButcherTableau("implicit_midpoint", 2, ((0.5,),), (1.0,), (0.5,), f"{_HW2}, §IV.5")


def _sdirk3() -> ButcherTableau:
    """The L-stable method with three stages: g is the middle root of ``g³ - 3g² + 3g/2 - 1/6 = 0``."""
    g = float(sorted(np.roots([1.0, -3.0, 1.5, -1 / 6]).real)[1])
    for _ in range(3):  # np.roots stops a few digits short of the last
        g -= (((g - 3.0) * g + 1.5) * g - 1 / 6) / ((3.0 * g - 6.0) * g + 1.5)
    b1, b2 = -(6 * g**2 - 16 * g + 1) / 4, (6 * g**2 - 20 * g + 5) / 4
    return ButcherTableau(
        "sdirk3",
        3,
        ((g,), ((1 - g) / 2, g), (b1, b2, g)),
        (b1, b2, g),
        (g, (1 + g) / 2, 1.0),
        "Alexander, Diagonally implicit Runge–Kutta methods for stiff O.D.E.'s, "
        "SIAM Journal on Numerical Analysis 14 (1977) 1006–1021, Theorem 5",
    )


SDIRK3 = _sdirk3()
