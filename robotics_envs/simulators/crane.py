"""An overhead crane that brings a swinging load to a target by its trolley and its hoist."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robotics_envs.base import Actions, Box, Costs, Env, Observations, Parameter, Params, States, Success
from robotics_envs.drawing import Circle, Floats, Line, Polygon, Shape, View
from solvers.methods.runge_kutta import RK4

_DESIGN = "this task's choice, a workshop crane for 500 kg"
RAIL = 5.0  # m, from the middle of the rail to its end buffers
ROPE = (1.0, 7.0)  # m, the lengths at which the hoist meets its buffers
BUFFER = 20e3  # N/m, stiffness of all buffers
DAMPING = 2.0  # s/m, of all buffers
MAX_FORCE = 600.0  # N, of the trolley's drive
HOIST_FORCE = 1000.0  # N, the range of the rope's pull to either side of the load's weight
_SHORTEST = 0.5  # m, below which the rope's length does not count
_POSITIONS, _LENGTHS = (-8.0, 8.0), (_SHORTEST, 8.0)  # m, to which step clamps
_RATES = Box.symmetric(5.0, 3.0, 5.0)  # m/s, m/s and rad/s, to which step clamps
JUDGED = 1.0  # s at the end of an episode, over which success is judged


def buffer_force(depth: Tensor, rate: Tensor) -> Tensor:
    """``k d (1 + tanh(c rate))``, N, at a depth of ``d`` m into the buffer that grows at ``rate`` m/s; 0 outside of it.

    For slow contacts the law of Hunt and Crossley (J. Applied Mechanics 42, 1975); tanh bounds it, so that a buffer
    never pulls.
    """
    return BUFFER * depth.clamp_min(0.0) * (1 + torch.tanh(DAMPING * rate))


class Crane(Env):
    """A trolley on a rail and a hoist carry a load on a rope to a target, where it has to hang at rest.

    State ``[position m, length m, sway rad, velocity m/s, length_rate m/s, sway_rate rad/s, target_x m,
    target_depth m]``, action ``[force on the trolley N, pull of the hoist on the rope N]`` in ±600 and 3905 to
    5905, observation ``[position, length, cos sway, sin sway, velocity, length_rate, sway_rate, error_x, error_depth]``
    with the errors load minus target, m.  World frame: x to the right along the rail, depth downwards from it.  The
    load is at ``position + length sin(sway)``, ``length cos(sway)`` below the rail; the sway is positive when it
    hangs to the right, and not wrapped.  The target is constant in an episode.

    Equations: Lee, Modeling and Control of a Three-Dimensional Overhead Crane, J. Dynamic Systems, Measurement, and
    Control 120(4), 1998, for motion in the plane of the rail: trolley, hoist and load as point masses, viscous friction
    of trolley and hoist, no air.  The rope has no mass and does not stretch; as in the source it could also push,
    which the task does not need: the pull is at least four fifths of the load's weight.

    Buffers (``buffer_force``) end the rail at ±5 m and the rope's length at 1 and 7 m.  ``step`` clamps position,
    length and rates far outside of what the crane can reach, to keep wild starts finite; that cuts their gradient
    where it acts, as clipping the action does.  Within a step, lengths below 0.5 m act like 0.5 m.
    """

    name = "crane"
    state_names = (
        *("position", "length", "sway", "velocity", "length_rate", "sway_rate"),
        *("target_x", "target_depth"),
    )
    angle_names = ("sway",)
    observation_names = (
        *("position", "length", "cos_sway", "sin_sway", "velocity", "length_rate", "sway_rate"),
        *("error_x", "error_depth"),
    )
    parameters = (
        Parameter("g", 9.81, "m/s²", source="standard gravity, rounded"),
        Parameter("trolley", 300.0, "kg", low=0.0, source=_DESIGN),
        Parameter("load", 500.0, "kg", low=0.0, source=_DESIGN),
        Parameter(
            "hoist", 100.0, "kg, inertia of drum and motor referred to the rope", low=0.0, source=_DESIGN
        ),
        Parameter("trolley_friction", 100.0, "N·s/m", low=0.0, source=_DESIGN),
        Parameter("hoist_friction", 200.0, "N·s/m", low=0.0, source=_DESIGN),
    )
    action_box = Box((-MAX_FORCE, 4905.0 - HOIST_FORCE), (MAX_FORCE, 4905.0 + HOIST_FORCE))
    start_box = Box(
        (-4.0, 2.0, -0.15, -0.2, -0.1, -0.1, -4.0, 2.0), (4.0, 5.0, 0.15, 0.2, 0.1, 0.1, 4.0, 5.0)
    )
    state_box = Box((-4.8, 1.5, -0.5, -2.0, -1.0, -0.8, -4.0, 2.0), (4.8, 5.5, 0.5, 2.0, 1.0, 0.8, 4.0, 5.0))
    dt = 0.1
    episode_steps = 200
    view = View((-6.0, -6.5), (6.0, 1.0))
    solver = RK4()
    success_criterion = Success(
        "load within 5 cm of the target and slower than 5 cm/s throughout the last second",
        0.9,
        "the project's choice",
    )

    def dynamics(self, t: Any, x: States, u: Actions, p: Params) -> States:
        """d[position, length, sway, their rates, target]/dt: Lee's equations, solved for the accelerations."""
        position, length, sway, velocity, length_rate, sway_rate, target_x, _ = x.unbind(-1)
        sin, cos = torch.sin(sway), torch.cos(sway)
        rope = length.clamp_min(_SHORTEST)
        driving = u[..., 0] - p["trolley_friction"] * velocity
        driving = (
            driving + buffer_force(-RAIL - position, -velocity) - buffer_force(position - RAIL, velocity)
        )
        paying_out = -u[..., 1] - p["hoist_friction"] * length_rate
        paying_out = paying_out + buffer_force(ROPE[0] - length, -length_rate)
        paying_out = paying_out - buffer_force(length - ROPE[1], length_rate)
        # Along the rope the load pulls with its weight and its centrifugal force.  The equation across the rope,
        #   length sway'' + cos position'' + 2 length' sway' + g sin = 0,
        # takes sway'' out of the other two:
        #   (trolley + load sin²) position'' + load sin length'' = driving + sin radial
        #   load sin position'' + (load + hoist) length'' = paying_out + radial
        radial = p["load"] * (rope * sway_rate**2 + p["g"] * cos)
        total = p["load"] + p["hoist"]
        determinant = p["trolley"] * total + p["load"] * p["hoist"] * sin**2
        acceleration = total * driving + p["hoist"] * sin * radial - p["load"] * sin * paying_out
        acceleration = acceleration / determinant
        hoisting = (p["trolley"] + p["load"] * sin**2) * paying_out + p["trolley"] * radial
        hoisting = (hoisting - p["load"] * sin * driving) / determinant
        swinging = -(cos * acceleration + 2 * length_rate * sway_rate + p["g"] * sin) / rope
        still = torch.zeros_like(target_x)
        return torch.stack(
            (velocity, length_rate, sway_rate, acceleration, hoisting, swinging, still, still), -1
        )

    def step(self, x: States, u: Actions, p: Params) -> tuple[States, Costs]:
        """One control interval, after which position, length and rates are clamped."""
        following, cost = super().step(x, u, p)
        position, length, sway, rates, target = following.split((1, 1, 1, 3, 2), dim=-1)
        stopped = (
            position.clamp(*_POSITIONS),
            length.clamp(*_LENGTHS),
            sway,
            torch.clamp(rates, *_RATES.bounds(x)),
            target,
        )
        return torch.cat(stopped, dim=-1), cost

    def error(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The load's position minus the target, to the right and downwards, m; for states ``[..., n]``."""
        position, length, sway, *_, target_x, target_depth = x.unbind(-1)
        return position + length * torch.sin(sway) - target_x, length * torch.cos(sway) - target_depth

    def load_velocity(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The load's velocity to the right and downwards, m/s; for states ``[..., n]``."""
        _, length, sway, velocity, length_rate, sway_rate, _, _ = x.unbind(-1)
        sin, cos, across = torch.sin(sway), torch.cos(sway), length * sway_rate
        return velocity + length_rate * sin + across * cos, length_rate * cos - across * sin

    def cost(self, x: States, u: Actions, p: Params) -> Costs:
        """``sqrt(d² + 0.01) - 0.1 + 0.1 speed² + 0.02 ((force / 600 N)² + ((pull - weight) / 1000 N)²)``.

        d is the load's distance from the target in m, ``speed`` its speed in m/s.
        """
        right, down = self.error(x)
        velocity_x, velocity_down = self.load_velocity(x)
        far = torch.sqrt(right**2 + down**2 + 0.01) - 0.1
        excess = (u[..., 1] - p["load"] * p["g"]) / HOIST_FORCE
        effort = (u[..., 0] / MAX_FORCE) ** 2 + excess**2
        return far + 0.1 * (velocity_x**2 + velocity_down**2) + 0.02 * effort

    def success(self, states: Float[Tensor, "times batch n"]) -> Bool[Tensor, " batch"]:
        """Whether the load is within 5 cm of the target and below 5 cm/s throughout the last second of the episodes."""
        last = states[-round(JUDGED / self.dt) - 1 :]
        far, fast = (torch.hypot(*pair) for pair in (self.error(last), self.load_velocity(last)))
        return ((far < 0.05) & (fast < 0.05)).all(0)

    def observe(self, x: States) -> Observations:
        """``[position, length, cos sway, sin sway, velocity, length_rate, sway_rate, error_x, error_depth]``."""
        position, length, sway, *rates, _, _ = x.unbind(-1)
        return torch.stack(
            (position, length, torch.cos(sway), torch.sin(sway), *rates, *self.error(x)), dim=-1
        )

    def draw(self, x: Floats, u: Floats) -> list[Shape]:
        """The trolley, the rope, the load, the target, and the trolley's force as an arrow."""
        position, length, sway, target_x, target_depth = (float(x[i]) for i in (0, 1, 2, 6, 7))
        load = (position + length * math.sin(sway), -length * math.cos(sway))
        tip = position + 1.5 * float(u[0]) / MAX_FORCE
        shapes: list[Shape] = [
            Line([(target_x - 0.6, -target_depth), (target_x + 0.6, -target_depth)], "target", 0.05),
            Line([(target_x, -target_depth - 0.6), (target_x, -target_depth + 0.6)], "target", 0.05),
            Line([(position, 0.0), load], "ink", 0.04),
            Polygon(_rectangle(position, 0.15, 0.5, 0.2), "body"),
            *(Circle((position + side, 0.0), 0.12) for side in (-0.3, 0.3)),
            Circle((position, 0.2), 0.12, "limb"),
            Polygon(_rectangle(load[0], load[1], 0.3, 0.3), "limb"),
        ]
        if abs(tip - position) > 0.05:
            shapes.append(Line([(position, 0.6), (tip, 0.6)], "force", 0.06))
            head = 0.2 if tip > position else -0.2
            shapes.append(Polygon([(tip, 0.75), (tip, 0.45), (tip + head, 0.6)], "force"))
        return shapes

    def scenery(self) -> list[Shape]:
        """The rail and its buffers."""
        ends = RAIL + 0.5
        return [
            Line([(-ends, -0.15), (ends, -0.15)], "ground", 0.12),
            *(Line([(side * ends, -0.2), (side * ends, 0.5)], "ground", 0.2) for side in (-1, 1)),
        ]


def _rectangle(x: float, y: float, half_width: float, half_height: float) -> list[tuple[float, float]]:
    """The corners of a rectangle about its middle."""
    return [(x + a * half_width, y + b * half_height) for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
