"""The soft end stop of a joint, as MuJoCo computes it, in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Values = Float[Tensor, " batch"]
Constant = float | Float[Tensor, ""] | Float[Tensor, " batch"]
"""A number, or the same as a tensor through which gradients flow."""


@dataclass(frozen=True)
class JointLimit:
    """The limits of a hinge (rad) or slide joint (m): a spring and damper that only push.

    MuJoCo solves one convex problem for all its constraints.  With a single one active, the limit of
    this joint, the solution is a formula (MuJoCo documentation, chapter Computation, "Constraint
    model", and chapter Modeling, "Solver parameters").  With r the signed distance to the limit less
    ``margin`` (negative beyond it), and acceleration, velocity and force counted away from the limit:

    - impedance ``d`` rises from ``impedance[0]`` at r = 0 to ``impedance[1]`` at |r| = ``impedance[2]``
      along two power curves (exponent ``impedance[4]``) that meet at ``impedance[3]`` of the way;
    - reference acceleration ``-b v - k d r``, where ``b = 2 / (d1 time_constant)``,
      ``k = 1 / (d1 time_constant damping_ratio)²`` and d1 is ``impedance[1]``;
    - regularisation ``R = (1 - d) / d * inverse_weight``;
    - force ``max(0, (reference - acceleration) / (inverse_inertia + R))``.

    ``time_constant`` and ``damping_ratio`` are the MJCF's ``solreflimit``, ``impedance`` is its
    ``solimplimit``, ``margin`` the joint's margin.  ``inverse_weight`` is MuJoCo's ``dof_invweight0``: the
    diagonal element of the inverse mass matrix in the model's reference pose (1/kg or 1/(kg m²)).
    It and the limits may be tensors made of a simulator's parameters, so that gradients reach those.
    MuJoCo raises a time constant to twice its time step if it is shorter; that is not done here.

    The gradient is cut inside the limits, where the force is the constant 0, and where the joint
    already leaves a limit faster than the reference acceleration requires.
    """

    low: Constant
    high: Constant
    inverse_weight: Constant
    time_constant: float = 0.02
    damping_ratio: float = 1.0
    margin: float = 0.0
    impedance: tuple[float, float, float, float, float] = (0.9, 0.95, 0.001, 0.5, 2.0)

    def __post_init__(self) -> None:
        near, far, width, middle, power = self.impedance
        if not (0 < near < 1 and 0 < far < 1 and width > 0 and 0 < middle < 1 and power >= 1):
            raise ValueError(
                "an impedance is two numbers in (0, 1), a width > 0, a midpoint in (0, 1) and a power >= 1, "
                f"got {self.impedance}"
            )
        if not (self.time_constant > 0 and self.damping_ratio > 0):
            raise ValueError(
                "time constant and damping ratio must be positive, "
                f"got {self.time_constant} and {self.damping_ratio}"
            )

    def force(
        self, position: Values, velocity: Values, acceleration: Values, inverse_inertia: Values
    ) -> Values:
        """The generalised force ``[B]`` along the joint, N or N·m: 0 inside, towards the inside beyond a limit.

        ``acceleration`` is the joint's under all other forces, ``inverse_inertia`` its diagonal element of
        the inverse mass matrix in this pose.
        """
        above, below = position - self.low, self.high - position
        inward = torch.where(above < below, torch.ones_like(position), -torch.ones_like(position))
        distance = torch.minimum(above, below) - self.margin
        impedance = self._impedance(distance)

        stiffest = self.impedance[1] * self.time_constant
        damping, stiffness = 2 / stiffest, 1 / (stiffest * self.damping_ratio) ** 2
        reference = -damping * inward * velocity - stiffness * impedance * distance
        softness = (1 - impedance) / impedance * self.inverse_weight
        push = (reference - inward * acceleration) / (inverse_inertia + softness)
        return torch.where(distance < 0, inward * torch.relu(push), 0.0)

    def _impedance(self, distance: Values) -> Values:
        near, far, width, middle, power = self.impedance
        way = (distance.abs() / width).clamp_max(1.0)
        rising = way**power / middle ** (power - 1)
        levelling = 1 - (1 - way) ** power / (1 - middle) ** (power - 1)
        return near + (far - near) * torch.where(way <= middle, rising, levelling)
