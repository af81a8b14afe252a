"""Animations: pixels where the states say, and a page that works in a real browser."""

import base64
import dataclasses
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import diffsim
from diffsim.cli import main
from diffsim.errors import ConfigError, DiffsimError, RunFileError
from diffsim.rendering.page import Scenes
from diffsim.rendering.recording import End, Recording, record
from diffsim.rendering.video import Palette
from diffsim.runs.evaluation import LoadedRun, evaluate_in_simulator
from lazy_registry.installation import install_command
from robotics_envs.base import Box, Env
from robotics_envs.drawing import BACKGROUND, COLOURS, Circle, Line, Solid, Text, View, flatten, rasterise
from robotics_envs.simulators.pendulum import Pendulum
from solvers.methods.runge_kutta import RK4

STEPS = 30


class Terminal(io.StringIO):
    """A text stream that says it is a terminal."""

    def isatty(self):
        return True


class Point(Env):
    """A point that is pushed along a line; it draws nothing of its own."""

    name = "point"
    state_names = observation_names = ("position", "velocity")
    action_box = Box((1.0,), (3.0,))
    start_box = Box((0.0, 0.0), (0.5, 0.0))
    state_box = Box.symmetric(2.0, 2.0)
    dt = 0.1
    episode_steps = 20
    solver = RK4()

    def dynamics(self, t, x, u, p):
        return torch.cat((x[:, 1:], u), dim=-1)

    def cost(self, x, u, p):
        return x[:, 0] ** 2

    def done(self, x):
        return x[..., 0] > 1.0


class Exploding(Point):
    """</script><b>Its</b> position runs away in finite time."""

    name = "</script> & co"
    start_box = Box((1.0, 0.0), (2.0, 0.0))

    def dynamics(self, t, x, u, p):
        return torch.stack((100.0 * x[:, 0] ** 3, x[:, 1]), dim=-1)

    def done(self, x):
        return x[..., 0] < 0.0


class Rod(Point):
    """Thirty temperatures, and a picture whose shapes come and go."""

    name = "rod"
    state_names = observation_names = tuple(f"temperature_{i}" for i in range(30))
    start_box = state_box = Box.symmetric(*[1.0] * 30)

    def dynamics(self, t, x, u, p):
        return -x + u

    def cost(self, x, u, p):
        return x.square().sum(-1)

    def done(self, x):
        return torch.zeros(x.shape[:-1], dtype=torch.bool)

    def draw(self, x, u):
        warm = [Circle((-1 + i / 15, value), 0.03, "hot") for i, value in enumerate(x) if value > 0.5]
        return [Line(list(zip(np.linspace(-1, 1, 30), x, strict=True)), "cold", 0.02), *warm,
                Text((-1, -1.1), f"{len(warm)} are warm", 0.1)]  # fmt: skip


class Slow(Pendulum):
    """The pendulum at 24 control intervals a second."""

    name = "slow"
    dt = 1 / 24


class Fast(Pendulum):
    """The pendulum at 250 control intervals a second."""

    name = "fast"
    dt = 0.004
    episode_steps = 250  # a second


class Rover(Point):
    """A ball that rolls along a floor past a post, with a mark above it."""

    name = "rover <b>"
    view = View((-1.0, -0.7), (1.0, 0.7), azimuth=-90.0, elevation=20.0, focus=(0.0, 0.0, 0.2))

    def done(self, x):
        return torch.zeros(x.shape[:-1], dtype=torch.bool)

    def draw(self, x, u):
        return [
            Solid("sphere", (0.2,), (x[0], 0.0, 0.2), colour="limb"),
            Circle((x[0], 0.0, 0.6), 0.05, "target"),
            Text((-0.9, 0.5), "rolling", 0.1),
        ]

    def scenery(self):
        return [
            Solid("plane", colour="faint"),
            Solid("box", (0.1, 0.1, 0.3), (0.5, 0.5, 0.3), colour="ground"),
        ]

    def view_at(self, x):
        return dataclasses.replace(self.view, focus=(float(x[0]), 0.0, 0.2))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return diffsim.train(
        "pendulum", out=tmp_path_factory.mktemp("render") / "run", updates=3, quiet=True,
        algorithm={"batch": 8}, evaluation={"every": 0, "episodes": 2},
    )  # fmt: skip


def invoke(*args):
    return CliRunner().invoke(main, ["render", *map(str, args)])


def data_of(path):
    """The JSON inside a page."""
    (text,) = re.findall(
        r'<script type="application/json" id="data">(.*?)</script>', path.read_text("utf-8"), re.S
    )
    return json.loads(text)


def unforced(env, seed, rollouts, steps):
    """What ``render`` should record of ``env`` under its default actions."""
    x = env.reset(rollouts, torch.Generator().manual_seed(seed), torch.float64)
    middle = sum(env.action_box.bounds(x)) / 2
    return record(env, lambda x: middle.expand(len(x), -1), x, steps)


def rgb(name):
    return tuple(bytes.fromhex({**COLOURS, "background": BACKGROUND}[name].lstrip("#")))


