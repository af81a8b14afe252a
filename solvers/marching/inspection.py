"""Checks of the vector field and the events before the first step."""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from solvers.marching.problem import Problem
from solvers.modes import AutocastState


def check_field(
    problem: Problem, adjoint: str, *, sees_captured: bool, per_rollout: bool, recomputed: bool
) -> bool:
    """Evaluate f at the start, with a time for every rollout or for all, to say early what is wrong with it.

    Random generators and buffers are put back afterwards.

    Args:
        adjoint: its name, for messages.
        sees_captured: whether the adjoint differentiates by tensors that are not among ``problem.leaves``.
        recomputed: whether the solve may evaluate f more than once at the same point: for another attempt of a step,
            or to repeat the step for its gradient.  Then f (and the events) must be functions of their arguments.

    Returns:
        Whether f or an event depends on a tensor that requires a gradient and is not among ``problem.leaves``; False
        if the solve recomputes nothing.

    Raises:
        ValueError, TypeError: f cannot be solved; the message says why.
    """
    x, grid, method = problem.x0.detach(), problem.grid, problem.method
    t = grid.start.detach().expand(x.shape[:-1]) if per_rollout else grid.start.detach()
    watch = _Watch(problem)
    probe = x.clone()
    with torch.no_grad():
        slope = problem.f(t, probe, problem.held(0), problem.p)
    if probe._version:
        raise ValueError(
            "f changes x in place; let it return a new tensor (x.mul(...) instead of x.mul_(...))"
        )
    _check_slope(slope, t, x, per_rollout)
    captured = False
    if recomputed:
        with torch.set_grad_enabled(torch.is_grad_enabled() or not sees_captured):
            values, captured = _look_again(problem, t, x)
    watch.settle(lambda: _functions_at(problem, t, x.clone(), problem.held(0), problem.p))
    if recomputed:
        cause = watch.cause()
        if not cause and _differs(slope, values[0].detach()):
            cause = "f gives another value when it is evaluated again with the same arguments"
        if cause:
            raise ValueError(
                f"{cause}, so a step that is computed again is not the same step, and solver={problem.name!r} with "
                f"adjoint={adjoint!r} computes steps again: the gradient would be that of another function. Pass a "
                "frozen noise tensor through u or p, or put the module into evaluation mode with .eval(), or compute "
                "every step once: an explicit method with dt and adjoint='backprop', without events and without "
                "on_failure='mark' (solver='rk4', dt=...)"
            )
    if method.velocity_form:
        half = x.shape[-1] // 2
        if x.shape[-1] % 2 or not torch.equal(slope[..., :half], x[..., half:]):
            raise ValueError(
                f"solver {problem.name!r} is for x = [q, v] with dq/dt = v; this f has another dq/dt or an odd n"
            )
    batch = x.shape[:-1]
    if per_rollout and batch and batch[-1] == x.shape[-1] > 1:
        _check_times_broadcast(problem, t, x)
    if captured and not sees_captured:
        raise ValueError(
            "f or an event uses a tensor that requires a gradient and is neither in u nor in p: "
            f"adjoint={adjoint!r} would lose its gradient. Pass it through u or p (modules may be passed whole), "
            "or take a method's 'backprop'"
        )
    return captured


def _check_slope(slope: Any, t: Tensor, x: Tensor, per_rollout: bool) -> None:
    """Whether f returned a derivative of x."""
    if not isinstance(slope, Tensor):
        raise TypeError(f"f must return a tensor {tuple(x.shape)}, got {type(slope).__name__}")
    if slope.shape != x.shape:
        hint = ""
        if per_rollout and x.ndim > 1:
            hint = f"; t is {tuple(t.shape)}, a time for every rollout: use it with x[..., i], or t.unsqueeze(-1)"
        raise ValueError(
            f"f must return dx/dt of the state's shape {tuple(x.shape)}, got {tuple(slope.shape)}{hint}"
        )
    if slope.dtype != x.dtype or slope.device != x.device:
        hint = "convert u and p to the state's dtype and device"
        if AutocastState.now(x.device).enabled:
            hint = "under torch.autocast, return slope.to(x.dtype)"
        raise ValueError(
            f"f must return {x.dtype} on {x.device} like x0, got {slope.dtype} on {slope.device}; {hint}"
        )


