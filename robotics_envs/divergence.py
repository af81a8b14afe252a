"""A simulation that left the numbers: where, how many rollouts, and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from robotics_envs.base import Env


class DivergenceError(ArithmeticError):
    """States or costs of a simulation are not finite."""


def check_finite(env: Env, x: Tensor, u: Tensor, following: Tensor, cost: Tensor) -> None:
    """Look at a control interval from ``x [B, n]`` under ``u [B, m]`` to ``following [B, n]`` at ``cost [B]``.

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
        "Start inside state_box, keep parameters physical, compute in float64, or give the simulator more substeps"
    )
