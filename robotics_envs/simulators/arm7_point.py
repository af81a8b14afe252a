"""A seven-joint arm, the Franka Emika Panda, reaching for points."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
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
from robotics_envs.mechanics.panda import (
    FLANGE,
    JOINT_HIGH,
    JOINT_LOW,
    MAX_RATE,
    MAX_TORQUE,
    READY,
    bias,
    frames,
    hand,
    mass_matrix,
    motion,
)
from solvers.methods.runge_kutta import RK4

RATE_STOP = 10.0  # rad/s
REACHED = 0.02  # m from the target, for success
HOLD = 0.5  # s at the end of an episode, for success
_TARGET_LOW, _TARGET_HIGH = (0.3, -0.4, 0.2), (0.6, 0.4, 0.7)  # m

_MUJOCO = "MuJoCo Menagerie, franka_emika_panda/panda.xml"
_JOINTS = Box(JOINT_LOW, JOINT_HIGH)


def axes_of(origin: Floats, turn: Floats, length: float, width: float) -> list[Shape]:
    """The axes of a frame, the columns of ``turn [3, 3]``: x orange, y blue and z black."""
    tips = zip((origin + length * turn.T).tolist(), ("limb", "cold", "ink"), strict=True)
    return [Line([origin.tolist(), tip], colour, width) for tip, colour in tips]


class Arm7Point(Env):
    """A Franka Emika Panda moves the centre of its flange to a random point and rests there.

    State (17) ``[joint angles rad 7, joint rates rad/s 7, target m 3 (base frame, z up, constant)]``,
    action ``[joint torques N·m 7]`` within the robot's limits, observation (17) ``[angles, rates, hand
    minus target m]``.  The torque of gravity is compensated exactly, as the robot's own controller
    does, so actions come on top of it and gravity leaves the dynamics.  Inertia: Gaz et al. 2019 (see
    ``robotics_envs.mechanics.panda.LINKS``); no gripper.

    Nothing stops the joints at their limits; going beyond costs.  After each step the rates are clamped
    to ±10 rad/s (the robot itself stops at ``MAX_RATE``), which keeps wild actions finite and cuts the
    gradient of a rate where it acts.
    """

    name = "arm7_point"
    state_names = (
        *(f"angle_{i}" for i in range(1, 8)),
        *(f"rate_{i}" for i in range(1, 8)),
        *("target_x", "target_y", "target_z"),
    )
    observation_names = (*state_names[:14], "error_x", "error_y", "error_z")
    parameters = (
        Parameter("damping", 1.0, "N·m·s/rad, of each joint", low=0.0, source=_MUJOCO),
        Parameter("armature", 0.1, "kg m², rotor inertia at each joint", low=0.0, source=_MUJOCO),
    )
    action_box = Box.symmetric(*MAX_TORQUE)
    start_box = Box(
        (*(q - 0.3 for q in READY), *(-0.1,) * 7, *_TARGET_LOW),
        (*(q + 0.3 for q in READY), *(0.1,) * 7, *_TARGET_HIGH),
    )
    state_box = Box(
        (*JOINT_LOW, *(-rate for rate in MAX_RATE), *_TARGET_LOW), (*JOINT_HIGH, *MAX_RATE, *_TARGET_HIGH)
    )
    dt = 0.02
    episode_steps = 150
    view = View((-0.85, -0.3), (0.85, 1.2), azimuth=-55.0, elevation=18.0)
    success_criterion = Success(
        words=f"hand within {100 * REACHED:g} cm of the target throughout the last {HOLD:g} s",
        share=MOST_STARTS,
        source="this project's choice",
    )
    solver = RK4()

    def dynamics(self, t: Any, x: States, u: Actions, p: Params) -> States:
        """d[angles, rates, target]/dt: ``M(q) qdd = torque - damping qd - bias(q, qd)``; the target is constant."""
        q, qd, target = x.split((7, 7, x.shape[-1] - 14), dim=-1)
        at = motion(q)
        torque = u - p["damping"].unsqueeze(-1) * qd - bias(at, qd)
        factor, _ = torch.linalg.cholesky_ex(mass_matrix(at, p["armature"]))
        qdd = torch.cholesky_solve(torque.unsqueeze(-1), factor).squeeze(-1)
        return torch.cat((qd, qdd, torch.zeros_like(target)), dim=-1)

    def step(self, x: States, u: Actions, p: Params) -> tuple[States, Costs]:
        """One control interval; the rates are clamped to ±10 rad/s at its end, which cuts their gradient."""
        following, cost = super().step(x, u, p)
        q, qd, target = following.split((7, 7, x.shape[-1] - 14), dim=-1)
        return torch.cat((q, qd.clamp(-RATE_STOP, RATE_STOP), target), dim=-1), cost

    def cost(self, x: States, u: Actions, p: Params) -> Costs:
        """Squared distance m² of the hand to the target; small terms for rates, torques and passed limits."""
        q, qd, target = x.split((7, 7, 3), dim=-1)
        effort = u / self.action_box.bounds(u)[1]
        beyond = q - q.clamp(*_JOINTS.bounds(q))
        near = ((hand(q) - target) ** 2).sum(-1)
        return near + (0.005 * qd**2 + 0.005 * effort**2 + beyond**2).sum(-1)

    def observe(self, x: States) -> Observations:
        """``[angles, rates, hand minus target]``."""
        q, qd, target = x.split((7, 7, 3), dim=-1)
        return torch.cat((q, qd, hand(q) - target), dim=-1)

    def success(self, states: EpisodeStates) -> Successes:
        """The hand is within 2 cm of the target throughout the last 0.5 s."""
        return self.reached(self.final_states(states, HOLD)).all(0)

    def reached(self, x: EpisodeStates) -> Bool[Tensor, "times batch"]:
        """Where the hand is within 2 cm of the target."""
        q, target = x[..., :7].flatten(0, 1), x[..., 14:17].flatten(0, 1)
        near = ((hand(q) - target) ** 2).sum(-1) < REACHED**2
        return near.unflatten(0, x.shape[:2])

    def draw(self, x: Floats, u: Floats) -> list[Shape]:
        """The links, a ring about each joint that grows with its torque, and the target as a disc."""
        return [*self.draw_arm(x, u), Circle(x[14:17].tolist(), 0.03, "target")]

    def draw_arm(self, x: Floats, u: Floats) -> list[Shape]:
        """The links as lines from joint to joint, the flange's axes, and the torques as rings."""
        turns, origins = (v[0].numpy() for v in frames(torch.from_numpy(np.asarray(x[:7], float))[None]))
        tip = origins[-1] + FLANGE * turns[-1, :, 2]
        chain = [(0.0, 0.0, 0.0), *origins.tolist(), tip.tolist()]
        widths = (0.11, 0.11, 0.1, 0.1, 0.09, 0.08, 0.07, 0.05)
        shapes: list[Shape] = [
            Line(ends, "body", width) for *ends, width in zip(chain[:-1], chain[1:], widths, strict=True)
        ]
        for origin, torque, most in zip(chain[1:8], u, MAX_TORQUE, strict=True):
            shapes.append(Circle(origin, 0.03, "joint"))
            shapes.append(Circle(origin, 0.03 + 0.07 * abs(float(torque)) / most, "force", filled=False))
        return [*shapes, *axes_of(tip, turns[-1], 0.12, 0.016)]

    def scenery(self) -> list[Shape]:
        """The ground and the forward direction, x."""
        corners = [(a, b, 0.0) for a, b in ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5))]
        return [Polygon(corners, "faint"), Line([(0.0, 0.0, 0.0), (0.5, 0.0, 0.0)], "ground", 0.01)]
