"""Rollouts with gradients against JAX, diffrax, torchdiffeq, torchode and Brax: speed, memory, start, growth.

    python benchmarks/rollouts.py --out benchmarks/results/rollouts.json
    python benchmarks/rollouts.py --table benchmarks/results/rollouts.json      with --only, those of sections

The task: the gradient of the mean cost by the parameters of an MLP policy (64-64 tanh, tanh squash) in closed
loop, float32, 200 control intervals (the arm: 50).  Peers: rollout_peers.py.

Sections:
  speed       environment steps per second, forward and backward, one thread
  threads     native and jax with two threads
  population  many policies without gradient, one thread
  memory      peak resident memory of forward and backward (Linux only)
  start       seconds to the first gradient with an empty and with a filled cache
  linear      native: how time grows with batch, horizon and substeps
  state size  native and eager: how time grows with the number of states

Every case runs in a process of its own that is bound to one core (threads: two), with empty caches.  In it,
all contestants are compiled and called once before the first timing, and every round runs each of them once,
in a new order; the slow ones take part in every third round.  Needs the extra ``bench``, and brax for --brax.
"""

from __future__ import annotations

import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import rollout_tables

ROOT = Path(__file__).resolve().parent.parent
ENVS = ("cartpole", "quadrotor", "arm7")
ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


class FailedError(Exception):
    """A process that measures has ended without a result."""


@dataclass(frozen=True)
class Sizes:
    """How large the problems are."""

    batches: tuple[int, ...] = (64, 1024, 8192)
    steps: int = 200
    steps_arm7: int = 50
    passes: int = 3
    """How often one thread and two threads take turns, a process each time."""
    threads_batches: tuple[int, ...] = (1024, 8192)
    policies: int = 256
    rollouts: int = 16
    memory_batch: int = 8192
    memory_repeats: int = 2
    start_repeats: int = 3
    vary: tuple[tuple[str, tuple[int, ...]], ...] = (
        ("batch", (64, 256, 1024, 4096, 16384)),
        ("steps", (50, 100, 200, 400, 800)),
        ("substeps", (1, 2, 4, 8)),
    )
    base: tuple[tuple[str, int], ...] = (("batch", 1024), ("steps", 200), ("substeps", 1))
    states: tuple[int, ...] = (2, 4, 8, 16, 32, 64, 128, 200)
    states_steps: int = 50


QUICK = Sizes(
    batches=(64,),
    steps=10,
    steps_arm7=3,
    passes=1,
    threads_batches=(512,),
    policies=4,
    rollouts=4,
    memory_batch=512,
    memory_repeats=1,
    start_repeats=1,
    vary=(("batch", (64, 128)), ("steps", (5, 10)), ("substeps", (1, 2))),
    base=(("batch", 64), ("steps", 10), ("substeps", 1)),
    states=(2, 8),
    states_steps=4,
)


@dataclass(frozen=True)
class Settings:
    """What the command line asked for; empty: the defaults."""

    rounds: int
    envs: Sequence[str]
    batches: Sequence[int]
    contestants: Sequence[str]
    brax: bool
    sizes: Sizes

    def steps(self, env: str) -> int:
        return self.sizes.steps_arm7 if env == "arm7" else self.sizes.steps


Cases = Iterator[tuple[str, Callable[[], dict]]]
"""Names of cases, and what measures them."""


def measured(measure: str, threads: int = 1, cache: Path | None = None, **arguments: Any) -> dict:
    """What ``rollout_measures`` finds in a process with so many cores and, by default, an empty cache."""
    with tempfile.TemporaryDirectory() as scratch:
        job, result = Path(scratch, "job.json"), Path(scratch, "result.json")
        job.write_text(json.dumps({"measure": measure, "threads": threads, "arguments": arguments}))
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": str(threads),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": ONE_THREAD if threads == 1 else "",
            "DIFFSIM_CACHE": str(cache or Path(scratch, "diffsim")),
            "TORCHINDUCTOR_CACHE_DIR": str(Path(scratch, "inductor")),
        }
        cores = set(sorted(os.sched_getaffinity(0))[-threads:])
        bind = functools.partial(os.sched_setaffinity, 0, cores)  # before torch and JAX count their cores
        command = [sys.executable, __file__, "--worker", job, result]
        done = subprocess.run(command, env=environment, preexec_fn=bind, check=False)
        if done.returncode:
            raise FailedError(f"measuring ended with exit status {done.returncode}")
        return json.loads(result.read_text())


# Sections -----------------------------------------------------------------------------------------


