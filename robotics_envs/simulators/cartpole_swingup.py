"""The swing-up of a pole on a cart, as dm_control's suite poses it."""

from __future__ import annotations

import math
from typing import Any

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
from robotics_envs.drawing import Circle, Floats, Line, Polygon, Shape, View
from robotics_envs.mechanics.capsule import capsule_gyration
from robotics_envs.mechanics.joint_limit import JointLimit
from solvers.methods.runge_kutta import RK4

_MODEL = "dm_control, suite/cartpole.xml"
TRACK = 1.8  # m to either side, where the soft stop begins
STOP = 0.08  # s, the time constant of the stop
CART = (0.2, 0.1)  # m, half its width and height
UPRIGHT = 0.95  # cosine of the angle, 18 degrees
CENTRED = 0.5  # m from the middle
HOLD = 2.0  # s at the end of an episode, for success


class CartpoleSwingup(Env):
    """A pole hanging from a cart has to be swung up and balanced in the middle of the track.

    State ``[position m, angle rad (0 = upright, positive towards +position, not wrapped), velocity m/s,
    rate rad/s]``, action ``[drive]`` in ±1, the motor's force as a fraction of the parameter ``gear``;
    observation ``[position, cos angle, sin angle, velocity, rate]``.  Model, reward (a number in 0..1
    for the state that an interval ends in), starts, interval and integrator (RK4 of 0.01 s, 1000
    steps) are those of ``cartpole-swingup`` in dm_control's suite.

    Beyond ±1.8 m MuJoCo's soft joint limit pushes the cart back (:class:`JointLimit`), which cuts the
    gradient of its force on the track; so does clipping the action, beyond its bounds.
    """

    name = "cartpole_swingup"
    gym_id = "dm_control/cartpole-swingup-v0"
    state_names = ("position", "angle", "velocity", "rate")
    angle_names = ("angle",)
    observation_names = ("position", "cos_angle", "sin_angle", "velocity", "rate")
    parameters = (
        Parameter("g", 9.81, "m/s²", source="MuJoCo's default"),
        Parameter("cart_mass", 1.0, "kg", low=0.0, source=_MODEL),
        Parameter("pole_mass", 0.1, "kg", low=0.0, source=_MODEL),
        Parameter("pole_length", 1.0, "m, without its round ends", low=0.0, source=_MODEL),
        Parameter("pole_radius", 0.045, "m", low=0.0, source=_MODEL),
        Parameter("cart_damping", 5e-4, "N s/m", low=0.0, source=_MODEL),
        Parameter("hinge_damping", 2e-6, "N m s/rad", low=0.0, source=_MODEL),
        Parameter("gear", 10.0, "N at full drive", low=0.0, source=_MODEL),
    )
    action_box = Box.symmetric(1.0)
    start_box = Box((-0.03, math.pi - 0.03, -0.03, -0.03), (0.03, math.pi + 0.03, 0.03, 0.03))
    state_box = Box.symmetric(2.0, math.pi, 5.0, 10.0)
    dt = 0.01
    episode_steps = 1000
    solver = RK4()
    cost_of_reached_state = True
    view = View((-2.9, -1.4), (2.9, 1.4))
    success_criterion = Success(
        words=f"cos(angle) > {UPRIGHT} and |position| < {CENTRED} m throughout the last {HOLD:g} s",
        share=MOST_STARTS,
        source="this project's choice; the sparse task of dm_control's suite rewards cosines above 0.995 within 0.25 m",
    )

    def dynamics(self, t: Any, x: States, u: Actions, p: Params) -> States:
        """d[position, angle, velocity, rate]/dt: Lagrange's equations of cart and pole, and the end stop.

        ``M [position'', angle''] = [gear u - cart_damping v + ml rate² sin, ml g sin - hinge_damping rate]``
        with ``M = [[m_cart + m_pole, ml cos], [ml cos, J]]``, ml the pole's first moment and J its second
        about the hinge.
        """
        position, angle, velocity, rate = x.unbind(-1)
        sin, cos = torch.sin(angle), torch.cos(angle)
        mass = p["cart_mass"] + p["pole_mass"]
        centre = 0.5 * p["pole_length"]
        moment = p["pole_mass"] * centre
        inertia = moment * centre + p["pole_mass"] * capsule_gyration(p["pole_radius"], p["pole_length"])
        coupling = moment * cos

        force = p["gear"] * u[..., 0] - p["cart_damping"] * velocity + moment * rate**2 * sin
        torque = moment * p["g"] * sin - p["hinge_damping"] * rate
        determinant = mass * inertia - coupling**2
        free = (inertia * force - coupling * torque) / determinant

        # MuJoCo scales the stop by the inverse inertia in the model's reference pose, pole upright.
        weight = inertia / (mass * inertia - moment**2)
        stop = JointLimit(-TRACK, TRACK, weight, STOP)
        force = force + stop.force(position, velocity, free, inertia / determinant)
        linear = (inertia * force - coupling * torque) / determinant
        angular = (mass * torque - coupling * force) / determinant
        return torch.stack((velocity, rate, linear, angular), dim=-1)

    def cost(self, x: States, u: Actions, p: Params) -> Costs:
        """Minus dm_control's reward, a product of four factors that are 1 at best.

        Height ``(1 + cos angle)/2``, drive ``1 - u²/5``, rate ``(1 + 0.1^((rate/5)²))/2`` and position
        ``(1 + 0.1^((position/2)²))/2``: its ``tolerance`` with the shapes "quadratic" and "gaussian".
        """
        position, angle, _, rate = x.unbind(-1)
        upright = (1 + torch.cos(angle)) / 2
        small_drive = 1 - u[..., 0] ** 2 / 5
        slow = (1 + torch.exp(math.log(0.1) * (rate / 5) ** 2)) / 2
        centred = (1 + torch.exp(math.log(0.1) * (position / 2) ** 2)) / 2
        return -upright * small_drive * slow * centred

    def observe(self, x: States) -> Observations:
        """``[position, cos angle, sin angle, velocity, rate]``."""
        position, angle, velocity, rate = x.unbind(-1)
        return torch.stack((position, torch.cos(angle), torch.sin(angle), velocity, rate), dim=-1)

    def reset(self, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """Hanging at rest in the middle, plus normal noise with std 0.01 on each of the four states.

        The start box is three std to either side, which holds 99.7 % of each state.
        """
        noise = torch.randn(batch, 4, generator=generator, dtype=dtype, device=generator.device)
        return noise.new_tensor((0.0, math.pi, 0.0, 0.0)) + 0.01 * noise

    def success(self, states: EpisodeStates) -> Successes:
        """Upright, ``cos(angle) > 0.95``, and within 0.5 m of the middle throughout the last 2 s."""
        position, angle, _, _ = self.final_states(states, HOLD).unbind(-1)
        return ((torch.cos(angle) > UPRIGHT) & (position.abs() < CENTRED)).all(0)

    def draw(self, x: Floats, u: Floats) -> list[Shape]:
        """The cart, the pole, and the motor's force as an arrow at the cart's side."""
        length, radius = self.constants["pole_length"].value, self.constants["pole_radius"].value
        at, half, high = float(x[0]), *CART
        tip = (at + length * math.sin(x[1]), length * math.cos(x[1]))
        corners = [(at - half, -high), (at + half, -high), (at + half, high), (at - half, high)]
        shapes: list[Shape] = [
            Polygon(corners, "body"),
            Line([(at, 0.0), tip], "limb", 2 * radius),
            Circle((at, 0.0), 0.05),
        ]
        drive = float(u[0])
        if drive:
            side = math.copysign(1.0, drive)
            foot = at + side * half
            head = foot + 0.6 * drive
            shapes.append(Line([(foot, 0.0), (head, 0.0)], "force", 0.04))
            shapes.append(Polygon([(head + 0.1 * side, 0.0), (head, 0.07), (head, -0.07)], "force"))
        return shapes

    def scenery(self) -> list[Shape]:
        """The rail, its end stops, and where the pole's tip should be."""
        half, high = CART
        stops: list[Shape] = [
            Line([(side * (TRACK + half), -0.16), (side * (TRACK + half), 0.16)], "ground", 0.06)
            for side in (-1, 1)
        ]
        length = self.constants["pole_length"].value
        rail = Line([(-TRACK - half, -high - 0.03), (TRACK + half, -high - 0.03)], "ground", 0.06)
        return [rail, *stops, Circle((0.0, length), 0.12, "target", filled=False)]
