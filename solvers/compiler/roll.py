"""Similar rows of a large straight-line graph as loops.

A field of many states (a discretised partial differential equation, a chain of masses) computes the same expression
for every state but those at the ends.  Nodes are *alike* if they are the same expression of entries of the same
arrays and of constants, whatever the indices and the constants.  Alike nodes are equally deep in the graph, so none
depends on another: each group of them becomes a loop, whose arguments come from groups that are less deep.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from solvers.compiler.ir import Function, Graph, Node, Operand, Place, Store, called, in_order, width
from solvers.compiler.operations import OPERATIONS

ROLLED_FROM = 200
"""Graphs of fewer nodes stay as they are."""
ROWS = 24
"""At least so many alike nodes become a loop."""
TERMS = 24
"""At least so many terms of one sum become a loop."""
_WORTH = 0.75
"""Loops are used where they leave less than this of the lines; small graphs then stay as they are."""
_DEEPEST = 64
"""The body of a loop is about as deep at most, so that it can be walked recursively."""


def rolled(
    graph: Graph, stores: Sequence[Store], known: Mapping[Node, Place] | None = None
) -> tuple[list[Store], Mapping[Node, Place]]:
    """Stores of the same values, computed with loops where the graph is large and has similar rows.

    Args:
        known: nodes that are read from places instead of being computed.

    Returns:
        the stores, and the nodes that are still to be read from places.
    """
    known = known or {}
    values = [store.value for store in stores]
    if len(in_order(values, stop=known)) < ROLLED_FROM:
        return list(stores), known

    def read(node: Node) -> Node | None:
        return graph.input(known[node].space, known[node].index, known[node].slot) if node in known else None

    if known:
        values = graph.rebuild(values, read)
    rolling = _Rolling(graph, values)
    if rolling.share() < 1 - _WORTH:
        return list(stores), known
    made = rolling.result()
    if lines(in_order(made)) > _WORTH * lines(in_order(values)):
        return list(stores), known
    return [store._replace(value=value) for store, value in zip(stores, made, strict=True)], {}


def lines(nodes: Iterable[Node]) -> int:
    """About how many lines of C++ nodes become."""
    return sum(map(_lines, nodes))


def _lines(node: Node) -> int:
    if node.op == "loop":
        return 4 + len(node.data.function.parameters) + len(in_order(node.data.function.roots()))
    if node.op == "scatter_add":
        return width(node) + len(node.args) + 12 * len(called(node))
    return 0 if node.op in ("input", "result") else 1


class _Rolling:
    def __init__(self, graph: Graph, roots: Sequence[Operand]) -> None:
        self.graph, self.roots = graph, roots
        self.order = in_order(roots)
        self.kind: dict[Node, int] = {}
        """What a node is alike in."""
        self.args: dict[Node, tuple[Operand, ...]] = {}
        """Arguments, those of sums and products in the order of their kinds."""
        self.depth: dict[Node, int] = {}
        self.members: dict[int, list[Node]] = {}
        self.users: dict[Node, list[Node]] = {}
        self._sort()
        stored = {root for root in roots if isinstance(root, Node)}
        self.inner = {kind for kind in self.members if self._goes_into_one(kind, stored)}
        self.chains = self._chains(stored)
        self.made: dict[Node, Operand] = {}

    def _sort(self) -> None:
        uses = Counter(_key(a) for node in self.order for a in node.args)
        # What many rows use is the same in rows that are alike: a coefficient, the length of a step.
        self.shared = {value: k for k, (value, count) in enumerate(uses.items()) if count >= ROWS}
        kinds: dict[Any, int] = {}
        for node in self.order:
            args = node.args
            if node.op == "input" and isinstance(node.place.index, int):
                key: Any = ("input", node.place.space, node.place.slot)
            elif node.op == "result":
                key = ("result", node.args[0])
            elif node.op in ("input", "call", "loop", "scatter_add"):
                key = node
            else:
                if node.op in ("add", "mul"):
                    args = tuple(sorted(args, key=self._kind_of))
                key = (node.op, *map(self._kind_of, args))
            self.args[node] = args
            self.kind[node] = kind = kinds.setdefault(key, len(kinds))
            below = [a for a in args if isinstance(a, Node)]
            self.depth[node] = 1 + max((self.depth[a] for a in below), default=0)
            for arg in below:
                self.users.setdefault(arg, []).append(node)
            if node.op in OPERATIONS:
                self.members.setdefault(kind, []).append(node)

    def _kind_of(self, value: Operand) -> int:
        """Constants are alike, whatever their values, but truth values and what many rows share are not."""
        if (shared := self.shared.get(_key(value))) is not None:
            return -4 - shared
        if isinstance(value, Node):
            return self.kind[value]
        return -2 - value if isinstance(value, bool) else -1

    def _is_rolled(self, kind: int) -> bool:
        return len(self.members.get(kind, ())) >= ROWS

    def _is_mask(self, kind: int) -> bool:
        """Masks are not kept in arrays of numbers, so they are computed where they are used."""
        return OPERATIONS[self.members[kind][0].op].boolean

    def _goes_into_one(self, kind: int, stored: set[Node]) -> bool:
        """Whether every node of a kind is used once, each by another one of one kind: in the same call of its loop."""
        members = self.members[kind]
        if not self._is_rolled(kind) or self._is_mask(kind) or any(node in stored for node in members):
            return False
        if self.depth[members[0]] % _DEEPEST == 0:
            return False
        users = [set(self.users.get(node, ())) for node in members]
        if any(len(of) != 1 for of in users):
            return False
        by = {next(iter(of)) for of in users}
        kinds = {self.kind[user] for user in by}
        if len(by) != len(members) or len(kinds) != 1:
            return False
        (user,) = kinds
        return len(self.members.get(user, ())) == len(members) and not self._is_mask(user)

    def _chains(self, stored: set[Node]) -> dict[Node, list[Operand]]:
        """Long sums, term after term: by the last node the first value and all terms; inner nodes without terms."""
        chains: dict[Node, list[Operand]] = {}
        for node in self.order:
            if node.op != "add" or self._is_rolled(self.kind[node]):
                continue
            # The longer part of the sum so far is deeper than the term that comes to it.
            parts = sorted(self.args[node], key=lambda a: self.depth[a] if isinstance(a, Node) else 0)
            term, before = parts
            terms = chains.get(before) if isinstance(before, Node) else None
            if terms and isinstance(before, Node) and len(self.users[before]) == 1 and before not in stored:
                chains[node] = [*terms, term]
                chains[before] = []
            else:
                chains[node] = [before, term]
        return {node: terms for node, terms in chains.items() if not terms or len(terms) > TERMS}

    def result(self) -> list[Operand]:
        inside = self._inside_of_chains()
        for node in sorted(self.order, key=lambda q: self.depth[q]):
            if node in self.made or node in inside:
                continue
            kind = self.kind[node]
            if node in self.chains:
                self._sum(node)
            elif self._is_rolled(kind) and not self._is_mask(kind):
                if kind not in self.inner:
                    self._loop(self.members[kind])
            else:
                args = tuple(self._new(a) for a in node.args)
                self.made[node] = node if args == node.args else self.graph._intern(node.op, args, node.data)
        return [self._new(root) for root in self.roots]

    def share(self) -> float:
        """How much of the graph could be in loops."""
        rows = sum(len(members) for members in self.members.values() if len(members) >= ROWS)
        return (rows + sum(map(len, self.chains.values()))) / len(self.order)

    def _inside_of_chains(self) -> set[Node]:
        """The nodes of long sums but the last ones."""
        inside: set[Node] = set()
        for last, terms in self.chains.items():
            node = last
            for _ in range(len(terms) - 2):
                node = next(a for a in node.args if isinstance(a, Node) and self.chains.get(a) == [])
                inside.add(node)
        self.chains = {node: terms for node, terms in self.chains.items() if terms}
        return inside

    def _new(self, value: Operand) -> Operand:
        return self.made[value] if isinstance(value, Node) else value

    def _sum(self, last: Node) -> None:
        first, *terms = [self._new(value) for value in self.chains[last]]
        total, term = self.graph.parameters(2)
        function = Function("sum", [total, term], [self.graph._intern("add", (total, term))])
        self.made[last] = self.graph.loop(function, [first], [[value] for value in terms])[-1][0]

    def _loop(self, members: list[Node]) -> None:
        """The nodes of a kind, with what only they use, as a loop over a function of the rest."""
        columns: dict[tuple[object, ...], Operand] = {}
        parameters: list[Node] = []
        items: list[list[Operand]] = [[] for _ in members]

        def body(column: list[Operand]) -> Operand:
            first = column[0]
            constant = not isinstance(first, Node)
            if constant and all(repr(value) == repr(first) for value in column):
                return first
            key = tuple(map(repr if constant else id, column))
            if key not in columns:
                nodes = [value for value in column if isinstance(value, Node)]
                kind = self.kind[nodes[0]] if nodes else -1
                if kind in self.members and (kind in self.inner or self._is_mask(kind)):
                    args = [body(list(arg)) for arg in zip(*(self.args[q] for q in nodes), strict=True)]
                    columns[key] = self.graph._intern(nodes[0].op, tuple(args))
                else:
                    (parameter,) = self.graph.parameters(len(parameters) + 1)[-1:]
                    parameters.append(parameter)
                    columns[key] = parameter
                    for item, value in zip(items, column, strict=True):
                        item.append(self._new(value))
            return columns[key]

        args = [body(list(arg)) for arg in zip(*(self.args[q] for q in members), strict=True)]
        value = self.graph._intern(members[0].op, tuple(args))
        function = Function("row", parameters, [value])
        for node, (result,) in zip(members, self.graph.loop(function, [], items), strict=True):
            self.made[node] = result


def _key(value: Operand) -> Operand | tuple[str, str]:
    """A key for a value: a node itself, and constants by what is printed, since 0.0 is not -0.0."""
    return value if isinstance(value, Node) else (type(value).__name__, repr(value))
