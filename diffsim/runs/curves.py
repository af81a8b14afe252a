"""Learning curves of runs as pictures."""

from __future__ import annotations

import io
import json
import math
import os
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffsim.colours import COLOURS
from diffsim.errors import ConfigError
from diffsim.runs.references import RunLike
from diffsim.runs.runfile import RunFile
from diffsim.runs.whole_files import write_whole
from diffsim.values import folder as absolute
from diffsim.values import shown
from lazy_registry.installation import install_command

SUFFIXES = (".png", ".pdf", ".svg")
CONFIDENCE = 0.95
AXES = (("env_steps", "environment steps"), ("wall_seconds", "wall seconds of training"))
QUANTITIES = (
    ("return", "return (own simulator)", "linear"),
    ("loss", "loss", "linear"),
    ("grad_norm", "gradient norm", "log"),
)
"""Okabe and Ito, Color Universal Design, 2008, without its yellow, which is faint on white."""
_DASHES = ("-", "--", ":", "-.")
_MOST_POINTS = 500

Floats = NDArray[np.float64]


def plot(runs: RunLike | Sequence[RunLike], out: str | os.PathLike[str] | None = None) -> Any:
    """Draw learning curves over environment steps and over seconds of training, and write them to a file.

    Of one run: return, loss and gradient norm.  Of several: returns, one panel a simulator.  Runs that differ in
    nothing but the seed are one curve: the mean over seeds with its 95% interval (Student's t; Wasserman, All of
    Statistics, 2004, §6.3.2), and thin the single seeds.  Seeds that were evaluated at different steps or seconds are
    interpolated linearly; mean and interval end where the first of them ends.  A cross marks the last evaluation of
    a run that did not finish.

    Args:
        runs: one run or several, each by its folder, its file or as a :class:`diffsim.runs.runfile.RunFile`.
        out: the file to write, PNG, PDF or SVG by its suffix; :func:`default_path` if not given.

    Returns:
        The :class:`matplotlib.figure.Figure`, which notebooks display.

    Raises:
        RunFileError: a run that cannot be read.
        ConfigError: nothing to draw, another kind of file, one that cannot be written, or matplotlib is missing.
    """
    files = run_files(runs)
    target = default_path(files) if out is None else absolute(out)
    if target.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"out = {os.fspath(target)!r}: its suffix must be one of {', '.join(SUFFIXES)}")
    curves = [Curve.of(file) for file in files]
    figure = _figure()
    if len(curves) == 1:
        _draw_one(figure, curves[0])
    else:
        _draw_several(figure, curves)
    _write(figure, target)
    return figure


def run_files(runs: RunLike | Sequence[RunLike]) -> list[RunFile]:
    """The files of the runs, each once.

    Raises:
        ConfigError: there is none.
    """
    several = [runs] if isinstance(runs, (str, os.PathLike, RunFile)) else list(runs)
    files = {os.path.realpath(file.path): file for file in map(RunFile, several)}
    if not files:
        raise ConfigError("plot needs at least one run")
    return list(files.values())


def default_path(runs: RunLike | Sequence[RunLike]) -> Path:
    """Where ``plot`` writes if it is not told: ``curves.png`` in the folder of the first run."""
    return run_files(runs)[0].folder / "curves.png"


@dataclass(frozen=True)
class Curve:
    """What one run contributes."""

    file: RunFile
    config: dict[str, Any]
    history: dict[str, NDArray[Any]]
    whole: bool
    """Whether the run came to its end."""

    @classmethod
    def of(cls, file: RunFile) -> Curve:
        state = file.status()["state"]
        return cls(file, file.config().model_dump(), file.history(), state == "finished")

    @property
    def simulator(self) -> str:
        return str(self.config["env"]["name"])

    @property
    def recipe(self) -> dict[str, Any]:
        """Every setting but the simulator's name and the seed, flat: ``{"optimizer.lr": 0.005, ...}``."""
        flat = dict(_flat(self.config))
        return {key: value for key, value in flat.items() if key not in ("env.name", "seed")}

    def points(self, along: str, column: str = "return") -> tuple[Floats, Floats]:
        """``column`` over ``along``, where it was measured, both ``[n]``."""
        known = np.isfinite(self.history[column])
        return (
            self.history[along][known].astype(np.float64),
            self.history[column][known].astype(np.float64),
        )


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else name)
    else:
        yield key, value


@dataclass
class Group:
    """Runs of one simulator that differ in nothing but the seed."""

    recipe: dict[str, Any]
    curves: list[Curve] = field(default_factory=list)


