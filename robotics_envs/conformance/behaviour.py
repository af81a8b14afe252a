"""Checks that calls are pure, rollouts are independent, limits hold, and a step follows the dynamics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robotics_envs.base import Env
from robotics_envs.conformance.samples import BATCH, generator, sample
from robotics_envs.user_code import describe_failure
from solvers.compiler.ir import Graph
from solvers.compiler.trace import NativeUnsupportedError, NotStraightLineError, trace

WILD = 30  # control intervals


def calls_repeat_and_change_nothing(env: Env) -> list[str]:
    """The same call gives the same result, and what is handed in stays as it was."""
    x, u, p = sample(env)
    functions: dict[str, Callable[..., Any]] = {
        "dynamics": lambda x, u, p: env.dynamics(0.0, x, u, p),
        "step": env.step,
        "cost": env.cost,
        "observe": lambda x, u, p: env.observe(x),
        "done": lambda x, u, p: env.done(x),
    }
    complaints = []
    for name, function in functions.items():
        given = (x.clone(), u.clone(), {key: value.clone() for key, value in p.items()})
        first = function(*given)
        if not (torch.equal(given[0], x) and torch.equal(given[1], u)):
            complaints.append(f"{name} writes into the state or action it is given")
            continue
        second = function(x.clone(), u.clone(), p)
        pairs = zip(first, second, strict=True) if isinstance(first, tuple) else [(first, second)]
        for a, b in pairs:
            if not isinstance(a, Tensor):
                complaints.append(f"{name} gives {type(a).__name__}, a torch tensor is needed")
            elif a.shape != b.shape or not _same(a, b):
                complaints.append(
                    f"two equal calls of {name} differ: it has hidden state or draws random numbers"
                )
    return complaints


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two results are equal; NaN equals NaN here, and another check reports it."""
    return bool(((a == b) | ((a != a) & (b != b))).all())


def dynamics_ignore_the_clock(env: Env) -> list[str]:
    x, u, p = sample(env)
    if _same(env.dynamics(0.0, x, u, p), env.dynamics(1.7, x, u, p)):
        return []
    return ["dynamics depends on t, but every step starts at t = 0: make time, or a phase, one of the states"]


def angles_are_periodic(env: Env) -> list[str]:
    x, u, p = sample(env)
    complaints = []
    for name in env.angle_names:
        if name not in env.state_names:
            complaints.append(f"{name!r} in angle_names is not in state_names")
            continue
        turned = x.clone()
        turned[:, env.state_names.index(name)] += 2 * torch.pi
        pairs = {
            "cost": (env.cost(x, u, p), env.cost(turned, u, p)),
            "observation": (env.observe(x), env.observe(turned)),
            "dynamics": (env.dynamics(0.0, x, u, p), env.dynamics(0.0, turned, u, p)),
        }
        complaints += [
            f"a full turn of {name} changes the {what}"
            for what, (a, b) in pairs.items()
            if not torch.allclose(a, b, rtol=1e-9, atol=1e-9)
        ]
    return complaints


def values_are_finite(env: Env) -> list[str]:
    rng = generator()
    x = env.state_box.sample(1000, rng, torch.float64)
    u = env.action_box.sample(1000, rng, torch.float64)
    following, cost = env.step(x, u, env.params(x))
    values = {"state after a step": following, "cost": cost, "observation": env.observe(x)}
    return [
        f"{int((~torch.isfinite(v)).sum())} non-finite values of {what} inside the state box"
        for what, v in values.items()
        if not torch.isfinite(v).all()
    ]


def wild_episodes_stay_finite(env: Env) -> list[str]:
    """Intervals of actions from bound to bound, from anywhere in the state box, in both dtypes."""
    complaints = []
    for dtype in (torch.float32, torch.float64):
        rng = generator(5)
        x = env.state_box.sample(16, rng, dtype)
        p, total = env.params(x), x.new_zeros(())
        start = x.requires_grad_()
        for i in range(min(WILD, env.episode_steps)):
            low, high = env.action_box.bounds(x)
            u = torch.where(
                torch.rand(16, len(low), generator=rng, dtype=dtype, device=rng.device) < 0.5, low, high
            )
            x, cost = env.step(x, u, p)
            total = total + cost.sum()
            if not (x.isfinite().all() and cost.isfinite().all()):
                complaints.append(f"not finite in {dtype} after {i + 1} intervals of extreme actions")
                break
        else:
            (gradient,) = torch.autograd.grad(x.sum() + total, start)
            # In chaotic motion a gradient may overflow, but it may not be NaN.
            if gradient.isnan().any():
                complaints.append(f"the gradient of {i + 1} intervals is NaN in {dtype}")
    return complaints


