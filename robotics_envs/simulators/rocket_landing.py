"""The powered landing of a rocket with decreasing mass, the DC-X, in a vertical plane."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

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
from robotics_envs.drawing import Floats, Line, Polygon, Shape, View
from solvers.methods.runge_kutta import RK4

_UPDATE = "Vanderbilt, DC-X Updates, Space Access Society 1993"
_WIKI = "Wikipedia, McDonnell Douglas DC-X"
_CONE = "uniform cone, the vehicle's shape, 12 m high on a base of 4.1 m (DC-X Updates: 40 ft, 13 ft)"
STANDARD_GRAVITY = 9.80665  # m/s², exact by definition; turns a specific impulse into a velocity
MAX_GIMBAL = 8 * math.pi / 180  # rad, DC-X Updates
MIN_THROTTLE = 0.3  # DC-X Updates
HEIGHT, BASE = 12.0, 4.1  # m
NEAR = 5.0  # m from the pad, within which the observation has a finer scale
LANDED = 3.0  # m from the goal and below the ground, for success
UPRIGHT = 3.0  # degrees
STILL = 0.5  # m/s


class RocketLanding(Env):
    """A falling and tilted DC-X has to come to rest upright with its feet on the pad.

    State ``[x m, z m, tilt rad, velocity_x m/s, velocity_z m/s, rate rad/s, propellant kg]``, action
    ``[throttle, gimbal rad]`` in 0.3..1 and ±8°, observation ``[x, z, cos tilt, sin tilt, velocity_x,
    velocity_z, rate, propellant, near_x, near_z]``, where the last two are x and z over ``sqrt(d² + 25 m²)``
    at distance d: far away the direction, near the pad the position on a finer scale.  World frame: x to the
    right, z up; ``x = z = 0`` is the centre of mass of a vehicle that stands in the middle of the pad.  The
    tilt is 0 upright, positive when the nose leans towards +x, and not wrapped.  The gimbal turns the
    thrust from the vehicle's axis in the same sense, so a positive one pushes the tail to +x and the
    nose to -x.

    Four engines act as one.  Equations: thrust and mass flow as in Açıkmeşe and Ploen, Convex
    Programming Approach to Powered Descent Guidance for Mars Landing, JGCD 30(5), 2007;
    the rigid body as in Szmuk and Açıkmeşe, Successive Convexification for 6-DoF Mars Rocket Powered
    Landing with Free-Final-Time, 2018.  No air.  Thrust follows the throttle without lag; near the end of the
    propellant it fades out (``flame_out``), and so does the mass flow.  The moment of inertia is proportional
    to the mass and the centre of mass is fixed, as if propellant left the whole body evenly; the small jet damping is
    neglected.

    The engines cannot be stopped and there is no contact: the ground is a cost on being below it.
    The task is to reach and hold height 0 at rest.  Termination at the first contact would make the return
    discontinuous, and with positive costs it would reward an early crash.

    Two gradients are cut: by clipping the action, and with respect to the propellant where it is
    negative.
    """

    name = "rocket_landing"
    state_names = ("x", "z", "tilt", "velocity_x", "velocity_z", "rate", "propellant")
    angle_names = ("tilt",)
    observation_names = (
        *("x", "z", "cos_tilt", "sin_tilt", "velocity_x", "velocity_z", "rate", "propellant"),
        *("near_x", "near_z"),
    )
    parameters = (
        Parameter("g", 9.81, "m/s²", low=0.0, source="standard gravity, rounded"),
        Parameter("dry_mass", 9100.0, "kg", low=0.0, source=_WIKI),
        Parameter("max_thrust", 240e3, "N, of all engines", low=0.0, source=f"{_WIKI}: four of 60 kN"),
        Parameter("specific_impulse", 373.0, "s", low=0.0, source="Wikipedia, RL10, row RL10A-5; in vacuum"),
        Parameter("lever", 3.0, "m from the gimbal to the centre of mass", low=0.0, source=_CONE),
        Parameter("gyration", 2.4557, "m, radius of gyration", low=0.0, source=f"{_CONE}: 3/80 (h² + base²)"),
        Parameter(
            "flame_out",
            30.0,
            "kg of propellant at which 63 % of the thrust is left",
            low=0.0,
            source="chosen",
        ),
    )
    action_box = Box((MIN_THROTTLE, -MAX_GIMBAL), (1.0, MAX_GIMBAL))
    start_box = Box((-10.0, 25.0, -0.2, -3.0, -10.0, -0.1, 1000.0), (10.0, 40.0, 0.2, 3.0, -3.0, 0.1, 2000.0))
    state_box = Box((-20.0, -5.0, -0.6, -8.0, -14.0, -0.8, 300.0), (20.0, 45.0, 0.6, 8.0, 6.0, 0.8, 2200.0))
    dt = 0.25
    episode_steps = 80
    view = View((-30.0, -6.0), (30.0, 54.0))
    success_criterion = Success(
        words=f"within {LANDED:g} m of the goal, tilt below {UPRIGHT:g}° and speed below {STILL} m/s at the end, "
        f"and never {LANDED:g} m below the ground",
        share=MOST_STARTS,
        source="this project's choice",
    )
    solver = RK4()

    def thrust(self, x: States, u: Actions, p: Params) -> Costs:
        """The thrust in N, ``[B]``: throttle times maximum, fading out with the last of the propellant."""
        left = x[:, 6].clamp_min(0.0)
        return p["max_thrust"] * u[:, 0] * (1 - torch.exp(-left / p["flame_out"]))

    def mass(self, x: States, p: Params) -> Costs:
        """kg, ``[B]``, of vehicle and propellant."""
        return p["dry_mass"] + x[:, 6].clamp_min(0.0)

    def dynamics(self, t: Any, x: States, u: Actions, p: Params) -> States:
        """d[x, z, tilt, velocities, rate, propellant]/dt; the propellant leaves at ``thrust / (Isp g0)``."""
        _, _, tilt, velocity_x, velocity_z, rate, _ = x.unbind(-1)
        thrust, mass, gimbal = self.thrust(x, u, p), self.mass(x, p), u[:, 1]
        return torch.stack(
            (
                velocity_x,
                velocity_z,
                rate,
                thrust * torch.sin(tilt + gimbal) / mass,
                thrust * torch.cos(tilt + gimbal) / mass - p["g"],
                -p["lever"] * thrust * torch.sin(gimbal) / (mass * p["gyration"] ** 2),
                -thrust / (p["specific_impulse"] * STANDARD_GRAVITY),
            ),
            dim=-1,
        )

    def cost(self, x: States, u: Actions, p: Params) -> Costs:
        """Distance, velocity, tilt, gimbal, and height below the ground.

        With the distance d from rest on the pad in m: ``0.1 (sqrt(1 + d²) - 1) + 0.01 d² + 0.1 min(z, 0)²
        + 0.02 speed² + 2 (1 - cos tilt) + 0.5 rate² + 0.05 (gimbal/8°)²``.
        """
        right, up, tilt, velocity_x, velocity_z, rate, _ = x.unbind(-1)
        square = right**2 + up**2
        far = 0.1 * (torch.sqrt(1 + square) - 1) + 0.01 * square + 0.1 * up.clamp_max(0.0) ** 2
        moving = 0.02 * (velocity_x**2 + velocity_z**2) + 0.5 * rate**2
        return far + moving + 2 * (1 - torch.cos(tilt)) + 0.05 * (u[:, 1] / MAX_GIMBAL) ** 2

    def observe(self, x: States) -> Observations:
        """``[x, z, cos tilt, sin tilt, velocity_x, velocity_z, rate, propellant, near_x, near_z]``."""
        right, up, tilt, *rest = x.unbind(-1)
        closeness = torch.rsqrt(right**2 + up**2 + NEAR**2)
        near = (right * closeness, up * closeness)
        return torch.stack((right, up, torch.cos(tilt), torch.sin(tilt), *rest, *near), dim=-1)

    def success(self, states: EpisodeStates) -> Successes:
        """Within 3 m of the goal, upright within 3°, slower than 0.5 m/s at the end, and never 3 m below the ground."""
        right, up, tilt, velocity_x, velocity_z, _, _ = states[-1].unbind(-1)
        upright = torch.cos(tilt) > math.cos(math.radians(UPRIGHT))
        still = velocity_x**2 + velocity_z**2 < STILL**2
        above = (states[..., 1] > -LANDED).all(0)
        return (right**2 + up**2 < LANDED**2) & upright & still & above

    def draw(self, x: Floats, u: Floats) -> list[Shape]:
        """The vehicle, 12 m high, its flame along the gimballed thrust, and a bar of propellant."""
        low, tip = -self.constants["lever"].value, HEIGHT - self.constants["lever"].value
        axis = np.array((math.sin(x[2]), math.cos(x[2])))
        across = np.array((axis[1], -axis[0]))
        centre = np.array((x[0], x[1] - low + 1.0))  # the pad is drawn at the height of the feet

        def at(right: float, up: float) -> Floats:
            return centre + right * across + up * axis

        half = BASE / 2
        fuel = max(float(x[6]), 0.0)
        burning = 1 - math.exp(-fuel / self.constants["flame_out"].value)
        length = 9.0 * float(u[0]) * burning
        angle = float(x[2] + u[1])
        flame = at(0, low) - length * np.array((math.sin(angle), math.cos(angle)))
        full = self.state_box.high[6]
        body = [
            at(-half, low),
            at(half, low),
            at(0.45 * half, tip - 2.5),
            at(0, tip),
            at(-0.45 * half, tip - 2.5),
        ]
        return [
            Polygon([at(-0.6 * half, low), at(0.6 * half, low), flame], "hot"),
            Polygon([at(-0.3 * half, low), at(0.3 * half, low), 0.5 * (at(0, low) + flame)], "limb"),
            *(
                Line([at(side * half, low + 1.0), at(side * 1.5 * half, low - 1.0)], "ink", 0.5)
                for side in (-1, 1)
            ),
            Polygon(body, "body"),
            Line([(-28.0, 28.0), (-28.0, 28.0 + 20.0 * fuel / full)], "target", 1.0),
        ]

    def scenery(self) -> list[Shape]:
        """The ground, the pad, and the frame of the propellant bar."""
        return [
            Polygon([(-30.0, -6.0), (30.0, -6.0), (30.0, 0.0), (-30.0, 0.0)], "ground"),
            Polygon([(-8.0, -1.2), (8.0, -1.2), (8.0, 0.0), (-8.0, 0.0)], "target"),
            Line([(-28.0, 28.0), (-28.0, 48.0)], "faint", 1.6),
        ]
