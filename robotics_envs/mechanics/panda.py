"""The Franka Emika Panda, a seven-joint arm: kinematics, mass matrix and bias torques in closed form.

Angles are rad, lengths m, masses kg; vectors are in the base frame, whose z points up.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from robotics_envs.mechanics.quaternions import product

Joints = Float[Tensor, "batch 7"]
Points = Float[Tensor, "batch 3"]
Quaternions = Float[Tensor, "batch 4"]


class Link(NamedTuple):
    """A link in its modified Denavit–Hartenberg frame (Craig): z is the axis of the joint that moves it.

    From the frame before, the frame is turned by ``twist`` quarter turns about the old x, shifted by
    ``a`` m along it, turned by the joint angle about its own z and shifted by ``d`` m along that.
    """

    twist: int
    a: float
    d: float
    mass: float  # kg
    centre: tuple[float, float, float]  # of mass, m, in the link's frame
    inertia: tuple[float, float, float, float, float, float]  # xx yy zz xy xz yz about the centre, kg m²


# Kinematics and limits: Franka Control Interface documentation, "Robot and interface specifications".
# Inertia: Gaz, Cognetti, Oliva, Robuffo Giordano, De Luca, Dynamic Identification of the Franka Emika
# Panda Robot With Retrieval of Feasible Parameters Using Penalty-Based Optimization, RA-L 4(4), 2019.
# The height of the first centre has no effect on the motion, so it cannot be identified and is 0 there.
LINKS = (
    Link(
        0, 0.0, 0.333, 4.970684, (0.003875, 0.002081, 0.0),
        (0.70337, 0.70661, 0.009117, -0.000139, 0.006772, 0.019169),
    ),
    Link(
        -1, 0.0, 0.0, 0.646926, (-0.003141, -0.02872, 0.003495),
        (0.007962, 0.02811, 0.025995, -0.003925, 0.010254, 0.000704),
    ),
    Link(
        1, 0.0, 0.316, 3.228604, (0.027518, 0.039252, -0.066502),
        (0.037242, 0.036155, 0.01083, -0.004761, -0.011396, -0.012805),
    ),
    Link(
        1, 0.0825, 0.0, 3.587895, (-0.05317, 0.104419, 0.027454),
        (0.025853, 0.019552, 0.028323, 0.007796, -0.001332, 0.008641),
    ),
    Link(
        -1, -0.0825, 0.384, 1.225946, (-0.011953, 0.041065, -0.038437),
        (0.035549, 0.029474, 0.008627, -0.002117, -0.004037, 0.000229),
    ),
    Link(
        1, 0.0, 0.0, 1.666555, (0.060149, -0.014117, -0.010517),
        (0.001964, 0.004354, 0.005433, 0.000109, -0.001158, 0.000341),
    ),
    Link(
        1, 0.088, 0.0, 0.735522, (0.010517, -0.004252, 0.061597),
        (0.012516, 0.010027, 0.004815, -0.000428, -0.001196, -0.000741),
    ),
)  # fmt: skip
FLANGE = 0.107  # m along the last z
JOINT_LOW = (-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973)  # rad
JOINT_HIGH = (2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973)  # rad
MAX_RATE = (2.175, 2.175, 2.175, 2.175, 2.61, 2.61, 2.61)  # rad/s
MAX_TORQUE = (87.0, 87.0, 87.0, 87.0, 12.0, 12.0, 12.0)  # N·m
READY = (0.0, -math.pi / 4, 0.0, -3 * math.pi / 4, 0.0, math.pi / 2, math.pi / 4)  # rad


class Constants(NamedTuple):
    """Masses, centres of mass and inertias of the links as tensors."""

    mass: Float[Tensor, "7 1"]
    carried: Float[Tensor, "7 1"]
    """The mass from each link to the hand."""
    centre: Float[Tensor, "7 3 1"]
    inertia: Float[Tensor, "7 3 3"]
    below: Tensor
    """True on and below the diagonal, ``[7, 7]``."""
    unit: Float[Tensor, "7 7"]


@functools.lru_cache(maxsize=64)
def _constants(dtype: torch.dtype, device: torch.device) -> Constants:
    def tensor(values: Sequence[Any]) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    # Ordinary tensors even if first made in inference mode.
    with torch.inference_mode(False):
        inertia = [
            (xx, xy, xz, xy, yy, yz, xz, yz, zz) for xx, yy, zz, xy, xz, yz in (k.inertia for k in LINKS)
        ]
        return Constants(
            tensor([link.mass for link in LINKS]).unsqueeze(-1),
            tensor([sum(link.mass for link in LINKS[i:]) for i in range(7)]).unsqueeze(-1),
            tensor([link.centre for link in LINKS]).unsqueeze(-1),
            tensor(inertia).unflatten(-1, (3, 3)),
            torch.ones(7, 7, dtype=torch.bool, device=device).tril(),
            torch.eye(7, dtype=dtype, device=device),
        )


def cross(a: Tensor, b: Tensor) -> Tensor:
    """``a × b`` over the last dimension."""
    ax, ay, az = a.unbind(-1)
    bx, by, bz = b.unbind(-1)
    return torch.stack((ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx), dim=-1)


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    """``matrix [..., 3, 3]`` times ``vector [..., 3]``."""
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def _outwards(values: Tensor) -> Tensor:
    """Sums along the chain from the base to each link, ``[B, 7, k]``."""
    return torch.stack(list(itertools.accumulate(values.unbind(1))), dim=1)


def _inwards(values: Tensor) -> Tensor:
    """Sums along the chain from the hand to each link, ``[B, 7, k]``."""
    return torch.stack(list(itertools.accumulate(reversed(values.unbind(1))))[::-1], dim=1)


class Motion(NamedTuple):
    """Positions of the links. All vectors are in the base frame (z up) and moments about its origin."""

    centre: Tensor
    """Centres of mass, m, ``[B, 7, 3]``."""
    inertia: Tensor
    """About the centres of mass, kg m², ``[B, 7, 3, 3]``."""
    axis: Tensor
    """Of the joints, ``[B, 7, 3]``."""
    arm: Tensor
    """The velocity of the origin under a unit turn of each joint, m, ``[B, 7, 3]``."""


def attitude(q: Joints) -> Quaternions:
    """The attitude of the flange in the base frame at the joint angles ``q`` rad, a unit quaternion.

    The product of the rotations of all links, so it is smooth in the angles, also over several turns.
    """
    half, zero = 0.5 * q, torch.zeros_like(q)
    about_z = torch.stack((torch.cos(half), zero, zero, torch.sin(half)), dim=-1)
    total = about_z[:, 0]
    for i, link in enumerate(LINKS[1:], start=1):
        quarter = math.pi / 4 * link.twist
        about_x = about_z.new_tensor((math.cos(quarter), math.sin(quarter), 0.0, 0.0)).expand_as(total)
        total = product(total, product(about_x, about_z[:, i]))
    return total


def frames(q: Joints) -> tuple[Tensor, Tensor]:
    """Orientation ``[B, 7, 3, 3]`` (columns are axes) and origin m ``[B, 7, 3]`` of the link frames."""
    cos, sin = (f(q).unsqueeze(-1).unbind(1) for f in (torch.cos, torch.sin))
    zero, one = torch.zeros_like(cos[0]), torch.ones_like(cos[0])
    x, y = torch.cat((cos[0], sin[0], zero), -1), torch.cat((-sin[0], cos[0], zero), -1)
    z = torch.cat((zero, zero, one), -1)
    origin = LINKS[0].d * z
    axes, origins = [torch.stack((x, y, z), -1)], [origin]
    for link, c, s in zip(LINKS[1:], cos[1:], sin[1:], strict=True):
        # A quarter turn about x takes y to z and z to -y; a negative one takes y to -z and z to y.
        if link.a:
            origin = origin + link.a * x
        before, z, y = x, (-y, y)[link.twist < 0], (z, -z)[link.twist < 0]
        x, y = c * before + s * y, c * y - s * before
        if link.d:
            origin = origin + link.d * z
        axes.append(torch.stack((x, y, z), -1))
        origins.append(origin)
    return torch.stack(axes, 1), torch.stack(origins, 1)


def hand(q: Joints) -> Points:
    """The centre of the flange in the base frame, m."""
    axes, origins = frames(q)
    return origins[:, -1] + FLANGE * axes[:, -1, :, 2]


def motion(q: Joints) -> Motion:
    """Positions of the links at the joint angles ``q`` rad."""
    constants, (axes, origins) = _constants(q.dtype, q.device), frames(q)
    return Motion(
        origins + (axes @ constants.centre).squeeze(-1),
        axes @ constants.inertia @ axes.mT,
        axes[..., 2],
        cross(origins, axes[..., 2]),
    )


def mass_matrix(at: Motion, armature: Tensor) -> Float[Tensor, "batch 7 7"]:
    """M(q) with the rotors' ``armature [B] or []`` kg m², kg m²: the kinetic energy is ``qd' M qd / 2``."""
    # Composite rigid bodies: M_ij, i <= j, is the momentum that a unit rate of joint j gives to
    # the links from j on, along the axis of joint i.
    constants = _constants(at.axis.dtype, at.axis.device)
    x, y, z = at.centre.unbind(-1)
    mx, my, mz = (first := constants.mass * at.centre).unbind(-1)
    xx, yy, zz, xy, xz, yz = mx * x, my * y, mz * z, mx * y, mx * z, my * z
    shift = torch.stack((yy + zz, -xy, -xz, -xy, xx + zz, -yz, -xz, -yz, xx + yy), dim=-1)
    first, inertia = _inwards(first), _inwards(at.inertia.flatten(-2) + shift).unflatten(-1, (3, 3))
    angular = _times(inertia, at.axis) + cross(first, at.arm)
    linear = constants.carried * at.arm + cross(at.axis, first)
    upper = torch.cat((at.axis, at.arm), -1) @ torch.cat((angular, linear), -1).mT
    rotors = armature.unsqueeze(-1).unsqueeze(-1) * constants.unit
    return torch.where(constants.below, upper.mT, upper) + rotors


def bias(at: Motion, qd: Joints, g: float = 0.0) -> Joints:
    """The torques N·m that keep the rates ``qd`` rad/s constant, friction aside, under gravity g m/s² along -z."""
    # Newton–Euler in the base frame. Velocities and accelerations are those of the body's point at
    # the base's origin (Featherstone, Rigid Body Dynamics Algorithms, 2008, §2.11 and table 5.1).
    mass, rate = _constants(at.axis.dtype, at.axis.device).mass, qd.unsqueeze(-1)
    spin, slide = rate * at.axis, rate * at.arm
    w, v = _outwards(torch.cat((spin, slide), -1)).split(3, -1)
    turning = torch.cat((cross(w, spin), cross(w, slide) + cross(v, spin)), -1)
    dw, dv = _outwards(turning).split(3, -1)
    centre_v = v + cross(w, at.centre)
    force = mass * (dv + cross(dw, at.centre) + cross(w, centre_v))
    if g:
        force = force + mass * force.new_tensor((0.0, 0.0, g))
    moment = _times(at.inertia, dw) + cross(w, _times(at.inertia, w)) + cross(at.centre, force)
    moment, force = _inwards(torch.cat((moment, force), -1)).split(3, -1)
    return (at.axis * moment + at.arm * force).sum(-1)
