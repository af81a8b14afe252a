"""The comparison that a suite of trainings is: its simulators are the tasks, its other settings the contenders.

It is made from the suite's plan and index, so no file of a run is opened that the index knows.  Clocks of trainings are
wall seconds; nothing of a user's own files is executed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffsim.comparison.facts import flat
from diffsim.comparison.records import (
    PLAN,
    RECORDS,
    Comparison,
    Contender,
    Curve,
    Overheads,
    Protocol,
    Record,
    Task,
    read_comparison,
)
from diffsim.errors import DiffsimError
from diffsim.suites import plan as suite_plan
from diffsim.suites.index import Row, rows
from diffsim.suites.plan import Plan, PlannedRun, env_key, read_plan
from robotics_envs.environments import ENVIRONMENTS, SUITES

_STATUS = {"finished": "finished", "diverged": "diverged", "failed": "crashed"}


def comparison_in(root: Path) -> Comparison:
    """The comparison in a folder, or that which the suite of trainings in it is.

    Raises:
        RunFileError: neither is there, or it cannot be read.
    """
    if (root / suite_plan.PLAN).exists() and not ((root / PLAN).exists() or (root / RECORDS).exists()):
        return comparison_of(read_plan(root))
    return read_comparison(root)


def comparison_of(plan: Plan) -> Comparison:
    """Tasks, contenders and records of a suite; the contender of its first run is the reference."""
    tasks = _tasks(plan.runs)
    # Runs that differ in their seeds share the table of settings.
    kinds = {(id(run.settings), run.group): run for run in plan.runs}
    of_kind = {kind: _contender(run) for kind, run in kinds.items()}
    names = {id(run): of_kind[id(run.settings), run.group] for run in plan.runs}
    first = names[id(plan.runs[0])]
    contenders: dict[str, Contender] = {}
    for run in plan.runs:
        name = names[id(run)]
        kind = "reference" if name == first else "white box"
        contenders.setdefault(name, Contender(kind, _words(run.settings)))
    labels = {id(run): label for label, members in tasks.items() for run in members}
    about = {label: _about(members[0], plan) for label, members in tasks.items()}
    pairs = {(labels[id(run)], names[id(run)]) for run in plan.runs}
    records: dict[tuple[str, str, int], Record] = {}
    for run, row in zip(plan.runs, rows(plan), strict=True):
        task, contender = labels[id(run)], names[id(run)]
        if row.state != "queued":
            record = _record(run, row, task, contender, about[task], contenders[contender])
            records.setdefault(record.key, record)
    return Comparison(
        tasks=about,
        contenders=contenders,
        seeds=sorted({run.seed for run in plan.runs}),
        skipped={f"{t}/{c}": "not in the suite" for t in about for c in contenders if (t, c) not in pairs},
        title=f"Suite {plan.name}",
        notes=[
            "Made from a suite of trainings. Scores are mean returns from held-out initial states of the task; CPU "
            "seconds were not measured, and wall seconds are those of training alone.",
            f"The contender of the suite's first run, {first}, is the reference.",
        ],
        records=tuple(records.values()),
    )


def _tasks(runs: Sequence[PlannedRun]) -> dict[str, list[PlannedRun]]:
    """The runs by simulator; where one has several settings, its label says those that differ."""
    sections: dict[str, dict[str, dict[str, Any]]] = {}
    members: dict[str, list[PlannedRun]] = {}
    keys: dict[int, str] = {}
    for run in runs:
        env = run.settings["env"]
        if id(run.settings) not in keys:
            keys[id(run.settings)] = env_key(run.settings)
        key = keys[id(run.settings)]
        sections.setdefault(env["name"], {})[key] = env
        members.setdefault(key, []).append(run)
    found = {}
    for name, variants in sections.items():
        flat = {key: dict(_options(env)) for key, env in variants.items()}
        differing = sorted(
            {k for one in flat.values() for k in one if len({f.get(k) for f in flat.values()}) > 1}
        )
        for key in variants:
            options = [f"{option}={flat[key].get(option)}" for option in differing]
            found[" ".join([_short(name), *options])] = members[key]
    return found


def _contender(run: PlannedRun) -> str:
    """What a run's group says beside its simulator; the optimizer's name where that is nothing."""
    options = {f"{key.rpartition('.')[2]}={value}" for key, value in _options(run.settings["env"])}
    simulator = _short(run.settings["env"]["name"])
    text = run.group
    for word in [simulator, *sorted(options, key=len, reverse=True)]:
        if text == word or text.startswith(f"{word}-"):
            text = text[len(word) + 1 :]
    return text or str(run.settings["optimizer"]["name"])


def _short(name: str) -> str:
    """As the suite's folders name it: of a class in a file, the class."""
    return name.rpartition(":")[2]


def _words(settings: Mapping[str, Any]) -> str:
    return (
        f"{settings['algorithm']['name']} with {settings['optimizer']['name']}, {settings['updates']} updates"
    )


def _about(run: PlannedRun, plan: Plan) -> Task:
    from diffsim.comparison.compare import about_task, described

    name = str(run.settings["env"]["name"])
    facts = plan.tasks.get(env_key(run.settings))
    if facts is not None:
        return described(name, facts)
    # A plan of a version that did not note them.
    if name not in ENVIRONMENTS and not name.startswith(SUITES):
        return Task(description=f"{name}, which a report does not load")
    try:
        return about_task(name)
    except DiffsimError as error:
        return Task(description=f"threshold unknown: {error}")


def _record(
    run: PlannedRun, row: Row, task: str, contender: str, about_task: Task, about: Contender
) -> Record:
    points = np.array(json.loads(row.curve), dtype=np.float64).reshape(-1, 5)
    steps, wall, gradients, score, success = points.T
    status = _STATUS.get(row.state, "unfinished") if len(points) or row.state != "finished" else "unfinished"
    evaluation = run.settings["evaluation"]
    return Record(
        task=task,
        contender=contender,
        seed=run.seed,
        status=status,
        curve=Curve.of(
            score, environment_steps=steps, wall_seconds=wall, gradient_evaluations=gradients, success=success
        ),
        protocol=Protocol(
            "simulator", evaluation["episodes"], run.seed, "initial states held out from training"
        ),
        error=row.reason or ("" if status in ("finished", "unfinished") else row.state),
        overheads=Overheads(compile_seconds=np.nan if row.compile_seconds is None else row.compile_seconds),
        about_task=about_task,
        about_contender=about,
        settings=run.settings,
    )


def _options(env: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    return flat({key: value for key, value in env.items() if key != "name"})
