"""A suite as its author writes it: a TOML file with a matrix of settings, exceptions from it, and where to run it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from diffsim.config import absolute_name, merge, read_toml, validate
from diffsim.errors import ConfigError
from diffsim.settings import Seed, Settings
from diffsim.values import folder
from robotics_envs.environments import JULIA

_NAMED = ("env", "policy", "algorithm", "optimizer")
_MOST_SEEDS = 100_000
"""Of a range: more are a mistake, which would take all memory before it is seen."""


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _range(value: Any) -> Any:
    """``"0..9"`` is the seeds 0 to 9."""
    if not isinstance(value, str) or value.strip().isdigit():
        return _listed(value)
    first, dots, last = (part.strip() for part in value.partition(".."))
    if not (dots and first.isdigit() and last.isdigit() and int(first) <= int(last)):
        raise ValueError(
            'must be a list such as [0, 1, 2], or a range such as "0..2", the smaller number first'
        )
    if int(last) - int(first) >= _MOST_SEEDS:
        raise ValueError(f"is a range of {int(last) - int(first) + 1:,} seeds; the most is {_MOST_SEEDS:,}")
    return list(range(int(first), int(last) + 1))


Names = Annotated[tuple[str | dict[str, Any], ...], BeforeValidator(_listed), Field(min_length=1)]
"""Names of classes, or sections with a name and options."""


class Matrix(Settings):
    """Every combination of these is a run."""

    env: Names | None = None
    policy: Names | None = None
    algorithm: Names | None = None
    optimizer: Names | None = None
    seed: Annotated[tuple[Seed, ...], BeforeValidator(_range), Field(min_length=1)] | None = None
    """A list, or ``"0..9"``."""
    overrides: Annotated[tuple[dict[str, Any], ...], Field(min_length=1)] | None = None
    """Settings laid over the others; a key may be dotted, and the key ``label`` names the entry."""


class Budget(Settings):
    """The length of the runs that ``when`` describes; the last budget that fits a run counts."""

    when: dict[str, Any] = Field(default_factory=dict)
    """Settings by dotted key, each with a value or a list of them; a run fits if all are its own."""
    updates: int | None = Field(default=None, ge=1)
    stop: dict[str, Any] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        return self.model_dump(exclude={"when"}, exclude_none=True)


class LocalConfig(Settings):
    """How a suite runs on this machine."""

    workers: int | None = Field(default=None, ge=1)
    """Runs at a time; as many as CPUs and free memory allow if not given."""
    memory_mb: float | None = Field(default=None, gt=0)
    """What one run needs; estimated if not given."""
    gpus: tuple[str, ...] | None = None
    """Names as CUDA_VISIBLE_DEVICES takes them, of MIG instances too; all that are visible if not given."""
    runs_per_gpu: int = Field(default=1, ge=1)
    """Runs at a time on each of them, whose ``device`` is "cuda" or "auto"."""
    pin: bool = False
    """Whether each run is bound to CPUs of its own, as many as it has threads."""
    hang_minutes: float = Field(default=30.0, gt=0)
    """A run without a new update for so long is killed and tried again."""
    retries: int = Field(default=3, ge=0)
    """How often a run is tried again without having advanced, where the machine is the cause."""
    backoff_seconds: float = Field(default=2.0, ge=0)
    """Before the first retry; four times as long before each further one."""


class SlurmConfig(Settings):
    """What a job of the array asks Slurm for; see ``diffsim suite run FILE --on slurm --dry-run``."""

    partition: str | None = None
    time_minutes: int = Field(default=240, ge=1)
    """Limit of one job. A run that needs longer is checkpointed, requeued and resumed."""
    memory_gb: float = Field(default=4.0, gt=0)
    cpus: int = Field(default=1, ge=1)
    gpus: int = Field(default=0, ge=0)
    jobs_at_a_time: int = Field(default=256, ge=1)
    signal_seconds: int = Field(default=90, ge=1)
    """Before the limit: when a job is told to write its checkpoint."""
    setup: tuple[str, ...] = ()
    """Shell commands before the run, such as ``module load`` lines."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Other options of sbatch, such as ``account = "lab"``."""
    retries: int = Field(default=3, ge=0)
    """How often a run is submitted again without having advanced, where its job died."""


