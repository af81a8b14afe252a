"""Where an update of the default algorithm, and a whole training, spend their time.

    python benchmarks/update_parts.py --out benchmarks/results/update_parts.json
    python benchmarks/update_parts.py --trainings benchmarks/results/training_parts.json
    python benchmarks/update_parts.py --draw benchmarks/results/training_parts.json --out docs/performance.svg

The first compares an update with the former path of torch operations.  Two runs of each simulator, from the same
seed, take turns in one process on one thread: the present one, and one in which torch computes what is compiled beside
the rollouts (the critic's targets and fit, the losses of windows, the policy's network on them, the observation and its
derivative).  Rollouts are compiled in both.  Prints medians and quartiles of the CPU time of an update in milliseconds,
by part; a part does not count the parts inside it.

The second trains at default settings, each time in a process of its own, and writes the CPU seconds of each part from
the start of the process to its end, of the run in the middle of ``--repeats``.  The kernel cache is filled.  CPU time
depends little on what else the machine does, and does not count waiting for the disk.  The third draws the file.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import click
import torch

from diffsim.algorithms import kernels, tanh_stack, value_gradient, window_losses
from diffsim.algorithms.costate_critic import CostateCritic
from diffsim.algorithms.value_gradient import ValueGradient, WindowObjective
from diffsim.assembly import assemble
from diffsim.config import load_config
from diffsim.optimizers.base import Optimizer
from diffsim.rollouts import observed
from diffsim.rollouts.engines import Engines
from diffsim.rollouts.native import Native
from diffsim.rollouts.observed import Observed
from diffsim.rollouts.rollout import Rollout
from diffsim.runs import run as runs
from diffsim.runs.runfile import RunFile
from diffsim.runs.validation import Validation

KERNEL = "rollout kernel"
PARTS: dict[str, tuple[tuple[Any, str], ...]] = {
    KERNEL: ((Native, "forward"), (Native, "backward")),
    "finding the kernel": ((Rollout, "_inputs"), (Rollout, "_engine")),
    "critic's fit": ((CostateCritic, "fit"),),
    "critic's targets": ((CostateCritic, "targets"),),
    "observation": ((Observed, "__call__"),),
    "its derivative": ((Observed, "jacobian"),),
    "windows' losses": ((value_gradient, "weigh"),),
    "policy's gradient": ((WindowObjective, "gradient"),),
    "optimizer": ((Optimizer, "step"),),
    "what the critic is given": ((ValueGradient, "_fit_critic"),),
    "starts and noise": ((ValueGradient, "_draw"),),
    "everything else": ((ValueGradient, "step"),),
}
FORMER = {"present": False, "former": True}

LOADING, PREPARING, EVALUATIONS, FILE = (
    "Python, torch, imports",
    "preparing kernels",
    "evaluations",
    "run file",
)
UNDIVIDED: dict[str, tuple[tuple[Any, str], ...]] = {
    PREPARING: ((Engines, "_found"), (Observed, "_prepared"), (kernels, "load")),
    EVALUATIONS: ((Validation, "__call__"),),
    FILE: ((RunFile, "create"), (RunFile, "update")),
}
"""Of a whole training, beside the parts of an update; what happens inside these is not told apart."""
REST = "rest"
CRITIC = ("critic's fit", "critic's targets", "what the critic is given", "observation", "its derivative")
GROUPS: dict[str, tuple[str, ...]] = {
    LOADING: (LOADING,),
    PREPARING: (PREPARING,),
    KERNEL: (KERNEL, "finding the kernel"),
    "critic": CRITIC,
    "policy and optimizer": (
        "windows' losses",
        "policy's gradient",
        "optimizer",
        "starts and noise",
        "everything else",
    ),
    EVALUATIONS: (EVALUATIONS,),
    FILE: (FILE,),
    REST: (REST,),
}
"""What the picture shows as one."""


class Clock:
    """CPU seconds by part; while one part runs inside another, only the inner one counts."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._parts: list[str] = []
        self._since = 0.0

    def _switch(self) -> None:
        now = time.process_time()
        if self._parts:
            self.seconds[self._parts[-1]] += now - self._since
        self._since = now

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._parts and self._parts[-1] in UNDIVIDED:
                return function(*args, **kwargs)
            self._switch()
            self._parts.append(part)
            try:
                return function(*args, **kwargs)
            finally:
                self._switch()
                self._parts.pop()

        return call


