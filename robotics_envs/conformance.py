"""Does a simulator keep the contract of :class:`robotics_envs.base.Env`?  ``check_env`` tells.

Each check is a function from an environment to a list of complaints; all run, so one call names
everything that is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robotics_envs.base import Env
from solvers.native.expressions import Graph
from solvers.native.trace import NativeUnsupportedError, NotStraightLineError, trace

BATCH = 7


class ConformanceError(AssertionError):
    """A simulator breaks the contract; the message lists every breach."""


def check_env(env: Env) -> None:
    """Put a simulator through the conformance suite.

    Raises:
        ConformanceError: with one line for each breach found.
    """
    if not isinstance(env, Env):
        raise ConformanceError(
            f"check_env takes an instance of robotics_envs.base.Env, got {env!r}; "
            "a class has to be called first: check_env(MyEnv())"
        )
    complaints = []
    for check in CHECKS:
        try:
            complaints += [f"{check.__name__}: {complaint}" for complaint in check(env)]
        except Exception as error:  # a crash is a breach like any other, and must not hide the rest
            complaints.append(f"{check.__name__}: {type(error).__name__}: {error}")
    if complaints:
        raise ConformanceError(
            f"{type(env).__name__} breaks the environment contract:\n  " + "\n  ".join(complaints)
        )


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sample(env: Env, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """States in the state box, actions in the action box and the parameters."""
    rng = generator()
    x = env.state_box.sample(BATCH, rng, dtype)
    return x, env.action_box.sample(BATCH, rng, dtype), env.params(x)


def names_match_shapes(env: Env) -> list[str]:
    x, _, _ = sample(env)
    sizes = {
        "start_box": (len(env.start_box), len(env.state_names)),
        "state_box": (len(env.state_box), len(env.state_names)),
        "observe": (env.observe(x).shape[-1], len(env.observation_names)),
    }
    return [f"{k} has {got} components, the names {want}" for k, (got, want) in sizes.items() if got != want]


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


def results_keep_shape_dtype_and_device(env: Env) -> list[str]:
    """Also on the meta device, which finds tensors made on the wrong one."""
    return [
        complaint
        for dtype in (torch.float32, torch.float64)
        for device in ("cpu", "meta")
        for complaint in shapes_on(env, dtype, device)
    ]


def shapes_on(env: Env, dtype: torch.dtype, device: str) -> list[str]:
    """Complaints about the shape, dtype or device of what the methods give."""
    n, o = len(env.state_names), len(env.observation_names)
    x, u, p = sample(env, dtype)
    x, u, p = x.to(device), u.to(device), {k: v.to(device) for k, v in p.items()}
    following, cost = env.step(x, u, p)
    results = {
        "dynamics": (env.dynamics(0.0, x, u, p), (BATCH, n), dtype),
        "step's state": (following, (BATCH, n), dtype),
        "step's cost": (cost, (BATCH,), dtype),
        "cost": (env.cost(x, u, p), (BATCH,), dtype),
        "observe": (env.observe(x), (BATCH, o), dtype),
        "done": (env.done(x), (BATCH,), torch.bool),
    }
    return [
        f"{what} gives {list(tensor.shape)} {tensor.dtype} on {tensor.device.type}, "
        f"wanted {list(shape)} {wanted} on {device}"
        for what, (tensor, shape, wanted) in results.items()
        if (tuple(tensor.shape), tensor.dtype, tensor.device.type) != (shape, wanted, device)
    ]


def reset_is_its_generator_alone(env: Env) -> list[str]:
    complaints = []
    before = torch.get_rng_state()
    first, second = env.reset(BATCH, generator(1)), env.reset(BATCH, generator(1))
    if not torch.equal(first, second):
        complaints.append("the same seed gives different starting states")
    if torch.equal(first, env.reset(BATCH, generator(2))) and env.start_box.low != env.start_box.high:
        complaints.append("different seeds give the same starting states")
    if not torch.equal(before, torch.get_rng_state()):
        complaints.append("reset draws from the global generator")
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


def gradients_agree_with_finite_differences(env: Env) -> list[str]:
    """Of dynamics, step, cost and observe, in float64, with respect to x, u and every parameter."""
    x, u, p = sample(env)
    names = list(p)

    def over(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda x, u, *values: function(x, u, dict(zip(names, values, strict=True)))

    functions: dict[str, Callable[..., Any]] = {
        "dynamics": over(lambda x, u, p: env.dynamics(0.0, x, u, p)),
        "step": over(env.step),
        "cost": over(env.cost),
        "observe": lambda x, u, *values: env.observe(x),
    }
    # Inside the box by a margin: a finite difference across the clip of the action is no derivative.
    inputs = [v.clone().requires_grad_() for v in (x, 0.9 * u, *p.values())]
    complaints = []
    for name, function in functions.items():
        try:
            torch.autograd.gradcheck(function, inputs)
        except Exception as error:
            complaints.append(f"{name}: {error}")
    return complaints


def gradients_reach_every_input(env: Env) -> list[str]:
    """No silent zero: x, u and each parameter move the state or the cost somewhere in the box."""
    x, u, p = sample(env)
    inputs = {"x": x, "u": u, **p}
    for value in inputs.values():
        value.requires_grad_()
    following, cost = env.step(x, u, p)
    if not (following.requires_grad or cost.requires_grad):
        return ["step detaches everything: no gradient reaches any input"]
    gradients = torch.autograd.grad(following.sum() + cost.sum(), list(inputs.values()), allow_unused=True)
    return [
        f"the gradient with respect to {name} is zero everywhere"
        for name, gradient in zip(inputs, gradients, strict=True)
        if gradient is None or not gradient.any()
    ]


def rollouts_do_not_mix(env: Env) -> list[str]:
    x, u, p = sample(env)
    together = env.step(x, u, p)
    alone = [env.step(x[i : i + 1], u[i : i + 1], p) for i in range(BATCH)]
    apart = [torch.cat(parts) for parts in zip(*alone, strict=True)]
    same = all(torch.allclose(a, b, rtol=1e-12, atol=1e-12) for a, b in zip(together, apart, strict=True))
    return [] if same else ["a rollout's step depends on the others in its batch"]


def parameters_may_differ_between_rollouts(env: Env) -> list[str]:
    x, u, p = sample(env)
    batched = env.step(x, u, {name: value.expand(BATCH) for name, value in p.items()})
    same = all(
        torch.allclose(a, b, rtol=1e-12, atol=1e-12) for a, b in zip(env.step(x, u, p), batched, strict=True)
    )
    return [] if same else ["parameters of shape [B] give another result than the same scalars"]


def steps_are_straight_line(env: Env) -> list[str]:
    """What is computed may not depend on values, or a step cannot be compiled: ``torch.where`` instead of ``if``."""
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
            pass  # an operation without C++ costs speed, not correctness; Rollout says so
    return complaints


def actions_are_clipped(env: Env) -> list[str]:
    x, u, p = sample(env)
    low, high = env.action_box.bounds(u)
    complaints = []
    for beyond, bound in ((low - 1.0, low), (high + 1.0, high)):
        clipped = zip(env.step(x, beyond.expand_as(u), p), env.step(x, bound.expand_as(u), p), strict=True)
        if not all(torch.equal(a, b) for a, b in clipped):
            complaints.append(f"an action beyond {bound.tolist()} does not act like the bound")
    return complaints


def step_follows_the_dynamics(env: Env) -> list[str]:
    """As dt goes to zero, ``(step(x) - x) / dt`` goes to ``dynamics(x)``."""
    x, u, p = sample(env)
    x = 0.5 * x  # away from the limits a simulator may impose at the edge of its box
    rate = env.dynamics(0.0, x, u, p)
    dt = 1e-6 * env.dt
    slope = (env.solver.step(env.dynamics, 0.0, x, u, p, dt) - x) / dt
    error = float((slope - rate).abs().max() / rate.abs().max().clamp_min(1e-12))
    return [] if error < 1e-4 else [f"the solver's step and the dynamics differ by {error:.1e} (relative)"]


CHECKS: tuple[Callable[[Env], list[str]], ...] = (
    names_match_shapes,
    angles_are_periodic,
    results_keep_shape_dtype_and_device,
    reset_is_its_generator_alone,
    values_are_finite,
    gradients_agree_with_finite_differences,
    gradients_reach_every_input,
    rollouts_do_not_mix,
    parameters_may_differ_between_rollouts,
    actions_are_clipped,
    steps_are_straight_line,
    step_follows_the_dynamics,
)
