"""Learning curves of runs as a PNG."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffsim.errors import ConfigError
from diffsim.runfile import RunFile

PANELS = (
    ("return", "return (own simulator)", "linear"),
    ("loss", "loss", "linear"),
    ("grad_norm", "gradient norm", "log"),
)
AXES = (("env_steps", "environment steps"), ("wall_seconds", "wall seconds of training"))


def plot(
    runs: Sequence[str | os.PathLike[str]] | str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
) -> Path:
    """Draw return, loss and gradient norm over environment steps and over wall time.

    Args:
        runs: one run or several, each drawn as a line of its own.
        out: the PNG to write; ``curves.png`` in the (first) run's folder if not given.

    Returns:
        The path written.

    Raises:
        RunFileError: a run that cannot be read.
        ConfigError: nothing to draw, or matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import EngFormatter
    except ModuleNotFoundError:
        raise ConfigError("plotting needs matplotlib: pip install 'diffsim[plot]'") from None
    files = [RunFile(r) for r in ([runs] if isinstance(runs, (str, os.PathLike)) else runs)]
    if not files:
        raise ConfigError("plot needs at least one run")
    histories = [file.history() for file in files]
    target = files[0].folder / "curves.png" if out is None else Path(out)
    if target.suffix.lower() != ".png":
        raise ConfigError(f"plot writes PNG files; {target} does not end in .png")

    figure = Figure(figsize=(11, 9), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(PANELS), len(AXES), sharex="col")
    for row, (column, label, scale) in enumerate(PANELS):
        for col, (along, along_label) in enumerate(AXES):
            axis = axes[row][col]
            for file, history in zip(files, histories, strict=True):
                known = np.isfinite(history[column])
                marker = "o" if column == "return" else None
                axis.plot(
                    history[along][known],
                    history[column][known],
                    marker=marker,
                    markersize=3,
                    linewidth=1.2,
                    label=str(file.folder),
                )
            axis.set_yscale(scale)
            axis.grid(alpha=0.3)
            if col == 0:
                axis.set_ylabel(label)
            if row == len(PANELS) - 1:
                axis.set_xlabel(along_label)
                axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    config = files[0].config()
    title = f"{config.env.name}, {config.algorithm.name}, {config.optimizer.name}, seed {config.seed}"
    figure.suptitle(title if len(files) == 1 else f"{len(files)} runs")
    if len(files) > 1:
        axes[0][0].legend(fontsize="small")
    try:
        figure.savefig(target, dpi=130)
    except OSError as error:
        raise ConfigError(f"cannot write {target}: {error.strerror}") from None
    return target
