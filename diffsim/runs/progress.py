"""What a person sees while a run trains or an animation is made.

Nothing here may end a training: once the stream cannot be written to (its reader has gone, the disk is full), the
display is silent. No thread is started; the display changes when the caller reports something.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TextIO, cast

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live

REDRAW_SECONDS = 0.1
"""A terminal is redrawn at most so often; new phases and evaluations are drawn at once."""
NO_TERMINAL_WIDTH = 80


class Progress:
    """One live line on a terminal; elsewhere a plain line every ``seconds`` and at each evaluation.

    Use as a context manager. ``show`` takes the newest row of the history, ``status`` the name of a phase such as
    ``"loading"``, ``say`` a message that stays. On a terminal, fields that do not fit its width are left out, the
    least important first.

    Args:
        updates, done: see ``begin``, which is called later where they are not known yet.
        quiet: no rows and no phases; messages are printed all the same.
        stream: where to write; standard error if not given.
        seconds: between plain lines.
        announce: without a terminal, print each phase before the first row when it begins.
    """

    def __init__(
        self,
        updates: int = 0,
        done: int = 0,
        quiet: bool = False,
        stream: TextIO | None = None,
        seconds: float = 10.0,
        announce: bool = True,
    ) -> None:
        self.quiet = quiet
        self.seconds = seconds
        self._announce = announce
        self._out = _Guarded(sys.stderr if stream is None else stream)
        # Without a terminal there are plain lines only: no escape codes, even where FORCE_COLOR asks for them.
        self._live = _live_line(self._out) if self._out.isatty() and not quiet else None
        self._return = self._success = math.nan
        self._row: Mapping[str, float] | None = None
        self._phase = self._count = ""
        self._drawn, self._printed = float("-inf"), time.monotonic()
        self.begin(updates, done)

    def begin(self, updates: int, done: int = 0) -> None:
        """The run has ``updates`` updates, of which ``done`` were made earlier; from now on time is measured."""
        self.updates, self._first = updates, done
        self._started = time.monotonic()

    def __enter__(self) -> Progress:
        if self._live is not None:
            self._live.start()
            self._live.console.show_cursor(True)  # a killed process would leave a terminal without one
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._phase = self._count = ""
            self._live.transient = self._row is None  # of phases alone nothing stays
            self._draw()
            self._live.stop()
        self._out.flush()

    def show(self, row: Mapping[str, float]) -> None:
        """Report a row; see :data:`diffsim.runs.runfile.COLUMNS` for its keys."""
        evaluated = row["return"] == row["return"]
        if evaluated:
            self._return, self._success = row["return"], row.get("success", math.nan)
        self._row, self._phase, self._count = row, "", ""
        if self.quiet:
            return
        now = time.monotonic()
        if self._live is not None:
            if evaluated or now - self._drawn >= REDRAW_SECONDS or row["update"] >= self.updates:
                self._draw()
        elif evaluated or now - self._printed >= self.seconds:
            self._print(" | ".join(field for _, field in self._fields(row)))

    def status(self, text: str, done: int | None = None, total: int | None = None) -> None:
        """Name the phase that begins, such as ``"loading"``; or how far it is: ``status("frames", 12, 100)``.

        Without a terminal, a phase is printed when it begins until the first row has been shown; counts, and
        everything later, only every ``seconds``.
        """
        begins = self._phase != text
        self._phase = text
        self._count = "" if done is None else f" {done:,}" + (f" of {total:,}" if total else "")
        if self.quiet:
            return
        now = time.monotonic()
        if self._live is not None:
            if begins or done is None or done == total or now - self._drawn >= REDRAW_SECONDS:
                self._draw()
        elif (begins and self._announce and self._row is None) or now - self._printed >= self.seconds:
            self._print(text + self._count)

    def say(self, message: str) -> None:
        """Print a message without tearing the live line."""
        if self._live is None:
            self._out.write(_without_controls(message) + "\n")
        else:
            from rich.text import Text

            self._fit_console(self._live.console)
            self._live.console.print(Text(message), soft_wrap=True)
        self._out.flush()

    def _print(self, line: str) -> None:
        self._printed = time.monotonic()
        self._out.write(line + "\n")
        self._out.flush()

    def _draw(self) -> None:
        if self._live is None:
            return
        from rich.text import Text

        self._drawn = time.monotonic()
        # In the last column some terminals begin a new line.
        width = self._fit_console(self._live.console) - 1
        fields = self._fields(self._row) if self._row is not None else []
        if self._phase:
            fields.append((8, self._phase + self._count))
        line = fit(fields, width)
        self._live.update(Text(line, no_wrap=True, overflow="crop"), refresh=True)

    def _fit_console(self, console: Console) -> int:
        """The width of the terminal as it is now, given to the console too."""
        console.width = self._out.columns()
        return console.width

    def _fields(self, row: Mapping[str, float]) -> list[tuple[int, str]]:
        """The parts of a line with their importance: those of a small one are left out first."""
        update = int(row["update"])
        rate = row["env_steps"] / row["wall_seconds"] if row["wall_seconds"] > 0 else 0.0
        elapsed = time.monotonic() - self._started
        remaining = elapsed / max(update - self._first, 1) * max(self.updates - update, 0)
        fields = [(9, f"update {update}/{self.updates}"), (4, f"loss {row['loss']:.4g}")]
        if self._return == self._return:
            fields.append((7, f"return {self._return:.1f}"))
        if self._success == self._success:
            fields.append((5, f"success {self._success:.0%}"))
        return [
            *fields,
            (3, f"{count(row['env_steps'])} env steps"),
            (1, f"{count(row['gradient_evaluations'])} gradients"),
            (2, f"{short(rate)} steps/s"),
            (6, f"ETA {clock(remaining)}"),
        ]


_NO_REDIRECTION: dict[str, Any] = {"redirect_stdout": False, "redirect_stderr": False}


def _live_line(terminal: _Guarded) -> Live | None:
    """A line of a terminal that changes; None on one that cannot move its cursor."""
    from rich.console import Console
    from rich.live import Live

    console = Console(
        file=cast(TextIO, terminal),
        force_terminal=True,
        force_jupyter=False,
        force_interactive=True,
        highlight=False,
        markup=False,
        emoji=False,
    )
    return None if console.is_dumb_terminal else Live(console=console, auto_refresh=False, **_NO_REDIRECTION)


_CONTROLS = dict.fromkeys((7, 8, 11, 12, 13))
"""What moves a terminal's cursor, or rings its bell."""


