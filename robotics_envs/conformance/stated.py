"""Checks of what a simulator declares: names, numbers, boxes, shapes, starts, pictures."""

from __future__ import annotations

import numbers

import torch

from lazy_registry.source_places import defined_at
from robotics_envs.base import NEEDED, Box, Env
from robotics_envs.conformance.samples import BATCH, generator, sample
from robotics_envs.drawing import flatten
from robotics_envs.user_code import describe_failure
from solvers.validation import whole_number


def what_is_missing(env: Env) -> list[str]:
    """Missing or wrong declarations, without which no other check can run."""
    complaints = [
        f"{name} is missing: set it as a class attribute ({what})"
        for name, what in NEEDED.items()
        if not hasattr(env, name)
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


def numbers_make_sense(env: Env) -> list[str]:
    complaints = []
    real = isinstance(env.dt, numbers.Real) and not isinstance(env.dt, bool)
    if not (real and 0 < env.dt < float("inf")):
        complaints.append(f"dt = {env.dt!r}: a control interval is a positive number of seconds")
    for name in ("episode_steps", "substeps"):
        value = getattr(env, name)
        try:
            whole_number(name, value)
        except ValueError as error:
            complaints.append(str(error))
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
    if got == wanted:
        return []
    names = ", ".join(env.observation_names)
    return [f"observe has {got} components, the names {wanted} ({names}){defined_at(env.observe)}"]


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
        "dynamics": (env.dynamics, env.dynamics(0.0, x, u, p), (BATCH, n), dtype),
        "step's state": (env.step, following, (BATCH, n), dtype),
        "step's cost": (env.step, cost, (BATCH,), dtype),
        "cost": (env.cost, env.cost(x, u, p), (BATCH,), dtype),
        "observe": (env.observe, env.observe(x), (BATCH, o), dtype),
        "done": (env.done, env.done(x), (BATCH,), torch.bool),
    }
    return [
        f"{what} gives {list(tensor.shape)} {tensor.dtype} on {tensor.device.type}, "
        f"wanted {list(shape)} {wanted} on {device}{defined_at(method)}"
        for what, (method, tensor, shape, wanted) in results.items()
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
    angle = torch.tensor([name in env.angle_names for name in env.state_names], device=first.device)
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


def pictures_can_be_drawn(env: Env) -> list[str]:
    x, u, _ = sample(env)
    complaints = []
    for state, action in zip(x.numpy(), u.numpy(), strict=True):
        try:
            drawn = flatten([*env.scenery(), *env.draw(state.copy(), action.copy())], env.view_at(state))
        except Exception as error:
            complaints.append(describe_failure(error) or f"{type(error).__name__}: {error}")
            break
        if not drawn:
            complaints.append("draw gives no shape")
            break
    return complaints
