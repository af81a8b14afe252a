"""How much sooner a suite of runs ends with two workers than with one.

    python benchmarks/suite_scaling.py [--runs 16] [--updates 2000] [--workers 1 2] [--folder DIR]

The same suite of equal runs on pendulum is run once with each number of workers, in a folder of its own.  Beside the
wall seconds of the driver stand the CPU seconds of the driver and of all its runs over them: how many CPUs the suite
kept busy, which other programs on the machine disturb less than the ratio of wall seconds.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SUITE = """
[base]
env = "pendulum"
updates = {updates}
[matrix]
seed = "0..{last}"
"""


def timed(root: Path, workers: int) -> tuple[float, float]:
    """Wall and CPU seconds of the suite with so many workers."""
    command = [sys.executable, "-m", "diffsim", "suite", "run", str(root / "suite.toml")]
    started = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--out", str(root / str(workers)), "--workers", str(workers)], stdout=subprocess.DEVNULL
    )
    _, status, used = os.wait4(process.pid, 0)  # with all children that it has waited for
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return time.perf_counter() - started, used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=16)
    parser.add_argument("--updates", type=int, default=2000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--folder", help="where to put the files; a temporary folder if not given")
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(dir=arguments.folder, prefix="suite-scaling-"))
    try:
        (root / "suite.toml").write_text(SUITE.format(updates=arguments.updates, last=arguments.runs - 1))
        first = 0.0
        for workers in arguments.workers:
            wall, cpu = timed(root, workers)
            first = first or wall
            print(
                f"{workers} workers: {wall:.1f} s wall, {cpu:.1f} s CPU, {cpu / wall:.2f} CPUs busy, "
                f"{first / wall:.2f} times as fast as with {arguments.workers[0]}",
                flush=True,
            )
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
