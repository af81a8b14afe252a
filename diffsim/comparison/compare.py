"""The plan of a comparison: which contender trains on which task, with which seeds, settings and budget.

A comparison is a suite whose runs are the work of :mod:`diffsim.comparison.worker`, so that drivers, queues, journals
and commands of suites serve it: ``diffsim suite status``, ``watch``, ``logs`` and ``cancel`` take its folder.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffsim.comparison import records
from diffsim.comparison.clock import Budget
from diffsim.comparison.contenders.catalogue import (
    OURS,
    STABLE_BASELINES,
    WHITE_BOX,
    Entry,
    contender,
    ours_with,
)
from diffsim.comparison.records import Comparison, Limits, Task, Threshold
from diffsim.config import absolute_name, merge, parse_assignment
from diffsim.errors import ConfigError, RunFileError
from diffsim.runs.log_writers import make_writers
from diffsim.suites.plan import PLAN, Plan, PlannedRun, read_plan, task_facts
from diffsim.suites.suite_file import LocalConfig, SlurmConfig
from diffsim.values import shown
from lazy_registry.installation import install_command
from lazy_registry.registry import unknown
from robotics_envs.environments import ENVIRONMENTS, GYM, SUITE_TASKS, SUITES

SEEDS_FOR_INTERVALS = 10
"""With fewer seeds the report's intervals cover less than they say; see docs/comparisons.md."""
DEFAULT_BUDGET = "60s"
NORMALISATION = Path(__file__).parent / "normalisation.json"
_PACKAGE_OF = {"tqc": "sb3_contrib", "crossq": "sb3_contrib"}


@dataclass(frozen=True)
class Request:
    """What was asked for, checked by names alone: nothing heavy has been imported."""

    tasks: tuple[str, ...]
    contenders: Mapping[str, Entry]
    seeds: tuple[int, ...]
    budget: Budget
    budgets: Mapping[str, Budget] = field(default_factory=dict)
    """Budgets of single contenders."""
    log: tuple[str, ...] = ()
    """Writers of :data:`diffsim.runs.log_writers.WRITERS` for the curves of runs."""

    def budget_of(self, name: str) -> Budget:
        return self.budgets.get(name, self.budget)


def request(
    tasks: Sequence[str],
    against: Sequence[str],
    ours: Sequence[str] = (),
    seeds: str = "10",
    budgets: Sequence[str] = (DEFAULT_BUDGET,),
    log: Sequence[str] = (),
) -> Request:
    """Check what ``diffsim compare`` was told.

    Args:
        tasks: names of simulators.
        against: names of contenders.
        ours: other settings of our own, ``"KEY=VALUE,…"`` or ``"LABEL:KEY=VALUE,…"``.
        seeds: a number of them, or ``"10..19"``, or a list with commas.
        budgets: ``"60s"``, and those of single contenders as ``"sac:20000steps"``.
        log: names of writers of curves, ``"csv"`` and ``"tensorboard"``.

    Raises:
        ConfigError: an unknown name or an impossible value.
    """
    make_writers(log, ".")  # which writes nothing yet
    if not tasks:
        raise ConfigError("compare needs at least one simulator, such as: diffsim compare pendulum")
    for task in tasks:
        _check_task(task)
    entries = {OURS: contender(OURS)}
    for text in ours:
        name, entry = _own(text)
        if name in entries:
            raise ConfigError(f"two contenders are named {name!r}; give --ours {text!r} another name")
        entries[name] = entry
    for name in against:
        entries[name] = contender(name)
    for name, entry in entries.items():
        _check_packages(name, entry, tasks)
    general, single = _budgets(budgets, entries)
    # A simulator in a file is found from wherever a run starts.
    tasks = tuple(dict.fromkeys(map(absolute_name, tasks)))
    return Request(tasks, entries, seeds_of(seeds), general, single, tuple(dict.fromkeys(log)))


def _budgets(texts: Sequence[str], contenders: Iterable[str]) -> tuple[Budget, dict[str, Budget]]:
    """The budget of all contenders, and those of single ones by name."""
    found: dict[str, str] = {}
    for text in texts:
        name, colon, amount = (part.strip() for part in text.rpartition(":"))
        if colon and not (name and amount):
            raise ConfigError(
                f"budget {text!r}: needs a contender's name and an amount, such as sac:20000steps"
            )
        if name and name not in contenders:
            raise ConfigError(unknown("contender", name, contenders))
        if name in found:
            whose = f"of {name} " if name else ""
            raise ConfigError(
                f"two budgets {whose}are given, {found[name]!r} and {amount!r}: give one; two limits, of which the "
                "first that is reached counts, are one budget as 60s+100000steps"
            )
        found[name] = amount
    general = Budget.parse(found.pop("", DEFAULT_BUDGET))
    return general, {name: Budget.parse(amount) for name, amount in found.items()}


