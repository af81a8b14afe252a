"""An initial-value problem with everything that is fixed before its first step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from solvers.base import Solver, VectorField
from solvers.events import Event
from solvers.grid import Grid
from solvers.step_size import StepSizeController


class Counted:
    """A vector field that counts its calls."""

    def __init__(self, f: VectorField) -> None:
        self.f = f
        self.calls = 0

    def __call__(self, t: Any, x: Tensor, u: Any, p: Any) -> Tensor:
        self.calls += 1
        return self.f(t, x, u, p)


@dataclass(frozen=True)
class Problem:
    """What is solved, on which grid and how.

    ``u`` holds one control a leading index where ``holds_controls``, otherwise it is passed on as it is.
    ``controller`` is None for steps of fixed length.
    """

    f: Counted
    method: Solver
    x0: Tensor
    u: Any
    p: Any
    ts: Tensor
    grid: Grid
    holds_controls: bool
    controller: StepSizeController | None
    events: tuple[Event, ...]
    event_samples: int
    max_events: int
    max_steps: int

    def held(self, leg: int, u: Any = None) -> Any:
        """The control that acts on a leg."""
        u = self.u if u is None else u
        if not self.holds_controls:
            return u
        index = self.grid.controls[leg]
        return tree_map(lambda leaf: leaf[index], u)

    def equal_steps(self) -> Iterator[tuple[int, Tensor]]:
        """Every leg of the grid as one step of all rollouts together: its number and the state at its end."""
        t, x = self.grid.start, self.x0
        for leg, target in enumerate(self.grid.targets):
            x = self.method.step(self.f, t, x, self.held(leg), self.p, target - t)
            t = target
            yield leg, x


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
        """All of them in order: of u, of p, of the modules."""
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

    def add(self, totals: list[Tensor], gradients: list[Tensor | None], index: int | None) -> None:
        """Add the gradients of :meth:`detached` leaves to ``totals``, in place."""
        controls = len(self._differentiable(self.u_leaves))
        for k, (total, gradient) in enumerate(zip(totals, gradients, strict=True)):
            if gradient is None:
                continue
            if index is not None and k < controls:
                total[index] += gradient
            else:
                total += gradient


def states_at_outputs(problem: Problem) -> Tensor:
    """The outputs of a march of equal steps, ``[T, *batch, n]``."""
    outputs = [x for leg, x in problem.equal_steps() if problem.grid.at_target[leg] >= 0]
    return torch.stack((problem.x0, *outputs))


def functions_at(problem: Problem, t: Tensor, x: Tensor, u: Any, p: Any) -> list[Tensor]:
    """The vector field, and the events' functions and jumps, at one point."""
    values = [problem.f(t, x, u, p)]
    for event in problem.events:
        values += [event.value(t, x, u, p), event.after(t, x, u, p)]
    return values


def captured_tensor(problem: Problem, t: Tensor, x: Tensor, leaves: Leaves, index: int | None) -> bool:
    """Whether f or an event depends on a tensor that requires gradients and is not among the leaves.

    Its gradient would silently be zero wherever steps are recomputed from u and p.
    """
    with torch.enable_grad():
        u, p, own = leaves.detached(index)
        values = functions_at(problem, t.detach(), x.detach(), u, p)
    known = {id(leaf) for leaf in own}
    stack, seen = [value.grad_fn for value in values], set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None and id(variable) not in known:
            return True
        stack.extend(next_node for next_node, _ in node.next_functions)
    return any(value.requires_grad and value.is_leaf and id(value) not in known for value in values)
