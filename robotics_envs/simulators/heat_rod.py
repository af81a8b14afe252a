"""A metal rod heated and cooled at its ends: the heat equation by the method of lines."""

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
from robotics_envs.drawing import Circle, Floats, Line, Polygon, Shape, Text, View
from solvers.methods.chebyshev import RungeKuttaChebyshev

_BOOK = "Incropera, DeWitt, Bergman, Lavine, Fundamentals of Heat and Mass Transfer, 6th ed."
_METAL = f"{_BOOK}, table A.1, pure aluminium at 300 K"
_DESIGN = "this task's choice"
CELLS = 100
SENSORS = 5
MAX_POWER = 80.0  # W, of each thermoelectric module
_SCALE = 10.0  # K, the error that costs 1
WARM = 2.0  # K, root mean square error, for success


class HeatRod(Env):
    """A rod has to be brought to a linear temperature profile between two target temperatures at its ends.

    State (102) ``[cell temperatures °C 100 (from left to right), target left °C, target right °C]``, action
    ``[power left W, power right W]`` in ±80 that thermoelectric modules put into the end faces, negative
    for cooling; observation (7) ``[mean temperatures of five equal segments °C, target left, target
    right]``; temperatures within a segment are not observed.  The targets do not change in an episode.

    One-dimensional heat conduction with convection from the surface to the surroundings, by finite
    volumes: uniform cells, fluxes by central differences at the faces between them, second order in the
    width of a cell.  ``dynamics`` takes its number of cells from the state, so that the same equations
    describe finer discretisations.

    The eigenvalues are real, negative and not below ``-4 k / (rho cp w²)`` less the small
    convection rate, for cells of width w: -62 1/s here.  RK4 is stable where that times the step is below
    2.78, which would take 23 substeps of four evaluations an interval; eleven stages of RKC (limit 78)
    take the interval of 1 s in one.  So ``k / (rho cp)`` can be raised by a quarter, as from aluminium to
    copper, before more stages are needed.
    """

    name = "heat_rod"
    state_names = (*(f"temperature_{i}" for i in range(1, CELLS + 1)), "target_left", "target_right")
    observation_names = (*(f"segment_{i}" for i in range(1, SENSORS + 1)), "target_left", "target_right")
    parameters = (
        Parameter("k", 237.0, "W/(m K)", low=0.0, source=_METAL),
        Parameter("rho", 2702.0, "kg/m³", low=0.0, source=_METAL),
        Parameter("cp", 903.0, "J/(kg K)", low=0.0, source=_METAL),
        Parameter("length", 0.25, "m", low=0.0, source=_DESIGN),
        Parameter("diameter", 0.02, "m", low=0.0, source=_DESIGN),
        Parameter(
            "h", 10.0, "W/(m² K)", low=0.0, source=f"{_BOOK}, table 1.1: free convection in gases 2 to 25"
        ),
        Parameter("ambient", 20.0, "°C", source=_DESIGN),
    )
    action_box = Box.symmetric(MAX_POWER, MAX_POWER)
    start_box = Box((*(10.0,) * CELLS, 30.0, 30.0), (*(70.0,) * CELLS, 50.0, 50.0))
    state_box = start_box
    dt = 1.0
    episode_steps = 90
    cost_of_reached_state = True
    view = View((-0.3, -0.35), (1.3, 1.15))
    success_criterion = Success(
        words=f"root mean square error over the rod below {WARM:g} K at the end",
        share=MOST_STARTS,
        source="this project's choice: the control with the highest return, a quadratic program, ends within 1.6 K "
        "from all of 128 starts, within 1 K from 118",
    )
    solver = RungeKuttaChebyshev(stages=11)

    def dynamics(self, t: Any, x: States, u: Actions, p: Params) -> States:
        """d[temperatures, targets]/dt: ``rho cp dT/dt = k d²T/ds² - (4 h / diameter) (T - ambient)``.

        Incropera, DeWitt, Bergman, Lavine, section 3.6, eq. 3.61 (a fin of constant cross-section), with
        storage added; flux ``-k dT/ds`` = power over cross-section at the ends.
        """
        cells = x.shape[-1] - 2
        temperature, target = x.split((cells, 2), dim=-1)
        k, rho, cp, length, diameter, h, ambient = (p[c.name].unsqueeze(-1) for c in self.parameters)
        width, section = length / cells, math.pi / 4 * diameter**2
        inside = k / width * (temperature[:, :-1] - temperature[:, 1:])
        left, right = (u / section).split(1, dim=-1)
        flux = torch.cat((left, inside, -right), dim=-1)  # W/m² to the right, through each face
        loss = 4 * h / diameter * (temperature - ambient)  # W/m³
        rate = ((flux[:, :-1] - flux[:, 1:]) / width - loss) / (rho * cp)
        return torch.cat((rate, torch.zeros_like(target)), dim=-1)

    def cost(self, x: States, u: Actions, p: Params) -> Costs:
        """Mean over the rod of ``((T - profile) / 10 K)²``, and ``0.01 |power / 80 W|²``."""
        temperature, target = x.split((x.shape[-1] - 2, 2), dim=-1)
        error = (temperature - profile(target, temperature.shape[-1])) / _SCALE
        return (error * error).mean(-1) + 0.01 * ((u / MAX_POWER) ** 2).sum(-1)

    def observe(self, x: States) -> Observations:
        """``[mean temperatures of the segments, targets]``."""
        temperature, target = x.split((x.shape[-1] - 2, 2), dim=-1)
        means = temperature.unflatten(-1, (SENSORS, temperature.shape[-1] // SENSORS)).mean(-1)
        return torch.cat((means, target), dim=-1)

    def reset(self, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """``[batch, 102]``: smooth profiles ``a + b cos(pi s) + c cos(2 pi s)`` along the rod, s from 0 to 1.

        a is uniform from 30 to 50 °C, b and c from -10 to 10 K, and the targets as in the start box.
        """
        x = super().reset(batch, generator, dtype)
        a, b, c = (2 * torch.rand(3, batch, 1, generator=generator, dtype=dtype, device=x.device) - 1).unbind(
            0
        )
        angle = math.pi * centres(x, CELLS)
        start = 40 + 10 * (a + b * torch.cos(angle) + c * torch.cos(2 * angle))
        return torch.cat((start, x[:, CELLS:]), dim=-1)

    def success(self, states: EpisodeStates) -> Successes:
        """The root mean square error over the rod is below 2 K at the end."""
        temperature, target = states[-1].split((states.shape[-1] - 2, 2), dim=-1)
        error = temperature - profile(target, temperature.shape[-1])
        return (error**2).mean(-1) < WARM**2

    def draw(self, x: Floats, u: Floats) -> list[Shape]:
        """The profile over the rod, the target, the powers of the modules, and which parts are too hot or too cold."""
        temperature = np.asarray(x[:-2], dtype=float)
        s = (np.arange(len(temperature)) + 0.5) / len(temperature)
        target = x[-2] + (x[-1] - x[-2]) * s
        shapes: list[Shape] = []
        for part in np.array_split(np.arange(len(s)), 25):
            off = float((temperature[part] - target[part]).mean())
            colour = "hot" if off > 1.0 else "cold" if off < -1.0 else "target"
            low, high = part[0] / len(s), (part[-1] + 1) / len(s)
            shapes.append(Polygon([(low, -0.12), (high, -0.12), (high, 0.0), (low, 0.0)], colour))
        shapes.append(Line([(0.0, _height(x[-2])), (1.0, _height(x[-1]))], "target", 0.012))
        shapes += [
            Circle((side, _height(goal)), 0.02, "target") for side, goal in ((0.0, x[-2]), (1.0, x[-1]))
        ]
        curve = [(float(a), _height(value)) for a, value in zip(s, temperature, strict=True)]
        shapes.append(Line(curve, "ink", 0.018))
        for face, outward, power in ((0.0, -1.0, float(u[0])), (1.0, 1.0, float(u[1]))):
            reach = 0.15 * abs(power) / MAX_POWER
            near, far = face + 0.06 * outward, face + (0.06 + reach) * outward
            tip, tail = (near, far) if power > 0 else (far, near)
            colour = "hot" if power > 0 else "cold"
            head = tip + 0.04 * (1.0 if tail > tip else -1.0)
            shapes.append(Line([(tail, -0.06), (head, -0.06)], colour, 0.03))
            shapes.append(Polygon([(tip, -0.06), (head, -0.02), (head, -0.1)], colour))
        return shapes

    def scenery(self) -> list[Shape]:
        """The modules at the ends and the scale of temperatures."""
        shapes: list[Shape] = []
        for degrees in (0, 20, 40, 60, 80):
            height = _height(degrees)
            shapes.append(Line([(0.0, height), (1.0, height)], "faint"))
            shapes.append(Text((-0.25, height - 0.02), f"{degrees} °C", 0.05))
        for low, high in ((-0.05, 0.0), (1.0, 1.05)):
            shapes.append(Polygon([(low, -0.16), (high, -0.16), (high, 0.04), (low, 0.04)], "ground"))
        return shapes


def centres(like: Tensor, cells: int) -> Tensor:
    """The middles of the cells as fractions of the rod, ``[cells]``."""
    return (torch.arange(cells, dtype=like.dtype, device=like.device) + 0.5) / cells


def profile(target: Tensor, cells: int) -> Tensor:
    """The target temperatures, ``[B, 2]`` at the ends -> ``[B, cells]``."""
    left, right = target.split(1, dim=-1)
    return left + (right - left) * centres(target, cells)


def _height(temperature: float) -> float:
    """The height of a temperature in the picture."""
    return 0.1 + 0.012 * min(max(float(temperature), -10.0), 90.0)