def _check_task(name: str) -> None:
    known = [*ENVIRONMENTS, *SUITE_TASKS]
    if name not in known and (":" not in name or name.startswith(SUITES)):
        raise ConfigError(unknown("simulator", name, known))


def _check_packages(name: str, entry: Entry, tasks: Sequence[str]) -> None:
    """Raise :class:`ConfigError` where a package is missing that a contender trains with."""
    if entry.trainer == STABLE_BASELINES:
        algorithm = entry.settings("")["algorithm"]
        for package in ("stable_baselines3", _PACKAGE_OF.get(algorithm, "gymnasium")):
            if importlib.util.find_spec(package) is None:
                raise ConfigError(f"{name} needs the package {package}: {install_command('rl')}")
    if any(task.startswith(GYM) for task in tasks) and importlib.util.find_spec("mujoco") is None:
        raise ConfigError(f"tasks of Gymnasium are judged in its own MuJoCo: {install_command('twins')}")


_LABEL = re.compile(r"([A-Za-z][\w-]*):(.+)")


def _own(text: str) -> tuple[str, Entry]:
    """``"LABEL:KEY=VALUE,…"`` as a name and a contender."""
    found = _LABEL.fullmatch(text.strip())
    label, assignments = (found[1], found[2]) if found else ("", text)
    # Commas within brackets separate the entries of a list.
    parts = [part.strip() for part in re.split(r",(?![^\[\{]*[\]\}])", assignments) if part.strip()]
    if not parts or not all("=" in part for part in parts):
        raise ConfigError(
            f"--ours {text!r}: needs settings as of diffsim train --set, such as updates=1200,algorithm.window=16, "
            "with a name of your own in front if you like: long:updates=1200"
        )
    settings = merge(*map(parse_assignment, parts))
    if {"env", "seed", "device", "threads", "stop"} & set(settings):
        raise ConfigError(
            f"--ours {text!r}: simulator, seed, device, threads and stop belong to the comparison, not to a contender"
        )
    label = label or " ".join(
        part.rpartition(".")[2] if "." in part.partition("=")[0] else part for part in parts
    )
    return f"{OURS} {label}", ours_with(settings)


MOST_SEEDS = 10_000


def seeds_of(text: str) -> tuple[int, ...]:
    first, dots, last = text.partition("..")
    try:
        if dots:
            seeds: Sequence[int] = range(int(first), int(last) + 1)
        elif "," in text:
            seeds = tuple(int(part) for part in text.split(","))
        else:
            seeds = range(int(text))
    except ValueError:
        seeds = ()
    if len(seeds) > MOST_SEEDS:
        raise ConfigError(f"seeds {text!r}: are {len(seeds):,}; at most {MOST_SEEDS:,} can be compared")
    if not seeds or min(seeds) < 0 or max(seeds) >= 2**31 or len(set(seeds)) < len(seeds):
        raise ConfigError(
            f"seeds {text!r}: needs a number of them such as 10, a range such as 10..19, or a list such as 3,5,8, "
            "each once and below 2^31"
        )
    return tuple(seeds)


def planned(root: Path, asked: Request, command: str = "", revision: str = "") -> Plan:
    """Every run that was asked for, beside those that the folder has a plan of.

    Raises:
        ConfigError: settings that cannot be, or other ones than those of runs that the folder has.
    """
    about = {task: about_task(task) for task in asked.tasks}
    new = []
    for name, entry in asked.contenders.items():
        for task in asked.tasks:
            settings = dict(entry.settings(task))
            if entry.trainer == WHITE_BOX:
                from diffsim.comparison.contenders.white_box import resolved

                settings = resolved(task, settings, asked.budget_of(name))
            facts = {
                "work": "comparison",
                "task": task,
                "contender": name,
                "trainer": entry.trainer,
                "settings": settings,
                "source": entry.source(task) or entry.about.source,
                "budget": dataclasses.asdict(asked.budget_of(name)),
                "about_task": dataclasses.asdict(about[task]),
                "about_contender": dataclasses.asdict(entry.about),
                "command": command,
                "revision": revision,
                "env": {"name": task},
                "threads": 1,
                "device": "cpu",
                **({"log": asked.log} if asked.log else {}),
            }
            facts = json.loads(json.dumps(facts))
            new += [_run(facts, seed) for seed in asked.seeds]
    runs = {_key(run): run for run in _earlier(root)}
    for run in new:
        before = runs.get(_key(run))
        if before is not None:
            _check_same(root, before, run)
            if asked.log:
                settings = {**before.settings, "log": run.settings["log"]}
                runs[_key(run)] = dataclasses.replace(before, settings=settings)
        else:
            runs[_key(run)] = run
    # Seed by seed, so that a part of the results covers everything.
    ordered = sorted(runs.values(), key=lambda run: run.seed)
    return Plan(root, root.name, tuple(ordered), LocalConfig(), SlurmConfig())


