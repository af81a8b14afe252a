"""What a run is: a frozen, validated configuration from TOML, the command line or Python.

Sections that name a class (``env``, ``policy``, ``algorithm``, ``optimizer``) hold its ``name`` and its
options side by side; the class behind the name checks its own options when the run is assembled.  The classes of this
project are in the registries below, which import nothing until a name is looked up.
"""

from __future__ import annotations

import contextlib
import json
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from diffsim.errors import ConfigError
from diffsim.settings import Seed, Settings
from lazy_registry.registry import Registry, UnknownNameError, remember, unknown
from lazy_registry.user_files import file_of
from robotics_envs.environments import ENVIRONMENTS, JULIA, SUITE_TASKS, robot_file
from robotics_envs.julia.installation import JuliaError
from robotics_envs.robots.errors import RobotFileError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


_FIRST, _QUASI = "diffsim.optimizers.first_order", "diffsim.optimizers.quasi_newton"
_POPULATION = "diffsim.optimizers.population"

NETWORKS = Registry("policy", {"mlp": "diffsim.policy:MLP"})
ALGORITHMS = Registry(
    "algorithm",
    {
        "value_gradient": "diffsim.algorithms.value_gradient:ValueGradient",
        "short_window": "diffsim.algorithms.short_window:ShortWindow",
        "full_horizon": "diffsim.algorithms.full_horizon:FullHorizon",
    },
)
OPTIMIZERS = Registry(
    "optimizer",
    {
        "sgd": f"{_FIRST}:SGD",
        "momentum": f"{_FIRST}:Momentum",
        "nesterov": f"{_FIRST}:Nesterov",
        "adagrad": f"{_FIRST}:AdaGrad",
        "rmsprop": f"{_FIRST}:RMSprop",
        "adam": f"{_FIRST}:Adam",
        "adamw": f"{_FIRST}:AdamW",
        "lars": f"{_FIRST}:LARS",
        "lamb": f"{_FIRST}:Lamb",
        "lbfgs": f"{_QUASI}:LBFGS",
        "lbfgsb": f"{_QUASI}:LBFGSB",
        "cma_es": f"{_POPULATION}.cma_es:CMAES",
        "openai_es": f"{_POPULATION}.gradients:OpenAIES",
        "pgpe": f"{_POPULATION}.gradients:PGPE",
        "pso": f"{_POPULATION}.swarms:PSO",
        "differential_evolution": f"{_POPULATION}.swarms:DifferentialEvolution",
        "hand_over": "diffsim.optimizers.hand_over:HandOver",
    },
)


def registered(registry: Registry, name: str) -> str | None:
    """``name`` as the registry spells it, such as cma_es for CMA-ES; None if it is not in it."""
    spelled = name.lower().replace("-", "_")
    return spelled if spelled in registry else None


def built_in_settings(registry: Registry, name: str) -> type[Settings] | None:
    """The class of the options of a class in a registry; None for any other, whose code is not loaded here."""
    known = registered(registry, name)
    return None if known is None else load_class(registry, known).Settings


def absolute_name(name: Any, base: Path | None = None) -> Any:
    """A name that leads to a file with the file's absolute path; any other value as it is.

    ``"my_env.py:MyEnv"``, ``"julia:my_env.jl:MyEnv"`` and ``"mjcf:robot.xml"`` are such names.  ``base`` is the folder
    that relative paths start from, the current one by default.
    """
    if not isinstance(name, str):
        return name
    if (robot := robot_file(name)) is not None:
        absolute = ((base or Path()) / robot.expanduser()).resolve()
        return name.replace(f":{robot}", f":{absolute}", 1)
    start = JULIA if name.startswith(JULIA) else ""
    file, _, attribute = name.removeprefix(start).rpartition(":")
    if not (file.endswith(".py") or (start and file)):
        return name
    return f"{start}{((base or Path()) / Path(file).expanduser()).resolve()}:{attribute}"