def pixel(image, right, up, view=Pendulum.view):
    """The colour of a picture, ``[height, width, 3]``, at a point of the world."""
    height, width, _ = image.shape
    scale = min(width / (view.high[0] - view.low[0]), height / (view.high[1] - view.low[1]))
    column, row = (
        width / 2 + scale * (right - (view.low[0] + view.high[0]) / 2),
        height / 2 - scale * (up - (view.low[1] + view.high[1]) / 2),
    )
    return tuple(int(v) for v in image[int(row), int(column)])


def rod_is_at(image, angle, tolerance=0):
    """Whether the pendulum's rod is where the angle says, and not on the other side."""
    right, up = -0.7 * math.sin(angle), 0.7 * math.cos(angle)
    on = np.abs(np.subtract(pixel(image, right, up), rgb("limb"))).max()
    off = np.abs(np.subtract(pixel(image, -right, -up), rgb("background"))).max()
    return on <= tolerance and off <= tolerance


def gif_every(path, milliseconds):
    """What a GIF shows at each tick, without the hold at its end, and its duration in ms."""
    pictures, durations = gif_frames(path)
    ends = np.cumsum(durations)
    ticks = np.arange(0, ends[-1] - 1000 + 1, milliseconds)
    return pictures[np.searchsorted(ends, ticks, side="right")], ends[-1]


def gif_frames(path):
    """Frames ``[T, height, width, 3]`` and their durations in ms. Pillow makes one of equal frames in a row."""
    with Image.open(path) as image:
        pictures, durations = [], []
        for frame in range(image.n_frames):
            image.seek(frame)
            pictures.append(np.asarray(image.convert("RGB")))
            durations.append(image.info["duration"])
    return np.stack(pictures), durations


# ---- recording ----------------------------------------------------------------------------------------------


def test_a_run_is_recorded_as_evaluation_measures_it(run, tmp_path):
    (path,) = diffsim.render(run.folder, tmp_path, "html", rollouts=3, seed=5)
    data = data_of(path)
    returns = evaluate_in_simulator(LoadedRun(run.path), 3, seed=5).returns
    assert [-r["cost"][-1] for r in data["rollouts"]] == pytest.approx(returns, rel=1e-4)
    assert data["about"]["policy"] == "best checkpoint, update 3"
    assert data["command"] == f"diffsim render {run.folder} --rollouts 3 --seed 5"
    for rollout in data["rollouts"]:
        angle, rate = np.array(rollout["states"])
        observation = np.stack((np.cos(angle), np.sin(angle), rate), axis=-1)
        assert np.allclose(rollout["actions"], diffsim.load_policy(run.path)(observation).T, atol=1e-3)
        assert len(angle) == 201


def test_a_rollout_that_is_done_keeps_its_last_frame(tmp_path):
    recording = unforced(Point(), 0, 3, 20)
    for rollout, end in enumerate(recording.ends):
        assert end.reason == "done"
        position = recording.states[:, rollout, 0]
        assert (position[: end.steps] <= 1.0).all()
        assert (position[end.steps :] == position[end.steps]).all()
        assert position[end.steps] > 1.0
        assert recording.costs[-1, rollout] == pytest.approx((position[: end.steps] ** 2).sum())
    assert len(recording.states) == recording.steps + 1 < 21
    assert recording.ends[0].note(0.1) == f"ended at {recording.ends[0].steps * 0.1:.4g} s"
    (path,) = diffsim.render(Point(), tmp_path, ["html"], rollouts=3, seed=0)
    for rollout, end in zip(data_of(path)["rollouts"], recording.ends, strict=True):
        assert (rollout["steps"], rollout["note"]) == (end.steps, end.note(0.1))
        assert len(rollout["scenes"]) == end.steps + 1


def test_a_rollout_that_is_not_finite_stops_with_a_note(tmp_path):
    gif, page = diffsim.render(Exploding(), tmp_path, size=240)
    assert gif.name == "_script_co.gif"
    data = data_of(page)
    assert data["name"] == Exploding.name
    for rollout in data["rollouts"]:
        assert re.fullmatch(r"diverged at [\d.]+ s: not finite", rollout["note"])
        assert np.isfinite(rollout["states"]).all()
    assert "<b>" not in page.read_text().split("<body>")[1].split("</main>")[1]
    pictures, _ = gif_frames(gif)
    red = [
        (np.abs(np.subtract(picture, rgb("force"))).max(-1) < 8).any()
        for picture in (pictures[0], pictures[-1])
    ]
    assert red == [False, True]  # the note


def test_frames_keep_step_with_the_clock():
    def frames(dt, steps, fps, speed=1.0):
        env = type("Any", (Pendulum,), {"dt": dt})()
        return Recording(env, np.zeros(0), np.zeros(0), np.zeros(0), (End(steps),)).frames(fps, speed)

    assert frames(0.05, 200, 25) == list(range(201))
    assert frames(0.02, 10, 50) == list(range(11))
    assert frames(0.02, 10, 25) == [0, 2, 4, 6, 8, 10]
    assert frames(0.004, 12, 50) == [0, 5, 10, 12]  # the last state is always shown
    assert frames(0.013, 6, 50) == [0, 2, 4, 6]  # 77 a second would be too many
    assert frames(0.05, 6, 25, speed=2.0) == [0, 2, 4, 6]
    assert frames(0.05, 1, 25) == [0, 1]
    assert frames(0.05, 0, 25) == [0]


