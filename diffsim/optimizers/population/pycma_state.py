"""The state of a pycma optimizer as plain numbers and arrays; pycma itself offers only pickle.

``snapshot`` visits every object of pycma that is reachable from the optimizer and stores those of its attributes
that are numbers, strings, arrays, or lists or dicts of these, by their dotted path.  An array that two attributes
share (such as the covariance matrix) is stored once and shared again after loading.  ``restore`` writes the stored
values into a new optimizer with the same options.  Attributes without state of the search are skipped: options,
logs, clocks, archives of evaluated points.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

import cma
import numpy as np
import torch

_NOT_STATE = {
    "inputargs", "inopts", "opts", "logger", "timer", "more_to_write", "archive", "sent_solutions",
    "_injected_solutions_archive", "_tell2_args", "_stopdict", "_round_integer_variables", "gp", "boundary_handler",
    "best", "ary", "pop", "pop_sorted", "randn", "eigenmethod", "_es_opts",
}  # fmt: skip
_SHARED, _PAIRS, _OBJECT = "same array as", "pairs", "object of"


def snapshot(optimizer: Any) -> dict[str, Any]:
    """The state by dotted path; arrays become tensors."""
    state: dict[str, Any] = {}
    arrays: dict[int, str] = {}
    for path, value in _walk(optimizer):
        if isinstance(value, np.ndarray):
            first = arrays.setdefault(id(value), path)
            state[path] = torch.from_numpy(value.copy()) if first == path else {_SHARED: first}
        elif _plain(value):
            state[path] = _packed(value)
        else:
            state[path] = {_OBJECT: f"{type(value).__module__}:{type(value).__qualname__}"}
    return state


def restore(optimizer: Any, state: dict[str, Any]) -> None:
    """Write the state into a new optimizer with the same options."""
    if not hasattr(optimizer, "timer"):  # pycma creates it at the first step
        optimizer.timer = cma.utilities.utils.ElapsedWCTime()
    arrays: dict[str, np.ndarray] = {}
    for path, value in state.items():
        *way, name = path.split(".")
        holder = functools.reduce(getattr, way, optimizer).__dict__
        if isinstance(value, torch.Tensor):
            arrays[path] = holder[name] = value.numpy().copy()
        elif isinstance(value, dict) and _SHARED in value:
            holder[name] = arrays[value[_SHARED]]
        elif isinstance(value, dict) and _OBJECT in value:
            if name not in holder:  # pycma created it during the search
                holder[name] = _bare(value[_OBJECT])
        else:
            holder[name] = _unpacked(value)


def _bare(path: str) -> Any:
    """A new object of pycma's class at ``path``, without attributes."""
    module, _, name = path.partition(":")
    if not module.startswith("cma."):
        raise ValueError(f"the state of CMA-ES holds an object of {path!r}, which is not pycma's")
    kind = getattr(importlib.import_module(module), name)
    return kind.__new__(kind)


def _walk(root: Any) -> list[tuple[str, Any]]:
    """Plain attributes and objects of pycma reachable from ``root``, by path; objects come before their attributes."""
    found: list[tuple[str, Any]] = []
    seen = {id(root)}
    waiting = [("", root)]
    while waiting:
        prefix, holder = waiting.pop()
        for name, value in vars(holder).items():
            own = type(value).__module__.startswith("cma.") and hasattr(value, "__dict__")
            if name in _NOT_STATE or isinstance(value, type):
                continue
            if _plain(value):
                found.append((prefix + name, value))
            elif (
                own and not isinstance(value, (dict, list)) and not callable(value) and id(value) not in seen
            ):
                seen.add(id(value))
                found.append((prefix + name, value))
                waiting.append((f"{prefix}{name}.", value))
    return found


def _plain(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype != object
    if type(value) in (list, tuple):
        return all(map(_plain, value))
    if type(value) is dict:
        return all(_plain(k) and _plain(v) for k, v in value.items())
    return value is None or isinstance(value, (bool, int, float, str, np.generic))


def _packed(value: Any) -> Any:
    if isinstance(value, dict):
        return {_PAIRS: [[_packed(k), _packed(v)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        return [_packed(v) for v in value]
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    return value.item() if isinstance(value, np.generic) else value


def _unpacked(value: Any) -> Any:
    if isinstance(value, dict):
        keys = [tuple(k) if isinstance(k, list) else k for k, _ in value[_PAIRS]]
        return dict(zip(keys, (_unpacked(v) for _, v in value[_PAIRS]), strict=True))
    if isinstance(value, list):
        return [_unpacked(v) for v in value]
    return value.numpy().copy() if isinstance(value, torch.Tensor) else value
