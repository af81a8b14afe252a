"""The checker that the tests put on every function of the packages whose annotations state the shapes of tensors.

Only on those: elsewhere the tests hand over wrong types on purpose, to read the message they get.  jaxtyping's own
import hook wraps every function, which takes half the time of the whole suite.
"""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType
from typing import Any

from beartype import beartype
from jaxtyping import jaxtyped

SHAPES = (
    "Float[", "Bool[", "State", "Actions", "Observations", "Costs", "Params",
)  # fmt: skip
NAME = "_shapes_checked"
"""What the checker is called in the modules that it changes."""


def install(packages: Sequence[str]) -> None:
    """From here on, check the shapes in every module of ``packages`` that is imported."""
    sys.meta_path.insert(0, _Finder(packages))


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` with its arguments and its result checked at each call."""
    checked = _Checked(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return checked.call(*args, **kwargs)

    return call


class _Checked:
    """Keeps the checker's own objects out of the fingerprints of what a kernel is compiled from."""

    trace_key = "shapes checked"

    def __init__(self, function: Callable[..., Any]) -> None:
        self.call = jaxtyped(function, typechecker=beartype)


class _Finder(MetaPathFinder):
    def __init__(self, packages: Sequence[str]) -> None:
        self.packages = frozenset(packages)

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name.partition(".")[0] not in self.packages:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        # Not from __pycache__, which is that of the unchanged source.
        path = self.get_filename(fullname)
        tree = ast.parse(self.get_data(path), path)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and _states_shapes(node):
                # Below all others, which may not keep the annotations.
                node.decorator_list.append(ast.copy_location(ast.Name(NAME, ast.Load()), node))
        return compile(tree, path, "exec", dont_inherit=True)

    def exec_module(self, module: ModuleType) -> None:
        vars(module)[NAME] = check
        super().exec_module(module)


def _states_shapes(node: ast.FunctionDef) -> bool:
    a = node.args
    arguments = [*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg]
    hints = [q.annotation for q in arguments if q is not None] + [node.returns]
    return any(shape in ast.unparse(hint) for hint in hints if hint is not None for shape in SHAPES)
