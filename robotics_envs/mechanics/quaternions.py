"""Attitudes as quaternions ``[..., 4]``, real part first: ``q v q*`` turns the body's ``v`` into the world."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def unit(quaternion: Float[Tensor, "... 4"]) -> Float[Tensor, "... 4"]:
    """The unit quaternion of the same attitude; zero stays zero."""
    return quaternion * torch.rsqrt((quaternion * quaternion).sum(-1, keepdim=True).clamp_min(1e-12))


def product(a: Float[Tensor, "... 4"], b: Float[Tensor, "... 4"]) -> Float[Tensor, "... 4"]:
    """Hamilton's product: the rotation ``b`` followed by the rotation ``a``."""
    w, x, y, z = a.unbind(-1)
    i, j, k, m = b.unbind(-1)
    parts = (
        w * i - x * j - y * k - z * m,
        w * j + x * i + y * m - z * k,
        w * k + y * i + z * j - x * m,
        w * m + z * i + x * k - y * j,
    )
    return torch.stack(parts, dim=-1)


def rotation(quaternion: Float[Tensor, "... 4"]) -> Float[Tensor, "... 9"]:
    """The rotation matrix, by rows, of the attitude of a quaternion of any length but zero."""
    a, b, c, d = unit(quaternion).unbind(-1)
    entries = (
        *(1 - 2 * (c * c + d * d), 2 * (b * c - a * d), 2 * (b * d + a * c)),
        *(2 * (b * c + a * d), 1 - 2 * (b * b + d * d), 2 * (c * d - a * b)),
        *(2 * (b * d - a * c), 2 * (c * d + a * b), 1 - 2 * (b * b + c * c)),
    )
    return torch.stack(entries, dim=-1)