def _run(facts: Mapping[str, Any], seed: int) -> PlannedRun:
    task, name = facts["task"], facts["contender"]
    words = re.sub(r"[^A-Za-z0-9_.=+-]+", "-", f"{task.rpartition('/')[2]}-{name}")[:80]
    digits = hashlib.sha256(json.dumps([task, name, seed]).encode()).hexdigest()[:6]
    return PlannedRun(f"{words}-s{seed}-{digits}", f"{task} {name}", seed, facts)


def _key(run: PlannedRun) -> tuple[str, str, int]:
    return run.settings["task"], run.settings["contender"], run.seed


def _earlier(root: Path) -> Iterable[PlannedRun]:
    if not (root / PLAN).exists():
        return ()
    runs = read_plan(root).runs
    if any(run.settings.get("work") != "comparison" for run in runs):
        raise RunFileError(f"{shown(root)} holds a suite of trainings; choose another --out")
    return runs


def _check_same(root: Path, before: PlannedRun, now: PlannedRun) -> None:
    for what in ("budget", "settings", "trainer"):
        if before.settings[what] != now.settings[what]:
            raise ConfigError(
                f"{shown(root)} has runs of {now.settings['contender']} on {now.settings['task']} with another "
                f"{what}: {_difference(before.settings[what], now.settings[what])}. Choose another --out"
            )


def _difference(before: Any, now: Any) -> str:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        return ", ".join(f"{key} = {before.get(key)!r} before, {now.get(key)!r} now" for key in keys)
    return f"{before!r} before, {now!r} now"


def comparison_of(plan: Plan, budget: Budget, command: str = "", notes: Sequence[str] = ()) -> Comparison:
    """What ``comparison.json`` says of a plan."""
    from diffsim.comparison.worker import task_of

    tasks = {run.settings["task"]: task_of(run.settings["about_task"]) for run in plan.runs}
    contenders = {
        run.settings["contender"]: records.Contender(**run.settings["about_contender"]) for run in plan.runs
    }
    pairs: dict[tuple[str, str], list[int]] = {}
    for run in plan.runs:
        pairs.setdefault((run.settings["task"], run.settings["contender"]), []).append(run.seed)
    seeds = sorted({run.seed for run in plan.runs})
    others = {
        run.settings["contender"]: Budget(**run.settings["budget"])
        for run in plan.runs
        if run.settings["budget"] != dataclasses.asdict(budget)
    }
    return Comparison(
        tasks,
        contenders,
        seeds,
        budget.limits,
        {f"{t}/{c}": "not asked for" for t in tasks for c in contenders if (t, c) not in pairs},
        {f"{t}/{c}": sorted(some) for (t, c), some in pairs.items() if sorted(some) != seeds},
        title="Comparison" if plan.name == "comparison" else f"Comparison {plan.name}",
        command=command,
        notes=[*notes, *(f"{name} has a budget of its own: {other}" for name, other in others.items())],
    )


def about_task(task: str) -> Task:
    """Threshold, limits and description of a task.

    Raises:
        ConfigError: the simulator cannot be made.
    """
    from diffsim.assembly import assemble
    from diffsim.config import load_config

    return described(task, task_facts(assemble(load_config({"env": task})).env))


def described(task: str, facts: Mapping[str, Any]) -> Task:
    """Threshold, limits and description of a task from what :func:`diffsim.suites.plan.task_facts` told."""
    threshold = None
    if (success := facts["success"]) is not None:
        source = f"{success['words']}, from {100 * success['share']:g}% of the starts; {success['source']}"
        threshold = Threshold(success["share"], source, "success")
    where = f"judged in Gymnasium's {task.removeprefix(GYM)}" if task.startswith(GYM) else "judged in it"
    description = f"episodes of {facts['episode_steps']} intervals of {facts['dt']:g} s; {where}"
    return Task(threshold, normalisation().get(task), description)


@functools.cache
def normalisation() -> Mapping[str, Limits]:
    """The committed scores of 0 and 1 of every task that has them."""
    table = json.loads(NORMALISATION.read_text())["tasks"]
    return {
        name: Limits(row["zero"], row["one"], f"{row['one_source']}; 0: {row['zero_source']}")
        for name, row in table.items()
        if row["one"] is not None
    }
