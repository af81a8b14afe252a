"""What traces became, on disk: known by content, written whole, done without where it cannot be."""

import functools
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from solvers.compiler import limits
from solvers.compiler.fingerprint import fingerprint
from solvers.native import build, traces
from solvers.native import function as functions
from solvers.native.function import FunctionKernel
from solvers.native.traces import Key, kept

PACKAGES = ("solvers", "lazy_registry")


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFSIM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(traces.SWITCH, raising=False)
    return tmp_path / "cache"


def digest(*values, packages=PACKAGES):
    key = Key.of(fingerprint(*values), packages)
    return None if key is None else key.digest


def test_equal_content_has_one_key():
    first = digest("field", 3, 0.1, [1, 2], {"a": torch.ones(2)}, torch.float32)
    assert first is not None
    assert first == digest("field", 3, 0.1, [1, 2], {"a": torch.zeros(2)}, torch.float32)
    others = [
        digest("field", 3, 0.1, [1, 2], {"a": torch.ones(3)}, torch.float32),
        digest("field", 3, 0.1, [1, 2], {"a": torch.ones(2).double()}, torch.float32),
        digest("field", 3, 0.1, [1, 2], {"a": torch.ones(2, requires_grad=True)}, torch.float32),
        digest("field", 3, 0.1, [1, 3], {"a": torch.ones(2)}, torch.float32),
        digest("field", 3.0, 0.1, [1, 2], {"a": torch.ones(2)}, torch.float32),
        digest("field", 3, 0.1, [1, 2], {"b": torch.ones(2)}, torch.float32),
        digest("field", 3, 0.1, [1, 2], {"a": torch.ones(2)}, torch.float64),
    ]
    assert len({first, *others}) == 8


def test_one_tensor_twice_is_not_two_tensors():
    a, b = torch.ones(2), torch.ones(2)
    assert digest(a, a) != digest(a, b) == digest(b, a)


def test_functions_and_classes_of_the_packages_are_known_others_are_not():
    assert digest(kept) is not None
    assert digest(kept) != digest(traces.keep)
    assert digest(kept, packages=("lazy_registry",)) is None
    assert digest(lambda: 0) is None
    assert digest(test_equal_content_has_one_key) is None
    assert digest(torch.arange(3)) is None  # a trace reads its numbers
    assert digest(1, packages=("no_such_package",)) is None


def test_a_key_depends_on_what_functions_read_from_their_modules(monkeypatch):
    """Also at the end of a chain of calls, and through the name of a module; not on what no function reads."""
    first = digest(functions.FunctionKernel.__init__)
    assert first is not None
    changes = [
        (limits, "MOST_LINES", 7),
        (functions, "_source", functions._refuse),
        (build, "FLAGS", ("-O1",)),
    ]
    digests = [first]
    for module, name, value in changes:
        assert hasattr(module, name)
        with monkeypatch.context() as m:
            m.setattr(module, name, value)
            digests.append(digest(functions.FunctionKernel.__init__))
    assert len(set(digests)) == len(digests)
    with monkeypatch.context() as m:
        m.setattr(functions, "_source", lambda *arguments: ("", 0))
        assert digest(functions.FunctionKernel.__init__) is None  # a function of nobody knows where
        assert digest(functions._refuse) is not None
        m.setattr(functions, "_source", functools.wraps(functions._refuse)(lambda *arguments: ("", 0)))
        assert digest(functions.FunctionKernel.__init__) is None
    assert digest(functions.FunctionKernel.__init__) == first


def test_nothing_is_kept_by_a_process_that_is_older_than_a_file(monkeypatch):
    """What it has loaded may not be what the file holds."""
    assert digest(kept) is not None
    newest = max(file.stat().st_mtime for file in Path(traces.__file__).parents[1].rglob("*.py"))
    for started, known in ((newest, False), (newest + 1, True)):
        traces._stamp.cache_clear()
        monkeypatch.setattr(traces, "_started", started)
        assert (digest(kept) is not None) is known
    traces._stamp.cache_clear()


def test_a_process_knows_when_it_began():
    read = "from lazy_registry.installation import process_started"
    program = f"import time; now = time.time(); {read}; print(now - process_started())"
    before = time.time()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert 0 <= float(done.stdout) <= time.time() - before + 0.2


def test_a_key_depends_on_the_files_of_the_packages(tmp_path, monkeypatch):
    package = tmp_path / "some_package"
    package.mkdir()
    source = package / "__init__.py"
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(traces, "_started", math.inf)
    found = []
    for text in ("a = 1\n", "a = 2\n", "a = 1\n"):
        source.write_text(text)
        sys.modules.pop("some_package", None)
        traces._stamp.cache_clear()
        traces._folders.cache_clear()
        found.append(digest("x", packages=("some_package",)))
    assert found[0] == found[2] != found[1]


def test_what_was_made_is_made_once(cache):
    calls = []

    def make():
        calls.append(1)
        return {"source": "é", "numbers": [1.5, float("inf"), 2**60]}

    key = Key.of(("x",), PACKAGES)
    assert kept(key, make) == kept(key, make) == make()
    assert len(calls) == 2
    assert kept(Key.of(("y",), PACKAGES), make) == make()
    assert len(calls) == 4
    assert sorted(p.suffix for p in cache.iterdir()) == [".trace", ".trace"]


def test_what_cannot_be_kept_is_made_every_time(cache, monkeypatch):
    assert kept(None, lambda: {"a": 1}) == {"a": 1}
    key = Key.of(("x",), PACKAGES)
    assert kept(key, lambda: None) is None
    assert not cache.exists()
    monkeypatch.setenv(traces.SWITCH, "0")
    assert Key.of(("x",), PACKAGES) is None


@pytest.mark.parametrize("damage", [b"", b"no zlib", b"half"])
def test_a_damaged_file_is_made_anew(cache, damage):
    key = Key.of(("x",), PACKAGES)
    kept(key, lambda: {"a": 1})
    (path,) = cache.iterdir()
    path.write_bytes(path.read_bytes()[:-3] if damage == b"half" else damage)
    assert kept(key, lambda: {"a": 2}) == {"a": 2}
    assert kept(key, lambda: {"a": 3}) == {"a": 2}


def test_a_folder_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DIFFSIM_CACHE", str(tmp_path / "file" / "below"))
    assert kept(Key.of(("x",), PACKAGES), lambda: {"a": 1}) == {"a": 1}


def test_a_function_is_traced_once(monkeypatch):
    traced = []
    source = functions._source

    def counting(*arguments):
        traced.append(1)
        return source(*arguments)

    monkeypatch.setattr(functions, "_source", counting)

    def function(x):
        return torch.stack((x[:, 0].sin() * x[:, 1], x[:, 1]), 1)

    x = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    expected = torch.autograd.grad(function(x).sum(), x)[0]
    for known_as in (("sine", 1), ("sine", 1), ("sine", 2), None):
        kernel = FunctionKernel(function, 2, torch.float64, known_as, PACKAGES)
        assert torch.allclose(kernel(x), function(x), rtol=1e-12)
        assert torch.allclose(torch.autograd.grad(kernel(x).sum(), x)[0], expected, rtol=1e-12)
    assert len(traced) == 3
