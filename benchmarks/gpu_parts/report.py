"""Cases of a part: each is run, timed and kept with its figures or with the text of its failure."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
OUT_OF_TIME = "not run: out of time"


class SkippedError(Exception):
    """A case that cannot be run here; the message says what it needs."""


class Report:
    """The cases of one part, by name, in the order in which they were run.

    Args:
        deadline: value of ``time.monotonic()`` after which no case is started.
        save: called after every case, so that a process that is killed has left what it found out.
    """

    def __init__(self, deadline: float, save: Callable[[], None]) -> None:
        self.cases: dict[str, dict[str, Any]] = {}
        self.deadline = deadline
        self._save = save

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def case(self, name: str, check: Callable[[], Mapping[str, Any] | None], needs: float = 0.0) -> None:
        """Run a check that returns its figures and raises where something is wrong.

        It is not started if fewer than ``needs`` seconds are left.
        """
        if self.left <= needs:
            self.keep(name, {"state": OUT_OF_TIME})
            return
        started = time.monotonic()
        try:
            found: dict[str, Any] = {"state": "passed", **(check() or {})}
        except SkippedError as error:
            found = {"state": f"skipped: {error}"}
        except Exception as error:  # whatever goes wrong in one case, the others are run
            found = {
                "state": "failed",
                "error": f"{type(error).__name__}: {error}",
                "traceback": traceback.format_exc().replace(f"{ROOT}/", ""),
            }
        self.keep(name, {**found, "seconds": round(time.monotonic() - started, 3)})

    def keep(self, name: str, found: dict[str, Any]) -> None:
        """Store, print and save what a case has found."""
        self.cases[name] = found
        tail = f"  {found['error']}" if "error" in found else ""
        print(f"  {name:44s} {found['state']:10s} {found.get('seconds', 0.0):7.2f} s{tail}", flush=True)
        self._save()


def write(results: Mapping[str, Any], out: Path | None) -> None:
    """The results as JSON: written beside ``out`` and renamed, so that there is never half a file."""
    if out is None:
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    new = out.with_name(out.name + ".part")
    new.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    new.replace(out)


def relative_error(got: Any, expected: Any) -> float:
    """Largest difference of two tensors over the largest entry of ``expected`` (at least 1e-6); infinite for NaN."""
    a, b = got.detach().cpu().double(), expected.detach().cpu().double()
    if a.shape != b.shape:
        raise AssertionError(f"shape {tuple(a.shape)} instead of {tuple(b.shape)}")
    if not a.numel():
        return 0.0
    error = float((a - b).abs().max() / b.abs().max().clamp_min(1e-6))
    return error if error == error else float("inf")


def agree(got: Mapping[str, Any], expected: Mapping[str, Any], tolerance: float) -> dict[str, float]:
    """The largest relative error of tensors with the same names.

    Raises:
        AssertionError: an error is above ``tolerance``; the message names the tensor.
    """
    errors = {name: relative_error(got[name], value) for name, value in expected.items()}
    worst = max(errors, key=lambda name: errors[name])
    if errors[worst] > tolerance:
        raise AssertionError(f"{worst} differs by {errors[worst]:.2e} (relative), more than {tolerance:.0e}")
    return {"largest error": errors[worst], "allowed": tolerance}
