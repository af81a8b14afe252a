"""Modules from a user's own files, each folder with its own helper modules.

The file ``/lab/env.py`` becomes the module ``lazy_registry.user_files.<folder>.env``, where ``<folder>`` spells
``/lab``.  So two files of one name are two modules, and pickles find the classes of such a file in any process that
can import this package.  Where a file says ``import constants``, a ``constants.py`` beside it is meant, whatever other
folders hold a module of that name: files loaded here get an ``__import__`` of their own, which serves imports inside of
functions too.
"""

from __future__ import annotations

import ast
import builtins
import errno
import importlib
import importlib.machinery
import importlib.util
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

__path__: list[str] = []  # makes this module a package, whose modules the finder below finds

_PREFIX = __name__ + "."
_OURS = frozenset(("lazy_registry", "solvers", "robotics_envs", "diffsim"))
_loaded: dict[str, tuple[Path, bytes]] = {}
"""By module name: the file and the text that was executed."""
_loading = threading.RLock()


def load_file(path: str | Path) -> ModuleType:
    """The module in a Python file, executed once, and again after it or a helper module of it was edited.

    Raises:
        FileNotFoundError: there is no such file.
    """
    path = Path(path).expanduser().resolve()
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
    root, parts = _placed(path)
    package = _PREFIX + _spelled(str(root))
    name = ".".join((package, *parts))
    with _loading:
        _forget_edited(package)
        importlib.invalidate_caches()
        if name in sys.modules:
            return sys.modules[name]
        before = set(sys.modules)
        # For importlib.import_module in the file, which the file's own __import__ does not see.
        sys.path.insert(0, str(root))
        try:
            return importlib.import_module(name)
        finally:
            sys.path.remove(str(root))
            for other in set(sys.modules) - before:
                if not other.startswith(_PREFIX) and _is_below(root, sys.modules[other]):
                    del sys.modules[other]


def file_of(module: str) -> Path | None:
    """The file that ``load_file`` made this module from; None for any other module."""
    return _loaded[module][0] if module in _loaded else None


def _executed_text(path: Path) -> bytes:
    """The text of a file as it was executed in this process, or else as it is now."""
    executed = [text for file, text in _loaded.values() if file == path]
    return executed[-1] if executed else path.read_bytes()


def imported_files(path: Path, as_executed: bool = True) -> dict[str, bytes]:
    """The file and all files it imports from below its folder, directly or not, by path relative to that folder.

    Read from the text, so imports inside of functions count, and imports by computed names do not.  For a module of a
    package the folder is the one that holds the outermost package.  ``as_executed``: files that this process has
    executed with the text they had then.
    """
    path = path.resolve()
    root, _ = _placed(path)
    found: dict[str, bytes] = {}
    waiting = [path]
    while waiting:
        file = waiting.pop()
        name = file.relative_to(root).as_posix()
        if name in found:
            continue
        found[name] = _executed_text(file) if as_executed else file.read_bytes()
        waiting += _imports(file, found[name], root)
    return dict(sorted(found.items()))


def _imports(file: Path, text: bytes, root: Path) -> Iterator[Path]:
    """The files below ``root`` that the text of ``file`` imports."""
    _, parts = _placed(file)
    package = parts if file.name == "__init__.py" else parts[:-1]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = [*start, *(node.module.split(".") if node.module else [])]
            names = [base, *([*base, alias.name] for alias in node.names)]
        else:
            continue
        for dotted in names:
            if dotted and dotted[0] not in _OURS:
                for depth in range(1, len(dotted) + 1):
                    place = root.joinpath(*dotted[:depth])
                    candidates = (place.with_name(place.name + ".py"), place / "__init__.py")
                    yield from (candidate for candidate in candidates if candidate.is_file())


def definitions(texts: Iterable[str], name: str) -> str:
    """The top-level statements of ``texts`` that define ``name`` and what it needs, in order; ``""`` if none do.

    So a class can be stored without the rest of the script or notebook that holds it.  Later definitions replace
    earlier ones of the same name.
    """
    statements: list[tuple[str, set[str], set[str]]] = []  # source, names it defines, names it uses
    for text in texts:
        try:
            body = ast.parse(text).body
        except SyntaxError:
            continue  # a cell with commands of the notebook
        for node in body:
            decorators = getattr(node, "decorator_list", [])
            first = min([node.lineno, *(d.lineno for d in decorators)])
            source = "\n".join(text.splitlines()[first - 1 : node.end_lineno])
            statements.append((source, set(_defined(node)), set(_used(node))))
    needed, wanted = set(), [name]
    while wanted:
        one = wanted.pop()
        places = [i for i, (_, defined, _) in enumerate(statements) if one in defined]
        if places and places[-1] not in needed:
            needed.add(places[-1])
            wanted += sorted(statements[places[-1]][2])
    chosen = [statements[i][0] for i in sorted(needed)]
    future = [s for s in chosen if s.startswith("from __future__")]
    return "\n\n".join([*future, *(s for s in chosen if s not in future)]) + "\n" if chosen else ""


