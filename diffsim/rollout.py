"""Closing the loop: a policy acting in a simulator."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from diffsim.policy import Policy
from robotics_envs.base import Costs, Env, Params, States


class Rollout(NamedTuple):
    """``T`` control intervals of ``B`` rollouts."""

    states: Float[Tensor, "T+1 batch n"]
    """The initial states first."""
    observations: Float[Tensor, "T+1 batch o"]
    actions: Float[Tensor, "T batch m"]
    costs: Float[Tensor, "T batch"]


def rollout(
    env: Env,
    policy: Policy,
    x: States,
    steps: int,
    p: Params,
    noise: Float[Tensor, "steps batch m"] | None = None,
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
def episode_returns(env: Env, policy: Policy, x: States, p: Params) -> Costs:
    """Returns ``[B]`` of whole episodes from ``x [B, n]`` without exploration noise; stores no trajectory."""
    total = torch.zeros_like(x[:, 0])
    running = ~env.done(x)
    for _ in range(env.episode_steps):
        x, cost = env.step(x, policy(env.observe(x)), p)
        total = total - torch.where(running, cost, 0.0)
        running = running & ~env.done(x)
    return total