# ---- pixels -------------------------------------------------------------------------------------------------


def test_every_frame_of_a_gif_shows_its_state(tmp_path):
    (path,) = diffsim.render("pendulum", tmp_path, ["gif"], rollouts=1, steps=STEPS, size=120, seed=3)
    assert path == tmp_path / "pendulum.gif"
    pictures, duration = gif_every(path, 50)
    assert pictures.shape == (STEPS + 1, 120, 120, 3)
    assert duration == 50 * STEPS + 1000
    states = unforced(Pendulum(), 3, 1, STEPS).states
    for picture, (angle, _) in zip(pictures, states[:, 0], strict=True):
        assert rod_is_at(picture, angle)
    with Image.open(path) as image:
        assert image.info["loop"] == 0


def test_the_palette_keeps_named_colours_and_finds_the_nearest_of_others():
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (40, 40, 3)).astype(np.uint8)
    noise[:20] = 250 + noise[:20] // 64  # nearly white
    noise[0, : len(COLOURS) + 1] = [rgb(name) for name in (*COLOURS, "background")]
    palette = Palette([noise])
    shown = np.asarray(palette.image(noise).convert("RGB")).astype(int)
    assert (shown[0, : len(COLOURS) + 1] == noise[0, : len(COLOURS) + 1]).all()
    distances = ((noise[:, :, None].astype(int) - palette.colours.astype(int)) ** 2).sum(-1)
    assert (((shown - noise) ** 2).sum(-1) == distances.min(-1)).all()


def test_other_rollouts_are_faded_behind_the_first(tmp_path):
    (path,) = diffsim.render("pendulum", tmp_path, ["gif"], rollouts=2, steps=3, size=120, seed=3)
    (first, second) = unforced(Pendulum(), 3, 2, 0).states[0, :, 0]
    picture = gif_frames(path)[0][0]
    assert rod_is_at(picture, first)
    faded = pixel(picture, -0.7 * math.sin(second), 0.7 * math.cos(second))
    assert faded == pytest.approx(0.75 * 255 + 0.25 * np.array(rgb("limb")), abs=8)
    diffsim.render("pendulum", tmp_path, ["gif"], rollouts=2, steps=3, size=120, seed=3, overlay=False)
    alone = gif_frames(path)[0][0]
    assert pixel(alone, -0.7 * math.sin(second), 0.7 * math.cos(second)) == rgb("background")


@pytest.mark.parametrize(("env", "fps"), [(Slow(), 24), (Fast(), 25)])
def test_a_gif_lasts_as_long_as_the_episode(env, fps, tmp_path):
    """Whatever the control interval is; centiseconds are rounded on the clock, so errors do not add up."""
    (path,) = diffsim.render(
        env, tmp_path, ["gif"], rollouts=1, steps=round(1 / env.dt), size=240, actions="random"
    )
    _, durations = gif_frames(path)
    assert sum(durations) == 1000 + 1000
    assert len(durations) == fps + 1
    assert set(durations[:-1]) <= {40, 50}


def test_an_mp4_decodes_to_every_frame(tmp_path):
    (path,) = diffsim.render("pendulum", tmp_path, ["mp4"], rollouts=1, steps=STEPS, size=130, seed=3)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run(command, capture_output=True, check=True)
    assert re.search(rb"Video: h264.* yuv420p.* 130x130.* 20 fps", done.stderr)
    pictures = np.frombuffer(done.stdout, np.uint8).reshape(-1, 130, 130, 3)
    assert len(pictures) == STEPS + 1
    states = unforced(Pendulum(), 3, 1, STEPS).states
    for picture, (angle, _) in zip(pictures, states[:, 0], strict=True):
        assert rod_is_at(picture, angle, tolerance=24)


def test_a_whole_pendulum_episode_is_small(tmp_path):
    gif, page = diffsim.render("pendulum", tmp_path, actions="random", overlay=False)
    assert gif.stat().st_size < 300_000
    assert page.stat().st_size < 300_000


def test_a_simulator_of_ones_own_without_draw(tmp_path, monkeypatch):
    """By file and class, drawn as a bar for each state."""
    (tmp_path / "my_env.py").write_text(
        "from robotics_envs.simulators.pendulum import Pendulum\nfrom robotics_envs.base import Env\n"
        "class MyEnv(Pendulum):\n    name = 'mine'\n    draw = Env.draw\n    view = Env.view\n"
    )
    monkeypatch.chdir(tmp_path)
    result = invoke(
        "my_env.py:MyEnv",
        "--steps",
        10,
        "--size",
        120,
        "--rollouts",
        1,
        "--format",
        "gif",
        "--format",
        "html",
    )
    assert re.fullmatch(r"wrote mine.gif \(\d+ kB\)\nwrote mine.html \(\d+ kB\)\n", result.output)
    pictures, _ = gif_every(tmp_path / "mine.gif", 50)
    states = unforced(Pendulum(), 1000, 1, 10).states[:, 0] / (math.pi, 8.0)
    for picture, row in zip(pictures, states, strict=True):
        for up, value in zip((0.55, -0.55), row, strict=True):
            bar = np.clip(value, -1.15, 1.15)
            assert pixel(picture, bar / 2, up, Env.view) == rgb("body") or abs(bar) < 0.1
    assert (
        data_of(tmp_path / "mine.html")["command"] == "diffsim render my_env.py:MyEnv --rollouts 1 --steps 10"
    )


