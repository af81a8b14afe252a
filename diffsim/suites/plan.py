"""The runs of a suite, resolved: every setting written out, a name and an identity each, kept in ``suite.json``."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffsim.config import RunConfig, validate
from diffsim.errors import ConfigError, DiffsimError, RunFileError
from diffsim.runs.whole_files import write_whole
from diffsim.settings import whole_number
from diffsim.suites.suite_file import Cell, LocalConfig, RayConfig, SlurmConfig, Suite
from diffsim.values import pasted, shown

if TYPE_CHECKING:
    from robotics_envs import Env

PLAN = "suite.json"
RUNS = "runs"
"""The folder of the suite that holds the folders of its runs."""
_FORMAT = 1
_ID_DIGITS = 12


@dataclass(frozen=True)
class PlannedRun:
    """One run with everything that determines it."""

    folder: str
    """Its name below ``runs/``: readable words, the seed, and the identity."""
    group: str
    """What it shares with the runs that differ by the seed only."""
    seed: int
    settings: Mapping[str, Any] = field(repr=False)
    """Resolved, without the seed; runs of a group share it."""

    @property
    def identity(self) -> str:
        return self.folder.rpartition("-")[2]

    @property
    def config(self) -> dict[str, Any]:
        return {**self.settings, "seed": self.seed}


@dataclass(frozen=True)
class Plan:
    """What a suite's folder is to hold."""

    root: Path
    name: str
    runs: tuple[PlannedRun, ...]
    local: LocalConfig
    slurm: SlurmConfig
    ray: RayConfig = field(default_factory=RayConfig)
    prune: bool = False
    tasks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Of each simulator what :func:`task_facts` tells, by :func:`env_key`: thresholds are fixed before the runs."""

    def folder(self, run: PlannedRun) -> Path:
        return self.root / RUNS / run.folder

    def save(self) -> None:
        """Write ``suite.json``."""
        groups = {id(run.settings): run.settings for run in self.runs}
        numbers = {key: number for number, key in enumerate(groups)}
        content = {
            "format": _FORMAT,
            "name": self.name,
            "local": self.local.model_dump(),
            "slurm": self.slurm.model_dump(),
            "ray": self.ray.model_dump(),
            "prune": self.prune,
            "tasks": self.tasks,
            "settings": list(groups.values()),
            "runs": [[r.folder, r.group, r.seed, numbers[id(r.settings)]] for r in self.runs],
        }
        write_whole(self.root / PLAN, json.dumps(content).encode())


def read_plan(root: Path) -> Plan:
    """The plan of the suite in a folder.

    Raises:
        RunFileError: there is none, or it cannot be read.
    """
    path = root / PLAN
    try:
        content = json.loads(path.read_bytes())
        if content["format"] != _FORMAT:
            raise ValueError(f"format {content['format']}, this diffsim reads {_FORMAT}")
        settings = content["settings"]
        runs = tuple(
            PlannedRun(folder, group, seed, settings[number])
            for folder, group, seed, number in content["runs"]
        )
        local, slurm = LocalConfig(**content["local"]), SlurmConfig(**content["slurm"])
        ray, prune = RayConfig(**content.get("ray", {})), content.get("prune", False)
        return Plan(root, content["name"], runs, local, slurm, ray, prune, content.get("tasks", {}))
    except FileNotFoundError:
        raise RunFileError(
            f"no suite in {shown(root)} ({PLAN} is missing); 'diffsim suite run FILE --out {pasted(root)}' makes one"
        ) from None
    except NotADirectoryError:
        raise RunFileError(f"{shown(root)} is a file; give the folder of a suite") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFileError(
            f"{shown(path)} is damaged ({error}); 'diffsim suite run FILE --out {pasted(root)}' writes it again"
        ) from None


def resolve(suite: Suite) -> Plan:
    """Every run of a suite checked as far as it can be without training: its parts are made once.

    Runs that differ by the seed only are made once together.  Two cells that resolve to the same settings are one run.

    Raises:
        ConfigError: runs that cannot be; all of them are named, each with its reason.
    """
    folders = _folders_by_identity(suite.folder)
    resolved: dict[str, _Group | str] = {}
    named: dict[str, list[Cell]] = {}
    runs: dict[str, PlannedRun] = {}
    for cell in suite.cells:
        others = {key: value for key, value in cell.settings.items() if key != "seed"}
        key = json.dumps(others, sort_keys=True, default=str)
        named.setdefault(key, []).append(cell)
        if key not in resolved:
            resolved[key] = _resolved(cell)
        group = resolved[key]
        if isinstance(group, str):
            continue
        seed = whole_number(cell.settings.get("seed", 0), 0, 2**63)
        own = _hash({**group.identifying, "seed": seed}, group.texts)
        words = re.sub(r"[^A-Za-z0-9_.=+-]+", "-", "-".join([*cell.words, f"s{seed}"]))
        folder = folders.get(own, f"{words[:100].strip('-')}-{own}")
        runs.setdefault(own, PlannedRun(folder, "-".join(cell.words), seed, group.settings))
    wrong = {key: reason for key, reason in resolved.items() if isinstance(reason, str)}
    if wrong:
        count = sum(len(named[key]) for key in wrong)
        lines = [f"  {_cells_of(named[key])}: {reason}" for key, reason in wrong.items()]
        raise ConfigError(
            f"{count} of {len(suite.cells)} runs cannot start, so none was started:\n" + "\n".join(lines)
        )
    config = suite.config
    places = config.local, config.slurm, config.ray
    groups = [group for group in resolved.values() if not isinstance(group, str)]
    tasks = {env_key(group.settings): group.task for group in groups}
    return Plan(suite.folder, suite.name, tuple(runs.values()), *places, config.prune, tasks)


def env_key(settings: Mapping[str, Any]) -> str:
    """The simulator of a run with its options, as one text."""
    return json.dumps(settings["env"], sort_keys=True)


def task_facts(env: Env) -> dict[str, Any]:
    """What a report tells of a simulator: ``episode_steps``, ``dt`` in seconds, ``success`` (None if not declared)."""
    criterion = env.success_criterion
    success = None if criterion is None else dataclasses.asdict(criterion)
    return {"episode_steps": env.episode_steps, "dt": env.dt, "success": success}


def identity(config: RunConfig) -> str:
    """Hexadecimal digits of the hash of a whole resolved configuration and of its user's sources.

    Of a user's files the texts count, not where they lie.
    """
    return _hash(*_identifying(config))


def _identifying(config: RunConfig) -> tuple[dict[str, Any], list[list[str]]]:
    """The configuration with the names of files without their folders, and the hashes of their texts."""
    from diffsim.runs import user_code

    values: dict[str, Any] = json.loads(config.model_dump_json())
    # Runs of versions without these settings keep their identity.
    for name, without in (("shards", 1), ("doublings", 0)):
        if values[name] == without:
            del values[name]
    texts = []
    for source in sorted(user_code.sources(config), key=lambda source: source.section):
        section = values
        for part in source.section.split("."):
            section = section[part]
        section["name"] = f"{source.entry}:{source.name.rpartition(':')[2]}"
        texts.append([source.section, source.sha256])
    return values, texts


def _hash(values: Mapping[str, Any], texts: list[list[str]]) -> str:
    content = json.dumps([values, texts], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:_ID_DIGITS]


@dataclass(frozen=True)
class _Group:
    """What runs share that differ by the seed only."""

    settings: dict[str, Any]
    task: dict[str, Any]
    identifying: dict[str, Any]
    texts: list[list[str]]


def _resolved(cell: Cell) -> _Group | str:
    """The settings with all defaults written out, or what is wrong with them."""
    from diffsim.assembly import assemble
    from diffsim.config import load_config
    from diffsim.isolation import torch_defaults

    try:
        assembly = assemble(load_config(cell.settings))
        with torch_defaults():
            config = validate(RunConfig, assembly.config.model_dump())
            config = config.model_copy(update={"threads": config.threads or 1})  # others run beside it
            with _silent():  # the run will say what its parts have to say
                assert assembly.algorithm is not None
        settings = json.loads(config.model_dump_json(exclude={"seed"}))
        return _Group(settings, task_facts(assembly.env), *_identifying(config))
    except DiffsimError as error:
        return str(error)
    except Exception as error:  # a user's class
        return f"{type(error).__name__}: {error}"


@contextmanager
def _silent() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _cells_of(cells: Sequence[Cell]) -> str:
    words = "-".join(cells[0].words)
    seeds = [str(cell.settings.get("seed", 0)) for cell in cells]
    return f"{words}, seed{'s' * (len(seeds) > 1)} {', '.join(seeds[:10])}{', …' * (len(seeds) > 10)}"


def _folders_by_identity(root: Path) -> dict[str, str]:
    """Names of the folders that runs have already, so that other words in the file move no run."""
    try:
        return {name.rpartition("-")[2]: name for name in sorted(os.listdir(root / RUNS))}
    except OSError:
        return {}
