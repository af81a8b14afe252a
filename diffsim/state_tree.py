"""Nested states (tensors, numbers, strings, None in dicts and lists) in HDF5, bit for bit, without pickle.

A state is a group of two datasets: ``data``, the bytes of all tensors one after the other, and ``index``, a JSON text::

    entry = number | string | true | false | null
          | {"tensor": [dtype, shape, start]}            start: where its bytes begin in data
          | {"dict": [[key, entry], ...]} | {"list": [entry, ...]} | {"tuple": [entry, ...]}

Files of format version 1 hold a group or dataset for every entry instead, which took 20 times as long to write; they
are still read.
"""

from __future__ import annotations

import json
import math
from typing import Any

import h5py
import numpy as np
import torch

_ALIGNED = 16
"""Bytes that the place of a tensor is a multiple of: as many as one number has at most."""


def write(parent: h5py.Group, name: str, value: Any) -> None:
    """Store ``value`` as ``parent[name]``.

    Raises:
        TypeError: a value of another type; the message says where.
    """
    parts: list[np.ndarray] = []
    index = _packed(value, f"{parent.name.rstrip('/')}/{name}", parts, [0])
    group = parent.create_group(name)
    group.attrs["kind"] = "packed"
    group.create_dataset("index", data=json.dumps(index, separators=(",", ":")))
    group.create_dataset("data", data=np.concatenate(parts) if parts else np.empty(0, np.uint8))


def _packed(value: Any, where: str, parts: list[np.ndarray], size: list[int]) -> Any:
    """The index's entry of a value, whose numbers are appended to ``parts``, ``size[0]`` bytes so far."""
    if isinstance(value, torch.Tensor):
        # An empty tensor may keep any strides, which cannot be viewed as bytes.
        value = (
            value.detach().cpu().contiguous() if value.numel() else value.new_empty(value.shape, device="cpu")
        )
        numbers = value.reshape(-1).view(torch.uint8).numpy()
        start = size[0]
        gap = -numbers.size % _ALIGNED
        parts += (numbers, np.zeros(gap, np.uint8))
        size[0] += numbers.size + gap
        return {"tensor": [str(value.dtype).removeprefix("torch."), list(value.shape), start]}
    if isinstance(value, dict):
        # Pairs, because keys of optimizer states are integers, and those of JSON's objects are strings.
        entries = enumerate(value.items())
        return {
            "dict": [
                [_scalar(key, where), _packed(q, f"{where}/{i}", parts, size)] for i, (key, q) in entries
            ]
        }
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_packed(entry, f"{where}/{i}", parts, size) for i, entry in enumerate(value)]}
    return _scalar(value, where)


def read(node: h5py.Group | h5py.Dataset) -> Any:
    """What :func:`write` stored, tensors on the CPU."""
    if node.attrs["kind"] != "packed":
        return _read_entries(node)
    return _unpacked(json.loads(node["index"][()]), node["data"][()].tobytes())


def _unpacked(entry: Any, data: bytes) -> Any:
    if not isinstance(entry, dict):
        return entry
    ((kind, held),) = entry.items()
    if kind == "tensor":
        name, shape, start = held
        dtype = getattr(torch, name)
        count = math.prod(shape)
        if not count:
            return torch.empty(shape, dtype=dtype)
        # A copy of its own: what is resumed from it must not keep the whole state in memory.
        numbers = bytearray(data[start : start + count * dtype.itemsize])
        return torch.frombuffer(numbers, dtype=dtype, count=count).reshape(shape)
    if kind == "dict":
        return {key: _unpacked(q, data) for key, q in held}
    values = [_unpacked(q, data) for q in held]
    return {"list": values, "tuple": tuple(values)}[kind]


def _read_entries(node: h5py.Group | h5py.Dataset) -> Any:
    """A state of format version 1: tensors and numbers are datasets, dicts and lists groups of numbered entries."""
    kind = node.attrs["kind"]
    if kind == "tensor":
        tensor = torch.from_numpy(np.asarray(node[()]))
        # HDF5 has no bfloat16; its bits travelled as int16.
        return tensor.view(torch.bfloat16) if node.attrs["dtype"] == "bfloat16" else tensor
    if kind == "scalar":
        return json.loads(node[()])
    entries = [node[str(i)] for i in range(len(node))]
    if kind == "dict":
        return {json.loads(entry.attrs["key"]): _read_entries(entry) for entry in entries}
    values = [_read_entries(entry) for entry in entries]
    return values if kind == "list" else tuple(values)


def _scalar(value: Any, where: str) -> Any:
    # JSON's shortest repr of a float reads back as the same bits; inf and nan pass as extensions.
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(
        f"cannot store a {type(value).__name__} at {where}; a state holds tensors, "
        "numbers, strings, None, dicts and lists"
    )
