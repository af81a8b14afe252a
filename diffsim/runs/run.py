"""One run: a configuration and a seed, the training loop, its checkpoints, one HDF5 file."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import tempfile
import time
import traceback
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from diffsim.algorithms.base import Record
from diffsim.assembly import Assembly, assemble
from diffsim.config import RunConfig, load_config, merge
from diffsim.errors import (
    ConfigError,
    DivergenceError,
    Interrupted,
    OutOfMemoryError,
    ProcessError,
    RunFileError,
    is_out_of_memory,
)
from diffsim.isolation import torch_defaults
from diffsim.launcher import launched
from diffsim.processes import Team, team_for
from diffsim.runs import provenance, user_code
from diffsim.runs.length import Continuation, continuation, share_used
from diffsim.runs.log_writers import check_writers, make_writers
from diffsim.runs.memory import what_to_do, with_shards_that_fit
from diffsim.runs.progress import Progress
from diffsim.runs.references import (
    Callback,
    EnvLike,
    RunLike,
    callbacks_of,
    default_folder,
    env_section,
    run_folder,
)
from diffsim.runs.resuming import lengthened, resumed_with, what_lengthening_means
from diffsim.runs.runfile import (
    COLUMNS,
    RunFile,
    Writer,
    already_there,
    checkpoint_writer,
    history_writer,
    status_writer,
)
from diffsim.runs.signals import StopRequest, stop_on_signals
from diffsim.runs.user_code import Source
from diffsim.runs.validation import Measured, Validation
from diffsim.values import shown

_ALL_SECTIONS = ("env", "policy", "algorithm", "optimizer")
MAX_DROPPED_IN_A_ROW = 10


def train(
    env: EnvLike | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    resume: bool = False,
    init: RunLike | None = None,
    callback: Callback | Sequence[Callback] = (),
    log: str | Sequence[str] = (),
    trust: bool = False,
    quiet: bool = False,
    processes: int | None = None,
    **settings: Any,
) -> RunFile:
    """Train a policy and return its run file.

    Args:
        env: a simulator: its name, ``"my_env.py:MyEnv"``, ``"module:MyEnv"``, the path of a file with one simulator, a
            class or an instance; not needed with ``resume``.
        out: the run's folder; ``runs/<env>`` if not given.  A folder that holds a run is refused.
        resume: go on with the run in ``out``, bit for bit as if it had never stopped.  With ``updates`` or ``stop``
            it can be lengthened.
        init: a run whose policy this one starts from, instead of a random one: its folder, file or RunFile.
        callback: called after every update with the new row of the history, a dict by the names of
            :data:`diffsim.runs.runfile.COLUMNS`; or several such functions.
        log: writers of :data:`diffsim.runs.log_writers.WRITERS`, such as ``"csv"`` or ``["tensorboard", "csv"]``.
        trust: with ``resume`` and ``init``, run the code stored in a run of somebody else.
        quiet: print no progress.
        processes: how many processes of this machine share the work; not more than the run has ``shards``, on which the
            results depend, and not on this.  Processes that a launcher such as torchrun started share it unasked.
        **settings: anything of :class:`diffsim.config.RunConfig`, sections as dicts:
            ``train("pendulum", seed=1, algorithm={"window": 8})``.

    Raises:
        ConfigError: an unknown name or key, or an impossible value.
        RunFileError: ``out`` holds a run already, or with ``resume`` none that can be read.
        TrustError: a run of somebody else names code of its own.
        DivergenceError: training produced non-finite numbers and cannot go on.
        ProcessError: another process of the same training has ended; a checkpoint has been written.
        Interrupted: Ctrl-C, SIGTERM or SIGHUP arrived; a checkpoint has been written.
    """
    values = settings if env is None else {**settings, "env": env}
    return trained(values, out, resume, init, callback, log, trust, quiet, processes=processes).file


def trained(
    values: Mapping[str, Any],
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    init: RunLike | None = None,
    callback: Callback | Sequence[Callback] = (),
    log: str | Sequence[str] = (),
    trust: bool = False,
    quiet: bool = False,
    progress: Progress | None = None,
    processes: int | None = None,
) -> Run:
    """The run that :func:`train` makes or resumes, at its end; ``values`` are the settings, ``env`` among them.

    ``progress`` is one that the caller has entered; by default there is an own one.
    """
    if "env" in values:
        others = {key: value for key, value in values.items() if key != "env"}
        values = merge(others, {"env": env_section(values["env"])})
    callbacks = callbacks_of(callback)
    writers = [log] if isinstance(log, str) else list(log)
    check_writers(writers)
    quiet = quiet or launched()[0] > 0
    with Progress(quiet=quiet) if progress is None else contextlib.nullcontext(progress) as progress:
        progress.status("loading")
        if resume:
            if out is None:
                raise ConfigError("resume needs the folder of the run: out=..., or --out on the command line")
            if init is not None:
                raise ConfigError("init starts a new run, resume goes on with an old one; give one of them")
            file = RunFile(out)
            config = file.config()  # refuse a missing or foreign file before locking its folder
            team = team_for(processes, config.shards)
            order = {"values": dict(values), "out": str(file.folder), "resume": True, "trust": trust}
            with torch_defaults(config.threads or 1), _held_by(team, file), team.at_work(order):
                run = Run.resume(file, values, trust, progress, team)
                run.train([*callbacks, *make_writers(writers, file.folder)] if team.writes else ())
            return run
        config = load_config(_with_policy_of(init, values, trust))
        file = RunFile(default_folder(config) if out is None else run_folder(out))
        assembly = assemble(config)
        if processes is None and launched()[1] == 1 and not file.exists():
            with torch_defaults(config.threads or 1):
                assembly = with_shards_that_fit(assembly, progress.say)
        config = assembly.given
        team = team_for(processes, config.shards)
        if file.exists() and team.writes:
            raise RunFileError(already_there(file.path))
        order = {
            "values": config.model_dump(),
            "out": str(file.folder),
            "init": None if init is None else str(RunFile(init).path),
            "trust": trust,
        }
        with torch_defaults(config.threads or 1), team.at_work(order):
            run = Run(file, assembly.config, assembly, progress, team=team)
            start = {} if init is None else run.start_from(RunFile(init))
            with _held_by(team, file):
                run.create(start)
                run.train([*callbacks, *make_writers(writers, file.folder)] if team.writes else ())
    return run


def _held_by(team: Team, file: RunFile) -> contextlib.AbstractContextManager[None]:
    """The training lock of a run, which the process that writes holds."""
    return file.training_lock() if team.writes else contextlib.nullcontext()


def _with_policy_of(init: RunLike | None, values: Mapping[str, Any], trust: bool) -> Mapping[str, Any]:
    """The settings of a new run; its network is that of the run it starts from, unless another is asked for.

    Raises:
        TrustError: that network is somebody else's code.
    """
    if init is None or "policy" in values:
        return values
    file = RunFile(init)
    config = user_code.consented(file.config(), file.sources(), file.is_own(), trust, file.path, ("policy",))
    return {**values, "policy": config.policy.model_dump()}


class Run:
    """A configuration being trained into a file, whose training lock the caller holds.

    Args:
        file: of the run.
        config: as it is stored.
        assembly: what it names; names of the user's may lead to other places here than in ``config``.
        progress: what a person sees.
        sources: texts of the user's files that the run is made from.
        team: the processes that train it.
    """

    def __init__(
        self,
        file: RunFile,
        config: RunConfig,
        assembly: Assembly,
        progress: Progress,
        sources: Sequence[Source] = (),
        team: Team | None = None,
    ) -> None:
        self.file = file
        self.config = config
        self.assembly = assembly
        self.algorithm = assembly.algorithm
        self.progress = progress
        self.sources = sources
        self.team = Team() if team is None else team
        self.history: dict[str, list[float]] = {name: [] for name in COLUMNS}
        self._validation = Validation(self.algorithm, config, progress.say)
        self._best: Writer | None = None
        """Of the best policy, if the file does not have it yet."""
        self._dropped_in_a_row = 0
        self._facts: dict[str, Any] = {}
        self._own = True
        self._saved, self._written = 0, config
        self._inside_update = False

    @classmethod
    def resume(
        cls,
        file: RunFile,
        values: Mapping[str, Any],
        trust: bool,
        progress: Progress,
        team: Team | None = None,
    ) -> Run:
        """The run in ``file``, as it was at its last checkpoint.

        ``values`` may repeat its settings, lengthen it, and name a file that was moved.
        """
        stored, status = file.config(), file.status()
        if status["state"] == "diverged":
            raise ConfigError(
                f"{shown(file.folder)} diverged and would again: {status['reason']}. Start a new run with that "
                f"change; --init {shlex.quote(shown(file.folder))} starts it from this one's policy"
            )
        if file.checkpoints()["last"].get("pruned"):
            raise ConfigError(
                f"{shown(file.folder)} was pruned to its policies: there is no state to go on from. Start a new run; "
                f"--init {shlex.quote(shown(file.folder))} starts it from this one's policy"
            )
        wanted = resumed_with(stored, values, len(file.history()["update"]))
        sources = file.sources()
        runnable = user_code.consented(wanted, sources, file.is_own(), trust, file.path, _ALL_SECTIONS)
        assembly = assemble(runnable)
        config = lengthened(stored, values, wanted, assembly)
        run = cls(file, config, assembly, progress, sources, team)
        run._load_checkpoint()
        run.history = {name: column.tolist() for name, column in file.history().items()}
        run._saved, run._facts, run._own = run.updates_done, file.provenance(), file.is_own()
        best = file.checkpoints().get("best")
        if best is not None:
            run._validation.best = best["return"]
        if config != stored:
            run.progress.say(what_lengthening_means(stored, config, run.updates_done))
            if run.team.writes:
                run.file.update({}, config)
        return run

    def _load_checkpoint(self) -> None:
        try:
            self.algorithm.load_state_dict(self.file.checkpoint("last"))
        except (KeyError, ConfigError) as error:
            raise RunFileError(
                f"the checkpoint in {self.file.path} does not fit ({error}): another version of diffsim wrote it. Its "
                "policy can be evaluated, but the run cannot go on; start a new one"
            ) from error

    @property
    def updates_done(self) -> int:
        return len(self.history["update"])

    def start_from(self, other: RunFile) -> dict[str, Any]:
        """Take over the policy of another run, normalizer included; returns where it came from.

        Raises:
            ConfigError: it has other observations, actions or layers.
        """
        config = other.config()
        facts = other.checkpoints()["last"]
        try:
            self.algorithm.policy.load_state_dict(other.checkpoint("last")["policy"])
        except RuntimeError as error:
            raise ConfigError(
                f"init = {shown(other.folder)}: its policy ({config.env.name}, {config.policy.name}) does not fit "
                f"the one of this run ({self.config.env.name}, {self.config.policy.name}): "
                f"{' '.join(str(error).split())}"
            ) from None
        return {"initial_policy": str(other.path), "initial_policy_update": facts["update"]}

    def create(self, start: Mapping[str, Any]) -> None:
        """Write the file with the untrained policy, so that a run can be resumed from its first moment.

        Raises:
            RunFileError: there is a run already.
        """
        if not self.team.writes:
            return
        # Now that everything was built: constructors may import too.
        self.sources = user_code.sources(self.config)
        self._facts = {**provenance.describe(str(self.assembly.device)), **start}
        if note := self.algorithm.env.training_note:
            self._facts["training"] = note
        self.file.create(self.config, self._facts, self._sections("running"), self.sources)

    def train(self, callbacks: Sequence[Callback] = ()) -> None:
        """Train to the end of the budget, or until someone asks to stop.

        An exception out of an update, or out of a callback, leaves a checkpoint of the last whole update.
        """
        config = self.config
        self.team.connect()
        if note := self.algorithm.env.training_note:
            self.progress.say(note)
        self.progress.begin(config.updates, self.updates_done)
        changed = self._continuation() if self.updates_done else None
        if changed:  # a run that was given another limit
            self._go_on(changed)
        self.progress.status("first update, which may compile")
        with contextlib.ExitStack() as stack:
            stop = stack.enter_context(stop_on_signals())
            for callback in callbacks:
                if hasattr(callback, "close"):
                    stack.callback(callback.close)
            try:
                while not self._end():
                    record, asked = self._update(stop)
                    for callback in callbacks:
                        callback(self._row())
                    if self.team.size == 1:
                        asked = stop.signal  # which may have come during a callback
                    if self._dropped_in_a_row == MAX_DROPPED_IN_A_ROW:
                        reason = self._why_it_diverged(record)
                        self._save("diverged", reason, final=True)
                        raise DivergenceError(
                            f"{reason} The policy before them is in {shown(self.file.path)}"
                        )
                    changed = self._continuation()
                    if changed:
                        self._go_on(changed)
                    end = self._end()
                    if end:
                        self._save("finished", end, final=True)
                    elif asked is not None:
                        name = signal.Signals(asked).name
                        self._save("stopped", f"{name} after update {self.updates_done}", final=True)
                        raise Interrupted(self._how_to_go_on(), asked)
                    elif changed or self.updates_done % config.checkpoint_every == 0:
                        self._save("running")
            except (DivergenceError, Interrupted, RunFileError):
                raise
            except Exception as error:
                self._leave_checkpoint(error)
                if is_out_of_memory(error):
                    said = what_to_do(error, self.updates_done + 1, self.assembly)
                    raise OutOfMemoryError(said) from error
                raise

    def _continuation(self) -> Continuation | None:
        """With how many updates the run goes on; None if that does not change."""
        evaluations = self.history["return"], self.history["success"]
        return continuation(
            self.config,
            self.algorithm.env,
            self.updates_done,
            *evaluations,
            share_used(self.config, self._row()),
        )

    def _go_on(self, changed: Continuation) -> None:
        """The next checkpoint writes the new length together with the state that goes on with it."""
        self.config, updates = changed.config, changed.config.updates
        self.algorithm.lengthen(updates)
        self.progress.begin(updates, self.updates_done)
        self.progress.say(f"{changed.why}: going on to {updates:,} updates")

    def _row(self) -> dict[str, float]:
        return {name: column[-1] for name, column in self.history.items()}

    def _end(self) -> str:
        """Why training has come to its end; ``""`` if it has not."""
        if not self.updates_done:
            return ""
        row, stop = self._row(), self.config.stop
        if self.updates_done >= self.config.updates:
            return f"all {self.config.updates} updates done"
        for name, limit in stop.limits.items():
            if row[name] >= limit:
                return f"stop.{name} = {limit:g} reached after update {self.updates_done}"
        if stop.target_return is not None and row["return"] >= stop.target_return:
            return f"stop.target_return = {stop.target_return:g} reached after update {self.updates_done}"
        return ""

    def _save(self, state: str, reason: str = "", final: bool = False) -> None:
        """Write a checkpoint.  One that fails is tried again at the next; the last one goes elsewhere if need be."""
        if not self.team.writes:
            return
        sections = self._sections(state, reason)
        try:
            self.file.update(sections, None if self.config is self._written else self.config)
            self._saved, self._written = self.updates_done, self.config
        except RunFileError as error:
            if not final:
                self.progress.say(f"{error}; training goes on, the next checkpoint tries again")
                return
            elsewhere = RunFile(tempfile.mkdtemp(prefix="diffsim-"))
            try:
                elsewhere.create(self.config, self._facts, sections, self.sources, own=self._own)
            except (OSError, RunFileError):
                raise error from None
            raise RunFileError(
                f"{error}. The run as it is now was written to {elsewhere.path} instead"
            ) from None

    def _leave_checkpoint(self, error: Exception) -> None:
        """Save the last whole update after an exception, without hiding it."""
        if not self.team.writes:
            return
        self.team.leave()  # results are the same for any number of processes
        frame = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__}: {error} ({frame.filename}, line {frame.lineno})"
        try:
            if self._inside_update:
                # The update may have changed half of the state.  Updates repeat bit for bit from a checkpoint.
                self.progress.say(
                    f"{reason}; repeating updates from the last checkpoint to save the last whole one"
                )
                self._load_checkpoint()
                while self.algorithm.updates_done < self.updates_done:
                    self.algorithm.step()
            self._save("crashed", reason, final=True)
        except Exception as second:
            self.progress.say(
                f"the update in progress could not be saved ({second}); the last checkpoint, after update "
                f"{self._saved}, is in {shown(self.file.path)}"
            )

    def _update(self, stop: StopRequest) -> tuple[Record, int | None]:
        """One update of the algorithm, into the history and before the user's eyes; and the signal to stop, if any."""
        self._inside_update = True
        started = time.perf_counter()
        record = self.algorithm.step()
        seconds = time.perf_counter() - started - record.compile_seconds
        row, asked = self._agreed(self._account(record, seconds), stop.signal)
        for name, column in self.history.items():
            column.append(row[name])
        self._inside_update = False
        self.progress.show(row)
        if record.dropped:
            self.progress.say(
                f"update {self.updates_done}: step dropped, {record.dropped}; the policy is unchanged"
            )
        if record.left_out and not any(self.history["left_out"][:-1]):
            self.progress.say(
                f"update {self.updates_done}: {record.left_out} rollouts are not finite and were left out; the column "
                "left_out counts them from here on"
            )
        self._dropped_in_a_row = self._dropped_in_a_row + 1 if record.dropped else 0
        return record, asked

    def _agreed(self, row: dict[str, float], asked: int | None) -> tuple[dict[str, float], int | None]:
        """The row of the process that writes, and the signal that any process of the team got.

        Raises:
            ProcessError: the processes have come to other parameters.
        """
        team = self.team
        if team.size == 1:
            return row, asked
        values = [float(asked or 0), float(self._fingerprint()), *row.values()]
        message = torch.tensor(values, dtype=torch.float64, device="cpu").view(torch.uint8)
        found = [m.view(torch.float64).tolist() for m in team.exchange(message, [len(message)] * team.size)]
        others = [rank for rank, one in enumerate(found) if one[1] != found[0][1]]
        if others:
            raise ProcessError(
                f"processes {others} have come to other parameters than process 0 at update {int(found[0][2])}: their "
                "processors or libraries round differently; use machines of one kind"
            )
        signals = [int(one[0]) for one in found]
        agreed = dict(zip(row, found[0][2:], strict=True))
        return agreed, max(signals) or None

    def _fingerprint(self) -> int:
        """A number that differs between policies or random generators that do."""
        algorithm = self.algorithm
        held = [*algorithm.policy.state_dict().values(), algorithm.generator.get_state()]
        number = 0
        for tensor in held:
            content = torch.as_tensor(tensor).detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            number = zlib.crc32(content.numpy().tobytes(), number)
        return number

    def _account(self, record: Record, seconds: float) -> dict[str, float]:
        """The next row of the history."""
        previous = {name: column[-1] if column else 0 for name, column in self.history.items()}
        update = self.updates_done + 1
        row = {
            "update": update,
            "loss": record.loss,
            "return": float("nan"),
            "success": float("nan"),
            "env_steps": previous["env_steps"] + record.env_steps,
            "gradient_evaluations": previous["gradient_evaluations"] + record.gradient_evaluations,
            "evaluation_steps": previous["evaluation_steps"],
            "wall_seconds": previous["wall_seconds"] + seconds,
            "compile_seconds": previous["compile_seconds"] + record.compile_seconds,
            "grad_norm": record.grad_norm,
            "step_dropped": int(bool(record.dropped)),
            "left_out": record.left_out,
        }
        every, stop = self.config.evaluation.every, self.config.stop
        last = (
            update == self.config.updates
            or (stop.env_steps is not None and row["env_steps"] >= stop.env_steps)
            or (stop.wall_seconds is not None and row["wall_seconds"] >= stop.wall_seconds)
        )
        if self.team.writes and (last or (every > 0 and update % every == 0)):
            row["return"], row["success"], steps, _ = self._validate(update)
            row["evaluation_steps"] += steps
        return row

    def _validate(self, update: int) -> Measured:
        found = self._validation()
        if found.is_best:
            state = {"policy": {k: v.clone() for k, v in self.algorithm.policy.state_dict().items()}}
            self._best = checkpoint_writer(state, **{"update": update, "return": found.mean_return})
        return found

    def _sections(self, state: str, reason: str = "") -> dict[str, Writer]:
        sections = {
            "history": history_writer(self.history),
            "status": status_writer(state, reason),
            "checkpoints/last": checkpoint_writer(self.algorithm.state_dict(), update=self.updates_done),
        }
        if self._best is not None:
            sections["checkpoints/best"] = self._best
        return sections

    def _why_it_diverged(self, record: Record) -> str:
        options = self.assembly.config.optimizer.options
        hints = [f"a smaller optimizer.{name}" for name in ("lr", "sigma", "radius") if options.get(name)]
        hints += ["optimizer.max_grad_norm=1"] if "max_grad_norm" in options else []
        return (
            f"{MAX_DROPPED_IN_A_ROW} updates in a row were dropped, the last at update "
            f"{self.updates_done}: {record.dropped}. Try {', '.join([*hints, 'dtype=float64'])}; if it happens from "
            "the first update on, check the simulator with diffsim check."
        )

    def _how_to_go_on(self) -> str:
        return (
            f"stopped after update {self.updates_done} of {self.config.updates}; checkpoint in "
            f"{shown(self.file.path)}. Go on with: "
            f"diffsim train --out {shlex.quote(shown(self.file.folder))} --resume"
        )