def name_of_class(named: type) -> str:
    """The name by which a configuration can hold a class: a registry's, its file's or its module's.

    A class of a script or notebook is ``"__main__:MyEnv"``.
    """
    julia = getattr(named, "name", "")
    if isinstance(julia, str) and julia.startswith(JULIA):
        return julia
    if isinstance(robot := getattr(named, "registry_name", None), str):
        return robot
    path = f"{named.__module__}:{named.__qualname__}"
    for name, known in {**ENVIRONMENTS, **SUITE_TASKS}.items():
        if known == path:
            return name
    file = file_of(named.__module__)
    return remember(named) if file is None else f"{file}:{named.__qualname__}"


class Named(Settings):
    """A class by name with its options."""

    model_config = ConfigDict(extra="allow")

    name: str

    @field_validator("name", mode="before")
    @classmethod
    def _from_anywhere(cls, name: Any) -> Any:
        # A run is looked at from other folders than it was started in.
        return absolute_name(name_of_class(name) if isinstance(name, type) else name)

    @property
    def options(self) -> dict[str, Any]:
        """Everything beside the fields of this section."""
        return dict(self.model_extra or {})


class PolicyConfig(Named):
    """``name`` is a network; options beside these go to its constructor."""

    name: str = "mlp"
    squash: Literal["clip", "tanh"] = "clip"
    """How outputs are brought into the action box; see :class:`diffsim.policy.Policy`."""


class EvaluationConfig(Settings):
    """Returns measured in the run's own simulator while it trains (no exploration noise)."""

    every: int = Field(default=50, ge=0)
    """Updates between evaluations; 0 evaluates only at the end."""
    episodes: int = Field(default=128, ge=1)


class EnvConfig(Named):
    """``name`` is a simulator; options beside it override its physical parameters."""


LIMITS = ("wall_seconds", "env_steps")
"""What a run may use up: fields of :class:`StopConfig` and columns of the history."""


class StopConfig(Settings):
    """What ends a run before its updates are done; checked after each update, the first that holds counts."""

    target_return: float | None = None
    """A mean return of an evaluation during training that is at least this high."""
    wall_seconds: float | None = Field(default=None, gt=0)
    """Seconds of training, as the column wall_seconds counts them. Where it stops depends on the machine."""
    env_steps: int | None = Field(default=None, ge=1)
    """Environment steps used by training."""

    @property
    def limits(self) -> dict[str, float]:
        """What is limited, by the name of its column in the history."""
        return {name: limit for name in LIMITS if (limit := getattr(self, name)) is not None}


DOUBLINGS = 2
"""The default of ``doublings`` where neither ``updates`` nor a limit is set: 600, 1,200 or 2,400 updates."""
UNTIL_STOP = "stop"
"""The value of ``doublings`` of a run that uses the limits of its section ``stop``."""


