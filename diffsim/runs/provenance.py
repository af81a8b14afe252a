"""Where and with what a run was made."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

from diffsim._version import __version__
from robotics_envs.julia.runtime import started

PACKAGES = ("torch", "numpy", "scipy", "torchdiffeq", "h5py", "juliacall")


def describe(device: str) -> dict[str, str | int]:
    """Versions, revisions and machine, as flat names and values."""
    import torch

    kind = torch.device(device)
    facts: dict[str, str | int] = {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(sys.orig_argv) if sys.orig_argv else "python",
        "folder": str(Path.cwd()),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device_name": torch.cuda.get_device_name(kind) if kind.type == "cuda" else platform.machine(),
        # The revision of diffsim itself when it runs from a checkout, and that of the experiment.
        "git_revision": git_revision(Path(__file__).parent),
        "git_revision_of_working_directory": git_revision(Path.cwd()),
    }
    facts["device"] = device
    facts["version_diffsim"] = __version__
    for package in PACKAGES:
        facts[f"version_{package}"] = _version(package)
    julia = started()
    for package, version in julia.versions.items() if julia else ():
        facts[f"version_{'' if package == 'julia' else 'julia_'}{package}"] = version
    return facts


def git_revision(folder: Path) -> str:
    """The commit checked out in ``folder``, with ``-dirty`` after it if files differ; else ``""``."""
    command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
