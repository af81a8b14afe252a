"""A step that is repeated until it settles, differentiated by the implicit function theorem."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from solvers.compiler.ir import Function
from solvers.compiler.slots import array_of
from solvers.compiler.structure import is_structure_only
from solvers.compiler.trace import NativeUnsupportedError, Tracer, active_tracer

Step = Callable[[Tensor, Tensor], "tuple[Tensor, Tensor]"]


def fixed_point(
    step: Step,
    start: Float[Tensor, "batch n"],
    given: Float[Tensor, "batch k"],
    most: int,
) -> Float[Tensor, "batch n"]:
    """``x = step(x, given)``, from ``start``, by at most ``most`` steps.

    ``step(x [B, n], given [B, k])`` gives the next state ``[B, n]`` and numbers ``[B]`` that are zero where it has
    settled.  It must not use tensors of its own that need a gradient, and at a settled state its derivative with
    respect to ``x`` must vanish, as that of a full Newton step does.  Then the gradient is that of one step at the
    settled state with respect to ``given``, and ``start`` gets none.

    In a kernel the step is one function that is called in a loop, which ends when all rollouts of a vector have
    settled.  A rollout that has not settled after ``most`` steps keeps the last state.
    """
    tracer = active_tracer()
    if tracer is not None:
        return _traced(tracer, step, start, given, most)
    if start.is_meta or is_structure_only():
        return step(start.detach(), given)[0]
    with torch.no_grad():
        x = start.detach()
        for _ in range(most):
            x, moving = step(x, given.detach())
            if not bool((moving != 0).any()):
                break
    return step(x, given)[0] if torch.is_grad_enabled() and given.requires_grad else x


def _traced(tracer: Tracer, step: Step, start: Tensor, given: Tensor, most: int) -> Tensor:
    graph = tracer.graph
    args = [*tracer.array(start).reshape(-1), *tracer.array(given).reshape(-1)]
    if start.shape[0] != 1 or given.shape[0] != 1:
        raise NativeUnsupportedError(f"a fixed point of {start.shape[0]} rollouts at once")
    carried = start.shape[1]
    parameters = graph.parameters(len(args))
    with tracer.paused():
        own = Tracer(graph, tracer.captured, tracer.rules)
        x = own.bind(start.clone(), array_of(parameters[:carried], start.shape))
        constants = own.bind(given.clone(), array_of(parameters[carried:], given.shape))
        with own:
            following, moving = step(x, constants)
        results = [*own.array(following).reshape(-1), *own.array(moving).reshape(-1)]
        result = torch.zeros_like(start)
    function = Function(graph.name("settle"), parameters, results, carried=carried, most=most)
    return tracer.bind(result, array_of(graph.call(function, args)[:carried], start.shape))
