"""One run: a configuration and a seed, the training loop, its checkpoints, one HDF5 file."""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from diffsim import provenance
from diffsim.algorithms import ALGORITHMS
from diffsim.algorithms.base import Algorithm, Record
from diffsim.config import Named, RunConfig, load_class, load_config, validate
from diffsim.errors import ConfigError, DivergenceError, Interrupted, RunFileError
from diffsim.optimizers import canonical, optimizer_settings
from diffsim.policy import make_policy
from diffsim.progress import Progress
from diffsim.runfile import COLUMNS, RunFile, Writer, already_there, checkpoint_writer, history_writer
from diffsim.signals import stop_on_signals
from robotics_envs import ENVIRONMENTS, JULIA
from robotics_envs.base import Env
from robotics_envs.conformance.stated import names_match_shapes, shapes_on
from robotics_envs.julia.installation import JuliaError

MAX_DROPPED_IN_A_ROW = 10


def train(
    env: str | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    resume: bool = False,
    quiet: bool = False,
    **settings: Any,
) -> RunFile:
    """Train a policy and return its run file.

    Args:
        env: a simulator's name or ``"module:Class"``; not needed with ``resume``.
        out: the run's folder; ``runs/<env>`` if not given.  A folder that holds a run is refused.
        resume: go on with the run in ``out``, bit for bit as if it had never stopped.
        quiet: print no progress.
        **settings: anything of :class:`diffsim.config.RunConfig`, sections as dicts:
            ``train("pendulum", seed=1, algorithm={"window": 8})``.

    Raises:
        ConfigError: an unknown name or key, or an impossible value.
        RunFileError: ``out`` holds a run already, or with ``resume`` none that can be read.
        DivergenceError: training produced non-finite numbers and cannot go on.
        Interrupted: Ctrl-C or SIGTERM arrived; a checkpoint has been written.
    """
    values = settings if env is None else {"env": env, **settings}
    if resume:
        if out is None:
            raise ConfigError("resume needs the folder of the run: out=..., or --out on the command line")
        file = RunFile(out)
        file.config()  # refuse a missing or foreign file before locking its folder
        with file.training_lock():
            Run.resume(file, values).train(quiet)
        return file
    config = resolve(load_config(values))
    folder = Path("runs", config.env.name.replace(":", ".")) if out is None else Path(out)
    if folder.is_file() or folder.suffix == ".h5":
        raise ConfigError(f"out = {str(folder)!r}: give a folder; the run becomes run.h5 in it")
    file = RunFile(folder)
    if file.exists():
        raise RunFileError(already_there(file.path))
    run = Run(file, config, build_algorithm(config))
    with file.training_lock():
        run.create()
        run.train(quiet)
    return file


def resolve(config: RunConfig) -> RunConfig:
    """The configuration with the defaults of simulator, algorithm and optimizer written out.

    Raises:
        ConfigError: an unknown environment, algorithm, optimizer, device or option.
    """
    env = build_env(config)
    settings = algorithm_settings(config)
    resolve_device(config.device)
    constants = {name: c.value for name, c in env.constants.items()}
    return config.model_copy(
        update={
            "env": Named(name=config.env.name, **constants),
            "algorithm": Named(name=config.algorithm.name, **settings.model_dump()),
            "optimizer": Named(
                name=canonical(config.optimizer.name), **optimizer_settings(config.optimizer).model_dump()
            ),
        }
    )


def build_env(config: RunConfig) -> Env:
    """The simulator that the configuration names.

    Raises:
        ConfigError: there is none, it refuses its parameters, or its methods give wrong shapes.
    """
    name = config.env.name
    if name.startswith(JULIA):
        start_julia(config.threads)
    env_class = load_class(ENVIRONMENTS, name)
    if not (isinstance(env_class, type) and issubclass(env_class, Env)):
        raise ConfigError(f"environment {name!r} is no subclass of robotics_envs.base.Env: {env_class!r}")
    try:
        env = env_class(**config.env.options)
        complaints = [*names_match_shapes(env), *shapes_on(env, getattr(torch, config.dtype), "cpu")]
    except (ValueError, TypeError, JuliaError) as error:
        raise ConfigError(f"environment {name!r}: {error}") from None
    if complaints:
        raise ConfigError(
            f"environment {name!r}: {'; '.join(complaints)}; robotics_envs.check_env finds more"
        )
    return env


