"""torch's optimizers without the decorators that load its compiler: the same bits."""

import subprocess
import sys

import pytest
import torch
from same_state import same

from diffsim.optimizers.first_order import optimizer_classes
from diffsim.optimizers.torch_classes import undecorated

CLASSES = {**optimizer_classes(), "lbfgs": torch.optim.LBFGS}


def trained(kind, steps=6, state=None):
    """Parameters and state after some steps on a small regression, from a stored state if given."""
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(3, 2)
    with torch.no_grad():
        for q in layer.parameters():
            q.copy_(torch.randn(q.shape, generator=generator))
    x, y = torch.randn(8, 3, generator=generator), torch.randn(8, 2, generator=generator)
    optimizer = kind(layer.parameters(), lr=0.05)
    if state is not None:
        optimizer.load_state_dict(state)

    def closure():
        optimizer.zero_grad()
        loss = (layer(x) - y).square().mean()
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)
    return [q.detach() for q in layer.parameters()], optimizer.state_dict()


@pytest.mark.parametrize("name", CLASSES)
def test_steps_and_states_are_the_same_to_the_last_bit(name):
    kind = CLASSES[name]
    ours, theirs = trained(undecorated(kind)), trained(kind)
    assert same(ours, theirs)
    again = trained(undecorated(kind), state=ours[1]), trained(kind, state=theirs[1])
    assert same(*again)
    assert not ours[1]["state"] or not same(again[0][0], ours[0])  # the stored state had a part in it


def test_it_is_one_subclass_that_looks_like_the_class():
    kind = undecorated(torch.optim.Adam)
    assert kind is undecorated(torch.optim.Adam)
    assert issubclass(kind, torch.optim.Adam)
    assert repr(kind([torch.nn.Parameter(torch.zeros(1))])).startswith("Adam (")


def test_no_gradient_is_recorded_and_hooks_are_called():
    layer, seen = torch.nn.Linear(2, 1), []
    optimizer = undecorated(torch.optim.SGD)(layer.parameters(), lr=0.1)
    optimizer.register_step_post_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert len(seen) == 1
    assert torch.is_grad_enabled()
    assert all(q.is_leaf for q in layer.parameters())


def test_a_class_of_somebody_else_is_left_alone():
    class Mine(torch.optim.Adam):
        pass

    assert undecorated(Mine) is Mine


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs", "sgd"])
def test_a_training_does_not_load_torchs_compiler(optimizer, tmp_path):
    """Which takes as long as loading torch."""
    code = (
        "import sys, diffsim\n"
        f"diffsim.train('pendulum', out='run', updates=2, optimizer={optimizer!r}, quiet=True,\n"
        "              evaluation={'episodes': 2}, algorithm={'batch': 8})\n"
        "assert 'torch' in sys.modules and 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
