"""The key of a kernel changes with everything that is compiled in, and with nothing else."""

import functools
import types

import numpy as np
import pytest
import torch
from torch import nn

from solvers import solve
from solvers.compiler.fingerprint import fingerprint

F64 = torch.float64


class Held:
    scale = 1.0

    def __init__(self):
        self.rate = 2.0
        self.table = {"a": [1.0, 2.0], "b": (3.0,)}
        self.array = np.array([1.0, 2.0])
        self.net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
        self.whole = torch.tensor([1, 2])

    def field(self, t, x, u, p):
        return -self.rate * x

    @staticmethod
    def factor(a):
        return a


class Slotted:
    __slots__ = ("rate",)

    def __init__(self):
        self.rate = 1.0


def halved(a):
    return a / 2


CHANGES = {
    "a number": lambda h: setattr(h, "rate", 3.0),
    "the sign of zero": lambda h: setattr(h, "rate", -0.0),
    "a type": lambda h: setattr(h, "rate", 2),
    "a number of the class": lambda h: setattr(Held, "scale", 5.0),
    "a list": lambda h: h.table["a"].append(3.0),
    "a key": lambda h: h.table.update(c=1),
    "an array in place": lambda h: h.array.__setitem__(0, 9.0),
    "a mode of a module": lambda h: h.net.eval(),
    "an option of a module": lambda h: setattr(h.net[1], "p", 0.25),
    "a parameter's object": lambda h: setattr(h.net[0], "bias", nn.Parameter(torch.ones(2))),
    "a hook": lambda h: h.net.register_forward_hook(lambda *_: None),
    "whole numbers in place": lambda h: h.whole.add_(1),
    "a static method": lambda h: setattr(Held, "factor", staticmethod(halved)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_seen(name):
    held = Held()
    scale, factor = Held.scale, Held.__dict__["factor"]
    held.rate = 0.0 if name == "the sign of zero" else held.rate
    try:
        before = fingerprint(held.field)
        assert fingerprint(held.field) == before
        assert hash(fingerprint(held.field)) == hash(before)
        CHANGES[name](held)
        assert fingerprint(held.field) != before
    finally:
        Held.scale, Held.factor = scale, factor


def test_weights_are_read_at_run_time():
    held = Held()
    before = fingerprint(held)
    with torch.no_grad():
        held.net[0].weight.add_(1.0)
    assert fingerprint(held) == before


def rate(c, *, scale=1.0):
    return lambda t, x, u, p, power=[1.0]: -c * scale * x  # a default that is changed


def test_functions_by_their_code_and_what_they_hold():
    one = fingerprint(rate(1.0))
    assert fingerprint(rate(1.0)) == one
    assert fingerprint(rate(2.0)) != one
    assert fingerprint(rate(1.0, scale=2.0)) != one
    f = rate(1.0)
    f.__defaults__[0].append(2.0)
    assert fingerprint(f) != one
    f.__defaults__[0].pop()
    f.gain = 3.0
    assert fingerprint(f) != one


def test_partial_functions_slots_and_foreign_objects():
    assert fingerprint(functools.partial(halved, 1.0)) == fingerprint(functools.partial(halved, 1.0))
    assert fingerprint(functools.partial(halved, 1.0)) != fingerprint(functools.partial(halved, 2.0))
    assert fingerprint(functools.partial(halved, a=1.0)) != fingerprint(functools.partial(halved, a=2.0))
    slotted = Slotted()
    before = fingerprint(slotted)
    slotted.rate = 2.0
    assert fingerprint(slotted) != before
    assert fingerprint(torch.Generator()) != fingerprint(torch.Generator())
    nan = types.SimpleNamespace(value=float("nan"))
    assert fingerprint(nan) == fingerprint(nan)


def test_knowledge_of_other_packages_is_passed_in():
    class Opaque:
        def __init__(self, number):
            self.number = number

    one = Opaque(1)
    before = fingerprint(one, opaque=lambda v: isinstance(v, Opaque))
    one.number = 2
    assert fingerprint(one, opaque=lambda v: isinstance(v, Opaque)) == before
    assert fingerprint(Opaque(2), opaque=lambda v: isinstance(v, Opaque)) != before


def end(f, p=None):
    x0 = torch.ones(2, 1, dtype=F64)
    return solve(f, x0, [0.0, 1.0], None, p, backend="native", adjoint="checkpoint").xs[-1, 0, 0].item()


def test_solves_see_what_changes():
    """Lists, nested objects, keyword defaults and whole numbers, which the shallow key of earlier versions missed."""
    settings = {"rates": [1.0, 0.5]}
    index = torch.tensor([0])

    def field(t, x, u, p, *, factor=settings):
        return -settings["rates"][0] * x

    def chosen(t, x, u, p):
        return -torch.tensor([1.0, 2.0], dtype=F64)[index] * x

    assert end(field) == pytest.approx(np.exp(-1), rel=1e-4)
    settings["rates"][0] = 2.0
    assert end(field) == pytest.approx(np.exp(-2), rel=1e-4)
    assert end(chosen) == pytest.approx(np.exp(-1), rel=1e-4)
    index.fill_(1)
    assert end(chosen) == pytest.approx(np.exp(-2), rel=1e-4)
