"""Differentiable rollouts of a policy in a simulator, with interchangeable back ends."""

from __future__ import annotations

from diffsim.rollouts.noise import Noise, randomised
from diffsim.rollouts.rollout import BACKENDS, Rollout, Trajectory

__all__ = ["BACKENDS", "Noise", "Rollout", "Trajectory", "randomised"]
