"""An exothermic stirred tank reactor that has to be held at its unstable steady state."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
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
    Parameter,
    Params,
    States,
    Success,
    Successes,
)
from robotics_envs.drawing import Circle, Floats, Line, Polygon, Shape, Text, View
from solvers.methods.paced import PacedRosenbrock

_BOOK = "Seborg, Edgar, Mellichamp, Doyle, Process Dynamics and Control, 3rd ed., example 2.5"
_DESIGN = "this task's choice"
_KINETICS = (200.0, 700.0)  # K, outside of which the reaction rate is constant
_BOUNDS = Box((-1.0, 150.0, 150.0), (4.0, 1500.0, 700.0))  # mol/L and K, to which step clamps the state
WARM = 1.0  # K from the set point, for success
MIXED = 0.02  # mol/L from the steady concentration, for success
HOLD = 1.0  # min at the end of an episode, for success


def speed(temperature: Tensor, p: Params) -> tuple[Tensor, Tensor]:
    """Arrhenius's law: the reaction rate in 1/min, and its derivative by the temperature."""
    bounded = temperature.clamp(*_KINETICS)
    k = p["k0"] * torch.exp(-p["activation"] / bounded)
    follows = (temperature == bounded).to(k)
    return k, follows * k * p["activation"] / (bounded * bounded)


def resolvent(x: States, h: Tensor, p: Params) -> Callable[[Tensor], Tensor]:
    """``right -> (I - h J)^-1 right``, with J the Jacobian of the reactor's ``dynamics``, by elimination.

    Concentration and jacket temperature are coupled only through the reactor's temperature, and their diagonal
    elements are at least 1.
    """
    c, temperature, _ = x.unbind(-1)
    k, steeper = speed(temperature, p)
    rise = p["heat"] / (p["rho"] * p["cp"])
    renewal, exchange = p["q"] / p["V"], p["UA"] / (p["V"] * p["rho"] * p["cp"])
    warming = p["UA"] / (p["jacket_volume"] * p["jacket_capacity"])
    own_c, c_by_t = 1 + h * (renewal + k), h * steeper * c
    own_t, t_by_c, t_by_jacket = 1 + h * (renewal + exchange) - rise * c_by_t, -h * rise * k, -h * exchange
    own_jacket, jacket_by_t = 1 + h * (p["jacket_flow"] / p["jacket_volume"] + warming), -h * warming
    from_c, from_jacket = t_by_c / own_c, t_by_jacket / own_jacket
    pivot = own_t - from_c * c_by_t - from_jacket * jacket_by_t

    return functools.partial(
        _eliminate, (own_c, c_by_t, from_c), pivot, (own_jacket, jacket_by_t, from_jacket)
    )


def _eliminate(
    first_row: tuple[Tensor, ...], pivot: Tensor, last_row: tuple[Tensor, ...], right: Tensor
) -> Tensor:
    (own_c, c_by_t, from_c), (own_jacket, jacket_by_t, from_jacket) = first_row, last_row
    c, temperature, jacket = right.unbind(-1)
    middle = (temperature - from_c * c - from_jacket * jacket) / pivot
    return torch.stack(
        ((c - c_by_t * middle) / own_c, middle, (jacket - jacket_by_t * middle) / own_jacket), -1
    )


def pace(x: States, slope: States, p: Params) -> Tensor:
    """The number of steps per minute that the change of the temperature requires.

    The temperature may move by three quarters of ``T² / (E/R)`` in a step, Frank-Kamenetskii's scale of
    thermal explosion, which changes the reaction rate by a factor of 2.  It keeps a growing eigenvalue times
    the step below 0.75, away from the pole of the method's stability function at 1/gamma = 2.3.
    """
    bounded = x[..., 1].clamp(*_KINETICS)
    return p["activation"] / (0.75 * bounded * bounded) * slope[..., 1].abs()