def mean_and_interval(curves: Sequence[tuple[Floats, Floats]]) -> tuple[Floats, Floats, Floats, Floats]:
    """The mean of curves ``(x [n], y [n])`` and its 95% interval: ``x, mean, low, high``, each ``[m]``.

    At every x of any curve within the range that all of them cover, interpolated linearly.  The interval is
    Student's t for the mean of independent values; NaN for a single curve.
    """
    from scipy import stats

    low, high = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    grid = np.unique(np.concatenate([x for x, _ in curves]))
    grid = grid[(low <= grid) & (grid <= high)]
    if len(grid) > _MOST_POINTS:
        grid = grid[np.unique(np.linspace(0, len(grid) - 1, _MOST_POINTS).round().astype(int))]
    values = np.stack([np.interp(grid, x, y) for x, y in curves])
    mean, n = values.mean(0), len(values)
    if n == 1:
        nothing = np.full_like(mean, np.nan)
        return grid, mean, nothing, nothing
    half = stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * values.std(0, ddof=1) / math.sqrt(n)
    return grid, mean, mean - half, mean + half


def _groups(curves: Sequence[Curve]) -> dict[str, list[Group]]:
    """Groups by simulator, in the order in which they were given."""
    groups: dict[str, dict[str, Group]] = {}
    for curve in curves:
        recipe = curve.recipe
        of_simulator = groups.setdefault(curve.simulator, {})
        group = of_simulator.setdefault(json.dumps(recipe, sort_keys=True, default=str), Group(recipe))
        group.curves.append(curve)
    return {simulator: list(found.values()) for simulator, found in groups.items()}


def _labels(groups: Sequence[Group]) -> list[str]:
    """Algorithm and optimizer, and below them every other setting in which the groups of a panel differ."""
    keys = list(dict.fromkeys(key for group in groups for key in group.recipe))
    names = ("algorithm.name", "optimizer.name")
    labels = []
    for group in groups:
        differing = [
            f"{key} {group.recipe[key]}"
            for key in keys
            if key not in names and key in group.recipe and _differs(key, group, groups)
        ]
        label = ", ".join([*(str(group.recipe[name]) for name in names), *differing[:4]])
        labels.append(textwrap.fill(label + (", …" if len(differing) > 4 else ""), 60))
    return labels


def _differs(key: str, group: Group, groups: Sequence[Group]) -> bool:
    """Whether groups with the same class in this section set ``key`` to different values."""
    section = key.partition(".")[0] + ".name"
    alike = [g for g in groups if g.recipe.get(section) == group.recipe.get(section)]
    return len({json.dumps(g.recipe.get(key), default=str) for g in alike}) > 1


