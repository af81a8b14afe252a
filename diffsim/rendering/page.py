"""One HTML file that plays rollouts in any browser, with nothing to load from anywhere.

The page is ``viewer.html`` with two holes: its title, and the data as JSON.  Numbers are rounded to what can be
seen, and a shape's look is stored once: ``styles`` are the looks (kind, colour, width, …, and the number of points),
``structures`` are lists of styles, and a picture is ``[structure, numbers…]``.  The numbers are right and up of the
points of all its shapes, in ``unit``s: of a shape's first point as they are, of the others as differences to the
point before, and all of them as differences to the picture before if that has the same structure.  So a scene whose
shapes only move costs a digit or two a coordinate.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffsim.rendering.recording import Recording
from robotics_envs.drawing import BACKGROUND, COLOURS, Floats, Shape, flatten

DIGITS = 5
"""Significant digits of states, actions and costs."""
_FINE = 2000
"""Steps that a point is rounded to across the view: less than half a pixel."""


class Scenes:
    """Pictures packed as the module's docstring says; ``styles`` and ``structures`` grow as they come."""

    def __init__(self, recording: Recording) -> None:
        self.view = recording.env.view
        width = self.view.high[0] - self.view.low[0]
        self.unit = 10.0 ** math.floor(math.log10(width / _FINE))
        self._styles: dict[str, int] = {}
        self._structures: dict[tuple[int, ...], int] = {}

    def pack(self, pictures: Iterable[Iterable[Shape]]) -> list[list[int]]:
        """Pictures that follow each other, each as ``[structure, numbers…]``."""
        packed: list[list[int]] = []
        before, numbers_before = -1, np.zeros(0, np.int64)
        for shapes in pictures:
            structure, numbers = self._apart(shapes)
            change = numbers - numbers_before if structure == before else numbers
            packed.append([structure, *change.tolist()])
            before, numbers_before = structure, numbers
        return packed

    def _apart(self, shapes: Iterable[Shape]) -> tuple[int, NDArray[np.int64]]:
        structure, numbers = [], [np.zeros(0, np.int64)]
        for shape in flatten(shapes, self.view):
            points = np.rint(np.asarray(shape.pop("points")) / self.unit).astype(np.int64)
            look = {key: _short(value) if isinstance(value, float) else value for key, value in shape.items()}
            style = json.dumps({**look, "count": len(points)})
            structure.append(self._styles.setdefault(style, len(self._styles)))
            numbers.append(np.diff(points, axis=0, prepend=0).flatten())
        number = self._structures.setdefault(tuple(structure), len(self._structures))
        return number, np.concatenate(numbers)

    @property
    def styles(self) -> list[dict[str, Any]]:
        return [json.loads(style) for style in self._styles]

    @property
    def structures(self) -> list[tuple[int, ...]]:
        return list(self._structures)


def page_data(
    recording: Recording, about: Mapping[str, str], command: str, fps: float, speed: float
) -> dict[str, Any]:
    """Everything that the page shows, as plain data.

    Args:
        about: facts to list beside the picture.
        command: what makes this page, shown as code; or ``""``.
        fps: frames per second of playback to store, at most 50.
        speed: simulated seconds per second of playback.
    """
    env, steps, scenes = recording.env, recording.frames(fps, speed), Scenes(recording)
    scenery = scenes.pack([env.scenery()])
    rollouts = []
    for rollout, end in enumerate(recording.ends):
        shown = [step for step in steps if step < end.steps] + [end.steps]  # then it stands still
        rollouts.append(
            {
                "steps": end.steps,
                "note": end.note(env.dt),
                "states": _columns(recording.states[shown, rollout]),
                "actions": _columns(recording.actions[shown, rollout]),
                "cost": _columns(recording.costs[shown, rollout, None])[0],
                "scenes": scenes.pack(recording.shapes(rollout, step) for step in shown),
            }
        )
    box, several = env.action_box, len(env.action_box) > 1
    return {
        "name": env.name,
        "summary": (type(env).__doc__ or "").strip().split("\n")[0],
        "about": dict(about),
        "command": command,
        "parameters": [[c.name, _short(c.value), c.unit] for c in env.constants.values()],
        "view": {"low": env.view.low, "high": env.view.high},
        "background": BACKGROUND,
        "colours": COLOURS,
        "dt": env.dt,
        "speed": speed,
        "steps": steps,
        "states": [
            {"name": name, "unit": "rad" if name in env.angle_names else ""} for name in env.state_names
        ],
        "actions": [
            {"name": f"action_{i + 1}" if several else "action", "low": low, "high": high}
            for i, (low, high) in enumerate(zip(box.low, box.high, strict=True))
        ],
        "scenery": scenery,
        "rollouts": rollouts,
        "unit": scenes.unit,
        "styles": scenes.styles,
        "structures": scenes.structures,
    }


def write_html(path: Path, data: Mapping[str, Any], title: str) -> None:
    """The page with its data."""
    template = resources.files("diffsim.rendering").joinpath("viewer.html").read_text(encoding="utf-8")
    head, tail = template.split("{{data}}")
    # Nothing inside the data can end the script element.
    plain = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False).replace(
        "<", "\\u003c"
    )
    path.write_text(head.replace("{{title}}", html.escape(title)) + plain + tail, encoding="utf-8")


def _columns(rows: Floats) -> list[list[float]]:
    """``[T, k]`` as ``k`` columns, rounded."""
    return [[_short(value) for value in column] for column in rows.T.tolist()]


def _short(value: float) -> float:
    """``DIGITS`` significant digits, and an int where it is one, which is shorter."""
    rounded = float(f"{value:.{DIGITS}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded
