"""The code of its author that a run names: stored with the run, and found again when the run is opened.

A section of the configuration (``env``, ``policy``, ``algorithm``, ``optimizer``) names a class that comes with this
project, or one of the user's: ``"my_env.py:MyEnv"``, ``"module:MyEnv"``, ``"julia:my_env.jl:MyEnv"``.  For the user's
the texts of its file and of the files it imports from its folder are kept in the run, so that the run can be used
where these files are not.  The texts of somebody else are executed only with consent.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import h5py
import numpy as np

from diffsim.config import ALGORITHMS, NETWORKS, Named, RunConfig
from diffsim.errors import TrustError
from diffsim.runs import authorship
from diffsim.runs.whole_files import write_whole
from diffsim.values import printable, shown
from lazy_registry.installation import cache_folder
from lazy_registry.user_files import definitions, file_of, imported_files
from robotics_envs.environments import ENVIRONMENTS, JULIA, ROBOTS, SUITES
from robotics_envs.julia import SIMULATORS

logger = logging.getLogger("diffsim")

_MAIN = "__main__"


@dataclass(frozen=True)
class Source:
    """The texts behind one name of a configuration."""

    section: str
    """``"env"``, ``"policy"``, ``"algorithm"``, ``"optimizer"``, ``"optimizer.first"`` or ``"optimizer.then"``."""
    name: str
    """As in the configuration."""
    origin: str
    """The file that it came from, absolute; ``""`` for a notebook."""
    entry: str
    """Of ``files``, the one that holds the class."""
    files: dict[str, bytes]
    """Texts by path relative to a common folder."""

    @property
    def sha256(self) -> str:
        """Of all texts with their names, hexadecimal."""
        digest = hashlib.sha256()
        for name, text in sorted(self.files.items()):
            digest.update(f"{name}\0{len(text)}\0".encode() + text)
        return digest.hexdigest()

    def parts(self) -> list[bytes]:
        """What a signature covers."""
        return [self.section.encode(), self.name.encode(), self.entry.encode(), self.sha256.encode()]


def user_names(config: RunConfig, sections: Iterable[str] | None = None) -> dict[str, str]:
    """The names by section that do not come with this project; of the given sections, or of all."""
    from diffsim.optimizers import is_shipped

    shipped: dict[str, Callable[[str], bool]] = {
        # A robot's file is data: reading it runs no code.
        "env": lambda n: (
            n in ENVIRONMENTS
            or (n.removeprefix(JULIA) in SIMULATORS and n.startswith(JULIA))
            or n.startswith((*ROBOTS, *SUITES))
        ),
        "policy": lambda n: n in NETWORKS,
        "algorithm": lambda n: n in ALGORITHMS,
        "optimizer": is_shipped,
    }
    return {
        section: name
        for section, name in _names(config)
        if (sections is None or section.partition(".")[0] in sections)
        and not shipped[section.partition(".")[0]](name)
    }


def _names(config: RunConfig) -> Iterator[tuple[str, str]]:
    for section in ("env", "policy", "algorithm", "optimizer"):
        named: Named = getattr(config, section)
        yield section, named.name
        for option, value in named.options.items():
            # An optimizer may be made of others.
            inner = value.get("name") if isinstance(value, Mapping) else getattr(value, "name", None)
            if section == "optimizer" and isinstance(inner, str) and option in ("first", "then"):
                yield f"{section}.{option}", inner


def sources(config: RunConfig) -> list[Source]:
    """The texts behind every name of the user's, as they were executed; what has no text is left out."""
    found = (_source(section, name) for section, name in user_names(config).items())
    return [source for source in found if source is not None]


def _source(section: str, name: str) -> Source | None:
    if name.startswith(JULIA):
        path = name.removeprefix(JULIA).rpartition(":")[0]
        if not path:  # of a Julia session, which has typed it in
            return None
        file = Path(path)
        return Source(section, name, str(file), file.name, _julia_files(file))
    module, _, attribute = name.rpartition(":")
    if not module:  # a dotted name of an optimizer
        module = name.rpartition(".")[0]
    if module == _MAIN:
        text = definitions(_main_texts(), attribute)
        main = getattr(sys.modules[_MAIN], "__file__", None)
        origin = str(Path(main).resolve()) if main else ""
        return Source(section, name, origin, "main.py", {"main.py": text.encode()}) if text else None
    file = Path(module) if module.endswith(".py") else _module_file(module)  # type: ignore[assignment]
    if file is None:
        return None
    files = imported_files(file)
    entry = next(n for n in files if file.resolve().as_posix().endswith("/" + n))
    return Source(section, name, str(file), entry, files)


def _module_file(module: str) -> Path | None:
    """The file of an importable module, unless it belongs to an installed package."""
    loaded = sys.modules.get(module)
    file = None if loaded is None else getattr(loaded, "__file__", None)
    path = file_of(module) or (Path(file).resolve() if file else None)
    if path is None or path.suffix != ".py" or {"site-packages", "dist-packages"} & set(path.parts):
        return None
    return path


def _main_texts() -> list[str]:
    """The script that runs, or the cells of a notebook in the order in which they ran."""
    main = sys.modules[_MAIN]
    file = getattr(main, "__file__", None)
    if file:
        return [Path(file).read_text(encoding="utf-8")]
    return [str(cell) for cell in getattr(main, "In", ())]


_INCLUDE = re.compile(rb'^\s*include\(\s*"([^"]+)"\s*\)', re.MULTILINE)


