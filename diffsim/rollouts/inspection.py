"""Inspection of a rollout before it runs: dependencies, operation count, lost gradients, steps that do not repeat."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from diffsim.rollouts.inputs import Inputs
from robotics_envs.base import Box, Env, Parameter
from solvers.compiler.fingerprint import Fingerprints


def fingerprints() -> Fingerprints:
    """What a rollout is compiled from, not watched yet."""
    return Fingerprints(by_value=(Parameter, Box), opaque=_is_foreign)


def _is_foreign(value: Any) -> bool:
    """Whether it is a simulator that is never traced."""
    return isinstance(value, Env) and value.foreign


def _one_step(inputs: Inputs, x: Tensor) -> list[Tensor]:
    """The results of the first control interval of a few rollouts from ``x [few, n]``."""
    few = len(x)
    p = {name: (v[:few] if v.ndim else v).detach() for name, v in inputs.p.items()}
    if inputs.controls is not None:
        u = inputs.controls.detach()[0, :few]
    else:
        noise = inputs.noise_at(0)
        u = inputs.act(x, None if noise is None else noise.detach()[:few])
    results = replace(inputs, p=p).advance(x, u)
    return [*results, *([] if inputs.terminal is None else [inputs.value(x)])]


class _Watch(TorchDispatchMode):
    """Counts operations, notices those that draw random numbers and keeps the state of generators before they do."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.draws = ""
        self.generators: dict[int, tuple[torch.Generator, Tensor]] = {}

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.count += 1
        if torch.Tag.nondeterministic_seeded in func.tags:
            # A generator is a keyword of some operations and the last argument of others.
            own = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.Generator)]
            for generator in own:
                self.generators.setdefault(id(generator), (generator, generator.get_state()))
            self.draws = "draws from a torch.Generator" if own else "draws from torch's global generator"
        return func(*args, **kwargs)

    def put_back(self) -> None:
        for generator, state in self.generators.values():
            generator.set_state(state)


_Watch.__torch_dispatch__ = _Watch.dispatch  # type: ignore[assignment, method-assign]  # as in solvers/compiler/trace.py


class Snapshot:
    """torch's global random state and the buffers of modules, as they were when this was made."""

    def __init__(self, inputs: Inputs) -> None:
        self._buffers = [q for module in inputs.modules for q in module.buffers()]
        self._values = [q.clone() for q in self._buffers]
        self._versions = self._now()
        self._state = torch.get_rng_state()
        device = inputs.x0.device
        self._device = device if device.type == "cuda" else None
        self._cuda = None if self._device is None else torch.cuda.get_rng_state(self._device)

    def _now(self) -> list[int]:
        return [0 if q.is_inference() else q._version for q in self._buffers]

    def change(self) -> str:
        """What has changed since; empty if nothing has."""
        if self._versions != self._now():
            return "changes a buffer"
        drawn = not torch.equal(self._state, torch.get_rng_state())
        if self._cuda is not None and self._device is not None:
            drawn = drawn or not torch.equal(self._cuda, torch.cuda.get_rng_state(self._device))
        return "draws from torch's global generator" if drawn else ""

    def put_back(self) -> None:
        torch.set_rng_state(self._state)
        if self._cuda is not None and self._device is not None:
            torch.cuda.set_rng_state(self._cuda, self._device)
        with torch.no_grad():
            for buffer, value, before, now in zip(
                self._buffers, self._values, self._versions, self._now(), strict=True
            ):
                if before != now:
                    buffer.copy_(value)


class _Attributes:
    """The attributes of modules that are no parameters, buffers and modules, as they were when this was made.

    What a policy remembers between its calls: numbers, texts and tensors, and lists and dicts of such.
    """

    def __init__(self, inputs: Inputs) -> None:
        every = {id(m): m for module in inputs.modules for m in module.modules()}
        self._found = [(m, _own(m), {k: _copied(v) for k, v in _own(m).items()}) for m in every.values()]

    def change(self) -> str:
        """What has changed since; empty if nothing has."""
        for module, _, before in self._found:
            now = _own(module)
            for name in {**before, **now}:
                if name not in before or name not in now or not _is_as_before(before[name], now[name]):
                    return f"changes the attribute {name!r} of {type(module).__name__}"
        return ""

    def put_back(self) -> None:
        for module, held, before in self._found:
            now = _own(module)
            for name in now.keys() - before.keys():
                delattr(module, name)
            for name, value in before.items():
                if name not in now or not _is_as_before(value, now[name]):
                    setattr(module, name, _put_back(held[name], value))


_OF_EVERY_MODULE = vars(nn.Module()).keys()


def _own(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name not in _OF_EVERY_MODULE}


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if type(value) is list:
        return [_copied(each) for each in value]
    if type(value) is dict:
        return {key: _copied(each) for key, each in value.items()}
    return value


