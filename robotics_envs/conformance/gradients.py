"""Checks that gradients agree with finite differences and reach every input."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError, gradcheck

from robotics_envs.base import Env
from robotics_envs.conformance.samples import generator, sample
from robotics_envs.user_code import describe_failure


def gradients_agree_with_finite_differences(env: Env) -> list[str]:
    """Of dynamics, step, cost and observe, in float64, with respect to x, u and every parameter."""
    x, u, p = sample(env)
    # A margin inside the box: a finite difference across the clip of the action is no derivative.
    low, high = env.action_box.bounds(u)
    inputs = {"x": x, "u": low + (high - low) * (0.05 + 0.9 * (u - low) / (high - low)), **p}
    functions: dict[str, Callable[..., Any]] = {
        "dynamics": lambda x, u, **p: env.dynamics(0.0, x, u, p),
        "step": lambda x, u, **p: env.step(x, u, p),
        "cost": lambda x, u, **p: env.cost(x, u, p),
        "observe": lambda x, u, **p: env.observe(x),
    }
    # Every output by itself; for long states and steps along random directions, which is as sensitive.
    long = x.shape[1] > 32
    complaints = []
    for name, function in functions.items():
        values = [v.clone().requires_grad_() for v in inputs.values()]
        call = lambda *values, function=function: function(**dict(zip(inputs, values, strict=True)))
        try:
            _checked(call, values, fast_mode=long or (name == "step" and env.substeps > 1))
        except GradcheckError as error:
            complaints += in_words(name, function, inputs) or [f"{name}: {error}"]
        except Exception as error:
            complaints.append(f"{name}: {describe_failure(error) or f'{type(error).__name__}: {error}'}")
    return complaints


def _checked(call: Callable[..., Any], values: list[Tensor], fast_mode: bool) -> None:
    """``gradcheck``; where it fails once more with a larger step, in which rounding of large outputs counts less."""
    try:
        gradcheck(call, values, fast_mode=fast_mode)
    except GradcheckError:
        gradcheck(call, values, eps=1e-5, fast_mode=fast_mode)


def in_words(name: str, function: Callable[..., Any], inputs: Mapping[str, Tensor]) -> list[str]:
    """Which inputs of a function have a wrong gradient, and how it differs, along one random direction each."""
    complaints = []
    for what, value in inputs.items():
        direction = torch.randn(value.shape, generator=generator(3), dtype=value.dtype, device=value.device)
        leaf = value.clone().requires_grad_()
        outputs = function(**{**inputs, what: leaf})
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        ahead, behind = (
            function(**{**inputs, what: value + sign * 1e-6 * direction}) for sign in (1.0, -1.0)
        )
        pairs = zip(ahead, behind, strict=True) if isinstance(ahead, tuple) else [(ahead, behind)]
        for i, (output, (after, before)) in enumerate(zip(outputs, pairs, strict=True)):
            weights = torch.randn(
                output.shape, generator=generator(4 + i), dtype=output.dtype, device=output.device
            )
            measured = float((weights * (after - before)).sum()) / 2e-6
            (gradient,) = (
                torch.autograd.grad((weights * output).sum(), leaf, retain_graph=True, allow_unused=True)
                if output.requires_grad
                else (None,)
            )
            stated = 0.0 if gradient is None else float((gradient * direction).sum())
            if abs(stated - measured) <= 1e-4 * max(1.0, abs(measured)):
                continue
            complaint = (
                f"{name}: the gradient by {what} is {stated:.6g}, finite differences give {measured:.6g}"
            )
            if gradient is None or not gradient.any():
                complaint = (
                    f"{name} depends on {what} but no gradient comes back: something cuts it (detach, .data, "
                    ".item(), NumPy, torch.no_grad, torch.tensor of a tensor)"
                )
            complaints.append(complaint)
    return complaints


def gradients_reach_every_input(env: Env) -> list[str]:
    """No zero gradient: x, u and each parameter change the state or the cost somewhere in the box."""
    x, u, p = sample(env)
    inputs = {"x": x, "u": u, **p}
    for value in inputs.values():
        value.requires_grad_()
    following, cost = env.step(x, u, p)
    if not (following.requires_grad or cost.requires_grad):
        return ["step detaches everything: no gradient reaches any input"]
    gradients = torch.autograd.grad(following.sum() + cost.sum(), list(inputs.values()), allow_unused=True)
    # What only training changes may act in a small part of the box.
    training = {name for name, value in env.training_params(p).items() if value is not p[name]}
    complaints = [
        f"the gradient with respect to {name} is zero everywhere in the state box"
        for name, gradient in zip(inputs, gradients, strict=True)
        if name not in training and (gradient is None or not gradient.any())
    ]
    by_action = gradients[1]
    if by_action is not None and by_action.any():
        idle = [i for i, column in enumerate(by_action.unbind(-1)) if not column.any()]
        complaints += [f"action component {i} changes neither the state nor the cost" for i in idle]
    return complaints
