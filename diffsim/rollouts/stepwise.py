"""Back ends with a Python loop over control intervals: ``eager``, and the base of ``inductor``."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from diffsim.rollouts.inputs import Engine, Inputs, Outcome
from diffsim.rollouts.inspection import Snapshot
from diffsim.rollouts.noise import Noise

logger = logging.getLogger("diffsim")


class Stepwise(Engine):
    """A Python loop over control intervals; backward computes every step again from its state."""

    compiled = False
    any_batch = True

    @classmethod
    def prepare(cls, inputs: Inputs, gradient: bool) -> Stepwise:
        return cls()

    def step(self, inputs: Inputs, t: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Next states ``[B, n]`` and costs ``[B]`` of control interval ``t``."""
        u = inputs.act(x, inputs.noise_at(t)) if inputs.controls is None else inputs.controls[t]
        return inputs.advance(x, u)

    def pull(self, inputs: Inputs, t: int, x: Tensor, by_next: Tensor, by_cost: Tensor) -> dict[Any, Tensor]:
        """The step's vector-Jacobian product, by the names of ``Inputs.named``."""
        with torch.enable_grad():
            moved = at_interval(inputs, t, x)
            return _gradients(moved, [*self.step(moved, 0, moved.x0)], [by_next, by_cost])

    def forward(self, inputs: Inputs, keep_states: bool, pulled: bool = False) -> tuple[Outcome, None]:
        if inputs.stacked:
            return _members(inputs, keep_states), None
        with torch.no_grad():
            return self._forward(inputs, keep_states), None

    def _forward(self, inputs: Inputs, keep_states: bool) -> Outcome:
        x = inputs.x0
        states, costs = [x], []
        for t in range(inputs.steps):
            x, cost = self.step(inputs, t, x)
            costs.append(cost)
            if keep_states:
                states.append(x)
        values = None if inputs.terminal is None else inputs.value(x)
        return Outcome(torch.stack(states) if keep_states else None, x, torch.stack(costs), values)

    def backward(self, inputs: Inputs, states: Tensor, by: Outcome, kept: Any = None) -> dict[Any, Tensor]:
        total: dict[Any, Tensor] = {}
        by_x = torch.zeros_like(inputs.x0) if by.last is None else by.last
        if by.states is not None:
            by_x = by_x + by.states[-1]
        if by.values is not None:
            with torch.enable_grad():
                moved = at_interval(inputs, None, states[-1])
                pulled = _gradients(moved, [moved.value(moved.x0)], [by.values])
            by_x = by_x + pulled.pop("x0", 0.0)
            _add(total, pulled)
        timed: dict[str, list[Tensor]] = {"noise": [], "controls": []}
        no_cost = torch.zeros_like(inputs.x0[:, 0])
        for t in reversed(range(inputs.steps)):
            by_x = inputs.bounded(by_x)
            pulled = self.pull(inputs, t, states[t], by_x, no_cost if by.costs is None else by.costs[t])
            by_x = pulled.pop("x0", torch.zeros_like(by_x))
            if inputs.truncate and t and t % inputs.truncate == 0:
                by_x = torch.zeros_like(by_x)
            if by.states is not None:
                by_x = by_x + by.states[t]
            for name, parts in timed.items():
                given = getattr(inputs, name)
                if isinstance(given, Tensor) and given.requires_grad:
                    parts.append(pulled.pop(name, torch.zeros_like(given[t])))
            _add(total, pulled)
        for name, parts in timed.items():
            if parts:
                total[name] = torch.stack(parts[::-1])
        return {"x0": by_x, **total}


class Unrolled(Stepwise):
    """Plain autograd through every step, for steps that give another result when they are computed again."""

    any_batch = False  # what a step draws, and the statistics of a batch norm, depend on the number

    def unrolled(self, inputs: Inputs, mark: bool = False) -> tuple[Outcome, Tensor | None]:
        """Simulate under autograd.

        With ``mark``, a rollout whose state, cost or terminal value is not finite is NaN from there on and contributes
        zero to every gradient; which did not fail is the second result, ``[B]``.
        """
        guard = _Guard(inputs) if mark else None
        x = inputs.x0
        states, costs = [x], []
        for t in range(inputs.steps):
            if inputs.truncate and t and t % inputs.truncate == 0:
                x = x.detach()
            if guard is None:
                x, cost = self.step(inputs, t, x)
            else:
                x, cost = guard.run(functools.partial(self._step_of, t), x)
            if inputs.costate_bound is not None and x.requires_grad:
                x = x.clone()  # what is kept of the trajectory passes its own gradient on as well
                x.register_hook(inputs.bounded)
            states.append(x)
            costs.append(cost)
        if inputs.terminal is None:
            values = None
        elif guard is None:
            values = inputs.value(x)
        else:
            (values,) = guard.run(lambda given, x: [given.value(x)], x)
        outcome = Outcome(torch.stack(states), x, torch.stack(costs), values)
        if guard is None:
            return outcome, None
        return guard.without_gradient(outcome), guard.ok

    def _step_of(self, t: int, inputs: Inputs, x: Tensor) -> Sequence[Tensor]:
        return self.step(inputs, t, x)


