"""States, actions and parameters that the checks use."""

from __future__ import annotations

import torch
from torch import Tensor

from robotics_envs.base import Env

BATCH = 5


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


def sample(env: Env, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """States in the state box, actions in the action box and the parameters."""
    rng = generator()
    x = env.state_box.sample(BATCH, rng, dtype)
    return x, env.action_box.sample(BATCH, rng, dtype), env.params(x)
