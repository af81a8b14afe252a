"""Names that load classes on demand.

A :class:`Registry` is plain data: a name and the import path of its class.  Nothing is imported
until a name is asked for, so listing what exists costs nothing and no module registers itself.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lazy_registry.user_files import load_file

_live: dict[str, type] = {}
"""Classes that were given as objects and that no import finds, by name."""


def remember(given: type) -> str:
    """The name ``"module:Class"`` of a class, under which :meth:`Registry.load` finds it in this process at least."""
    name = f"{given.__module__}:{given.__qualname__}"
    if "<locals>" in name:
        _live[name] = given
    return name


class UnknownNameError(ValueError):
    """A name that is not in a registry, or an import path that leads nowhere."""


def unknown(kind: str, name: object, known: Iterable[str]) -> str:
    """One line for a wrong name: the value, the nearest right one if there is one, the list.

    Of dotted names the last parts are compared: the section is not what was mistyped.
    """
    names = sorted(known)
    # Of names with the same last part the shortest is meant.
    last_parts = {n.rpartition(".")[2].lower(): n for n in sorted(names, key=len, reverse=True)}
    wanted = str(name).rpartition(".")[2].lower()
    close = difflib.get_close_matches(wanted, last_parts, n=1, cutoff=0.5)
    hint = f"; did you mean {last_parts[close[0]]!r}?" if close else ";"
    return f"unknown {kind} {name!r}{hint} known: {', '.join(names) or '(none)'}"


class Registry(Mapping[str, str]):
    """A read-only map from names to import paths ``"package.module:Class"``.

    ``kind`` is the word used in messages ("environment", "solver").
    """

    def __init__(self, kind: str, paths: Mapping[str, str]) -> None:
        self.kind = kind
        self._paths = dict(paths)

    def __getitem__(self, name: str) -> str:
        return self._paths[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def load(self, name: str) -> Any:
        """The class behind a registry name or behind a user's own ``"file.py:Class"`` or ``"module:Class"``.

        Raises:
            UnknownNameError: no such name, file, module or attribute.
        """
        if name in _live:
            return _live[name]
        path = self._paths.get(name, name) if isinstance(name, str) else ""
        module_name, _, attribute = path.rpartition(":")
        is_file = module_name.endswith(".py")
        if not module_name or not attribute or (":" in module_name and not is_file):
            raise UnknownNameError(
                unknown(self.kind, name, self) + " (or your own as 'my_file.py:Class' or 'module:Class')"
            )
        try:
            module = load_file(module_name) if is_file else importlib.import_module(module_name)
        except FileNotFoundError as error:
            raise UnknownNameError(
                f"{self.kind} {name!r}: there is no file {error.filename!r}, as seen from {str(Path.cwd())!r}"
            ) from None
        except ModuleNotFoundError as error:
            # A missing import *inside* the user's module is that module's error, not a wrong name.
            if is_file or error.name is None or not (module_name + ".").startswith(error.name + "."):
                raise
            raise UnknownNameError(
                f"{self.kind} {name!r}: there is no module {error.name!r}; "
                "run from the folder that holds it, or put that folder on PYTHONPATH"
            ) from error
        if not hasattr(module, attribute):
            public = [n for n in vars(module) if not n.startswith("_")]
            raise UnknownNameError(
                f"{self.kind} {name!r}: " + unknown(f"attribute of module {module_name}", attribute, public)
            )
        return getattr(module, attribute)


Catalogue = Registry
"""The old name; it will go in the next release."""