def _julia_files(entry: Path) -> dict[str, bytes]:
    """A Julia file and those it includes by a literal name from below its folder."""
    files: dict[str, bytes] = {}
    waiting = [entry]
    while waiting:
        file = waiting.pop()
        name = file.relative_to(entry.parent).as_posix()
        if name not in files:
            files[name] = file.read_bytes()
            for match in _INCLUDE.findall(files[name]):
                other = (file.parent / match.decode()).resolve()
                if other.is_file() and entry.parent in other.parents:
                    waiting.append(other)
    return files


# -- in the run file ------------------------------------------------------------------------------


def write(group: h5py.Group, found: Iterable[Source]) -> None:
    """Store texts below ``group``, a group for each section."""
    for source in found:
        node = group.create_group(source.section)
        node.attrs.update(name=source.name, origin=source.origin, entry=source.entry, sha256=source.sha256)
        for number, (name, text) in enumerate(sorted(source.files.items())):
            data = node.create_dataset(f"{number:04d}", data=np.frombuffer(text, dtype=np.uint8))
            data.attrs["path"] = name


def read(group: h5py.Group) -> list[Source]:
    """What :func:`write` stored.

    Raises:
        ValueError: a path that leads out of the folder of its source.
    """
    found = []
    for section, node in group.items():
        files = {}
        for data in node.values():
            name = str(data.attrs["path"])
            pure = PurePosixPath(name)
            if pure.is_absolute() or ".." in pure.parts or "\\" in name:
                raise ValueError(f"the source {name!r} of {section} leads out of its folder")
            files[name] = bytes(data[()].tobytes())
        a = node.attrs
        found.append(Source(section, str(a["name"]), str(a["origin"]), str(a["entry"]), files))
    return found


def signed_parts(config_json: str, found: Iterable[Source]) -> list[bytes]:
    """What the signature of a run file covers: its configuration and its sources."""
    ordered = sorted(found, key=lambda source: source.section)
    return [config_json.encode(), *(part for source in ordered for part in source.parts())]


def signature(config_json: str, found: Iterable[Source]) -> str:
    return authorship.signature(signed_parts(config_json, found))


# -- when a run is opened -------------------------------------------------------------------------


def consented(
    config: RunConfig,
    stored: list[Source],
    own: bool,
    trust: bool,
    path: Path,
    sections: Iterable[str],
) -> RunConfig:
    """The configuration with every name of the user's leading to code that may be executed, and can be, here.

    A file that is still where it was, and unchanged, is used as it is; otherwise the stored text.

    Args:
        own: whether the run carries this user's signature.
        trust: the user's consent to run what the file says.
        path: of the run, for messages.
        sections: those that will be used.

    Raises:
        TrustError: code of somebody else, and no consent.
        ConfigError: there is no text for a name.
    """
    needed = user_names(config, sections)
    if needed and not (own or trust):
        raise TrustError(_what_would_run(needed, stored, path))
    by_section = {source.section: source for source in stored}
    replaced = {section: _loadable(name, by_section.get(section), path) for section, name in needed.items()}
    changes: dict[str, Any] = {}
    for section, name in replaced.items():
        top, _, option = section.partition(".")
        named: Named = changes.get(top, getattr(config, top))
        if option:
            inner = named.options[option]
            inner = {**(inner if isinstance(inner, Mapping) else inner.model_dump()), "name": name}
            changes[top] = Named(name=named.name, **{**named.options, option: inner})
        else:
            changes[top] = named.model_copy(update={"name": name})
    return config.model_copy(update=changes)


def _what_would_run(needed: Mapping[str, str], stored: list[Source], path: Path) -> str:
    texts = {source.section: source for source in stored}
    lines = []
    for section, name in needed.items():
        source = texts.get(section)
        held = "a module of this machine" if source is None else ", ".join(sorted(source.files))
        lines.append(f"{section} = {printable(name)} ({printable(held)})")
    return (
        f"{shown(path)} names code that is not part of diffsim, and it does not carry your signature: "
        f"{'; '.join(lines)}. Nothing of it was run. Read it first with: diffsim show --source "
        f"{shlex.quote(shown(path))}. Run it with --trust (in Python trust=True), or name your own "
        "simulator with --env"
    )


def _loadable(name: str, source: Source | None, path: Path) -> str:
    """A name that loads the code here: the one given, or one that leads to the stored text."""
    module, _, attribute = name.rpartition(":")
    live = module == _MAIN and hasattr(sys.modules[_MAIN], attribute.partition(".")[0])
    if live or source is None:
        return name
    if module != _MAIN:
        present = _present(name, source)
        if present == source.files:
            return name
        if present is not None:
            changed = [n for n in {*present, *source.files} if present.get(n) != source.files.get(n)]
            logger.warning(
                f"{', '.join(sorted(changed))} of {source.section} = {name} differs from the text that "
                f"{shown(path)} was trained with; the stored text is used (--env NAME takes another simulator)"
            )
    folder = cache_folder() / "sources" / source.sha256[:32]
    for file, text in source.files.items():
        target = folder / file
        if not target.is_file() or target.read_bytes() != text:
            target.parent.mkdir(parents=True, exist_ok=True)
            write_whole(target, text)
    start = JULIA if name.startswith(JULIA) else ""
    attribute = attribute or name.rpartition(".")[2]
    return f"{start}{folder / source.entry}:{attribute}"


def _present(name: str, source: Source) -> dict[str, bytes] | None:
    """The texts that the name leads to on this machine now; None if to nothing."""
    try:
        if name.startswith(JULIA):
            return _julia_files(Path(name.removeprefix(JULIA).rpartition(":")[0]))
        module = name.rpartition(":")[0] or name.rpartition(".")[0]
        if module.endswith(".py"):
            file: Path | None = Path(module)
        else:
            importlib.import_module(module)
            file = _module_file(module)
        return None if file is None else imported_files(file, as_executed=False)
    except (OSError, ImportError, SyntaxError):
        return None
