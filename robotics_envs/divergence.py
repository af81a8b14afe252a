"""Detects states and costs that are not finite, and says where, in how many rollouts, and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from robotics_envs.base import Env


class DivergenceError(ArithmeticError):
    """States or costs of a simulation are not finite."""


_REMEDY = "Start inside state_box, keep parameters physical, compute in float64, or give the simulator more substeps"


def check_finite(env: Env, x: Tensor, u: Tensor, following: Tensor, cost: Tensor) -> None:
    """Check one control interval from ``x [B, n]`` under ``u [B, m]`` to ``following [B, n]`` at ``cost [B]``.

    Raises:
        DivergenceError: with the first rollout that is not finite, its state and action before, and the remedy.
    """
    wrong = ~(following.isfinite().all(dim=-1) & cost.isfinite())
    if not wrong.any():
        return
    first = int(wrong.int().argmax())
    bad = [
        name
        for name, good in zip(env.state_names, following[first].isfinite().tolist(), strict=True)
        if not good
    ]
    at = ", ".join(
        f"{name} {value:.4g}" for name, value in zip(env.state_names, x[first].tolist(), strict=True)
    )
    raise DivergenceError(
        f"{env.name} diverged in {int(wrong.sum())} of {len(wrong)} rollouts: {', '.join(bad[:5]) or 'the cost'} of "
        f"rollout {first} not finite after an interval of {env.dt} s from [{at}] under {u[first].tolist()}. "
        f"{_REMEDY}"
    )


def check_rollouts(
    env: Env, x0: Tensor, following: Tensor, costs: Tensor, values: Tensor | None = None, start: int = 0
) -> None:
    """Check whole rollouts: initial states ``[B, n]``, the states after each interval ``[T, B, n]``, costs ``[T, B]``.

    ``following`` may hold the final states alone, ``[1, B, n]``.  ``values [B]`` are terminal values, ``start`` is the
    number of the first interval.

    Raises:
        DivergenceError: with the rollouts that are not finite and the first control interval in which one is not.
    """
    steps = len(costs)
    states = following.isfinite().all(-1)
    good = costs.isfinite()
    good = torch.cat((good[: steps - len(states)], good[steps - len(states) :] & states))
    wrong = ~(good.all(0) & x0.isfinite().all(-1))
    if values is not None:
        wrong |= ~values.isfinite()
    if not wrong.any():
        return
    numbers = wrong.nonzero().flatten().tolist()
    shown = ", ".join(map(str, numbers[:10])) + (", …" if len(numbers) > 10 else "")
    if not x0.isfinite().all():
        where = f"the initial state of rollout {int((~x0.isfinite().all(-1)).int().argmax())}"
    elif good.all():
        where = f"the terminal value of rollout {numbers[0]}"
    else:
        t = int((~good.all(1)).int().argmax())
        rollout = int((~good[t]).int().argmax())
        at = t - (steps - len(following))
        state = following[at, rollout].isfinite().tolist() if at >= 0 else []
        names = [name for name, fine in zip(env.state_names, state, strict=False) if not fine]
        where = (
            f"{', '.join(names[:5]) or 'the cost'} of rollout {rollout} in control interval {start + t}, "
            f"from {(start + t) * env.dt:.4g} s on"
        )
    s = "s" if len(numbers) > 1 else ""
    raise DivergenceError(
        f"{env.name} diverged in {len(numbers)} of {len(wrong)} rollouts (number{s} {shown}): first not finite is "
        f"{where}. {_REMEDY}"
    )
