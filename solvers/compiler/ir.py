"""The intermediate form: scalar expression graphs whose inputs are places, with called functions and loops.

A graph is straight-line code in single-assignment form.  An input is a :class:`Place`: data, to which only the
printer (``solvers.compiler.print_cpp``) gives a C++ name.  A :class:`Function` is a graph of its own with parameters;
a node may *call* it, *loop* over it with a state that is carried from one call to the next, or *add* the results of
many calls to the entries of a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Union

from solvers.compiler.operations import OPERATIONS

Operand = Union["Node", float]
"""A node or a constant; what comparisons give is a node or a ``bool``."""


class Affine(NamedTuple):
    """The index ``start + step · i`` at the value i of a loop's variable."""

    start: int
    step: int = 1


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value is read from or written to: an entry of an array of the kernel.

    ``space`` names a kind of array ("x", "shared", "bar"); ``index`` is the entry, None for a single value; ``slot``
    tells apart several arrays of a kind.
    """

    space: str
    index: int | Affine | None = None
    slot: int = 0


@dataclass(frozen=True, eq=False)
class Node:
    """An operation on nodes and constants.

    ``data`` is the :class:`Place` of an ``input``, the :class:`Function` of a ``call``, the :class:`Loop` of a
    ``loop``, the :class:`ScatterAdd` of a ``scatter_add`` and the number of a ``result`` among those of its call, loop
    or vector.  ``number`` counts the nodes of a graph as they are made.
    """

    op: str
    args: tuple[Operand, ...]
    data: Any = None
    number: int = 0

    @property
    def place(self) -> Place:
        """The place of an input."""
        assert self.op == "input"
        return self.data


class Store(NamedTuple):
    """``place = value``, or ``place += value``; with no place, a call that is made for what it adds to places."""

    place: Place | None
    value: Operand
    adds: bool = False

    @property
    def idle(self) -> bool:
        """Whether nothing happens: zero is added."""
        return self.adds and not isinstance(self.value, Node) and self.value == 0.0


@dataclass(eq=False)
class Function:
    """``results`` as expressions of ``parameters``, which are inputs of space ``"parameter"``.

    Beside its parameters a body may read any place of the kernel.  ``stores`` are what a call adds to places of the
    kernel: the gradients with respect to such inputs, in a function that computes one.  A call leaves the values of
    the nodes ``kept`` for the vector-Jacobian product of the function, which reads them (``reads``) instead of
    computing them again.

    With ``carried``, a call repeats the function until it has settled, at most ``most`` times: the first ``carried``
    results take the place of the first parameters, as long as the last result is not zero (for any rollout of a
    vector).  A settled state depends on the other arguments only; see ``solvers.compiler.fixed_point``.

    As a :class:`Contribution` a function with ``only_if``, one of its parameters, adds nothing where that is zero for
    all rollouts of a vector.
    """

    name: str
    parameters: list[Node]
    results: list[Operand]
    stores: list[Store] = field(default_factory=list)
    vjp: Function | None = None
    """From the parameters and the cotangents of the results to the cotangents of the parameters; once derived."""
    kept: list[Node] = field(default_factory=list)
    reads: Function | None = None
    carried: int = 0
    most: int = 1
    only_if: Node | None = None
    pulled: Pulled | None = None
    """The vector-Jacobian product as a contribution; once derived."""

    def roots(self) -> list[Operand]:
        """Everything that a call computes."""
        return [*self.results, *(store.value for store in self.stores)]


@dataclass(frozen=True)
class Loop:
    """``count`` calls of ``function`` one after the other.

    Of the function's parameters and results the first ``carried`` are a state: a call takes it from the call before,
    the first one from the loop's first ``carried`` arguments.  The other parameters take ``count`` arguments each,
    those of the first call first.  The loop's results are all results of the first call, then those of the second, …
    """

    function: Function
    count: int
    carried: int = 0


class Contribution(NamedTuple):
    """A call whose results are added to entries of a vector.

    Attributes:
        reads: the first arguments, by their places among the values.
        numbers: the other arguments, constants.
        adds: the entry that each result is added to.
    """

    function: Function
    reads: tuple[int, ...]
    numbers: tuple[float, ...]
    adds: tuple[int, ...]


class Pulled(NamedTuple):
    """The vector-Jacobian product of a contribution's function, without arguments and results that it does without.

    Attributes:
        reads: arguments, by their places among those that are read, the cotangents of the results behind them.
        numbers: constant arguments, by their places among these.
        adds: the argument among those read that each result is the cotangent of.
    """

    function: Function
    reads: tuple[int, ...]
    numbers: tuple[int, ...]
    adds: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class ScatterAdd:
    """A vector of ``size`` entries with ``contributions`` added, which are calls on values.

    Where the value number ``only_if`` is zero for all rollouts of a vector, nothing is added.
    """

    size: int
    contributions: tuple[Contribution, ...]
    only_if: int | None = None


class Graph:
    """Makes nodes: equal ones once, with constants folded."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], Node] = {}
        self._named = 0
        self.contributing: dict[Any, Any] = {}
        """Functions that ``solvers.compiler.contributions`` has traced."""

    def __len__(self) -> int:
        """The number of nodes made so far."""
        return len(self._known)

    def name(self, words: str) -> str:
        """A name that no other function of this graph has."""
        self._named += 1
        return f"{words}{self._named}"

    def input(self, space: str, index: int | Affine | None = None, slot: int = 0) -> Node:
        """The value at a place of the kernel."""
        return self._intern("input", (), Place(space, index, slot))

    def parameters(self, count: int) -> list[Node]:
        """Inputs for the parameters of a function."""
        return [self.input("parameter", k) for k in range(count)]

    def call(self, function: Function, args: Sequence[Operand], after: Node | None = None) -> list[Operand]:
        """The results of a function of these arguments; one that ``reads`` what a call keeps comes ``after`` it."""
        if len(args) != len(function.parameters):
            raise ValueError(
                f"{function.name} takes {len(function.parameters)} arguments, {len(args)} are given"
            )
        kept = () if after is None else (after,)
        return self.results(self._intern("call", (*args, *kept), function))

    def loop(
        self,
        function: Function,
        state: Sequence[Operand],
        items: Sequence[Sequence[Operand]],
    ) -> list[list[Operand]]:
        """The results of every call of a loop; see :class:`Loop`.

        Args:
            state: the first arguments of the first call.
            items: the other arguments of every call.
        """
        wanted = len(function.parameters) - len(state)
        if not items or any(len(item) != wanted for item in items) or len(state) > len(function.results):
            raise ValueError(
                f"a loop over {function.name} with {len(state)} carried values takes {wanted} arguments in "
                f"each of at least one call; given {[len(item) for item in items]}"
            )
        data = Loop(function, len(items), len(state))
        node = self._intern("loop", (*state, *(arg for item in items for arg in item)), data)
        flat, each = self.results(node), len(function.results)
        return [flat[k * each : (k + 1) * each] for k in range(len(items))]

    def scatter_add(
        self,
        start: Sequence[Operand],
        values: Sequence[Operand],
        contributions: Iterable[Contribution],
        only_if: int | None = None,
    ) -> list[Operand]:
        """The entries of ``start`` with the contributions added, those of one function after the other."""
        order: dict[Function, list[Contribution]] = {}
        for contribution in contributions:
            order.setdefault(contribution.function, []).append(contribution)
        data = ScatterAdd(len(start), tuple(q for of in order.values() for q in of), only_if)
        return self.results(self._intern("scatter_add", (*start, *values), data))

    def results(self, node: Node) -> list[Operand]:
        """The results of a call, loop or scatter_add."""
        return [self._intern("result", (node,), k) for k in range(width(node))]

    def apply(self, op: str, *args: Operand) -> Operand:
        """The operation's result, simplified where that changes no value."""
        fold = OPERATIONS[op].fold
        if fold is not None and all(not isinstance(a, Node) for a in args):
            try:
                value = fold(*args)
                return value if isinstance(value, bool) else float(value)
            except (ArithmeticError, ValueError):
                pass  # the C++ code will produce the NaN or the infinity
        match op, args:
            case ("add", (a, 0.0)) | ("add", (0.0, a)) | ("sub", (a, 0.0)) | ("mul", (a, 1.0)):
                return a
            case ("mul", (1.0, a)) | ("div", (a, 1.0)):
                return a
            case ("sub", (0.0, a)):
                return self.apply("neg", a)
            case ("neg", (Node(op="neg", args=(a,)),)):
                return a
            case ("where", (bool(c), a, b)):
                return a if c else b
            case ("where", (_, a, b)) if a is b or (not isinstance(a, Node) and a == b):
                return a
            case ("and", (bool(c), a)) | ("and", (a, bool(c))):
                return a if c else False
            case ("or", (bool(c), a)) | ("or", (a, bool(c))):
                return True if c else a
        if op in ("add", "mul"):
            # In an order of its own, so that the same function always gives the same source and the same bits.
            args = tuple(sorted(args, key=lambda a: a.number if isinstance(a, Node) else -1))
        return self._intern(op, args)

    def zero_product(self, a: Operand, b: Operand) -> Operand:
        """``a · b`` where a factor of exactly zero is known to be meant as "no term" (cotangents)."""
        if (not isinstance(a, Node) and a == 0.0) or (not isinstance(b, Node) and b == 0.0):
            return 0.0
        return self.apply("mul", a, b)

    def _intern(self, op: str, args: tuple[Operand, ...], data: Any = None) -> Node:
        # The sign bit too: 0.0 == -0.0, but 1/0.0 is not 1/-0.0.
        key = (op, data, *(("node", a.number) if isinstance(a, Node) else (a, str(a)[:1]) for a in args))
        if key not in self._known:
            self._known[key] = Node(op, args, data, len(self._known))
        return self._known[key]

    def rebuild(self, roots: Sequence[Operand], replace: Callable[[Node], Operand | None]) -> list[Operand]:
        """The roots with other nodes in the place of those for which ``replace`` gives one."""
        made: dict[Node, Operand] = {}
        for node in in_order(roots):
            other = replace(node)
            if other is None:
                args = tuple(made[a] if isinstance(a, Node) else a for a in node.args)
                other = node if args == node.args else self._intern(node.op, args, node.data)
            made[node] = other
        return [made[root] if isinstance(root, Node) else root for root in roots]


