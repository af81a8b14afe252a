"""Forces of springs, dampers and actuators, and how they change with velocity."""

from __future__ import annotations

from robotics_envs.robots.model import Actuator, RobotModel
from robotics_envs.robots.scalars import Scalar, Vec, add, both, clamp, is_zero, mul, sub, where


def passive(model: RobotModel, q: Vec, v: Vec) -> list[Scalar]:
    """Forces of dampers and springs, by degree of freedom."""
    force: list[Scalar] = [mul(-dof.damping, rate) for dof, rate in zip(model.dofs, v, strict=True)]
    for joint in model.joints:
        if not is_zero(joint.stiffness):
            stretch = sub(q[joint.position], joint.rest)
            force[joint.velocity] = sub(force[joint.velocity], mul(joint.stiffness, stretch))
    return force


def actuated(model: RobotModel, q: Vec, v: Vec, u: Vec) -> list[Scalar]:
    """Forces of the actuators under the controls ``u``, by degree of freedom."""
    force: list[Scalar] = [0.0] * model.velocities
    for actuator, control in zip(model.actuators, u, strict=True):
        push = _bounded(actuator, _force(actuator, q, v, control))
        force[actuator.velocity] = add(force[actuator.velocity], mul(actuator.gear, push))
    for joint in model.joints:
        if joint.force_range is not None:
            force[joint.velocity] = clamp(force[joint.velocity], *joint.force_range)
    return force


def by_velocity(model: RobotModel, q: Vec, v: Vec, u: Vec) -> list[Scalar]:
    """Minus the derivative of :func:`passive` and :func:`actuated` with respect to each velocity.

    An actuator whose force is at its bound has none, as in MuJoCo.
    """
    slope: list[Scalar] = [dof.damping for dof in model.dofs]
    for actuator, control in zip(model.actuators, u, strict=True):
        per_rate = add(actuator.bias[2], mul(actuator.gain[2], _clamped(actuator, control)))
        if isinstance(per_rate, float) and per_rate == 0.0:
            continue
        if actuator.force_range is not None:
            low, high = actuator.force_range
            force = _force(actuator, q, v, control)
            per_rate = where(both(force > low, force < high), per_rate, 0.0, like=force)
        slope[actuator.velocity] = sub(slope[actuator.velocity], mul(actuator.gear**2, per_rate))
    return slope


def _clamped(actuator: Actuator, control: Scalar) -> Scalar:
    return control if actuator.control_range is None else clamp(control, *actuator.control_range)


def _force(actuator: Actuator, q: Vec, v: Vec, control: Scalar) -> Scalar:
    length, rate = mul(actuator.gear, q[actuator.position]), mul(actuator.gear, v[actuator.velocity])
    gain, bias = (
        add(constant, add(mul(by_length, length), mul(by_rate, rate)))
        for constant, by_length, by_rate in (actuator.gain, actuator.bias)
    )
    return add(mul(gain, _clamped(actuator, control)), bias)


def _bounded(actuator: Actuator, force: Scalar) -> Scalar:
    return force if actuator.force_range is None else clamp(force, *actuator.force_range)
