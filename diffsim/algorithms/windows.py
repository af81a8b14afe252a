"""What algorithms on short windows with a critic share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffsim.policy import Policy
from diffsim.rollouts import Trajectory
from robotics_envs.base import Costs, Env, States


class CostToGo(nn.Module):
    """The value ``[B]`` of states ``[B, n]``: a critic's at their normalised observations."""

    def __init__(self, env: Env, policy: Policy, value: nn.Module) -> None:
        super().__init__()
        self.env, self.policy, self.value = env, policy, value

    def forward(self, x: States) -> Costs:
        return self.value(self.policy.normalise(self.env.observe(x)))


def never_ends(env: Env) -> bool:
    """Whether no state ends an episode."""
    return type(env).done is Env.done and "done" not in vars(env)


def not_ended(env: Env, states: Tensor) -> Tensor:
    """1 where the episode has not ended, 0 where it has, in the dtype of the states; ``[T, B, n] -> [T, B]``."""
    if never_ends(env):
        return states.new_ones(states.shape[:2])
    ended = env.done(states.contiguous().flatten(0, 1)).unflatten(0, states.shape[:2])
    return (~ended).to(states.dtype)


def td_lambda(
    costs: Float[Tensor, "T batch"],
    discounts: Float[Tensor, "T batch"],
    values: Float[Tensor, "T batch"],
    share: float,
) -> Float[Tensor, "T batch"]:
    """TD(lambda) targets (Sutton and Barto, 2nd ed., §12.1), without gradient.

    ``targets[t] = costs[t] + discounts[t] ((1 - share) values[t] + share targets[t + 1])``, where ``values[t]`` are
    those of the states that the intervals end in, and the last target goes on with the last value.
    """
    targets = torch.empty_like(values)
    arrays: Sequence[Any] = costs, discounts, values, targets
    if costs.is_cpu:  # the same in NumPy, whose operations begin ten times as fast
        arrays = [q.detach().numpy() for q in arrays]
    following = arrays[2][-1]
    for cost, discount, value, target in reversed([*zip(*arrays, strict=True)]):
        target[:] = cost + discount * (following - (following - value) * (1.0 - share))
        following = target
    return targets


def all_finite(values: Tensor) -> Tensor:
    """In which rollouts all numbers are finite, ``[T, B, ...] -> [B]``."""
    # x - x is 0, and NaN where x is not finite; this is five times as fast as isfinite() and all().
    return (values - values).sum([k for k in range(values.ndim) if k != 1]) == 0


def what_is_not_finite(window: Trajectory, gradient: bool) -> str:
    """How many rollouts are not finite, and from which control interval on."""
    assert window.states is not None
    finite = window.states[1:].isfinite().all(dim=-1) & window.costs.isfinite()
    wrong = ~finite.all(dim=0)
    if not wrong.any():
        what = "the gradient or the step is" if gradient else "the values of the whole population are"
        return f"{what} not finite, although every rollout of the policy is"
    first = int((~finite[:, wrong]).any(dim=1).int().argmax())
    return f"{int(wrong.sum())} of {len(wrong)} rollouts not finite, first at control interval {first + 1}"
