"""Public names of a package that are imported when they are first used (PEP 562)."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def lazy_attributes(
    package: str, homes: Mapping[str, Iterable[str]], renamed: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The functions ``__getattr__`` and ``__dir__`` of a package.

    Args:
        package: the package's ``__name__``.
        homes: modules, as seen from the package, and the names that each gives.
        renamed: old names, and the ones that replace them.  An old name works with a DeprecationWarning.
    """
    modules = {name: f"{package}.{module}" for module, names in homes.items() for name in names}
    old = dict(renamed or {})

    def __getattr__(name: str) -> Any:
        if name in old:
            warnings.warn(
                f"{package}.{name} is now {package}.{old[name]}; the old name will go in the next release",
                DeprecationWarning,
                stacklevel=2,
            )
            return getattr(sys.modules[package], old[name])
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(modules[name]), name)

    def __dir__() -> list[str]:
        return sorted({*vars(sys.modules[package]), *modules})

    return __getattr__, __dir__
