"""Expressions as C++: here, and only here, places, nodes and functions get names."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import Any

from solvers.compiler.ir import (
    Affine,
    Function,
    Graph,
    Loop,
    Node,
    Operand,
    Place,
    ScatterAdd,
    Store,
    called,
    in_order,
    maker,
    width,
)
from solvers.compiler.operations import OPERATIONS
from solvers.compiler.roll import lines, rolled

_PARAMETERS = {"parameter": "a[{index}]", "returned": "r[{index}]", "kept": "k[{index}]"}


PART = 3_000
"""Bodies of more than three times as many lines are split into functions of about so many: the registers of one very
long function take g++ most of its time."""


@dataclass(frozen=True)
class Dialect:
    """What differs between the C++ of processors and that of CUDA.

    Attributes:
        called: begins the definition of a function that is called, and not to be copied to where it is.
        unrolled: begins a loop of which four rounds become one.
        spelled: operations that are written in another way than :data:`OPERATIONS` says, by name.
    """

    called: str = "static"
    part: str = "static __attribute__((noinline))"
    unrolled: str = '_Pragma("GCC unroll 4")'
    spelled: Mapping[str, Callable[..., str]] = field(default_factory=dict)

    def expression(self, op: str, args: Iterable[str]) -> str:
        """The C++ of an operation."""
        return (self.spelled.get(op) or OPERATIONS[op].cpp)(*args)


CPP = Dialect()

CUDA = Dialect(
    called="static __noinline__",
    part="static __noinline__",
    unrolled="UNROLL_4",
    # A mask is a bool there: ~ would turn it into a number.
    spelled={"not": lambda a: f"!{a}"},
)
"""For ``solvers/cuda/scalars.h``."""


@dataclass(frozen=True)
class Printer:
    """Prints for one kernel.

    Attributes:
        graph: where nodes are made.
        spaces: the C++ of a place by its space, with ``{index}`` and ``{slot}``.
        environment: type and name of what every function of the kernel is passed, which places are read from.
        variable: the name of the loop variable that an :class:`Affine` index refers to.
        dialect: of C++.
    """

    graph: Graph
    spaces: Mapping[str, str]
    environment: tuple[str, str] = ("const In&", "in")
    variable: str = "j"
    dialect: Dialect = CPP

    def place(self, place: Place) -> str:
        """The C++ of a place."""
        return self.indexed(place, "" if place.index is None else affine(place.index, self.variable))

    def indexed(self, place: Place, index: str) -> str:
        """The C++ of the entry ``index`` of a place's array."""
        text = self.spaces.get(place.space) or _PARAMETERS[place.space]
        return text.format(slot=place.slot, index=index)

    def statements(self, stores: Sequence[Store], known: Mapping[Node, Place] | None = None) -> str:
        """Statements that do ``stores``; ``known`` nodes are read from places instead of being computed."""
        names = {node: self.place(place) for node, place in (known or {}).items()}
        block = _Block(self, names)
        block.compute(in_order([store.value for store in stores], stop=names))
        block.store([store for store in stores if not store.idle])
        return _indented(block.lines)

    def function(
        self,
        name: str,
        parameters: Sequence[tuple[str, str]],
        stores: Sequence[Store],
        known: Mapping[Node, Place] | None = None,
        inline: bool = True,
    ) -> str:
        """A C++ function that does ``stores``, with loops for similar rows, in several parts if it is long.

        Args:
            parameters: type and name of each, without the environment's.
        """
        stores, known = rolled(self.graph, [store for store in stores if not store.idle], known)
        names = {node: self.place(place) for node, place in known.items()}
        nodes = in_order([store.value for store in stores], stop=names)
        given = [self.environment, *parameters]
        if lines(nodes) > 3 * PART:
            return _Parts(self, name, given, nodes, stores, names).text()
        head = f"{'static inline' if inline else self.dialect.called} void {name}({_declared(given)})"
        return f"{head} {{\n{self.statements(stores, known)}\n}}"

    def functions(self, roots: Iterable[Operand]) -> list[str]:
        """C++ of the functions that are called below the roots, a function after those that it calls."""
        printed: dict[Function, str] = {}
        self._print(roots, printed)
        return list(printed.values())

    def _print(self, roots: Iterable[Operand], printed: dict[Function, str]) -> None:
        for node in in_order(roots):
            if node.op == "loop":
                self._print(node.data.function.roots(), printed)
                continue
            for function in called(node):
                if function not in printed:
                    self._print(function.roots(), printed)
                    printed[function] = self._definition(function)

    def _definition(self, function: Function) -> str:
        results = [Store(Place("returned", k), value) for k, value in enumerate(function.results)]
        kept = [Store(Place("kept", k), value) for k, value in enumerate(function.kept)]
        parameters = [("const V*", "a"), ("V*", "r"), *([("V*", "k")] if kept else [])]
        known = {}
        if function.reads is not None and function.reads.kept:
            parameters.append(("const V*", "k"))
            known = {value: Place("kept", k) for k, value in enumerate(function.reads.kept)}
        stores = [*results, *kept, *function.stores]
        return self.function(function.name, parameters, stores, known, inline=False)


