"""Figures of a comparison for papers: PDF and SVG, by matplotlib."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from diffsim.colours import COLOURS
from diffsim.comparison import figures, statistics, survival
from diffsim.comparison.records import Comparison
from diffsim.comparison.scores import Rules, TaskData, pooled
from diffsim.comparison.tables import contender_views
from diffsim.comparison.verdicts import verdicts
from diffsim.comparison.words import AXIS_WORDS
from diffsim.errors import ConfigError
from diffsim.runs.whole_files import write_whole
from diffsim.values import shown

FORMATS = ("svg", "pdf")
_STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "diffsim",  # the same names in every file that is made again
    "pdf.fonttype": 42,
    "axes.unicode_minus": False,
    "text.parse_math": False,  # names of users may hold a dollar sign
}
_DASHES = ("-", "--", ":", "-.")
# Curves of a contender in a panel: as an image they are drawn and opened sooner, and the file is smaller.
_RASTER_FROM = 200


def available() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def write(comparison: Comparison, axes: Sequence[str], folder: Path) -> list[Path]:
    """Learning curves, shares that reached the threshold, profiles and probabilities, one file each an axis.

    Raises:
        ConfigError: a file cannot be written.
    """
    import matplotlib

    written = []
    draw: dict[str, Callable[[Any, Comparison, Rules], bool]] = {
        "curves": _curves,
        "times": _times,
        "profiles": _profiles,
        "improvement": _improvement,
    }
    with matplotlib.rc_context(_STYLE):
        from matplotlib.figure import Figure

        for axis in axes:
            for name, fill in draw.items():
                figure = Figure(layout="constrained")
                if fill(figure, comparison, Rules(axis=axis)):
                    for form in FORMATS:
                        written.append(_save(figure, folder / f"{name}_{axis}.{form}"))
                        figure.set_layout_engine("none")  # found once, kept for the other formats
    return written


def _panels(figure: Any, count: int) -> list[Any]:
    columns = min(3, count)
    rows = math.ceil(count / columns)
    figure.set_size_inches(2.6 * columns + 0.4, 2.1 * rows + 0.5)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for unused in grid[count:]:
        unused.set_axis_off()
    return list(grid[:count])


def _look(number: int) -> dict[str, Any]:
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": _DASHES[number // len(COLOURS) % len(_DASHES)],
    }


def _legend(figure: Any, comparison: Comparison) -> None:
    from matplotlib.lines import Line2D

    views = contender_views(comparison)
    handles = [Line2D([], [], label=c.name, **_look(c.number)) for c in views]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(views)), frameon=False)


def _curves(figure: Any, comparison: Comparison, rules: Rules) -> bool:
    for panel, task in zip(_panels(figure, len(comparison.tasks)), comparison.tasks, strict=True):
        data = TaskData(comparison, task, rules)
        end, lines = data.end(), []
        for c in contender_views(comparison):
            known = [r for r in comparison.of(task, c.name) if r.curve.knows(rules.axis)]
            _seeds(panel, [np.column_stack((data.along(r), r.curve.score)) for r in known], _look(c.number))
            lines += [record.curve.score for record in known]
            x, y = data.middle(c.name, np.linspace(0, end if math.isfinite(end) else 1.0, 101))
            panel.plot(x, y, linewidth=1.8, **_look(c.number))
        threshold = comparison.tasks[task].threshold
        marks = [threshold.value] if threshold and threshold.measure == "score" else []
        for mark in marks:
            panel.axhline(mark, color="0.4", linewidth=0.7, linestyle="--")
        panel.set_ylim(*figures.score_range(lines, marks))
        if math.isfinite(end):
            panel.set_xlim(0, end)
        panel.set_title(task, fontsize="medium")
    figure.supxlabel(AXIS_WORDS[rules.axis])
    figure.supylabel("score")
    _legend(figure, comparison)
    return True


def _seeds(panel: Any, curves: Sequence[np.ndarray], look: dict[str, Any]) -> None:
    """The curves of single runs, as one artist: a line of its own takes matplotlib half a millisecond."""
    from matplotlib.collections import LineCollection

    seeds = LineCollection(
        curves,
        linewidths=0.5,
        alpha=0.4,
        colors=look["color"],
        linestyles=look["linestyle"],
        rasterized=len(curves) >= _RASTER_FROM,
    )
    seeds.set_in_layout(False)
    panel.add_collection(seeds, autolim=False)


def _times(figure: Any, comparison: Comparison, rules: Rules) -> bool:
    tasks = [task for task, about in comparison.tasks.items() if about.threshold is not None]
    if not tasks:
        return False
    for panel, task in zip(_panels(figure, len(tasks)), tasks, strict=True):
        data = TaskData(comparison, task, rules)
        for c in contender_views(comparison):
            times = data.times(c.name)
            if times is not None:
                t, share = survival.shares_reached(times)
                x, y = np.concatenate([[0.0], t, [data.end()]]), np.concatenate([[0.0], share, share[-1:]])
                panel.step(x, y, where="post", linewidth=1.6, **_look(c.number))
        panel.set_ylim(0, 1.03)
        panel.set_title(task, fontsize="medium")
    figure.supxlabel(AXIS_WORDS[rules.axis])
    figure.supylabel("share of runs at the threshold")
    _legend(figure, comparison)
    return True


def _profiles(figure: Any, comparison: Comparison, rules: Rules) -> bool:
    data = [TaskData(comparison, task, rules) for task in comparison.tasks]
    views = contender_views(comparison)
    scores = {c.number: found for c in views if (found := pooled(data, c.name))}
    if not scores:
        return False
    (panel,) = _panels(figure, 1)
    figure.set_size_inches(4.2, 3.4)
    taus = np.linspace(-0.1, max(1.0, *(float(v.max()) for found in scores.values() for v in found)), 201)
    for number, found in scores.items():
        panel.plot(taus, statistics.performance_profile(found, taus), linewidth=1.8, **_look(number))
    panel.set_xlabel("normalised score τ")
    panel.set_ylabel("share of runs above τ")
    _legend(figure, comparison)
    return True


def _improvement(figure: Any, comparison: Comparison, rules: Rules) -> bool:
    found = verdicts(comparison, rules)
    if found is None or not found.overall:
        return False
    (panel,) = _panels(figure, 1)
    chosen = [c for c in contender_views(comparison) if c.name in found.overall]
    figure.set_size_inches(4.6, 0.42 * len(chosen) + 1.0)
    for place, c in enumerate(reversed(chosen)):
        value = found.overall[c.name].probability
        panel.plot(
            [value.low, value.high], [place, place], linewidth=3, alpha=0.6, color=_look(c.number)["color"]
        )
        panel.plot(value.value, place, "o", color=_look(c.number)["color"])
    panel.set_yticks(range(len(chosen)), [c.name for c in reversed(chosen)])
    panel.axvline(0.5, color="0.4", linewidth=0.7, linestyle="--")
    panel.set_xlim(0, 1.02)
    panel.set_xlabel(f"probability that {found.reference} scores higher")
    return True


def _save(figure: Any, path: Path) -> Path:
    image = io.BytesIO()
    # Without dates, so that the same records give the same files.
    figure.savefig(
        image, format=path.suffix[1:], metadata={"Date" if path.suffix == ".svg" else "CreationDate": None}
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, image.getvalue())
    except OSError as error:
        raise ConfigError(f"cannot write {shown(path)}: {error.strerror or error}") from None
    return path
