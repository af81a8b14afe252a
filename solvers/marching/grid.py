"""The times at which steps must end: outputs, control switches, ends of steps of fixed length."""

from __future__ import annotations

import bisect
import itertools
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """Legs: intervals of time whose ends no step may cross.

    Attributes:
        start: the first time, ``[]`` or ``[*batch]``.
        targets: the end of every leg, ``[legs]`` or ``[legs, *batch]``; differentiable in the given times.
        controls: which held control acts on every leg.
        at_target: for every leg the output that its end is, or -1.
        inside: for every leg the outputs strictly inside it.
        on_switch: for every output at the time of a switch inside the solve, the index of that switch.
    """

    start: Tensor
    targets: Tensor
    controls: list[int]
    at_target: list[int]
    inside: list[list[int]]
    on_switch: dict[int, int] = field(default_factory=dict)


def make_grid(ts: Tensor, control_times: Tensor | None, dt: float | None, sign: float) -> Grid:
    """The grid of increasing times ``ts`` (``[T]``, or ``[T, *batch]`` without controls and dt).

    With ``dt`` every output is the end of a leg, and legs are steps of equal length, at most dt.  Without,
    the legs end at control switches and at the end.  ``sign`` is -1 where ts and control_times are negated
    times of a solve backwards.
    """
    if ts.ndim > 1:
        last = len(ts) - 1
        return Grid(ts[0], ts[-1:], [0], [last], [list(range(1, last))])
    values = ts.tolist()
    switches = [] if control_times is None else control_times.tolist()
    forward = sorted(sign * c for c in switches)
    output_of = {value: i for i, value in enumerate(values)}
    inside_switches = {c: len(values) + k for k, c in enumerate(switches) if values[0] < c < values[-1]}
    # Where a switch and an output have the same time, the leg ends at the switch's.
    knots = sorted((output_of | inside_switches).items())
    on_switch = {
        output_of[c]: source - len(values) for c, source in inside_switches.items() if c in output_of
    }
    if dt is None:
        ends = {values[0], values[-1], *switches}
        stops = [knot for knot in knots if knot[0] in ends]
    else:
        stops = knots

    sources, ends_of, shares, controls, at_target, inside = [], [], [], [], [], []
    for (a, source_a), (b, source_b) in itertools.pairwise(stops):
        count = 1 if dt is None else max(1, math.ceil((b - a) / dt - 1e-6))
        control = bisect.bisect_right(forward, sign * 0.5 * (a + b)) - 1 if switches else 0
        for i in range(count):
            sources.append(source_a)
            ends_of.append(source_b)
            shares.append((i + 1) / count)
            controls.append(control)
            at_target.append(output_of.get(b, -1) if i == count - 1 else -1)
            inside.append([output_of[v] for v in values if a < v < b] if dt is None else [])
    times = ts if control_times is None else torch.cat((ts, control_times))
    share = torch.tensor(shares, dtype=ts.dtype, device=ts.device)
    targets = torch.lerp(times[sources], times[ends_of], share)
    return Grid(ts[0], targets, controls, at_target, inside, on_switch)