def test_a_film_in_space_follows_the_first_rollout(tmp_path):
    (path,) = diffsim.render(Rover(), tmp_path, ["gif"], rollouts=1, steps=12, size=240)
    states = unforced(Rover(), 1000, 1, 12).states[:, 0, 0]
    assert states[-1] > 1.0
    shown = gif_every(path, 100)[0]
    for picture, place in zip(shown, states, strict=True):
        view = Rover().view_at([place])
        assert np.abs(np.subtract(pixel(picture, 0.0, 0.05, view), rgb("limb"))).max() < 60  # shaded
        post = view.project([(0.5, 0.5, 0.3)])[0]
        if abs(post[0]) < 0.9:
            grey = pixel(picture, *post, view)
            assert max(grey) - min(grey) < 30


def test_other_rollouts_are_faded_where_the_camera_is(tmp_path):
    (path,) = diffsim.render(Rover(), tmp_path, ["gif"], rollouts=2, steps=2, size=240, seed=4)
    states = unforced(Rover(), 4, 2, 2).states
    away = states[-1, 1, 0] - states[-1, 0, 0]
    assert abs(away) > 0.1
    faded = pixel(gif_frames(path)[0][-1], away + math.copysign(0.1, away), 0.05, Rover.view)
    assert max(faded) > 215 and max(faded) - min(faded) > 5  # noqa: PT018, the limb's colour, mixed with the floor's


# ---- the page's data ----------------------------------------------------------------------------------------


def unpacked(pictures, data):
    """Pictures as ``flatten`` gave them, from what the page stores."""
    before, result = None, []
    for structure, *numbers in pictures:
        if before is not None and before[0] == structure:
            numbers = [a + b for a, b in zip(numbers, before[1], strict=True)]
        before, left, shapes = (structure, numbers), list(numbers), []
        for number in data["structures"][structure]:
            look = dict(data["styles"][number])
            count = look.pop("count")
            points = np.cumsum(np.reshape(left[: 2 * count], (count, 2)), axis=0) * data["unit"]
            left = left[2 * count :]
            shapes.append({**look, "points": points})
        result.append(shapes)
    return result


@pytest.mark.parametrize("env", [Pendulum(), Rod(), Point()], ids=lambda env: env.name)
def test_the_page_holds_what_was_recorded(env, tmp_path):
    (path,) = diffsim.render(env, tmp_path, ["html"], rollouts=2, steps=15, seed=1)
    data, recording = data_of(path), unforced(env, 1, 2, 15)
    assert [s["name"] for s in data["states"]] == list(env.state_names)
    assert data["colours"] == COLOURS
    assert data["steps"] == list(range(recording.steps + 1))
    for number, rollout in enumerate(data["rollouts"]):
        steps = rollout["steps"] + 1
        assert np.allclose(np.transpose(rollout["states"]), recording.states[:steps, number], rtol=1e-4)
        assert np.allclose(np.transpose(rollout["actions"]), recording.actions[:steps, number], rtol=1e-4)
        assert np.allclose(rollout["cost"], recording.costs[:steps, number], rtol=1e-4)
        for step, shapes in enumerate(unpacked(rollout["scenes"], data)):
            for shown, drawn in zip(shapes, flatten(recording.shapes(number, step), env.view), strict=True):
                assert np.allclose(shown.pop("points"), drawn.pop("points"), atol=0.51 * data["unit"])
                assert shown.keys() == drawn.keys()
                for key, value in drawn.items():
                    assert shown[key] == (
                        pytest.approx(value, rel=1e-4) if key in ("width", "radius", "size") else value
                    )
    (scenery,) = unpacked(data["scenery"], data)
    assert len(scenery) == len(env.scenery())


def test_looks_are_stored_once():
    recording = unforced(Pendulum(), 0, 1, 15)
    scenes = Scenes(recording)
    scenes.pack(recording.shapes(0, step) for step in range(16))
    assert (len(scenes.styles), len(scenes.structures)) == (3, 1)


def test_the_page_of_a_scene_in_space_holds_poses_and_meshes(tmp_path):
    (path,) = diffsim.render(Rover(), tmp_path, ["html"], rollouts=2, steps=15, seed=1)
    data, recording = data_of(path), unforced(Rover(), 1, 2, 15)
    assert data["camera"]["azimuth"] == -90.0
    for number, rollout in enumerate(data["rollouts"]):
        np.testing.assert_allclose(
            np.array(rollout["focus"]) * data["unit"],
            [[x, 0.0, 0.2] for x in recording.states[:, number, 0]],
            atol=1e-4,
        )
        before = None
        for (structure, *numbers), (x, _) in zip(rollout["scenes"], recording.states[:, number], strict=True):
            before = np.array(numbers) + (0 if before is None else before)
            kinds = [data["styles"][k]["kind"] for k in data["structures"][structure]]
            assert kinds == ["solid", "circle", "text"]
            np.testing.assert_allclose(before[:3] * data["unit"], [x, 0, 0.2], atol=1e-4)
            np.testing.assert_allclose(before[3:7] / data["camera"]["turn"], [1, 0, 0, 0], atol=1e-3)
            np.testing.assert_allclose(before[7:10] * data["unit"], [x, 0, 0.6], atol=1e-4)
    ball = next(s for s in data["styles"] if s.get("form") == "sphere")
    corners = np.reshape(data["camera"]["meshes"][ball["mesh"]]["vertices"], (-1, 3)) * data["unit"]
    np.testing.assert_allclose(np.linalg.norm(corners, axis=1), 0.2, atol=2e-4)


