"""What a solver is."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

State = Float[Tensor, "*batch n"]

VectorField = Callable[[Any, Tensor, Any, Any], Tensor]
"""``f(t, x, u, p) -> dx/dt``: x and the result are ``[..., n]``; u and p are passed through as given."""


class Solver(abc.ABC):
    """One step of an initial-value problem, with the input u held constant over the step.

    A subclass is one file: it sets ``order`` (the global order of convergence) and writes ``step``.
    Everything is built from differentiable torch operations, so gradients flow to x, u, p and dt.
    """

    order: ClassVar[int]
    adaptive: ClassVar[bool] = False

    @abc.abstractmethod
    def step(self, f: VectorField, t: float | Tensor, x: State, u: Any, p: Any, dt: float | Tensor) -> State:
        """The state at ``t + dt``: ``[..., n] -> [..., n]``, same dtype and device as ``x``."""