class RayConfig(Settings):
    """What the task of a run asks a Ray cluster for."""

    address: str | None = None
    """Of the cluster, such as ``"auto"`` on one of its nodes; RAY_ADDRESS, or a Ray of this machine if not given."""
    cpus: float = Field(default=1.0, ge=0)
    gpus: float = Field(default=0.0, ge=0)
    """Of a run; 0.25 puts four runs on a GPU."""
    memory_gb: float | None = Field(default=None, gt=0)
    resources: dict[str, float] = Field(default_factory=dict)
    """Other resources, by the names that the cluster was started with."""
    runs_at_a_time: int = Field(default=256, ge=1)
    retries: int = Field(default=3, ge=-1)
    """How often Ray starts the task of a run again whose worker or node was lost; -1 for no limit."""


class SuiteConfig(Settings):
    """The whole file."""

    name: str | None = None
    out: str | None = None
    """Folder of the suite; ``runs/NAME`` if not given."""
    base: dict[str, Any] = Field(default_factory=dict)
    """Settings of every run, as in ``diffsim train --config``."""
    matrix: Matrix = Matrix()
    exclude: tuple[dict[str, Any], ...] = ()
    """Combinations that are left out; as ``when`` of a budget."""
    include: tuple[dict[str, Any], ...] = ()
    """Settings of single further runs."""
    budget: tuple[Budget, ...] = ()
    prune: bool = False
    """Whether runs that have finished keep their policies only, and not the state to go on from."""
    local: LocalConfig = LocalConfig()
    slurm: SlurmConfig = SlurmConfig()
    ray: RayConfig = RayConfig()


@dataclass(frozen=True)
class Cell:
    """One run of a suite, not yet resolved."""

    words: tuple[str, ...]
    """What tells it from others, for names and tables; the seed is not among them."""
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Suite:
    """A file that was read: its settings, its folder and its cells."""

    config: SuiteConfig
    name: str
    folder: Path
    cells: tuple[Cell, ...]


def read_suite(path: Path, out: str | None = None) -> Suite:
    """The suite in a TOML file.

    Raises:
        ConfigError: the file cannot be read, has unknown keys, or a rule of it fits no run.
    """
    values = _located(read_toml(path), path.expanduser().resolve().parent)
    config = validate(SuiteConfig, values)
    name = config.name or path.stem
    if "/" in name or name in ("", ".", ".."):
        raise ConfigError(f"name = {name!r} must be the name of a folder without '/'; a path is given by out")
    cells = tuple(_cells(config))
    if not cells and config.exclude:
        raise ConfigError(f"{path}: the rules of exclude leave no run")
    if not cells or any("env" not in cell.settings for cell in cells):
        raise ConfigError(f"{path} names no simulator: give [base] an env, or [matrix] a list of them")
    return Suite(config, name, folder(out or config.out or Path("runs") / name), cells)


def _located(value: Any, base: Path) -> Any:
    """With every name that leads to a file beside the suite made absolute."""
    if isinstance(value, Mapping):
        return {key: _located(entry, base) for key, entry in value.items()}
    if isinstance(value, list):
        return [_located(entry, base) for entry in value]
    named = absolute_name(value, base)
    if named != value and Path(str(named).removeprefix(JULIA).rpartition(":")[0]).is_file():
        return named
    return value


def _cells(config: SuiteConfig) -> Iterator[Cell]:
    matrix, excluded = config.matrix, [0] * len(config.exclude)
    _check_overrides(matrix)
    axes: list[Sequence[Any]] = [getattr(matrix, key) or (None,) for key in _NAMED]
    combined = [
        _cell(
            [{key: value} for key, value in zip(_NAMED, named, strict=True) if value is not None],
            override,
            seed,
        )
        for *named, override, seed in itertools.product(
            *axes, matrix.overrides or (None,), matrix.seed or (None,)
        )
    ]
    kept = []
    # A file of single runs needs no matrix.
    for cell in combined if "matrix" in config.model_fields_set or not config.include else ():
        settings = _laid_over(config.base, cell.settings)
        fits = [_fits(settings, rule) for rule in config.exclude]
        excluded = [count + fit for count, fit in zip(excluded, fits, strict=True)]
        if not any(fits):
            kept.append(Cell(cell.words or _words_of(settings), settings))
    for extra in itertools.chain.from_iterable(map(_by_seed, config.include)):
        settings = _laid_over(config.base, _nested(extra))
        kept.append(Cell((*_words_of(settings), *_option_words(extra, skip=(*_NAMED, "seed"))), settings))
    used = [0] * len(config.budget)
    for cell in kept:
        settings = dict(cell.settings)
        for number, budget in enumerate(config.budget):
            if _fits(settings, budget.when):
                used[number] += 1
                settings = merge(settings, budget.settings)
        yield Cell(cell.words, settings)
    for kind, rules, counts in (
        ("exclude", config.exclude, excluded),
        ("budget", [b.when for b in config.budget], used),
    ):
        for rule, count in zip(rules, counts, strict=True):
            if not count:
                raise ConfigError(f"{kind} {rule} fits no run of the matrix; check its names and values")