class RunConfig(Settings):
    """Everything that determines a run, and nothing else."""

    env: EnvConfig
    policy: PolicyConfig = PolicyConfig()
    algorithm: Named = Named(name="value_gradient")
    optimizer: Named = Named(name="adam")
    evaluation: EvaluationConfig = EvaluationConfig()
    updates: int = Field(default=600, ge=1)
    """Updates of the run. Schedules, such as of learning rates, end with the last."""
    doublings: Annotated[int, Field(ge=0)] | Literal["stop"] = 0
    """How often a run may go on to twice its updates, where its best policy does not yet succeed from as many held-out
    starts as the task asks for. ``"stop"``: until ``stop.wall_seconds`` or ``stop.env_steps``, whatever the policy
    does. By default 0 where ``updates`` is set, else ``"stop"`` where one of these limits is, else 2."""
    stop: StopConfig = StopConfig()
    checkpoint_every: int = Field(default=25, ge=1)
    """Updates between checkpoints: what a killed process can lose."""
    seed: Seed = 0
    device: str = "cpu"
    """A device of torch, or ``"auto"``: a CUDA GPU where there is one, else the CPU."""
    dtype: Literal["float32", "float64"] = "float32"
    backend: Literal["auto", "eager", "native", "cuda_native", "cuda_graph", "inductor"] = "auto"
    """What simulates; see :class:`diffsim.rollouts.Rollout`. Back ends differ in the last bits."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of torch, of native rollouts and of Julia. Part of the run because sums that torch splits over
    threads round differently. By default one, because at batches of a few hundred more threads mostly wait for each
    other; but native rollouts that take long, whose bits are the same with any number, have one for each processor."""
    shards: int = Field(default=1, ge=1)
    """Parts of each batch, simulated one after the other or by several processes. Part of the run because sums over
    another number of parts round differently."""

    @field_validator("doublings", mode="wrap")
    @classmethod
    def _number_or_stop(cls, value: Any, validated: Callable[[Any], Any]) -> Any:
        try:
            return validated(value)
        except ValidationError:
            raise ValueError('needs a whole number, 0 or more, or "stop"') from None

    @model_validator(mode="before")
    @classmethod
    def _chosen_length(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or "updates" in values:
            return values
        stop = values.get("stop")
        given = stop.limits if isinstance(stop, StopConfig) else stop if isinstance(stop, Mapping) else {}
        limited = any(given.get(name) is not None for name in LIMITS)
        return {"doublings": UNTIL_STOP if limited else DOUBLINGS, **values}

    @model_validator(mode="after")
    def _some_limit(self) -> RunConfig:
        if self.doublings == UNTIL_STOP and not self.stop.limits:
            raise ValueError(
                'doublings = "stop" trains until a limit, and there is none; set stop.wall_seconds or stop.env_steps'
            )
        return self

    def to_json(self) -> str:
        return json.dumps(self.model_dump(), indent=2)


Model = TypeVar("Model", bound=BaseModel)


def validate(model: type[Model], values: Mapping[str, Any], section: str = "") -> Model:
    """``model(**values)``, with every complaint turned into a :class:`ConfigError` that helps."""
    try:
        named = model.current_names(values, section) if issubclass(model, Settings) else values
        return model(**named)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(model, e, section) for e in error.errors())) from None
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _explain(model: type[BaseModel], error: Any, section: str) -> str:
    path = [section, *map(str, error["loc"])] if section else list(map(str, error["loc"]))
    key = ".".join(path)
    if error["type"] == "extra_forbidden":
        inner: Any = model
        for part in error["loc"][:-1]:
            # The place in a list is no field: its entries are of one model.
            inner = (
                _model_in(inner if isinstance(part, int) else inner.model_fields[part].annotation) or inner
            )
        known: Iterable[str] = inner.model_fields
        prefix = "".join(part + "." for part in path[:-1])
        return unknown("key", key, [prefix + name for name in known])
    if error["type"] == "missing":
        return f"{key} is missing; set it, for example with --set {key}=VALUE"
    said = str(error["msg"].removeprefix("Value error, "))
    return f"{key} = {error['input']!r}: {said}" if key else said


def _model_in(annotation: Any) -> Any:
    """The model that an annotation such as ``tuple[Budget, ...]`` or ``Matrix | None`` is made of; None without one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part))), None)


def load_class(registry: Registry, name: str) -> Any:
    """The class behind a name in a configuration.

    Raises:
        ConfigError: there is none, or its module fails to load.
    """
    with loading(registry.kind, name):
        return registry.load(name)


@contextlib.contextmanager
def loading(kind: str, name: str) -> Iterator[None]:
    """While inside, what a user's file raises becomes a ConfigError with the file and the line."""
    try:
        yield
    except (UnknownNameError, JuliaError, RobotFileError) as error:
        raise ConfigError(str(error)) from None
    except Exception as error:
        from lazy_registry.source_places import is_users_file

        frames = traceback.extract_tb(error.__traceback__)
        # Below the user's line may stand Python's import machinery, and libraries.
        users = [f for f in frames if is_users_file(f.filename)]
        file, line = (users or frames)[-1].filename, (users or frames)[-1].lineno
        if isinstance(error, SyntaxError):
            file, line = error.filename or file, error.lineno
        raise ConfigError(
            f"{kind} {name!r} cannot be loaded: {type(error).__name__}: {error} ({file}, line {line})"
        ) from error