class _Guard:
    """Keeps the graph of plain autograd free of numbers that are not finite.

    A zero cotangent times an infinite derivative is NaN, so a step that fails for some rollouts is computed again with
    the inputs of one that did not fail in their place; their results are NaN and pass no gradient on.
    """

    def __init__(self, inputs: Inputs) -> None:
        self.inputs = self.given = inputs
        self.ok = torch.ones_like(inputs.x0[:, 0], dtype=torch.bool)
        self._which: Tensor | None = None
        self._mark(inputs.x0.isfinite().all(-1))

    def _mark(self, ok: Tensor) -> None:
        self.ok = ok
        if not ok.all():
            self._which = _stand_ins(ok)
            self.given = self.inputs.of_rollouts(self._which)

    def run(self, function: Callable[[Inputs, Tensor], Sequence[Tensor]], x: Tensor) -> list[Tensor]:
        """``function(inputs, x)``, with results ``[B, ...]``."""
        while self.ok.any():
            before = Snapshot(self.inputs)
            results = function(self.given, x if self._which is None else x.index_select(0, self._which))
            ok = self.ok & finite(*results)
            if torch.equal(ok, self.ok):
                return [torch.where(_along(ok, q), q, torch.nan) for q in results]
            self._mark(ok)
            before.put_back()
        with torch.no_grad():
            return [torch.full_like(q, torch.nan) for q in function(self.inputs, x)]

    def without_gradient(self, outcome: Outcome) -> Outcome:
        """The outcome, whose failed rollouts pass no gradient on, not even to the states before the failure."""
        if self.ok.all():
            return outcome
        # Sums of no numbers: a graph to everything that a gradient is wanted of, should all rollouts have failed.
        zero = sum(
            (q.flatten()[:0].sum() for q in self.inputs.named().values() if q.requires_grad), start=0.0
        )
        return Outcome(
            *(
                None if q is None else torch.where(_along(self.ok, q, axis), q, q.detach()) + zero
                for q, axis in zip(outcome, AXES, strict=True)
            )
        )


AXES = (1, 0, 1, 0)
"""The axis of the rollouts in each part of an outcome."""


def _along(ok: Tensor, tensor: Tensor, axis: int = 0) -> Tensor:
    """``ok [B]`` in a shape that broadcasts to a tensor whose ``axis`` is the rollouts'."""
    return ok.reshape(-1, *[1] * (tensor.ndim - axis - 1))


def finite(*tensors: Tensor) -> Tensor:
    """Which rollouts have finite numbers only, ``[B]``; the rollouts are the first axis of each tensor."""
    ok = torch.ones(len(tensors[0]), dtype=torch.bool, device=tensors[0].device)
    for tensor in tensors:
        ok = (
            ok & tensor.detach().isfinite().flatten(1).all(1)
            if tensor.ndim > 1
            else ok & tensor.detach().isfinite()
        )
    return ok


def _stand_ins(ok: Tensor) -> Tensor:
    """For each rollout ``[B]`` its own number, or for those not ``ok`` that of the first that is."""
    own = torch.arange(len(ok), device=ok.device)
    return torch.where(ok, own, ok.int().argmax())


def backward_without(
    engine: Engine, inputs: Inputs, states: Tensor, by: Outcome, ok: Tensor
) -> dict[Any, Tensor]:
    """``engine.backward`` with exactly zero for all that failed rollouts would contribute.

    Zero cotangents alone do not do: zero times an infinite derivative is NaN.  So the failed rollouts' inputs and
    states are replaced by those of one that did not fail, whose derivatives are finite where its own gradient is.
    """
    wanted = {name: q for name, q in inputs.named().items() if q.requires_grad}
    if not ok.any():
        return {name: torch.zeros_like(q) for name, q in wanted.items()}
    which = _stand_ins(ok)
    masked = Outcome(
        *(
            None if q is None else torch.where(_along(ok, q, axis), q, 0.0)
            for q, axis in zip(by, AXES, strict=True)
        )
    )
    # In memory the rollouts come last, as the native back end needs it.
    moved = states.transpose(1, 2).index_select(2, which).transpose(1, 2)
    found = engine.backward(inputs.of_rollouts(which), moved, masked, None)
    axes = {"x0": 0, "noise": 1, "controls": 1}
    axes |= {("p", name): 0 for name, value in inputs.p.items() if value.ndim}  # type: ignore[misc]
    return {
        name: torch.where(_along(ok, q, axes[name]), q, 0.0) if name in axes else q
        for name, q in found.items()
    }


