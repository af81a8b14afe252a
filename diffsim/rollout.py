"""Closing the loop: a policy acting in a simulator."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from diffsim.policy import Policy
from robotics_envs.base import Env, Params


class Rollout(NamedTuple):
    """``T`` control intervals of ``B`` rollouts."""

    states: Tensor
    """``[T + 1, B, n]``, the initial states first."""
    observations: Tensor
    """``[T + 1, B, o]``"""
    actions: Tensor
    """``[T, B, m]``"""
    costs: Tensor
    """``[T, B]``"""


def rollout(
    env: Env, policy: Policy, x: Tensor, steps: int, p: Params, noise: Tensor | None = None
) -> Rollout:
    """Simulate ``steps`` control intervals from ``x [B, n]``; ``noise`` is ``[steps, B, m]``.

    Differentiable from end to end in the policy's parameters, ``x``, ``p`` and ``noise``.  ``env.done`` is
    not consulted: rollouts run their full length.
    """
    states, observations = [x], [env.observe(x)]
    actions, costs = [], []
    for step in range(steps):
        u = policy(observations[-1], None if noise is None else noise[step])
        x, cost = env.step(x, u, p)
        states.append(x)
        observations.append(env.observe(x))
        actions.append(u)
        costs.append(cost)
    return Rollout(*map(torch.stack, (states, observations, actions, costs)))


@torch.no_grad()
def episode_returns(env: Env, policy: Policy, x: Tensor, p: Params) -> Tensor:
    """Returns ``[B]`` of whole episodes from ``x [B, n]`` without exploration noise; stores no trajectory."""
    total = torch.zeros_like(x[:, 0])
    running = ~env.done(x)
    for _ in range(env.episode_steps):
        x, cost = env.step(x, policy(env.observe(x)), p)
        total = total - torch.where(running, cost, 0.0)
        running = running & ~env.done(x)
    return total
