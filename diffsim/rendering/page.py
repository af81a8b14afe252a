"""One HTML file that plays rollouts in any browser, with nothing to load from anywhere.

The page is ``viewer.html`` with two holes: its title, and the data as JSON.  Numbers are rounded to what can be
seen, and a shape's look is stored once: ``styles`` are the looks (kind, colour, width, …, and the number of points),
``structures`` are lists of styles, and a picture is ``[structure, numbers…]``.  The numbers are right and up of the
points of all its shapes, in ``unit``s: of a shape's first point as they are, of the others as differences to the
point before, and all of them as differences to the picture before if that has the same structure.  So a scene whose
shapes only move costs a digit or two a coordinate.

Scenes with solids are kept in space, and the page projects them, so that the reader can turn the camera.  There a
style says how many ``axes`` its points have, 2 or 3; of a solid, the numbers are its position in units and its
quaternion in parts of ``TURN``, and its style names a mesh: ``vertices`` in units and ``faces`` as indices of them.
The page's painting is that of ``robotics_envs/solids.py``.
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
from robotics_envs import solids
from robotics_envs.drawing import BACKGROUND, COLOURS, GROUND_RADIUS, Floats, Shape, as_data, flatten

DIGITS = 5
"""Significant digits of states, actions and costs."""
_FINE = 2000
"""Steps that a point is rounded to across the view: less than half a pixel."""
_CLOSER = 10
"""How many times as fine a scene in space is, which the reader can look at from nearby."""
TURN = 5000
"""Parts of a quaternion's length."""


class Scenes:
    """Pictures packed as the module's docstring says; ``styles`` and ``structures`` grow as they come."""

    def __init__(self, recording: Recording) -> None:
        env = recording.env
        self.view = env.view
        self.in_space = any(isinstance(s, solids.Solid) for s in [*env.scenery(), *recording.shapes(0, 0)])
        fine = _FINE * (_CLOSER if self.in_space else 1)
        self.unit = 10.0 ** math.floor(math.log10((self.view.high[0] - self.view.low[0]) / fine))
        self._styles: dict[str, int] = {}
        self._structures: dict[tuple[int, ...], int] = {}
        self._meshes: dict[tuple[str, tuple[float, ...]], int] = {}

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
        for shape in as_data(shapes) if self.in_space else flatten(shapes, self.view):
            if shape["kind"] == "solid":
                look, placed = self._solid(shape)
            else:
                points = np.rint(np.asarray(shape.pop("points")) / self.unit).astype(np.int64)
                axes = {"axes": points.shape[1]} if self.in_space else {}
                look = {**shape, **axes, "count": len(points)}
                placed = np.diff(points, axis=0, prepend=0).flatten()
            look = {key: _short(value) if isinstance(value, float) else value for key, value in look.items()}
            structure.append(self._styles.setdefault(json.dumps(look), len(self._styles)))
            numbers.append(placed)
        number = self._structures.setdefault(tuple(structure), len(self._structures))
        return number, np.concatenate(numbers)

    def _solid(self, shape: dict[str, Any]) -> tuple[dict[str, Any], NDArray[np.int64]]:
        """The look of a solid, and its place: position and quaternion."""
        look = {"kind": "solid", "colour": shape["colour"], "form": shape["form"], "behind": shape["behind"]}
        if shape["form"] != "plane":
            look["mesh"] = self._meshes.setdefault((shape["form"], shape["size"]), len(self._meshes))
        turned = np.array(solids.quaternion(shape["rotation"])) * TURN
        return look, np.rint(np.concatenate((shape["position"] / self.unit, turned))).astype(np.int64)

    @property
    def camera(self) -> dict[str, Any] | None:
        """What the page projects with; None for a scene in a plane."""
        if not self.in_space:
            return None
        meshes = []
        for form, size in self._meshes:
            shell = solids.surface(form, size)  # type: ignore[arg-type]
            vertices = np.rint(shell.vertices / self.unit).astype(np.int64)
            meshes.append({"vertices": vertices.flatten().tolist(), "faces": shell.faces})
        return {
            "azimuth": self.view.azimuth,
            "elevation": self.view.elevation,
            "turn": TURN,
            "meshes": meshes,
            "light": solids.LIGHT,
            "shades": [solids.DARKEST, solids.LIGHTEST, solids.SHADES],
            "grid": solids.GRID,
            "shadow": solids.SHADOW,
            "ground": GROUND_RADIUS,
        }

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
    rollouts: list[dict[str, Any]] = []
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
        if scenes.in_space:
            focus = np.array([recording.view(rollout, step).focus for step in shown])
            rollouts[-1]["focus"] = np.rint(focus / scenes.unit).astype(np.int64).tolist()
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
        "camera": scenes.camera,
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
