"""The GPUs of this machine, and which run has which."""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter
from collections.abc import Mapping
from typing import Any


def needs_gpu(settings: Mapping[str, Any], gpus: list[str]) -> bool:
    """Whether a run is to be given one of ``gpus``: its device is ``"cuda"``, or ``"auto"`` where there are some.

    A run with a number, such as ``"cuda:1"``, has chosen for itself.
    """
    return settings["device"] == "cuda" or (settings["device"] == "auto" and bool(gpus))


def visible_gpus() -> list[str]:
    """Names that CUDA_VISIBLE_DEVICES takes, those of MIG instances in place of a GPU that is divided into them.

    As CUDA_VISIBLE_DEVICES says, or else nvidia-smi; none where neither does.
    """
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        # As CUDA reads it, names after an invalid one are not visible.
        names = [name.strip() for name in chosen.split(",")]
        return names[: next((i for i, name in enumerate(names) if name in ("", "-1")), len(names))]
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return _named(done.stdout) if done.returncode == 0 else []


def _named(listing: str) -> list[str]:
    """The names in what ``nvidia-smi -L`` prints: instances below the GPU that they are parts of."""
    names: list[str] = []
    whole = ""
    for line in listing.splitlines():
        if found := re.search(r"UUID: ((?:GPU|MIG)-[^)\s]+)\)", line):
            name = found.group(1)
            if name.startswith("MIG"):
                names = [other for other in names if other != whole]
            else:
                whole = name
            names.append(name)
    return names


class Places:
    """Which of ``gpus`` has how many runs, at most ``each``."""

    def __init__(self, gpus: list[str], each: int) -> None:
        self.gpus, self.each = gpus, each
        self._taken: Counter[str] = Counter()

    def free(self) -> str | None:
        """The GPU with the fewest runs; None if all have as many as they may."""
        name = min(self.gpus, key=lambda gpu: self._taken[gpu], default=None)
        return None if name is None or self._taken[name] >= self.each else name

    def take(self, name: str) -> None:
        self._taken[name] += 1

    def give(self, name: str) -> None:
        self._taken[name] -= 1
