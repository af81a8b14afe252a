"""A seven-joint arm, the Franka Emika Panda, reaching for poses: a position and an attitude."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from robotics_envs.base import (
    MOST_STARTS,
    Actions,
    Box,
    Costs,
    EpisodeStates,
    Observations,
    Params,
    States,
    Success,
    Successes,
)
from robotics_envs.drawing import Circle, Floats, Shape
from robotics_envs.mechanics.panda import (
    JOINT_HIGH,
    JOINT_LOW,
    MAX_TORQUE,
    READY,
    Joints,
    Points,
    Quaternions,
    attitude,
    cross,
    frames,
    hand,
)
from robotics_envs.mechanics.quaternions import rotation
from robotics_envs.simulators.arm7_point import HOLD, REACHED, Arm7Point, axes_of

TARGET_SPREAD = 0.4  # rad, of each joint about READY, where targets are drawn
_JOINTS = Box(JOINT_LOW, JOINT_HIGH)
_ROUNDING = 0.05  # m and 1, where the cost changes from quadratic to linear
TURNED = 5.0  # degrees from the target's attitude, for success
_TARGET_LOW = (-0.05, -0.4, 0.25, -0.6, 0.5, -0.9, -0.6)  # m and 1
_TARGET_HIGH = (0.5, 0.4, 0.95, 0.6, 1.0, 0.3, 0.6)


class Arm7(Arm7Point):
    """A Franka Emika Panda moves its flange to a random pose, its centre and its attitude, and rests there.

    State (21) ``[joint angles rad 7, joint rates rad/s 7, target position m 3, target quaternion w x y z
    4]``; the target is in the base frame (z up) and constant.  Action ``[joint torques N·m 7]``.
    Observation (21) ``[angles, rates, hand minus target m 3, axis times sine of the angle of the turn that
    is left 3, its cosine]``, the axis in the base frame.  Mechanics, limits and what is clamped (the rates
    at ±10 rad/s, cutting their gradient) are those of :class:`~robotics_envs.simulators.arm7_point.Arm7Point`, but the
    torques are limited to a quarter of the robot's, which is enough with gravity compensated.

    The attitude is that of the flange's frame, which Franka's kinematics leaves parallel to the last link's.
    A target quaternion of any length other than zero stands for the attitude of its direction, and it and
    its negative for the same one.  ``reset`` draws targets that the arm can reach: its pose at random joint
    angles.  The state box combines any position near those with any attitude near those, so that a target
    in it may be out of reach; the least cost is then above zero.
    """

    name = "arm7"
    state_names = (
        *Arm7Point.state_names,
        *("target_quaternion_w", "target_quaternion_x", "target_quaternion_y", "target_quaternion_z"),
    )
    observation_names = (
        *Arm7Point.observation_names,
        *("turn_x", "turn_y", "turn_z", "turn_cosine"),
    )
    start_box = Box(
        (*Arm7Point.start_box.low[:14], *_TARGET_LOW), (*Arm7Point.start_box.high[:14], *_TARGET_HIGH)
    )
    """Of the angles and rates; targets are those of joint angles within ``TARGET_SPREAD`` of ``READY``."""
    action_box = Box.symmetric(*(0.25 * torque for torque in MAX_TORQUE))
    state_box = Box(
        (*(max(q - 1.0, low) for q, low in zip(READY, JOINT_LOW, strict=True)), *(-1.5,) * 7, *_TARGET_LOW),
        (
            *(min(q + 1.0, high) for q, high in zip(READY, JOINT_HIGH, strict=True)),
            *(1.5,) * 7,
            *_TARGET_HIGH,
        ),
    )
    dt = 0.04
    episode_steps = 75
    success_criterion = Success(
        words=f"hand within {100 * REACHED:g} cm and {TURNED:g}° of the target throughout the last {HOLD:g} s",
        share=MOST_STARTS,
        source="this project's choice",
    )

    def misalignment(self, q: Joints, target: Quaternions) -> Float[Tensor, " batch"]:
        """Half of 1 minus the cosine of the angle from the flange's attitude to that of ``target``."""
        axes, _ = frames(q)
        return 0.25 * (3 - (axes[:, -1].flatten(-2) * rotation(target)).sum(-1))

    def turn_left(self, q: Joints, target: Quaternions) -> tuple[Points, Float[Tensor, "batch 1"]]:
        """Of the turn from the flange's attitude to that of ``target``: axis times sine, and cosine."""
        axes, _ = frames(q)
        wanted = rotation(target).unflatten(-1, (3, 3))
        both = 0.5 * cross(axes[:, -1].mT, wanted.mT).sum(-2)
        return both, 1 - 2 * self.misalignment(q, target).unsqueeze(-1)

    def cost(self, x: States, u: Actions, p: Params) -> Costs:
        """``2 h(d) + h(sin(angle/2)) + 0.01 |rates|² + 0.005 |u / bound|² + |limits passed|²``.

        ``h(a) = sqrt(a² + 0.05²) - 0.05`` is smooth at zero and close to |a| far from it, so that small errors
        still count; d is the distance m of the hand to the target position and the angle that of the rotation
        to the target attitude.  A rotation of 1 rad costs about as much as 0.25 m.
        """
        q, qd, target, quaternion = x.split((7, 7, 3, 4), dim=-1)
        effort = u / self.action_box.bounds(u)[1]
        beyond = q - q.clamp(*_JOINTS.bounds(q))
        far = torch.sqrt(((hand(q) - target) ** 2).sum(-1) + _ROUNDING**2) - _ROUNDING
        turned = torch.sqrt(self.misalignment(q, quaternion) + _ROUNDING**2) - _ROUNDING
        return 2 * far + turned + (0.01 * qd**2 + 0.005 * effort**2 + beyond**2).sum(-1)

    def observe(self, x: States) -> Observations:
        """``[angles, rates, hand minus target, axis times sine of the turn that is left, its cosine]``."""
        without, quaternion = x.split((17, 4), dim=-1)
        return torch.cat((super().observe(without), *self.turn_left(x[:, :7], quaternion)), dim=-1)

    def reset(self, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """Angles and rates from the start box and targets that the arm can reach, ``[batch, 21]``."""
        x = super().reset(batch, generator, dtype)
        poses = Box(tuple(q - TARGET_SPREAD for q in READY), tuple(q + TARGET_SPREAD for q in READY))
        q = poses.sample(batch, generator, dtype)
        quaternion = attitude(q)
        # Of the two quaternions of an attitude the one in the state box.
        quaternion = torch.where(quaternion[:, 1:2] < 0, -quaternion, quaternion)
        return torch.cat((x[:, :14], hand(q), quaternion), dim=-1)

    def success(self, states: EpisodeStates) -> Successes:
        """The hand is within 2 cm and 5° of the target throughout the last 0.5 s."""
        x = self.final_states(states, HOLD)
        q, target = x[..., :7].flatten(0, 1), x[..., 17:21].flatten(0, 1)
        aligned = self.misalignment(q, target) < math.sin(math.radians(TURNED) / 2) ** 2
        return (self.reached(x) & aligned.unflatten(0, x.shape[:2])).all(0)

    def draw(self, x: Floats, u: Floats) -> list[Shape]:
        """The arm as ``arm7_point`` draws it, and the target: a ring with long thin axes."""
        turn = rotation(torch.from_numpy(np.asarray(x[17:21], float))).reshape(3, 3).numpy()
        place = np.asarray(x[14:17], float)
        ring = Circle(place.tolist(), 0.04, "target", filled=False)
        return [*self.draw_arm(x, u), *axes_of(place, turn, 0.2, 0.006), ring]