def start_julia(threads: int) -> None:
    """Start Julia with the threads of the run, unless it runs already or the environment names a number.

    Raises:
        ConfigError: it cannot be started.
    """
    from robotics_envs.julia import start

    try:
        start(threads)
    except JuliaError as error:
        raise ConfigError(str(error)) from None


def algorithm_settings(config: RunConfig) -> Any:
    return validate(
        load_class(ALGORITHMS, config.algorithm.name).Settings, config.algorithm.options, "algorithm"
    )


def build_algorithm(config: RunConfig) -> Algorithm:
    """Everything of a run that has state, fresh from its seed."""
    env = build_env(config)
    device = resolve_device(config.device)
    policy = make_policy(config.policy, env, config.seed, device, getattr(torch, config.dtype))
    algorithm = load_class(ALGORITHMS, config.algorithm.name)
    return algorithm(env, policy, config, algorithm_settings(config))


def resolve_device(name: str) -> torch.device:
    """The torch device called ``name``.

    Raises:
        ConfigError: no such device here.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {name!r} cannot be used here: {reason}") from None
    return device


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """While inside, torch computes on ``count`` CPU threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Run:
    """A configuration being trained into a file, whose training lock the caller holds."""

    def __init__(self, file: RunFile, config: RunConfig, algorithm: Algorithm) -> None:
        self.file = file
        self.config = config
        self.algorithm = algorithm
        self.history: dict[str, list[float]] = {name: [] for name in COLUMNS}
        self._best: tuple[float, Writer | None] = (float("-inf"), None)
        self._dropped_in_a_row = 0

    @classmethod
    def resume(cls, file: RunFile, values: Mapping[str, Any]) -> Run:
        """The run in ``file``, as it was at its last checkpoint; ``values`` may only repeat its settings."""
        config = file.config()
        _refuse_changes(config, values)
        run = cls(file, config, build_algorithm(config))
        try:
            run.algorithm.load_state_dict(file.checkpoint("last"))
        except (KeyError, ConfigError) as error:
            raise RunFileError(
                f"the checkpoint in {file.path} does not fit ({error}): another version of diffsim wrote it. Its "
                "policy can be evaluated, but the run cannot go on; start a new one"
            ) from error
        run.history = {name: column.tolist() for name, column in file.history().items()}
        best = file.checkpoints().get("best")
        if best is not None:
            run._best = (best["return"], None)
        return run

    @property
    def updates_done(self) -> int:
        return len(self.history["update"])

    def create(self) -> None:
        """Write the file with the untrained policy, so that a run can be resumed from its first moment.

        Raises:
            RunFileError: there is a run already.
        """
        self.file.create(self.config, provenance.describe(self.config.device), self._sections())

    def train(self, quiet: bool = False) -> None:
        """Train to the end of the budget, or until someone asks to stop."""
        config = self.config
        progress = Progress(config.updates, self.updates_done, quiet=quiet)
        with torch_threads(config.threads), stop_on_signals() as stop, progress:
            while self.updates_done < config.updates:
                record = self._update(progress)
                finished = self.updates_done == config.updates
                diverged = self._dropped_in_a_row == MAX_DROPPED_IN_A_ROW
                due = self.updates_done % config.checkpoint_every == 0
                if due or finished or diverged or stop.signal is not None:
                    self.file.update(self._sections())
                if diverged:
                    raise DivergenceError(self._why_it_diverged(record))
                if stop.signal is not None and not finished:
                    raise Interrupted(self._how_to_go_on(), stop.signal)

    def _update(self, progress: Progress) -> Record:
        """One update of the algorithm, into the history and before the user's eyes."""
        started = time.perf_counter()
        record = self.algorithm.step()
        seconds = time.perf_counter() - started - record.compile_seconds
        row = self._account(record, seconds)
        for name, column in self.history.items():
            column.append(row[name])
        progress.show(row)
        if record.dropped:
            progress.say(
                f"update {self.updates_done}: step dropped, {record.dropped}; the policy is unchanged"
            )
        self._dropped_in_a_row = self._dropped_in_a_row + 1 if record.dropped else 0
        return record

    def _account(self, record: Record, seconds: float) -> dict[str, float]:
        """The next row of the history."""
        previous = {name: column[-1] if column else 0 for name, column in self.history.items()}
        update = self.updates_done + 1
        every = self.config.evaluation.every
        evaluate = update == self.config.updates or (every > 0 and update % every == 0)
        measured, steps = self._evaluate(update) if evaluate else (float("nan"), 0)
        return {
            "update": update,
            "loss": record.loss,
            "return": measured,
            "env_steps": previous["env_steps"] + record.env_steps,
            "gradient_evaluations": previous["gradient_evaluations"] + record.gradient_evaluations,
            "evaluation_steps": previous["evaluation_steps"] + steps,
            "wall_seconds": previous["wall_seconds"] + seconds,
            "compile_seconds": previous["compile_seconds"] + record.compile_seconds,
            "grad_norm": record.grad_norm,
            "step_dropped": int(bool(record.dropped)),
        }

    def _evaluate(self, update: int) -> tuple[float, int]:
        """The mean return from fixed starting states, so that two evaluations differ by the policy alone."""
        algorithm, episodes = self.algorithm, self.config.evaluation.episodes
        generator = torch.Generator().manual_seed(self.config.seed)
        x = algorithm.env.reset(episodes, generator, algorithm.dtype).to(algorithm.device)
        algorithm.policy.eval()  # measuring must not move the statistics of a batch norm
        measured = float(algorithm.returns(x).mean())
        algorithm.policy.train()
        if measured > self._best[0]:
            state = {"policy": {k: v.clone() for k, v in algorithm.policy.state_dict().items()}}
            writer = checkpoint_writer(state, **{"update": update, "return": measured})
            self._best = (measured, writer)
        return measured, episodes * algorithm.env.episode_steps

    def _sections(self) -> dict[str, Writer]:
        last = checkpoint_writer(self.algorithm.state_dict(), update=self.updates_done)
        sections = {"history": history_writer(self.history), "checkpoints/last": last}
        if self._best[1] is not None:
            sections["checkpoints/best"] = self._best[1]
        return sections

    def _why_it_diverged(self, record: Record) -> str:
        options = resolve(self.config).optimizer.options
        hints = [f"a smaller optimizer.{name}" for name in ("lr", "sigma", "radius") if options.get(name)]
        hints += ["optimizer.max_grad_norm=1"] if "max_grad_norm" in options else []
        return (
            f"{MAX_DROPPED_IN_A_ROW} updates in a row were dropped, the last at update "
            f"{self.updates_done}: {record.dropped}. The policy before them is in {self.file.path}. Try "
            f"{', '.join([*hints, 'dtype=float64'])}; if it starts at once, put the simulator through "
            "robotics_envs.check_env"
        )

    def _how_to_go_on(self) -> str:
        return (
            f"stopped after update {self.updates_done} of {self.config.updates}; checkpoint in "
            f"{self.file.path}. Go on with: "
            f"diffsim train --out {shlex.quote(str(self.file.folder))} --resume"
        )


def _refuse_changes(config: RunConfig, values: Mapping[str, Any]) -> None:
    """A resumed run keeps its configuration: say which setting was to be another."""
    if not values:
        return
    stored = config.model_dump()
    wanted = resolve(load_config(stored, values)).model_dump()
    changed = [
        f"{key} is {old!r} in the run, {new!r} was given" for key, old, new in _differences(stored, wanted)
    ]
    if changed:
        raise ConfigError(
            "a resumed run keeps its configuration: " + "; ".join(changed) + "; start a new run for that"
        )


def _differences(old: Any, new: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        if old.get("name") != new.get("name"):  # options of another class are no changes of these
            return [(f"{key}.name", old.get("name"), new.get("name"))]
        return [
            difference
            for name in {**old, **new}
            for difference in _differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
        ]
    if isinstance(old, (list, tuple)) and isinstance(new, (list, tuple)):
        return [] if list(old) == list(new) else [(key, old, new)]
    return [] if old == new else [(key, old, new)]