def test_a_scene_in_a_plane_has_no_camera(swinging):
    assert data_of(swinging[0])["camera"] is None


# ---- mistakes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["nowhere"], "no run at nowhere/run.h5, and unknown simulator 'nowhere'; known: a"),
        (["pendulm"], "unknown simulator 'pendulm'; did you mean 'pendulum'?"),
        (["pendulum", "--format", "gfi"], "unknown format 'gfi'; did you mean 'gif'? known: gif, html, mp4"),
        (["pendulum", "--actions", "zeros"], "unknown kind of actions 'zeros'; did you mean 'zero'?"),
        (["pendulum", "--rollouts", "0"], "rollouts = 0: must be a whole number from 1 to 100"),
        (["pendulum", "--steps", "0"], "steps = 0: must be"),
        (["pendulum", "--size", "99"], "size = 99: must be even, as videos are; take 100"),
        (["pendulum", "--speed", "0"], "speed = 0.0: must be from 0.001"),
        (["pendulum", "--out", "/dev/null/x"], "cannot write /dev/null/x/pendulum.gif: Not a directory"),
        (["pendulum", "--sped", "1"], "unknown option '--sped'; did you mean '--speed'?"),
    ],
)  # fmt: skip
def test_mistakes_are_answered_with_one_line_and_no_file(args, complaint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke(*args)
    assert result.exit_code in (1, 2)
    assert complaint in result.output
    assert "Traceback" not in result.output
    assert not list(tmp_path.iterdir())


def test_a_film_says_how_many_frames_are_done(tmp_path, monkeypatch):
    """On a terminal at once; elsewhere only one that takes long."""
    for stream in (Terminal(), io.StringIO()):
        monkeypatch.setattr(sys, "stderr", stream)
        diffsim.render(Pendulum, tmp_path, ["gif", "html"], rollouts=1, steps=30)
        written = stream.getvalue()
        for phase in (
            "loading",
            "simulating: interval 30 of 30",
            "pendulum.gif: frame 31 of 31",
            "pendulum.html",
        ):
            assert (phase in written) == stream.isatty(), phase
    monkeypatch.setattr(sys, "stderr", quiet := Terminal())
    diffsim.render(Pendulum(), tmp_path, "gif", rollouts=1, steps=3, quiet=True)
    assert quiet.getvalue() == ""


def test_numbers_and_folders_of_several_kinds(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (path,) = diffsim.render(
        "pendulum", "~/films", "html", rollouts=np.int64(2), steps=np.int64(2), seed=np.uint8(1)
    )
    assert path == tmp_path / "films" / "pendulum.html"
    (path,) = diffsim.render(Pendulum, formats="html", rollouts=1, steps=2)
    assert path == tmp_path / "pendulum.html"
    assert data_of(path)["command"] == ""


def test_a_disk_that_takes_nothing_is_named(tmp_path, monkeypatch):
    """Also where removing the unfinished file fails in its turn."""

    def read_only(self, *_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "touch", read_only)
    monkeypatch.setattr(Path, "unlink", read_only)
    with pytest.raises(ConfigError, match=r"cannot write .*pendulum.html: Read-only file system"):
        diffsim.render("pendulum", tmp_path, "html", rollouts=1, steps=2)


def test_a_recording_names_itself():
    assert repr(unforced(Point(), 0, 3, 5)) == "Recording(point, 3 rollouts, 5 control intervals)"


def test_mistakes_in_python(run, tmp_path):
    with pytest.raises(ConfigError, match="formats is empty"):
        diffsim.render(run, formats=())
    with pytest.raises(ConfigError, match=r"fps = 60: must be from 0.001 to 50"):
        diffsim.render(run, fps=60)
    with pytest.raises(ConfigError, match="actions = 'random': a run acts by its policy"):
        diffsim.render(run, actions="random")
    with pytest.raises(RunFileError, match="unknown checkpoint 'bets'"):
        diffsim.render(run, checkpoint="bets")
    bad = type("Bad", (Point,), {"draw": lambda self, x, u: [Circle((x[0], 0), 0.1, "pink")]})()
    for form in ("gif", "html"):
        with pytest.raises(
            DiffsimError, match=r"point cannot be drawn in the state \[.*unknown colour 'pink'"
        ):
            diffsim.render(bad, tmp_path, form)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("form", "module", "package"), [("gif", "PIL", "Pillow"), ("mp4", "imageio_ffmpeg", "imageio-ffmpeg")]
)
def test_a_missing_package_is_named_and_html_needs_none(form, module, package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        ConfigError, match=f"format '{form}' needs {package}: {re.escape(install_command('render'))}"
    ):
        diffsim.render("pendulum", tmp_path, ["html", form])
    assert not list(tmp_path.iterdir())
    diffsim.render("pendulum", tmp_path, ["html"], rollouts=1, steps=2)


def test_files_are_replaced_whole(run, monkeypatch):
    """What fails half way leaves the old file and nothing else."""
    before = set(run.folder.iterdir())
    (path,) = diffsim.render(run, formats=["html"], steps=3)
    assert path == run.folder / "render.html"
    old = path.read_text()

    def full(self, *_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ConfigError, match=r"cannot write .*render.html: No space left on device"):
        diffsim.render(run, formats=["html"], steps=4)
    assert path.read_text() == old
    assert set(run.folder.iterdir()) == before | {path}


# ---- a real browser -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(
            f"no browser on the PATH: none of {', '.join(names)}"
        )
    from playwright.sync_api import sync_playwright

    quiet = ("background-networking", "component-update", "sync", "gpu", "quic")
    arguments = ["--no-sandbox", "--no-first-run", *(f"--disable-{what}" for what in quiet)]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture
