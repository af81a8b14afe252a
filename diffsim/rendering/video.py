"""Animations made of pixels: GIF by Pillow, MP4 by ffmpeg."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffsim.rendering.recording import Recording, Report
from robotics_envs.drawing import BACKGROUND, COLOURS, Shape, Text, rasterise

Pixels = NDArray[np.uint8]
FADED = 0.25
"""Opacity of the rollouts behind the first one."""
HOLD = 1.0
"""Seconds for which a GIF shows its last frame before it starts again."""
_FLAT, _BLENDED, _UNKNOWN = 32, 32, 255


def pictures(recording: Recording, steps: list[int], size: int, overlay: bool) -> Iterator[Pixels]:
    """The pixels ``[height, size, 3]`` after each of ``steps``: the first rollout, the others faded behind it.

    The camera follows the first.
    """
    env = recording.env
    (left, bottom), (right, top) = env.view.low, env.view.high
    height = max(2, 2 * round(size * (top - bottom) / (right - left) / 2))  # even, as videos must be
    scenery = env.scenery()
    empty, empty_view = rasterise(scenery, env.view, size, height), env.view
    others = range(1, len(recording.ends)) if overlay else ()
    for step in steps:
        view = recording.view(0, step)
        front = rasterise([*scenery, *recording.shapes(0, step), *_note(recording, step)], view, size, height)
        if not others:
            yield front
            continue
        if view != empty_view:
            empty, empty_view = rasterise(scenery, view, size, height), view
        moving = [shape for rollout in others for shape in recording.shapes(rollout, step)]
        behind = rasterise([*scenery, *moving], view, size, height)
        faded = (empty + FADED * (behind.astype(float) - empty)).round().astype(np.uint8)
        yield np.where((front != empty).any(axis=-1, keepdims=True), front, faded)


def _nothing(done: int, total: int) -> None:
    """Reports to nobody."""


def _counted(frames: Iterator[Pixels], total: int, report: Report) -> Iterator[Pixels]:
    report(0, total)
    for done, frame in enumerate(frames, 1):
        yield frame
        report(done, total)


def _note(recording: Recording, step: int) -> list[Shape]:
    """Why the first rollout stands still, written at the lower edge of the picture."""
    end, view = recording.ends[0], recording.env.view
    if not end.reason or step < end.steps:
        return []
    height = 0.04 * (view.high[0] - view.low[0])
    corner = (view.low[0] + height, view.low[1] + height)
    return [Text(corner, end.note(recording.env.dt), height, "force" if end.reason == "diverged" else "ink")]


def write_gif(
    path: Path,
    recording: Recording,
    size: int,
    fps: float,
    speed: float,
    overlay: bool,
    report: Report = _nothing,
) -> None:
    """A GIF that loops, with one palette of 64 colours. Frames last whole centiseconds, in step with the clock."""
    steps = recording.frames(fps, speed)
    clock = [round(100 * step * recording.env.dt / speed) for step in steps]
    durations = [10 * (after - before) for before, after in pairwise(clock)] + [round(1000 * HOLD)]
    spread = np.unique(np.linspace(0, len(steps) - 1, 8).round().astype(int))
    palette = Palette(list(pictures(recording, [steps[i] for i in spread], size, overlay)))
    frames = map(palette.image, _counted(pictures(recording, steps, size, overlay), len(steps), report))
    next(frames).save(
        path, format="GIF", save_all=True, append_images=frames, duration=durations, loop=0, optimize=False
    )


class Palette:
    """64 colours: those of the palette of shapes, those that fill areas in ``samples``, and blends at edges.

    Every pixel becomes the nearest of them.  Pillow's own search takes a neighbour now and then, which would
    give a white ground a tint.
    """

    def __init__(self, samples: list[Pixels]) -> None:
        from PIL import Image

        named = [int(colour.lstrip("#"), 16) for colour in (BACKGROUND, *COLOURS.values())]
        common, counts = np.unique(
            np.concatenate([_packed(sample).ravel() for sample in samples]), return_counts=True
        )
        common = common[np.argsort(-counts)]
        colours = _apart(np.concatenate((list(dict.fromkeys(named)), common[~np.isin(common, named)])))
        self.colours, rest = colours[:_FLAT], colours[_FLAT:]
        if len(rest):
            # Each blend once, however common it is: a thin arrow counts as much as a broad wall.
            row = Image.fromarray(rest[None]).quantize(_BLENDED, Image.Quantize.MEDIANCUT)
            blends = np.array(row.getpalette("RGB"), np.uint8).reshape(-1, 3)[:_BLENDED]
            self.colours = np.concatenate((self.colours, blends))
        self._nearest = np.full(1 << 24, _UNKNOWN, np.uint8)

    def image(self, pixels: Pixels) -> Any:
        """The picture as an image of Pillow with this palette."""
        from PIL import Image

        packed = _packed(pixels)
        new = np.unique(packed[self._nearest[packed] == _UNKNOWN])
        for some in np.array_split(new, len(new) // 4096 + 1):
            differences = _apart(some)[:, None].astype(np.int32) - self.colours
            self._nearest[some] = (differences**2).sum(-1).argmin(-1)
        image = Image.fromarray(self._nearest[packed])
        image.putpalette(self.colours.tobytes())
        return image


def _packed(pixels: Pixels) -> NDArray[np.int64]:
    """``[..., 3]`` as one number a pixel."""
    return pixels.astype(np.int64) @ (65536, 256, 1)


def _apart(packed: NDArray[np.int64]) -> Pixels:
    return np.stack((packed >> 16, packed >> 8 & 255, packed & 255), axis=-1).astype(np.uint8)


def write_mp4(
    path: Path,
    recording: Recording,
    size: int,
    fps: float,
    speed: float,
    overlay: bool,
    report: Report = _nothing,
) -> None:
    """An H.264 video that every browser and slide program plays."""
    import imageio_ffmpeg

    steps = recording.frames(fps, speed)
    frames = _counted(pictures(recording, steps, size, overlay), len(steps), report)
    first = next(frames)
    writer = imageio_ffmpeg.write_frames(
        os.fspath(path),
        (first.shape[1], first.shape[0]),
        fps=speed / ((steps[1] if len(steps) > 1 else 1) * recording.env.dt),
        codec="libx264",
        quality=None,
        macro_block_size=2,
        output_params=["-crf", "18", "-movflags", "+faststart"],
    )
    try:
        writer.send(None)
        for pixels in chain((first,), frames):
            writer.send(np.ascontiguousarray(pixels))
    finally:
        writer.close()