def _put_back(held: Any, copied: Any) -> Any:
    """The object that was held, with the content that it had."""
    if isinstance(held, Tensor) and not held.is_inference():
        with torch.no_grad():
            return held.copy_(copied)
    if type(held) is list:
        held[:] = copied
        return held
    if type(held) is dict:
        held.clear()
        held.update(copied)
        return held
    return copied


def _is_as_before(copied: Any, now: Any) -> bool:
    if type(now) is not type(copied):
        return False
    if isinstance(now, Tensor):
        return _are_equal(now.detach(), copied)
    if isinstance(now, (bool, int, float, str)):
        return bool(now == copied or (now != now and copied != copied))
    if type(now) is list:
        return len(now) == len(copied) and all(map(_is_as_before, copied, now))
    if type(now) is dict:
        return now.keys() == copied.keys() and all(_is_as_before(copied[key], now[key]) for key in now)
    return now is copied


def _are_equal(a: Tensor, b: Tensor) -> bool:
    """Equal to the bit but for NaN; tensors without data are."""
    if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
        return False
    return a.is_meta or bool(((a == b) | ((a != a) & (b != b))).all())


@contextlib.contextmanager
def _others_put_back() -> Iterator[None]:
    """Restores the global generators of Python and NumPy at the end."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002, what users may draw from
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


class Findings(NamedTuple):
    """The result of :func:`look`."""

    constant: frozenset[str]
    """The results (of ``Outcome``) that depend on no state, action or parameter."""
    functions: tuple[str, ...]
    """Names of ``torch.autograd.Function`` subclasses in it, whose gradients a trace does not see."""
    changing: str
    """Why a step that is computed again gives another result; empty if it gives the same."""
    operations: int
    """The number of torch operations in a control interval."""

    def written(self) -> dict[str, Any]:
        """The same as JSON holds it."""
        return {**self._asdict(), "constant": sorted(self.constant)}

    @classmethod
    def read(cls, written: Mapping[str, Any] | None) -> Findings | None:
        """What :meth:`written` returned; None for anything else."""
        if written is None or set(written) != set(cls._fields):
            return None
        constant, functions = frozenset(written["constant"]), tuple(written["functions"])
        return cls(constant, functions, written["changing"], written["operations"])


def look(inputs: Inputs, gradient: bool) -> Findings:
    """Run one control interval of a few rollouts, under autograd if a gradient is wanted.

    Random state and buffers are restored.  The interval runs twice: results that differ come from a state or a random
    source that is not torch's.

    Raises:
        SizeError: policy, simulator or terminal value return wrong shapes.
        ValueError: a tensor that requires a gradient is not among those that one is computed for.
    """
    before, watch = Snapshot(inputs), _Watch()
    x = inputs.x0.detach()[:3].clone().requires_grad_(gradient)
    results: list[list[Tensor]] = []
    changing, count = "", 0
    first = again = _Attributes(inputs)
    with _others_put_back():
        try:
            while len(results) < 2 and not changing:
                # What only the first call sets is kept for the others.
                again = _Attributes(inputs) if results else first
                with torch.set_grad_enabled(gradient), watch:
                    results.append(_one_step(inputs, x))
                count = count or watch.count
                changing = before.change() or watch.draws
                before.put_back()
                watch.put_back()
            changing = changing or again.change()
            if changing:
                first.put_back()
        except Exception:
            with torch.no_grad():  # of all rollouts, so that the message has their number
                _one_step(inputs, inputs.x0)
            raise
        finally:
            before.put_back()
            watch.put_back()
    if not changing and not _agree(*results):
        changing = "gives another result when it is called again"
    if not gradient:
        return Findings(frozenset(), (), changing, count)
    outputs = results[0]
    known = {id(x), *map(id, (*inputs.parameters, *inputs.fixed))}
    functions: list[str] = []
    stack, seen = [q.grad_fn for q in outputs], set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            functions.append(type(node).__name__.removesuffix("Backward"))
        variable = getattr(node, "variable", None)
        if variable is not None and id(variable) not in known:
            raise ValueError(
                f"the rollout depends on a tensor of shape {tuple(variable.shape)} that requires a gradient and is "
                "neither x0, p, noise, controls nor a parameter of the policy or the terminal value (an nn.Module); "
                "its gradient would be lost: pass it as p or make it an nn.Parameter"
            )
        stack.extend(following for following, _ in node.next_functions)
    named = zip(("last", "costs", "values"), outputs, strict=False)
    constant = frozenset(name for name, output in named if not output.requires_grad)
    return Findings(constant, tuple(f for f in functions if f not in _TRACED), changing, count)


_TRACED = ("ProjectedClip", "CompiledFunction")
"""Those that are not called while a trace is taken, but operations that a trace sees."""


def _agree(first: list[Tensor], second: list[Tensor]) -> bool:
    """Equal up to rounding, which may depend on where in memory operands lie; tensors without data agree."""
    return all(
        a.is_meta or torch.allclose(a.detach(), b.detach(), rtol=1e-4, atol=1e-6, equal_nan=True)
        for a, b in zip(first, second, strict=True)
    )