def view(browser):
    """Opens a page from its file; at the end nothing may have been complained about or asked for."""
    contexts, complaints, requests, opened = [], [], [], set()

    def open_page(path, **options):
        context = browser.new_context(offline=True, viewport={"width": 1100, "height": 800}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        opened.add(path.as_uri())
        page.goto(path.as_uri())
        page.wait_for_selector("#picture[data-frame]")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
    assert {url for url in requests if not url.startswith("data:")} <= opened


@pytest.fixture(scope="module")
def swinging(tmp_path_factory):
    """A page with three rollouts of the pendulum, and their states."""
    (page,) = diffsim.render(
        "pendulum", tmp_path_factory.mktemp("page"), "html", rollouts=3, steps=80, actions="random"
    )
    return page, np.array([rollout["states"] for rollout in data_of(page)["rollouts"]])


STILL = {"reduced_motion": "reduce"}


def canvas(page):
    """The pixels of the picture, ``[height, width, 4]``."""
    url = page.evaluate("document.getElementById('picture').toDataURL()")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGBA"))


def frame(page):
    return int(page.get_attribute("#picture", "data-frame"))


def wait(page, condition):
    """Until a JavaScript expression is true. The page forbids Playwright's own way, which is eval."""
    for _ in range(200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(30)
    raise AssertionError(f"never: {condition}")


def shows(page, angle):
    image = canvas(page)
    where = image[..., :3].copy()
    where[image[..., 3] == 0] = rgb("background")
    return rod_is_at(where, angle, tolerance=2)


def test_the_page_plays_and_pauses(view, swinging):
    page = view(swinging[0])
    wait(page, "frameAt(state.time) > 2")
    page.click("#play")
    assert page.get_attribute("#play", "aria-label") == "Play"
    stopped = frame(page)
    assert stopped > 2
    page.wait_for_timeout(200)
    assert frame(page) == stopped
    page.keyboard.press("Escape")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Space")
    assert page.get_attribute("#play", "aria-label") == "Pause"
    wait(page, f"frameAt(state.time) > {stopped + 2}")
    page.keyboard.press("Space")
    assert page.get_attribute("#play", "aria-label") == "Play"


def test_who_wants_no_motion_gets_none_unasked(view, swinging):
    page = view(swinging[0], **STILL)
    page.wait_for_timeout(200)
    assert frame(page) == 0
    page.click("#play")
    wait(page, "frameAt(state.time) > 2")


def test_without_loop_it_stops_at_the_end_and_starts_again(view, swinging):
    page = view(swinging[0], **STILL)
    page.uncheck("#loop")
    page.evaluate("go(3.9); play(true)")
    wait(page, "!state.playing")
    assert frame(page) == 80
    assert page.inner_text("#clock") == "4.00 / 4.00 s"
    page.click("#play")
    wait(page, "state.playing && frameAt(state.time) < 40")


def test_speed_changes_the_rate(view, swinging):
    page = view(swinging[0], **STILL)
    rates = {}
    for rate in ("0.25", "4"):
        page.select_option("#rate", rate)
        rates[rate] = page.evaluate(
            "async () => { go(0); play(true); await new Promise(requestAnimationFrame);"
            "const [time, now] = [state.time, performance.now()];"
            "await new Promise((go) => setTimeout(go, 500)); await new Promise(requestAnimationFrame);"
            "const rate = (state.time - time) / (performance.now() - now) * 1000; play(false); return rate; }"
        )
    assert rates["0.25"] == pytest.approx(0.25, rel=0.3)
    assert rates["4"] == pytest.approx(4, rel=0.3)


def test_scrubbing_shows_what_the_data_say(view, swinging):
    path, states = swinging
    page = view(path, **STILL)
    slider = page.locator("#scrub")
    for number in (2, 3):
        page.uncheck(f"[aria-label='Show rollout {number}']")
    for k in (0, 17, 42, 80):
        slider.evaluate("(e, k) => { e.value = k; e.dispatchEvent(new Event('input')); }", k)
        assert frame(page) == k
        assert shows(page, states[0, 0, k])
        assert page.inner_text("#clock") == f"{k * 0.05:.2f} / 4.00 s"
        assert slider.get_attribute("aria-valuetext") == f"{k * 0.05:.2f} of 4.00 s"
    slider.focus()
    for key, expected in (
        ("Home", 0),
        ("ArrowRight", 1),
        ("Shift+ArrowRight", 11),
        ("ArrowLeft", 10),
        ("End", 80),
    ):
        page.keyboard.press(key)
        assert frame(page) == expected
        assert shows(page, states[0, 0, expected])


def test_rollouts_can_be_hidden_and_brought_to_the_front(view, swinging):
    path, states = swinging
    page = view(path, **STILL)
    page.evaluate("jump(5)")
    everything = canvas(page)
    page.uncheck("[aria-label='Show rollout 2']")
    assert (canvas(page) != everything).any()
    page.check("[aria-label='Show rollout 2']")
    assert (canvas(page) == everything).all()
    page.check("[aria-label='Rollout 3 in front']")
    for number in (1, 2):
        page.uncheck(f"[aria-label='Show rollout {number}']")
    assert shows(page, states[2, 0, 5])
    cost = data_of(path)["rollouts"][2]["cost"][5]
    row = page.locator("#rollouts tr").nth(2)
    assert float(row.locator("td").nth(2).inner_text()) == pytest.approx(cost, rel=1e-3)
    assert float(row.locator("td").nth(3).inner_text().replace("−", "-")) == pytest.approx(-cost, rel=1e-3)
    assert page.inner_text("[data-channel=angle] output") == f"{states[2, 0, 5]:#.4g}".replace("-", "−")


def test_a_trace_for_every_state_and_action_follows_the_time(view, swinging):
    page = view(swinging[0], **STILL)
    names = page.locator("figure.trace").evaluate_all("f => f.map((e) => e.dataset.channel)")
    assert names == ["return so far", "angle", "rate", "action"]
    for name in names:
        trace = page.locator(f"[data-channel='{name}']")
        assert trace.locator("path.line").count() == 3
        assert trace.locator("path.line.front").count() == 1
        page.evaluate("jump(0)")
        assert float(trace.locator(".cursor").get_attribute("x1")) == 0
        page.evaluate("jump(20)")
        assert float(trace.locator(".cursor").get_attribute("x1")) == pytest.approx(250)
    field = page.locator("[data-channel=rate] .field")
    field.scroll_into_view_if_needed()
    box = field.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert frame(page) == pytest.approx(40, abs=1)


def test_of_many_states_a_few_are_shown_and_others_can_be_chosen(view, tmp_path):
    (path,) = diffsim.render(Rod(), tmp_path, ["html"], rollouts=1, steps=10)
    page = view(path, **STILL)
    assert page.locator("figure.trace").count() == 8  # return, six of thirty temperatures, action
    page.click("summary")
    assert page.locator("fieldset").count() == 3
    page.locator("label", has_text=re.compile("^temperature_29$")).locator("input").check()
    assert page.locator("[data-channel=temperature_29]").count() == 1
    page.click("[aria-label='None of temperature']")
    assert page.locator("figure.trace").count() == 2
    page.evaluate("jump(10)")


def test_the_dark_scheme_turns_greys_and_keeps_colours(view, swinging):
    path, states = swinging
    brightness = {}
    for scheme in ("light", "dark"):
        page = view(path, color_scheme=scheme, **STILL)
        image = canvas(page)
        joint, limb = (
            pixel(image[..., :3], -r * math.sin(states[0, 0, 0]), r * math.cos(states[0, 0, 0]))
            for r in (0, 0.7)
        )
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        brightness[scheme] = (np.mean(joint), np.mean([int(v) for v in re.findall(r"\d+", ground)]))
        assert limb == pytest.approx(rgb("limb"), abs=12)
    assert brightness["light"][0] < 80 < 170 < brightness["dark"][0]
    assert brightness["dark"][1] < 60 < 200 < brightness["light"][1]


def test_a_page_with_markup_in_its_names_and_an_end_before_its_time(view, tmp_path):
    (path,) = diffsim.render(Exploding(), tmp_path, ["html"], rollouts=2)
    page = view(path, **STILL)
    assert page.title() == f"{Exploding.name} · diffsim"
    assert page.inner_text("h1") == Exploding.name
    assert page.inner_text("#summary").startswith("</script><b>Its</b>")
    page.evaluate("jump(last)")
    assert "not finite" in page.inner_text("#status")
    assert page.locator("#rollouts .note").count() == 2


@pytest.fixture(scope="module")
def rolling(tmp_path_factory):
    """A page of a scene in space, of one rollout, and its places."""
    (page,) = diffsim.render(Rover(), tmp_path_factory.mktemp("space"), "html", rollouts=1, steps=15)
    return page, unforced(Rover(), 1000, 1, 15).states[:, 0, 0]


def over_white(image):
    """The colours of a picture on a white ground."""
    alpha = image[..., 3:] / 255
    return (image[..., :3] * alpha + 255 * (1 - alpha)).round().astype(np.uint8)


def test_the_page_shows_space_as_films_do(view, rolling):
    """Two programs paint the same scene: they differ at edges only."""
    path, places = rolling
    page = view(path, **STILL)
    for k in (0, 8, 15):
        page.evaluate(f"jump({k})")
        shown = over_white(canvas(page)).astype(int)
        env, state = Rover(), np.array([places[k], 0.0])
        shapes = [
            shape for shape in [*env.scenery(), *env.draw(state, np.zeros(1))] if not isinstance(shape, Text)
        ]
        height, width, _ = shown.shape
        film = rasterise(shapes, env.view_at(state), width, height).astype(int)
        different = np.abs(shown - film).max(-1) > 24
        assert different.mean() < 0.02, k


def test_the_camera_is_turned_by_mouse_keys_buttons_and_fingers_and_comes_back(view, rolling):
    page = view(rolling[0], **STILL)
    picture = page.locator("#picture")
    first = canvas(page)

    def camera():
        return page.evaluate("[camera.azimuth, camera.elevation, zoom]")

    def reset():
        page.click("#reset")
        assert camera() == [-90, 20, 1]
        assert (canvas(page) == first).all()

    box = picture.bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] - 100, middle[1] + 50)
    page.mouse.up()
    assert camera() == pytest.approx([-50, 40, 1])
    assert (canvas(page) != first).any()
    page.mouse.move(*middle)  # without the button
    assert camera() == pytest.approx([-50, 40, 1])
    page.mouse.wheel(0, -400)
    wait(page, "zoom > 1.5")
    reset()
    picture.focus()
    for key, expected in (
        ("ArrowLeft", [-95, 20]), ("ArrowRight", [-90, 20]), ("ArrowUp", [-90, 25]), ("ArrowDown", [-90, 20]),
    ):  # fmt: skip
        page.keyboard.press(key)
        assert camera()[:2] == expected
        assert frame(page) == 0  # the keys of the picture do not move the time
    page.keyboard.press("+")
    assert camera()[2] > 1
    page.keyboard.press("0")
    reset()
    for name, expected in (
        ("Camera to the left", [-105, 20, 1]), ("Camera up", [-90, 30, 1]), ("Closer", [-90, 20, 1.25]),
    ):  # fmt: skip
        page.click(f"[aria-label='{name}']")
        assert camera() == expected
        reset()
    pinch = "(id, type, x) => canvas.dispatchEvent(new PointerEvent(type, { pointerId: id, clientX: x, clientY: 100 }))"
    page.evaluate("canvas.setPointerCapture = () => {}")
    for number, kind, x in (
        (7, "down", 100),
        (8, "down", 200),
        (8, "move", 300),
        (7, "up", 100),
        (8, "up", 300),
    ):
        page.evaluate(f"({pinch})({number}, 'pointer{kind}', {x})")
    assert camera() == pytest.approx([-90, 20, 2])


