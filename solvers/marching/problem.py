"""A checked initial-value problem: all that is fixed before the first step."""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from solvers.marching.events import Event
from solvers.marching.grid import Grid
from solvers.marching.step_size import Controller
from solvers.methods.base import Solver, VectorField
from solvers.modes import NormalTensors


class Counted:
    """A vector field that counts its calls.

    It also evaluates, in whatever mode of torch the caller is, a field that differentiates an energy of its own, and
    names the place in the user's file where a field fails.
    """

    def __init__(self, f: VectorField) -> None:
        self.f = f
        self.calls = 0
        self.needs_graph = False
        self.needs_normal_tensors = False

    def __call__(self, t: Any, x: Tensor, u: Any, p: Any) -> Tensor:
        self.calls += 1
        try:
            adapted = self.needs_graph or self.needs_normal_tensors
            slope = self._adapted(t, x, u, p) if adapted else self.f(t, x, u, p)
        except Exception as error:
            if not self._adapt(error):
                _add_location(error, p)
                raise
            self.calls -= 1
            return self(t, x, u, p)
        if getattr(slope, "requires_grad", False) and not torch.is_grad_enabled():
            return slope.detach()  # f enabled gradients for itself
        return slope

    def _adapt(self, error: Exception) -> bool:
        """Whether the field may succeed in another mode, which is used from now on."""
        message = str(error) if isinstance(error, RuntimeError) else ""
        if not self.needs_graph and "does not require grad" in message:
            self.needs_graph = True
            return True
        if not self.needs_normal_tensors and "nference tensor" in message:
            self.needs_normal_tensors = True
            return True
        return False

    def _adapted(self, t: Any, x: Tensor, u: Any, p: Any) -> Tensor:
        with contextlib.ExitStack() as stack:
            if self.needs_normal_tensors:
                stack.enter_context(NormalTensors())
            if self.needs_graph:
                stack.enter_context(torch.enable_grad())
                x = x if x.requires_grad else x.detach().requires_grad_(True)
            return self.f(t, x, u, p)


@dataclass(frozen=True)
class Leaves:
    """The tensors a solve is differentiated by, besides the initial state and the times.

    They are the tensors in u and p that require gradients, and the parameters of modules in f, u and p.
    """

    u_leaves: list[Any]
    u_spec: Any
    p_leaves: list[Any]
    p_spec: Any
    parameters: tuple[nn.Parameter, ...]

    @staticmethod
    def of(f: Callable[..., Any], u: Any, p: Any) -> Leaves:
        """Collect them."""
        u_leaves, u_spec = tree_flatten(u)
        p_leaves, p_spec = tree_flatten(p)
        owners = [f, getattr(f, "__self__", None), *u_leaves, *p_leaves]
        parameters: dict[int, nn.Parameter] = {}
        for owner in owners:
            if isinstance(owner, nn.Module):
                parameters |= {id(q): q for q in owner.parameters() if q.requires_grad}
        return Leaves(u_leaves, u_spec, p_leaves, p_spec, tuple(parameters.values()))

    def tensors(self) -> list[Tensor]:
        """All of them, in order: of u, of p, of the modules."""
        return [*self._differentiable(self.u_leaves), *self._differentiable(self.p_leaves), *self.parameters]

    @staticmethod
    def _differentiable(leaves: list[Any]) -> list[Tensor]:
        return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]

    def detached(self, index: int | None = None) -> tuple[Any, Any, list[Tensor]]:
        """u (its ``index``-th held control, if given) and p on leaves of their own, and those leaves.

        The leaves correspond to :meth:`tensors`, module parameters included.
        """
        found: list[Tensor] = []

        def own(leaf: Any, held: bool) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            value = leaf.detach()[index] if held and index is not None else leaf.detach()
            if leaf.requires_grad:
                value = value.requires_grad_(True)
                found.append(value)
            return value

        u = tree_unflatten([own(leaf, True) for leaf in self.u_leaves], self.u_spec)
        p = tree_unflatten([own(leaf, False) for leaf in self.p_leaves], self.p_spec)
        return u, p, [*found, *self.parameters]

    def zeros(self) -> list[Tensor]:
        """A gradient of zero for each of :meth:`tensors`."""
        return [torch.zeros_like(leaf) for leaf in self.tensors()]

    def add(self, totals: list[Tensor], gradients: Sequence[Tensor | None], index: int | None) -> None:
        """Add the gradients of :meth:`detached` leaves to ``totals``, in place."""
        controls = len(self._differentiable(self.u_leaves))
        for k, (total, gradient) in enumerate(zip(totals, gradients, strict=True)):
            if gradient is None:
                continue
            if index is not None and k < controls:
                total[index] += gradient
            else:
                total += gradient


