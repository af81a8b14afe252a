"""Modules under the paths that they had before; an old path works with a DeprecationWarning."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Mapping
from types import ModuleType
from typing import Any

_moved: dict[str, str] = {}


def serve_old_names(moved: Mapping[str, Mapping[str, str]]) -> None:
    """Let imports of old module paths find the modules where they are now.

    Args:
        moved: by package, the old names of modules in it and their present full names.
    """
    _moved.update({f"{package}.{old}": new for package, names in moved.items() for old, new in names.items()})


class _Loader(importlib.abc.Loader):
    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        old = module.__name__
        warnings.warn(
            f"{old} is now {_moved[old]}; the old name will go in the next release",
            DeprecationWarning,
            stacklevel=2,  # frames of the import system are not counted
        )
        # The import system returns what stands here afterwards.
        sys.modules[old] = importlib.import_module(_moved[old])


class _Finder:
    """Asked after all others, so a module that exists is never replaced."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, _Loader()) if name in _moved else None


if not any(vars(type(finder)).get("__module__") == __name__ for finder in sys.meta_path):
    sys.meta_path.append(_Finder())
