"""Facts of the installation and of the process: optional parts, where compiled libraries are kept, when it began."""

from __future__ import annotations

import json
import os
import shlex
import time
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlparse

DISTRIBUTION = "diffsim-robotics"
"""The distribution's name. The package index has an unrelated ``diffsim``; the import names stay."""


def install_command(extra: str) -> str:
    """The shell command that adds the optional dependencies ``extra`` to this installation.

    It names the source that this installation came from, as pip recorded it (PEP 610): a checkout, or the address of
    a repository.  A folder on the import path without metadata counts as a checkout.
    """
    return f"pip install {_target(extra)}"


def _target(extra: str) -> str:
    checkout = Path(__file__).resolve().parent.parent
    try:
        recorded = metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        recorded = None
    if (checkout / "pyproject.toml").is_file():
        here = "." if checkout == Path.cwd() else str(checkout)
        return f"-e {_quoted(f'{here}[{extra}]')}"
    source = json.loads(recorded) if recorded else {}
    url = source.get("url", "")
    # A folder as a path, also one that git was given: not every pip takes "name @ git+file:///folder".
    if url.startswith("file:") and Path(unquote(urlparse(url).path)).is_dir():
        return _quoted(f"{unquote(urlparse(url).path)}[{extra}]")
    if "vcs_info" in source:
        url = f"{source['vcs_info']['vcs']}+{url}@{source['vcs_info']['commit_id']}"
    return _quoted(f"{DISTRIBUTION}[{extra}]" + (f" @ {url}" if url else ""))


def _quoted(text: str) -> str:
    # Brackets are patterns to most shells, which shlex knows; quotes also where it sees no need.
    quoted = shlex.quote(text)
    return quoted if quoted != text else f"'{text}'"


def cache_folder() -> Path:
    """Where compiled libraries are kept: ``$DIFFSIM_CACHE``, or ``diffsim`` in the user's cache folder."""
    named = os.environ.get("DIFFSIM_CACHE")
    return (
        Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "diffsim"
    )


def process_started() -> float:
    """When this process began, in seconds since the epoch, at most a tenth of a second too early.

    Where the system does not tell, the present time.
    """
    now = time.time()
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        up = float(Path("/proc/uptime").read_text().split()[0])
        return min(now, now - up + ticks / os.sysconf("SC_CLK_TCK") - 0.1)
    except (OSError, ValueError, IndexError, AttributeError):
        return now
