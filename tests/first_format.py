"""States as run files of format version 1 hold them: written here only, to test that they are still read."""

import json
from typing import Any

import h5py
import torch


def write_entry_by_entry(parent: h5py.Group, name: str, value: Any) -> None:
    """A dataset for every tensor and number, a group for every dict and list."""
    if isinstance(value, torch.Tensor):
        bits = value.detach().cpu().contiguous()
        if value.dtype == torch.bfloat16:
            bits = bits.view(torch.int16)
        node = parent.create_dataset(name, data=bits.numpy())
        node.attrs["kind"] = "tensor"
        node.attrs["dtype"] = str(value.dtype).removeprefix("torch.")
    elif isinstance(value, dict):
        node = parent.create_group(name)
        node.attrs["kind"] = "dict"
        for i, (key, entry) in enumerate(value.items()):
            write_entry_by_entry(node, str(i), entry)
            node[str(i)].attrs["key"] = json.dumps(key)
    elif isinstance(value, (list, tuple)):
        node = parent.create_group(name)
        node.attrs["kind"] = "list" if isinstance(value, list) else "tuple"
        for i, entry in enumerate(value):
            write_entry_by_entry(node, str(i), entry)
    else:
        node = parent.create_dataset(name, data=json.dumps(value))
        node.attrs["kind"] = "scalar"