def rollouts_do_not_mix(env: Env) -> list[str]:
    x, u, p = sample(env)
    functions: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, ...]]] = {
        "dynamics": lambda x, u: (env.dynamics(0.0, x, u, p),),
        "step": lambda x, u: env.step(x, u, p),
        "observe": lambda x, u: (env.observe(x),),
    }
    complaints = []
    # Terminations are rare: many states are tried, also far outside of the box.
    low, high = env.state_box.bounds(x)
    many = (low + high) / 2 + 3 * (env.state_box.sample(400, generator(7), x.dtype) - (low + high) / 2)
    ends = env.done(many)
    parts = [env.done(many[i : i + size]) for size in (1, 50) for i in range(0, 50 * size, size) if i < 400]
    if not (torch.equal(torch.cat(parts[:50]), ends[:50]) and torch.equal(torch.cat(parts[50:]), ends)):
        complaints.append("a rollout's done depends on the others in its batch")
    for name, function in functions.items():
        together = function(x, u)
        alone = [function(x[i : i + 1], u[i : i + 1]) for i in range(BATCH)]
        apart = [torch.cat(parts) for parts in zip(*alone, strict=True)]
        if not all(
            torch.allclose(a, b, rtol=1e-12, atol=1e-12) for a, b in zip(together, apart, strict=True)
        ):
            complaints.append(f"a rollout's {name} depends on the others in its batch")
    return complaints


def parameters_may_differ_between_rollouts(env: Env) -> list[str]:
    x, u, p = sample(env)
    batched = env.step(x, u, {name: value.expand(BATCH) for name, value in p.items()})
    same = all(
        torch.allclose(a, b, rtol=1e-12, atol=1e-12) for a, b in zip(env.step(x, u, p), batched, strict=True)
    )
    return [] if same else ["parameters of shape [B] give another result than the same scalars"]


def actions_are_clipped(env: Env) -> list[str]:
    x, u, p = sample(env)
    low, high = env.action_box.bounds(u)
    complaints = []
    for beyond, bound in ((low - 1.0, low), (high + 1.0, high)):
        clipped = zip(env.step(x, beyond.expand_as(u), p), env.step(x, bound.expand_as(u), p), strict=True)
        if not all(torch.equal(a, b) for a, b in clipped):
            complaints.append(f"an action beyond {bound.tolist()} does not act like the bound")
    return complaints


def methods_can_be_vmapped(env: Env) -> list[str]:
    """``torch.func.vmap`` over a leading axis of batches gives what the batches give one by one."""
    x, u, p = sample(env)
    xs, us = torch.stack((x, x.flip(0))), torch.stack((u, u.flip(0)))
    functions: dict[str, Callable[[Tensor, Tensor], Any]] = {
        "step": lambda x, u: env.step(x, u, p),
        "observe": lambda x, u: (env.observe(x),),
        "done": lambda x, u: (env.done(x),),
    }
    complaints = []
    for name, function in functions.items():
        try:
            mapped = torch.func.vmap(function)(xs, us)
        except Exception as error:
            line = describe_failure(error) or f"{type(error).__name__}: {str(error).splitlines()[0]}"
            complaints.append(f"{name} under vmap: {line}")
            continue
        apart = [torch.stack(parts) for parts in zip(*map(function, xs, us), strict=True)]
        if not all(
            torch.allclose(a.double(), b.double(), rtol=1e-9, atol=1e-9)
            for a, b in zip(mapped, apart, strict=True)
        ):
            complaints.append(f"{name} under vmap gives other values")
    return complaints


def steps_are_straight_line(env: Env) -> list[str]:
    """No control flow may depend on values, or a step cannot be compiled: ``torch.where`` instead of ``if``."""
    if env.foreign:
        return []
    x, u, p = (sample(env)[0][:1], sample(env)[1][:1], sample(env)[2])
    functions: dict[str, Callable[..., Any]] = {
        "step": lambda x, u: env.step(x, u, p),
        "observe": lambda x, u: env.observe(x),
    }
    complaints = []
    for name, function in functions.items():
        graph = Graph()
        examples = [(v, np.full(v.shape, graph.input("value"), dtype=object)) for v in (x, u)]
        try:
            trace(function, examples, graph, lambda q: q.detach().cpu().numpy().astype(object))
        except NotStraightLineError as error:
            complaints.append(f"{name}: {error}")
        except NativeUnsupportedError:
            pass  # an operation without a C++ rule costs speed, not correctness; Rollout warns
    return complaints


def step_follows_the_dynamics(env: Env) -> list[str]:
    """As dt goes to zero, ``(step(x) - x) / dt`` goes to ``dynamics(x)``."""
    if env.foreign:  # its step has a fixed length
        return []
    x, u, p = sample(env)
    x = 0.5 * x  # away from limits that a simulator may impose near the bounds of its box
    rate = env.dynamics(0.0, x, u, p)
    dt = 1e-6 * env.dt
    slope = (env.solver.step(env.dynamics, 0.0, x, u, p, dt) - x) / dt
    error = float((slope - rate).abs().max() / rate.abs().max().clamp_min(1e-12))
    return [] if error < 1e-4 else [f"the solver's step and the dynamics differ by {error:.1e} (relative)"]