@contextlib.contextmanager
def parts_timed(clock: Clock, parts: Mapping[str, tuple[tuple[Any, str], ...]] = PARTS) -> Iterator[None]:
    """While inside, the functions of all parts are timed."""
    with contextlib.ExitStack() as stack:
        for part, methods in parts.items():
            for owner, name in methods:
                timed = clock.timed(part, getattr(owner, name))
                stack.enter_context(mock.patch.object(owner, name, timed))
        yield


@contextlib.contextmanager
def compiled(former: bool) -> Iterator[None]:
    """While inside, only rollouts are compiled if ``former``."""
    known = () if former else tanh_stack.BACKENDS
    with contextlib.ExitStack() as stack:
        for module in (tanh_stack, observed, window_losses):
            stack.enter_context(mock.patch.object(module, "BACKENDS", known))
        yield


def measure(env: str, updates: int, warm_up: int, window: int | None) -> dict[str, Any]:
    """Milliseconds of every part of an update, for both paths: quartiles of ``updates`` updates."""
    options = {} if window is None else {"window": window, "window_end": window}
    algorithms, times = {}, {path: defaultdict(list) for path in FORMER}
    for path, former in FORMER.items():
        config = load_config(
            {"env": env, "updates": 600, "backend": "native", "threads": 1},
            {"algorithm": {"name": "value_gradient", **options}},
        )
        algorithms[path] = assemble(config).algorithm
        with compiled(former):
            for _ in range(warm_up):
                algorithms[path].step()
    for k in range(updates):
        for path in sorted(FORMER, reverse=bool(k % 2)):
            clock = Clock()
            with compiled(FORMER[path]), parts_timed(clock):
                algorithms[path].step()
            for part in PARTS:
                times[path][part].append(1e3 * clock.seconds[part])
            times[path]["whole update"].append(1e3 * sum(clock.seconds.values()))
    result: dict[str, Any] = {"window": algorithms["present"].objective.steps}
    for path, by_part in times.items():
        result[path] = {part: statistics.quantiles(values, n=4) for part, values in by_part.items()}
        shares = [a / b for a, b in zip(by_part[KERNEL], by_part["whole update"], strict=True)]
        result[path]["kernel / whole"] = statistics.quantiles(shares, n=4)
    pairs = zip(times["former"]["whole update"], times["present"]["whole update"], strict=True)
    result["former / present"] = statistics.quantiles([a / b for a, b in pairs], n=4)
    return result


def table(env: str, result: dict[str, Any]) -> str:
    lines = [f"{env}, windows of {result['window']}; ms of CPU, median (quartiles)"]
    for part in result["present"]:
        cells = []
        for path in ("former", "present"):
            low, middle, high = result[path][part]
            cells.append(f"{middle:8.2f} ({low:6.2f} to {high:6.2f})")
        lines.append(f"  {part:28s}" + "  ".join(cells))
    low, middle, high = result["former / present"]
    lines.append(f"  former / present: {middle:.2f} ({low:.2f} to {high:.2f})")
    return "\n".join(lines)


def timed_training(env: str, updates: int | None) -> dict[str, float]:
    """CPU seconds by part of a training in this process, from its start."""
    clock = Clock()
    clock.seconds[LOADING] = time.process_time()
    settings = {"threads": 1} if updates is None else {"threads": 1, "updates": updates}
    with tempfile.TemporaryDirectory() as folder, parts_timed(clock, {**PARTS, **UNDIVIDED}):
        runs.train(env, Path(folder, "run"), quiet=True, **settings)
    return dict(clock.seconds)


