"""Closing the loop: a policy acting in a simulator, on the back end that suits."""

from __future__ import annotations

from diffsim.rollouts.noise import Noise, randomised
from diffsim.rollouts.rollout import BACKENDS, Rollout, Trajectory

__all__ = ["BACKENDS", "Noise", "Rollout", "Trajectory", "randomised"]
