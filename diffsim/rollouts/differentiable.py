"""A rollout as one node of autograd: what it gives, when it counts as failed, and its backward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffsim.rollouts.autocast import AS_IT_IS, autocast_as
from diffsim.rollouts.inputs import Engine, Inputs, Outcome
from diffsim.rollouts.stepwise import backward_without, finite
from robotics_envs.divergence import check_rollouts


class Trajectory(NamedTuple):
    """``T`` control intervals of ``B`` rollouts."""

    last: Float[Tensor, "batch n"]
    """The final states."""
    costs: Float[Tensor, "T batch"]
    states: Float[Tensor, "T+1 batch n"] | None
    """The initial states first; None where they were not kept."""
    values: Float[Tensor, " batch"] | None
    """The terminal value of the final states; None without a terminal value function."""
    ok: Bool[Tensor, " batch"] | None = None
    """Which rollouts have finite states, costs and values only; None where ``on_failure`` is None."""

    def detached(self) -> Trajectory:
        """The same without gradient."""
        return Trajectory(*(None if q is None else q.detach() for q in self))  # type: ignore[arg-type]


def trajectory_of(outcome: Outcome, ok: Tensor | None) -> Trajectory:
    assert outcome.last is not None
    assert outcome.costs is not None
    return Trajectory(outcome.last, outcome.costs, outcome.states, outcome.values, ok)


def judge(inputs: Inputs, outcome: Outcome, on_failure: str | None) -> Tensor | None:
    """Which rollouts are finite, ``[B]``; None if ``on_failure`` is None.

    Raises:
        DivergenceError: with ``"raise"``, if one is not.
    """
    if on_failure is None:
        return None
    last, costs, states, values = outcome.last, outcome.costs, outcome.states, outcome.values
    assert last is not None
    assert costs is not None
    ok = finite(last, costs.t())
    if states is not None:
        ok = ok & states.detach().isfinite().all(0).all(-1)
    if values is not None:
        ok = ok & finite(values)
    if on_failure == "raise" and not ok.all():
        following = last.unsqueeze(0) if states is None else states[1:]
        check_rollouts(inputs.env, inputs.x0, following.detach(), costs.detach(), values)
    return ok


Pullback = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor] | None]
"""From cotangents of costs and terminal values to those of initial states and noise."""


def pullback(engine: Engine, inputs: Inputs, states: Tensor, kept: Any) -> Pullback:
    """The pullback of a rollout of ``engine``, from what its forward pass returned."""
    noise = inputs.noise
    assert isinstance(noise, Tensor)

    @torch.no_grad()
    def pull(by_costs: Tensor, by_values: Tensor | None) -> tuple[Tensor, Tensor]:
        found = engine.backward(inputs, states, Outcome(None, None, by_costs, by_values), kept)
        by_x0, by_noise = found.get("x0"), found.get("noise")
        return (
            torch.zeros_like(inputs.x0) if by_x0 is None else by_x0,
            torch.zeros_like(noise) if by_noise is None else by_noise,
        )

    return pull


def pullback_by_autograd(trajectory: Trajectory, x0: Tensor, noise: Tensor) -> Pullback:
    """The same for a trajectory that autograd has recorded; it returns None where nothing has a gradient."""

    @torch.enable_grad()
    def pull(by_costs: Tensor, by_values: Tensor | None) -> tuple[Tensor, Tensor] | None:
        total = (by_costs * trajectory.costs).sum()
        if by_values is not None:
            assert trajectory.values is not None
            total = total + (by_values * trajectory.values).sum()
        if not total.requires_grad:
            return None
        # Without `grad_outputs`, for which torch loads sympy.
        by_x0, by_noise = torch.autograd.grad(total, (x0, noise), allow_unused=True, materialize_grads=True)
        return by_x0, by_noise

    return pull


def without_inference_tensors(inputs: Inputs) -> Inputs:
    """Copies in the place of tensors made under ``torch.inference_mode``, which autograd cannot keep for backward."""
    given = {"x0": inputs.x0, "noise": inputs.noise, "controls": inputs.controls}
    made = {k: v.clone() for k, v in given.items() if isinstance(v, Tensor) and v.is_inference()}
    if any(v.is_inference() for v in inputs.p.values()):
        made["p"] = {k: v.clone() if v.is_inference() else v for k, v in inputs.p.items()}  # type: ignore[assignment]
    return replace(inputs, **made) if made else inputs  # type: ignore[arg-type]


class RolloutFunction(torch.autograd.Function):
    """``apply(engine, inputs, on_failure, names, *tensors) -> last, costs, states, values, ok``.

    ``tensors`` are those of ``inputs.named()`` that require a gradient, ``names`` their names.
    """

    @staticmethod
    def forward(
        ctx: Any,
        engine: Engine,
        inputs: Inputs,
        on_failure: str | None,
        names: tuple[Any, ...],
        *tensors: Tensor,
    ) -> Any:
        with autocast_as(inputs.cast, inputs.x0.device) if inputs.cast else AS_IT_IS:
            outcome, ctx.kept = engine.forward(inputs, keep_states=True, pulled=True)
        ok = judge(inputs, outcome, on_failure)
        ctx.failed = on_failure == "mark" and not bool(ok.all())  # type: ignore[union-attr]
        ctx.engine, ctx.inputs, ctx.names, ctx.versions = engine, inputs, names, _versions(inputs)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(outcome.states, ok)
        constant = [getattr(outcome, name) for name in engine.constant]
        if ok is not None:
            constant.append(ok)
        if constant:
            ctx.mark_non_differentiable(*constant)
        return outcome.last, outcome.costs, outcome.states, outcome.values, ok

    @staticmethod
    def backward(ctx: Any, by_last: Any, by_costs: Any, by_states: Any, by_values: Any, by_ok: Any) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "a rollout has first derivatives only (create_graph=True asks for second ones); "
                "loop over policy(env.observe(x)) and env.step yourself where you need them"
            )
        states, ok = ctx.saved_tensors
        inputs, by = ctx.inputs, Outcome(by_states, by_last, by_costs, by_values)
        if ctx.versions != _versions(inputs):
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: an "
                "input of a rollout, or a parameter or buffer of its policy or terminal value, was written into "
                "between the rollout and its backward pass"
            )
        with autocast_as(inputs.cast, inputs.x0.device):
            if ctx.failed:
                found = backward_without(ctx.engine, inputs, states, by, ok)
            else:
                found = ctx.engine.backward(inputs, states, by, ctx.kept)
        return None, None, None, None, *[found.get(name) for name in ctx.names]


def _versions(inputs: Inputs) -> list[int]:
    """The numbers of in-place changes of everything that a backward pass reads.

    Saved by autograd, each tensor would cost more than ten times as much.
    """
    return [*[q._version for q in inputs.named().values()], *[q._version for q in inputs.beside]]
