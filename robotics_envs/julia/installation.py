"""Which Julia there is: found without starting it, set up on request, never at import."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "DiffSimEnvs"
ADJOINTS = ("SciMLSensitivity", "1ed8b502-d754-442c-8d5d-10ac956f44a1")
OLDEST = (1, 10)

MODULE = "robotics_envs.julia"
SETUP = f"python -m {MODULE} setup"

TWO_WAYS = (
    f"either let it be installed: {SETUP}; or name an existing one (>= 1.10) with a project to keep the "
    "packages in, PYTHON_JULIACALL_EXE=/path/to/julia and PYTHON_JULIACALL_PROJECT=/path/to/project, and run "
    f"{SETUP} once with them"
)


class JuliaError(RuntimeError):
    """Julia is missing, cannot do what was asked, or reports an error of its own."""


def julia_sources() -> Path:
    """The folder of ``DiffSimEnvs``, the Julia package with the Julia simulators (it holds ``Project.toml``)."""
    here = Path(__file__).resolve().parents[1]
    # In a wheel the sources lie inside this package; in a checkout, in the folder julia/.
    return next(p for p in (here / "DiffSimEnvs", here.parent / "julia" / "DiffSimEnvs") if p.is_dir())


@dataclass(frozen=True)
class Installation:
    """A Julia and the project whose packages it loads."""

    executable: str
    project: str
    source: str
    """Who says so: the environment, or juliapkg."""


def find() -> Installation:
    """The Julia that would be started.  Nothing is installed, downloaded or started for it.

    Raises:
        JuliaError: there is none, with the two ways out.
    """
    executable, project = os.getenv("PYTHON_JULIACALL_EXE"), os.getenv("PYTHON_JULIACALL_PROJECT")
    if executable is None and project is None:
        return _of_juliapkg()
    if executable is None or project is None:
        given, missing = (
            ("PYTHON_JULIACALL_EXE", "PYTHON_JULIACALL_PROJECT")
            if project is None
            else ("PYTHON_JULIACALL_PROJECT", "PYTHON_JULIACALL_EXE")
        )
        raise JuliaError(f"{given} is set but {missing} is not: an existing Julia needs both, or neither")
    found = shutil.which(executable)
    if found is None:
        raise JuliaError(
            f"PYTHON_JULIACALL_EXE = {executable!r} is no executable file; correct it, or unset it and run {SETUP}"
        )
    if not Path(project).is_dir():
        raise JuliaError(f"PYTHON_JULIACALL_PROJECT = {project!r} is no folder; create it, then run {SETUP}")
    return Installation(os.path.abspath(found), os.path.abspath(project), "PYTHON_JULIACALL_EXE")


def _of_juliapkg() -> Installation:
    import juliapkg
    from juliapkg.state import STATE

    # A dry run tells whether everything is there; it makes the folder that its lock file lies in.
    if not Path(STATE["project"]).is_dir() or not juliapkg.resolve(dry_run=True):
        raise JuliaError(f"no Julia is set up for simulators written in Julia; {TWO_WAYS}")
    return Installation(juliapkg.executable(), juliapkg.project(), "juliapkg")


def run(installation: Installation, script: str, *, capture: bool = True) -> str:
    """What a Julia script prints in the installation's project, in a process of its own.

    Raises:
        JuliaError: it fails; with what it wrote to standard error.
    """
    command = [
        installation.executable,
        f"--project={installation.project}",
        "--startup-file=no",
        "-e",
        script,
    ]
    try:
        done = subprocess.run(command, text=True, capture_output=capture, check=False)
    except OSError as error:
        raise JuliaError(f"{installation.executable} cannot be run: {error}") from None
    if done.returncode:
        said = (done.stderr or "").strip()
        raise JuliaError(
            f"{installation.executable} failed with exit code {done.returncode}{': ' + said if said else ''}"
        )
    return done.stdout or ""


_REPORT = f"""
println(VERSION)
import Pkg, TOML
names = Dict(string(uuid) => info for (uuid, info) in Pkg.dependencies())
own = filter(p -> p.second.name == "{PACKAGE}", collect(names))
println(isempty(own) ? "" : something(only(own).second.source, ""))
id = Base.identify_package("{PACKAGE}")
println(id !== nothing && Base.isprecompiled(id))
wanted = ("{PACKAGE}", "PythonCall", "ForwardDiff", "SciMLBase", "OrdinaryDiffEqTsit5", "OrdinaryDiffEqRosenbrock",
          "OrdinaryDiffEqVerner", "{ADJOINTS[0]}")
