"""What a kernel of rollouts is made of: its C++ and what it refers to, and how that is kept for other processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffsim.rollouts.inputs import Inputs
from solvers.compiler.fingerprint import Identity
from solvers.compiler.slots import Slot
from solvers.native.traces import Key, kept

PACKAGES = ("diffsim", "robotics_envs", "solvers", "lazy_registry")
"""Only of simulators, policies and values defined in these a trace is kept."""

_MOST_VALUES = 1_000
"""A tensor that is in no fingerprint, such as the bounds of a box, is kept with its numbers, if these are not more."""


class Traced(NamedTuple):
    """The outcome of a trace."""

    source: str
    slots: Sequence[Slot]
    own_names: Sequence[str]
    timed_sizes: Sequence[int]
    from_disk: bool = False
    """Whether another process has traced."""


def traced_once(inputs: Inputs, gradient: bool, trace: Callable[[], Traced]) -> Traced:
    """What ``trace`` returns, in this process or in one before that traced the same."""
    key = key_of(inputs, gradient)
    made: list[Traced] = []

    def make() -> Mapping[str, Any] | None:
        made.append(trace())
        return None if key is None else _written(made[0], key)

    found = kept(key, make)
    if made:
        return made[0]
    assert key is not None
    assert found is not None
    return _read(found, key, inputs.x0)


def key_of(inputs: Inputs, gradient: bool) -> Key | None:
    """The content of all that a trace of these inputs depends on; None where something is defined elsewhere."""
    if inputs.held is None:
        return None
    named = inputs.named()
    parts = (
        *("rollout", gradient, inputs.x0.dtype, type(inputs.noise).__name__, inputs.controls is None),
        *(str(name) for name in inputs.p),
        *(len(value.shape) for value in inputs.p.values()),
        *(named[k].requires_grad for k in named if not isinstance(k, int)),
        *("parameters", *map(Identity, inputs.parameters), "fixed", *map(Identity, inputs.fixed)),
    )
    return Key.of((*parts, *inputs.held.key), PACKAGES)


def _written(traced: Traced, key: Key) -> Mapping[str, Any] | None:
    numbers = {id(tensor): k for k, tensor in enumerate(key.tensors)}
    slots = []
    for slot in traced.slots:
        source = slot.source
        if isinstance(source, str):
            kept_as: Any = source
        elif id(source) in numbers:
            kept_as = numbers[id(source)]
        elif source.requires_grad or source.numel() > _MOST_VALUES:
            return None
        else:
            kept_as = [list(source.shape), source.detach().double().flatten().tolist()]
        slots.append([kept_as, slot.size, slot.wanted, slot.own, slot.held])
    return {
        "source": traced.source,
        "slots": slots,
        "own_names": list(traced.own_names),
        "timed_sizes": list(traced.timed_sizes),
    }


def _read(found: Mapping[str, Any], key: Key, like: Tensor) -> Traced:
    slots = []
    for kept_as, *rest in found["slots"]:
        source: Any = kept_as
        if isinstance(kept_as, int):
            source = key.tensors[kept_as]
        elif isinstance(kept_as, list):
            shape, values = kept_as
            source = torch.tensor(values, dtype=like.dtype, device=like.device).reshape(shape)
        slots.append(Slot(source, *rest))
    return Traced(found["source"], slots, found["own_names"], found["timed_sizes"], from_disk=True)
