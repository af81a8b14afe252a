"""The status of a solve, and the messages for failures."""

from __future__ import annotations

import enum

import torch
from torch import Tensor


class Failure(enum.IntEnum):
    """The status of a rollout: 0, ``SUCCESS``, or why its solve failed. ``NONE`` is the older name of ``SUCCESS``."""

    SUCCESS = 0
    NONE = 0
    STEP_UNDERFLOW = 1
    MAX_STEPS = 2
    NOT_FINITE = 3
    NEWTON = 4
    MAX_EVENTS = 5


_WHAT = {
    Failure.STEP_UNDERFLOW: "the step size fell below what the time can resolve",
    Failure.MAX_STEPS: "max_steps was reached before the end",
    Failure.NOT_FINITE: "the vector field or the state became NaN or infinite",
    Failure.NEWTON: "the Newton iteration did not converge",
    Failure.MAX_EVENTS: "more events than max_events",
}
_REMEDY = {
    Failure.STEP_UNDERFLOW: "loosen rtol/atol (float32 cannot hold much below 1e-6), scale the states to similar "
    "sizes, or use a stiff method (solver='rodas5p'); a solution that blows up in finite time has no remedy",
    Failure.MAX_STEPS: "if the problem is stiff use solver='rodas5p'; otherwise loosen rtol/atol, shorten the "
    "horizon or raise max_steps",
    Failure.NOT_FINITE: "evaluate f at the state before (a root or a logarithm of a negative number, a division by "
    "zero), or the solution diverges: use a smaller dt, an adaptive or a stiff method",
    Failure.NEWTON: "use a smaller dt, raise newton_iterations, or loosen newton_tolerance (float32 cannot hold "
    "much below 1e-6)",
    Failure.MAX_EVENTS: "events that accumulate (a ball whose bounces get ever shorter) need a terminal event; "
    "otherwise raise max_events",
}


class SolveError(RuntimeError):
    """A solve that failed.

    Attributes:
        status: the :class:`Failure` of every rollout as int64 ``[*batch]``, ``Failure.SUCCESS`` where it succeeded.
    """

    def __init__(self, message: str, status: Tensor) -> None:
        super().__init__(message)
        self.status = status


def describe(
    status: Tensor, t: float | Tensor, step: float | Tensor | None, *, adaptive: bool, where: str = ""
) -> str:
    """The message for failed rollouts: what, when, which, the last step size, what to change."""
    flat = status.reshape(-1)
    lines = []
    for failure in Failure:
        if failure is Failure.SUCCESS:
            continue
        index = (flat == failure).nonzero().reshape(-1)
        if not len(index):
            continue
        first = int(index[0])
        names = _positions(index, status.shape)
        at = f"t = {_value(t, status.shape, first):.6g}"
        if step is not None:
            kind = "last step size" if adaptive else "step size"
            at += f", {kind} {_value(step, status.shape, first):.3g}"
        if len(index) > 1:
            at = f"the first of them at {at}"
        lines.append(
            f"{where}{_WHAT[failure]} for {len(index)} of {flat.numel()} rollouts ({names}): {at}. "
            f"Remedy: {_REMEDY[failure]}."
        )
    lines.append("on_failure='mark' keeps the good rollouts." if not where else "")
    return "\n".join(line for line in lines if line)


def _value(quantity: float | Tensor, shape: torch.Size, first: int) -> float:
    if isinstance(quantity, Tensor):
        return float(quantity.detach().expand(shape).reshape(-1)[first])
    return float(quantity)


def _positions(index: Tensor, shape: torch.Size, shown: int = 8) -> str:
    if not shape:
        return "the only one"
    positions = []
    for flat in index[:shown].tolist():
        position = []
        for size in reversed(shape):
            position.append(flat % size)
            flat //= size
        positions.append(str(position[0]) if len(shape) == 1 else str(tuple(reversed(position))))
    more = ", …" if len(index) > shown else ""
    return f"number{'s' if len(index) > 1 else ''} {', '.join(positions)}{more}"
