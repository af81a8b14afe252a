"""Everything of the project that runs on a CUDA device, checked and timed on one: one command, at most 8 minutes.

    python benchmarks/gpu.py --out benchmarks/results/gpu.json

It needs no network, and of installed software torch, NumPy and what --requirements lists; missing distributions are
installed from the folder --wheels, if it is there.  Without a CUDA device it says so and ends with status 0.

Parts, in this order: kernels, speed, robots, crossing, training, seeds, synchronization, graphs, rollouts, solve.  A
check that fails does not stop the others; the status is then 1.  A check for which no time is left is reported as not
run.  The results are written after every check, so an end before its time loses none.

    python benchmarks/gpu.py --device cpu --quick     every part at small sizes, as a test of this script
    python benchmarks/gpu.py --requirements           what this Python lacks, and how to bring it here
    python benchmarks/gpu.py --table FILE             the tables of a result; with --only those of a part
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a GPU machine has torch, not this project

from gpu_parts import requirements
from gpu_parts.report import OUT_OF_TIME, Report, write

ROOT = Path(__file__).resolve().parent.parent
PARTS: dict[str, tuple[str, float]] = {
    "kernels": ("gpu_parts.kernels", 60.0),
    "speed": ("gpu_parts.speed", 130.0),
    "robots": ("gpu_parts.robots", 70.0),
    "crossing": ("gpu_parts.crossing", 70.0),
    "training": ("gpu_parts.training", 40.0),
    "seeds": ("gpu_parts.seeds", 60.0),
    "synchronization": ("gpu_parts.synchronization", 30.0),
    "graphs": ("gpu_parts.graphs", 50.0),
    "rollouts": ("gpu_parts.rollouts", 80.0),
    "solve": ("gpu_parts.solves", 480.0),
}
"""Module and most seconds of every part, unless --quick; the last one takes what is left."""

BEGUN = ("robots", "crossing")
"""Parts that compile for long, beside those before them."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="JSON to write")
    parser.add_argument("--device", default="cuda", help="torch device; cpu tests the script itself")
    parser.add_argument("--seconds", type=float, default=440.0, help="no check is started after so many")
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, and nothing that compiles for long"
    )
    parser.add_argument(
        "--only", action="append", choices=PARTS, help="this part, and keep the others' results"
    )
    parser.add_argument("--requirements", action="store_true", help="list what is missing, and end")
    parser.add_argument(
        "--wheels", type=Path, default=ROOT / "wheels", help="folder of wheels to install from"
    )
    parser.add_argument("--download", nargs="*", metavar="NAME", help="fetch wheels into --wheels, and end")
    parser.add_argument("--python-version", default="3.12", help="of the Python that --download is for")
    parser.add_argument(
        "--platform", action="append", help="wheel tag that --download accepts; may be repeated"
    )
    parser.add_argument("--table", type=Path, help="print the tables of a result, and end")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    return parser.parse_args()


def why_not(device: str) -> str:
    """Why there is nothing to check here, in one sentence; empty if there is."""
    needs = "the checks need an NVIDIA GPU and a torch built for CUDA (or --device cpu --quick)"
    if importlib.util.find_spec("torch") is None:
        return f"Skipped: {sys.executable} has no torch; {needs}."
    import torch

    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        return f"Skipped: torch {torch.__version__} finds no CUDA device here; {needs}."
    return ""


