"""Distributions that the checks need: which of them this Python lacks, and how wheels bring them to it.

Uses the standard library, and packaging or the copy of it that pip carries: a bare CUDA image has no more.
"""

from __future__ import annotations

import importlib
import platform
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Sequence
from email.parser import Parser
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
OF_THE_MACHINE = ("torch", "numpy")
"""Never carried unless named: they, and what they require, are the machine's own."""
NOT_NEEDED = ("juliacall", "juliapkg")
"""Dependencies of the project that no check uses."""
OPTIONAL = {
    "cuda-core": "cuda_native, its kernels",
    "evotorch": "openai_es",
    "jax": "the comparison with lax.scan",
}
"""What more cases need."""
PLATFORMS = (*(f"manylinux_2_{n}_x86_64" for n in (28, 27, 17)), "manylinux2014_x86_64")
"""pip takes wheels of exactly these tags, so the older ones are named too."""


def _vendored(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return importlib.import_module(f"pip._vendor.{name}")


def _requirement(text: str) -> Any:
    return _vendored("packaging.requirements").Requirement(text)


def canonical(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def declared() -> list[Any]:
    """The project's dependencies that the checks need, torch excepted."""
    toml = importlib.import_module("tomllib") if sys.version_info >= (3, 11) else _vendored("tomli")
    project = toml.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    needed = [_requirement(text) for text in project["dependencies"]]
    needed = [r for r in needed if canonical(r.name) not in (*NOT_NEEDED, "torch")]
    return [r for r in needed if r.marker is None or r.marker.evaluate()]


class Gap(NamedTuple):
    """A requirement that nothing installed satisfies."""

    name: str
    requirement: str
    found: str
    """The version that is installed, ``""`` for none."""


def gaps(requirements: Iterable[Any]) -> list[Gap]:
    """Of the requirements and of what they require in turn, all but torch's, those that are not satisfied."""
    waiting, seen, missing = list(requirements), set(), []
    while waiting:
        one = waiting.pop(0)
        name, text = canonical(one.name), f"{one.name}{one.specifier}"
        if name == "torch" or text in seen:
            continue
        seen.add(text)
        try:
            installed = metadata.distribution(one.name)
        except metadata.PackageNotFoundError:
            missing.append(Gap(name, text, ""))
            continue
        if not one.specifier.contains(installed.version, prereleases=True):
            missing.append(Gap(name, text, installed.version))
            continue
        waiting += _required(installed.requires or (), {})
    return missing


def _required(texts: Iterable[str], environment: dict[str, str]) -> list[Any]:
    found = [_requirement(text) for text in texts]
    return [r for r in found if r.marker is None or r.marker.evaluate({"extra": "", **environment})]


def told(missing: Sequence[Gap]) -> str:
    """What is missing, and how to bring it here."""
    here = f"{sys.executable} (Python {platform.python_version()}, {platform.machine()})"
    optional = [name for name in OPTIONAL if not _installed(name)]
    lines = [f"{here} has everything that the checks need."]
    if missing:
        names = " ".join(sorted({gap.name for gap in missing}))
        lines = [f"Missing for {here}:"]
        lines += [
            f"  {gap.requirement}" + (f" ({gap.found} is installed)" if gap.found else "") for gap in missing
        ]
        lines += [
            "Bring them as wheels. On a machine with a network:",
            f"  make gpu-wheels GPU_PYTHON={sys.version_info[0]}.{sys.version_info[1]} WHEELS='{names}'",
            "Copy the folder wheels/ into the checkout here, then: make gpu",
        ]
    lines += [f"Optional and missing: {name}, for {OPTIONAL[name]}" for name in optional]
    return "\n".join(lines)


def _installed(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def install(wheels: Path, target: Path) -> None:
    """Install from the wheels what is missing here into ``target``, which is put at the front of ``sys.path``.

    Raises:
        RuntimeError: pip refuses; its message is passed on.
    """
    sys.path.insert(0, str(target))
    before: set[str] = set()
    while True:
        importlib.invalidate_caches()
        wanted = {gap.name: gap.requirement for gap in gaps(declared())}
        carried = {canonical(wheel.name.split("-")[0]) for wheel in wheels.glob("*.whl")}
        new = sorted(set(wanted) & carried - before)
        if not new:
            return
        before |= set(new)
        _pip(
            "install", "--no-index", "--no-deps", "--upgrade", "--find-links", str(wheels), "--target", str(target),
            *(wanted[name] for name in new),
        )  # fmt: skip


def download(wheels: Path, names: Sequence[str], python_version: str, platforms: Sequence[str]) -> list[str]:
    """Fetch wheels of the requirements called ``names`` (all by default) and of what they require, for another Python.

    Neither torch nor numpy nor what only they need is fetched, unless ``names`` has it.  Returns the files' names.

    Raises:
        RuntimeError: pip refuses, for example because there is no wheel of these tags.
    """
    known = {canonical(r.name): f"{r.name}{r.specifier}" for r in declared()}
    chosen = [known.get(canonical(n), n) for n in names] or [
        text for name, text in known.items() if name not in OF_THE_MACHINE
    ]
    tags = [option for tag in platforms for option in ("--platform", tag)]
    environment = {
        "python_version": python_version, "python_full_version": f"{python_version}.0", "sys_platform": "linux",
        "platform_system": "Linux", "platform_machine": platforms[0].split("_", 3)[-1], "os_name": "posix",
        "implementation_name": "cpython", "platform_python_implementation": "CPython",
    }  # fmt: skip
    seen: set[str] = set()
    while chosen:
        _pip(
            "download", "--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version",
            python_version, *tags, "--dest", str(wheels), *chosen,
        )  # fmt: skip
        seen |= set(chosen)
        here = {canonical(wheel.name.split("-")[0]): wheel for wheel in wheels.glob("*.whl")}
        needed = [r for wheel in here.values() for r in _required(_requires(wheel), environment)]
        chosen = sorted(
            {f"{r.name}{r.specifier}" for r in needed if canonical(r.name) not in {*OF_THE_MACHINE, *here}}
            - seen
        )
    return sorted(wheel.name for wheel in wheels.glob("*.whl"))


def _requires(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode()).get_all("Requires-Dist") or []


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"pip {arguments[0]} failed: {done.stderr.strip() or done.stdout.strip()}")
