"""``render``: from a run or a simulator to files that show it."""

from __future__ import annotations

import inspect
import math
import os
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffsim._version import __version__
from diffsim.assembly import assemble
from diffsim.config import load_config
from diffsim.errors import ConfigError, RunFileError
from diffsim.isolation import torch_defaults
from diffsim.rendering.page import page_data, write_html
from diffsim.rendering.recording import MOST_FRAMES, Act, record
from diffsim.rendering.video import write_gif, write_mp4
from diffsim.runs.evaluation import LoadedRun
from diffsim.runs.progress import Progress
from diffsim.runs.references import EnvLike, RunLike, env_section
from diffsim.runs.runfile import RunFile
from diffsim.runs.whole_files import write_whole
from diffsim.values import folder as absolute_folder
from diffsim.values import shown, whole_number
from lazy_registry.installation import install_command
from lazy_registry.registry import unknown
from robotics_envs import ENVIRONMENTS
from robotics_envs.base import Env

_PILLOW = ("PIL", "Pillow")
FORMATS = {"gif": (_PILLOW,), "html": (), "mp4": (_PILLOW, ("imageio_ffmpeg", "imageio-ffmpeg"))}
"""What each format needs to be installed: modules and their packages."""
ACTIONS = ("zero", "random")


@dataclass(frozen=True)
class Source:
    """What is to be seen: a simulator and what acts in it, what to call them, where the files go."""

    env: Env
    act: Callable[[torch.Generator], Act]
    dtype: torch.dtype
    threads: int
    about: dict[str, str]
    folder: Path
    stem: str


def render(
    run: RunLike | EnvLike,
    out: str | os.PathLike[str] | None = None,
    formats: Sequence[str] = ("gif", "html"),
    rollouts: int = 4,
    seed: int = 1000,
    checkpoint: str = "best",
    actions: str | None = None,
    steps: int | None = None,
    size: int = 480,
    speed: float | None = None,
    fps: float | None = None,
    overlay: bool = True,
    *,
    env: EnvLike | None = None,
    trust: bool = False,
    quiet: bool = False,
) -> list[Path]:
    """Simulate episodes and write them as animations.

    Args:
        run: a run's folder, file or RunFile; or a simulator without a policy: its name, ``"my_env.py:MyEnv"``,
            ``"module:Class"``, the path of a file with one simulator, a class or an instance.
        out: folder of the files, made if missing.  By default ``render.*`` in the run's folder, and in the
            current folder a simulator's name.
        formats: of ``"gif"``, ``"html"`` and ``"mp4"``.
        rollouts: how many episodes; GIF and MP4 show the first solid.
        seed: of the starting states (and of random actions).
        checkpoint: of a run, as in :func:`diffsim.evaluate`.
        actions: of a simulator without a policy, ``"zero"`` (the default; the middle of the action box if zero is
            outside) or ``"random"``, uniform in the box at each control interval.
        steps: control intervals; a whole episode if not given.
        size: width of GIF and MP4 in pixels, even.
        speed: simulated seconds per second of playback; by default the simulator's ``playback_speed``.
        fps: frames per second of playback, about; 25 in a GIF and 50 elsewhere if not given, 50 at most.
        overlay: whether GIF and MP4 show the other rollouts too, faded.
        env: of a run, a simulator to use instead of its own.
        trust: run the code stored in a run of somebody else.
        quiet: do not report on standard error how many frames are done.

    Returns:
        The paths written, in the order of ``formats``.

    Raises:
        ConfigError: an impossible value, no such simulator, a missing package, a folder that cannot be written.
        RunFileError: a run that cannot be read.
        TrustError: a run of somebody else names code of its own.
        DiffsimError: the simulator draws what cannot be drawn.
    """
    wanted = (formats,) if isinstance(formats, str) else tuple(formats)
    _check_formats(wanted)
    rollouts = whole_number("rollouts", rollouts, 1, 100)
    seed = whole_number("seed", seed)
    steps = None if steps is None else whole_number("steps", steps, 1, 10**6)
    size = whole_number("size", size, 32, 4096)
    if size % 2:
        raise ConfigError(f"size = {size}: must be even, as videos are; take {size + 1}")
    _check_rates(speed, fps)
    with Progress(quiet=quiet, announce=False) as progress:
        progress.status("loading")
        source = _source(run, checkpoint, actions, env, trust)
        simulator = source.env
        generator = torch.Generator().manual_seed(seed)
        with torch_defaults(source.threads):
            x = simulator.reset(rollouts, generator, source.dtype)
            intervals = simulator.episode_steps if steps is None else steps
            count = partial(progress.status, "simulating: interval", total=intervals)
            recording = record(simulator, source.act(generator), x, intervals, count)
        rate = simulator.playback_speed if speed is None else float(speed)
        about = {**source.about, "start states": f"seed {seed}", "made by": f"diffsim {__version__}"}
        command = _command(
            run,
            rollouts=rollouts,
            seed=seed,
            checkpoint=checkpoint,
            actions=actions,
            steps=steps,
            speed=speed,
        )
        folder = source.folder if out is None else absolute_folder(out)

        def write(form: str, path: Path) -> None:
            if form == "html":
                progress.status(f"{source.stem}.html")
                data = page_data(recording, about, command, fps or MOST_FRAMES, rate)
                write_html(path, data, f"{simulator.name} · diffsim")
                return
            film, most = (write_gif, 25.0) if form == "gif" else (write_mp4, MOST_FRAMES)
            report = partial(progress.status, f"{source.stem}.{form}: frame")
            film(path, recording, size, fps or most, rate, overlay, report)

        return [_whole(folder, f"{source.stem}.{form}", partial(write, form)) for form in wanted]


