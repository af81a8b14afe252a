"""A quadrotor, the Crazyflie 2.x, recovering to hover."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from robotics_envs.base import Actions, Box, Costs, Env, Observations, Parameter, Params, States
from solvers.runge_kutta import RK4

_THESIS = "Förster, System Identification of the Crazyflie 2.0 Nano Quadrocopter, ETH Zürich 2015"
MAX_RATE = 2000 * math.pi / 180  # rad/s, the range of the gyroscope
_AXES = ("x", "y", "z")
_MOTORS = tuple(f"motor_{i}" for i in range(1, 5))


def unit(quaternion: Float[Tensor, "... 4"]) -> Float[Tensor, "... 4"]:
    """The unit quaternion of the same attitude; zero, which has none, stays zero."""
    return quaternion * torch.rsqrt((quaternion * quaternion).sum(-1, keepdim=True).clamp_min(1e-12))


class Quadrotor(Env):
    """A tumbling Crazyflie 2.x has to come back to the origin and hover there upright.

    State (17) ``[position m 3, quaternion w x y z 4, velocity m/s 3, body rates rad/s 3, motors 4]``,
    action ``[motors 4]`` in 0..1, observation (22) ``[position, rotation matrix by rows 9, velocity,
    body rates, motors]``.  Position and velocity are in the world frame (z up), rates in the body frame
    (x forward, y left, z up), and the quaternion turns body into world.  A motor's state is its thrust
    as a fraction of the parameter ``max_thrust``; it follows the action with a first-order lag.  Motors
    are numbered as on the Crazyflie: front right, back right, back left, front left; rotors 2 and 4 turn
    clockwise seen from above.  No drag.

    A quaternion of any length other than zero stands for the attitude of its direction.  ``step`` makes
    it unit again after the solver and clamps the body rates to the range of the gyroscope, ±2000 °/s,
    which keeps a tumbling vehicle within reach of the step size and cuts the gradient of a rate where
    it acts.
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
    parameters = (
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
        position, quaternion, velocity, rates, motors = following.split((3, 4, 3, 3, 4), dim=-1)
        rates = rates.clamp(-MAX_RATE, MAX_RATE)
        return torch.cat((position, unit(quaternion), velocity, rates, motors), dim=-1), cost

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
        a, b, c, d = unit(quaternion).unbind(-1)
        rotation = (
            *(1 - 2 * (c * c + d * d), 2 * (b * c - a * d), 2 * (b * d + a * c)),
            *(2 * (b * c + a * d), 1 - 2 * (b * b + d * d), 2 * (c * d - a * b)),
            *(2 * (b * d - a * c), 2 * (c * d + a * b), 1 - 2 * (b * b + c * c)),
        )
        return torch.cat((position, torch.stack(rotation, dim=-1), rest), dim=-1)

    def reset(self, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """States from the start box, ``[batch, 17]``, with unit quaternions: turned by up to 101 degrees."""
        x = super().reset(batch, generator, dtype)
        return torch.cat((x[:, :3], unit(x[:, 3:7]), x[:, 7:]), dim=-1)
