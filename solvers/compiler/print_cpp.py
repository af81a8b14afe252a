"""Expressions as C++: here, and only here, places, nodes and functions get names."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from solvers.compiler.ir import Affine, Function, Loop, Node, Operand, Place, Store, in_order
from solvers.compiler.operations import OPERATIONS

_PARAMETERS = {"parameter": "a[{index}]", "returned": "r[{index}]"}


@dataclass(frozen=True)
class Printer:
    """Prints for one kernel.

    Attributes:
        spaces: the C++ of a place by its space, with ``{index}`` and ``{slot}``.
        environment: the declaration of what every function of the kernel is passed, and its name: what places are
            read from.
        variable: the name of the loop variable that an :class:`Affine` index refers to.
    """

    spaces: Mapping[str, str]
    environment: tuple[str, str] = ("const In& in", "in")
    variable: str = "j"

    def place(self, place: Place, variable: str = "") -> str:
        """The C++ of a place."""
        index = "" if place.index is None else affine(place.index, variable or self.variable)
        text = self.spaces.get(place.space) or _PARAMETERS[place.space]
        return text.format(slot=place.slot, index=index)

    def statements(self, stores: Sequence[Store], known: Mapping[Node, Place] | None = None) -> str:
        """Statements that do ``stores``; ``known`` nodes are read from places instead of being computed."""
        names = {node: self.place(place) for node, place in (known or {}).items()}
        block = _Block(self, names)
        block.compute(in_order([store.value for store in stores], stop=names))
        block.store([store for store in stores if not store.idle])
        return "\n".join("    " + line for line in block.lines)

    def functions(self, roots: Iterable[Operand]) -> list[str]:
        """C++ of the functions that are called below the roots, a function after those that it calls."""
        printed: dict[Function, str] = {}
        self._print(roots, printed)
        return list(printed.values())

    def _print(self, roots: Iterable[Operand], printed: dict[Function, str]) -> None:
        for node in in_order(roots):
            if node.op == "loop":
                self._print(node.data.function.roots(), printed)
            elif node.op == "call" and node.data not in printed:
                function = node.data
                self._print(function.roots(), printed)
                results = [Store(Place("returned", k), value) for k, value in enumerate(function.results)]
                body = self.statements([*results, *function.stores])
                head = f"static void {function.name}({self.environment[0]}, const V* a, V* r)"
                printed[function] = f"{head} {{\n{body}\n}}"


class _Block:
    """The lines of one C++ block and the names of the nodes that are computed in it."""

    def __init__(self, printer: Printer, names: dict[Node, str], prefix: str = "n") -> None:
        self.printer = printer
        self.names = names
        self.prefix = prefix
        self.lines: list[str] = []

    def text(self, value: Operand) -> str:
        return self.names[value] if isinstance(value, Node) else literal(value)

    def compute(self, nodes: Sequence[Node]) -> None:
        both = {(n.op, n.args[0]): n for n in nodes if n.op in ("sin", "cos") and n not in self.names}
        for node in nodes:
            if node in self.names:
                continue
            name = f"{self.prefix}{len(self.lines)}"
            match node.op:
                case "input":
                    self.names[node] = self.printer.place(node.place)
                case "result":
                    self.names[node] = self._result(node)
                case "call":
                    self.names[node] = name
                    arguments = ", ".join(map(self.text, node.args))
                    function: Function = node.data
                    self.lines.append(
                        f"const V {name}a[] = {{{arguments}}}; V {name}[{len(function.results)}]; "
                        f"{function.name}({self.printer.environment[1]}, {name}a, {name});"
                    )
                case "loop":
                    self.names[node] = name
                    self._loop(node, name)
                case "sin" | "cos" if (
                    other := both.get(("cos" if node.op == "sin" else "sin", node.args[0]))
                ) is not None:
                    # The two together cost little more than one.
                    self.names[node], self.names[other] = name, f"{name}o"
                    sine, cosine = (name, f"{name}o") if node.op == "sin" else (f"{name}o", name)
                    self.lines.append(
                        f"V {sine}, {cosine}; v_sincos({self.text(node.args[0])}, {sine}, {cosine});"
                    )
                case op:
                    self.names[node] = name
                    self.lines.append(
                        f"const auto {name} = {OPERATIONS[op].cpp(*map(self.text, node.args))};"
                    )

    def store(self, stores: Sequence[Store]) -> None:
        for run in _runs(stores):
            first = run[0]
            if first.place is None:
                continue
            sign = "+=" if first.adds else "="
            if len(run) == 1:
                target = self.printer.place(first.place)
                # A single value may be what the block returns.
                assign = target if first.place.space == "returning" else f"{target} {sign}"
                self.lines.append(f"{assign} {self.text(first.value)};")
                continue
            place = replace(first.place, index=Affine(_index(first.place)))
            values = self._column([store.value for store in run], "k", f"{self.prefix}{len(self.lines)}s")
            self.lines.append(
                f"for (int k = 0; k < {len(run)}; k++) {self.printer.place(place, 'k')} {sign} {values};"
            )

    def _result(self, node: Node) -> str:
        source = node.args[0]
        assert isinstance(source, Node)
        if source.op == "call":
            return f"{self.names[source]}[{node.data}]"
        call, k = divmod(node.data, len(source.data.function.results))
        return f"{self.names[source]}[{k * source.data.count + call}]"

    def _loop(self, node: Node, name: str) -> None:
        """Result k of call i is ``name[k * count + i]``."""
        loop: Loop = node.data
        function, count, carried = loop.function, loop.count, loop.carried
        taken, width = len(function.parameters) - carried, len(function.results)
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
        targets = [f"{name}[{k * count} + {i}] = {body.text(v)};" for k, v in enumerate(function.results)]
        body.lines += targets
        body.store(function.stores)
        body.lines += [f"{name}c{k} = {name}[{k * count} + {i}];" for k in range(carried)]
        self.lines.append(f"V {name}[{width * count}];")
        self.lines.append(f"for (int {i} = 0; {i} < {count}; {i}++) {{")
        self.lines += ["  " + line for line in body.lines]
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
        found = [_entry(value) for value in column]
        arrays = {entry and entry[0] for entry in found}
        if len(arrays) == 1 and None not in arrays:
            indices = [entry[1] for entry in found if entry]
            step = indices[1] - indices[0]
            if indices == [indices[0] + step * k for k in range(len(indices))]:
                index = affine(Affine(indices[0], step), i)
            else:
                self.lines.append(f"static const int {table}[] = {{{', '.join(map(str, indices))}}};")
                index = f"{table}[{i}]"
            return self._indexed(first, index)
        self.lines.append(f"const V {table}[] = {{{', '.join(map(self.text, column))}}};")
        return f"{table}[{i}]"

    def _indexed(self, value: Operand, index: str) -> str:
        assert isinstance(value, Node)
        if value.op == "result":
            source = value.args[0]
            assert isinstance(source, Node)
            return f"{self.names[source]}[{index}]"
        place = value.place
        text = self.printer.spaces.get(place.space) or _PARAMETERS[place.space]
        return text.format(slot=place.slot, index=index)


def _entry(value: Operand) -> tuple[object, int] | None:
    """The array that a value is an entry of and its index there; None if it is in none."""
    if not isinstance(value, Node):
        return None
    if value.op == "input" and isinstance(value.place.index, int):
        return (value.place.space, value.place.slot), value.place.index
    if value.op == "result":
        (source,) = value.args
        assert isinstance(source, Node)
        if source.op == "call":
            return source, value.data
        call, k = divmod(value.data, len(source.data.function.results))
        return source, k * source.data.count + call
    return None


_RUN = 8
"""At least so many results of a loop that go to neighbouring places are copied by a C++ loop."""


def _runs(stores: Sequence[Store]) -> list[list[Store]]:
    """Neighbouring stores of results of one loop to neighbouring places together; all others by themselves."""
    runs: list[list[Store]] = []
    for store in stores:
        if runs and _follows(runs[-1][-1], store):
            runs[-1].append(store)
        else:
            runs.append([store])
    return [part for run in runs for part in ([run] if len(run) >= _RUN else [[store] for store in run])]


def _follows(before: Store, after: Store) -> bool:
    a, b = before.value, after.value
    if before.place is None or after.place is None or before.adds != after.adds:
        return False
    if not (isinstance(a, Node) and isinstance(b, Node) and a.op == b.op == "result"):
        return False
    if a.args[0] is not b.args[0] or not isinstance(a.args[0], Node) or a.args[0].op != "loop":
        return False
    return after.place == replace(before.place, index=_index(before.place) + 1)


def _index(place: Place) -> int:
    return place.index if isinstance(place.index, int) else -1


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
