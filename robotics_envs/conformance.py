"""Does a simulator keep the contract of :class:`robotics_envs.base.Env`?  ``check_env`` tells.

Each check is a function from an environment to a list of complaints; all run, so one call names
everything that is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError, gradcheck

from robotics_envs.base import Box, Env
from robotics_envs.drawing import flatten
from solvers.native.expressions import Graph
from solvers.native.trace import NativeUnsupportedError, NotStraightLineError, trace

BATCH = 5
WILD = 30  # control intervals
NEEDED = (
    *("name", "state_names", "observation_names", "action_box", "start_box", "state_box"),
    *("dt", "episode_steps", "solver"),
)
"""What has no default."""


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
    complaints = what_is_missing(env)
    for check in () if complaints else CHECKS:
        try:
            complaints += [f"{check.__name__}: {complaint}" for complaint in check(env)]
        except Exception as error:  # a crash is a breach like any other, and must not hide the rest
            complaints.append(f"{check.__name__}: {type(error).__name__}: {error}")
        if check is calls_repeat_and_change_nothing and complaints:
            break  # what follows compares calls with each other
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


def what_is_missing(env: Env) -> list[str]:
    """Without these nothing else can be tried."""
    complaints = [
        f"{name} is missing: set it as a class attribute" for name in NEEDED if not hasattr(env, name)
    ]
    if not hasattr(env, "constants"):
        complaints.append("__init__ has to call super().__init__(**parameters), which keeps the parameters")
    for name in ("state_names", "observation_names", "angle_names"):
        names = getattr(env, name, ())
        if isinstance(names, str) or not all(isinstance(n, str) for n in names):
            complaints.append(f"{name} = {names!r}: a tuple of names is needed, ('{names}',) for one")
    for name in ("action_box", "start_box", "state_box"):
        if hasattr(env, name) and not isinstance(getattr(env, name), Box):
            complaints.append(f"{name} = {getattr(env, name)!r}: a robotics_envs.base.Box is needed")
    if not complaints:
        for name in ("start_box", "state_box"):
            if len(getattr(env, name)) != len(env.state_names):
                complaints.append(
                    f"{name} has {len(getattr(env, name))} components, the names {len(env.state_names)}"
                )
    return complaints


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
            elif a.shape != b.shape or not torch.equal(a, b):
                complaints.append(
                    f"two equal calls of {name} differ: it hides a state or draws random numbers"
                )
    return complaints


def dynamics_ignore_the_clock(env: Env) -> list[str]:
    x, u, p = sample(env)
    if torch.equal(env.dynamics(0.0, x, u, p), env.dynamics(1.7, x, u, p)):
        return []
    return ["dynamics depends on t, but every step starts at t = 0: make time, or a phase, one of the states"]


def numbers_make_sense(env: Env) -> list[str]:
    complaints = []
    if not (isinstance(env.dt, (int, float)) and 0 < env.dt < float("inf")):
        complaints.append(f"dt = {env.dt!r}: a control interval is a positive number of seconds")
    for name in ("episode_steps", "substeps"):
        value = getattr(env, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            complaints.append(f"{name} = {value!r}: a whole number of at least 1 is needed")
    for name in ("action_box", "state_box"):
        box = getattr(env, name)
        flat = [i for i, (low, high) in enumerate(zip(box.low, box.high, strict=True)) if low == high]
        if name == "action_box" and flat:
            complaints.append(
                f"action_box has no width in component {flat[0]}: that action can change nothing"
            )
        elif len(flat) == len(box):
            complaints.append("state_box has no width at all: training could start in one state only")
    for name in ("state_names", "observation_names"):
        names = getattr(env, name)
        twice = {n for n in names if names.count(n) > 1}
        if twice:
            complaints.append(f"{name} holds {sorted(twice)[0]!r} more than once")
    return complaints


def names_match_shapes(env: Env) -> list[str]:
    x, _, _ = sample(env)
    got, wanted = env.observe(x).shape[-1], len(env.observation_names)
    return [] if got == wanted else [f"observe has {got} components, the names {wanted}"]


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
    for batch, dtype in ((BATCH, torch.float64), (1, torch.float32)):
        x = env.reset(batch, generator(1), dtype)
        if (tuple(x.shape), x.dtype) != ((batch, len(env.state_names)), dtype):
            complaints.append(
                f"reset({batch}, generator, {dtype}) gives {list(x.shape)} {x.dtype}, "
                f"wanted {[batch, len(env.state_names)]} {dtype}"
            )
    if complaints:
        return complaints
    first, second = env.reset(BATCH, generator(1)), env.reset(BATCH, generator(1))
    if env.start_box.low != env.start_box.high and torch.equal(first, first[:1].expand_as(first)):
        complaints.append("reset gives all rollouts of a batch the same starting state")
    low, high = env.state_box.bounds(first)
    angle = torch.tensor([name in env.angle_names for name in env.state_names])
    middle, half = (low + high) / 2, (high - low) / 2
    outside = ((env.reset(256, generator(3)) - middle).abs() > 1.5 * half + 1e-6).any(0) & ~angle
    complaints += [
        f"episodes start far outside of state_box in {env.state_names[i]}"
        for i in outside.nonzero().flatten()
    ]
    if not torch.equal(first, second):
        complaints.append("the same seed gives different starting states")
    if torch.equal(first, env.reset(BATCH, generator(2))) and env.start_box.low != env.start_box.high:
        complaints.append("reset ignores its seed: different generators give the same starting states")
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
    # Inside the box by a margin: a finite difference across the clip of the action is no derivative.
    low, high = env.action_box.bounds(u)
    inputs = {"x": x, "u": low + (high - low) * (0.05 + 0.9 * (u - low) / (high - low)), **p}
    functions: dict[str, Callable[..., Any]] = {
        "dynamics": lambda x, u, **p: env.dynamics(0.0, x, u, p),
        "step": lambda x, u, **p: env.step(x, u, p),
        "cost": lambda x, u, **p: env.cost(x, u, p),
        "observe": lambda x, u, **p: env.observe(x),
    }
    # Against every output by itself; of long states and long steps along random directions, which finds the same.
    long = x.shape[1] > 32
    complaints = []
    for name, function in functions.items():
        values = [v.clone().requires_grad_() for v in inputs.values()]
        call = lambda *values, function=function: function(**dict(zip(inputs, values, strict=True)))
        try:
            gradcheck(call, values, fast_mode=long or (name == "step" and env.substeps > 1))
        except GradcheckError as error:
            complaints += in_words(name, function, inputs) or [f"{name}: {error}"]
        except Exception as error:
            complaints.append(f"{name}: {type(error).__name__}: {error}")
    return complaints


def in_words(name: str, function: Callable[..., Any], inputs: Mapping[str, Tensor]) -> list[str]:
    """Which inputs of a function have a wrong gradient, and in what way, from one random direction for each."""
    complaints = []
    for what, value in inputs.items():
        direction = torch.randn(value.shape, generator=generator(3), dtype=value.dtype)
        leaf = value.clone().requires_grad_()
        outputs = function(**{**inputs, what: leaf})
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        ahead, behind = (
            function(**{**inputs, what: value + sign * 1e-6 * direction}) for sign in (1.0, -1.0)
        )
        pairs = zip(ahead, behind, strict=True) if isinstance(ahead, tuple) else [(ahead, behind)]
        for i, (output, (after, before)) in enumerate(zip(outputs, pairs, strict=True)):
            weights = torch.randn(output.shape, generator=generator(4 + i), dtype=output.dtype)
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
    """No silent zero: x, u and each parameter move the state or the cost somewhere in the box."""
    x, u, p = sample(env)
    inputs = {"x": x, "u": u, **p}
    for value in inputs.values():
        value.requires_grad_()
    following, cost = env.step(x, u, p)
    if not (following.requires_grad or cost.requires_grad):
        return ["step detaches everything: no gradient reaches any input"]
    gradients = torch.autograd.grad(following.sum() + cost.sum(), list(inputs.values()), allow_unused=True)
    complaints = [
        f"the gradient with respect to {name} is zero everywhere in the state box"
        for name, gradient in zip(inputs, gradients, strict=True)
        if gradient is None or not gradient.any()
    ]
    by_action = gradients[1]
    if by_action is not None and by_action.any():
        idle = [i for i, column in enumerate(by_action.unbind(-1)) if not column.any()]
        complaints += [f"action component {i} changes neither the state nor the cost" for i in idle]
    return complaints


def rollouts_do_not_mix(env: Env) -> list[str]:
    x, u, p = sample(env)
    functions: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, ...]]] = {
        "dynamics": lambda x, u: (env.dynamics(0.0, x, u, p),),
        "step": lambda x, u: env.step(x, u, p),
        "observe": lambda x, u: (env.observe(x),),
    }
    complaints = []
    # Ends are rare: looked for in many states, far beyond the box too.
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


def wild_episodes_stay_finite(env: Env) -> list[str]:
    """Intervals of actions from bound to bound, from anywhere in the state box, in both dtypes."""
    complaints = []
    for dtype in (torch.float32, torch.float64):
        rng = generator(5)
        x, p = env.state_box.sample(16, rng, dtype), env.params(torch.zeros((), dtype=dtype))
        start, total = x.requires_grad_(), torch.zeros((), dtype=dtype)
        for i in range(min(WILD, env.episode_steps)):
            low, high = env.action_box.bounds(x)
            u = torch.where(torch.rand(16, len(low), generator=rng, dtype=dtype) < 0.5, low, high)
            x, cost = env.step(x, u, p)
            total = total + cost.sum()
            if not (x.isfinite().all() and cost.isfinite().all()):
                complaints.append(f"not finite in {dtype} after {i + 1} intervals of extreme actions")
                break
        else:
            (gradient,) = torch.autograd.grad(x.sum() + total, start)
            # Chaos may take a gradient beyond the range of its numbers, but nothing may make it NaN.
            if gradient.isnan().any():
                complaints.append(f"the gradient of {i + 1} intervals is NaN in {dtype}")
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
            complaints.append(f"{name} under vmap: {type(error).__name__}: {str(error).splitlines()[0]}")
            continue
        apart = [torch.stack(parts) for parts in zip(*map(function, xs, us), strict=True)]
        if not all(
            torch.allclose(a.double(), b.double(), rtol=1e-9, atol=1e-9)
            for a, b in zip(mapped, apart, strict=True)
        ):
            complaints.append(f"{name} under vmap gives other values")
    return complaints


def pictures_can_be_drawn(env: Env) -> list[str]:
    x, u, _ = sample(env)
    complaints = []
    for state, action in zip(x.numpy(), u.numpy(), strict=True):
        try:
            drawn = flatten([*env.scenery(), *env.draw(state.copy(), action.copy())], env.view)
        except Exception as error:
            complaints.append(f"{type(error).__name__}: {error}")
            break
        if not drawn:
            complaints.append("draw gives no shape")
            break
    return complaints


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
    numbers_make_sense,
    calls_repeat_and_change_nothing,
    dynamics_ignore_the_clock,
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
    wild_episodes_stay_finite,
    methods_can_be_vmapped,
    steps_are_straight_line,
    step_follows_the_dynamics,
    pictures_can_be_drawn,
)