def read_toml(path: Path) -> dict[str, Any]:
    """The values in a TOML file.

    Raises:
        ConfigError: the file cannot be read or is not TOML.
    """
    path = path.expanduser()
    try:
        return _with_absolute_names(tomllib.loads(path.read_text(encoding="utf-8")), path.parent)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def _with_absolute_names(values: dict[str, Any], base: Path) -> dict[str, Any]:
    """With the files that sections name found from ``base``; those that are not there, from the current folder."""

    def absolute(name: Any) -> Any:
        beside = absolute_name(name, base)
        file = robot_file(str(beside)) or str(beside).removeprefix(JULIA).rpartition(":")[0]
        return beside if Path(file).is_file() else name

    def section(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: absolute(v) if k == "name" else section(v) for k, v in value.items()}
        return absolute(value)

    return {key: section(value) if key in _NAMED_SECTIONS else value for key, value in values.items()}


def parse_assignment(text: str) -> dict[str, Any]:
    """``"algorithm.window=8"`` as nested values; the right side is TOML, or else a plain string."""
    key, equals, value = text.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts):
        raise ConfigError(f"--set takes KEY=VALUE, for example algorithm.window=8; got {text!r}")
    parsed: Any = value.strip()
    # The brackets of a list may be left out: policy.hidden=128,128.
    for right_side in (value, f"[{value}]") if "," in value else (value,):
        with contextlib.suppress(tomllib.TOMLDecodeError):
            parsed = tomllib.loads(f"value = {right_side}")["value"]
            break
    for part in reversed(parts):
        parsed = {part: parsed}
    return parsed


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """The layers on top of each other, later ones winning, sections merged key by key.

    A section that names another class starts afresh: the options of Adam mean nothing to SGD.
    """
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            # A bare string where a section belongs is its name: env = "pendulum".
            is_name = isinstance(value, (str, type)) and key in _NAMED_SECTIONS
            section = {"name": value} if is_name else value
            old = result.get(key)
            if isinstance(old, str) and isinstance(section, Mapping):
                old = {"name": old}  # --set optimizer.first=cma_es --set optimizer.first.sigma=0.5
            if isinstance(section, Mapping) and isinstance(old, Mapping):
                renamed = "name" in section and str(section["name"]).lower() != str(old.get("name")).lower()
                result[key] = dict(section) if renamed else merge(old, section)
            else:
                result[key] = dict(section) if isinstance(section, Mapping) else section
    return result


_NAMED_SECTIONS = ("env", "policy", "algorithm", "optimizer")


def load_config(*layers: Mapping[str, Any]) -> RunConfig:
    """A validated configuration: the defaults, and on top of them each layer of nested values.

    Raises:
        ConfigError: an unknown key or an impossible value.
    """
    fields = RunConfig.model_fields
    merged = {name: fields[name].default.model_dump() for name in ("policy", "algorithm", "optimizer")}
    for layer in layers:
        merged = merge(merged, _current_names(layer, merged))
    return validate(RunConfig, merged)


def stored_config(values: Mapping[str, Any]) -> RunConfig:
    """The configuration of a run as its file holds it; old names of options are replaced without a warning."""
    return validate(RunConfig, _current_names(values, {}, warn=False))


def _current_names(
    layer: Mapping[str, Any], before: Mapping[str, Any], warn: bool = True
) -> Mapping[str, Any]:
    """``layer`` with the present names of options; ``before`` says which classes are chosen where it does not.

    Only the project's own algorithms and optimizers are looked up: reading a configuration runs no code of others.
    """
    result = dict(layer)
    for section, registry in (("algorithm", ALGORITHMS), ("optimizer", OPTIMIZERS)):
        given, chosen = layer.get(section), before.get(section)
        chosen = chosen if isinstance(chosen, Mapping) else {}
        if isinstance(given, Mapping):
            settings = built_in_settings(registry, str(given.get("name", chosen.get("name"))))
            try:
                result[section] = settings.current_names(given, section, chosen, warn) if settings else given
            except ValueError as error:
                raise ConfigError(str(error)) from None
    return result