def training_parts(env: str, repeats: int, updates: int | None) -> dict[str, float]:
    """CPU seconds by part of the training in the middle of ``repeats``; the one before them fills the cache."""
    found = []
    for _ in range(repeats + 1):
        command = [sys.executable, __file__, "--env", env, "--one"]
        command += [] if updates is None else ["--updates", str(updates)]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        total = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        parts = json.loads(done.stdout.splitlines()[-1])
        found.append({**parts, REST: total - sum(parts.values())})
    return sorted(found[1:], key=lambda parts: sum(parts.values()))[repeats // 2]


def draw(results: dict[str, Any], out: Path) -> None:
    """Bars of the shares of a training's parts."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "performance"  # equal files from equal results
    from matplotlib import pyplot

    trainings = results["trainings"]
    figure, axes = pyplot.subplots(figsize=(8, 0.9 + 0.55 * len(trainings)), layout="constrained")
    names = [f"{env}\n{sum(parts.values()):.1f} CPU s" for env, parts in trainings.items()]
    left = [0.0] * len(names)
    for color, (group, members) in zip(pyplot.colormaps["tab10"].colors, GROUPS.items(), strict=False):
        shares = [
            100 * sum(parts.get(part, 0.0) for part in members) / sum(parts.values())
            for parts in trainings.values()
        ]
        bars = axes.barh(names, shares, left=left, color=color, label=group)
        axes.bar_label(bars, [f"{q:.0f}" if q >= 4 else "" for q in shares], label_type="center", fontsize=8)
        left = [a + b for a, b in zip(left, shares, strict=True)]
    axes.invert_yaxis()
    axes.set(xlim=(0, 100), xlabel="% of the CPU seconds of the process")
    figure.legend(loc="outside upper center", ncols=4, fontsize=8, frameon=False)
    figure.savefig(out, metadata={"Date": None})


@click.command()
@click.option(
    "--env",
    "envs",
    multiple=True,
    help="Simulator; repeatable.  [default: cartpole_swingup, quadrotor, arm7; of trainings pendulum, quadrotor, "
    "arm7_point]",
)
@click.option(
    "--updates", type=int, help="Timed updates of each path, or of a training.  [default: 40; that of a run]"
)
@click.option("--warm-up", default=5, show_default=True, help="Updates before the first that is timed.")
@click.option(
    "--window", type=int, help="Control intervals of a window; by default as at the start of a run."
)
@click.option("--out", type=click.Path(path_type=Path))
@click.option("--trainings", type=click.Path(path_type=Path), help="File for the parts of whole trainings.")
@click.option("--repeats", default=3, show_default=True, help="Trainings of each simulator.")
@click.option("--draw", "drawn", type=click.Path(path_type=Path), help="File of trainings to draw to --out.")
@click.option("--one", is_flag=True, hidden=True)
def main(
    envs: tuple[str, ...],
    updates: int | None,
    warm_up: int,
    window: int | None,
    out: Path | None,
    trainings: Path | None,
    repeats: int,
    drawn: Path | None,
    one: bool,
) -> None:
    """Print a table for each simulator: the former path, then the present one."""
    if one:
        print(json.dumps(timed_training(envs[0], updates)))
        return
    if drawn is not None:
        draw(json.loads(drawn.read_text()), out or Path("docs/performance.svg"))
        return
    if trainings is not None:
        about = {"torch": torch.__version__, "machine": platform.platform(), "cores": os.cpu_count()}
        written: dict[str, Any] = {"about": {**about, "updates": updates}, "trainings": {}}
        for env in envs or ("pendulum", "quadrotor", "arm7_point"):
            written["trainings"][env] = training_parts(env, repeats, updates)
            print(env, {part: round(q, 2) for part, q in written["trainings"][env].items()}, flush=True)
        trainings.write_text(json.dumps(written, indent=1) + "\n")
        return
    torch.set_num_threads(1)
    results, updates = {}, updates or 40
    for env in envs or ("cartpole_swingup", "quadrotor", "arm7"):
        results[env] = measure(env, updates, warm_up, window)
        print(table(env, results[env]), flush=True)
    if out is not None:
        about = {"torch": torch.__version__, "machine": platform.platform(), "updates": updates}
        out.write_text(json.dumps({"about": about, "environments": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
