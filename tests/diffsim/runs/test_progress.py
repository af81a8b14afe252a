"""Progress as a person sees it, on terminals of two widths and in pipes, and what happens when nobody reads it."""

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
import time

import pyte
import pytest

from diffsim.runs.progress import Progress, clock, fit, short
from diffsim.runs.runfile import RunFile

ESCAPE = "\x1b"


def row(update, measured=float("nan"), steps=1_234_567):
    return {
        "update": update,
        "loss": 1234.5678,
        "return": measured,
        "env_steps": steps * update,
        "gradient_evaluations": 12_345 * update,
        "wall_seconds": 1.5 * update,
    }


class Terminal(io.StringIO):
    """A text stream that says it is a terminal."""

    def isatty(self):
        return True


class FailingStream(io.StringIO):
    """Writes ``good`` times, then fails."""

    def __init__(self, good, error):
        super().__init__()
        self.good, self.error = good, error

    def write(self, text):
        self.good -= 1
        if self.good < 0:
            raise self.error
        return super().write(text)


def on_a_terminal(columns, arguments, cwd, **environment):
    """What a process writes to a terminal of that width, and the screen afterwards, line by line."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    inherited = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, *map(str, arguments)], cwd=cwd, stdout=subprocess.DEVNULL, stderr=follower,
        env={**inherited, "TERM": "xterm-256color", **environment},
    )  # fmt: skip
    os.close(follower)
    written = b""
    while True:
        try:
            read = os.read(leader, 4096)
        except OSError:  # EIO: the other end is closed
            break
        if not read:
            break
        written += read
    os.close(leader)
    assert process.wait() == 0, written.decode()
    screen = pyte.Screen(columns, 24)
    pyte.Stream(screen).feed(written.decode())
    assert not screen.cursor.hidden
    return written.decode(), [line.rstrip() for line in screen.display if line.strip()]


SHOW = """
import sys
from diffsim.runs.progress import Progress
with Progress(500) as progress:
    progress.status("loading")
    for update in range(1, 41):
        progress.show({"update": update, "loss": -0.0012345, "return": -1234.5 if update % 5 == 0 else float("nan"),
                       "env_steps": 1000000 * update, "gradient_evaluations": 123456, "wall_seconds": 1.0 * update})
        if update == 20:
            progress.say("update 20: step dropped, " + "word " * 30)
        progress.status("evaluating")
    progress.show({"update": 500, "loss": -0.0012345, "return": -1234.5, "env_steps": 123456789,
                   "gradient_evaluations": 123456, "wall_seconds": 10.0})
