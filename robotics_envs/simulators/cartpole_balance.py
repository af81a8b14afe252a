"""Balancing a pole on a cart, the task of dm_control's suite."""

from __future__ import annotations

import torch
from torch import Tensor

from robotics_envs.base import Box
from robotics_envs.simulators.cartpole_swingup import CartpoleSwingup


class CartpoleBalance(CartpoleSwingup):
    """A pole that stands almost upright on a cart has to be kept so, in the middle of the track.

    Everything but the starts is as in :class:`CartpoleSwingup`; the task is ``cartpole-balance`` of
    dm_control's suite.  The state box is narrower: it holds states from which the pole can be kept from
    falling.
    """

    name = "cartpole_balance"
    gym_id = "dm_control/cartpole-balance-v0"
    start_box = Box.symmetric(0.1, 0.034, 0.03, 0.03)
    state_box = Box.symmetric(1.0, 0.6, 2.0, 3.0)

    def reset(self, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """Position and angle uniform in ±0.1 m and ±0.034 rad, both rates normal with std 0.01.

        The start box holds three std of the rates to either side.
        """
        pose = Box(self.start_box.low[:2], self.start_box.high[:2]).sample(batch, generator, dtype)
        rates = torch.randn(batch, 2, generator=generator, dtype=dtype, device=generator.device)
        return torch.cat((pose, 0.01 * rates), dim=-1)
