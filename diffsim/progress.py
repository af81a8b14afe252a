"""What a person sees while a run trains."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping
from typing import TextIO

from tqdm import tqdm
from tqdm.utils import disp_trim


class Progress:
    """One live line on a terminal; elsewhere a plain line every ``seconds`` and at each evaluation.

    Use as a context manager; ``show`` takes the newest row of the history.  ``quiet`` silences rows,
    never messages.
    """

    def __init__(
        self,
        updates: int,
        done: int = 0,
        quiet: bool = False,
        stream: TextIO | None = None,
        seconds: float = 10.0,
    ) -> None:
        self.updates = updates
        self.quiet = quiet
        self.stream = sys.stderr if stream is None else stream
        self.seconds = seconds
        self._return = float("nan")
        self._started = self._printed = time.monotonic()
        self._first = done
        self._bar = (
            # The number of rows is given because terminals of unknown size report none, which hides the line.
            tqdm(total=updates, initial=done, file=self.stream, bar_format="{desc}", nrows=2)
            if self.stream.isatty() and not quiet
            else None
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, row: Mapping[str, float]) -> None:
        """Report a row; see :data:`diffsim.runfile.COLUMNS` for its keys."""
        if self.quiet:
            return
        evaluated = row["return"] == row["return"]
        if evaluated:
            self._return = row["return"]
        if self._bar is not None:
            width = shutil.get_terminal_size().columns - 1
            self._bar.set_description_str(disp_trim(self._line(row), width), refresh=False)
            self._bar.update(int(row["update"]) - self._bar.n)
            return
        now = time.monotonic()
        if evaluated or now - self._printed >= self.seconds:
            self._printed = now
            print(self._line(row), file=self.stream, flush=True)

    def say(self, message: str) -> None:
        """Print a message without tearing the live line."""
        tqdm.write(message, file=self.stream)
        self.stream.flush()

    def _line(self, row: Mapping[str, float]) -> str:
        update = int(row["update"])
        rate = row["env_steps"] / row["wall_seconds"] if row["wall_seconds"] > 0 else 0.0
        elapsed = time.monotonic() - self._started
        eta = elapsed / max(update - self._first, 1) * (self.updates - update)
        measured = "" if self._return != self._return else f" | return {self._return:.1f}"
        return (
            f"update {update}/{self.updates} | loss {row['loss']:.4g}{measured}"
            f" | {int(row['env_steps']):,} env steps | {int(row['gradient_evaluations']):,} gradients"
            f" | {tqdm.format_sizeof(rate)} steps/s | ETA {tqdm.format_interval(eta)}"
        )
