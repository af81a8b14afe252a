"""A hang glider that has to find the middle of a thermal and climb in it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robotics_envs.base import Actions, Box, Costs, Env, Observations, Parameter, Params, States, Success
from robotics_envs.drawing import Circle, Floats, Line, Point, Polygon, Shape, View
from solvers.methods.runge_kutta import RK4

_BULIRSCH = "Bulirsch, Nerz, Pesch, von Stryk, Combining Direct and Indirect Methods in Optimal Control, 1993"
LIFT = (0.2, 1.4)  # lift coefficients; the upper one from the source
MAX_BANK_RATE = 0.6  # rad/s, this task's choice
FASTEST = 30.0  # m/s of airspeed, beyond which the aerodynamic forces grow in proportion to it
_STANDING = 1e-4  # m²/s², keeps directions and their gradients finite where there is no airspeed
JUDGED = 30.0  # s at the end of an episode, over which success is judged
SINK = 2.0  # m/s, the most that a success may climb slower than the air in the middle of the thermal


class Glider(Env):
    """A hang glider is released beside a thermal and has to gain as much energy as it can.

    State ``[x m, y m, height m, velocity_x m/s, velocity_y m/s, climb m/s, bank rad, strength m/s, radius m]``,
    action ``[lift coefficient, bank rate rad/s]`` in 0.2..1.4 and ±0.6, observation ``[ahead m, right m, speed m/s,
    climb m/s, cos bank, sin bank, strength m/s, radius m]``: the middle of the thermal as seen along the flight, and
    the speed over the ground.  World frame: the thermal stands in x = y = 0 and z is up; in wind, the frame that
    drifts with it.  A positive bank turns the flight to the right (clockwise from above); it is an angle and not
    wrapped.  Strength and radius of the thermal are constant in an episode.

    Equations: a point mass under weight, lift perpendicular to the velocity relative to the air and turned about it
    by the bank, and drag against it (Beeler, Moerder, Cox, A Flight Dynamics Model for a Small Glider in Ambient
    Winds, NASA TM-2003-212665).  In the frame of the ground, Newton's law has no further term for the gradient of the
    wind.  The glider is that of Bulirsch et al., with its parabolic drag polar.  The thermal rises at
    ``strength exp(-(r/radius)²)`` at every height (Wharington, Herszberg, Control of a High Endurance Unmanned Air
    Vehicle, ICAS 1998); the air around it does not sink.  The lift coefficient follows the pilot without lag.

    Nothing but the task depends on the height; there is no ground, and no stall beyond the limit of the lift
    coefficient.  Above an airspeed of 30 m/s, which no useful flight reaches, the forces grow in proportion to it and
    not to its square, to keep wild starts finite.  Gradients are cut by clipping the actions only.
    """

    name = "glider"
    state_names = (
        *("x", "y", "height", "velocity_x", "velocity_y", "climb", "bank"),
        *("strength", "radius"),
    )
    angle_names = ("bank",)
    observation_names = ("ahead", "right", "speed", "climb", "cos_bank", "sin_bank", "strength", "radius")
    parameters = (
        Parameter("g", 9.81, "m/s²", low=0.0, source="standard gravity, rounded"),
        Parameter("mass", 100.0, "kg", low=0.0, source=_BULIRSCH),
        Parameter("area", 14.0, "m², of the wing", low=0.0, source=_BULIRSCH),
        Parameter("density", 1.13, "kg/m³", low=0.0, source=_BULIRSCH),
        Parameter("drag", 0.034, "drag coefficient without lift", low=0.0, source=_BULIRSCH),
        Parameter(
            "induced", 0.069662, "drag coefficient by squared lift coefficient", low=0.0, source=_BULIRSCH
        ),
    )
    action_box = Box((LIFT[0], -MAX_BANK_RATE), (LIFT[1], MAX_BANK_RATE))
    start_box = Box(
        (0.0, -math.pi, 0.0, 9.0, -math.pi, -2.0, -0.3, 2.5, 60.0),
        (1.0, math.pi, 0.0, 14.0, math.pi, 0.0, 0.3, 4.0, 100.0),
    )
    state_box = Box(
        (-180.0, -180.0, -50.0, -15.0, -15.0, -4.0, -1.0, 2.5, 60.0),
        (180.0, 180.0, 200.0, 15.0, 15.0, 4.0, 1.0, 4.0, 100.0),
    )
    dt = 0.5
    episode_steps = 200
    view = View((-220.0, -190.0), (220.0, 190.0))
    solver = RK4()
    substeps = 2
    success_criterion = Success(
        "gains energy height in the last half minute at the thermal's strength less 2 m/s, or faster",
        0.9,
        "the project's choice",
    )

    def updraft(self, x: States) -> Tensor:
        """The velocity of the air upwards, m/s."""
        right, up, *_, strength, radius = x.unbind(-1)
        return strength * torch.exp(-(right**2 + up**2) / radius**2)

    def force(self, x: States, u: Actions, p: Params) -> Tensor:
        """Lift and drag, N, ``[B, 3]``."""
        vx, vy, vz, bank = x[..., 3:7].unbind(-1)
        vz = vz - self.updraft(x)  # relative to the air from here on
        level = vx**2 + vy**2
        airspeed = torch.sqrt(level + vz**2 + _STANDING)
        # Half density times area times airspeed: the force at a coefficient and a component of velocity of 1.
        pressure = 0.5 * p["density"] * p["area"] * airspeed.clamp_max(FASTEST)
        lift = pressure * u[..., 0]
        drag = pressure * (p["drag"] + p["induced"] * u[..., 0] ** 2)
        # The lift is in the vertical plane of the flight, turned by the bank towards the horizontal unit vector to the
        # right of it, (vy, -vx) times ``across``.
        across = torch.rsqrt(level + _STANDING)
        upright, sideways = torch.cos(bank) * lift, torch.sin(bank) * lift * airspeed
        forces = (
            (sideways * vy - upright * vx * vz) * across - drag * vx,
            (-sideways * vx - upright * vy * vz) * across - drag * vy,
            upright * level * across - drag * vz,
        )
        return torch.stack(forces, dim=-1)

    def dynamics(self, t: Any, x: States, u: Actions, p: Params) -> States:
        """d[position, velocity, bank, thermal]/dt: Newton's law under lift, drag and weight."""
        velocity, constant = x[..., 3:6], x[..., 7:]
        ax, ay, az = (self.force(x, u, p) / p["mass"].unsqueeze(-1)).unbind(-1)
        accelerations = torch.stack((ax, ay, az - p["g"], u[..., 1]), dim=-1)
        return torch.cat((velocity, accelerations, torch.zeros_like(constant)), dim=-1)

    def energy_height(self, x: Tensor) -> Tensor:
        """Height plus ``velocity² / (2 g)``, m, for states ``[..., n]``; with the constant g."""
        return x[..., 2] + (x[..., 3:6] ** 2).sum(-1) / (2 * self.constants["g"].value)

    def cost(self, x: States, u: Actions, p: Params) -> Costs:
        """The energy height that is being lost, m in an interval, plus ``0.02 (bank rate / 0.6 rad/s)²``.

        It changes by the power of lift and drag over the weight, ``force · velocity / (mass g)``.
        """
        power = (self.force(x, u, p) * x[..., 3:6]).sum(-1)
        return -self.dt * power / (p["mass"] * p["g"]) + 0.02 * (u[..., 1] / MAX_BANK_RATE) ** 2

    def success(self, states: Float[Tensor, "times batch n"]) -> Bool[Tensor, " batch"]:
        """Whether the energy height grows by at least ``strength - 2 m/s`` on the mean of the last half minute."""
        before, after = states[-round(JUDGED / self.dt) - 1], states[-1]
        rate = (self.energy_height(after) - self.energy_height(before)) / JUDGED
        return rate >= after[..., 7] - SINK

    def observe(self, x: States) -> Observations:
        """``[ahead, right, speed, climb, cos bank, sin bank, strength, radius]``; turns about the thermal keep it."""
        right, up, _, vx, vy, climb, bank, strength, radius = x.unbind(-1)
        speed = torch.sqrt(vx**2 + vy**2 + _STANDING)
        ahead, beside = -(right * vx + up * vy) / speed, (up * vx - right * vy) / speed
        return torch.stack(
            (ahead, beside, speed, climb, torch.cos(bank), torch.sin(bank), strength, radius), dim=-1
        )

    def reset(self, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """At 1 to 1.8 radii from the middle, in any direction and flying in any; ``[batch, 9]``."""
        drawn = super().reset(batch, generator, dtype)
        share, around, height, speed, heading, climb, bank, strength, radius = drawn.unbind(-1)
        distance = radius * (1 + 0.8 * share)
        return torch.stack(
            (
                distance * torch.cos(around),
                distance * torch.sin(around),
                height,
                speed * torch.cos(heading),
                speed * torch.sin(heading),
                *(climb, bank, strength, radius),
            ),
            dim=-1,
        )

    def draw(self, x: Floats, u: Floats) -> list[Shape]:
        """The thermal and the glider from above, six times its size, and a bar of its height since the release."""
        right, up, height, vx, vy, _, bank, _, radius = (float(value) for value in x)
        way = np.array((vx, vy)) / max(math.hypot(vx, vy), 1e-6)
        across = np.array((way[1], -way[0]))
        where = np.array((right, up))

        def at(along: float, beside: float) -> Point:
            return where + along * way + beside * math.cos(bank) * across

        # The wing that is lower is the darker one.
        colours = ("limb", "hot") if bank > 0 else ("hot", "limb")
        bar = float(np.clip(0.7 * height, -180.0, 180.0))
        return [
            *(Circle((0.0, 0.0), share * radius, "cold", filled=False) for share in (0.5, 1.0, 1.5)),
            *(
                Polygon([at(12, 0), at(-8, side * 30), at(-3, 0)], colour)
                for side, colour in zip((-1, 1), colours, strict=True)
            ),
            Line([at(12, 0), at(-6, 0)], "ink", 2.0),
            Line([(-205.0, 0.0), (-205.0, bar)], "target", 8.0),
        ]

    def scenery(self) -> list[Shape]:
        """The middle of the thermal, and the height of the release."""
        return [Circle((0.0, 0.0), 3.0, "cold"), Line([(-215.0, 0.0), (-195.0, 0.0)], "ground", 2.0)]
