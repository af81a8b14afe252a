"""The interface of a solver."""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Bool, Float
from torch import Tensor

State = Float[Tensor, "*batch n"]

VectorField = Callable[[Any, Tensor, Any, Any], Tensor]
"""``f(t, x, u, p) -> dx/dt``: x and the result are ``[..., n]``, rollouts do not mix.

t is a number, ``[]`` or, where every rollout has a time of its own, ``[*batch]`` (as ``x[..., 0]``);
u and p are passed on as given.
"""


@dataclass(frozen=True)
class Attempt:
    """The result of one step.

    Attributes:
        x: the state at the end of the step, ``[*batch, n]``.
        error: estimate of the local error, ``[*batch, n]``; None where the method has none.
        end_slope: ``f`` at the end of the step, where the method has it at no cost.
        dense: the dense output, ``theta [m, *batch] -> states [m, *batch, n]`` with theta in [0, 1] over the step.
        converged: whether the Newton iteration converged, ``[*batch]``; None where it has none.
    """

    x: Tensor
    error: Tensor | None = None
    end_slope: Tensor | None = None
    dense: Callable[[Tensor], Tensor] | None = None
    converged: Bool[Tensor, "*batch"] | None = None


class Solver(abc.ABC):
    """One step of an initial-value problem, with the input u held constant over the step.

    A subclass is one file: it sets ``order`` (the global order of convergence) and writes ``step``.
    Everything is built from differentiable torch operations, so gradients flow to x, u, p, t and dt.
    An adaptive method writes ``attempt`` as well.

    Attributes:
        order: the global order of convergence.
        adaptive: whether ``attempt`` estimates its error, so that :func:`solvers.solve` can choose the steps.
        error_order: order of the error estimate in the step size (``error = O(dt^error_order)``).
        adjoints: the ways :func:`solvers.solve` can differentiate it, the default first.
        velocity_form: whether only ``dv/dt`` of ``x = [q, v]`` is used and ``dq/dt = v`` is taken for granted.
        rollout_times: whether f is always called with a time for every rollout, ``[*batch]``.
    """

    order: ClassVar[int]
    adaptive: ClassVar[bool] = False
    error_order: ClassVar[int] = 0
    adjoints: ClassVar[tuple[str, ...]] = ("backprop", "checkpoint")
    velocity_form: ClassVar[bool] = False
    rollout_times: ClassVar[bool] = False

    def __repr__(self) -> str:
        kind = ", adaptive" if self.adaptive else ""
        options = "".join(
            f", {k}={v!r}" for k, v in vars(self).items() if isinstance(v, (int, float, str, type(None)))
        )
        return f"{self._label()}(order {self.order}{kind}{options})"

    def _label(self) -> str:
        return type(self).__name__

    @abc.abstractmethod
    def step(self, f: VectorField, t: float | Tensor, x: State, u: Any, p: Any, dt: float | Tensor) -> State:
        """The state at ``t + dt``: ``[..., n] -> [..., n]``, same dtype and device as ``x``.

        t and dt are numbers, ``[]`` or, per rollout, ``[*batch]``.
        """

    def attempt(
        self,
        f: VectorField,
        t: float | Tensor,
        x: State,
        u: Any,
        p: Any,
        dt: float | Tensor,
        start_slope: Tensor | None = None,
    ) -> Attempt:
        """A step with its error estimate and dense output; ``start_slope`` is ``f`` at the start, if known."""
        return Attempt(self.step(f, t, x, u, p, dt))


def over_components(time: float | Tensor) -> Any:
    """A time ``[]`` or ``[*batch]`` in the shape that multiplies states ``[*batch, n]``."""
    return time.unsqueeze(-1) if isinstance(time, Tensor) and time.ndim else time