def width(node: Node) -> int:
    """The number of results of a call, loop or scatter_add."""
    if node.op == "call":
        return len(node.data.results)
    if node.op == "scatter_add":
        return node.data.size
    return node.data.count * len(node.data.function.results)


def maker(value: Operand) -> Node:
    """The node that a value comes from: the call, loop or scatter_add of a result, or the value's own."""
    assert isinstance(value, Node)
    if value.op != "result":
        return value
    (source,) = value.args
    assert isinstance(source, Node)
    return source


def in_order(roots: Iterable[Operand], stop: Container[Node] = ()) -> list[Node]:
    """All nodes below the roots, arguments before their users; nothing below the nodes in ``stop``."""
    order: list[Node] = []
    entered: set[int] = set()
    done: set[int] = set()
    stack = [root for root in roots if isinstance(root, Node)]
    stack.reverse()
    while stack:
        node = stack[-1]
        known = id(node)
        if known in entered:  # all below it is done, or it was on the stack twice
            stack.pop()
            if known not in done:
                done.add(known)
                order.append(node)
            continue
        entered.add(known)
        if node not in stop:
            stack += [a for a in node.args[::-1] if isinstance(a, Node) and id(a) not in entered]
    return order


def inputs_of(roots: Iterable[Operand]) -> set[Node]:
    """The inputs that the roots depend on, in the bodies of called functions too (but their parameters)."""
    found: set[Node] = set()
    bodies: set[int] = set()
    pending = list(roots)
    while pending:
        below, pending = in_order(pending), []
        for node in below:
            if node.op == "input":
                found.add(node)
            for function in called(node):
                if id(function) not in bodies:
                    bodies.add(id(function))
                    found |= {q for q in inputs_of(function.roots()) if q.place.space != "parameter"}
    return found


def called(node: Node) -> list[Function]:
    """The functions that a node calls, each once."""
    if node.op == "call":
        return [node.data]
    if node.op == "loop":
        return [node.data.function]
    if node.op == "scatter_add":
        return list(dict.fromkeys(q.function for q in node.data.contributions))
    return []
