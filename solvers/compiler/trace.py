"""Tracing a torch function to scalar expressions: it runs once, its ATen operations applied to arrays of nodes too."""

from __future__ import annotations

import contextlib
import os
import sysconfig
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from solvers.compiler.ir import Graph, Node
from solvers.compiler.rules import RULES, NoRuleError

_ASKS_FOR_VALUES = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select")
_NOT_THE_USERS = (
    *(path + os.sep for path in (sysconfig.get_path("purelib"), sysconfig.get_path("stdlib"))),
    *(os.path.dirname(os.path.abspath(file)) + os.sep for file in (torch.__file__, __file__)),
)


class _Active(threading.local):
    """The tracers of the present thread: another thread may simulate while this one compiles."""

    def __init__(self) -> None:
        self.tracers: list[Tracer] = []


_active = _Active()


def active_tracer() -> Tracer | None:
    """The tracer that sees the operations of torch at present."""
    return next((tracer for tracer in reversed(_active.tracers) if not tracer._paused), None)


def tracing() -> bool:
    """Whether a trace is being taken in this thread.

    A ``torch.autograd.Function`` is invisible to it: only what its forward does is seen.  One whose gradient is to be
    known calls an operation with a rule of its own while this is true.
    """
    return bool(_active.tracers)


class NativeUnsupportedError(RuntimeError):
    """The function holds something that has no expression here; the message names it and where it came from."""


class NotStraightLineError(NativeUnsupportedError):
    """What is computed depends on values, or is drawn at random."""


class Tracer(TorchDispatchMode):
    """While active, every ATen operation on a bound tensor is applied to its array of nodes too.

    The tensors are examples that decide shapes and nothing else; the function's own constants become numbers.
    Views of tensors are views of arrays, so writing into a slice works as in torch.

    Args:
        graph: where nodes are made.
        captured: an array of nodes for a tensor that the function did not make itself (a closure's, a module's).
        rules: what to do with an operation, beside those of ``solvers.compiler.rules``.
    """

    def __init__(
        self,
        graph: Graph,
        captured: Callable[[Tensor], Any],
        rules: dict[Any, Callable[..., Any]] | None = None,
    ) -> None:
        super().__init__()
        self.graph = graph
        self.captured = captured
        self.rules = RULES if rules is None else {**RULES, **rules}
        self._arrays: dict[int, tuple[Tensor, Any]] = {}
        self._paused = False

    def __enter__(self) -> Tracer:
        _active.tracers.append(self)
        self._guard = _Guard(self)
        super().__enter__()
        self._guard.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._guard.__exit__(*error)
        super().__exit__(*error)
        _active.tracers.remove(self)

    def bind(self, tensor: Tensor, array: Any) -> Tensor:
        """Let ``array`` stand for ``tensor``, which is kept alive so that no other takes its identity."""
        self._arrays[id(tensor)] = (tensor, array)
        return tensor

    def array(self, tensor: Tensor) -> Any:
        """The array bound to a tensor."""
        if id(tensor) not in self._arrays:
            self.bind(tensor, self.captured(tensor))
        return self._arrays[id(tensor)][1]

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Operations inside are not traced."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._paused:
            return func(*args, **kwargs)
        packet, name = func.overloadpacket, func.overloadpacket.__name__
        inputs: list[Tensor] = []
        _replaced((args, kwargs), inputs.append)
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise NotStraightLineError(f"{func} draws random numbers{_where()}")
        if not inputs or name in (
            "lift_fresh",
            "lift_fresh_copy",
        ):  # zeros(...), torch.tensor(...) inside the function
            return self._constant(func(*args, **kwargs))
        in_place = packet not in self.rules and name.endswith("_") and not name.endswith("__")
        rule = self.rules.get(getattr(torch.ops.aten, name[:-1], None) if in_place else packet)
        # Before the operation itself: one in place changes the very numbers that constants are read from.
        arrays = _replaced((args, kwargs), self.array)
        try:
            if rule is None:
                raise NoRuleError
            result = rule(self.graph, *arrays[0], **arrays[1])
        except NoRuleError as error:
            if not in_place and all(map(_is_constant, map(self.array, inputs))):
                return self._constant(func(*args, **kwargs))
            if name in _ASKS_FOR_VALUES:
                raise NotStraightLineError(
                    f"the value of a tensor decides what is computed ({func}{_where()}); a step must be "
                    "straight-line: torch.where instead of if, no float(), .item() or boolean indexing"
                ) from None
            detail = f": {error}" if str(error) else ""
            raise NativeUnsupportedError(f"no C++ for the operation {func}{detail}{_where()}") from None
        out = func(*args, **kwargs)
        if in_place:
            array = self.array(args[0])
            if result.shape == array.shape:
                array[...] = result
            else:
                self.bind(args[0], result)  # squeeze_ and the like
            return out
        leaves, spec = ([out], None) if isinstance(out, Tensor) else tree_flatten(out)
        for tensor, array in zip(leaves, result if isinstance(result, list) else [result], strict=True):
            if isinstance(array, np.ndarray) and array.shape != tensor.shape:
                raise NativeUnsupportedError(
                    f"{func} gave the shape {array.shape}, torch {tuple(tensor.shape)}{_where()}"
                )
            self.bind(tensor, array)
        return out if spec is None else tree_unflatten(leaves, spec)

    def _constant(self, out: Any) -> Any:
        for tensor in tree_flatten(out)[0]:
            if isinstance(tensor, Tensor):
                self.bind(tensor, tensor.detach().cpu().numpy().astype(object))
        return out


