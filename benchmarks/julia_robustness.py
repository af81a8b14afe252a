"""Trainings through Julia with several threads, each interrupted by Ctrl-C and resumed: does anything crash or differ?

    python benchmarks/julia_robustness.py --out benchmarks/results/julia_robustness.json

For 1, 2 and 4 Julia threads, 20 times: a process trains on the three-body transfer (batches of 64 rollouts, adaptive
solves spread over the threads, backward passes), gets SIGINT after a random while, has to end with exit code 130 and
a checkpoint, is resumed in a second process, and its whole history has to equal, bit for bit, that of a training that
nobody interrupted.  Any other end is counted as what it is.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from diffsim.runs.provenance import describe
from diffsim.runs.runfile import RunFile

THREADS, RUNS, UPDATES = (1, 2, 4), 20, 60
SETTINGS = ("algorithm.batch=64", "evaluation.every=0", "evaluation.episodes=1", "checkpoint_every=10")


def command(folder: Path, threads: int) -> list[str]:
    settings = [part for assignment in SETTINGS for part in ("--set", assignment)]
    return [
        *(sys.executable, "-m", "diffsim", "train", "julia:ThreeBody", "--out", str(folder)),
        *("--threads", str(threads), "--updates", str(UPDATES), "--quiet", *settings),
    ]


def once(folder: Path, threads: int, wait: float, reference: dict[str, np.ndarray]) -> str:
    """Train, interrupt after ``wait`` seconds of updates, resume, compare; in a word what came of it."""
    process = subprocess.Popen(command(folder, threads), stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (folder / "run.h5").exists():
        time.sleep(0.01)
    time.sleep(wait)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=300)
    if process.returncode not in (130, 0):
        return f"first process ended with {process.returncode}: {said.strip()[-200:]}"
    done = len(RunFile(folder).history()["update"])
    resumed = subprocess.run(
        [sys.executable, "-m", "diffsim", "train", "--out", str(folder), "--resume", "--quiet"],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    if resumed.returncode:
        return f"second process ended with {resumed.returncode}: {resumed.stderr.strip()[-200:]}"
    history = RunFile(folder).history()
    if not all(np.array_equal(history[name], reference[name]) for name in ("loss", "grad_norm", "env_steps")):
        return "differs"
    return (
        "equal after an interruption"
        if 0 < done < UPDATES
        else "equal, interrupted before or after the updates"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--runs", type=int, default=RUNS)
    arguments = parser.parse_args()
    os.environ.pop("PYTHON_JULIACALL_THREADS", None)
    draw = random.Random(0)
    results: dict[str, object] = {"provenance": describe("cpu"), "runs": arguments.runs, "updates": UPDATES}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(command(Path(folder, "whole"), 1), check=True)
        reference = RunFile(Path(folder, "whole")).history()
        for threads in THREADS:
            waits = [draw.uniform(0.2, 1.5) for _ in range(arguments.runs)]
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                ends = Counter(
                    pool.map(
                        lambda run, wait, n=threads: once(Path(folder, f"{n}-{run}"), n, wait, reference),
                        range(arguments.runs),
                        waits,
                    )
                )
            results[f"{threads} threads"] = dict(ends)
            print(f"{threads} threads: {dict(ends)}", flush=True)
            if arguments.out:
                arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
