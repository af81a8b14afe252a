"""The public names of the three packages: importable, typed, documented, and the ones the reference lists."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import solvers
from lazy_registry.lazy_import import lazy_attributes
from solvers import SOLVERS

ROOT = Path(__file__).parents[2]
PACKAGES = ("solvers", "robotics_envs", "diffsim")
REFERENCE = ROOT / "docs" / "api"


def public(package):
    return [(package, name) for name in importlib.import_module(package).__all__]


def declared(package):
    """Names in ``__init__.py`` that a type checker sees: imported under TYPE_CHECKING, and made there."""
    tree = ast.parse((ROOT / package / "__init__.py").read_text())
    lazy, here = {}, set()
    for node in tree.body:
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            for line in node.body:
                lazy |= {alias.name: line.module for alias in line.names}
        elif isinstance(node, ast.ImportFrom):
            here |= {alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            here.add(node.name)
        elif isinstance(node, ast.Assign):
            here |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return lazy, here


@pytest.mark.parametrize("package", PACKAGES)
def test_type_checkers_see_the_public_names_and_no_others(package):
    lazy, here = declared(package)
    module = importlib.import_module(package)
    names = set(module.__all__)
    assert set(lazy) <= names
    assert names - set(lazy) <= here, "declared, but neither imported for type checkers nor defined"
    for name, home in lazy.items():
        assert getattr(module, name) is getattr(importlib.import_module(home), name)


@pytest.mark.parametrize("package", PACKAGES)
def test_all_is_sorted_whole_and_listed_by_dir(package):
    module = importlib.import_module(package)
    assert len(module.__all__) == len(set(module.__all__))
    assert set(module.__all__) <= set(dir(module))
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'slove'"):
        module.slove  # noqa: B018


@pytest.mark.parametrize("package", PACKAGES)
def test_star_imports_work(package):
    code = f"from {package} import *; import {package}; assert all(n in globals() for n in {package}.__all__)"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=ROOT)


def functions(value):
    """The public functions of a class that are its own, and its constructor."""
    if inspect.isfunction(value):
        yield value
    elif inspect.isclass(value) and not typing.get_origin(value):
        for name, member in list(vars(value).items()):
            function = inspect.unwrap(
                member.__func__ if isinstance(member, classmethod | staticmethod) else member
            )
            own = (
                getattr(function, "__module__", None) == value.__module__
            )  # typing gives a Protocol an __init__
            written = (
                inspect.isfunction(function) and not function.__code__.co_filename.startswith("<") and own
            )
            if written and (not name.startswith("_") or name == "__init__"):
                yield function


@pytest.mark.parametrize(("package", "name"), [p for package in PACKAGES for p in public(package)])
def test_public_names_are_documented_and_typed(package, name):
    value = getattr(importlib.import_module(package), name)
    if not (inspect.isclass(value) or inspect.isfunction(value)) or name in SHAPES:
        return
    assert inspect.getdoc(value), f"{package}.{name} has no docstring"
    assert "__doc__" in vars(value) or inspect.isfunction(value)
    for function in functions(value):
        written = inspect.unwrap(function)
        signature = inspect.signature(written)
        untyped = [
            p.name
            for k, p in enumerate(signature.parameters.values())
            if p.annotation is p.empty and not (k == 0 and p.name in ("self", "cls"))
        ]
        assert not untyped, f"{written.__qualname__} has no types for {untyped}"
        assert signature.return_annotation is not signature.empty, f"{written.__qualname__} returns what?"


SHAPES = {"Actions", "Costs", "Observations", "Params", "Shape", "State", "States", "VectorField", "Floats"}
"""Names of types, which have no docstring of their own."""


def test_every_own_method_class_is_public_under_its_own_name():
    import solvers

    for name, path in SOLVERS.items():
        module, _, class_name = path.partition(":")
        if module != "solvers.methods.torchdiffeq_methods":
            assert class_name in solvers.__all__, name
            assert getattr(solvers, class_name) is SOLVERS.load(name)


def test_every_error_is_public():
    import diffsim
    import diffsim.errors

    errors = {
        n for n, v in vars(diffsim.errors).items() if inspect.isclass(v) and v.__module__ == "diffsim.errors"
    }
    assert errors <= set(diffsim.__all__)


def test_old_names_work_and_say_what_replaced_them():
    with pytest.warns(DeprecationWarning, match=r"solvers\.Catalogue is now solvers\.Registry"):
        old = solvers.Catalogue
    assert old is solvers.Registry


@pytest.mark.parametrize("package", PACKAGES)
def test_modules_are_found_under_their_old_paths(package):
    moved = importlib.import_module(f"{package}._moved").MOVED[package]
    assert moved
    for name, new in moved.items():
        old = f"{package}.{name}"
        sys.modules.pop(old, None)
        with pytest.warns(
            DeprecationWarning, match=rf"{re.escape(old)} is now {re.escape(new)}; the old name"
        ):
            module = importlib.import_module(old)
        assert module is importlib.import_module(new)
        assert sys.modules[old] is module
    assert package != "solvers" or importlib.import_module("solvers.catalogue").Catalogue is solvers.Registry


def test_a_lazy_name_is_imported_when_it_is_used_and_not_before(tmp_path, monkeypatch):
    (tmp_path / "a_package").mkdir()
    (tmp_path / "a_package" / "__init__.py").write_text("")
    (tmp_path / "a_package" / "part.py").write_text("thing = object()")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("a_package")
    get, names = lazy_attributes("a_package", {"part": ("thing",)}, renamed={"stuff": "thing"})
    assert "thing" in names()
    assert "stuff" not in names()
    assert "a_package.part" not in sys.modules
    assert get("thing") is importlib.import_module("a_package.part").thing
    with pytest.raises(AttributeError, match="module 'a_package' has no attribute 'thin'"):
        get("thin")
    for name in [n for n in sys.modules if n.startswith("a_package")]:
        del sys.modules[name]


@pytest.mark.parametrize("package", PACKAGES)
def test_the_reference_lists_the_public_names(package):
    if not REFERENCE.is_dir():
        pytest.skip("there is no docs/api yet")
    text = "\n".join(path.read_text() for path in REFERENCE.rglob("*.md"))
    listed = re.findall(rf"^::: {package}\.(\w+)\s*$", text, re.M)
    assert sorted(listed) == sorted(importlib.import_module(package).__all__)
