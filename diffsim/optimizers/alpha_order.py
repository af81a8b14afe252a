"""The alpha-order gradient: a weighted mean of first-order and zeroth-order estimates.

In a stiff or discontinuous simulator the first-order estimate (backpropagation) can have a large variance or a
bias. The zeroth-order estimate (from values alone) is unbiased, but its variance grows with the dimension.  Suh,
Simchowitz, Zhang and Tedrake, "Do Differentiable Simulators Give Better Policy Gradients?", ICML 2022, arXiv
2202.00817, §4, combine them: ``alpha * first + (1 - alpha) * zeroth``, with the ``alpha`` of least variance,
reduced if the difference of the two estimates indicates a bias above a tolerance.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from diffsim.optimizers.objective import Samples

CONFIDENCE = 1.96
"""Half the width of a 95 % confidence interval, in standard errors."""


class Blend(NamedTuple):
    gradient: Float[Tensor, " P"]
    alpha: float
    """Weight of the first-order estimate."""


def blend(samples: Samples, bias_tolerance: float) -> Blend:
    """The alpha-order gradient from ``G >= 2`` estimates of each order.

    ``v1`` and ``v0`` are the variances of the two means, ``b`` is the norm of their difference, and ``r = 1.96
    sqrt(v0)`` is the radius of the zeroth-order mean's confidence interval.  Then ``alpha = v0 / (v0 + v1)``, but
    at most ``(bias_tolerance * r - r) / b``.  The paper's tolerance is absolute; here it is in units of ``r``, so
    that it does not depend on the unit of the cost.  At 2, a bias as large as ``r`` is accepted.  First-order
    estimates that are not finite get the weight 0.
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