def contestants_of(env: str, batch: int, brax: bool) -> list[str]:
    """Those that take part by default: no slow ones at many rollouts, nor what compiles for long."""
    names = ["native", "jax", "jax best"]
    if batch > 1024:
        return names
    if batch == 1024 and env != "arm7":
        names.append("inductor")
    if batch >= 1024 or env != "arm7":
        names.append("diffrax")
    names += ["eager", "torch loop", "torchdiffeq", "torchode"]
    return [*names, "brax"] if brax and env == "cartpole" else names


def speed(settings: Settings) -> Cases:
    for env in settings.envs or ENVS:
        for batch in settings.batches or settings.sizes.batches:
            if batch > 1024 and env != "cartpole" and not settings.batches:
                continue
            yield (
                f"{env} {batch}",
                functools.partial(
                    measured,
                    "speed",
                    env=env,
                    batch=batch,
                    steps=settings.steps(env),
                    contestants=settings.contestants or contestants_of(env, batch, settings.brax),
                    rounds=settings.rounds,
                ),
            )


def threads(settings: Settings) -> Cases:
    if len(os.sched_getaffinity(0)) < 2:
        print("threads: left out, there is one core only")
        return
    for batch in settings.batches or settings.sizes.threads_batches:
        yield f"cartpole {batch}", functools.partial(one_and_two_threads, settings, batch)


