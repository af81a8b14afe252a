"""A quadrotor in a vertical plane, recovering to hover from any attitude."""

from __future__ import annotations

import math
from typing import Any

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
from robotics_envs.drawing import Circle, Floats, Line, Polygon, Shape, View
from robotics_envs.simulators.quadrotor import MAX_RATE
from solvers.methods.runge_kutta import RK4

_THESIS = "Förster, System Identification of the Crazyflie 2.0 Nano Quadrocopter, ETH Zürich 2015"
NEAR = 0.3  # m from the origin, for success
UPRIGHT = 3.0  # degrees
STILL = 0.05  # m/s


class QuadrotorPlanar(Env):
    """A Crazyflie 2.x that moves in a vertical plane, released at any tilt, has to hover at the origin.

    State ``[x m, z m, tilt rad, velocity_x m/s, velocity_z m/s, rate rad/s]``, action ``[left, right]``
    in 0..1, observation ``[x, z, cos tilt, sin tilt, velocity_x, velocity_z, rate]``.  World frame: x to
    the right, z up.  The tilt is 0 upright, positive when the vehicle leans towards +x (clockwise as
    drawn), and not wrapped.  A rotor stands for the pair of the X-shaped vehicle's motors on that side;
    its action is their thrust as a fraction of ``max_thrust`` each.  The thrust follows the action
    without lag, unlike in ``quadrotor``.  No drag.

    Equations: Tedrake, Underactuated Robotics, "The planar quadrotor", with the opposite sign of the
    angle.  ``step`` clamps the rate to the range of the gyroscope, ±2000 °/s, after the solver; that cuts
    the gradient of the rate where it acts, as clipping the action does.
    """

    name = "quadrotor_planar"
    state_names = ("x", "z", "tilt", "velocity_x", "velocity_z", "rate")
    angle_names = ("tilt",)
    observation_names = ("x", "z", "cos_tilt", "sin_tilt", "velocity_x", "velocity_z", "rate")
    parameters = (
        Parameter("g", 9.81, "m/s²", source="standard gravity, rounded"),
        Parameter("mass", 0.027, "kg", low=0.0, source="Bitcraze, Crazyflie 2.0 data sheet"),
        Parameter("inertia", 16.655602, "kg mm²", low=0.0, source=f"{_THESIS}; about the pitch axis"),
        Parameter("arm", 0.046, "m from the centre to a motor", low=0.0, source=_THESIS),
        Parameter(
            "max_thrust",
            0.1597,
            "N, of a motor",
            low=0.0,
            source=f"{_THESIS}; 2.130295e-11 c² + 1.032633e-6 c + 5.484560e-4 at command c = 65535",
        ),
    )
    action_box = Box((0.0, 0.0), (1.0, 1.0))
    start_box = Box.symmetric(1.0, 1.0, math.pi, 1.0, 1.0, 4.0)
    state_box = Box.symmetric(2.0, 2.0, math.pi, 3.0, 3.0, 15.0)
    dt = 0.02
    episode_steps = 250
    view = View((-1.5, -1.5), (1.5, 1.5))
    success_criterion = Success(
        words=f"within {NEAR} m of the origin, tilt below {UPRIGHT:g}° and speed below {STILL} m/s at the end",
        share=MOST_STARTS,
        source="this project's choice",
    )
    solver = RK4()

    def dynamics(self, t: Any, x: States, u: Actions, p: Params) -> States:
        """d[x, z, tilt, velocities, rate]/dt of a rigid body in a plane (Newton and Euler)."""
        _, _, tilt, velocity_x, velocity_z, rate = x.unbind(-1)
        left, right = (2 * p["max_thrust"].unsqueeze(-1) * u).unbind(-1)
        lift = (left + right) / p["mass"]
        torque = math.sqrt(0.5) * p["arm"] * (left - right)
        return torch.stack(
            (
                velocity_x,
                velocity_z,
                rate,
                lift * torch.sin(tilt),
                lift * torch.cos(tilt) - p["g"],
                torque / (1e-6 * p["inertia"]),
            ),
            dim=-1,
        )

    def step(self, x: States, u: Actions, p: Params) -> tuple[States, Costs]:
        """One control interval, after which the rate is clamped."""
        following, cost = super().step(x, u, p)
        rest, rate = following.split((5, 1), dim=-1)
        return torch.cat((rest, rate.clamp(-MAX_RATE, MAX_RATE)), dim=-1), cost

    def cost(self, x: States, u: Actions, p: Params) -> Costs:
        """``x² + z² + (1 - cos tilt)/2 + 0.05 speed² + 0.01 rate² + 0.05 |u - hover|²``.

        ``hover`` is the action that carries the weight.
        """
        right, up, tilt, velocity_x, velocity_z, rate = x.unbind(-1)
        hover = p["mass"] * p["g"] / (4 * p["max_thrust"])
        far = right**2 + up**2 + 0.5 * (1 - torch.cos(tilt))
        fast = 0.05 * (velocity_x**2 + velocity_z**2) + 0.01 * rate**2
        return far + fast + 0.05 * ((u - hover.unsqueeze(-1)) ** 2).sum(-1)

    def observe(self, x: States) -> Observations:
        """``[x, z, cos tilt, sin tilt, velocity_x, velocity_z, rate]``."""
        right, up, tilt, velocity_x, velocity_z, rate = x.unbind(-1)
        return torch.stack(
            (right, up, torch.cos(tilt), torch.sin(tilt), velocity_x, velocity_z, rate), dim=-1
        )

    def success(self, states: EpisodeStates) -> Successes:
        """Within 0.3 m of the origin, upright within 3° and slower than 0.05 m/s at the end."""
        right, up, tilt, velocity_x, velocity_z, _ = states[-1].unbind(-1)
        upright = torch.cos(tilt) > math.cos(math.radians(UPRIGHT))
        return (right**2 + up**2 < NEAR**2) & upright & (velocity_x**2 + velocity_z**2 < STILL**2)

    def draw(self, x: Floats, u: Floats) -> list[Shape]:
        """The vehicle at six times its size, and each rotor's thrust as an arrow as long as it is strong."""
        scale = 6 * math.sqrt(0.5) * self.constants["arm"].value
        along = (math.cos(x[2]), -math.sin(x[2]))
        up = (math.sin(x[2]), math.cos(x[2]))

        def at(right: float, above: float) -> tuple[float, float]:
            """A point of the vehicle, in lengths of its lever."""
            return tuple(  # type: ignore[return-value]
                float(x[i]) + scale * (right * along[i] + above * up[i]) for i in range(2)
            )

        shapes: list[Shape] = [Line([at(-1, 0), at(1, 0)], "body", 0.035)]
        for side, thrust in ((-1, float(u[0])), (1, float(u[1]))):
            shapes.append(Line([at(side, 0.0), at(side, 0.35)], "joint", 0.02))
            shapes.append(Line([at(side - 0.55, 0.35), at(side + 0.55, 0.35)], "limb", 0.02))
            tip = 0.4 + 3.5 * thrust
            if thrust > 0.02:
                shapes.append(Line([at(side, 0.4), at(side, tip)], "force", 0.02))
                shapes.append(
                    Polygon([at(side - 0.2, tip), at(side + 0.2, tip), at(side, tip + 0.4)], "force")
                )
        return [*shapes, Circle(at(0, 0), 0.05, "joint")]

    def scenery(self) -> list[Shape]:
        """The position to hover at."""
        return [
            Line([(-0.12, 0.0), (0.12, 0.0)], "target", 0.015),
            Line([(0.0, -0.12), (0.0, 0.12)], "target", 0.015),
            Circle((0.0, 0.0), 0.2, "target", filled=False),
        ]
