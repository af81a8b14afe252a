"""What a policy's network reads, the normalised observation, and its derivative by the state.

Compiled, both are straight-line code from one trace (:mod:`solvers.compiler`), and only the entries of the derivative
that are not zero for every state are computed.  Elsewhere torch computes the derivative by one backward pass for each
number that is observed.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.resources
import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffsim.policy import Policy
from robotics_envs.base import Box, Env, Parameter, States
from solvers.compiler.differentiate import gradient
from solvers.compiler.fingerprint import Fingerprints
from solvers.compiler.ir import Graph, Node, Operand, Place, Store
from solvers.compiler.limits import check_lines
from solvers.compiler.print_cpp import Printer
from solvers.compiler.slots import Slots, array_of
from solvers.compiler.structs import Struct, fields
from solvers.compiler.trace import NativeUnsupportedError, trace
from solvers.native import build

logger = logging.getLogger("diffsim")

BACKENDS = ("auto", "native")
"""Names of back ends under which observations and networks are compiled."""

_SPACES = {
    "x": "in.x[{index}]",
    "shared": "splat(in.shared[{slot}][{index}])",
    "z": "z[{index}]",
    "by": "by[{index}]",
}


class Observed:
    """``x [N, n] -> policy.normalise(env.observe(x)) [N, o]`` without gradient, and its :meth:`jacobian`.

    ``x`` may also be the states of windows, ``[T, B, n] -> [T, B, o]``, in any layout.

    Args:
        env, policy: what observes and what normalises.
        backend: of rollouts; where it is "native" or "auto" and there is a compiler, the function is compiled.
    """

    def __init__(self, env: Env, policy: Policy, backend: str) -> None:
        self.env, self.policy, self.backend = env, policy, backend
        self._fingerprints = _fingerprints()
        self._made: tuple[Any, _Kernel | None] | None = None
        self.compile_seconds = 0.0
        """Seconds spent on compiling so far."""

    def __getstate__(self) -> dict[str, Any]:
        # A copy compiles its own.
        return {**vars(self), "_fingerprints": None, "_made": None, "compile_seconds": 0.0}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _fingerprints=_fingerprints())

    @torch.no_grad()
    def __call__(self, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch o"]:
        kernel = self._kernel(x)
        if kernel is not None:
            return kernel.values(x)
        rows = x.reshape(-1, x.shape[-1])
        return self.policy.normalise(self.env.observe(rows)).unflatten(0, x.shape[:-1])

    def jacobian(self, x: States) -> Float[Tensor, "N o n"]:
        """Derivatives ``[N, o, n]`` of the normalised observation by the state."""
        kernel = self._kernel(x)
        return observation_jacobian(self.env, self.policy, x) if kernel is None else kernel.derivatives(x)

    def _kernel(self, x: Tensor) -> _Kernel | None:
        """The compiled function; None where it is not compiled."""
        if (
            self.backend not in BACKENDS
            or self.env.foreign
            or not x.is_cpu
            or x.dtype not in (torch.float32, torch.float64)
        ):
            return None
        key = (x.dtype, self._fingerprints.of(self.env, self.policy))
        if self._made is None or self._made[0] != key:
            started = time.perf_counter()
            self._made = key, self._prepared(x)
            self.compile_seconds += time.perf_counter() - started
        return self._made[1]

    def _prepared(self, x: Tensor) -> _Kernel | None:
        drawn = torch.get_rng_state()  # an observation that draws is not compiled, and goes on from here
        try:
            kernel = _Kernel(self.env, self.policy, x.dtype)
            kernel.compare()
        except build.NoCompilerError:
            return None  # it has been logged
        except NativeUnsupportedError as error:
            logger.warning(
                "the observation of %s is not compiled, torch computes it: %s", self.env.name, error
            )
            return None
        finally:
            torch.set_rng_state(drawn)
        return kernel


def _fingerprints() -> Fingerprints:
    return Fingerprints(by_value=(Parameter, Box), load=build.load)


@torch.enable_grad()
def observation_jacobian(env: Env, policy: Policy, x: States) -> Float[Tensor, "N o n"]:
    """Derivatives ``[N, o, n]`` of the normalised observation by the state, by automatic differentiation."""
    x = x.detach().requires_grad_()
    z = policy.normalise(env.observe(x))
    if not z.requires_grad:
        return x.new_zeros(*z.shape, x.shape[1])
    # Rollouts of a batch are independent: the derivative of a sum over rollouts is that of each of them.
    rows = [
        torch.autograd.grad(z[:, k].sum(), x, retain_graph=True, allow_unused=True, materialize_grads=True)[0]
        for k in range(z.shape[1])
    ]
    return torch.stack(rows, 1)


class _Kernel:
    """The traced and compiled observation.

    Raises:
        NativeUnsupportedError: it cannot be traced or compiled.
    """

    def __init__(self, env: Env, policy: Policy, dtype: torch.dtype) -> None:
        self.env, self.policy, self.dtype = env, policy, dtype
        self.n, self.o = len(env.state_names), len(env.observation_names)
        graph = Graph()
        unknown = "the observation depends on a tensor that requires a gradient"
        self.slots = Slots(graph, (), unknown, gradient=False, fixed=policy.parameters())
        state = [graph.input("x", i) for i in range(self.n)]
        example = self._states(1)
        policy.normalise(env.observe(example))  # so that cached tensors exist before the trace
        (traced,) = trace(
            lambda x: policy.normalise(env.observe(x)),
            [(example, array_of(state, (1, self.n)))],
            graph,
            self._captured,
        )
        if traced.shape != (1, self.o):
            raise NativeUnsupportedError(
                f"it has the shape {list(traced.shape)} for one state, not [1, {self.o}]"
            )
        values: list[Operand] = [q if isinstance(q, Node) else float(q) for q in traced.reshape(-1)]
        struct = _arguments(len(self.slots.slots))
        self.type = struct.ctypes(dtype)
        self.library = build.load(_source(dtype, graph, state, values, struct))
        if self.library.size_of_arguments() != ctypes.sizeof(self.type):
            raise NativeUnsupportedError("the compiler lays out arguments in another way than ctypes")

    def _captured(self, tensor: Tensor) -> np.ndarray:
        slot = self.slots.captured(tensor)
        return self.slots.array(slot, tuple(tensor.shape)) if isinstance(slot, int) else slot

    def _states(self, count: int) -> Tensor:
        """Some states of the box."""
        return self.env.state_box.sample(count, torch.Generator().manual_seed(0), self.dtype)

    def values(self, x: Tensor) -> Tensor:
        """Normalised observations ``[..., o]``."""
        z = x.new_empty(*x.shape[:-1], self.o)
        a, _kept = self._of(x)
        a.z = z.data_ptr()
        self.library.values(ctypes.byref(a))
        return z

    def derivatives(self, x: Tensor) -> Tensor:
        """Their derivatives ``[..., o, n]``."""
        by = x.new_zeros(*x.shape[:-1], self.o, self.n)
        a, _kept = self._of(x)
        a.by = by.data_ptr()
        self.library.derivatives(ctypes.byref(a))
        return by

    def _of(self, x: Tensor) -> tuple[Any, list[Tensor]]:
        a = self.type()
        blocks = x if x.ndim == 3 else x.reshape(-1, x.shape[-1]).unsqueeze(0)
        a.blocks, a.rows, _ = blocks.shape
        a.by_block, a.by_row, a.by_state = blocks.stride()
        a.x = blocks.data_ptr()
        kept = [blocks]
        kept += [slot.source.detach().to(x.dtype).contiguous() for slot in self.slots.slots]
        for k, tensor in enumerate(kept[1:]):
            a.shared[k] = tensor.data_ptr()
        return a, kept

    def compare(self) -> None:
        """
        Raises:
            NativeUnsupportedError: values or derivatives differ from torch's at some states.
        """
        x = self._states(7)
        tolerance = 1e-10 if self.dtype == torch.float64 else 1e-3
        with torch.no_grad():
            expected = self.policy.normalise(self.env.observe(x))
        pairs = (
            ("a value", expected, self.values(x)),
            ("a derivative", observation_jacobian(self.env, self.policy, x), self.derivatives(x)),
        )
        for what, right, found in pairs:
            finite = right.isfinite()
            if right.shape != found.shape:
                raise NativeUnsupportedError(
                    f"torch gives the shape {list(right.shape)}, not {list(found.shape)}"
                )
            if not finite.any():
                continue
            scale = right[finite].abs().max().clamp_min(1e-2)
            error = float((right[finite] - found[finite]).abs().max() / scale)
            if not error < tolerance:
                raise NativeUnsupportedError(
                    f"{what} differs from torch's by {error:.2g} (relative); does it mix states of the batch, "
                    "branch on values or hold a torch.autograd.Function of its own?"
                )


def _source(
    dtype: torch.dtype, graph: Graph, state: Sequence[Node], values: Sequence[Operand], struct: Struct
) -> str:
    places, entries = [], []
    for k, value in enumerate(values):
        terms = gradient(graph, [value], [1.0], state)[0] if isinstance(value, Node) else []
        for i, term in enumerate(terms):
            if isinstance(term, Node) or term != 0.0:
                places.append(k * len(state) + i)
                entries.append(term)
    printer = Printer(graph, _SPACES)
    stores = [Store(Place("z", k), value) for k, value in enumerate(values)]
    by = [Store(Place("by", k), term) for k, term in enumerate(entries)]
    parts = [
        *printer.functions([*values, *entries]),
        printer.function("observe", (("V*", "z"),), stores),
        printer.function("jacobian", (("V*", "by"),), by),
    ]
    check_lines(parts)
    head = [
        f"typedef {'double' if dtype == torch.float64 else 'float'} T;",
        f"constexpr int N = {len(state)}, O = {len(values)}, ENTRIES = {len(entries)};",
        f"constexpr int PLACES[] = {{{', '.join(map(str, [*places, 0]))}}};",
    ]
    text = _template().replace("// EMITTED", "\n".join(parts), 1).replace("// ARGUMENTS", struct.cpp(), 1)
    return "\n".join(head) + "\n" + text


@functools.cache
def _template() -> str:
    text = importlib.resources.files("diffsim.rollouts").joinpath("observed.cpp").read_text()
    return build.with_headers(text)


@functools.cache
def _arguments(shared: int) -> Struct:
    """What the kernel is passed: states ``[blocks, rows, N]`` and their strides, where results go, held tensors."""
    return Struct(
        "Arguments",
        (
            *fields("int64", "blocks", "rows", "by_block", "by_row", "by_state"),
            *fields("real*", "x", constant=True),
            *fields("real*", "z", "by"),
            *fields("real*", "shared", count=shared + 1, constant=True),
        ),
    )