class Reactor(Env):
    """A continuous stirred tank with an exothermic reaction has to be steered to its unstable middle steady state.

    State ``[concentration of A mol/L, reactor temperature K, jacket temperature K]``, action ``[temperature
    of the coolant at the jacket's inlet K]`` in 270 to 320, observation the state.  Time is in minutes (so
    ``dt`` is too), as in the source.  A -> B, first order by Arrhenius's law; both vessels well mixed, volumes and
    properties constant.  The source takes the jacket's temperature as given; here the jacket is a small vessel
    through which coolant flows.

    Three steady states exist around the set point, 350 K: extinguished, unstable in the middle, ignited.
    From the ignition on, the fastest eigenvalue is beyond -1e3 1/min where the slowest stays near -1, and
    the temperature rises at more than 1e4 K/min during ignition.  The solver, the Rosenbrock method ROS3, is
    L-stable and bounds its steps by the rise.

    Arrhenius's law holds from 200 to 700 K and the rate is constant beyond; ``step`` clamps the concentration to
    -1 .. 4 mol/L and the temperatures to 150 .. 1500 K (the jacket's to 700 K).  Both are far outside of what a
    reactor filled with feed can reach (559 K and cooling), and cut the gradient where they act.
    """

    name = "reactor"
    state_names = ("concentration", "temperature", "jacket_temperature")
    observation_names = state_names
    parameters = (
        Parameter("q", 100.0, "L/min", low=0.0, source=_BOOK),
        Parameter("V", 100.0, "L", low=0.0, source=_BOOK),
        Parameter("rho", 1000.0, "g/L", low=0.0, source=_BOOK),
        Parameter("cp", 0.239, "J/(g K)", low=0.0, source=_BOOK),
        Parameter("heat", 5e4, "J/mol, released", low=0.0, source=_BOOK),
        Parameter("activation", 8750.0, "K, E/R", low=0.0, source=_BOOK),
        Parameter("k0", 7.2e10, "1/min", low=0.0, source=_BOOK),
        Parameter("UA", 5e4, "J/(min K)", low=0.0, source=_BOOK),
        Parameter("feed_concentration", 1.0, "mol/L", low=0.0, source=_BOOK),
        Parameter("feed_temperature", 350.0, "K", low=0.0, source=_BOOK),
        Parameter("jacket_flow", 100.0, "L/min", low=0.0, source=_DESIGN),
        Parameter("jacket_volume", 5.0, "L", low=0.0, source=_DESIGN),
        Parameter("jacket_capacity", 4184.0, "J/(L K)", low=0.0, source="water"),
        Parameter("set_point", 350.0, "K", low=0.0, source=f"{_BOOK}, the nominal state"),
    )
    action_box = Box((270.0,), (320.0,))
    start_box = Box((0.3, 330.0, 285.0), (0.65, 352.0, 305.0))
    state_box = Box((0.05, 315.0, 270.0), (0.95, 385.0, 320.0))
    dt = 0.1
    episode_steps = 60
    view = View((-1.3, -1.0), (1.3, 1.0))
    success_criterion = Success(
        words=f"within {WARM:g} K and {MIXED} mol/L of the steady state at the set point throughout the last "
        f"{HOLD:g} min",
        share=MOST_STARTS,
        source="this project's choice",
    )
    solver = PacedRosenbrock(resolvent, pace, steps=16)

    def dynamics(self, t: Any, x: States, u: Actions, p: Params) -> States:
        """d[concentration, temperature, jacket temperature]/dt: balances of A and of energy, per minute.

        Seborg et al., eqs. 2-66 and 2-68, and the jacket's energy balance of the same form.
        """
        c, temperature, jacket = x.unbind(-1)
        k, _ = speed(temperature, p)
        renewal, exchange = p["q"] / p["V"], p["UA"] * (temperature - jacket)
        capacity = p["rho"] * p["cp"]
        rates = (
            renewal * (p["feed_concentration"] - c) - k * c,
            renewal * (p["feed_temperature"] - temperature)
            + (p["heat"] * k * c - exchange / p["V"]) / capacity,
            (p["jacket_flow"] * (u[..., 0] - jacket) + exchange / p["jacket_capacity"]) / p["jacket_volume"],
        )
        return torch.stack(rates, dim=-1)

    def step(self, x: States, u: Actions, p: Params) -> tuple[States, Costs]:
        """One control interval, after which the state is clamped to ``_BOUNDS``."""
        following, cost = super().step(x, u, p)
        return torch.clamp(following, *_BOUNDS.bounds(x)), cost

    def steady(self, p: Params) -> tuple[Tensor, Tensor, Tensor]:
        """The steady state at the set point: concentration, jacket and inlet temperature."""
        goal = p["set_point"]
        k, _ = speed(goal, p)
        c = p["q"] * p["feed_concentration"] / (p["q"] + p["V"] * k)
        taken = p["q"] * p["rho"] * p["cp"] * (p["feed_temperature"] - goal) + p["heat"] * p["V"] * k * c
        jacket = goal - taken / p["UA"]
        return c, jacket, jacket - taken / (p["jacket_flow"] * p["jacket_capacity"])

    def cost(self, x: States, u: Actions, p: Params) -> Costs:
        """``2 (sqrt(1 + e) - 1) + 0.1 ((u - held) / 25 K)²``, with e = ``((T - 350) / 10 K)² + ((c - c*) / 0.1)²``.

        c* and ``held`` belong to the steady state at the set point.  Quadratic near it, linear far away.
        """
        c, temperature, _ = x.unbind(-1)
        goal, _, held = self.steady(p)
        error = ((temperature - p["set_point"]) / 10) ** 2 + ((c - goal) / 0.1) ** 2
        return 2 * (torch.sqrt(1 + error) - 1) + 0.1 * ((u[..., 0] - held) / 25) ** 2

    def success(self, states: EpisodeStates) -> Successes:
        """Within 1 K and 0.02 mol/L of the steady state at the set point throughout the last minute."""
        c, temperature, _ = self.final_states(states, HOLD).unbind(-1)
        p = self.params(c)
        goal, _, _ = self.steady(p)
        return (((temperature - p["set_point"]).abs() < WARM) & ((c - goal).abs() < MIXED)).all(0)

    def draw(self, x: Floats, u: Floats) -> list[Shape]:
        """The tank in its jacket, the coolant, and the state in the plane of concentration and temperature."""
        c, temperature, jacket, inlet = (float(value) for value in (*x, u[0]))
        shapes: list[Shape] = [
            Polygon(_rectangle(-1.05, -0.75, -0.25, 0.35), "hot" if jacket > 300 else "cold"),
            Polygon(_rectangle(-0.97, -0.67, -0.33, 0.45), "faint"),
            Polygon(_rectangle(-0.97, -0.67, -0.33, 0.35), "limb" if temperature > 345 else "body"),
        ]
        if temperature > 365:
            shapes.append(Polygon(_rectangle(-0.97, -0.67, -0.33, 0.35), "hot"))
        # The concentration of A as a number of dots.
        for i in range(max(0, min(20, round(20 * c)))):
            spot = (-0.9 + 0.1225 * (i % 5), -0.58 + 0.24 * (i // 5))
            shapes.append(Circle(spot, 0.03, "faint"))
        stir = 0.12 * math.cos(temperature)
        shapes.append(Line([(-0.65, 0.6), (-0.65, -0.3)], "ink", 0.02))
        shapes.append(
            Line([(-0.65 - 0.12, -0.3 - 0.2 * stir), (-0.65 + 0.12, -0.3 + 0.2 * stir)], "ink", 0.04)
        )
        push = min(max((inlet - 294.0) / 26.0, -1.0), 1.0)
        colour = "hot" if push > 0 else "cold"
        shapes.append(Line([(-1.28, -0.6), (-1.13, -0.6)], colour, 0.02 + 0.08 * abs(push)))
        shapes.append(Polygon([(-1.05, -0.6), (-1.14, -0.53), (-1.14, -0.67)], colour))
        shapes.append(Text((-1.28, -0.88), f"coolant {inlet:.0f} K", 0.07))
        shapes.append(Text((-0.9, 0.75), f"{temperature:.0f} K  {c:.2f} mol/L", 0.08))
        shapes.append(Circle(_spot(c, temperature), 0.04, "limb"))
        return shapes

    def scenery(self) -> list[Shape]:
        """The axes of the state, the set point, and the adiabats: lines along which reaction alone moves the state."""
        c = self.constants
        rise = c["heat"].value / (c["rho"].value * c["cp"].value)
        shapes: list[Shape] = []
        for start in (400.0, 440.0, 480.0, 520.0, 560.0):
            ends = [(a, start - rise * a) for a in ((start - 310) / rise, (start - 410) / rise)]
            shapes.append(
                Line(
                    [_spot(min(max(a, 0.0), 1.0), start - rise * min(max(a, 0.0), 1.0)) for a, _ in ends],
                    "faint",
                )
            )
        shapes.append(Line([(0.15, 0.8), (0.15, -0.8), (1.2, -0.8)], "ink"))
        for degrees in (320, 350, 380, 410):
            shapes.append(Text((-0.06, _spot(0.0, degrees)[1] - 0.03), f"{degrees} K", 0.065))
        shapes.append(Text((0.55, -0.95), "A, 0 to 1 mol/L", 0.065))
        goal = c["set_point"].value
        k = c["k0"].value * math.exp(-c["activation"].value / goal)
        wanted = c["feed_concentration"].value * c["q"].value / (c["q"].value + c["V"].value * k)
        shapes.append(Circle(_spot(wanted, goal), 0.07, "target", filled=False))
        shapes.append(Circle(_spot(wanted, goal), 0.02, "target"))
        return shapes


def _rectangle(left: float, bottom: float, right: float, top: float) -> list[tuple[float, float]]:
    return [(left, bottom), (right, bottom), (right, top), (left, top)]


def _spot(c: float, temperature: float) -> tuple[float, float]:
    """The position of a state in the picture."""
    return 0.15 + 1.05 * min(max(c, 0.0), 1.0), -0.8 + 1.6 * (min(max(temperature, 305.0), 415.0) - 310) / 100
