"""Normal noise as a function of seed, interval, rollout and component: the same on every back end."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from solvers.validation import whole_number

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF

ACTIONS, PARAMETERS = 0, 1
"""Independent streams of numbers, one per use."""


@dataclass(frozen=True)
class Noise:
    """Normal noise on actions, ``scale`` times a standard normal number for every interval, rollout and component.

    The numbers come from Philox4x32-10 (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011) with the
    counter (rollout, interval, component // 4, stream) and from Box's and Muller's transform in float32, computed by
    operations whose rounding is the same everywhere.

    Args:
        seed: from 0 to 2**64 - 1.
        scale: the standard deviation.
        start: number of the first interval, from 0 to 2**32 - 1, to continue where another rollout ended.

    Raises:
        ValueError: a number outside its range, or not a number.
    """

    seed: int
    scale: float = 1.0
    start: int = 0

    def __post_init__(self) -> None:
        for name, value, bits in (("seed", self.seed, 64), ("start", self.start, 32)):
            object.__setattr__(self, name, whole_number(f"noise {name}", value, 0, 2**bits - 1))
        real = isinstance(self.scale, numbers.Real) and not isinstance(self.scale, bool)
        if not (real and math.isfinite(self.scale) and self.scale >= 0):
            raise ValueError(f"noise scale = {self.scale!r}: must be a finite number of at least 0")
        object.__setattr__(self, "scale", float(self.scale))

    def at(self, interval: int, batch: int, components: int, like: Tensor) -> Tensor:
        """The noise ``[batch, components]`` of one control interval, in the dtype and on the device of ``like``."""
        standard = _normal(self.seed, self.start + interval, batch, components, ACTIONS, like.device)
        return standard.to(like.dtype) * self.scale


def randomised(
    p: Mapping[str, Tensor], spread: Mapping[str, float], batch: int, seed: int
) -> dict[str, Tensor]:
    """Physical parameters with a value for every rollout: ``p[name] · exp(spread[name] · normal)``, ``[batch]``.

    Log-normal, so a mass or a length stays positive; parameters that ``spread`` does not name stay as they are.

    Raises:
        ValueError: ``spread`` names none of p; the seed is not from 0 to 2**64 - 1.
    """
    seed, batch = whole_number("seed", seed, 0, 2**64 - 1), whole_number("batch", batch)
    unknown = set(spread) - set(p)
    if unknown:
        raise ValueError(f"spread names {', '.join(sorted(unknown))}; p has {', '.join(p)}")
    names = sorted(spread)
    if not names:
        return dict(p)
    like = p[names[0]]
    standard = _normal(seed, 0, batch, len(names), PARAMETERS, like.device).to(like.dtype)
    factors = {name: torch.exp(spread[name] * standard[:, k]) for k, name in enumerate(names)}
    return {name: value * factors[name] if name in factors else value for name, value in p.items()}


def _normal(
    seed: int, interval: int, batch: int, components: int, stream: int, device: torch.device
) -> Tensor:
    """Standard normal numbers ``[batch, components]``, float32."""
    rollout = torch.arange(batch, dtype=torch.int64, device=device)
    fours = []
    for block in range(-(-components // 4)):
        words = _philox(rollout, interval, block, stream, seed)
        fours += [*_box_muller(words[0], words[1]), *_box_muller(words[2], words[3])]
    return torch.stack(fours[:components], -1)


def _philox(rollout: Tensor, interval: int, block: int, stream: int, seed: int) -> list[Tensor]:
    """Four words of 32 bits for every rollout, in int64."""
    c = [rollout, *(torch.full_like(rollout, v) for v in (interval, block, stream))]
    key = [seed & _WORD, seed >> 32]
    for _ in range(10):
        (high0, low0), (high1, low1) = (
            _product(m, v) for m, v in zip(_MULTIPLIERS, (c[0], c[2]), strict=True)
        )
        c = [high1 ^ c[1] ^ key[0], low1, high0 ^ c[3] ^ key[1], low0]
        key = [(k + w) & _WORD for k, w in zip(key, _WEYL, strict=True)]
    return c


def _product(multiplier: int, value: Tensor) -> tuple[Tensor, Tensor]:
    """High and low word of the product; in halves, because int64 cannot hold an unsigned 64-bit product."""
    low, high = value & 0xFFFF, value >> 16
    lower, upper = low * multiplier, high * multiplier
    total = (lower >> 16) + upper
    return total >> 16, ((total & 0xFFFF) << 16) | (lower & 0xFFFF)


def _box_muller(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two standard normal numbers from two words, operation by operation as in diffsim/rollouts/rollout.cpp."""
    uniform = ((first >> 9).float() + 0.5) * (1 / 8388608)
    radius = torch.sqrt(
        (-2.0 * _log(uniform)).double()
    ).float()  # torch's float32 square root is not always correctly rounded
    angle = (((second & 0x3FFFFFFF) >> 6).float() * (1 / 16777216) - 0.5) * 1.5707963705062866
    z = angle * angle
    s = angle + angle * (z * (z * (z * -0.00019515282474458218 + 0.00833216030150652) - 0.16666655242443085))
    c = z * z * (z * (z * 2.443845005473122e-05 - 0.001388736767694354) + 0.04166664555668831)
    c = (c - z * 0.5) + 1.0
    quadrant = second >> 30
    swap = (quadrant & 1).bool()
    sine, cosine = torch.where(swap, c, s), torch.where(swap, s, c)
    sine = torch.where((quadrant & 2).bool(), -sine, sine)
    cosine = torch.where(((quadrant + 1) & 2).bool(), -cosine, cosine)
    return radius * cosine, radius * sine


def _log(u: Tensor) -> Tensor:
    """Natural logarithm of float32 in (0, 1): ``ln m + e ln 2`` with ``ln m`` by the series of atanh."""
    bits = u.view(torch.int32)
    exponent = (bits >> 23) - 127
    m = ((bits & 0x7FFFFF) | 0x3F800000).view(torch.float32)
    large = m > 1.4142135381698608
    m = torch.where(large, m * 0.5, m)
    e = torch.where(large, exponent + 1, exponent).float()
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    series = z * (
        z * (z * (z * 0.1111111119389534 + 0.1428571492433548) + 0.20000000298023224) + 0.3333333432674408
    )
    return e * 0.6931471824645996 + (s + s * series) * 2.0
