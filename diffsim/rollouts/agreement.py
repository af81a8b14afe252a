"""Whether a compiled rollout computes what the eager one does, found from a few rollouts before it is used."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffsim.rollouts.inputs import Engine, Inputs, Outcome, UnsupportedError
from diffsim.rollouts.stepwise import Stepwise


def compare_with_eager(engine: Engine, inputs: Inputs, gradient: bool, steps: int = 2) -> None:
    """Run a few rollouts for one or two control intervals on both back ends.

    Where a simulator amplifies rounding so much that the eager rollouts of two starts which differ by a few roundings
    differ as well, these rollouts are left out.

    Raises:
        UnsupportedError: values or gradients differ.
    """
    few, eager = few_of(inputs, steps), Stepwise()
    right = _results_of(eager, few, gradient)
    try:
        _compare(right, _results_of(engine, few, gradient), few)
    except UnsupportedError:
        moved = replace(few, x0=(few.x0.detach() * (1 + _ROUNDINGS * torch.finfo(few.x0.dtype).eps)))
        moved.x0.requires_grad_(few.x0.requires_grad)
        steady = _steady(right, _results_of(eager, moved, gradient), few)
        if steady.all() or not steady.any():
            raise
        few = _only(few, steady)
        _compare(_results_of(eager, few, gradient), _results_of(engine, few, gradient), few)


_ROUNDINGS = 4
"""Rollouts whose results change by more than the tolerance when their start moves by so many roundings say nothing."""


class _Results(NamedTuple):
    values: list[Tensor]
    """Last states ``[B, n]``, costs ``[T, B]`` and values ``[B]``."""
    gradients: dict[Any, Tensor]


def _results_of(engine: Engine, few: Inputs, gradient: bool) -> _Results:
    outcome, kept = engine.forward(few, keep_states=True, pulled=gradient)
    values = [q for q in outcome[1:] if q is not None]
    if not gradient:
        return _Results(values, {})
    ones = Outcome(
        None, torch.ones_like(few.x0), *(q if q is None else torch.ones_like(q) for q in outcome[2:])
    )
    assert outcome.states is not None
    return _Results(values, engine.backward(few, outcome.states, ones, kept))


def _tolerance(few: Inputs) -> float:
    return 1e-9 if few.x0.dtype == torch.float64 else 1e-3


def _compare(right: _Results, got: _Results, few: Inputs) -> None:
    for a, b in zip(right.values, got.values, strict=True):
        _agree("the next state or cost", a, b, _tolerance(few))
    if not right.gradients and not got.gradients:
        return
    for name, tensor in few.named().items():
        if tensor.requires_grad:
            zero = torch.zeros_like(tensor)
            ours, theirs = (found.gradients.get(name, zero) for found in (right, got))
            _agree("the gradient", ours, theirs, _tolerance(few))


def _steady(right: _Results, moved: _Results, few: Inputs) -> Tensor:
    """Which rollouts change by less than a tenth of the tolerance."""
    steady = few.x0.new_ones(len(few.x0), dtype=torch.bool)
    pairs = list(zip(right.values, moved.values, strict=True))
    pairs[1] = pairs[1][0].t(), pairs[1][1].t()
    if "x0" in right.gradients:
        pairs.append((right.gradients["x0"], moved.gradients["x0"]))
    for a, b in pairs:
        change = (a - b).detach().abs().reshape(len(steady), -1).amax(1)
        steady &= ~(change >= 0.1 * _tolerance(few) * _size(a[a.isfinite()]))
    return steady


def _size(right: Tensor) -> Tensor:
    # For numbers much smaller than 1 the difference may be rounding of the larger operands.
    return right.abs().max().clamp_min(1e-2) if right.numel() else right.new_tensor(1e-2)


def _agree(what: str, right: Tensor, got: Tensor, tolerance: float) -> None:
    finite = right.isfinite()
    if not finite.any():
        return  # nothing to compare with
    right, got = right[finite], got[finite]
    difference = float((right - got).abs().max() / _size(right))
    if not difference < tolerance:
        raise UnsupportedError(
            f"{what} of the compiled step differs from torch's by {difference:.2g} (relative); does the step mix "
            "rollouts, branch on values or hold a torch.autograd.Function of its own?"
        )


def _only(few: Inputs, chosen: Tensor) -> Inputs:
    """Those with True in ``chosen [B]``."""
    rows = chosen.nonzero().squeeze(-1)

    def part(q: Any, dim: int) -> Any:
        if not isinstance(q, Tensor):
            return q
        return q.detach().index_select(dim, rows).requires_grad_(q.requires_grad)

    p = {name: part(v, 0) if v.ndim else v for name, v in few.p.items()}
    timed: dict[str, Any] = {"noise": part(few.noise, 1), "controls": part(few.controls, 1)}
    return replace(few, x0=part(few.x0, 0), p=p, **timed)


def few_of(inputs: Inputs, steps: int = 2) -> Inputs:
    """Inputs of so many control intervals, from some of these states and from others in the state box."""
    x0 = inputs.x0.detach()
    given = x0[x0.isfinite().all(-1)][:3]
    box = inputs.env.state_box.sample(5, torch.Generator("cpu").manual_seed(0), torch.float64)
    states = torch.cat((given, box.to(x0)))
    rows = torch.arange(len(states), device=x0.device) % len(x0)
    moved: dict[str, Any] = {
        name: q.detach()[:1, rows].expand(steps, -1, -1).requires_grad_(q.requires_grad)
        if isinstance(q, Tensor)
        else q
        for name, q in (("noise", inputs.noise), ("controls", inputs.controls))
    }
    p = {
        k: (v.detach()[rows] if v.ndim else v.detach()).requires_grad_(v.requires_grad)
        for k, v in inputs.p.items()
    }
    states = states.requires_grad_(inputs.x0.requires_grad)
    return replace(
        inputs,
        x0=states,
        steps=steps,
        p=p,
        threads=1,
        most_threads=1,
        members=1,
        stacked={},
        truncate=None,
        **moved,
    )
