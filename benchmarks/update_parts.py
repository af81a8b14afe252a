"""Where an update of the default algorithm spends its time, against the former path of torch operations.

    python benchmarks/update_parts.py --out benchmarks/results/update_parts.json

Two runs of each simulator, from the same seed, take turns in one process on one thread: the present one, and one in
which torch computes what is compiled beside the rollouts (the critic's fit and values, the policy's network on
the windows, the observation and its derivative).  Rollouts are compiled in both.  Prints medians and quartiles of the
CPU time of an update in milliseconds, by part; a part does not count the parts inside it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import click
import torch

from diffsim.algorithms import tanh_stack
from diffsim.algorithms.costate_critic import CostateCritic
from diffsim.algorithms.value_gradient import ValueGradient, WindowObjective
from diffsim.assembly import assemble
from diffsim.config import load_config
from diffsim.optimizers.base import Optimizer
from diffsim.rollouts import observed
from diffsim.rollouts.native import Native
from diffsim.rollouts.observed import Observed
from diffsim.rollouts.rollout import Rollout

KERNEL = "rollout kernel"
PARTS: dict[str, tuple[tuple[type, str], ...]] = {
    KERNEL: ((Native, "forward"), (Native, "backward")),
    "finding the kernel": ((Rollout, "_inputs"), (Rollout, "_engine")),
    "critic's fit": ((CostateCritic, "fit"),),
    "critic's values": ((CostateCritic, "values"),),
    "observation": ((Observed, "__call__"),),
    "its derivative": ((Observed, "jacobian"),),
    "policy's loss and gradient": ((WindowObjective, "gradient"),),
    "optimizer": ((Optimizer, "step"),),
    "targets and scales": ((ValueGradient, "_fit_critic"),),
    "starts and noise": ((ValueGradient, "_draw"),),
    "everything else": ((ValueGradient, "step"),),
}
FORMER = {"present": False, "former": True}


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
            self._switch()
            self._parts.append(part)
            try:
                return function(*args, **kwargs)
            finally:
                self._switch()
                self._parts.pop()

        return call


@contextlib.contextmanager
def parts_timed(clock: Clock) -> Iterator[None]:
    """While inside, the methods of all parts are timed."""
    with contextlib.ExitStack() as stack:
        for part, methods in PARTS.items():
            for owner, name in methods:
                timed = clock.timed(part, getattr(owner, name))
                stack.enter_context(mock.patch.object(owner, name, timed))
        yield


@contextlib.contextmanager
def compiled(former: bool) -> Iterator[None]:
    """While inside, only rollouts are compiled if ``former``."""
    known = () if former else tanh_stack.BACKENDS
    with mock.patch.object(tanh_stack, "BACKENDS", known), mock.patch.object(observed, "BACKENDS", known):
        yield


def measure(env: str, updates: int, warm_up: int, window: int | None) -> dict[str, Any]:
    """Milliseconds of every part of an update, for both paths: quartiles of ``updates`` updates."""
    options = {} if window is None else {"window": window, "window_end": window}
    algorithms, times = {}, {path: defaultdict(list) for path in FORMER}
    for path, former in FORMER.items():
        config = load_config(
            {"env": env, "updates": 600, "backend": "native"},
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


@click.command()
@click.option(
    "--env", "envs", multiple=True, default=("cartpole_swingup", "quadrotor", "arm7"), show_default=True
)
@click.option("--updates", default=40, show_default=True, help="Timed updates of each path.")
@click.option("--warm-up", default=5, show_default=True, help="Updates before the first that is timed.")
@click.option(
    "--window", type=int, help="Control intervals of a window; by default as at the start of a run."
)
@click.option("--out", type=click.Path(path_type=Path))
def main(envs: tuple[str, ...], updates: int, warm_up: int, window: int | None, out: Path | None) -> None:
    """Print a table for each simulator: the former path, then the present one."""
    torch.set_num_threads(1)
    results = {}
    for env in envs:
        results[env] = measure(env, updates, warm_up, window)
        print(table(env, results[env]), flush=True)
    if out is not None:
        about = {"torch": torch.__version__, "machine": platform.platform(), "updates": updates}
        out.write_text(json.dumps({"about": about, "environments": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
