"""Several trainings on one card: one alone, and sixteen at once, a process each.

Each is the default on the pendulum, with two cores' worth of threads at most.  The processes share the card in turns,
or at the same time where NVIDIA's MPS runs (``nvidia-cuda-mps-control -d``), which the part starts and stops if the
machine has it.  A run's policy has to be the same to the last bit, alone and beside fifteen others.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from diffsim import load_policy
from gpu_parts.report import Report, SkippedError

SEEDS = 16
UPDATES = 300
ROOT = Path(__file__).resolve().parents[2]


def run(report: Report, device: torch.device, quick: bool) -> None:
    """Every case of the part."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        report.case("warm", lambda: at_once(1, folder / "warm", device, quick, 5))
        report.case("1 at once", lambda: at_once(1, folder / "one", device, quick), needs=20.0)

        def with_mps() -> dict[str, Any]:
            with mps(folder):
                return at_once(SEEDS, folder / "mps", device, quick)

        report.case(f"{SEEDS} at once, MPS", with_mps, needs=30.0)
        report.case("the same bits, MPS", lambda: same(folder / "one", folder / "mps"))
        report.case(f"{SEEDS} at once", lambda: at_once(SEEDS, folder / "all", device, quick), needs=30.0)
        report.case("the same bits", lambda: same(folder / "one", folder / "all"))


def at_once(
    count: int, out: Path, device: torch.device, quick: bool, updates: int = UPDATES
) -> dict[str, Any]:
    """Seconds from the first process's start to the last one's end."""
    out.mkdir(parents=True)
    settings = [f"updates={2 if quick else updates}", "evaluation.every=0", "evaluation.episodes=16"]
    begun = time.perf_counter()
    processes = []
    for seed in range(2 if quick and count > 1 else count):
        command = [
            sys.executable,
            "-m",
            "diffsim",
            "train",
            "pendulum",
            "--device",
            str(device),
            "--seed",
            str(seed),
        ]
        command += ["--out", str(out / str(seed)), *(f"--set={setting}" for setting in settings)]
        log = (out / f"{seed}.log").open("w")
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log))
    codes = [process.wait() for process in processes]
    seconds = time.perf_counter() - begun
    if any(codes):
        raise RuntimeError(f"ended with {codes}: {(out / '0.log').read_text()[-500:]}")
    return {"trainings": len(codes), "updates": updates, "seconds": seconds}


def same(one: Path, others: Path) -> None:
    """Seed 0's policy, alone and beside others."""
    if not (others / "0").exists():
        raise SkippedError("was not trained")
    a, b = (load_policy(folder / "0").module.state_dict() for folder in (one, others))
    different = [name for name in a if not torch.equal(a[name].cpu(), b[name].cpu())]
    assert not different, f"{', '.join(different)} differ"


@contextlib.contextmanager
def mps(folder: Path) -> Iterator[None]:
    """NVIDIA's Multi-Process Service, with which the kernels of several processes run at the same time."""
    control = shutil.which("nvidia-cuda-mps-control")
    if control is None:
        raise SkippedError("there is no nvidia-cuda-mps-control")
    places = {"CUDA_MPS_PIPE_DIRECTORY": str(folder / "pipe"), "CUDA_MPS_LOG_DIRECTORY": str(folder / "log")}
    for place in places.values():
        Path(place).mkdir()
    os.environ |= places
    subprocess.run([control, "-d"], check=True, timeout=20)
    try:
        yield
    finally:
        subprocess.run([control], input="quit\n", text=True, check=False, timeout=20)
        for name in places:
            del os.environ[name]