def _figure() -> Any:
    """An empty figure that belongs to no window, and that a notebook shows where it is the last value of a cell."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise ConfigError(f"plotting needs matplotlib: {install_command('plot')}") from None
    figure: Any = Figure(layout="constrained")
    FigureCanvasAgg(figure)

    def png() -> bytes:
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=80)
        return image.getvalue()

    # pyplot would do the same, and would open windows where there is a screen.
    figure._repr_png_ = png
    return figure


def _draw_one(figure: Any, curve: Curve) -> None:
    figure.set_size_inches(10, 8)
    axes = figure.subplots(len(QUANTITIES), len(AXES), sharex="col", sharey="row", squeeze=False)
    for row, (column, label, scale) in zip(axes, QUANTITIES, strict=True):
        for axis, (along, _) in zip(row, AXES, strict=True):
            x, y = curve.points(along, column)
            shown_points = y > 0 if scale == "log" else np.isfinite(y)
            if not shown_points.any():
                axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", va="center")
                continue
            axis.plot(x[shown_points], y[shown_points], "o-" if column == "return" else "-", color=COLOURS[0],
                      markersize=3, linewidth=1.2)  # fmt: skip
            axis.set_yscale(scale)
        row[0].set_ylabel(label)
    _label_axes(axes)
    config = curve.config
    what = [_short(curve.simulator), config["algorithm"]["name"], config["optimizer"]["name"]]
    figure.suptitle(", ".join([*what, f"seed {config['seed']}"]))


def _draw_several(figure: Any, curves: Sequence[Curve]) -> None:
    panels = _groups(curves)
    figure.set_size_inches(10, max(4.2, 2.9 * len(panels) + 1))
    axes = figure.subplots(len(panels), len(AXES), squeeze=False, sharey="row")
    looks: dict[str, tuple[str, Any]] = {}
    members: dict[str, list[Group]] = {}
    for row, (simulator, groups) in zip(axes, panels.items(), strict=True):
        for group, label in zip(groups, _labels(groups), strict=True):
            members.setdefault(label, []).append(group)
            number = len(looks)
            look = looks.setdefault(
                label, (COLOURS[number % len(COLOURS)], _DASHES[number // len(COLOURS) % len(_DASHES)])
            )
            for axis, (along, _) in zip(row, AXES, strict=True):
                _draw_group(axis, group, along, *look)
        row[0].set_ylabel("return")
        _limit(row[0], groups)
        for axis in row:
            axis.set_title(_short(simulator), fontsize="medium", loc="left")
    _label_axes(axes)
    _legend(figure, looks, members)


def _draw_group(axis: Any, group: Group, along: str, colour: str, dashes: str) -> None:
    drawn = [points for curve in group.curves if len((points := curve.points(along))[0])]
    if not drawn:
        return
    several = len(drawn) > 1
    for curve in group.curves:
        x, y = curve.points(along)
        if several:
            axis.plot(x, y, dashes, color=colour, linewidth=0.6, alpha=0.35)
        if len(x) and not curve.whole:
            axis.plot(x[-1], y[-1], "x", color=colour, markersize=5)
    if max(x[0] for x, _ in drawn) > min(x[-1] for x, _ in drawn):
        return  # no stretch that all of them cover
    x, mean, low, high = mean_and_interval(drawn)
    if several:
        axis.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
    axis.plot(x, mean, dashes, color=colour, linewidth=1.8, marker="o" if len(x) == 1 else None, markersize=3)


def _limit(axis: Any, groups: Sequence[Group]) -> None:
    """Show the curves with a margin; the interval of two or three seeds can be many times wider than that."""
    values = [curve.points("update")[1] for group in groups for curve in group.curves]
    together = np.concatenate(values)
    if len(together) and (spread := np.ptp(together)) > 0:
        axis.set_ylim(together.min() - 0.2 * spread, together.max() + 0.2 * spread)


def _label_axes(axes: Any) -> None:
    from matplotlib.ticker import EngFormatter

    for row in axes:
        for axis in row:
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
            axis.xaxis.set_major_formatter(EngFormatter(sep=""))
            axis.tick_params(labelbottom=True)
    for axis, (_, label) in zip(axes[-1], AXES, strict=True):
        axis.set_xlabel(label)


def _legend(figure: Any, looks: dict[str, tuple[str, Any]], members: dict[str, list[Group]]) -> None:
    """Below the panels, so that it covers no curve; with what the lines mean."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [], [], color=colour, linestyle=dashes, linewidth=1.8, label=f"{label} ({_count(members[label])})"
        )
        for label, (colour, dashes) in looks.items()
    ]
    groups = [group for found in members.values() for group in found]
    meaning = []
    if any(len(group.curves) > 1 for group in groups):
        meaning.append("thick: mean over seeds, with its 95% interval (Student's t); thin: single seeds")
    if not all(curve.whole for group in groups for curve in group.curves):
        meaning.append("cross: a run that did not finish")
    widest = max(len(line) for label in looks for line in label.splitlines())
    figure.legend(
        handles=handles, loc="outside lower center", ncols=max(1, min(len(handles), 110 // (widest + 18))),
        title="; ".join(meaning) or None, frameon=False, fontsize="small", title_fontsize="small",
    )  # fmt: skip


def _count(groups: Sequence[Group]) -> str:
    """``"1 seed"``, ``"5 seeds"``, ``"3 to 5 seeds"``; ``runs`` where a seed was used twice."""
    numbers = sorted({len(group.curves) for group in groups})
    seeds = all(
        len({curve.config["seed"] for curve in group.curves}) == len(group.curves) for group in groups
    )
    amount = str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
    curves = [curve for group in groups for curve in group.curves]
    empty = sum(not np.isfinite(curve.history["return"]).any() for curve in curves)
    missing = f", {empty} without an evaluation" if empty else ""
    return f"{amount} {'seed' if seeds else 'run'}{'' if numbers == [1] else 's'}{missing}"


def _short(simulator: str) -> str:
    """``my_env.py:MyEnv`` of ``/a/b/my_env.py:MyEnv``."""
    file, colon, name = simulator.rpartition(":")
    return f"{file.rpartition('/')[2]}{colon}{name}"


def _write(figure: Any, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, lambda path: figure.savefig(path, dpi=130))
    except OSError as error:
        raise ConfigError(f"cannot write {shown(target)}: {error.strerror or error}") from None
