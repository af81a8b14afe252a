"""A trebuchet that has to hit a target: swing, release within a step, flight and landing."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robotics_envs.base import (
    MOST_STARTS,
    Actions,
    Box,
    Costs,
    Env,
    EpisodeStates,
    Observations,
    Parameter,
    Params,
    States,
    Success,
    Successes,
)
from robotics_envs.drawing import Circle, Floats, Line, Polygon, Shape, Text, View
from solvers.methods.runge_kutta import RK4

_DESIGN = "this task's choice, a machine for two"
MAX_TORQUE = 200.0  # N·m
MAX_RATE = 40.0  # rad/s, of beam and sling
_SLOWEST = 0.1  # rad/s, for the gradient of the time of release
_WAITING = 2.0  # what an interval before the release costs
_NEWTON = 5
MISSED = 2.0  # m from the target, for success
_CLOSE_UP = (16.0, 27.0)  # position of the enlarged machine in the picture
_Scalars = Float[Tensor, " batch"]
_Four = Float[Tensor, "batch 4"]


class Trebuchet(Env):
    """A counterweight on a beam throws a stone from a sling; the stone has to come down at the target.

    State (10) ``[released 0 or 1, beam rad, sling rad, beam rate, sling rate rad/s, stone x, y m, stone
    velocity x, y m/s, target m]``, action ``[release angle rad, torque on the beam N·m]``, observation (7)
    ``[released, beam, sling, rates 2, predicted landing point m (0 before the release), target]``.
    In the plane, x to the right where the target is, y up from the ground, the axle above the origin.

    ``beam`` is the direction of the long arm, counter-clockwise from x; the beam turns clockwise in a throw.
    ``sling`` is the angle from the beam's direction to that of the sling: it starts large and passes 0 when the
    sling, coming round from behind, lines up with the beam.  It is not periodic.  The counterweight is fixed
    to the short arm; the sling is a massless rod from the start, free of the ground, whose tension may
    become a thrust.  No drag.

    The stone is released when ``sling`` falls to the commanded angle, at once if it is below it already.  The
    crossing is located inside the solver's step by Newton's method, and one differentiable correction at
    the root gives its time the gradient of the implicit function theorem.  The flight is a parabola in
    closed form, and so is the landing, after which the stone rests.  The stone's states have no
    meaning before the release (they are constant), and the beam's are constant after it: the motion of the
    empty beam is not simulated.

    The gradient is cut: through ``released``, which is 1 above 0.5; where ``step`` clamps the rates of beam and
    sling to ±40 rad/s; for an immediate release, whose time is the start of the interval for every command;
    where the sling crosses slower than 0.1 rad/s, which bounds the gradient; below the ground, which is
    treated as on it.
    """

    name = "trebuchet"
    state_names = (
        *("released", "beam", "sling", "beam_rate", "sling_rate"),
        *("stone_x", "stone_y", "stone_velocity_x", "stone_velocity_y", "target"),
    )
    observation_names = ("released", "beam", "sling", "beam_rate", "sling_rate", "landing", "target")
    parameters = (
        Parameter("g", 9.81, "m/s²", low=0.0, source="standard gravity, rounded"),
        Parameter("counterweight", 200.0, "kg", low=0.0, source=_DESIGN),
        Parameter("stone", 2.0, "kg", low=0.0, source=_DESIGN),
        Parameter("beam_mass", 20.0, "kg, uniform", low=0.0, source=_DESIGN),
        Parameter("long_arm", 2.4, "m", low=0.0, source=_DESIGN),
        Parameter("short_arm", 0.6, "m", low=0.0, source=_DESIGN),
        Parameter("sling_length", 2.0, "m", low=0.0, source=_DESIGN),
        Parameter("axle_height", 4.0, "m", low=0.0, source=f"{_DESIGN}: the sling clears the ground"),
    )
    action_box = Box((-0.2, -MAX_TORQUE), (1.2, MAX_TORQUE))
    start_box = Box(
        (0.0, 3.8, 2.26, -0.1, -0.1, 0.0, 0.0, 0.0, 0.0, 30.0),
        (0.0, 4.0, 2.46, 0.1, 0.1, 0.0, 0.0, 0.0, 0.0, 70.0),
    )
    state_box = Box(
        (0.0, 1.0, -0.4, -7.0, -12.0, -5.0, 0.0, 5.0, -25.0, 30.0),
        (1.0, 4.1, 2.6, 0.5, 2.0, 75.0, 25.0, 30.0, 25.0, 70.0),
    )
    dt = 0.04
    episode_steps = 150
    cost_of_reached_state = True
    view = View((-8.0, -4.0), (78.0, 47.0))
    solver = RK4()
    substeps = 4
    success_criterion = Success(
        words=f"released, and landing within {MISSED:g} m of the target, at the end",
        share=MOST_STARTS,
        source="this project's choice, the scale of the cost",
    )

    def swing(self, t: Any, s: _Four, u: Actions, p: Params) -> _Four:
        """d[beam, sling, rates]/dt before the release, by Lagrange's equations of two bodies.

        In the absolute angles b of the beam and c = b + sling of the sling::

            A b'' + B cos(sling) c'' = B sin(sling) c'² - G cos b + torque
            B cos(sling) b'' + C c'' = -B sin(sling) b'² - m g r cos c

        with m the stone, r the sling's length, R the long arm, A the inertia of beam, counterweight and
        stone (at R) about the axle, B = m R r, C = m r², and G the moment of their weights at b = 0.
        """
        beam, sling, beam_rate, sling_rate = s.unbind(-1)
        m, r, arm, short = p["stone"], p["sling_length"], p["long_arm"], p["short_arm"]
        middle = (arm - short) / 2
        beam_inertia = p["beam_mass"] * ((arm + short) ** 2 / 12 + middle**2)
        a = p["counterweight"] * short**2 + beam_inertia + m * arm**2
        weight = p["g"] * (p["beam_mass"] * middle + m * arm - p["counterweight"] * short)
        b, c = m * arm * r, m * r**2
        cos, sin, turning = torch.cos(sling), torch.sin(sling), beam_rate + sling_rate
        first = b * sin * turning**2 - weight * torch.cos(beam) + u[..., 1]
        second = -b * sin * beam_rate**2 - m * p["g"] * r * torch.cos(beam + sling)
        determinant = a * c - (b * cos) ** 2
        beam_change = (c * first - b * cos * second) / determinant
        sling_change = (a * second - b * cos * first) / determinant
        return torch.stack((beam_rate, sling_rate, beam_change, sling_change - beam_change), dim=-1)

    def dynamics(self, t: Any, x: States, u: Actions, p: Params) -> States:
        """dx/dt of the swing before the release and of the flight after it; the jumps are in ``step``."""
        released, s, stone, target = x.split((1, 4, 4, 1), dim=-1)
        loose = released > 0.5
        _, _, vx, vy = stone.unbind(-1)
        flying = (stone[..., 1] > 0) | (vy > 0)
        falling = torch.stack((vx, vy, torch.zeros_like(vx), -p["g"] * torch.ones_like(vy)), dim=-1)
        falling = torch.where(flying.unsqueeze(-1) & loose, falling, 0.0)
        turning = torch.where(loose, 0.0, self.swing(t, s, u, p))
        return torch.cat((torch.zeros_like(released), turning, falling, torch.zeros_like(target)), dim=-1)

    def step(self, x: States, u: Actions, p: Params) -> tuple[States, Costs]:
        """One control interval: swing, release, flight and landing, as far as it gets."""
        self._check_sizes(x, u, p)
        u = self.clip_action(u)
        released, s, stone, target = x.split((1, 4, 4, 1), dim=-1)
        loose = released[:, 0] > 0.5
        swung, let_go, start, begun = self._swing_on(s, u, p)
        at_release, passed = self._locate(start, u, p)
        at_once = s[:, 1] <= u[:, 0]
        at_release = torch.where(at_once.unsqueeze(-1), s, at_release)
        passed = torch.where(at_once, 0.0, begun + passed)
        let_go = (let_go | at_once) & ~loose

        thrown = torch.where(loose.unsqueeze(-1), stone, in_sling(at_release, p))
        flown = fly(thrown, torch.where(loose, 0.0, -passed) + self.dt, p)
        flown = torch.where((loose | let_go).unsqueeze(-1), flown, stone)
        s = torch.where(loose.unsqueeze(-1), s, torch.where(let_go.unsqueeze(-1), at_release, swung))
        angles, rates = s.split((2, 2), dim=-1)
        released = torch.where(let_go.unsqueeze(-1), torch.ones_like(released), released)
        following = torch.cat((released, angles, rates.clamp(-MAX_RATE, MAX_RATE), flown, target), dim=-1)
        return following, self.cost(following, u, p)

    def _swing_on(
        self, s: _Four, u: Actions, p: Params
    ) -> tuple[_Four, Bool[Tensor, " batch"], _Four, _Scalars]:
        """The swing over the interval without a release.

        Also whether the sling falls to the commanded angle, and the state and time at the start of the
        solver's step in which it does so first.
        """
        h = self.dt / self.substeps
        start, begun = s, torch.zeros_like(s[:, 0])
        let_go = s[:, 1] <= u[:, 0]
        for i in range(self.substeps):
            following = self.solver.step(self.swing, 0.0, s, u, p, h)
            hits = (following[:, 1] <= u[:, 0]) & ~let_go
            start = torch.where(hits.unsqueeze(-1), s, start)
            begun = torch.where(hits, i * h, begun)
            let_go = let_go | hits
            s = following
        return s, let_go, start, begun

    def _locate(self, s: _Four, u: Actions, p: Params) -> tuple[_Four, _Scalars]:
        """State and time after ``s`` at which the sling is at the commanded angle, within one step of the solver."""
        h = self.dt / self.substeps
        fixed, command = s.detach(), u.detach()
        constants = {name: value.detach() for name, value in p.items()}
        share = 0.5 * torch.ones_like(fixed[:, 0])  # of the step
        for _ in range(_NEWTON):
            there = self.solver.step(self.swing, 0.0, fixed, command, constants, h * share)
            # The sling falls where it crosses; where there is no crossing, this is not used.
            off = (there[:, 1] - command[:, 0]) / there[:, 3].clamp_max(-_SLOWEST)
            share = (share - off / h).clamp(0.0, 1.0)
        time = h * share
        there = self.solver.step(self.swing, 0.0, s, u, p, time)
        slope = self.swing(0.0, there, u, p).detach()
        # Zero in value; its gradient is that of the time of the crossing (implicit function theorem).
        later = -(there[:, 1] - u[:, 0]) / slope[:, 1].clamp_max(-_SLOWEST)
        return there + slope * later.unsqueeze(-1), time + later

    def cost(self, x: States, u: Actions, p: Params) -> Costs:
        """``sqrt(1 + (miss / 2 m)²) - 1`` from the release on, 2 an interval before it, and a small term for effort.

        The miss is that of the predicted or actual landing point.  Effort:
        ``0.02 (torque / 200 N·m)² + 0.001 (release angle)²``.
        """
        miss = (landing(x[:, 5:9], p) - x[:, 9]) / 2
        effort = 0.02 * (u[..., 1] / MAX_TORQUE) ** 2 + 0.001 * u[..., 0] ** 2
        return torch.where(x[:, 0] > 0.5, torch.sqrt(1 + miss**2) - 1, _WAITING) + effort

    def observe(self, x: States) -> Observations:
        """``[released, beam, sling, rates, landing point (0 before the release), target]``.

        The landing point is computed with the simulator's own ``g``, not one given to ``step``.
        """
        loose = x[:, :1] > 0.5
        point = landing(x[:, 5:9], {"g": x.new_full((), self.constants["g"].value)})
        return torch.cat((x[:, :5], torch.where(loose, point.unsqueeze(-1), 0.0), x[:, 9:]), dim=-1)

    def success(self, states: EpisodeStates) -> Successes:
        """At the end the stone is released and its predicted or actual landing within 2 m of the target."""
        x = states[-1]
        miss = landing(x[:, 5:9], self.params(x)) - x[:, 9]
        return (x[:, 0] > 0.5) & (miss.abs() < MISSED)

    def draw(self, x: Floats, u: Floats) -> list[Shape]:
        """The machine at true size and enlarged four times, its torque, and the stone with its path."""
        v = {name: constant.value for name, constant in self.constants.items()}
        shapes: list[Shape] = [*self._machine(x, (0.0, v["axle_height"]), 1.0)]
        shapes += self._machine(x, _CLOSE_UP, 4.0)
        if x[0] > 0.5:
            px, py, vx, vy = (float(value) for value in x[5:9])
            left = (vy + math.sqrt(max(vy * vy + 2 * v["g"] * max(py, 0.0), 0.0))) / v["g"]
            times = [left * i / 40 for i in range(41)]
            path = [(px + vx * t, py + vy * t - 0.5 * v["g"] * t * t) for t in times]
            shapes += [Line(path, "ground", 0.2), Circle((px, max(py, 0.0)), 0.7, "joint")]
        share = min(max(float(u[1]) / MAX_TORQUE, -1.0), 1.0)
        turn = [math.pi / 2 + share * 1.2 * i / 12 for i in range(13)]
        arc = [(_CLOSE_UP[0] + 5.0 * math.cos(a), _CLOSE_UP[1] + 5.0 * math.sin(a)) for a in turn]
        shapes.append(Line(arc, "force", 0.5))
        goal = float(x[9])
        shapes.append(Line([(goal, 0.0), (goal, 5.0)], "target", 0.3))
        shapes.append(Polygon([(goal, 5.0), (goal, 2.6), (goal + 3.4, 3.8)], "target"))
        if x[0] < 0.5:
            shapes.append(Text((52.0, 34.0), f"release at {math.degrees(float(u[0])):.0f}°", 2.4))
        return shapes

    def _machine(self, x: Floats, axle: tuple[float, float], scale: float) -> list[Shape]:
        v = {name: constant.value for name, constant in self.constants.items()}

        def from_axle(length: float, angle: float, start: tuple[float, float] = axle) -> tuple[float, float]:
            return start[0] + scale * length * math.cos(angle), start[1] + scale * length * math.sin(angle)

        beam, sling = float(x[1]), float(x[2])
        tip, end = from_axle(v["long_arm"], beam), from_axle(-v["short_arm"], beam)
        shapes: list[Shape] = [Line([end, tip], "limb", 0.2 * scale), Circle(end, 0.35 * scale, "body")]
        if x[0] < 0.5:
            pouch = from_axle(v["sling_length"], beam + sling, tip)
            shapes += [Line([tip, pouch], "ink", 0.05 * scale), Circle(pouch, 0.15 * scale + 0.2, "joint")]
        return [*shapes, Circle(axle, 0.1 * scale, "ink")]

    def scenery(self) -> list[Shape]:
        """The ground, with a mark every 10 m, and the frame."""
        top = self.constants["axle_height"].value
        shapes: list[Shape] = [Polygon([(-8.0, 0.0), (78.0, 0.0), (78.0, -1.0), (-8.0, -1.0)], "ground")]
        for metres in range(0, 80, 10):
            shapes.append(Text((metres - 0.8, -3.2), str(metres), 1.8))
            shapes.append(Line([(metres, 0.0), (metres, -1.0)], "ink"))
        shapes.append(Line([(-1.5, 0.0), (0.0, top), (1.5, 0.0)], "ground", 0.3))
        x, y = _CLOSE_UP
        shapes.append(Line([(x - 4.0, y - 14.0), (x, y), (x + 4.0, y - 14.0)], "faint", 0.8))
        return shapes


def in_sling(s: _Four, p: Params) -> _Four:
    """Position and velocity of the stone in the sling, ``[x, y, velocities]``."""
    beam, sling, beam_rate, sling_rate = s.unbind(-1)
    arm, r, turned, turning = p["long_arm"], p["sling_length"], beam + sling, beam_rate + sling_rate
    along = arm * torch.cos(beam) + r * torch.cos(turned)
    up = arm * torch.sin(beam) + r * torch.sin(turned)
    vx = -arm * torch.sin(beam) * beam_rate - r * torch.sin(turned) * turning
    vy = arm * torch.cos(beam) * beam_rate + r * torch.cos(turned) * turning
    return torch.stack((along, p["axle_height"] + up, vx, vy), dim=-1)


def time_to_land(stone: _Four, p: Params) -> _Scalars:
    """Time s until a flying stone lands: the later root of ``y + vy t - g t²/2``; 0 for one at rest on the ground."""
    _, y, _, vy = stone.unbind(-1)
    square = vy * vy + 2 * p["g"] * y.clamp_min(0.0)
    moving = square > 0
    root = torch.where(moving, torch.sqrt(torch.where(moving, square, 1.0)), 0.0)
    return (vy + root) / p["g"]


def landing(stone: _Four, p: Params) -> _Scalars:
    """The landing point of the stone, m."""
    return stone[:, 0] + stone[:, 2] * time_to_land(stone, p)


def fly(stone: _Four, time: _Scalars, p: Params) -> _Four:
    """The stone after a time in flight, or at rest where it has landed before."""
    x, y, vx, vy = stone.unbind(-1)
    left = time_to_land(stone, p)
    down = left <= time
    t = torch.minimum(left, time)
    y, vy = y + vy * t - 0.5 * p["g"] * t * t, vy - p["g"] * t
    moved = (torch.where(down, 0.0, y), torch.where(down, 0.0, vx), torch.where(down, 0.0, vy))
    return torch.stack((x + vx * t, *moved), dim=-1)
