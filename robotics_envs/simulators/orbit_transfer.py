"""A low-thrust transfer between circular orbits about the Sun, in Bryson and Ho's scaled units."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
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
from robotics_envs.drawing import Circle, Floats, Line, Point, Polygon, Shape, Text, View
from solvers.methods.runge_kutta import RK4

_BOOK = "Bryson and Ho, Applied Optimal Control (1975), section 2.5, Earth to Mars"
MARS = 1.524  # astronomical units
RADII = (0.2, 4.0)  # the stops of the radius
MAX_SPEED = 3.0  # the stop of both velocities
DRY_MASS = 0.4  # this task's choice: what is left without propellant
_LAST_FUEL = 0.02  # mass above the dry one over which the thrust fades
RADIUS_ERROR = 0.02  # of the target radius, for success
ROUND = 0.03  # eccentricity, for success


def to_disc(u: Tensor) -> tuple[Tensor, Tensor]:
    """A command ``[B, 2]`` brought to the unit disc by shortening it: its two components, each ``[B]``."""
    radial, tangential = u.unbind(-1)
    shorter = torch.rsqrt((radial * radial + tangential * tangential).clamp_min(1.0))
    return shorter * radial, shorter * tangential


class OrbitTransfer(Env):
    """A spacecraft with a weak engine has to spiral from the Earth's orbit to that of Mars, and to stay there.

    State ``[radius, radial velocity, tangential velocity, angle rad, mass]``, action ``[radial,
    tangential]`` thrust as fractions of the full one, observation ``[radius, radial velocity, tangential
    velocity, mass]``.  Polar coordinates in the plane about the Sun, counter-clockwise; the angle is not
    wrapped.  Units are scaled: length 1 AU, time one year over 2 pi (58.13 days; ``dt`` is in it, not in
    seconds), velocity that of the Earth on its circular orbit, and mass that at departure.  Both orbits
    are circles in one plane; planets do not attract, and where Mars is on its orbit does not matter.

    A command longer than 1 acts as the one of length 1 in its direction, which cuts the gradient along
    it.  Thrust and mass flow fall together to zero over the last 0.02 of mass above the dry one, 0.4.
    ``step`` clamps the radius to 0.2 .. 4 and the velocities to ±3, far outside of any transfer, to keep a fall
    towards the Sun finite; the clamps cut the gradient where they act.
    """

    name = "orbit_transfer"
    state_names = ("radius", "radial_velocity", "tangential_velocity", "angle", "mass")
    angle_names = ("angle",)
    observation_names = ("radius", "radial_velocity", "tangential_velocity", "mass")
    parameters = (
        Parameter("mu", 1.0, "AU³/time²", low=0.0, source="the Sun's, in these units"),
        Parameter("thrust", 0.1405, "mass AU/time²", low=0.0, source=f"{_BOOK}: 0.85 lbf on 10,000 lb"),
        Parameter("mass_rate", 0.0749, "mass/time", low=0.0, source=f"{_BOOK}: 12.9 lb a day"),
        Parameter("target", MARS, "AU", low=0.0, source="semi-major axis of Mars, rounded"),
    )
    action_box = Box.symmetric(1.0, 1.0)
    start_box = Box((0.97, -0.02, 0.97, -math.pi, 0.95), (1.03, 0.02, 1.03, math.pi, 1.0))
    state_box = Box((0.9, -0.3, 0.7, -math.pi, 0.6), (1.7, 0.4, 1.1, math.pi, 1.0))
    dt = 0.15
    episode_steps = 50
    view = View((-2.0, -1.8), (2.0, 1.8))
    solver = RK4()
    substeps = 2
    success_criterion = Success(
        words=f"radius within {RADIUS_ERROR:.0%} of the target and eccentricity < {ROUND} at the end",
        share=MOST_STARTS,
        source="this project's choice",
    )

    def dynamics(self, t: Any, x: States, u: Actions, p: Params) -> States:
        """d[radius, velocities, angle, mass]/dt: Newton in polar coordinates, Bryson and Ho's eq. of section 2.5."""
        radius, outward, along, _, mass = x.unbind(-1)
        throttle = ((mass - DRY_MASS) / _LAST_FUEL).clamp(0.0, 1.0)
        push = p["thrust"] * throttle / mass.clamp_min(DRY_MASS)
        radial, tangential = to_disc(u)
        # At zero command the square root has no finite derivative; 1e-12 adds a flow of 1e-6.
        length = torch.sqrt(radial * radial + tangential * tangential + 1e-12)
        r = radius.clamp_min(RADII[0])  # within a step the radius may pass its bound
        rates = (
            outward,
            along * along / r - p["mu"] / (r * r) + push * radial,
            -outward * along / r + push * tangential,
            along / r,
            -p["mass_rate"] * throttle * length,
        )
        return torch.stack(rates, dim=-1)

    def step(self, x: States, u: Actions, p: Params) -> tuple[States, Costs]:
        """One control interval, after which radius and velocities are clamped."""
        following, cost = super().step(x, u, p)
        radius, velocities, rest = following.split((1, 2, 2), dim=-1)
        stopped = (radius.clamp(*RADII), velocities.clamp(-MAX_SPEED, MAX_SPEED), rest)
        return torch.cat(stopped, dim=-1), cost

    def cost(self, x: States, u: Actions, p: Params) -> Costs:
        """``|d| + 0.05 |u|`` with ``d² = 50 (h/h* - 1)² + 5 e²``: distance of the orbit and propellant use.

        h is the angular momentum by mass, ``h* = sqrt(mu target)``, e the eccentricity; both only change
        under thrust.  Lengths ``|v|`` are rounded off to ``sqrt(v² + 0.01) - 0.1``, and that of ``u`` also
        counts what exceeds the disc.
        """
        radius, outward, along, _, _ = x.unbind(-1)
        momentum = radius * along
        behind = momentum * torch.rsqrt(p["mu"] * p["target"]) - 1
        towards, across = along * momentum / p["mu"] - 1, outward * momentum / p["mu"]
        away = 50 * behind**2 + 5 * (towards**2 + across**2)
        return _rounded(away) + 0.05 * _rounded((u * u).sum(-1))

    def observe(self, x: States) -> Observations:
        """``[radius, radial velocity, tangential velocity, mass]``; the dynamics does not depend on the angle."""
        radius, outward, along, _, mass = x.unbind(-1)
        return torch.stack((radius, outward, along, mass), dim=-1)

    def success(self, states: EpisodeStates) -> Successes:
        """The radius is within 2 % of the target and the eccentricity below 0.03 at the end."""
        radius, outward, along, _, _ = states[-1].unbind(-1)
        p = self.params(radius)
        momentum = radius * along
        towards, across = along * momentum / p["mu"] - 1, outward * momentum / p["mu"]
        near = (radius / p["target"] - 1).abs() < RADIUS_ERROR
        return near & (towards**2 + across**2 < ROUND**2)

    def draw(self, x: Floats, u: Floats) -> list[Shape]:
        """The spacecraft, its flame, its present orbit, and the propellant left."""
        radius, outward, along, angle, mass = (float(value) for value in x)
        mu = self.constants["mu"].value
        up = np.array((math.cos(angle), math.sin(angle)))
        ahead = np.array((-up[1], up[0]))
        where = radius * up
        shapes: list[Shape] = []
        momentum = radius * along
        towards, across = along * momentum / mu - 1, outward * momentum / mu
        # r = h²/mu / (1 + e cos(true anomaly)), with the anomaly counted from the spacecraft's position.
        turn = np.linspace(0.0, 2 * math.pi, 121)
        denominator = 1 + towards * np.cos(turn) + across * np.sin(turn)
        if denominator.min() > 0.1:
            orbit = momentum**2 / mu / denominator
            shapes.append(Line(_polar(orbit, angle + turn), "cold"))
        push = np.asarray(u, dtype=float) / max(1.0, float(np.hypot(*u)))
        thrust = push[0] * up + push[1] * ahead
        side = 0.12 * np.array((-thrust[1], thrust[0]))
        flame = (where + side, where - side, where - 0.45 * thrust)
        shapes.append(Polygon([tuple(corner) for corner in flame], "hot"))
        shapes.append(Circle(tuple(where), 0.055, "body"))
        full = float(np.clip((mass - DRY_MASS) / (1 - DRY_MASS), 0.0, 1.0))
        shapes.append(Line([(-1.85, -1.65), (-1.85 + full, -1.65)], "limb", 0.06))
        return shapes

    def scenery(self) -> list[Shape]:
        """The Sun, the orbit of departure and the target."""
        turn = np.linspace(0.0, 2 * math.pi, 121)
        target = self.constants["target"].value
        return [
            Line(_polar(np.ones_like(turn), turn), "ground", 0.01),
            Line(_polar(np.full_like(turn, target), turn), "target", 0.02),
            Circle((0.0, 0.0), 0.12, "limb"),
            Line([(-1.85, -1.65), (-0.85, -1.65)], "faint", 0.06),
            Text((-1.85, -1.57), "propellant", 0.1),
        ]


def _rounded(square: Tensor) -> Tensor:
    return torch.sqrt(square + 0.01) - 0.1


def _polar(radii: Floats, angles: Floats) -> list[Point]:
    return [(float(r * math.cos(a)), float(r * math.sin(a))) for r, a in zip(radii, angles, strict=True)]
