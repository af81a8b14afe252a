"""Optimizers by name, and the smallest objectives, for the tests of optimizers."""

import io

import h5py
import torch
from torch import nn

from diffsim import state_tree
from diffsim.config import Named
from diffsim.optimizers import (
    Objective,
    make_optimizer,
)


def build(name, parameters, seed=0, **options):
    return make_optimizer(parameters, Named(name=name, **options), seed)


def vector(*values, dtype=torch.float64):
    return nn.Parameter(torch.tensor(values, dtype=dtype))


def sphere(parameter, centre=0.0):
    """The squared distance to ``centre``, for optimizers of every kind."""
    return Objective.of(
        [parameter], lambda: ((parameter - centre) ** 2).sum(), lambda c: ((c - centre) ** 2).sum(1)
    )


def stored_and_read(state):
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", track_order=True) as file:
        state_tree.write(file, "state", state)
    with h5py.File(buffer, "r") as file:
        return state_tree.read(file["state"])
