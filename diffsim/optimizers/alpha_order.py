"""Gradients of first order, of zeroth order, and blends of both by their measured variance.

Through a stiff or discontinuous simulator the gradient of first order has a large variance or a bias; differences of
values (zeroth order) have neither, at the price of a variance that grows with the dimension.  Suh, Simchowitz, Zhang
and Tedrake, "Do Differentiable Simulators Give Better Policy Gradients?", ICML 2022, arXiv 2202.00817, weigh them:
``alpha * first + (1 - alpha) * zeroth`` with the ``alpha`` of least variance, lowered until the bias that the two
estimates' difference betrays is within a tolerance (their §4).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from diffsim.optimizers.objective import Samples

CONFIDENCE = 1.96
"""Standard errors in the radius of a 95 % interval."""


class Blend(NamedTuple):
    gradient: Float[Tensor, " P"]
    alpha: float
    """The weight of the first order."""


def blend(samples: Samples, bias_tolerance: float) -> Blend:
    """The alpha-order gradient from ``G >= 2`` estimates of either order.

    With the variances ``v1``, ``v0`` of the two means, their difference's norm ``b`` and the radius
    ``r = 1.96 sqrt(v0)`` of the zeroth-order mean's interval, ``alpha = v0 / (v0 + v1)``, but at most
    ``(tolerance * r - r) / b``.  The paper's tolerance is absolute; here it is in units of ``r``, so that it means the
    same whatever the unit of the cost: at 2, a bias as large as the noise of the zeroth order is let pass.
    First-order estimates that are not finite get no weight.
    """
    groups = len(samples.losses)
    zeroth = samples.zeroth.mean(0)
    if not samples.first.isfinite().all():
        return Blend(zeroth, 0.0)
    first = samples.first.mean(0)
    v1, v0 = (float(g.var(0).sum()) / groups for g in (samples.first, samples.zeroth))
    if not samples.zeroth.isfinite().all():
        return Blend(first, 1.0)
    alpha = v0 / (v0 + v1) if v0 + v1 > 0 else 1.0
    difference = float(torch.linalg.vector_norm(first - zeroth))
    allowed = (bias_tolerance - 1.0) * CONFIDENCE * v0**0.5
    if alpha * difference > allowed:
        alpha = allowed / difference
    return Blend(alpha * first + (1.0 - alpha) * zeroth, alpha)
