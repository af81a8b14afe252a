"""Constraints as rows on the accelerations, ready for a solver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from robotics_envs.robots.scalars import Scalar, mul, total

Row = dict[int, Scalar]
"""A row of a Jacobian: what is not zero, by degree of freedom."""


@dataclass
class _Rows:
    """Rows of the Jacobian, ``basis``, and what follows from the accelerations along them."""

    basis: list[Row]

    @property
    def moves(self) -> list[int]:
        """The degrees of freedom that it moves."""
        return sorted({k for row in self.basis for k in row})

    def local(self) -> tuple[Any, ...]:
        """Arguments for the same with the degrees of freedom that it moves counted from 0."""
        place = {k: i for i, k in enumerate(self.moves)}
        basis = [{place[k]: x for k, x in row.items()} for row in self.basis]
        return basis, *(getattr(self, field.name) for field in fields(self)[1:])


@dataclass
class Constraint(_Rows):
    """Rows that share a stiffness: edges of a friction pyramid, each a sum of ``basis`` rows with given weights.

    Row e has the reference acceleration ``pull - damping · velocity``, and the force ``stiffness`` times what its
    acceleration lacks of that; ``stiffness`` is 0 where the constraint is absent.  ``edges`` are the weights, and how
    many rows have them.  ``bound`` is the largest force of dry friction, which acts both ways.  Rows of equality
    constraints act ``always``, both ways too.
    """

    velocity: list[Scalar]
    stiffness: Scalar
    pull: Scalar
    damping: float
    edges: list[tuple[tuple[Scalar, ...], int]]
    bound: Scalar | None = None
    always: bool = False


@dataclass
class Cone(_Rows):
    """A contact with an elliptic cone: the normal row, then those of friction, with their coefficients.

    The normal row has the reference acceleration ``pull - damping · velocity``, the others without ``pull``;
    ``stiffness`` is that of the normal row, 0 where there is no contact.  ``mu`` is the coefficient of the regularised
    cone, ``friction / sqrt(impratio)``.
    """

    velocity: list[Scalar]
    stiffness: Scalar
    pull: Scalar
    damping: float
    friction: list[Scalar]
    mu: Scalar


def guard_of(row: Constraint | Cone) -> Tensor | None:
    """What is zero where a constraint is absent; None for one that never is."""
    return row.stiffness if isinstance(row.stiffness, Tensor) else None


def along(basis: Row, a: Sequence[Scalar]) -> Scalar:
    """The acceleration along a row."""
    return total(mul(x, a[k]) for k, x in basis.items())