def _check_formats(formats: tuple[str, ...]) -> None:
    if not formats:
        raise ConfigError(f"formats is empty; known: {', '.join(FORMATS)}")
    for name in formats:
        if name not in FORMATS:
            raise ConfigError(unknown("format", name, FORMATS))
        for module, package in FORMATS[name]:
            if find_spec(module) is None:
                raise ConfigError(
                    f"format {name!r} needs {package}: {install_command('render')} (html needs nothing)"
                )


def _check_rates(speed: float | None, fps: float | None) -> None:
    for name, value, limit in (("speed", speed, 1e6), ("fps", fps, MOST_FRAMES)):
        if value is not None and not (math.isfinite(value) and 1e-3 <= value <= limit):
            raise ConfigError(f"{name} = {value!r}: must be from 0.001 to {limit:g}")


def _source(run: Any, checkpoint: str, actions: str | None, env: EnvLike | None, trust: bool) -> Source:
    if isinstance(run, Env):
        return _bare(run, type(run).__name__, actions)
    if isinstance(run, type):
        config = load_config({"env": env_section(run)})
        return _bare(assemble(config).env, config.env.name, actions)
    if not isinstance(run, RunFile) and os.fspath(run).endswith(".py"):
        run = env_section(run)["name"]
    file = RunFile(run)
    if file.exists():
        return _trained(LoadedRun(file, checkpoint, env=env, trust=trust), checkpoint, actions)
    name = os.fspath(run) if not isinstance(run, RunFile) else str(run.path)
    if name in ENVIRONMENTS or ":" in name:
        return _bare(assemble(load_config({"env": name})).env, name, actions)
    raise RunFileError(f"no run at {shown(file.path)}, and " + unknown("simulator", name, ENVIRONMENTS))


def _trained(loaded: LoadedRun, checkpoint: str, actions: str | None) -> Source:
    file = loaded.file
    if actions is not None:
        raise ConfigError(
            f"actions = {actions!r}: a run acts by its policy; for that, name its simulator instead of "
            f"{shown(file.folder)}"
        )
    env, module = loaded.env, loaded.policy.module
    about = {"run": shown(file.folder), "policy": f"{checkpoint} checkpoint, update {loaded.update}"}

    def act(x: Tensor) -> Tensor:
        return module(env.observe(x))

    dtype, threads = module.mean.dtype, loaded.config.threads or 1
    return Source(env, lambda generator: act, dtype, threads, about, file.folder, "render")


def _bare(env: Env, name: str, actions: str | None) -> Source:
    kind = "zero" if actions is None else actions
    if kind not in ACTIONS:
        raise ConfigError(unknown("kind of actions", kind, ACTIONS))
    box = env.action_box
    still = [0.0 if a <= 0.0 <= b else (a + b) / 2 for a, b in zip(box.low, box.high, strict=True)]

    def act(generator: torch.Generator) -> Act:
        if kind == "random":
            return lambda x: box.sample(len(x), generator, x.dtype)
        return lambda x: x.new_tensor(still).expand(len(x), -1)

    about = {"simulator": name, "policy": f"none, {kind} actions"}
    stem = re.sub(r"[^\w.-]+", "_", env.name)
    return Source(env, act, torch.float64, 1, about, absolute_folder("."), stem)


def _command(run: Any, **options: Any) -> str:
    """The shell's way to the same page; ``""`` for a simulator that only Python holds."""
    if isinstance(run, Env):
        return ""
    if isinstance(run, type):
        return ""
    target = shown(run.folder) if isinstance(run, RunFile) else os.fspath(run)
    defaults = inspect.signature(render).parameters
    given = {key: value for key, value in options.items() if value != defaults[key].default}
    words = [word for key, value in given.items() for word in (f"--{key}", str(value))]
    return shlex.join(["diffsim", "render", target, *words])


def _whole(folder: Path, name: str, write: Callable[[Path], None]) -> Path:
    """``folder/name`` with what ``write`` puts into a file: a reader sees the old one or the whole new one."""
    target = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(target, write)
    except OSError as error:
        raise ConfigError(f"cannot write {shown(target)}: {error.strerror or error}") from None
    return target
