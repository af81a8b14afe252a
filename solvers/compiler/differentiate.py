"""Reverse accumulation over expression graphs, through called functions and loops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from solvers.compiler.ir import (
    Contribution,
    Function,
    Graph,
    Loop,
    Node,
    Operand,
    Place,
    Pulled,
    ScatterAdd,
    Store,
    called,
    in_order,
    maker,
    width,
)
from solvers.compiler.operations import OPERATIONS


def gradient(
    graph: Graph,
    outputs: Sequence[Operand],
    cotangents: Sequence[Operand],
    inputs: Sequence[Node],
    gathered: Mapping[Node, Place] | None = None,
) -> tuple[list[Operand], list[Store]]:
    """``sum_i cotangents[i] · d outputs[i] / d inputs[j]`` for every j.

    Args:
        gathered: for inputs of the kernel that bodies of called functions read, where their gradients are added up.

    Returns:
        the gradients, and the calls that have to be made for what they add to ``gathered``, whether or not their
        results are used.
    """
    gathered = gathered or {}
    total: dict[Node, Operand] = {}
    calls: dict[Node, list[Operand]] = {}
    effects: list[Store] = []

    def add(node: Operand, term: Operand) -> None:
        if isinstance(node, Node) and not (not isinstance(term, Node) and term == 0.0):
            total[node] = graph.apply("add", total.get(node, 0.0), term)

    for output, cotangent in zip(outputs, cotangents, strict=True):
        add(output, cotangent)
    for node in reversed(in_order(outputs)):
        terms: Sequence[Operand]
        if node.op in _OF:
            # Its results came before it in this order, so all their cotangents are known.
            if (bars := calls.get(node)) is None:
                continue
            terms, made = _OF[node.op](graph, node, bars, gathered)
            effects += made
        elif node.op == "input" or (bar := total.get(node)) is None:
            continue
        elif node.op == "result":
            (source,) = node.args
            assert isinstance(source, Node)
            calls.setdefault(source, [0.0] * width(source))[node.data] = bar
            continue
        elif (derivative := OPERATIONS[node.op].derivative) is None:
            continue
        else:
            terms = derivative(graph, bar, node, *node.args)
        for arg, term in zip(node.args, terms, strict=True):
            add(arg, term)
    return [total.get(node, 0.0) for node in inputs], effects


def vjp_of(graph: Graph, function: Function, gathered: Mapping[Node, Place]) -> Function:
    """The function's vector-Jacobian product, derived when it is first asked for."""
    if function.vjp is None:
        count = len(function.parameters)
        parameters = graph.parameters(count + len(function.results))
        below = set(in_order(function.results))
        read = [node for node in gathered if node in below]
        found, effects = gradient(
            graph, function.results, parameters[count:], [*parameters[:count], *read], gathered
        )
        stores = [Store(gathered[q], term, adds=True) for q, term in zip(read, found[count:], strict=True)]
        function.vjp = Function(f"{function.name}_vjp", parameters, found[:count], [*stores, *effects])
        function.vjp.reads = function
        function.kept = _worth_keeping(function, function.vjp)
    return function.vjp


def _worth_keeping(function: Function, vjp: Function) -> list[Node]:
    """What the vector-Jacobian product needs of the function's values, but masks, which are no numbers.

    Of a function that calls others these are settled states, which take many calls to compute again.
    """
    inner = in_order(function.results)
    if any(called(node) for node in inner):
        settled = {node for node in inner if node.op == "call" and node.data.carried and not node.data.kept}
        own = {node for node in in_order(vjp.roots()) if node.op == "result" and maker(node) in settled}
    else:
        own = {node for node in inner if node.op in OPERATIONS and not OPERATIONS[node.op].boolean}
    return [node for node in in_order(vjp.roots(), stop=own) if node in own]


def _of_call(
    graph: Graph, node: Node, bars: Sequence[Operand], gathered: Mapping[Node, Place]
) -> tuple[list[Operand], list[Store]]:
    vjp, carried = vjp_of(graph, node.data, gathered), node.data.carried
    # Of a repeated function it is that of its last call, which does not depend on the state it began with.
    settled = graph.results(node)[:carried]
    after = node if node.data.kept else None
    terms = graph.call(vjp, (*settled, *node.args[carried:], *bars), after=after)
    return [*[0.0] * carried, *terms[carried:]], _effect(vjp, terms)


