"""A harbour tug that berths at a quay in a current."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robotics_envs.base import Actions, Box, Costs, Env, Observations, Parameter, Params, States, Success
from robotics_envs.drawing import Circle, Floats, Line, Point, Polygon, Shape, View
from solvers.methods.runge_kutta import RK4

_CS2 = "Skjetne, Smogeli, Fossen, A nonlinear ship manoeuvering model, MIC 25(1), 2004: CyberShip II"
_CHOSEN = "chosen"
LENGTH, BEAM = 25.1, 5.8  # m, CyberShip II's 1.255 and 0.29 m at 1:20; the hull is taken as an ellipse
GAP = 1.0  # m, between the berthed hull and the quay
QUAY = 0.5 * BEAM + GAP  # m east of the berth
CURRENT = 0.2  # m/s, of either component
NEAR, TURNED, SLOWER, TURNING, HOLD = 1.0, math.radians(3), 0.05, math.radians(0.2), 10.0
"""Of success: m, rad, m/s, rad/s and s."""
FAR, SPEED, RATE = 10.0, 1.0, 0.1  # m, m/s and rad/s, the units of the cost
ROUND = 0.5  # m, below which the distances in the cost are rounded off

PerRollout = Float[Tensor, "*batch"]
Motion = tuple[PerRollout, PerRollout, PerRollout]


class Tug(Env):
    """A tug with two azimuth thrusters and a bow thruster has to berth alongside a quay, in a current.

    State ``[north m, east m, heading rad, surge m/s, sway m/s, yaw_rate rad/s, current_north m/s, current_east
    m/s]``; action ``[port_x, port_y, starboard_x, starboard_y, bow]`` in ±1: the thrusts of the two azimuth units
    along and across the hull as fractions of ``azimuth_thrust`` and that of the bow thruster as one of
    ``bow_thrust``; observation ``[north, east, cos heading, sin heading, surge, sway, yaw_rate, current_north,
    current_east]``.  The berth is the origin with heading 0, north; the quay runs north at ``QUAY`` m east of it.
    The heading is positive clockwise, seen from above, and not wrapped.  Surge and sway are velocities over
    the ground along and across the hull (forward, starboard).  The current is constant, drawn at the reset, and
    **observed**: a ship's log and its satellite receiver give it.

    Equations: the manoeuvring model in 3 degrees of freedom of Fossen, Handbook of Marine Craft Hydrodynamics and
    Motion Control, 2011, chapter 6, in the velocity relative to a constant current (his property 8.1).  Hull and
    coefficients are those of CyberShip II, the model of an offshore supply ship (Skjetne et al., 2004), scaled by
    Froude's law to the length of a tug: lengths by ``scale``, times and velocities by its square root, forces by
    its cube.  Their damping that couples sway and yaw, identified under way, is left out: near standstill it would
    feed energy in.

    An azimuth unit turns at once, and its thrust is at most ``azimuth_thrust`` in every direction: a longer vector
    is shortened to that, which cuts its gradient along the vector.  The action's clip cuts gradients, too.
    There is no contact: the quay is a cost on being beyond it, and excludes success.
    """

    name = "tug"
    state_names = (
        *("north", "east", "heading", "surge", "sway", "yaw_rate"),
        *("current_north", "current_east"),
    )
    angle_names = ("heading",)
    observation_names = (
        *("north", "east", "cos_heading", "sin_heading", "surge", "sway", "yaw_rate"),
        *("current_north", "current_east"),
    )
    parameters = (
        Parameter("scale", 20.0, "1, lengths against the model's", low=0.0, source=f"{_CHOSEN}: 25 m long"),
        Parameter("mass", 23.8, "kg", low=0.0, source=_CS2),
        Parameter("inertia", 1.76, "kg m², about midships", low=0.0, source=_CS2),
        Parameter("centre", 0.046, "m, of gravity ahead of midships", source=_CS2),
        Parameter("x_du", -2.0, "kg, added mass", high=0.0, source=_CS2),
        Parameter("y_dv", -10.0, "kg, added mass", high=0.0, source=_CS2),
        Parameter("n_dr", -1.0, "kg m², added inertia", high=0.0, source=_CS2),
        Parameter("x_u", -0.72253, "kg/s", high=0.0, source=_CS2),
        Parameter("x_uu", -1.32742, "kg/m", high=0.0, source=_CS2),
        Parameter("x_uuu", -5.86643, "kg s/m²", high=0.0, source=_CS2),
        Parameter("y_v", -0.88965, "kg/s", high=0.0, source=_CS2),
        Parameter("y_vv", -36.47287, "kg/m", high=0.0, source=_CS2),
        Parameter("n_r", -1.9, "kg m²/s", high=0.0, source=_CS2),
        Parameter("n_rr", -0.75, "kg m²", high=0.0, source=_CS2),
        Parameter("azimuth_thrust", 8.0, "kN, of a unit, full scale", low=0.0, source=_CHOSEN),
        Parameter("bow_thrust", 4.0, "kN, full scale", low=0.0, source=_CHOSEN),
        Parameter("azimuth_aft", 10.0, "m aft of midships, full scale", low=0.0, source=_CHOSEN),
        Parameter("azimuth_side", 1.5, "m from the centre line, full scale", low=0.0, source=_CHOSEN),
        Parameter("bow_ahead", 9.0, "m ahead of midships, full scale", low=0.0, source=_CHOSEN),
    )
    action_box = Box.symmetric(*(1.0,) * 5)
    start_box = Box(
        (-40.0, -60.0, -math.pi, -0.5, -0.2, -0.01, -CURRENT, -CURRENT),
        (40.0, -20.0, math.pi, 0.5, 0.2, 0.01, CURRENT, CURRENT),
    )
    state_box = Box(
        (-60.0, -75.0, -math.pi, -2.5, -1.2, -0.08, -CURRENT, -CURRENT),
        (60.0, 5.0, math.pi, 2.5, 1.2, 0.08, CURRENT, CURRENT),
    )
    dt = 1.0
    episode_steps = 180
    solver = RK4()
    substeps = 2
    view = View((-80.0, -55.0), (20.0, 55.0))
    success_criterion = Success(
        "within 1 m and 3° of the berth, slower than 5 cm/s and 0.2 °/s throughout the last 10 s, and the hull never "
        "more than 0.5 m beyond the quay",
        0.9,
        "the project's choice",
    )

    def thrust(self, u: Actions, p: Params) -> Motion:
        """Forces along and across the hull in kN, and the moment about midships in kN m, each ``[B]``."""
        port, starboard, bow = u.split((2, 2, 1), dim=-1)
        # A thrust of at most 1 in every direction.
        port, starboard = (
            v / torch.sqrt((v**2).sum(-1, keepdim=True).clamp_min(1.0)) for v in (port, starboard)
        )
        along, across = ((port[..., i] + starboard[..., i]) * p["azimuth_thrust"] for i in (0, 1))
        side = p["bow_thrust"] * bow[..., 0]
        spread = (port[..., 0] - starboard[..., 0]) * p["azimuth_thrust"]
        moment = p["azimuth_side"] * spread - p["azimuth_aft"] * across + p["bow_ahead"] * side
        return along, across + side, moment

    def current(self, x: States) -> tuple[PerRollout, PerRollout]:
        """The current along and across the hull, m/s."""
        cos, sin, north, east = torch.cos(x[..., 2]), torch.sin(x[..., 2]), x[..., 6], x[..., 7]
        return north * cos + east * sin, east * cos - north * sin

    def mass_matrix(self, p: Params) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Elements 11, 22, 23 and 33 of the model's mass matrix, with the added mass."""
        swing = p["mass"] * p["centre"]
        return p["mass"] - p["x_du"], p["mass"] - p["y_dv"], swing, p["inertia"] - p["n_dr"]

    def damping(self, u: PerRollout, v: PerRollout, r: PerRollout, p: Params) -> Motion:
        """The model's damping ``D(ν) ν`` in N, N and N m at velocities through the water in m/s, m/s and rad/s."""
        surge = (p["x_u"] + p["x_uu"] * torch.abs(u) + p["x_uuu"] * u**2) * u
        sway = (p["y_v"] + p["y_vv"] * torch.abs(v)) * v
        yaw = (p["n_r"] + p["n_rr"] * torch.abs(r)) * r
        return -surge, -sway, -yaw

    def dynamics(self, t: Any, x: States, u: Actions, p: Params) -> States:
        """d[place, heading, velocities, current]/dt: ``M dν_r/dt + C(ν_r) ν_r + D(ν_r) ν_r = τ``."""
        heading, surge, sway, rate = (x[..., i] for i in (2, 3, 4, 5))
        cos, sin = torch.cos(heading), torch.sin(heading)
        along, across = self.current(x)
        # To the size of the model, where the coefficients hold.
        root = torch.sqrt(p["scale"])
        a, b, r = (surge - along) / root, (sway - across) / root, rate * root
        force_x, force_y, moment = self.thrust(u, p)
        kilo = 1e3 / p["scale"] ** 3
        m11, m22, m23, m33 = self.mass_matrix(p)
        drag_x, drag_y, drag_n = self.damping(a, b, r, p)
        # Coriolis and centripetal forces C(ν) ν follow from the momenta m22 v + m23 r and m11 u.
        sideways, ahead = m22 * b + m23 * r, m11 * a
        push_x = kilo * force_x - drag_x + sideways * r
        push_y = kilo * force_y - drag_y - ahead * r
        push_n = kilo / p["scale"] * moment - drag_n - (sideways * a - ahead * b)
        determinant = m22 * m33 - m23 * m23
        # Accelerations are those of the model; angular ones are smaller by the scale.
        faster_x = push_x / m11
        faster_y = (m33 * push_y - m23 * push_n) / determinant
        faster_n = (m22 * push_n - m23 * push_y) / determinant / p["scale"]
        still = torch.zeros_like(rate)
        return torch.stack(
            (
                surge * cos - sway * sin,
                surge * sin + sway * cos,
                rate,
                # The current along and across the hull changes as the hull turns.
                faster_x + rate * across,
                faster_y - rate * along,
                faster_n,
                still,
                still,
            ),
            dim=-1,
        )

    def beyond_quay(self, x: Float[Tensor, "*batch n"]) -> PerRollout:
        """m, how far the hull, an ellipse, reaches beyond the quay; 0 where it does not."""
        cos, sin = torch.cos(x[..., 2]), torch.sin(x[..., 2])
        reach = 0.5 * torch.sqrt((LENGTH * sin) ** 2 + (BEAM * cos) ** 2)
        return (x[..., 1] + reach - QUAY).clamp_min(0.0)

    def cost(self, x: States, u: Actions, p: Params) -> Costs:
        """Costs of distance, heading, motion over the ground, thrust and the quay.

        ``f(d) / (10 m) + f(q) / (1 m) + sqrt(4 sin²(heading / 2) + 0.01) - 0.1 + 0.1 (speed / (1 m/s))² +
        0.1 (yaw rate / (0.1 rad/s))² + 0.02 |u|²`` with the distance d from the berth, the hull's reach q beyond the
        quay, and both rounded off at 0: ``f(d) = sqrt(d² + (0.5 m)²) - 0.5 m``.
        """
        distance = torch.sqrt(x[..., 0] ** 2 + x[..., 1] ** 2 + ROUND**2) - ROUND
        through = torch.sqrt(self.beyond_quay(x) ** 2 + ROUND**2) - ROUND
        turned = torch.sqrt(2 * (1 - torch.cos(x[..., 2])) + 0.01) - 0.1
        fast = (x[..., 3] ** 2 + x[..., 4] ** 2) / SPEED**2 + (x[..., 5] / RATE) ** 2
        effort = 0.02 * (u**2).sum(-1)
        return distance / FAR + through + turned + 0.1 * fast + effort

    def observe(self, x: States) -> Observations:
        """``[north, east, cos heading, sin heading, surge, sway, yaw_rate, current_north, current_east]``."""
        place, heading, rest = x.split((2, 1, 5), dim=-1)
        return torch.cat((place, torch.cos(heading), torch.sin(heading), rest), dim=-1)

    def success(self, states: Float[Tensor, "times batch n"]) -> Bool[Tensor, " batch"]:
        """Whether the tug rests at the berth at the end of an episode's states, and never went through the quay."""
        last = states[-(round(HOLD / self.dt) + 1) :]
        placed = (torch.hypot(last[..., 0], last[..., 1]) < NEAR) & (
            torch.cos(last[..., 2]) > math.cos(TURNED)
        )
        slow = (torch.hypot(last[..., 3], last[..., 4]) < SLOWER) & (last[..., 5].abs() < TURNING)
        return (placed & slow).all(0) & (self.beyond_quay(states) < 0.5).all(0)

    def draw(self, x: Floats, u: Floats) -> list[Shape]:
        """The hull, each thrust as a line on the side that it pushes from, and the current as an arrow; north is up."""
        cos, sin = math.cos(x[2]), math.sin(x[2])

        def at(ahead: float, starboard: float) -> Point:
            """A point of the hull as (east, north)."""
            return (float(x[1]) + ahead * sin + starboard * cos, float(x[0]) + ahead * cos - starboard * sin)

        half, side = 0.5 * LENGTH, 0.5 * BEAM
        hull = [
            (-half, -0.8 * side),
            (-half, 0.8 * side),
            (0.3 * half, side),
            (0.7 * half, 0.7 * side),
            (half, 0.0),
        ]
        hull += [(a, -b) for a, b in reversed(hull[2:4])]
        house = [
            (-0.1 * half, -0.5 * side),
            (-0.1 * half, 0.5 * side),
            (0.4 * half, 0.5 * side),
            (0.4 * half, -0.5 * side),
        ]
        aft, apart, ahead = (self.constants[k].value for k in ("azimuth_aft", "azimuth_side", "bow_ahead"))
        pushes = [(-aft, -apart, u[0], u[1]), (-aft, apart, u[2], u[3]), (ahead, 0.0, 0.0, 0.5 * u[4])]
        jets: list[Shape] = []
        for a, b, along, across in pushes:
            length = max(1.0, math.hypot(along, across))
            end = at(a - 10.0 * float(along) / length, b - 10.0 * float(across) / length)
            jets.append(Line([at(a, b), end], "force", 1.0))
        tip = (-70.0 + 40.0 * float(x[7]), 45.0 + 40.0 * float(x[6]))
        flow: list[Shape] = [Line([(-70.0, 45.0), tip], "cold", 0.8), Circle((-70.0, 45.0), 1.0, "cold")]
        return [
            Polygon([at(*p) for p in hull], "body"),
            Polygon([at(*p) for p in house], "faint"),
            *jets,
            *flow,
        ]

    def scenery(self) -> list[Shape]:
        """The quay, and the outline of the hull at the berth."""
        top, right = self.view.high[1], self.view.high[0]
        quay = Polygon([(QUAY, -top), (right, -top), (right, top), (QUAY, top)], "ground")
        half, side = 0.5 * LENGTH, 0.5 * BEAM
        berth = [(-side, -half), (side, -half), (side, half), (-side, half), (-side, -half)]
        return [quay, Line(berth, "target", 0.4)]
