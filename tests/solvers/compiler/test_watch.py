"""Fingerprints that are watched are those that are taken anew, whatever is changed, by whatever way."""

import collections
import functools
import types

import numpy as np
import pytest
import torch
from torch import nn

from solvers.compiler.fingerprint import Fingerprints, fingerprint
from solvers.compiler.watch import available
from solvers.native import build

pytestmark = pytest.mark.skipif(not available(build.load), reason="no C++ compiler")


class Base:
    inherited = 1.0


class Part(Base):
    __slots__ = ("empty", "slot")
    factor = 1.0

    def __init__(self):
        self.slot = 1.0
        self.number, self.text = 1.0, "a"

    def method(self, x, *, gain=1.0):
        return gain * self.factor * x


class OtherPart(Part):
    __slots__ = ()


class Ordered(dict):
    """A mapping with an order of its own."""

    def __init__(self, *given):
        super().__init__(*given)
        self.backwards = False

    def items(self):
        return reversed([*super().items()]) if self.backwards else super().items()


class Policy(nn.Module):
    scale = 1.0

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Dropout(0.5))
        self.register_buffer("offset", torch.zeros(2))
        self.limits = [1.0, 2.0]


def closed_over(a):
    def function(x):
        return a * x

    def put(value):
        nonlocal a
        a = value

    function.put = put
    return function


def plain(x, y=1.0, *, z=2.0):
    return x


class Held:
    def __init__(self):
        self.part = Part()
        self.parts = [Part(), [1.0, {"deep": (Part(), [5.0])}]]
        self.table = {"a": 1.0, "b": 2.0}
        self.ordered = Ordered({"a": 1.0, "b": 2.0})
        self.queue = collections.OrderedDict(a=1.0, b=2.0)
        self.chosen = {1.0, 2.0}
        self.view = types.MappingProxyType(self.table)
        self.chain = collections.ChainMap({"a": 1.0}, {"b": 2.0})
        self.array = np.array([1.0, 2.0])
        self.objects = np.array([1.0, [2.0]], dtype=object)
        self.whole, self.mask = torch.tensor([1, 2]), torch.tensor([True, False])
        self.source = np.array([1, 2])
        with torch.inference_mode():
            self.frozen = torch.tensor([1, 2])
        self.real = torch.tensor([1.0, 2.0])
        self.closure = closed_over(1.0)
        self.function = types.FunctionType(plain.__code__, {}, "plain", (1.0,))
        self.function.__kwdefaults__ = {"z": 2.0}
        self.function.table = [1.0]
        self.partial = functools.partial(plain, [1.0], z={"k": 1.0})
        self.bound = self.part.method
        self.policy = Policy()


def swap_dict(h):
    h.part.__dict__ = {**vars(h.part), "number": 2.0}


def swap_code(h):
    h.function.__code__ = (lambda x, y=1.0, *, z=2.0: -x).__code__


def frozen_in_place(h):
    with torch.inference_mode():
        h.frozen.add_(1)


CHANGES = {
    "an attribute": lambda h: setattr(h.part, "number", 2.0),
    "an attribute, equal but of another type": lambda h: setattr(h.part, "number", 1),
    "the sign of zero": lambda h: setattr(h.part, "number", -0.0),
    "an attribute past __setattr__": lambda h: vars(h.part).update(number=2.0),
    "a new attribute": lambda h: setattr(h.part, "fresh", 1.0),
    "an attribute that is deleted": lambda h: delattr(h.part, "number"),
    "an attribute under another name": lambda h: vars(h.part).update(other=vars(h.part).pop("text")),
    "all attributes": swap_dict,
    "the class": lambda h: setattr(h.part, "__class__", OtherPart),
    "a slot": lambda h: setattr(h.part, "slot", 2.0),
    "an empty slot": lambda h: setattr(h.part, "empty", 2.0),
    "a slot that is deleted": lambda h: delattr(h.part, "slot"),
    "an attribute of the class": lambda h: setattr(Part, "factor", 2.0),
    "an attribute of a base class": lambda h: setattr(Base, "inherited", 2.0),
    "a method of the class": lambda h: setattr(Part, "method", lambda self, x: x),
    "a new attribute of the class": lambda h: setattr(Part, "fresh", 2.0),
    "a default of a method": lambda h: Part.method.__kwdefaults__.update(gain=2.0),
    "an item of a list": lambda h: h.parts[1].__setitem__(0, 2.0),
    "a longer list": lambda h: h.parts.append(1.0),
    "an item that moves to another list": lambda h: h.parts.insert(0, h.parts[1].pop(0)),
    "the order of a list": lambda h: h.parts.reverse(),
    "something deep": lambda h: h.parts[1][1]["deep"][1].__setitem__(0, 6.0),
    "an attribute of something deep": lambda h: setattr(h.parts[1][1]["deep"][0], "number", 6.0),
    "a value of a dict": lambda h: h.table.update(a=3.0),
    "a key of a dict": lambda h: h.table.update(c=h.table.pop("b")),
    "the order of a dict": lambda h: h.table.update(a=h.table.pop("a")),
    "a dict behind a read-only view": lambda h: h.table.update(new=1.0),
    "an order of a mapping's own": lambda h: setattr(h.ordered, "backwards", True),
    "an ordered dict": lambda h: h.queue.move_to_end("a"),
    "a set": lambda h: h.chosen.add(3.0),
    "a mapping that is no dict": lambda h: h.chain.maps[1].update(b=3.0),
    "an array in place": lambda h: h.array.__setitem__(0, 5.0),
    "an array's shape": lambda h: setattr(h.array, "shape", (2, 1)),
    "an array of objects": lambda h: h.objects.__setitem__(0, 5.0),
    "an object in an array": lambda h: h.objects[1].append(5.0),
    "whole numbers in place": lambda h: h.whole.add_(1),
    "truths in place": lambda h: h.mask.logical_not_(),
    "other data of whole numbers": lambda h: setattr(h.whole, "data", torch.tensor([5, 6])),
    "whole numbers made in inference mode": frozen_in_place,
    "another tensor": lambda h: setattr(h, "real", torch.tensor([1.0, 2.0])),
    "a tensor's shape": lambda h: h.real.resize_(2, 1),
    "a tensor's precision": lambda h: setattr(h.real, "data", h.real.double()),
    "a variable of a closure": lambda h: h.closure.put(2.0),
    "a function's code": swap_code,
    "a function's default": lambda h: setattr(h.function, "__defaults__", (5.0,)),
    "a function's keyword default": lambda h: h.function.__kwdefaults__.update(z=5.0),
    "a function's keyword defaults": lambda h: setattr(h.function, "__kwdefaults__", {"z": 5.0}),
    "a function's attribute": lambda h: setattr(h.function, "fresh", 1.0),
    "something in a function's attribute": lambda h: h.function.table.append(1.0),
    "an argument of a partial function": lambda h: h.partial.args[0].append(1.0),
    "a keyword of a partial function": lambda h: h.partial.keywords["z"].update(k=2.0),
    "a layer": lambda h: h.policy.layers.__setitem__(1, nn.Sigmoid()),
    "a layer past the module": lambda h: h.policy.layers._modules.update({"1": nn.Sigmoid()}),
    "a layer that is deleted": lambda h: h.policy.layers.__delitem__(1),
    "the mode of a module": lambda h: h.policy.eval(),
    "an option of a layer": lambda h: setattr(h.policy.layers[2], "p", 0.25),
    "a list of a module": lambda h: h.policy.limits.append(3.0),
    "a parameter": lambda h: setattr(h.policy.layers[0], "bias", nn.Parameter(torch.ones(2))),
    "a parameter that is None": lambda h: setattr(h.policy.layers[0], "bias", None),
    "a buffer": lambda h: setattr(h.policy, "offset", torch.ones(2)),
    "the precision of a module": lambda h: h.policy.double(),
    "a hook": lambda h: h.policy.layers[0].register_forward_hook(lambda *_: None),
    "a hook before": lambda h: h.policy.register_forward_pre_hook(lambda *_: None),
    "a number of a module's class": lambda h: setattr(Policy, "scale", 2.0),
    "the forward function of a module's class": lambda h: setattr(Policy, "forward", plain),
    "the class of a module": lambda h: setattr(h.policy.layers[1], "__class__", nn.ReLU),
}


