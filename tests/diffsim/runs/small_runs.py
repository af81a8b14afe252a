"""Short trainings that several tests make."""

import torch

import diffsim
from diffsim.runs.runfile import RunFile

SMALL = {"evaluation": {"every": 2, "episodes": 3}, "algorithm": {"batch": 16}, "quiet": True}


def train(out, env="pendulum", **settings):
    return diffsim.train(env, out=out, **{**SMALL, "updates": 4, **settings})


def weights(run, name="last"):
    return RunFile(run).checkpoint(name)["policy"]


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