def test_the_picture_in_focus_has_a_ring_and_tells_what_its_keys_do(view, rolling):
    page = view(rolling[0], **STILL)
    picture = page.locator("#picture")
    assert picture.get_attribute("tabindex") == "0"
    assert "arrow keys turn the camera" in picture.get_attribute("aria-label")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "picture"
    assert page.evaluate("getComputedStyle(canvas).outlineStyle") == "solid"
    page.keyboard.press("Space")
    assert page.get_attribute("#play", "aria-label") == "Pause"


def test_the_camera_follows_until_it_is_told_not_to(view, rolling):
    path, places = rolling
    page = view(path, **STILL)
    page.evaluate("jump(15)")
    assert page.evaluate("camera.focus") == pytest.approx([places[15], 0, 0.2], abs=1e-3)
    page.uncheck("#follow")
    page.evaluate("jump(0)")
    assert page.evaluate("camera.focus") == pytest.approx([places[15], 0, 0.2], abs=1e-3)
    page.check("#follow")
    assert page.evaluate("camera.focus") == pytest.approx([places[0], 0, 0.2], abs=1e-3)


def test_a_page_in_space_fits_a_telephone_and_the_dark(view, rolling):
    page = view(rolling[0], color_scheme="dark", **STILL)
    page.set_viewport_size({"width": 400, "height": 800})
    page.wait_for_timeout(100)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert page.inner_text("h1") == "rover <b>"
    image = canvas(page)
    floor = pixel(image[..., :3], -0.6, -0.2, Rover.view)
    assert max(floor) < 110
    page.emulate_media(color_scheme="light")
    wait(page, "!dark.matches")
    page.evaluate("jump(0)")
    assert min(pixel(canvas(page)[..., :3], -0.6, -0.2, Rover.view)) > 190


def test_a_picture_in_a_plane_keeps_its_place(view, swinging):
    page = view(swinging[0], **STILL)
    assert page.locator("#camera").is_hidden()
    assert page.get_attribute("#picture", "tabindex") is None
    before = canvas(page)
    box = page.locator("#picture").bounding_box()
    page.mouse.move(box["x"] + 50, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 150, box["y"] + 90)
    page.mouse.up()
    assert (canvas(page) == before).all()