"""


@pytest.mark.parametrize("columns", [200, 80, 60, 20])
def test_the_live_line_fits_the_terminal_and_a_message_stays_above_it(columns, tmp_path):
    text, screen = on_a_terminal(columns, ["-c", SHOW], tmp_path)
    message = "update 20: step dropped, " + "word " * 30
    assert "".join(screen[:-1]).replace(" ", "") == message.replace(
        " ", ""
    )  # the terminal wraps it, we do not
    last = screen[-1]
    assert last.startswith("update 500/500"[: columns - 1])
    assert len(last) < columns
    for field, from_width in (("return -1234.5", 60), ("ETA 00:00", 60), ("loss -0.001234", 80),
                              ("123.5M env steps", 80), ("steps/s", 200), ("gradients", 200)):  # fmt: skip
        assert (field in last) == (columns >= from_width), (field, last)
    # No frame is wider than the terminal: nothing wraps on its way either.
    frames = [re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", frame) for frame in re.split(r"[\r\n]", text)]
    frames = [frame for frame in frames if frame and frame.strip() != message.strip()]
    assert max(map(len, frames)) < columns
    assert any("loading" in frame for frame in frames)
    assert any("evaluating" in frame for frame in frames) or columns == 20


def test_training_on_a_terminal_leaves_one_line(tmp_path):
    small = ("algorithm.batch=8", "evaluation.every=4", "evaluation.episodes=2")
    arguments = ["-m", "diffsim", "train", "pendulum", "--out", "run", "--updates", 12]
    text, screen = on_a_terminal(80, [*arguments, *(w for s in small for w in ("--set", s))], tmp_path)
    assert len(screen) == 1
    assert re.match(r"update 12/12 \| loss \S+ \| return -\d+\.\d", screen[0])
    assert not re.search(r"\x1b\[[\d;]*m", text)


def test_of_phases_alone_nothing_stays(tmp_path):
    code = "from diffsim.runs.progress import Progress\nwith Progress() as p:\n    p.status('loading')\n"
    text, screen = on_a_terminal(80, ["-c", code], tmp_path)
    assert "loading" in text
    assert screen == []


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"TERM": "unknown"}])
def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines(environment, tmp_path):
    text, screen = on_a_terminal(200, ["-c", SHOW], tmp_path, **environment)
    assert ESCAPE not in text
    assert screen[0] == "loading"
    assert sum(line.startswith("update") and "|" in line for line in screen) == 9  # the evaluations


def test_without_colours_there_are_none(tmp_path):
    text, _ = on_a_terminal(80, ["-c", SHOW], tmp_path, NO_COLOR="1")
    assert not re.search(r"\x1b\[[\d;]*m", text)


@pytest.mark.parametrize("variable", ["FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLORTERM"])
def test_pipes_get_plain_lines_whatever_the_environment_asks_for(variable, monkeypatch):
    monkeypatch.setenv(variable, "1")
    stream = io.StringIO()
    with Progress(10, stream=stream) as progress:
        progress.status("loading")
        progress.status("compiling the rollout")
        progress.show(row(1))
        progress.status("evaluating")
        progress.show(row(2, -170.25))
        progress.say("a [bold]message[/] about 3 things :smile: in /a/" + "long/" * 40)
        progress.show(row(3))
    lines = stream.getvalue().split("\n")
    assert lines[:2] == ["loading", "compiling the rollout"]
    # The first row is printed only if nothing was for ten seconds; the evaluation at once.
    assert lines[2].startswith(
        "update 2/10 | loss 1235 | return -170.2 | 2.5M env steps | 24,690 gradients | 823.0k steps/s | ETA "
    )
    assert lines[3] == "a [bold]message[/] about 3 things :smile: in /a/" + "long/" * 40
    assert lines[4:] == [""]
    assert ESCAPE not in stream.getvalue()


def test_plain_lines_come_every_so_many_seconds():
    stream = io.StringIO()
    with Progress(10, stream=stream, seconds=0.0) as progress:
        for update in range(1, 4):
            progress.show(row(update))
            progress.status("writing", update, 3)
    shown = [line.split(" |")[0] for line in stream.getvalue().splitlines()]
    assert shown == [
        "update 1/10",
        "writing 1 of 3",
        "update 2/10",
        "writing 2 of 3",
        "update 3/10",
        "writing 3 of 3",
    ]


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_quiet_is_silent_except_for_messages(stream):
    quiet = stream()
    with Progress(3, quiet=True, stream=quiet) as progress:
        progress.status("loading")
        progress.show(row(1, -1.0))
        progress.say("something happened")
    assert quiet.getvalue() == "something happened\n"


def test_counts_of_a_phase():
    stream = io.StringIO()
    with Progress(stream=stream, seconds=1e9) as progress:
        for done in range(1001):
            progress.status("render.gif: frame", done, 1000)
    assert stream.getvalue() == "render.gif: frame 0 of 1,000\n"  # later ones only every ``seconds``


ERRORS = [BrokenPipeError(32, "Broken pipe"), OSError(28, "No space left on device"), OSError(5, "I/O error"),
          ValueError("I/O operation on closed file")]  # fmt: skip


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
@pytest.mark.parametrize("error", ERRORS, ids=str)
@pytest.mark.parametrize("good", range(0, 12, 3))
def test_a_stream_that_fails_silences_the_display(kind, error, good):
    class Stream(FailingStream, kind):
        pass

    stream = Stream(good, error)
    before = threading.active_count()
    with Progress(100, stream=stream, seconds=0.0) as progress:
        progress.status("loading")
        for update in range(1, 20):
            progress.show(row(update, -1.0))
            progress.say("something happened")
        assert threading.active_count() == before
        calls = stream.good
        progress.say("nobody hears this")
        assert stream.good == calls == -1  # it is not tried again


def test_a_closed_or_missing_stream_is_silence(monkeypatch):
    closed = Terminal()
    with Progress(2, stream=closed) as progress:
        progress.show(row(1, -1.0))
        closed.close()
        progress.show(row(2, -1.0))
    with Progress(2, stream=closed) as progress:
        progress.show(row(1, -1.0))
    monkeypatch.setattr(sys, "stderr", None)  # what Python does when it starts with a closed one
    with Progress(2) as progress:
        progress.show(row(1, -1.0))
        progress.say("something happened")


def test_a_full_pipe_that_does_not_wait_loses_lines_but_not_the_display():
    class Full(io.StringIO):
        full = True

        def write(self, text):
            if self.full:
                raise BlockingIOError(11, "Resource temporarily unavailable")
            return super().write(text)

    stream = Full()
    with Progress(2, stream=stream) as progress:
        progress.say("lost")
        stream.full = False
        progress.say("found")
    assert stream.getvalue() == "found\n"


def test_what_the_stream_cannot_encode_is_escaped():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    with Progress(2, stream=stream) as progress:
        progress.say("Ümlaut")
        progress.say("plain")
    assert stream.buffer.getvalue() == b"\\xdcmlaut\nplain\n"


LONG = ["train", "pendulum", "--out", "run", "--updates", "12", "--set", "checkpoint_every=6",
        "--set", "evaluation.every=2", "--set", "evaluation.episodes=2", "--set", "algorithm.batch=8"]  # fmt: skip


def test_the_reader_of_a_pipe_goes_away_and_training_goes_on(tmp_path):
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "diffsim", *LONG],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=writer,
        text=True,
    )
    os.close(writer)
    assert os.read(reader, 1)
    os.close(reader)
    out, _ = process.communicate()
    assert process.returncode == 0  # 120 if the interpreter still had something to write at its end
    assert out.startswith("finished: 12 updates")
    assert len(RunFile(tmp_path / "run").history()["update"]) == 12


def test_the_terminal_goes_away_and_training_goes_on(tmp_path):
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "diffsim", *LONG], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=follower,
        start_new_session=True,
    )  # fmt: skip
    os.close(follower)
    assert os.read(leader, 1)
    os.close(leader)
    assert process.wait() == 0
    assert len(RunFile(tmp_path / "run").history()["update"]) == 12


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_full_disk_under_the_progress_does_not_end_training(tmp_path):
    with open("/dev/full", "w") as full:
        process = subprocess.run(
            [sys.executable, "-m", "diffsim", *LONG], cwd=tmp_path, stderr=full, check=False
        )
    assert process.returncode == 0
    assert len(RunFile(tmp_path / "run").history()["update"]) == 12


def test_a_resumed_run_estimates_from_its_own_updates():
    stream = io.StringIO()
    progress = Progress(stream=stream)
    progress.begin(100, 50)
    progress._started = time.monotonic() - 10.0
    progress.show(row(60, -1.0))
    assert stream.getvalue().rstrip().endswith("ETA 00:40")  # ten updates took ten seconds, forty are left


def test_parts():
    fields = [(9, "update 1/2"), (1, "gradients"), (5, "loss")]
    assert fit(fields, 80) == "update 1/2 | gradients | loss"
    assert fit(fields, 20) == "update 1/2 | loss"
    assert fit(fields, 12) == "update 1/2"
    assert fit(fields, 6) == "update"
    assert fit([(1, "日本語")], 5) == "日本 "  # each takes two columns
    assert [short(n) for n in (0, 950, 1_000, 61_234, 5_250_000, 3e12)] == [
        "0", "950", "1.0k", "61.2k", "5.2M", "3.0T",
    ]  # fmt: skip
    assert [clock(s) for s in (0, 59.6, 3599, 3600, 90_061)] == [
        "00:00",
        "01:00",
        "59:59",
        "1:00:00",
        "25:01:01",
    ]