@pytest.fixture
def classes(monkeypatch):
    """Changes of classes are undone."""
    for kind in (Base, Part, Policy):
        for name in ("inherited", "factor", "method", "scale"):
            if name in vars(kind):
                monkeypatch.setattr(kind, name, vars(kind)[name])
    method = Part.method
    yield
    method.__kwdefaults__["gain"] = 1.0
    for kind, name in ((Part, "fresh"), (Policy, "forward")):
        if name in vars(kind):
            delattr(kind, name)


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_seen(name, classes):
    held = Held()
    held.part.number = 0.0 if name == "the sign of zero" else held.part.number
    kept = Fingerprints(load=build.load)
    before = kept.of(held)
    assert kept.of(held) is before  # it has not walked again
    assert before.key == fingerprint(held)
    CHANGES[name](held)
    after = kept.of(held)
    assert after != before
    assert after.key == fingerprint(held)
    assert kept.of(held) is after


def test_numbers_that_are_read_at_run_time_may_change():
    held, kept = Held(), Fingerprints(load=build.load)
    before = kept.of(held)
    with torch.no_grad():
        held.real.add_(1.0)
        held.policy.layers[0].weight.zero_()
        held.policy.offset.fill_(3.0)
    assert kept.of(held) is before


def test_what_changes_to_and_fro_is_walked_over_once(monkeypatch):
    policy, kept = Policy(), Fingerprints(load=build.load)
    training = kept.of(policy)
    policy.eval()
    evaluated = kept.of(policy)
    assert evaluated != training
    monkeypatch.setattr("solvers.compiler.fingerprint._Collected", None)
    for mode, held in ((True, training), (False, evaluated), (True, training)):
        policy.train(mode)
        assert kept.of(policy) is held


def test_an_equal_change_finds_the_earlier_key():
    held, kept = Held(), Fingerprints(load=build.load)
    before = kept.of(held)
    held.part.number = float("1.0")  # another object of the same value
    held.table["a"] = float("1.0")
    after = kept.of(held)
    assert after is before
    assert kept.of(held) is before


def test_other_objects_have_their_own():
    one, two, kept = Held(), Held(), Fingerprints(load=build.load)
    assert kept.of(one) != kept.of(two)
    assert kept.of(one, two) != kept.of(two, one)
    assert kept.of(one).values == (one,)


def test_a_value_that_is_freed_cannot_come_back_as_another():
    """A number made at the address of a freed one would look unchanged."""
    held, kept = Part(), Fingerprints(load=build.load)
    held.number = float("1.5")
    before = kept.of(held)
    for k in range(100):
        held.number = None
        held.number = float(f"{k}.25")
        assert kept.of(held) != before


def no_compiler(source):
    raise build.NoCompilerError("none")


@pytest.mark.parametrize("load", [None, no_compiler])
def test_without_a_compiler_everything_is_walked_over_each_time(load):
    held, kept = Held(), Fingerprints(load=load)
    before = kept.of(held)
    assert kept.of(held) is not before
    assert kept.of(held) == before
    held.part.number = 2.0
    assert kept.of(held) != before
