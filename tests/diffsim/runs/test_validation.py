"""Evaluations while a policy is trained."""

import pytest
import torch
from torch import nn

import diffsim
from diffsim.policy import MLP, evaluating
from diffsim.rollouts.native import Native
from solvers.compiler.trace import NativeUnsupportedError
from solvers.native import build


class Own(nn.Linear):
    """Nobody knows whether it reads the mode."""


def test_evaluations_use_the_kernel_of_training(tmp_path, monkeypatch):
    try:
        build._toolchain()
    except NativeUnsupportedError:
        pytest.skip("no C++ compiler")
    prepared, prepare = [], Native.prepare.__func__

    def counted(cls, inputs, gradient):
        prepared.append(gradient)
        return prepare(cls, inputs, gradient)

    monkeypatch.setattr(Native, "prepare", classmethod(counted))
    file = diffsim.train(
        "pendulum",
        out=tmp_path,
        updates=4,
        doublings=0,
        backend="native",
        evaluation={"every": 2, "episodes": 8},
        quiet=True,
    )
    assert prepared == [True]
    returns = torch.tensor(file.history()["return"])
    assert int((~returns.isnan()).sum()) == 2


@pytest.mark.parametrize(
    "module", [nn.BatchNorm1d(3), nn.Dropout(0.5), Own(3, 3)], ids=lambda m: type(m).__name__
)
def test_measuring_is_done_in_evaluation_mode(module):
    policy = nn.Sequential(nn.Linear(3, 3), module)
    with evaluating(policy):
        assert not module.training
        assert not policy.training
    assert module.training
    assert policy.training


@pytest.mark.parametrize("activation", ["tanh", "relu", "elu", "silu"])
def test_where_the_mode_changes_nothing_it_is_not_changed(activation):
    policy = MLP(3, 2, (4,), activation)
    with evaluating(policy):
        assert all(module.training for module in policy.modules())
    x = torch.rand(5, 3)
    assert torch.equal(policy(x), policy.eval()(x))
