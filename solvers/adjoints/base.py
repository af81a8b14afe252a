"""The interface of an adjoint: how the gradient of a solve is computed."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from solvers.marching.problem import Problem
from solvers.marching.track import Kept, Outputs, Track
from solvers.modes import first_derivatives_only


class Adjoint(abc.ABC):
    """How the gradient of a solve is computed: ``solve(..., adjoint=MyAdjoint())``.

    A subclass is one file and writes :meth:`outputs`.  The steps have then been taken, without a graph.  A subclass
    that can take steps of fixed length itself writes :meth:`equal_steps` too; without it they are taken beforehand like
    all others, at which f gets a time for every rollout.

    Attributes:
        name: what messages call it; the class's name by default.
        keeps: what the track holds: "states" (every attempted step with the time and the state at its start), "steps"
            (without those), or "nothing" (no strides).
        repeats_steps: whether it evaluates f again where the solve has; f must then be a function of its arguments.
        sees_captured: whether it differentiates by tensors that f uses without taking them through u or p; where it
            does not, they are refused.  So it is for an adjoint whose operations autograd records.
        by_output_times: whether it differentiates an output at the time of a control switch by the output's time;
            where it does not, the solve adds that gradient.
    """

    name: ClassVar[str]
    keeps: ClassVar[Kept] = "states"
    repeats_steps: ClassVar[bool] = True
    sees_captured: ClassVar[bool] = False
    by_output_times: ClassVar[bool] = False
    takes_equal_steps: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        cls.name = vars(cls).get("name", cls.__name__)
        if "outputs" in vars(cls):  # an inherited `equal_steps` would belong to another adjoint
            cls.takes_equal_steps = "equal_steps" in vars(cls)

    @abc.abstractmethod
    def outputs(self, problem: Problem, track: Track) -> Outputs:
        """The outputs of a solve whose steps have been taken, differentiable by :meth:`Problem.inputs`.

        It is called where a gradient is wanted.  ``track.outputs`` are their values; :func:`advance` repeats a stride
        with a graph, :func:`attach_gradient` gives values a gradient computed by hand.  Failed rollouts have steps of
        length zero in the track, and what is returned for them is not used.
        """

    def equal_steps(self, problem: Problem) -> Tensor:
        """Take the steps :meth:`Problem.equal_steps`, the same for all rollouts; the outputs ``[T, *batch, n]``."""
        raise NotImplementedError

    def check(self, problem: Problem) -> None:  # noqa: B027
        """Raise ValueError if this adjoint does not differentiate the problem; called before the first step."""


def attach_gradient(
    problem: Problem,
    values: Sequence[Tensor],
    backward: Callable[..., Sequence[Tensor | None]],
    kept: Sequence[Tensor] = (),
) -> tuple[Tensor, ...]:
    """The values, with a gradient by :meth:`Problem.inputs` that ``backward`` computes.

    Args:
        values: tensors without a graph.
        backward: ``(kept, *gradients of the values) -> gradients of the inputs``, None for zero; it runs without a
            graph.  A second derivative is an error.
        kept: the tensors that ``backward`` needs; changing one of them in place is an error.
    """
    return _WithGradient.apply(backward, tuple(values), tuple(kept), *problem.inputs())


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, backward: Any, values: Any, kept: Any, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.backward_of, ctx.kept = backward, len(kept)
        ctx.save_for_backward(*kept, *inputs)
        # Other tensor objects than those of `kept` and of the track, which would hold on to their own graph.
        return tuple(value.detach() for value in values)

    @staticmethod
    @first_derivatives_only
    def backward(ctx: Any, *by_values: Tensor) -> Any:
        kept = ctx.saved_tensors[
            : ctx.kept
        ]  # raises where a tensor, an input too, was changed in place since
        return None, None, None, *ctx.backward_of(kept, *by_values)