@dataclass(frozen=True)
class Problem:
    """A checked initial-value problem: what is solved, on which grid and how.

    Attributes:
        f: the vector field; it counts its calls.  Of a solve backwards in time it is ``-f(-t, x, u, p)``.
        method: the method, and ``name``, what messages call it.
        x0: the initial states ``[*batch, n]``.
        u: the controls, with a leading index of controls where ``holds_controls``; :meth:`held` gives one of them.
        p: the parameters.
        ts: the times of the outputs, increasing, ``[T]`` or ``[T, *batch]``; ``requested`` has them as they were given.
        sign: -1 for a solve backwards in time, where all times are negated, else 1.
        control_times: the times from which controls are held, increasing with ``ts``; None without them.
        grid: the legs of the solve, whose ends no step crosses.
        leaves: the tensors in f, u and p to differentiate by.
        controller: what chooses the step sizes; None for steps of fixed length.
        tolerances: ``rtol`` and ``atol`` of a method of torchdiffeq; of our methods the controller has them.
        dt: the longest step of steps of fixed length, else None.
        events, event_samples, max_events: the events, and how they are looked for.
        on_failure: "raise" or "mark".
        max_steps: limit of the attempted steps of a rollout.
    """

    f: Counted
    method: Solver
    name: str
    x0: Tensor
    u: Any
    p: Any
    ts: Tensor
    requested: Tensor
    sign: float
    control_times: Tensor | None
    grid: Grid
    leaves: Leaves
    controller: Controller | None
    tolerances: dict[str, float]
    dt: float | None
    events: tuple[Event, ...]
    event_samples: int
    max_events: int
    on_failure: str
    max_steps: int

    @property
    def holds_controls(self) -> bool:
        """Whether u is a sequence of controls, each held for some time."""
        return self.control_times is not None

    @property
    def per_rollout(self) -> bool:
        """Whether every rollout has a time of its own."""
        return self.controller is not None or bool(self.events) or self.on_failure == "mark"

    def inputs(self) -> list[Tensor]:
        """What the solution is differentiated by: initial state, start, ends of legs, output times, ``leaves``."""
        return [self.x0, self.grid.start, self.grid.targets, self.ts, *self.leaves.tensors()]

    def held(self, leg: int) -> Any:
        """The control that acts on a leg."""
        if not self.holds_controls:
            return self.u
        index = self.grid.controls[leg]
        return tree_map(lambda leaf: leaf[index], self.u)

    def equal_steps(self) -> Iterator[tuple[int, Tensor]]:
        """Every leg of the grid as one step of all rollouts together: its number and the state at its end."""
        t, x = self.grid.start, self.x0
        for leg, target in enumerate(self.grid.targets):
            x = self.method.step(self.f, t, x, self.held(leg), self.p, target - t)
            t = target
            yield leg, x


def _add_location(error: Exception, p: Any) -> None:
    """Note on an error out of f where in the user's file it was raised, and the names in p if one is missing there."""
    note = getattr(error, "add_note", None)  # from Python 3.11 on
    if note is None or getattr(error, "__notes__", None):
        return
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_library(frame.filename)]
    if frames:
        note(f"raised by the vector field f, in {frames[-1].filename}:{frames[-1].lineno}")
    if isinstance(error, KeyError) and isinstance(p, Mapping):
        note(f"p has the names: {', '.join(map(str, p)) or 'none'}")


def _is_library(filename: str) -> bool:
    return filename.startswith((_TORCH, _SOLVERS))


_TORCH = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep
_SOLVERS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