def _check_times_broadcast(problem: Problem, t: Tensor, x: Tensor) -> None:
    """As many rollouts as components: ``t * x`` has the right shape and the wrong meaning. Find that out."""
    first = problem.grid.targets[0].detach().expand(t.shape)
    spread = t + (first - t) * torch.linspace(0.1, 0.2, t.shape[-1], dtype=t.dtype, device=t.device)
    u = problem.held(0)
    with torch.no_grad():
        together = problem.f(spread, x, u, problem.p)
        for b in (0, t.shape[-1] - 1):
            alone = problem.f(spread[..., b : b + 1].expand(t.shape), x, u, problem.p)
            if not torch.allclose(
                together[..., b, :], alone[..., b, :], rtol=1e-4, atol=1e-6, equal_nan=True
            ):
                raise ValueError(
                    f"f mixes rollouts, or combines t {tuple(t.shape)} (a time for every rollout) with components: "
                    "use t with x[..., i], or t.unsqueeze(-1) with x"
                )


def _look_again(problem: Problem, t: Tensor, x: Tensor) -> tuple[list[Tensor], bool]:
    """The values of f and the events, and whether they depend on a tensor outside of the leaves.

    A leaf that f makes itself (to differentiate an energy) is another one at every evaluation, one that existed before
    the call is the same.
    """
    index = problem.grid.controls[0] if problem.holds_controls else None
    u, p, own = problem.leaves.detached(index)
    known = {id(leaf) for leaf in own}
    values = _functions_at(problem, t, x.clone(), u, p)
    unknown = _graph_leaves(values, known)
    if unknown:
        again = _functions_at(problem, t, x.clone(), u, p)
        unknown = {key: leaf for key, leaf in _graph_leaves(again, known).items() if key in unknown}
    return values, bool(unknown)


def _functions_at(problem: Problem, t: Tensor, x: Tensor, u: Any, p: Any) -> list[Tensor]:
    """The vector field, and the events' functions and jumps, at one point."""
    values = [problem.f(t, x, u, p)]
    for event in problem.events:
        values += [event.value(t, x, u, p), event.after(t, x, u, p)]
    return values


def _graph_leaves(values: list[Tensor], known: set[int]) -> dict[int, Tensor]:
    """The leaves of the values' graphs by identity, without the known ones."""
    found = {
        id(value): value
        for value in values
        if value.requires_grad and value.is_leaf and id(value) not in known
    }
    stack, seen = [value.grad_fn for value in values], set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None and id(variable) not in known:
            found[id(variable)] = variable
        stack.extend(following for following, _ in node.next_functions)
    return found


