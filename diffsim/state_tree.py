"""Nested states (tensors, numbers, strings, None in dicts and lists) in HDF5, bit for bit, without pickle."""

from __future__ import annotations

import json
from typing import Any

import h5py
import numpy as np
import torch

# HDF5 has no bfloat16; its bits travel as int16.
_AS_BITS = {torch.bfloat16: torch.int16}


def write(parent: h5py.Group, name: str, value: Any) -> None:
    """Store ``value`` as ``parent[name]``.

    Raises:
        TypeError: a value of another type; the message says where.
    """
    if isinstance(value, torch.Tensor):
        bits = value.detach().cpu().contiguous()
        if value.dtype in _AS_BITS:
            bits = bits.view(_AS_BITS[value.dtype])
        node = parent.create_dataset(name, data=bits.numpy())
        node.attrs["kind"] = "tensor"
        node.attrs["dtype"] = str(value.dtype).removeprefix("torch.")
    elif isinstance(value, dict):
        node = parent.create_group(name)
        node.attrs["kind"] = "dict"
        # Keys of optimizer states are integers, and any string may hold a slash: number the
        # entries and keep the keys beside them.
        for i, (key, entry) in enumerate(value.items()):
            write(node, str(i), entry)
            node[str(i)].attrs["key"] = _scalar(key, node.name)
    elif isinstance(value, (list, tuple)):
        node = parent.create_group(name)
        node.attrs["kind"] = "list" if isinstance(value, list) else "tuple"
        for i, entry in enumerate(value):
            write(node, str(i), entry)
    else:
        node = parent.create_dataset(name, data=_scalar(value, f"{parent.name}/{name}"))
        node.attrs["kind"] = "scalar"


def read(node: h5py.Group | h5py.Dataset) -> Any:
    """What :func:`write` stored, tensors on the CPU."""
    kind = node.attrs["kind"]
    if kind == "tensor":
        dtype = getattr(torch, node.attrs["dtype"])
        tensor = torch.from_numpy(np.asarray(node[()]))
        return tensor.view(dtype) if dtype in _AS_BITS else tensor
    if kind == "scalar":
        return json.loads(node[()])
    entries = [node[str(i)] for i in range(len(node))]
    if kind == "dict":
        return {json.loads(entry.attrs["key"]): read(entry) for entry in entries}
    values = [read(entry) for entry in entries]
    return values if kind == "list" else tuple(values)


def _scalar(value: Any, where: str) -> str:
    # JSON's shortest repr of a float reads back as the same bits; inf and nan pass as extensions.
    if value is None or isinstance(value, (bool, int, float, str)):
        return json.dumps(value)
    raise TypeError(
        f"cannot store a {type(value).__name__} at {where}; a state holds tensors, "
        "numbers, strings, None, dicts and lists"
    )
