"""Starts of Gymnasium's tasks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robotics_envs.robots.model import RobotModel


def near_the_file(
    model: RobotModel, size: float, batch: int, generator: torch.Generator, dtype: torch.dtype
) -> Tensor:
    """States with positions uniform within ``size`` of the pose of the file, velocities normal with std ``size``."""
    like: dict[str, Any] = {"generator": generator, "dtype": dtype, "device": generator.device}
    q = torch.rand(batch, model.positions, **like) * (2 * size) - size
    v = size * torch.randn(batch, model.velocities, **like)
    return torch.cat((q + q.new_tensor(model.reference), v), -1)