def _seeds(text: str) -> list[int]:
    try:
        return [int(seed) for seed in _range(text)]
    except ValueError as error:
        raise ConfigError(f"seed = {text!r} {error}") from None


def _by_seed(extra: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """An entry of include, once for each of its seeds."""
    seeds = extra.get("seed")
    if isinstance(seeds, str):
        seeds = _seeds(seeds)
    if isinstance(seeds, list):
        yield from ({**extra, "seed": seed} for seed in seeds)
    else:
        yield extra


def _check_overrides(matrix: Matrix) -> None:
    """Refuse settings that an axis of the matrix would overrule, or be overruled by."""
    for override in matrix.overrides or ():
        for key in (*_NAMED, "seed"):
            value = override.get(key)
            named = not isinstance(value, Mapping) or "name" in value
            if getattr(matrix, key) is not None and value is not None and named:
                raise ConfigError(
                    f"matrix.overrides sets {key} = {value!r}, as matrix.{key} does; use one of them, or [[include]]"
                )


def _laid_over(base: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """As ``merge``; options of the base without a name are for whichever class ``settings`` name."""
    named = {}
    for key in _NAMED:
        section, over = base.get(key), settings.get(key)
        name = over.get("name") if isinstance(over, Mapping) else over
        if isinstance(section, Mapping) and "name" not in section and name is not None:
            named[key] = {"name": name, **section}
    return merge({**base, **named}, settings)


def _cell(named: list[dict[str, Any]], override: Mapping[str, Any] | None, seed: int | None) -> Cell:
    words = tuple(word for section in named for word in _name_words(*section.values()))
    layers = [*named]
    if override is not None:
        layers.append(_nested({key: value for key, value in override.items() if key != "label"}))
        words += (str(override["label"]),) if "label" in override else _option_words(override)
    return Cell(words, merge(*layers, {} if seed is None else {"seed": seed}))


def _words_of(settings: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(
        word for key in ("env", "optimizer") if key in settings for word in _name_words(settings[key])
    )


def _name_words(value: Any) -> tuple[str, ...]:
    """``"my_env.py:MyEnv"`` is MyEnv; of a section, its name and options."""
    if isinstance(value, Mapping):
        options = {key: option for key, option in value.items() if key != "name"}
        return (*(_name_words(value["name"]) if "name" in value else ()), *_option_words(options))
    return (str(value).rpartition(":")[2],)


def _option_words(options: Mapping[str, Any], skip: Sequence[str] = ()) -> tuple[str, ...]:
    """``{"optimizer.lr": 0.01}`` is lr=0.01."""
    words: tuple[str, ...] = ()
    for key, value in options.items():
        if key in skip:
            continue
        if isinstance(value, Mapping):
            words += _option_words(value)
        else:
            text = "x".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
            words += (f"{key.rpartition('.')[2]}={text.rpartition('/')[2]}",)
    return words


def _nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """With dotted keys as sections."""
    layers = []
    for key, value in settings.items():
        for part in reversed(str(key).split(".")):
            value = {part: value}
        layers.append(value)
    return merge(*layers)


def _fits(settings: Mapping[str, Any], rule: Mapping[str, Any]) -> bool:
    return all(_has(settings, key, wanted) for key, wanted in rule.items())


def _has(settings: Any, key: str, wanted: Any) -> bool:
    for part in key.split("."):
        if not isinstance(settings, Mapping) or part not in settings:
            return False
        settings = settings[part]
    if isinstance(wanted, Mapping):
        return _fits(settings, wanted) if isinstance(settings, Mapping) else False
    if isinstance(settings, Mapping):
        settings = settings.get("name")
    if key == "seed" and isinstance(wanted, str):
        wanted = _seeds(wanted)
    return settings == wanted or (isinstance(wanted, (list, tuple)) and settings in wanted)
