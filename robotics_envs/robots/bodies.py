"""What tasks ask of a robot's pose and motion: places and directions of bodies, centres of mass and their speed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lazy_registry.registry import UnknownNameError, unknown
from robotics_envs.robots.kinematics import Motions, kinematics
from robotics_envs.robots.model import RobotModel
from robotics_envs.robots.scalars import Scalar, Vec, apply, columns, cross, mul, total, vadd


class Bodies:
    """The bodies of a robot in states ``x [..., nq + nv]``; methods return ``[...]``.  Masses are those of the file."""

    def __init__(self, model: RobotModel, x: Tensor) -> None:
        n = model.positions
        self._model, self._like = model, x[..., 0]
        self._motions: Motions = kinematics(
            model, columns(x[..., :n]), columns(x[..., n : n + model.velocities])
        )

    def place(self, name: str, axis: int) -> Tensor:
        """A coordinate, in m, of a body's frame."""
        return self._tensor(self._place(self._index(name))[axis])

    def centre(self, name: str, axis: int) -> Tensor:
        """A coordinate, in m, of a body's centre of mass."""
        return self._tensor(self._centre(self._index(name))[axis])

    def direction(self, name: str, axis: int, along: int) -> Tensor:
        """The component along an axis of the world of a body's unit axis: MuJoCo's ``xmat[along, axis]``."""
        return self._tensor(self._motions.rotation[self._index(name)][along][axis])

    def centre_of_mass(self, axis: int) -> Tensor:
        """A coordinate, in m, of the centre of mass of all bodies."""
        return self._tensor(_mean(self._model, [self._centre(b)[axis] for b in _moving(self._model)]))

    def speed_of_mass(self, axis: int) -> Tensor:
        """A component, in m/s, of the velocity of that centre: MuJoCo's ``subtreelinvel`` of the only tree's root."""
        return self._tensor(_mean(self._model, [self._velocity(b)[axis] for b in _moving(self._model)]))

    def _index(self, name: str) -> int:
        names = [body.name for body in self._model.bodies]
        if name not in names:
            raise UnknownNameError(unknown(f"body of {self._model.name}", name, names))
        return names.index(name)

    def _place(self, b: int) -> Vec:
        return vadd(self._motions.origin[b], self._motions.position[b])

    def _centre(self, b: int) -> Vec:
        return vadd(self._motions.origin[b], _arm(self._model, self._motions, b))

    def _velocity(self, b: int) -> Vec:
        angular, linear = self._motions.velocity[b]
        return vadd(linear, cross(angular, _arm(self._model, self._motions, b)))

    def _tensor(self, value: Scalar) -> Tensor:
        return value if isinstance(value, Tensor) else torch.full_like(self._like, value)


def centre_of_mass(model: RobotModel, motions: Motions) -> Vec:
    """The centre of mass, in m, of a robot of one tree, relative to the origin of the tree."""
    arms = [_arm(model, motions, b) for b in _moving(model)]
    return [_mean(model, [arm[axis] for arm in arms]) for axis in range(3)]


def _moving(model: RobotModel) -> range:
    return range(1, len(model.bodies))


def _arm(model: RobotModel, motions: Motions, b: int) -> Vec:
    """From the origin of the tree to a body's centre of mass."""
    return vadd(motions.position[b], apply(motions.rotation[b], model.bodies[b].centre))


def _mean(model: RobotModel, values: Sequence[Scalar]) -> Scalar:
    """The mean over all bodies, weighted by their masses."""
    masses = [model.bodies[b].mass for b in _moving(model)]
    return total(mul(m / sum(masses), value) for m, value in zip(masses, values, strict=True))