def _differs(one: Tensor, other: Tensor) -> bool:
    """Whether two evaluations differ by more than the rounding of another kernel (with and without a graph)."""
    tolerance = 1e4 * torch.finfo(one.dtype).eps
    scale = float(torch.nan_to_num(one, posinf=0.0, neginf=0.0).abs().max())
    return not torch.allclose(one, other, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


class _Watch:
    """The random generators and the modules' buffers that an evaluation of f or an event may change."""

    def __init__(self, problem: Problem) -> None:
        self.generators: list[tuple[str, Callable[[], Tensor], Callable[[Tensor], Any]]] = [
            ("torch's random generator", torch.get_rng_state, torch.set_rng_state)
        ]
        self.buffers: list[tuple[str, nn.Module, str, Tensor, Tensor]] = []
        device = problem.x0.device
        if device.type != "cpu":
            of = torch.get_device_module(device)
            name = f"torch's random generator on {device}"
            self.generators.append(
                (name, lambda: of.get_rng_state(device), lambda q: of.set_rng_state(q, device))
            )
        functions = [problem.f.f, *(g for event in problem.events for g in (event.function, event.jump))]
        for held in _held_by([*functions, problem.u, problem.p]):
            if isinstance(held, torch.Generator):
                self.generators.append(("a torch.Generator", held.get_state, held.set_state))
                continue
            for prefix, module in held.named_modules():
                for key, buffer in module._buffers.items():
                    if buffer is not None:
                        name = f"{prefix}.{key}" if prefix else key
                        self.buffers.append((name, module, key, buffer, buffer.detach().clone()))
        self.states = [get() for _, get, _ in self.generators]
        self.drawn: list[str] = []
        self.updated: list[str] = []

    def settle(self, evaluate: Callable[[], object]) -> None:
        """Find out what the evaluations since the start have changed, and put it back.

        A generator that has moved may have been used by another thread: it was used by ``evaluate`` if that moves it.
        """
        now = [get() for _, get, _ in self.generators]
        moved = [not torch.equal(old, new) for old, new in zip(self.states, now, strict=True)]
        if any(moved):
            with torch.no_grad():
                evaluate()
            for (name, get, put), old, new, is_moved in zip(
                self.generators, self.states, now, moved, strict=True
            ):
                if is_moved and not torch.equal(new, get()):
                    self.drawn.append(name)
                    put(old)
        for name, module, key, buffer, old in self.buffers:
            # By value: batch norm's own kernel does not count its updates as versions.
            if module._buffers.get(key) is not buffer or not _same(buffer, old):
                self.updated.append(name)
                module._buffers[key] = buffer
                with torch.no_grad():
                    buffer.copy_(old)

    def cause(self) -> str:
        """What f or an event changes, in words; empty if nothing."""
        if self.drawn:
            return f"f or an event draws from {self.drawn[0]}"
        return f"f or an event updates the buffer {self.updated[0]!r}" if self.updated else ""


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other) or torch.equal(torch.nan_to_num(one), torch.nan_to_num(other))


_DEEPEST = 6  # of references from f to a module or generator
_LIBRARIES = ("builtins", "torch", "numpy", "math")


def _held_by(values: list[Any]) -> list[nn.Module | torch.Generator]:
    """The modules and generators that functions reach by arguments, closures, attributes and globals."""
    found: list[nn.Module | torch.Generator] = []
    seen: set[int] = set()
    stack = [(value, 0) for value in values]
    while stack:
        value, depth = stack.pop()
        if value is None or isinstance(value, _PLAIN) or id(value) in seen or depth > _DEEPEST:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Generator):
            found.append(value)
            continue
        if isinstance(value, nn.Module):
            found.append(value)
        stack += [(part, depth + 1) for part in _parts(value)]
    return found


_PLAIN = (int, float, complex, str, bytes, Tensor, type, types.ModuleType)


def _parts(value: Any) -> Iterator[Any]:
    """What a value refers to, as far as modules and generators may be behind it."""
    if isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from value
    elif isinstance(value, functools.partial):
        yield from (value.func, value.args, value.keywords)
    elif isinstance(value, types.MethodType):
        yield from (value.__self__, value.__func__)
    elif isinstance(value, types.FunctionType):
        if (value.__module__ or "").partition(".")[0] in _LIBRARIES:
            return
        for cell in value.__closure__ or ():
            with contextlib.suppress(ValueError):  # a variable that is not set yet
                yield cell.cell_contents
        yield from (value.__defaults__, value.__kwdefaults__)
        for name in value.__code__.co_names:
            yield value.__globals__.get(name)
    elif isinstance(value, nn.Module):
        for module in value.modules():
            yield from (part for name, part in vars(module).items() if name[0] != "_" and name != "training")
    elif type(value).__module__.partition(".")[0] not in _LIBRARIES:
        yield from getattr(value, "__dict__", {}).values()