def one_and_two_threads(settings: Settings, batch: int) -> dict:
    """The processes with one and with two threads take turns."""
    rounds = max(2, settings.rounds // (2 * settings.sizes.passes))
    common = {"env": "cartpole", "batch": batch, "steps": settings.sizes.steps, "rounds": rounds}
    names = settings.contestants or ["native", "jax"]
    passes = [
        {n: measured("speed", threads=n, contestants=names, **common)["contestants"] for n in (1, 2)}
        for _ in range(settings.sizes.passes)
    ]
    rows = {}
    for name in names:
        turns = [{n: turn[n][name] for n in turn} for turn in passes]
        failed = next((row["failed"] for turn in turns for row in turn.values() if "failed" in row), None)
        rows[name] = {"failed": failed} if failed else two_against_one(turns, batch * settings.sizes.steps)
    return {**common, "contestants": rows, "passes": passes}


def two_against_one(turns: Sequence[Mapping[int, dict]], steps: int) -> dict:
    """Rates with two threads over all rounds; the speed-up is the median over the turns."""
    rates = [steps / s for turn in turns for s in turn[2]["seconds"] if s]
    gains = [turn[2]["steps per second"]["median"] / turn[1]["steps per second"]["median"] for turn in turns]
    row = {"steps per second": {"median": statistics.median(rates), "min": min(rates), "max": max(rates)}}
    over = [turn[2]["over jax"] for turn in turns if "over jax" in turn[2]]
    if over:
        row["over jax"] = statistics.median(over)
    return {**row, "over one thread": statistics.median(gains)}


def population(settings: Settings) -> Cases:
    sizes = settings.sizes
    counts = {"policies": sizes.policies, "rollouts": sizes.rollouts, "steps": sizes.steps}
    yield (
        "cartpole",
        functools.partial(measured, "population", env="cartpole", rounds=settings.rounds, **counts),
    )


def memory(settings: Settings) -> Cases:
    if not sys.platform.startswith("linux"):
        print("memory: left out, the peak is read from Linux's /proc")
        return
    sizes = settings.sizes
    problem = {"env": "cartpole", "batch": sizes.memory_batch, "steps": sizes.steps}
    for name in settings.contestants or ("native", "eager", "jax", "jax best"):
        one = functools.partial(measured, "memory", contestant_name=name, **problem)
        yield name, lambda one=one: {**problem, "runs": [one() for _ in range(sizes.memory_repeats)]}


def start(settings: Settings) -> Cases:
    for env in settings.envs or ENVS:
        yield env, functools.partial(cold_and_warm, env, settings.sizes.start_repeats)


def cold_and_warm(env: str, repeats: int) -> dict:
    """A process with an empty cache, and a second one that finds what the first has left."""
    runs: dict[str, list[dict]] = {"cold": [], "warm": []}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as cache:
            for kind in runs.values():
                kind.append(measured("start", cache=Path(cache), env=env, batch=64))
    medians = {
        kind: {part: statistics.median(run[part] for run in values) for part in values[0]}
        for kind, values in runs.items()
    }
    return {"runs": runs, "medians": medians}


def linear(settings: Settings) -> Cases:
    sizes = {"vary": dict(settings.sizes.vary), "base": dict(settings.sizes.base)}
    yield "cartpole", functools.partial(measured, "linear", rounds=settings.rounds, **sizes)


def state_size(settings: Settings) -> Cases:
    sizes = {"sizes": settings.sizes.states, "steps": settings.sizes.states_steps, "batch": 1024}
    yield "chain", functools.partial(measured, "state_size", rounds=settings.rounds, **sizes)


SECTIONS: dict[str, Callable[[Settings], Cases]] = {
    "speed": speed,
    "threads": threads,
    "population": population,
    "memory": memory,
    "start": start,
    "linear": linear,
    "state size": state_size,
}


# The file -----------------------------------------------------------------------------------------

OF_A_RUN = ("created", "command", "git_revision", "git_revision_of_working_directory")
"""What a case says itself, for cases may be measured anew."""


def machine_and_run() -> tuple[dict, dict]:
    """What stays the same when a case is measured anew, and what does not."""
    facts = measured("machine")
    facts["command"] = " ".join(["python", *sys.argv])
    return {k: v for k, v in facts.items() if k not in OF_A_RUN}, {k: facts[k] for k in OF_A_RUN[:3]}


def opened(out: Path | None, merge: bool, machine: dict) -> dict:
    """The results to add to."""
    if not (merge and out is not None and out.exists()):
        return {"machine": machine, "sections": {}}
    results = json.loads(out.read_text())
    other = [k for k, v in machine.items() if results["machine"].get(k) != v]
    if other:
        raise click.ClickException(f"{out} is from another machine or other versions: {', '.join(other)}")
    return results


def write(results: dict, out: Path | None) -> None:
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        new = out.with_suffix(".part")
        new.write_text(json.dumps(results, indent=1) + "\n")
        new.replace(out)


def run_sections(
    names: Sequence[str], settings: Settings, results: dict, run: dict, out: Path | None
) -> None:
    """Measure case by case; each is printed and written when it is there."""
    for section in names:
        for name, measure in SECTIONS[section](settings):
            load = os.getloadavg()[0]
            try:
                case = measure()
            except FailedError as error:
                case = {"failed": str(error)}
            case = {**case, **run, "load before": load, "quick": settings.sizes is QUICK}
            case = json.loads(json.dumps(case))  # as it will be read
            results["sections"].setdefault(section, {})[name] = case
            write(results, out)
            print(f"\n{rollout_tables.section(section, {name: case})}", flush=True)


@click.command(help=__doc__.replace("\n\n", "\n\n\b\n"))
@click.option("--out", type=click.Path(path_type=Path), help="JSON to write.")
@click.option("--rounds", default=9, show_default=True)
@click.option("--only", multiple=True, type=click.Choice(list(SECTIONS)), help="Sections; all by default.")
@click.option("--env", "envs", multiple=True, type=click.Choice(ENVS), help="Of speed and start.")
@click.option("--batch", "batches", multiple=True, type=int, help="Of speed and threads.")
@click.option("--contestant", "contestants", multiple=True, help="Of speed, threads and memory.")
@click.option("--brax", is_flag=True, help="Brax takes part in speed, on its own cart-pole.")
@click.option("--merge", is_flag=True, help="Replace what is measured in the file, and keep the rest.")
@click.option("--quick", is_flag=True, help="Sizes that only show whether the script works.")
@click.option("--table", type=click.Path(exists=True, path_type=Path), help="Print the tables of a result.")
@click.option("--front-page", is_flag=True, help="With --table: the table of the README.")
@click.option("--worker", nargs=2, type=click.Path(path_type=Path), hidden=True)
def main(
    out: Path | None,
    rounds: int,
    only: Sequence[str],
    merge: bool,
    quick: bool,
    table: Path | None,
    front_page: bool,
    worker: tuple[Path, Path] | None,
    **choice: Any,
) -> None:
    if worker:
        import rollout_measures

        worker[1].write_text(json.dumps(rollout_measures.work(**json.loads(worker[0].read_text()))))
        return
    if table:
        found = json.loads(table.read_text())
        speed = found["sections"].get("speed", {})
        print(rollout_tables.front_page(speed) if front_page else rollout_tables.tables(found, only))
        return
    if merge and out is None:
        raise click.UsageError("--merge needs --out, the file to update")
    machine, run = machine_and_run()
    results = opened(out, merge, machine)
    settings = Settings(rounds=rounds, sizes=QUICK if quick else Sizes(), **choice)
    run_sections(only or list(SECTIONS), settings, results, run, out)


if __name__ == "__main__":
    main()
