"""A quadrotor, the Crazyflie 2.x, recovering to hover."""

from __future__ import annotations

import math
from typing import Any, ClassVar

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
from robotics_envs.drawing import Circle, Floats, Line, Shape, View
from robotics_envs.mechanics.quaternions import rotation, unit
from solvers.methods.runge_kutta import RK4

_THESIS = "Förster, System Identification of the Crazyflie 2.0 Nano Quadrocopter, ETH Zürich 2015"
MAX_RATE = 2000 * math.pi / 180  # rad/s, the range of the gyroscope
MAGNIFIED = 4.0  # how many times its size the vehicle is drawn
FLOOR = -1.2  # m, the height at which a floor is drawn
NEAR = 0.1  # m from the goal, for success
HOLD = 0.5  # s at the end of an episode, for success
_AXES = ("x", "y", "z")
_MOTORS = tuple(f"motor_{i}" for i in range(1, 5))


def floor() -> list[Shape]:
    """A square grid, 2.4 m wide, as a visual reference."""
    ticks = np.linspace(-1.2, 1.2, 7)
    lines = [((-1.2, b, FLOOR), (1.2, b, FLOOR)) for b in ticks] + [
        ((a, -1.2, FLOOR), (a, 1.2, FLOOR)) for a in ticks
    ]
    return [Line(ends, "faint") for ends in lines]


