"""Differentiable rollouts of a policy in a simulator, with interchangeable back ends."""

from __future__ import annotations

from diffsim.rollouts.differentiable import Trajectory
from diffsim.rollouts.engines import BACKENDS
from diffsim.rollouts.noise import Noise, randomised
from diffsim.rollouts.rollout import Rollout

__all__ = ["BACKENDS", "Noise", "Rollout", "Trajectory", "randomised"]
