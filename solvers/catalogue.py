"""Names that load classes on demand.

A :class:`Catalogue` is plain data: a name and the import path of its class.  Nothing is imported
until a name is asked for, so listing what exists costs nothing and no module registers itself.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any


class UnknownNameError(ValueError):
    """A name that is not in a catalogue, or an import path that leads nowhere."""


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


class Catalogue(Mapping[str, str]):
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
        """The class behind a catalogue name or behind a user's own ``"module:Class"``.

        Raises:
            UnknownNameError: no such name, module or attribute.
        """
        if name in self._paths:
            path = self._paths[name]
        elif isinstance(name, str) and name.count(":") == 1 and all(name.split(":")):
            path = name
        else:
            raise UnknownNameError(unknown(self.kind, name, self) + " (or your own as 'module:Class')")
        module_name, attribute = path.split(":")
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            # A missing import *inside* the user's module is that module's error, not a wrong name.
            if error.name is None or not (module_name + ".").startswith(error.name + "."):
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
