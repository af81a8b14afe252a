"""Initial-value problems from the literature and where they end: DETEST, van der Pol, ROBER, Arenstorf.

DETEST: Hull, Enright, Fellen, Sedgwick, SIAM J. Numer. Anal. 9 (1972) 603-637, in the form of Enright and
Pryce, ACM TOMS 13 (1987) 1-34 (Algorithm 648, NSDTST).  All of them end at 20.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

T_END = 20.0
CLOSED = "closed form, evaluated here; checked against the end values of Algorithm 648"
COMPUTED = (
    "Gragg-Bulirsch-Stoer extrapolation in 40-digit arithmetic (mpmath), orders 20 and 24 agree to 17 digits"
)
COMPUTED_STIFF = "Gragg-Bulirsch-Stoer in 40 digits (mpmath), order 24; scipy's Radau agrees to 12 digits"
CHECKED = COMPUTED + "; agrees with the end values of Algorithm 648"


@dataclass(frozen=True)
class Problem:
    """``x' = f(t, x, u, p)``, ``x(0) = x0``, and the state ``solution`` at ``t_end``.

    Attributes:
        source: where ``solution`` comes from.
        amplification: by how much an error made on the way grows until t_end, at worst: the maximum over s
            of the inf-norm of ``W(t_end)^-1 Phi(t_end, s) W(s)``, with Phi the derivative of the flow and
            W = diag(atol + rtol |x|) at rtol = atol.  Computed apart from our solvers (scipy, the adjoint
            equation along the solution; C4 by matrix exponentials; ROBER at its own atol by differences from
            times up to 1e8), rounded up.
        why: what amplifies.
        bound: the largest global error allowed in units of the tolerance: twice the largest measured of
            tsit5 and dopri5 (rodas5p where stiff), or 2 where that is less.
    """

    name: str
    f: Callable[[Tensor, Tensor, object, object], Tensor]
    x0: tuple[float, ...]
    t_end: float
    solution: tuple[float, ...]
    source: str
    stiff: bool = False
    amplification: float = 1.0
    why: str = ""
    bound: float = 2.0


def _stack(*components: Tensor) -> Tensor:
    return torch.stack(components, dim=-1)


def _component(f: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor, object, object], Tensor]:
    """A vector field from an equation for one component."""
    return lambda t, x, u, p: f(t, x[..., 0])[..., None]


# Class A: single equations.


def _a5_end() -> float:
    """y(20) of A5.  In polar coordinates t = r cos a, y = r sin a the solution is r = 4 exp(pi/2 - a)."""
    angle = 0.0
    for _ in range(20):
        radius = 4 * math.exp(math.pi / 2 - angle)
        slope = -radius * (math.cos(angle) + math.sin(angle))
        angle -= (radius * math.cos(angle) - T_END) / slope
    return T_END * math.tan(angle)


A = (
    Problem("A1", _component(lambda t, y: -y), (1.0,), T_END, (math.exp(-T_END),), CLOSED),
    Problem("A2", _component(lambda t, y: -(y**3) / 2), (1.0,), T_END, (1 / math.sqrt(1 + T_END),), CLOSED),
    Problem(
        "A3",
        _component(lambda t, y: y * torch.cos(t)),
        (1.0,),
        T_END,
        (math.exp(math.sin(T_END)),),
        CLOSED,
        amplification=2.7,
        why="the solution rises by exp(sin t)",
        bound=4.0,
    ),
    Problem(
        "A4",
        _component(lambda t, y: y / 4 * (1 - y / 20)),
        (1.0,),
        T_END,
        (20 / (1 + 19 * math.exp(-T_END / 4)),),
        CLOSED,
    ),
    Problem(
        "A5",
        _component(lambda t, y: (y - t) / (y + t)),
        (4.0,),
        T_END,
        (_a5_end(),),
        CLOSED,
        amplification=17,
        why="df/dy = 2t / (y + t)^2 is positive",
    ),
)


# Class B: small systems.


def _b1(t, x, u, p):
    prey, predator = x.unbind(-1)
    return _stack(2 * prey * (1 - predator), -predator * (1 - prey))


def _b2(t, x, u, p):
    a, b, c = x.unbind(-1)
    return _stack(b - a, a - 2 * b + c, b - c)


def _b3(t, x, u, p):
    a, b, _ = x.unbind(-1)
    return _stack(-a, a - b**2, b**2)


def _b4(t, x, u, p):
    a, b, c = x.unbind(-1)
    r = torch.hypot(a, b)
    return _stack(-b - a * c / r, a - b * c / r, a / r)


def _b5(t, x, u, p):
    a, b, c = x.unbind(-1)
    return _stack(b * c, -a * c, -0.51 * a * b)


B = (
    Problem(
        "B1",
        _b1,
        (1.0, 3.0),
        T_END,
        (0.67618760085766066, 0.18608160996400298),
        CHECKED,
        amplification=24,
        why="an error changes the period: phase errors grow with time",
        bound=8.0,
    ),
    Problem(
        "B2",
        _b2,
        (2.0, 0.0, 1.0),
        T_END,
        (
            1 + math.exp(-T_END) / 2 + math.exp(-3 * T_END) / 2,
            1 - math.exp(-3 * T_END),
            1 - math.exp(-T_END) / 2 + math.exp(-3 * T_END) / 2,
        ),
        CLOSED,
    ),
    Problem(
        "B3",
        _b3,
        (1.0, 0.0, 0.0),
        T_END,
        (2.061153622438558e-09, 0.05257228022048512, 0.9474277177183612),
        "closed form (the Riccati equation's modified Bessel functions), evaluated to 40 digits by mpmath",
        amplification=2.1,
        why="the norm adds components",
    ),
    # On the torus: the angle is t, the radius 2 + cos t.
    Problem(
        "B4",
        _b4,
        (3.0, 0.0, 0.0),
        T_END,
        (
            (2 + math.cos(T_END)) * math.cos(T_END),
            (2 + math.cos(T_END)) * math.sin(T_END),
            math.sin(T_END),
        ),
        CLOSED,
        amplification=16,
        why="an error of the angle moves all components, and they are coupled",
        bound=5.0,
    ),
    Problem(
        "B5",
        _b5,
        (0.0, 1.0, 1.0),
        T_END,
        (-0.9396570798729204, -0.34211777540007493, 0.7414126596199953),
        "closed form (Jacobi's sn, cn, dn at m = 0.51), evaluated to 40 digits by mpmath",
        amplification=41,
        why="an error changes the period: phase errors grow with time",
        bound=17.0,
    ),
)


# Class C: moderate systems.


def _c1(t, x, u, p):
    flow = x[..., :-1]
    return torch.nn.functional.pad(flow, (1, 0)) - torch.nn.functional.pad(flow, (0, 1))


def _c2(t, x, u, p):
    return _c1(t, x * torch.arange(1, 11, dtype=x.dtype), u, p)


def _chain(t, x, u, p):
    """C3 and C4: each component between its neighbours, zero at both ends."""
    wide = torch.nn.functional.pad(x, (1, 1))
    return wide[..., :-2] - 2 * x + wide[..., 2:]


def _unit(n: int) -> tuple[float, ...]:
    return (1.0,) + (0.0,) * (n - 1)


def _c1_end() -> tuple[float, ...]:
    head = [T_END**i / math.factorial(i) * math.exp(-T_END) for i in range(9)]
    return (*head, 1 - math.fsum(head))


def _c2_end() -> tuple[float, ...]:
    head = [math.exp(-T_END) * (1 - math.exp(-T_END)) ** i for i in range(9)]
    return (*head, 1 - math.fsum(head))


def _chain_end(n: int) -> tuple[float, ...]:
    """From the sine eigenvectors of the chain."""
    modes = [k * math.pi / (n + 1) for k in range(1, n + 1)]
    weights = [math.exp(-4 * math.sin(k / 2) ** 2 * T_END) * math.sin(k) * 2 / (n + 1) for k in modes]
    return tuple(
        math.fsum(w * math.sin(j * k) for w, k in zip(weights, modes, strict=True)) for j in range(1, n + 1)
    )


# Masses of the sun with the inner planets, and of the five outer planets.
_SUN = 1.00000597682
_PLANETS = (0.000954786104043, 0.000285583733151, 0.0000437273164546, 0.0000517759138449, 0.00000277777777778)
_GRAVITY = 2.95912208286


def _c5(t, x, u, p):
    """The outer planets relative to the sun; positions, then velocities, in units of AU and 100 days."""
    masses = torch.tensor(_PLANETS, dtype=x.dtype)
    at = x[..., :15].unflatten(-1, (5, 3))
    towards = at[..., None, :, :] - at[..., :, None, :]
    # The distance of a planet to itself: one, its direction is zero.
    between = towards.norm(dim=-1) + torch.eye(5, dtype=x.dtype)
    to_sun = at / at.norm(dim=-1, keepdim=True) ** 3
    others = 1 - torch.eye(5, dtype=x.dtype)
    pull = towards / between[..., None] ** 3 - to_sun[..., None, :, :]
    mutual = (masses[:, None] * others[..., None] * pull).sum(dim=-2)
    acceleration = _GRAVITY * (mutual - (_SUN + masses[:, None]) * to_sun)
    return torch.cat((x[..., 15:], acceleration.flatten(-2)), dim=-1)


# fmt: off
_C5_START = (
    3.42947415189, 3.35386959711, 1.35494901715, 6.64145542550, 5.97156957878, 2.18231499728,
    11.2630437207, 14.6952576794, 6.27960525067, -30.1552268759, 1.65699966404, 1.43785752721,
    -21.1238353380, 28.4465098142, 15.3882659679,
    -0.557160570446, 0.505696783289, 0.230578543901, -0.415570776342, 0.365682722812, 0.169143213293,
    -0.325325669158, 0.189706021964, 0.0877265322780, -0.0240476254170, -0.287659532608, -0.117219543175,
    -0.176860753121, -0.216393453025, -0.0148647893090,
)
_C5_END = (
    -4.792730224323635, -2.420550725449022, -0.9212509306015119, -4.217310404035214, 7.35620294749897,
    3.2237859854212116, 4.035559443262271, 17.19865528670555, 7.478910794233703, -29.987593263248442,
    -4.107310937550929, -0.9277008321754409, -24.42125302518483, 23.814590457465545, 14.920963069513588,
    0.3499208963063997, -0.5748487687912803, -0.25516940208791444, -0.5237040978903326, -0.24930004635796618,
    -0.08045341642044465, -0.38752892373341097, 0.05648603288767892, 0.03023606472143343,
    0.041338565467124465, -0.2862393029841379, -0.1183032405136207, -0.15119864573592057,
    -0.24600688943187657, -0.03189687411323877,
)
# fmt: on

C = (
    Problem(
        "C1",
        _c1,
        _unit(10),
        T_END,
        _c1_end(),
        CLOSED,
        amplification=5.6,
        why="the last component collects the others",
    ),
    Problem(
        "C2",
        _c2,
        _unit(10),
        T_END,
        _c2_end(),
        CLOSED,
        amplification=5.6,
        why="the last component collects the others",
    ),
    Problem("C3", _chain, _unit(10), T_END, _chain_end(10), CLOSED),
    Problem("C4", _chain, _unit(51), T_END, _chain_end(51), CLOSED),
    Problem(
        "C5",
        _c5,
        _C5_START,
        T_END,
        _C5_END,
        CHECKED,
        amplification=33,
        why="an error of a velocity moves the planet for the rest of the time",
        bound=8.0,
    ),
)


# Class D: the two-body problem at growing eccentricity.


def _kepler(t, x, u, p):
    a, b, va, vb = x.unbind(-1)
    cube = torch.hypot(a, b) ** 3
    return _stack(va, vb, -a / cube, -b / cube)


def _orbit(name: str, e: float, amplification: float, bound: float) -> Problem:
    anomaly = T_END
    for _ in range(100):
        anomaly -= (anomaly - e * math.sin(anomaly) - T_END) / (1 - e * math.cos(anomaly))
    cos, sin, minor = math.cos(anomaly), math.sin(anomaly), math.sqrt(1 - e**2)
    rate = 1 / (1 - e * cos)
    return Problem(
        name,
        _kepler,
        (1 - e, 0.0, 0.0, math.sqrt((1 + e) / (1 - e))),
        T_END,
        (cos - e, minor * sin, -sin * rate, minor * cos * rate),
        "Kepler's equation, solved here; checked against the end values of Algorithm 648",
        amplification=amplification,
        why="an error of the energy changes the period: the phase drifts, most from the pericentre",
        bound=bound,
    )


D = (
    _orbit("D1", 0.1, 249.0, 260.0),
    _orbit("D2", 0.3, 395.0, 1500.0),
    _orbit("D3", 0.5, 485.0, 1400.0),
    _orbit("D4", 0.7, 594.0, 720.0),
    _orbit("D5", 0.9, 2800.0, 1000.0),
)


# Class E: equations of second order.


def _second_order(
    f: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Callable[[Tensor, Tensor, object, object], Tensor]:
    """``y'' = f(t, y, y')``."""
    return lambda t, x, u, p: _stack(x[..., 1], f(t, x[..., 0], x[..., 1]))


def _van_der_pol(mu: float) -> Callable[[Tensor, Tensor, object, object], Tensor]:
    return _second_order(lambda t, y, v: mu * (1 - y**2) * v - y)


_RATE = math.sqrt(0.032 * 0.4)
_E1_SCALE = math.sqrt(2 / (math.pi * (T_END + 1)))

E = (
    # The Bessel function of order 1/2, at t + 1.
    Problem(
        "E1",
        _second_order(lambda t, y, v: -(v / (t + 1) + (1 - 0.25 / (t + 1) ** 2) * y)),
        (
            math.sqrt(2 / math.pi) * math.sin(1.0),
            math.sqrt(2 / math.pi) * (math.cos(1.0) - math.sin(1.0) / 2),
        ),
        T_END,
        (
            _E1_SCALE * math.sin(T_END + 1),
            _E1_SCALE * (math.cos(T_END + 1) - math.sin(T_END + 1) / (2 * (T_END + 1))),
        ),
        CLOSED,
        amplification=1.4,
    ),
    Problem(
        "E2",
        _van_der_pol(1.0),
        (2.0, 0.0),
        T_END,
        (2.008149762174948592, -0.04250887527320214698),
        CHECKED,
        amplification=8.6,
        why="phase on the limit cycle",
        bound=16.0,
    ),
    Problem(
        "E3",
        _second_order(lambda t, y, v: y**3 / 6 - y + 2 * torch.sin(2.78535 * t)),
        (0.0, 0.0),
        T_END,
        (-0.10041788586472407, 0.24114001320959556),
        CHECKED,
        amplification=13,
        why="an error changes the period: phase errors grow with time",
        bound=20.0,
    ),
    Problem(
        "E4",
        _second_order(lambda t, y, v: 0.032 - 0.4 * v**2),
        (30.0, 0.0),
        T_END,
        (30 + math.log(math.cosh(_RATE * T_END)) / 0.4, math.sqrt(0.08) * math.tanh(_RATE * T_END)),
        CLOSED,
        amplification=1.2,
    ),
    # A pursuit curve.
    Problem(
        "E5",
        _second_order(lambda t, y, v: torch.sqrt(1 + v**2) / (25 - t)),
        (0.0, 0.0),
        T_END,
        ((25 * math.log(5) - 12) / 2, 2.4),
        CLOSED,
        amplification=1.8,
    ),
)

DETEST = (*A, *B, *C, *D, *E)


# Beyond DETEST.


def _rober(t, x, u, p):
    a, b, c = x.unbind(-1)
    first, second, third = 0.04 * a, 3e7 * b**2, 1e4 * b * c
    return _stack(third - first, first - third - second, second)


_MOON = 0.012277471


def _arenstorf(t, x, u, p):
    """The restricted three-body problem, earth and moon at rest."""
    a, b, va, vb = x.unbind(-1)
    earth = (1 - _MOON) / torch.hypot(a + _MOON, b) ** 3
    moon = _MOON / torch.hypot(a - (1 - _MOON), b) ** 3
    return _stack(
        va,
        vb,
        a + 2 * vb - earth * (a + _MOON) - moon * (a - (1 - _MOON)),
        b - 2 * va - earth * b - moon * b,
    )


_TEST_SET = "published: Test Set for IVP Solvers (Mazzia, Magherini); scipy's Radau agrees to 12 digits"
_ARENSTORF_START = (0.994, 0.0, 0.0, -2.00158510637908252240537862224)

VAN_DER_POL = (
    Problem(
        "vdP mu=1",
        _van_der_pol(1.0),
        (2.0, 0.0),
        40.0,
        (2.0076231357026596, -0.06127131907426181),
        COMPUTED,
        amplification=8.2,
        why="phase on the limit cycle: errors of six periods add up",
        bound=31.0,
    ),
    Problem(
        "vdP mu=10",
        _van_der_pol(10.0),
        (2.0, 0.0),
        20.0,
        (1.9393585327826517, -0.0700815057358074),
        COMPUTED,
        amplification=1.2,
    ),
    Problem(
        "vdP mu=100",
        _van_der_pol(100.0),
        (2.0, 0.0),
        200.0,
        (1.7185872080192407, -0.008796821912416704),
        COMPUTED_STIFF,
        True,
        amplification=4.0,
        why="phase on the limit cycle",
    ),
    Problem(
        "vdP mu=1000",
        _van_der_pol(1000.0),
        (2.0, 0.0),
        2000.0,
        (1.706167732170469, -8.928097010248125e-4),
        _TEST_SET,
        True,
        amplification=1.5,
    ),
)

ROBER = Problem(
    "ROBER",
    _rober,
    (1.0, 0.0, 0.0),
    1e11,
    (2.083340149701255e-8, 8.333360770334713e-14, 0.9999999791665050),
    _TEST_SET,
    True,
    amplification=1.4,
)

ARENSTORF = Problem(
    "Arenstorf",
    _arenstorf,
    _ARENSTORF_START,
    17.0652165601579625588917206249,
    _ARENSTORF_START,
    "published: the orbit closes (Hairer, Norsett, Wanner, Solving ODEs I, section II.0)",
    amplification=5200000.0,
    why="it starts and ends 0.006 from the moon: close encounters turn the orbit",
    bound=4500.0,
)

PROBLEMS = (*DETEST, *VAN_DER_POL, ROBER, ARENSTORF)