def machine(device: str) -> dict[str, Any]:
    """The device, and the versions of what runs on it."""
    import torch

    facts: dict[str, Any] = {
        "device": device,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "float32 matrix products": torch.get_float32_matmul_precision(),
    }
    if torch.device(device).type == "cuda":
        found = torch.cuda.get_device_properties(device)
        facts |= {
            "device": found.name,
            "compute capability": f"{found.major}.{found.minor}",
            "memory in bytes": found.total_memory,
            "multiprocessors": found.multi_processor_count,
            "driver": _first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        }
    for name in ("triton", "jax", "jaxlib", "numpy", "torchdiffeq", "cma", "evotorch", "cuda-core"):
        try:
            facts[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            facts[name] = "not installed"
    return facts


def _first_line(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return next(iter(done.stdout.splitlines()), "unknown").strip()


def run_parts(names: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """Run the parts one after the other; each ends at its own limit or at the limit of all."""
    import torch

    started = time.monotonic()
    torch.set_num_threads(1)  # the CPU's tensors are small: a second thread would mostly wait
    # A check that hangs cannot be skipped: end the process with its stack, the results are in the file.
    faulthandler.dump_traceback_later(options.seconds + 35.0, exit=True)
    results: dict[str, Any] = {
        "machine": machine(options.device),
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "git_revision": _first_line("git", "-C", str(ROOT), "describe", "--always", "--abbrev=40", "--dirty"),
        "quick": options.quick,
        "parts": kept(options),
    }
    for name in BEGUN if torch.device(options.device).type == "cuda" and not options.quick else ():
        if name in names:
            importlib.import_module(PARTS[name][0]).begin()
    for name in names:
        module, most = PARTS[name]
        begun = time.monotonic()
        report = Report(
            min(begun + (options.seconds if options.quick else most), started + options.seconds),
            save=lambda: write(results, options.out),
        )
        results["parts"][name] = part = {"cases": report.cases}
        print(f"\n{name}, {max(report.left, 0.0):.0f} s at most", flush=True)
        report.case("import", lambda m=module: importlib.import_module(m) and None)
        if report.cases["import"]["state"] == "passed":
            importlib.import_module(module).run(report, torch.device(options.device), options.quick)
        part["seconds"] = round(time.monotonic() - begun, 1)
    results["seconds"] = round(time.monotonic() - started, 1)
    write(results, options.out)
    faulthandler.cancel_dump_traceback_later()
    return results


def kept(options: argparse.Namespace) -> dict[str, Any]:
    """With --only, the other parts of the file, if they are of this device and this torch."""
    if not (options.only and options.out and options.out.exists()):
        return {}
    old = json.loads(options.out.read_text(encoding="utf-8"))
    same = old["machine"] == machine(options.device) and old["quick"] == options.quick
    return {name: part for name, part in old["parts"].items() if same and name not in options.only}


# Tables -------------------------------------------------------------------------------------------


def tables(results: Mapping[str, Any]) -> str:
    """Markdown: how many checks of every part passed, what failed, and the speeds."""
    from rollout_tables import table

    lines = []
    for name, part in results["parts"].items():
        states = [case["state"] for case in part["cases"].values()]
        counts = [
            str(sum(s.startswith(kind) for s in states)) for kind in ("passed", "failed", "skipped", "not")
        ]
        lines.append([name, *counts, f"{part.get('seconds', 0.0):.0f}"])
    blocks = [table(["part", "passed", "failed", "skipped", "not run", "seconds"], lines)]
    failures = [
        f"{name}, {case}: {found.get('error', '')}"
        for name, part in results["parts"].items()
        for case, found in part["cases"].items()
        if found["state"] == "failed"
    ]
    blocks += ["\n".join(["Failed:", *failures])] if failures else []
    blocks += figures(results, list(PARTS))
    facts = results["machine"]
    cuda = f", driver {facts['driver']}" if "driver" in facts else ""
    blocks.append(f"{facts['device']}{cuda}; torch {facts['torch']}, jax {facts['jax']}; {results['date']}")
    return "\n\n".join(blocks)


def figures(results: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """What was measured in the parts of these names, as tables."""
    makers = {"speed": speeds, "crossing": crossings, "seeds": at_once}
    return [
        made
        for name, make in makers.items()
        if name in names
        for made in make(results["parts"].get(name, {}).get("cases", {}))
    ]


def speeds(cases: Mapping[str, Any]) -> list[str]:
    """A table a simulator: millions of environment steps per second, by contestant and batch."""
    from rollout_tables import number, table

    rows: dict[str, dict[str, dict[int, str]]] = {}
    longest = max((found.get("steps", 0) for found in cases.values()), default=0)
    for name, found in cases.items():
        env, *contestant, batch = name.split() if " " in name else ("", name)
        if not batch.isdecimal():
            continue
        cell = found["state"].partition(":")[0]
        if found.get("out of memory"):
            cell = "out of memory"
        elif "steps per second" in found:
            cell = number(found["steps per second"], 1e6)
            cell += f" ({found['steps']} intervals)" if found["steps"] < longest else ""
        rows.setdefault(env, {}).setdefault(" ".join(contestant), {})[int(batch)] = cell
    made = []
    for env, contestants in rows.items():
        batches = sorted({batch for row in contestants.values() for batch in row})
        head = [f"{env}, {longest} intervals, millions of steps per second", *(f"B = {b:,}" for b in batches)]
        lines = [
            [name, *(row.get(batch, "–") for batch in batches)]
            for name, row in contestants.items()
            if any(cell[0].isdigit() or cell == "out of memory" for cell in row.values())
        ]
        made.append(table(head, lines))
    return made


def crossings(cases: Mapping[str, Any]) -> list[str]:
    """From how many rollouts on the card is faster than two cores."""
    from rollout_tables import number, table

    head = ["simulator", "two cores, million steps/s", "card, million steps/s", "equally fast at B ="]
    lines = [
        [
            name.removeprefix("crossing "),
            number(found["steps per second, CPU"], 1e6),
            number(found["steps per second, card"], 1e6),
            "–" if found["crossing"] is None else f"{found['crossing']:,}",
        ]
        for name, found in cases.items()
        if "crossing" in found
    ]
    return [table(head, lines)] if lines else []


def at_once(cases: Mapping[str, Any]) -> list[str]:
    """Seconds of trainings side by side."""
    from rollout_tables import table

    lines = [
        [name, str(found["trainings"]), f"{found['seconds']:.1f}"]
        for name, found in cases.items()
        if "trainings" in found and name != "warm"
    ]
    return [table(["processes", "trainings", "seconds of all"], lines)] if lines else []


def main() -> int:
    """The exit status: 0 all well or nothing to check here, 1 a check failed or something is missing."""
    options = arguments()
    if options.table:
        results = json.loads(options.table.read_text(encoding="utf-8"))
        print("\n\n".join(figures(results, options.only)) if options.only else tables(results))
        return 0
    if options.requirements:
        missing = requirements.gaps(requirements.declared())
        print(requirements.told(missing))
        return int(bool(missing))
    if options.download is not None:
        tags = options.platform or requirements.PLATFORMS
        for name in requirements.download(options.wheels, options.download, options.python_version, tags):
            print(options.wheels / name)
        return 0
    if options.worker:
        module, *given = options.worker
        importlib.import_module(f"gpu_parts.{module}").worker(*given)
        return 0
    reason = why_not(options.device)
    if reason:
        print(reason)
        return 0
    missing = requirements.gaps(requirements.declared())
    if missing and options.wheels.is_dir():
        target = options.wheels / f"installed-{sys.implementation.cache_tag}"
        try:
            requirements.install(options.wheels, target)
        except RuntimeError as error:
            print(error)
        # For the processes that JAX and inductor start.
        os.environ["PYTHONPATH"] = os.pathsep.join(
            [str(target), *filter(None, [os.environ.get("PYTHONPATH")])]
        )
        missing = requirements.gaps(requirements.declared())
    if missing:
        print(requirements.told(missing))
        return 1
    results = run_parts(options.only or list(PARTS), options)
    print(f"\n{tables(results)}")
    if options.out:
        print(f"\nwritten: {options.out}")
    states = [case["state"] for part in results["parts"].values() for case in part["cases"].values()]
    if OUT_OF_TIME in states:
        print(f"{states.count(OUT_OF_TIME)} checks were not run: out of time")
    return int("failed" in states)


if __name__ == "__main__":
    sys.exit(main())