def _declared(parameters: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{kind} {name}" for kind, name in parameters)


def _indented(lines: Iterable[str]) -> str:
    return "\n".join("    " + line for line in lines)


def _room(node: Node) -> int:
    """How many vectors an array for a node's results has, and for what a call keeps."""
    if node.op == "call":
        return width(node) + len(node.data.kept)
    return width(node) if called(node) else 1


class _Parts:
    """A long body as several functions; what a later one needs goes through an array ``s``."""

    def __init__(
        self,
        printer: Printer,
        name: str,
        given: list[tuple[str, str]],
        nodes: list[Node],
        stores: Sequence[Store],
        names: dict[Node, str],
    ) -> None:
        self.printer, self.name, self.given, self.names = printer, name, given, names
        self.nodes: list[list[Node]] = []
        part_of: dict[Node, int] = {}
        size = PART
        for node in nodes:
            if size >= PART:
                self.nodes.append([])
                size = 0
            self.nodes[-1].append(node)
            part_of[node] = len(self.nodes) - 1
            size += lines([node])
        self.stores: list[list[Store]] = [[] for _ in self.nodes]
        for store in stores:
            # Where the value is known; a constant anywhere.
            part = part_of.get(maker(store.value), 0) if isinstance(store.value, Node) else 0
            self.stores[part].append(store)
        self.scratch: dict[Node, int] = {}
        self.room = 0
        for node in nodes:
            if node not in names and node.op != "result":
                for arg in node.args:
                    made = maker(arg) if isinstance(arg, Node) else None
                    if made is not None and made.op != "input" and part_of.get(made, -1) != part_of[node]:
                        self._keep(made)

    def _keep(self, node: Node) -> None:
        if node in self.scratch or node in self.names:
            return
        self.scratch[node] = self.room
        self.room += _room(node)

    def text(self) -> str:
        inner = [*self.given, ("V* __restrict", "s")]
        functions, calls = [], []
        before: dict[Node, str] = dict(self.names)
        for k, (nodes, stores) in enumerate(zip(self.nodes, self.stores, strict=True)):
            block = _Block(self.printer, dict(before), scratch=self.scratch)
            block.compute(nodes)
            block.store(stores)
            for node in nodes:
                if (at := self.scratch.get(node)) is not None:
                    before[node] = self._kept(node, at)
                    if not called(node):
                        block.lines.append(f"s[{at}] = (V){block.names[node]};")
            head = f"{self.printer.dialect.part} void {self.name}_part{k}({_declared(inner)})"
            functions.append(f"{head} {{\n{_indented(block.lines)}\n}}")
            arguments = ", ".join([*(name for _, name in self.given), "s"])
            calls.append(f"{self.name}_part{k}({arguments});")
        main = f"static void {self.name}({_declared(self.given)})"
        lines = _indented([f"V s[{max(1, self.room)}];", *calls])
        return "\n".join([*functions, f"{main} {{\n{lines}\n}}"])

    @staticmethod
    def _kept(node: Node, at: int) -> str:
        if called(node):
            return f"(s + {at})"
        known = OPERATIONS.get(node.op)
        return f"(M)s[{at}]" if known and known.boolean else f"s[{at}]"


class _Block:
    """The lines of one C++ block and the names of the nodes that are computed in it."""

    def __init__(
        self,
        printer: Printer,
        names: dict[Node, str],
        prefix: str = "n",
        scratch: Mapping[Node, int] | None = None,
    ) -> None:
        self.printer = printer
        self.scratch = scratch or {}
        """Where in the array ``s`` the results of a call or loop go; others have an array of their own."""
        self.names = names
        self.given = frozenset(names)
        self.prefix = prefix
        self.lines: list[str] = []

    def text(self, value: Operand) -> str:
        """The C++ of a value; what is an entry of an array needs no line of its own."""
        if not isinstance(value, Node):
            return literal(value)
        if value not in self.names:
            entry = _entry(value)
            self.names[value] = (
                self._indexed(value, str(entry[1])) if entry else self.printer.place(value.place)
            )
        return self.names[value]

    def compute(self, nodes: Sequence[Node]) -> None:
        both = {(n.op, n.args[0]): n for n in nodes if n.op in ("sin", "cos") and n not in self.names}
        for node in nodes:
            if node in self.names or node.op in ("input", "result"):
                continue
            name = self.names[node] = f"{self.prefix}{len(self.lines)}"
            if node.op == "call":
                function: Function = node.data
                self._arguments(
                    node.args[: len(function.parameters)], f"{name}a", constant=not function.carried
                )
                given = [self.printer.environment[1], f"{name}a", name]
                if function.kept:
                    given.append(f"{name} + {width(node)}")
                if function.reads is not None and function.reads.kept:
                    call = node.args[-1]
                    assert isinstance(call, Node)
                    given.append(f"{self.names[call]} + {width(call)}")
                statement = f"{function.name}({', '.join(given)});"
                if function.carried:
                    self.lines.append(self._array(node, name))
                    self._repeat(function, name, statement)
                else:
                    self.lines.append(f"{self._array(node, name)} {statement}")
            elif node.op == "loop":
                self._loop(node, name)
            elif node.op == "scatter_add":
                self._scatter_add(node, name)
            elif (
                other := both.get(({"sin": "cos", "cos": "sin"}.get(node.op, ""), node.args[0]))
            ) is not None:
                # The two together cost little more than one.
                self.names[other] = f"{name}o"
                sine, cosine = (name, f"{name}o") if node.op == "sin" else (f"{name}o", name)
                self.lines.append(
                    f"V {sine}, {cosine}; v_sincos({self.text(node.args[0])}, {sine}, {cosine});"
                )
            else:
                expression = self.printer.dialect.expression(node.op, map(self.text, node.args))
                self.lines.append(f"const auto {name} = {expression};")

    def store(self, stores: Sequence[Store]) -> None:
        """Results of one loop that go to one array by a loop, all others by a statement each."""
        for run in _runs(stores):
            first, sign = run[0], "+=" if run[0].adds else "="
            if first.place is None:
                continue  # it was called where it was computed
            if len(run) == 1:
                # A block may also return a value.
                assign = (
                    "return"
                    if first.place.space == "returning"
                    else f"{self.printer.place(first.place)} {sign}"
                )
                self.lines.append(f"{assign} {self.text(first.value)};")
                continue
            table = f"{self.prefix}{len(self.lines)}"
            i = f"{table}i"  # a name of its own: one letter would hide an array of the function's parameters
            values = self._column([store.value for store in run], i, f"{table}s")
            indices = [store.place.index for store in run if store.place]
            target = self.printer.indexed(first.place, self._index(indices, i, f"{table}d"))
            self.lines.append(f"for (int {i} = 0; {i} < {len(run)}; {i}++) {target} {sign} {values};")

    def _array(self, node: Node, name: str) -> str:
        """The declaration of the array of a call's or loop's results."""
        if node in self.scratch:
            return f"V* const {name} = s + {self.scratch[node]};"
        return f"V {name}[{_room(node)}];"

    def _repeat(self, function: Function, name: str, statement: str) -> None:
        """Calls of a function until its last result is zero."""
        i = f"{name}i"
        self.lines += [
            f"for (int {i} = 0; {i} < {function.most}; {i}++) {{",
            f"  {statement}",
            f"  for (int {name}k = 0; {name}k < {function.carried}; {name}k++) {name}a[{name}k] = {name}[{name}k];",
            f"  if (!any({name}[{len(function.results) - 1}] != 0)) break;",
            "}",
        ]

    def _arguments(self, args: Sequence[Operand], name: str, constant: bool = True) -> None:
        """An array of the arguments of a call."""
        runs = self._arrays(args)
        if all(len(run) < _RUN for run in runs):
            kind = "const V" if constant else "V"
            self.lines.append(f"{kind} {name}[] = {{{', '.join(map(self.text, args))}}};")
            return
        self.lines.append(f"V {name}[{len(args)}];")
        self._fill(runs, name)

    def _arrays(self, args: Sequence[Operand]) -> list[list[Operand]]:
        """Values that are the same, or in one other array, together; both are copied by a loop."""
        runs: list[list[Operand]] = []
        for arg in args:
            if runs and (self._one_array([runs[-1][-1], arg]) or all(_same(q, arg) for q in runs[-1])):
                runs[-1].append(arg)
            else:
                runs.append([arg])
        return runs

    def _fill(self, runs: Iterable[Sequence[Operand]], name: str) -> None:
        at = 0
        for run in runs:
            if len(run) < _RUN:
                self.lines += [f"{name}[{at + k}] = {self.text(arg)};" for k, arg in enumerate(run)]
            else:
                i = f"{name}{at}i"
                values = self._column(run, i, f"{name}{at}t")
                self.lines.append(
                    f"for (int {i} = 0; {i} < {len(run)}; {i}++) {name}[{at} + {i}] = {values};"
                )
            at += len(run)

    def _loop(self, node: Node, name: str) -> None:
        """Result k of call i is ``name[k * count + i]``."""
        loop: Loop = node.data
        function, count, carried = loop.function, loop.count, loop.carried
        taken = len(function.parameters) - carried
        i = f"{name}i"
        read: dict[Node, str] = {}
        for k in range(carried):
            read[function.parameters[k]] = f"{name}c{k}"
            self.lines.append(f"V {name}c{k} = {self.text(node.args[k])};")
        for k in range(taken):
            column = node.args[carried + k :: taken]
            read[function.parameters[carried + k]] = self._column(column, i, f"{name}t{k}")
        body = _Block(self.printer, read, f"{name}_")
        body.compute(in_order(function.roots(), stop=read))
        for k, value in enumerate(function.results):
            body.lines.append(f"{name}[{k * count} + {i}] = {body.text(value)};")
        body.store(function.stores)
        body.lines += [f"{name}c{k} = {name}[{k * count} + {i}];" for k in range(carried)]
        self.lines.append(self._array(node, name))
        unrolled = self.printer.dialect.unrolled
        self.lines.append(f"{unrolled} for (int {i} = 0; {i} < {count}; {i}++) {{")
        self.lines += ["  " + line for line in body.lines]
        self.lines.append("}")

    def _scatter_add(self, node: Node, name: str) -> None:
        """The vector, then by function a loop over its calls, whose arguments and entries are in tables."""
        data: ScatterAdd = node.data
        start, values = node.args[: data.size], node.args[data.size :]
        self.lines.append(self._array(node, name))
        self._fill(self._arrays(start), name)
        if data.only_if is not None:
            self.lines.append(f"if (any({self.text(values[data.only_if])} != 0)) {{")
        places: Sequence[int] = self._one_array(values)
        if not places:
            places = range(len(values))
            self._arguments(values, f"{name}x")
        first = values[0]

        def read(index: str) -> str:
            if isinstance(places, range) or not isinstance(first, Node):
                return f"{name}x[{index}]"
            return self._indexed(first, index)

        for number, (function, group) in enumerate(groupby(data.contributions, lambda q: q.function)):
            calls, i = list(group), f"{name}f{number}"
            reads, numbers, adds = (len(part) for part in calls[0][1:])
            tables: list[tuple[str, str, list[Any]]] = [
                ("int", "t", [places[k] for call in calls for k in call.reads]),
                ("T", "c", [_number(value) for call in calls for value in call.numbers]),
                ("int", "s", [entry for call in calls for entry in call.adds]),
            ]
            for kind, table, entries in tables:
                if entries:
                    self.lines.append(
                        f"static const {kind} {i}{table}[] = {{{', '.join(map(str, entries))}}};"
                    )
            self.lines.append(f"for (int {i} = 0; {i} < {len(calls)}; {i}++) {{")
            if function.only_if is not None:
                guard = function.parameters.index(function.only_if)
                self.lines.append(f"  if (!any({read(f'{i}t[{i} * {reads} + {guard}]')} != 0)) continue;")
            k = f"{i}k"  # a name of its own: one letter would hide an array of the function's parameters
            self.lines += [
                f"  V {i}a[{max(1, reads + numbers)}], {i}r[{adds}];",
                f"  for (int {k} = 0; {k} < {reads}; {k}++) {i}a[{k}] = {read(f'{i}t[{i} * {reads} + {k}]')};",
            ]
            if numbers:
                given = f"{i}a[{reads} + {k}] = splat({i}c[{i} * {numbers} + {k}])"
                self.lines.append(f"  for (int {k} = 0; {k} < {numbers}; {k}++) {given};")
            self.lines += [
                f"  {function.name}({self.printer.environment[1]}, {i}a, {i}r);",
                f"  for (int {k} = 0; {k} < {adds}; {k}++) {name}[{i}s[{i} * {adds} + {k}]] += {i}r[{k}];",
                "}",
            ]
        if data.only_if is not None:
            self.lines.append("}")

    def _column(self, column: Sequence[Operand], i: str, table: str) -> str:
        """The C++ of entry ``i`` of a column of values; what cannot be indexed is copied to ``table`` first."""
        first = column[0]
        if all(value is first for value in column):
            return self.text(first)
        if not any(isinstance(value, Node) for value in column):
            numbers = ", ".join(_number(value) for value in column if not isinstance(value, Node))
            self.lines.append(f"static const T {table}[] = {{{numbers}}};")
            return f"splat({table}[{i}])"
        if isinstance(first, Node) and (indices := self._one_array(column)):
            return self._indexed(first, self._index(indices, i, table))
        self.lines.append(f"const V {table}[] = {{{', '.join(map(self.text, column))}}};")
        return f"{table}[{i}]"

    def _one_array(self, column: Sequence[Operand]) -> list[int]:
        """The indices of the values of a column in the one array that they are in; empty if it is not one."""
        entries = [None if value in self.given else _entry(value) for value in column]
        first = entries[0]
        if first is None or any(entry is None or entry[0] != first[0] for entry in entries):
            return []
        return [entry[1] for entry in entries if entry]

    def _index(self, indices: Sequence[Any], i: str, table: str) -> str:
        """The C++ of entry ``i`` of a list of indices."""
        step = indices[1] - indices[0]
        if all(b - a == step for a, b in pairwise(indices)):
            return affine(Affine(indices[0], step), i)
        self.lines.append(f"static const int {table}[] = {{{', '.join(map(str, indices))}}};")
        return f"{table}[{i}]"

    def _indexed(self, value: Node, index: str) -> str:
        if value.op == "result":
            return f"{self.names[maker(value)]}[{index}]"
        return self.printer.indexed(value.place, index)


def _entry(value: Operand) -> tuple[object, int] | None:
    """The array that a value is an entry of and its index there; None if it is in none."""
    if not isinstance(value, Node):
        return None
    if value.op == "input" and isinstance(value.place.index, int):
        return (value.place.space, value.place.slot), value.place.index
    if value.op == "result":
        source = maker(value)
        if source.op != "loop":
            return source, value.data
        call, k = divmod(value.data, len(source.data.function.results))
        return source, k * source.data.count + call
    return None


def _same(a: Operand, b: Operand) -> bool:
    return a is b or (not isinstance(a, Node) and not isinstance(b, Node) and repr(a) == repr(b))


_RUN = 8
"""At least so many results of a loop that go to one array are copied by a C++ loop."""


def _runs(stores: Sequence[Store]) -> list[list[Store]]:
    """Stores of one result of the calls of a loop to one array together; all others by themselves."""
    runs: dict[object, list[Store]] = {}
    for number, store in enumerate(stores):
        value, place = store.value, store.place
        key: object = number
        if isinstance(value, Node) and value.op == "result" and place and isinstance(place.index, int):
            source = maker(value)
            if source.op == "scatter_add":
                key = (source, place.space, place.slot, store.adds)
            elif source.op == "loop":
                key = (
                    source,
                    value.data % len(source.data.function.results),
                    place.space,
                    place.slot,
                    store.adds,
                )
        runs.setdefault(key, []).append(store)
    return [
        part for run in runs.values() for part in ([run] if len(run) >= _RUN else [[store] for store in run])
    ]


def affine(index: int | Affine, variable: str) -> str:
    """The C++ of an index."""
    if isinstance(index, int):
        return str(index)
    moving = {0: "", 1: variable}.get(index.step, f"{index.step} * {variable}")
    if not moving:
        return str(index.start)
    return f"{index.start} + {moving}" if index.start else moving


def literal(value: float) -> str:
    """A number as a C++ constant of the kernel's vector type."""
    return f"splat({_number(value)})"


def _number(value: float) -> str:
    if math.isnan(value):
        return "std::numeric_limits<T>::quiet_NaN()"
    if math.isinf(value):
        return f"{'-' if value < 0 else ''}std::numeric_limits<T>::infinity()"
    return f"T({value!r})"