def _without_controls(text: str) -> str:
    return text.translate(_CONTROLS)


class _Guarded:
    """A text stream that is silent from its first failure on. ``None``, a closed standard stream, is silent too."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.encoding: str = getattr(stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        self._try(lambda stream: stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(lambda stream: stream.flush())

    def isatty(self) -> bool:
        try:
            return self._stream is not None and self._stream.isatty()
        except (OSError, ValueError, AttributeError):
            return False

    def columns(self) -> int:
        """COLUMNS if set, else the width of the terminal behind the stream, 80 where there is none."""
        with contextlib.suppress(KeyError, ValueError):
            if (columns := int(os.environ["COLUMNS"])) > 0:
                return columns
        try:
            columns = os.get_terminal_size(self._stream.fileno()).columns if self._stream is not None else 0
        except (OSError, ValueError, AttributeError):
            columns = 0
        return columns or NO_TERMINAL_WIDTH

    def _try(self, action: Callable[[TextIO], Any]) -> None:
        if self._stream is None:
            return
        try:
            action(self._stream)
        except UnicodeEncodeError as error:
            plain = error.object.encode(self.encoding, "backslashreplace").decode(self.encoding)
            self._try(lambda stream: stream.write(plain))
        except BlockingIOError:
            pass  # a full pipe that does not wait: this text is lost, later ones may not be
        except (OSError, ValueError):
            stream, self._stream = self._stream, None
            _discard(stream)


def _discard(stream: TextIO) -> None:
    """Empty the buffers of a stream that cannot be written to.

    What they hold would be tried again when the interpreter ends, which then exits with 120.
    """
    try:
        number = stream.fileno()
        kept, sink = os.dup(number), os.open(os.devnull, os.O_WRONLY)
    except (OSError, ValueError, AttributeError):
        return
    try:
        os.dup2(sink, number)
        stream.flush()
    except (OSError, ValueError):
        pass
    finally:
        os.dup2(kept, number)
        os.close(kept)
        os.close(sink)


def fit(fields: list[tuple[int, str]], width: int) -> str:
    """The texts joined to a line of at most ``width`` characters, without the least important where it is too long."""
    from rich.cells import cell_len, set_cell_size

    kept = list(fields)
    while len(kept) > 1 and cell_len(_joined(kept)) > width:
        kept.remove(min(kept, key=lambda field: field[0]))
    return set_cell_size(_joined(kept), min(width, cell_len(_joined(kept))))


def _joined(fields: list[tuple[int, str]]) -> str:
    return " | ".join(text for _, text in fields)


def short(number: float) -> str:
    """A count of at least 1,000 with k, M, G or T: 61,234 is ``61.2k``."""
    unit, suffix = 1, ""
    for larger in "kMGT":
        if int(number) < 1000 * unit:
            break
        unit, suffix = 1000 * unit, larger
    return f"{number / unit:.{1 if suffix else 0}f}{suffix}"


def count(number: float) -> str:
    """A count with all its digits below a million, shortened from there on."""
    return f"{int(number):,}" if number < 1e6 else short(number)


def clock(seconds: float) -> str:
    """``mm:ss``, and ``h:mm:ss`` from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"