def _of_loop(
    graph: Graph, node: Node, bars: Sequence[Operand], gathered: Mapping[Node, Place]
) -> tuple[list[Operand], list[Store]]:
    """A loop from the last call to the first, which carries the cotangents of the state."""
    loop: Loop = node.data
    function, count, carried = loop.function, loop.count, loop.carried
    vjp = vjp_of(graph, function, gathered)
    taken, made = len(function.parameters) - carried, len(function.results)
    backward = _backward(graph, loop, vjp)
    states = [node.args[:carried]]
    flat = graph.results(node)
    states += [tuple(flat[i * made : i * made + carried]) for i in range(count - 1)]
    items = []
    for i in reversed(range(count)):
        own = node.args[carried + i * taken : carried + (i + 1) * taken]
        items.append([*states[i], *own, *bars[i * made : (i + 1) * made]])
    results = graph.loop(backward, [0.0] * carried, items)
    terms: list[Operand] = list(results[-1][:carried])
    for i in range(count):
        terms += results[count - 1 - i][carried:]
    return terms, _effect(vjp, results[0])


def _backward(graph: Graph, loop: Loop, vjp: Function) -> Function:
    """One call of the backward loop: the carried cotangents join those of the results."""
    carried, given = loop.carried, len(loop.function.parameters)
    parameters = graph.parameters(carried + given + len(loop.function.results))
    from_later, args, own = (
        parameters[:carried],
        parameters[carried : carried + given],
        parameters[carried + given :],
    )
    bars = [graph.apply("add", bar, later) for bar, later in zip(own, from_later, strict=False)]
    forward = maker(graph.call(loop.function, args)[0])
    results = graph.call(vjp, (*args, *bars, *own[carried:]), after=forward)
    return Function(f"{vjp.name}_step", parameters, results, _effect(vjp, results))


def _of_scatter_add(
    graph: Graph, node: Node, bars: Sequence[Operand], gathered: Mapping[Node, Place]
) -> tuple[list[Operand], list[Store]]:
    """Cotangents of the values are vectors to which the functions' vector-Jacobian products contribute."""
    data: ScatterAdd = node.data
    values = node.args[data.size :]
    contributions = []
    for function, reads, numbers, adds in data.contributions:
        pulled = _pulled(graph, function, len(reads))
        given = (*reads, *(len(values) + entry for entry in adds))
        contributions.append(
            Contribution(
                pulled.function,
                tuple(given[k] for k in pulled.reads),
                tuple(numbers[k] for k in pulled.numbers),
                tuple(reads[k] for k in pulled.adds),
            )
        )
    touched = sorted({entry for contribution in contributions for entry in contribution.adds})
    place = {entry: k for k, entry in enumerate(touched)}
    compact = [q._replace(adds=tuple(place[entry] for entry in q.adds)) for q in contributions]
    found = iter(graph.scatter_add([0.0] * len(touched), [*values, *bars], compact, data.only_if))
    terms: list[Operand] = [next(found) if k in place else 0.0 for k in range(len(values))]
    return [*bars, *terms], []


def _pulled(graph: Graph, function: Function, read: int) -> Pulled:
    if function.pulled is None:
        vjp = vjp_of(graph, function, {})
        function.kept, vjp.reads = [], None  # each call is by itself
        adds = [k for k in range(read) if isinstance(vjp.results[k], Node) or vjp.results[k] != 0.0]
        wanted = [vjp.results[k] for k in adds]
        below = {*in_order(wanted), function.only_if}
        count = len(function.parameters)
        # Those that are read, the cotangents, and the numbers last.
        order = [*range(read), *range(count, len(vjp.parameters)), *range(read, count)]
        order = [k for k in order if vjp.parameters[k] in below]
        renamed = dict(zip((vjp.parameters[k] for k in order), graph.parameters(len(order)), strict=True))
        compact = Function(vjp.name, list(renamed.values()), graph.rebuild(wanted, renamed.get))
        compact.only_if = None if function.only_if is None else renamed[function.only_if]
        reads = [k if k < read else k - count + read for k in order if k < read or k >= count]
        numbers = [k - read for k in order if read <= k < count]
        function.pulled = Pulled(compact, tuple(reads), tuple(numbers), tuple(adds))
    return function.pulled


_OF = {"call": _of_call, "loop": _of_loop, "scatter_add": _of_scatter_add}


def _effect(function: Function, results: Sequence[Operand]) -> list[Store]:
    """The call or loop that gave ``results``, if it adds to places of the kernel."""
    if not function.stores:
        return []
    (made,) = {result.args[0] for result in results if isinstance(result, Node)}
    return [Store(None, made)]