for name in wanted, info in values(names)
    info.name == name && println(name, " ", info.version)
end
"""


@dataclass(frozen=True)
class Report:
    """What an installation holds."""

    installation: Installation
    version: str
    source: str
    """Where the project takes DiffSimEnvs from; empty if it does not have it."""
    precompiled: bool
    packages: Mapping[str, str]
    """Versions of the packages that matter, of those that are there."""

    def complaints(self) -> list[str]:
        """What keeps simulators from running, and what to do; empty if nothing does."""
        found = []
        if tuple(int(part) for part in self.version.split(".")[:2]) < OLDEST:
            found.append(f"Julia {self.version} is too old: 1.10 or newer is needed")
        missing = [name for name in (PACKAGE, "PythonCall") if name not in self.packages]
        if missing:
            found.append(f"the project lacks {' and '.join(missing)}: run {SETUP}")
        elif Path(self.source).resolve() != julia_sources().resolve():
            found.append(
                f"the project takes {PACKAGE} from {self.source}, not from {julia_sources()}: run {SETUP}"
            )
        elif not self.precompiled:
            found.append(f"not precompiled: the first start will take minutes; run {SETUP}")
        return found


def report(installation: Installation) -> Report:
    """Ask an installation, in a process of its own.

    Raises:
        JuliaError: it cannot be asked.
    """
    version, source, precompiled, *packages = run(installation, _REPORT).splitlines()
    versions = dict(line.split(" ", 1) for line in packages)
    return Report(installation, version, source, precompiled == "true", versions)


def threads() -> str:
    """How many threads Julia is going to start with, and who says so."""
    number, name = os.getenv("PYTHON_JULIACALL_THREADS"), "PYTHON_JULIACALL_THREADS"
    if number is None:
        number, name = os.getenv("JULIA_NUM_THREADS"), "JULIA_NUM_THREADS"
    if number is None:
        return "1, or as many as a run's threads setting (set PYTHON_JULIACALL_THREADS for another number)"
    return f"{number} ({name})"


def setup(adjoints: bool = False) -> Installation:
    """Install what is missing into the project, and precompile it; Julia's and juliapkg's progress is printed.

    With an existing Julia (``PYTHON_JULIACALL_EXE`` and ``_PROJECT``) its project gets the packages; otherwise juliapkg
    looks for a Julia, downloads one if there is none, and keeps its own project.  ``JULIA_PKG_OFFLINE=true`` (and
    ``PYTHON_JULIAPKG_OFFLINE=yes``) use what is on this machine alone.

    Args:
        adjoints: SciMLSensitivity too.

    Raises:
        JuliaError: something could not be installed.
    """
    if os.getenv("PYTHON_JULIACALL_EXE") is None and os.getenv("PYTHON_JULIACALL_PROJECT") is None:
        return _setup_juliapkg(adjoints)
    installation = find()
    wanted = _python_call_version()
    steps = [
        "import Pkg",
        f'Pkg.develop(Pkg.PackageSpec(path = raw"{julia_sources()}"))',
        _add("PythonCall", "6099a3de-0909-46bc-b1f4-468b9a2dfc0d", wanted),
    ]
    if adjoints:
        steps.append(_add(*ADJOINTS, "7"))
    run(installation, "\n".join([*steps, "Pkg.instantiate()", "Pkg.precompile()"]), capture=False)
    return installation


def _add(name: str, uuid: str, version: str) -> str:
    return f'Pkg.add(Pkg.PackageSpec(name = "{name}", uuid = "{uuid}", version = "{version}"))'


def _setup_juliapkg(adjoints: bool) -> Installation:
    import juliapkg

    if adjoints:
        juliapkg.add(ADJOINTS[0], ADJOINTS[1], version="7")
    try:
        juliapkg.resolve(force=True)
    except Exception as error:
        raise JuliaError(f"juliapkg could not set Julia up: {error}") from error
    return Installation(juliapkg.executable(), juliapkg.project(), "juliapkg")


def _python_call_version() -> str:
    """The PythonCall that belongs to the installed juliacall."""
    from importlib.metadata import version

    return version("juliacall")
