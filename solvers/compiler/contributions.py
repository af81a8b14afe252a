"""Sums of many small functions of the same kind, which a kernel holds once and leaves out where they add nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from solvers.compiler.ir import Contribution, Function, Operand
from solvers.compiler.slots import array_of
from solvers.compiler.structure import is_structure_only
from solvers.compiler.trace import NativeUnsupportedError, Tracer, active_tracer

_STRUCTURE = (0.0, 1.0, -1.0)
"""Numbers that decide which operations there are: a product with them is none."""


class Call(NamedTuple):
    """``function(*args)``, whose results are added to entries of a vector.

    Attributes:
        function: a plain function, of its arguments alone.  Arguments and results are trees (of lists, tuples and
            dicts) of tensors ``[B]`` and numbers.
        args: other leaves, such as whole numbers and None, are possible here, too.
        adds: for every leaf of the results the entry that it is added to.
        only_if: one of the tensors in ``args``; where it is zero, nothing may depend on what is added.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    adds: Sequence[int]
    only_if: Tensor | float | None = None


def add_contributions(
    start: Sequence[Tensor | float], calls: Iterable[Call], only_if: Tensor | None = None
) -> list[Tensor | float]:
    """``start`` with the results of all calls added; an entry to which only zeros are added stays the number it is.

    In a kernel calls of one function that differ in tensors and in numbers other than 0, 1 and -1 only share one C++
    function, over whose calls a loop goes.  Where ``only_if`` is zero for all rollouts of a vector, nothing is called
    and nothing is added, neither to values nor to derivatives; in a vector with others everything is.  The argument
    ``only_if`` holds for all calls together: where it is zero, nothing may depend on what any of them adds.
    """
    calls = list(calls)
    total = list(start)
    tracer = active_tracer()
    if tracer is None or is_structure_only():
        for call in calls:
            for entry, term in zip(call.adds, tree_flatten(call.function(*call.args))[0], strict=True):
                total[entry] = _sum(total[entry], term)
        return total
    values: dict[Operand, int] = {}
    together = None if only_if is None else values.setdefault(tracer.array(only_if).item(), 0)
    contributions: list[Contribution] = []
    for call in calls:
        leaves, spec = tree_flatten(call.args)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        guard = None
        if call.only_if is not None:
            guard = next((k for k, leaf in enumerate(tensors) if leaf is call.only_if), None)
            if guard is None:
                raise ValueError(
                    f"{call.function.__name__}: only_if has to be one of the tensors in its arguments"
                )
        # Built-in leaves by what is printed: 0.0 is not -0.0, and 1.0 is not True.
        key = call.function, str(spec), tuple(_kind(leaf) for leaf in leaves), guard
        known = tracer.graph.contributing
        if key not in known:
            known[key] = _traced(tracer, call.function, leaves, spec, guard)
        function, constants = known[key]
        nodes = [tracer.array(x).item() for x in tensors]  # of one rollout
        reads = tuple(values.setdefault(node, len(values)) for node in nodes)
        numbers = tuple(leaf for leaf in leaves if _is_number(leaf))
        adds = []
        for entry, constant in zip(call.adds, constants, strict=True):
            if constant is None:
                adds.append(entry)
            else:
                total[entry] = _sum(total[entry], constant)
        contributions.append(Contribution(function, reads, numbers, tuple(adds)))
    touched = sorted({entry for contribution in contributions for entry in contribution.adds})
    if not touched:
        return total
    place = {entry: k for k, entry in enumerate(touched)}
    first = [
        tracer.array(q).item() if isinstance(q, Tensor) else q for q in (total[entry] for entry in touched)
    ]
    compact = [q._replace(adds=tuple(place[entry] for entry in q.adds)) for q in contributions]
    results = tracer.graph.scatter_add(first, list(values), compact, together)
    example = next(leaf for call in calls for leaf in tree_flatten(call.args)[0] if isinstance(leaf, Tensor))
    with tracer.paused():
        for entry, result in zip(touched, results, strict=True):
            total[entry] = tracer.bind(torch.zeros_like(example), array_of([result], (1,)))
    return total


def is_nowhere(only_if: Tensor) -> bool:
    """Whether it is known to be zero for all rollouts; while a kernel is traced nothing is."""
    known = active_tracer() is None and not is_structure_only() and not only_if.is_meta
    return known and not bool((only_if != 0).any())


def _sum(a: Tensor | float, b: Tensor | float) -> Tensor | float:
    if isinstance(b, float) and b == 0.0:
        return a
    return b if isinstance(a, float) and a == 0.0 else a + b


def _is_number(leaf: Any) -> bool:
    """Whether a leaf is a number that is passed."""
    return isinstance(leaf, float) and leaf not in _STRUCTURE


def _kind(leaf: Any) -> str:
    return "tensor" if isinstance(leaf, Tensor) else "number" if _is_number(leaf) else repr(leaf)


def _traced(
    tracer: Tracer, function: Callable[..., Any], leaves: list[Any], spec: TreeSpec, guard: int | None
) -> tuple[Function, list[float | None]]:
    """The function, tensors before numbers, of its results that are tensors; by leaf None, or the constant."""
    graph = tracer.graph
    given = sorted((leaf for leaf in leaves if isinstance(leaf, Tensor) or _is_number(leaf)), key=_is_number)
    parameters = graph.parameters(len(given))
    tensors: list[Tensor] = []
    numbers: list[Tensor] = []
    with tracer.paused():
        own = Tracer(graph, _nothing_else, tracer.rules)
        for leaf, node in zip(given, parameters, strict=True):
            is_number = _is_number(leaf)
            example = torch.full_like(given[0], leaf) if is_number else leaf.clone()
            if example.shape != (1,):
                raise NativeUnsupportedError(f"{function.__name__}: a tensor of shape {tuple(example.shape)}")
            (numbers if is_number else tensors).append(own.bind(example, array_of([node], (1,))))
        filled = {"tensor": iter(tensors), "number": iter(numbers)}
        kinds = map(_kind, leaves)
        args = [
            next(filled[kind]) if kind in filled else leaf for kind, leaf in zip(kinds, leaves, strict=True)
        ]
        with own:
            results = function(*tree_unflatten(args, spec))
        found = tree_flatten(results)[0]
        computed: list[Operand] = [own.array(x).item() for x in found if isinstance(x, Tensor)]
    name = function.__name__.strip("_")
    name = name if name.isascii() and name.isidentifier() else "function"  # a lambda has none
    compiled = Function(graph.name(name), parameters, computed)
    if guard is not None:
        compiled.only_if = parameters[guard]
    return compiled, [None if isinstance(x, Tensor) else x for x in found]


def _nothing_else(tensor: Tensor) -> Any:
    raise NativeUnsupportedError("a function that contributes uses a tensor that is not one of its arguments")
