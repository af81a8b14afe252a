"""A steel ball under an electromagnet, which has to float at a reference gap."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robotics_envs.base import Actions, Box, Costs, Env, Observations, Parameter, Params, States, Success
from robotics_envs.drawing import Circle, Floats, Line, Polygon, Shape, Text, View
from solvers.methods.runge_kutta import RK4

_BOOK = (
    "Khalil, Nonlinear Systems, 3rd ed., numbers of the exercises on the magnetic suspension of exercise 1.18"
)
TABLE = 0.1  # m, the gap at which the ball lies on the table
STIFFNESS = 10e3  # N/m, of the magnet's face and of the table
DAMPING = 5.0  # s/m, of both
MAX_VOLTAGE = 15.0  # V
_BOUNDS = Box((-0.02, -3.0, -40.0), (0.12, 3.0, 40.0))  # m, m/s and A, to which step clamps
_NEAREST = -0.025  # m, the gap beyond which the coil's inductance does not change
JUDGED = 0.5  # s at the end of an episode, over which success is judged


def stop_force(depth: Tensor, rate: Tensor) -> Tensor:
    """``k d (1 + tanh(c rate))``, N, at a depth of ``d`` m in a surface that grows at ``rate`` m/s; 0 outside of it.

    For slow contacts the law of Hunt and Crossley (J. Applied Mechanics 42, 1975); tanh bounds it, so that a surface
    never pulls.
    """
    return STIFFNESS * depth.clamp_min(0.0) * (1 + torch.tanh(DAMPING * rate))


class Maglev(Env):
    """A steel ball below an electromagnet has to float at a given gap, where it is unstable.

    State ``[gap m, velocity m/s, current A, reference m]``, action ``[voltage V]`` of the coil in 0 to 15,
    observation ``[gap, velocity, current, reference, gap minus reference]``.  The gap is the ball's distance from the
    magnet, positive downwards, and so is the velocity; the reference is constant in an episode.  The magnet can only
    pull.

    Equations: Khalil, Nonlinear Systems, 3rd ed., exercise 1.18: a coil of the inductance
    ``L(y) = L1 + L0 / (1 + y/a)``, whose energy ``L(y) i² / 2`` gives the force on the ball, and whose flux ``L(y) i``
    changes with the voltage that the resistance leaves.  The ball moves, with viscous drag, between the face of the
    magnet at gap 0 and a table at 0.1 m, both soft (``stop_force``).

    ``step`` clamps gap, velocity and current beyond what a ball between the surfaces can reach, to keep wild starts
    finite; that cuts their gradient where it acts, as clipping the voltage does.
    """

    name = "maglev"
    state_names = ("gap", "velocity", "current", "reference")
    observation_names = (*state_names, "error")
    parameters = (
        Parameter("g", 9.81, "m/s²", source=_BOOK),
        Parameter("mass", 0.1, "kg", low=0.0, source=_BOOK),
        Parameter("drag", 0.001, "N·s/m", low=0.0, source=_BOOK),
        Parameter("length", 0.05, "m, the gap that halves the variable inductance", low=0.0, source=_BOOK),
        Parameter("variable_inductance", 0.01, "H, L0, at gap 0", low=0.0, source=_BOOK),
        Parameter("fixed_inductance", 0.02, "H, L1, without a ball", low=0.0, source=_BOOK),
        Parameter("resistance", 1.0, "Ω", low=0.0, source=_BOOK),
    )
    action_box = Box((0.0,), (MAX_VOLTAGE,))
    start_box = Box((0.02, -0.05, 4.0, 0.03), (0.08, 0.05, 8.0, 0.07))
    state_box = Box((0.0, -0.6, 0.0, 0.03), (0.1, 0.6, 13.0, 0.07))
    dt = 0.01
    episode_steps = 150
    view = View((-0.13, -0.13), (0.13, 0.07))
    solver = RK4()
    substeps = 5
    success_criterion = Success(
        "gap within 1 mm of the reference throughout the last half second", 0.9, "the project's choice"
    )

    def dynamics(self, t: Any, x: States, u: Actions, p: Params) -> States:
        """d[gap, velocity, current, reference]/dt: Newton's law for the ball, Kirchhoff's for the coil."""
        gap, velocity, current, reference = x.unbind(-1)
        stretch = 1 + gap.clamp_min(_NEAREST) / p["length"]
        inductance = p["fixed_inductance"] + p["variable_inductance"] / stretch
        slope = -p["variable_inductance"] / (p["length"] * stretch**2)  # dL/dy, H/m
        force = 0.5 * slope * current**2 - p["drag"] * velocity
        force = force + stop_force(-gap, -velocity) - stop_force(gap - TABLE, velocity)
        voltage = u[..., 0] - p["resistance"] * current - slope * velocity * current
        rates = (velocity, p["g"] + force / p["mass"], voltage / inductance, torch.zeros_like(reference))
        return torch.stack(rates, dim=-1)

    def step(self, x: States, u: Actions, p: Params) -> tuple[States, Costs]:
        """One control interval, after which gap, velocity and current are clamped."""
        following, cost = super().step(x, u, p)
        moving, reference = following.split((3, 1), dim=-1)
        return torch.cat((torch.clamp(moving, *_BOUNDS.bounds(x)), reference), dim=-1), cost

    def holding_current(self, gap: Tensor, p: Params) -> Tensor:
        """The current in A whose force at ``gap`` is the ball's weight."""
        stretch = 1 + gap / p["length"]
        return stretch * torch.sqrt(2 * p["length"] * p["mass"] * p["g"] / p["variable_inductance"])

    def cost(self, x: States, u: Actions, p: Params) -> Costs:
        """``sqrt(1 + (error / 5 mm)²) - 1 + 0.1 (velocity / 0.5 m/s)² + 0.02 ((u - held) / 5 V)²``.

        ``held`` is the voltage that holds the ball at the reference.
        """
        gap, velocity, _, reference = x.unbind(-1)
        held = p["resistance"] * self.holding_current(reference, p)
        far = torch.sqrt(1 + ((gap - reference) / 0.005) ** 2) - 1
        return far + 0.1 * (velocity / 0.5) ** 2 + 0.02 * ((u[..., 0] - held) / 5) ** 2

    def success(self, states: Float[Tensor, "times batch n"]) -> Bool[Tensor, " batch"]:
        """Whether the gap is within 1 mm of the reference throughout the last half second of the episodes."""
        last = states[-round(JUDGED / self.dt) - 1 :]
        return ((last[..., 0] - last[..., 3]).abs() < 0.001).all(0)

    def observe(self, x: States) -> Observations:
        """``[gap, velocity, current, reference, gap minus reference]``."""
        return torch.cat((x, x[..., :1] - x[..., 3:]), dim=-1)

    def draw(self, x: Floats, u: Floats) -> list[Shape]:
        """The ball, a dashed line at the reference, and the current as the colour and width of the coil."""
        gap, _, current, reference = (float(value) for value in x)
        strength = min(max(current / MAX_VOLTAGE, 0.0), 1.0)
        size = 0.012
        shapes: list[Shape] = [
            Line([(a, -reference - size), (a + 0.008, -reference - size)], "target", 0.002)
            for a in (-0.064 + 0.016 * i for i in range(8))
        ]
        for row in range(4):
            up = 0.012 + 0.009 * row
            shapes += [
                Line([(side * 0.028, up), (side * 0.042, up)], "limb", 0.002 + 0.006 * strength)
                for side in (-1, 1)
            ]
        shapes.append(Circle((0.0, -gap - size), size, "body"))
        shapes.append(Text((0.06, 0.03), f"{current:.1f} A", 0.012))
        shapes.append(Text((0.06, 0.012), f"{float(u[0]):.1f} V", 0.012))
        return shapes

    def scenery(self) -> list[Shape]:
        """The magnet's core and the table."""
        low = -TABLE - 0.024
        return [
            Polygon([(-0.025, 0.0), (0.025, 0.0), (0.025, 0.055), (-0.025, 0.055)], "ground"),
            Polygon([(-0.1, low - 0.006), (0.1, low - 0.006), (0.1, low), (-0.1, low)], "ground"),
        ]