def at_interval(inputs: Inputs, t: int | None, x: Tensor) -> Inputs:
    """The inputs of one control interval as leaves of a graph of its own; parameters already are leaves."""

    def leaf(tensor: Tensor) -> Tensor:
        return tensor.detach().requires_grad_(tensor.requires_grad)

    return replace(
        inputs,
        x0=x.detach().requires_grad_(),
        p={name: leaf(value) for name, value in inputs.p.items()},
        noise=_interval(inputs.noise, t),
        controls=_interval(inputs.controls, t),
    )


def _interval(given: Any, t: int | None) -> Any:
    if isinstance(given, Noise) and t is not None:
        return replace(given, start=given.start + t)
    return (
        None if given is None or t is None else given.detach()[t : t + 1].requires_grad_(given.requires_grad)
    )


def gradients_of(leaves: dict[Any, Tensor], outputs: list[Tensor], bars: list[Tensor]) -> dict[Any, Tensor]:
    """Vector-Jacobian product by the names of ``leaves``; absent where the outputs do not depend on one."""
    terms = [(output * bar).sum() for output, bar in zip(outputs, bars, strict=True) if output.requires_grad]
    if not terms:
        return {}
    # Gradient of the sum, because passing cotangents to autograd.grad makes torch import sympy (half a second).
    results = torch.autograd.grad(torch.stack(terms).sum(), list(leaves.values()), allow_unused=True)
    return {name: g for name, g in zip(leaves, results, strict=True) if g is not None}


def _gradients(inputs: Inputs, outputs: list[Tensor], bars: list[Tensor]) -> dict[Any, Tensor]:
    leaves = {k: v for k, v in inputs.named().items() if v.requires_grad}
    found = gradients_of(leaves, outputs, bars)
    return {name: g[0] if name in ("noise", "controls") else g for name, g in found.items()}


def _add(total: dict[Any, Tensor], terms: dict[Any, Tensor]) -> None:
    for name, term in terms.items():
        total[name] = total[name] + term if name in total else term


def _members(inputs: Inputs, keep_states: bool) -> Outcome:
    """A population's rollouts as one batch, or, if vmap does not support the policy, policy by policy."""
    assert inputs.act_together is not None
    together = replace(inputs, act=inputs.act_together, members=1, stacked={})
    with torch.no_grad():
        try:
            inputs.act_together(inputs.x0, inputs.noise_at(0))
        except RuntimeError as error:
            # torch.vmap supports neither batch norm nor custom autograd Functions without a vmap rule.
            _say_once(str(error).splitlines()[0])
            return _one_after_the_other(inputs, keep_states)
        return Stepwise()._forward(together, keep_states)


@functools.cache
def _say_once(reason: str) -> None:
    logger.warning(
        "a population of policies that torch.vmap cannot batch is simulated one policy after the other: %s",
        reason,
    )


def _one_after_the_other(inputs: Inputs, keep_states: bool) -> Outcome:
    """A population's policies in turn; the parameters are restored afterwards."""
    each = len(inputs.x0) // inputs.members
    own = {id(q): q for module in inputs.modules for q in module.parameters()}
    before = {key: q.detach().clone() for key, q in own.items()}
    outcomes = []
    try:
        for k in range(inputs.members):
            part = slice(k * each, (k + 1) * each)
            for key, stack in inputs.stacked.items():
                own[key].detach().copy_(stack[k])
            p = {name: v[part] if v.ndim else v for name, v in inputs.p.items()}
            noise = inputs.noise[:, part] if isinstance(inputs.noise, Tensor) else inputs.noise
            one = replace(inputs, x0=inputs.x0[part], p=p, noise=noise, members=1, stacked={})
            outcomes.append(Stepwise().forward(one, keep_states)[0])
    finally:
        for key, q in own.items():
            q.detach().copy_(before[key])
    joined = [
        None if parts[0] is None else torch.cat(parts, -1)
        for parts in zip(*(o[2:] for o in outcomes), strict=True)
    ]
    states = torch.cat([cast(Tensor, o.states) for o in outcomes], 1) if keep_states else None
    return Outcome(states, torch.cat([cast(Tensor, o.last) for o in outcomes]), *joined)