def _defined(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        yield node.name
    elif isinstance(node, (ast.Import, ast.ImportFrom)):
        yield from ((alias.asname or alias.name.partition(".")[0]) for alias in node.names)
    elif isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
        yield from (n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))


def _used(node: ast.stmt) -> Iterator[str]:
    yield from (n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load))


def _placed(path: Path) -> tuple[Path, list[str]]:
    """The folder that a file's absolute imports start from, and the parts of its module name."""
    parts = (
        [] if path.name == "__init__.py" else [path.stem if path.stem.isidentifier() else _spelled(path.stem)]
    )
    root = path.parent
    while (root / "__init__.py").is_file() and root != root.parent:
        parts.insert(0, root.name)
        root = root.parent
    return root, parts


def _spelled(text: str) -> str:
    """``text`` as one word of letters, digits and underscores that :func:`_read` turns back."""
    return "".join(c if c.isascii() and c.isalnum() else f"_{ord(c):x}_" for c in text)


def _read(word: str) -> str:
    return re.sub("_([0-9a-f]+)_", lambda match: chr(int(match[1], 16)), word)


def _is_below(root: Path, module: ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and root in Path(file).parents and "site-packages" not in Path(file).parts


def _forget_edited(package: str) -> None:
    """Drop all modules of a folder if the file of one was edited or removed, so that they are executed again."""
    names = [name for name in _loaded if name.startswith(package + ".")]

    def same(file: Path, text: bytes) -> bool:
        try:
            return file.read_bytes() == text
        except OSError:
            return False

    if all(same(*_loaded[name]) for name in names):
        return
    for name in names:
        del _loaded[name]
    for name in [n for n in sys.modules if n == package or n.startswith(package + ".")]:
        del sys.modules[name]


class _Finder:
    """Finds the modules whose names begin with this package's."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if not name.startswith(_PREFIX):
            return None
        folder, *parts = name.removeprefix(_PREFIX).split(".")
        root = Path(_read(folder))
        if not parts:
            spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = [str(root)]
            return spec
        where = root.joinpath(*parts[:-1])
        odd = where / f"{_read(parts[-1])}.py"
        if not (where / f"{parts[-1]}.py").is_file() and odd.is_file():
            return importlib.util.spec_from_file_location(name, odd, loader=_Loader(name, str(odd)))
        found = importlib.machinery.PathFinder.find_spec(name, [str(where)])
        if found is not None and isinstance(found.loader, importlib.machinery.SourceFileLoader):
            found.loader = _Loader(name, found.loader.path)
        return found


class _Loader(importlib.machinery.SourceFileLoader):
    """Executes the present text of a file (never cached bytecode), with imports that look beside the file first."""

    def get_code(self, fullname: str) -> Any:
        path = Path(self.path)
        text = path.read_bytes()
        _loaded[fullname] = (path, text)
        return self.source_to_code(text, self.path)

    def exec_module(self, module: ModuleType) -> None:
        package = ".".join(module.__name__.split(".")[:3])
        root = Path(_read(package.removeprefix(_PREFIX)))
        vars(module)["__builtins__"] = {**vars(builtins), "__import__": _importer(package, root)}
        try:
            super().exec_module(module)
        except BaseException:
            _loaded.pop(module.__name__, None)
            raise


def _importer(package: str, root: Path) -> Callable[..., ModuleType]:
    """An ``__import__`` for the files of one folder."""

    def import_module(
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        top = name.partition(".")[0]
        if level or not _is_beside(root, top):
            return builtins.__import__(name, globals, locals, fromlist or (), level)
        module = importlib.import_module(f"{package}.{name}")
        if not fromlist:
            return sys.modules[f"{package}.{top}"]
        for attribute in fromlist:
            inner = f"{module.__name__}.{attribute}"
            is_module = hasattr(module, "__path__") and attribute != "*" and not hasattr(module, attribute)
            if is_module and importlib.util.find_spec(inner) is not None:
                importlib.import_module(inner)
        return module

    return import_module


def _is_beside(root: Path, top: str) -> bool:
    """Whether the folder has a module of this name that comes before all others."""
    if top in _OURS or top in sys.stdlib_module_names:
        return False
    if (root / f"{top}.py").is_file() or (root / top / "__init__.py").is_file():
        return True
    return (root / top).is_dir() and top not in sys.modules and importlib.util.find_spec(top) is None


if not any(type(finder).__name__ == "_Finder" for finder in sys.meta_path):
    sys.meta_path.insert(0, _Finder())
