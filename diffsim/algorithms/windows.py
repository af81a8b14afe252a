"""What algorithms on short windows with a critic share."""

from __future__ import annotations

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


def not_ended(env: Env, states: Tensor) -> Tensor:
    """1 where the episode has not ended, 0 where it has, in the dtype of the states; ``[T, B, n] -> [T, B]``."""
    if type(env).done is Env.done and "done" not in vars(env):
        return states.new_ones(states.shape[:2])
    ended = env.done(states.contiguous().flatten(0, 1)).unflatten(0, states.shape[:2])
    return (~ended).to(states.dtype)


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