class Quadrotor(Env):
    """A tumbling Crazyflie 2.x has to come back to the origin and hover there upright.

    State (17) ``[position m 3, quaternion w x y z 4, velocity m/s 3, body rates rad/s 3, motors 4]``,
    action ``[motors 4]`` in 0..1, observation (22) ``[position, rotation matrix by rows 9, velocity,
    body rates, motors]``.  Position and velocity are in the world frame (z up), rates in the body frame
    (x forward, y left, z up), and the quaternion turns body into world.  A motor's state is its thrust
    as a fraction of the parameter ``max_thrust``; it follows the action with a first-order lag.  Motors
    are numbered as on the Crazyflie: front right, back right, back left, front left; rotors 2 and 4 turn
    clockwise about the body's -z (viewed from above).  No drag.

    A quaternion of any length other than zero stands for the attitude of its direction.  ``step`` makes
    it unit again after the solver and clamps the body rates to the range of the gyroscope, ±2000 °/s,
    which keeps the integration of a tumbling vehicle stable and cuts the gradient of a rate where it acts.
    """

    name = "quadrotor"
    state_names = (
        *(f"position_{a}" for a in _AXES),
        *("quaternion_w", "quaternion_x", "quaternion_y", "quaternion_z"),
        *(f"velocity_{a}" for a in _AXES),
        *(f"rate_{a}" for a in _AXES),
        *_MOTORS,
    )
    observation_names = (
        *state_names[:3],
        *(f"rotation_{row}{column}" for row in ("x", "y", "z") for column in ("x", "y", "z")),
        *state_names[7:],
    )
    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter("g", 9.81, "m/s²", source="standard gravity, rounded"),
        Parameter("mass", 0.027, "kg", low=0.0, source="Bitcraze, Crazyflie 2.0 data sheet"),
        Parameter(
            "inertia_x", 16.571710, "kg mm²", low=0.0, source=f"{_THESIS}; products of inertia left out"
        ),
        Parameter(
            "inertia_y", 16.655602, "kg mm²", low=0.0, source=f"{_THESIS}; products of inertia left out"
        ),
        Parameter(
            "inertia_z", 29.261652, "kg mm²", low=0.0, source=f"{_THESIS}; products of inertia left out"
        ),
        Parameter("arm", 0.046, "m from the centre to a motor", low=0.0, source=_THESIS),
        Parameter("torque_per_thrust", 5.964552e-3, "m", low=0.0, source=_THESIS),
        Parameter(
            "max_thrust",
            0.1597,
            "N, of a motor",
            low=0.0,
            source=f"{_THESIS}; 2.130295e-11 c² + 1.032633e-6 c + 5.484560e-4 at command c = 65535",
        ),
        Parameter("lag", 1 / 15.4666, "s, of a motor", low=0.0, source=f"{_THESIS}, the pole of eq. 3.16"),
    )
    action_box = Box((0.0,) * 4, (1.0,) * 4)
    start_box = Box(
        (*(-1.0,) * 3, 1.0, *(-0.7,) * 3, *(-1.0,) * 3, *(-4.0,) * 3, *(0.2,) * 4),
        (*(1.0,) * 3, 1.0, *(0.7,) * 3, *(1.0,) * 3, *(4.0,) * 3, *(0.6,) * 4),
    )
    state_box = Box(
        (*(-2.0,) * 3, *(-1.0,) * 4, *(-3.0,) * 3, *(-15.0,) * 3, *(0.0,) * 4),
        (*(2.0,) * 3, *(1.0,) * 4, *(3.0,) * 3, *(15.0,) * 3, *(1.0,) * 4),
    )
    dt = 0.02
    episode_steps = 250
    view = View((-1.8, -1.7), (1.8, 1.3), azimuth=-60.0, elevation=18.0)
    success_criterion = Success(
        words=f"within {100 * NEAR:g} cm of the origin throughout the last {HOLD:g} s",
        share=MOST_STARTS,
        source="this project's choice",
    )
    solver = RK4()

    def dynamics(self, t: Any, x: States, u: Actions, p: Params) -> States:
        """d[position, quaternion, velocity, rates, motors]/dt of a rigid body (Newton and Euler)."""
        _, quaternion, velocity, rates, motors = x.split((3, 4, 3, 3, 4), dim=-1)
        m1, m2, m3, m4 = (p["max_thrust"].unsqueeze(-1) * motors).unbind(-1)
        right, left = m1 + m2, m3 + m4
        lever = math.sqrt(0.5) * p["arm"]
        torque_x = lever * (left - right)
        torque_y = lever * ((m2 + m3) - (m1 + m4))
        torque_z = p["torque_per_thrust"] * ((m2 + m4) - (m1 + m3))
        lift = (left + right) / p["mass"]

        a, b, c, d = unit(quaternion).unbind(-1)
        along = (2 * (b * d + a * c), 2 * (c * d - a * b), 1 - 2 * (b * b + c * c))  # the body's z
        acceleration = (lift * along[0], lift * along[1], lift * along[2] - p["g"])

        w, i, j, k = quaternion.unbind(-1)
        rx, ry, rz = rates.unbind(-1)
        turning = (
            -0.5 * (i * rx + j * ry + k * rz),
            0.5 * (w * rx + j * rz - k * ry),
            0.5 * (w * ry + k * rx - i * rz),
            0.5 * (w * rz + i * ry - j * rx),
        )
        ix, iy, iz = (1e-6 * p[f"inertia_{axis}"] for axis in _AXES)  # kg m²
        angular = (
            (torque_x + (iy - iz) * (ry * rz)) / ix,
            (torque_y + (iz - ix) * (rz * rx)) / iy,
            (torque_z + (ix - iy) * (rx * ry)) / iz,
        )
        spinning_up = (u - motors) / p["lag"].unsqueeze(-1)
        changes = torch.stack((*turning, *acceleration, *angular), dim=-1)
        return torch.cat((velocity, changes, spinning_up), dim=-1)

    def step(self, x: States, u: Actions, p: Params) -> tuple[States, Costs]:
        """One control interval, after which the quaternion is made unit and the rates are clamped."""
        following, cost = super().step(x, u, p)
        position, quaternion, velocity, rates, rest = following.split((3, 4, 3, 3, x.shape[-1] - 13), dim=-1)
        rates = rates.clamp(-MAX_RATE, MAX_RATE)
        return torch.cat((position, unit(quaternion), velocity, rates, rest), dim=-1), cost

    def cost(self, x: States, u: Actions, p: Params) -> Costs:
        """``|position|² + tilt/2 + 0.05 |velocity|² + 0.01 |rates|² + 0.05 |u - hover|²``.

        The tilt is 1 minus the cosine of the angle between the body's z and the vertical; the heading
        is free.  ``hover`` is the action that carries the weight.
        """
        position, quaternion, velocity, rates, _ = x.split((3, 4, 3, 3, 4), dim=-1)
        _, b, c, _ = unit(quaternion).unbind(-1)
        hover = p["mass"] * p["g"] / (4 * p["max_thrust"])
        far = (position**2).sum(-1) + (b * b + c * c)
        fast = 0.05 * (velocity**2).sum(-1) + 0.01 * (rates**2).sum(-1)
        return far + fast + 0.05 * ((u - hover.unsqueeze(-1)) ** 2).sum(-1)

    def observe(self, x: States) -> Observations:
        """``[position, rotation matrix by rows, velocity, body rates, motors]``."""
        position, quaternion, rest = x.split((3, 4, 10), dim=-1)
        return torch.cat((position, rotation(quaternion), rest), dim=-1)

    def reset(self, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """States from the start box, ``[batch, 17]``, with unit quaternions: turned by up to 101 degrees."""
        x = super().reset(batch, generator, dtype)
        return torch.cat((x[:, :3], unit(x[:, 3:7]), x[:, 7:]), dim=-1)

    def success(self, states: EpisodeStates) -> Successes:
        """Within 10 cm of the origin throughout the last 0.5 s."""
        position = self.final_states(states, HOLD)[..., :3]
        return ((position**2).sum(-1) < NEAR**2).all(0)

    def draw(self, x: Floats, u: Floats) -> list[Shape]:
        """The vehicle, ``MAGNIFIED`` times its size, and each rotor's thrust as a flame below it.

        The front arms are orange; a hairline leads to the shadow on the floor.
        """
        turn = rotation(torch.from_numpy(np.asarray(x[3:7], dtype=float))).reshape(3, 3).numpy()
        position, arm = np.asarray(x[:3], dtype=float), MAGNIFIED * self.constants["arm"].value
        shadow = (position[0], position[1], FLOOR)
        shapes: list[Shape] = [Line([position, shadow], "faint"), Circle(shadow, 0.03, "ground")]
        around = np.linspace(0.0, 2 * math.pi, 24)
        circle = np.stack((np.cos(around), np.sin(around), np.zeros_like(around)), axis=-1)
        # In the order of the motors: front right, back right, back left, front left.
        for (ahead, left), motor in zip(((1, -1), (-1, -1), (-1, 1), (1, 1)), x[13:17], strict=True):
            hub = np.array((ahead, left, 0.0)) * math.sqrt(0.5) * arm
            rotor = position + (hub + 0.5 * arm * circle) @ turn.T
            flame = position + np.stack((hub, hub - (0.0, 0.0, 2 * arm * float(motor)))) @ turn.T
            shapes.append(Line(flame, "hot", 0.025))
            shapes.append(Line([position, flame[0]], "limb" if ahead > 0 else "ink", 0.03))
            shapes.append(Line(rotor, "body", 0.012))
        return [*shapes, Circle(position, 0.05, "body")]

    def scenery(self) -> list[Shape]:
        """The floor (drawn only; there are no collisions) and the goal, a ring."""
        return [
            *floor(),
            Circle((0.0, 0.0, 0.0), 0.08, "target", filled=False),
            Circle((0.0, 0.0, 0.0), 0.02, "target"),
        ]