def _replaced(value: Any, of: Callable[[Tensor], Any]) -> Any:
    """The arguments of an operation, at any depth of lists, with ``of`` of its tensors.

    Torch's own function for this also keeps the structure, which takes a large part of a trace's time.
    """
    if isinstance(value, Tensor):
        return of(value)
    if isinstance(value, list):
        return [_replaced(each, of) for each in value]
    if isinstance(value, tuple):
        return tuple([_replaced(each, of) for each in value])
    if isinstance(value, dict):
        return {key: _replaced(each, of) for key, each in value.items()}
    return value


class _Guard(TorchFunctionMode):
    """Refuses conversions of traced tensors to NumPy or Python, which are no ATen operations."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _LEAVES_TORCH and not self.tracer._paused and not _is_constant(self.tracer.array(args[0])):
            raise NotStraightLineError(
                f"the values of a tensor leave torch ({func.__name__}{_where()}); a step must be straight-line"
            )
        return func(*args, **(kwargs or {}))


_LEAVES_TORCH = (Tensor.numpy, Tensor.tolist, Tensor.__array__)


# Not in the class body, where torch would wrap it in a function that imports its compiler (2 s) at the first call.
Tracer.__torch_dispatch__ = Tracer.dispatch  # type: ignore[assignment, method-assign]


def _is_constant(array: Any) -> bool:
    return isinstance(array, np.ndarray) and not any(isinstance(q, Node) for q in array.flat)


def trace(
    function: Callable[..., Any],
    examples: Sequence[tuple[Tensor, Any]],
    graph: Graph,
    captured: Callable[[Tensor], Any],
    rules: dict[Any, Callable[..., Any]] | None = None,
) -> list[Any]:
    """The function's results (of a tensor or a tuple of tensors) as arrays of nodes and numbers.

    Args:
        examples: for every argument a tensor and the array that stands for it.

    Raises:
        NativeUnsupportedError: the function fails, or does what has no expression.
    """
    tracer = Tracer(graph, captured, rules)
    arguments = [tracer.bind(tensor.detach().clone(), array) for tensor, array in examples]
    try:
        with torch.no_grad(), tracer:
            results = function(*arguments)
    except NativeUnsupportedError:
        raise
    except Exception as error:
        raise NativeUnsupportedError(f"the function could not be traced: {error}") from error
    results = results if isinstance(results, (tuple, list)) else (results,)
    for result in results:
        if not isinstance(result, Tensor):
            raise NativeUnsupportedError(f"the function returns {type(result).__name__}, not a tensor")
    return [tracer.array(result) for result in results]


def _where() -> str:
    """`` (file:line: source)`` of the innermost frame that is not in an installed package or here."""
    for frame in reversed(traceback.extract_stack()):
        if not frame.filename.startswith(_NOT_THE_USERS):
            return f" ({frame.filename}:{frame.lineno}: {frame.line})"
    return ""
