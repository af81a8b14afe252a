"""Learning curves: what is drawn is what the files hold."""

import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from run_files import make_run
from scipy import stats

import diffsim
from diffsim.cli import main
from diffsim.errors import ConfigError, RunFileError
from diffsim.runs.curves import default_path, mean_and_interval
from diffsim.runs.runfile import RunFile

RNG = np.random.default_rng(0)


def seeds(folder, count, **settings):
    return [
        make_run(folder / f"{len(list(folder.iterdir()))}", RNG.normal(size=6), seed=seed, **settings)
        for seed in range(count)
    ]


def labels(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def titles(figure):
    return [axis.get_title(loc="left") for axis in figure.axes]


def thick(axis):
    return [line for line in axis.lines if line.get_linewidth() == 1.8]


def thin(axis):
    return [line for line in axis.lines if line.get_linewidth() == 0.6]


def xy(line):
    return np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)


def test_the_mean_over_seeds_and_its_t_interval(tmp_path):
    files = seeds(tmp_path, 4, every=3)
    figure = diffsim.plot(files, tmp_path / "curves.png")
    values = np.stack([file.history()["return"][2::3] for file in files])
    for axis, xs in zip(figure.axes, (300 * np.arange(1, 7), 0.3 * np.arange(1, 7)), strict=True):
        (mean,) = thick(axis)
        assert np.allclose(xy(mean)[0], xs)
        assert np.allclose(xy(mean)[1], values.mean(0))
        for line, one in zip(thin(axis), values, strict=True):
            assert np.allclose(xy(line), (xs, one))
        (band,) = axis.collections
        low, high = stats.t.interval(0.95, 3, values.mean(0), stats.sem(values))
        corners = band.get_paths()[0].vertices
        for x, a, b in zip(xs, low, high, strict=True):
            at = corners[np.isclose(corners[:, 0], x), 1]
            assert [at.min(), at.max()] == pytest.approx([a, b])
    assert labels(figure) == ["value_gradient, adam (4 seeds)"]
    assert "mean over seeds, with its 95% interval (Student's t)" in figure.legends[0].get_title().get_text()
    assert titles(figure) == ["pendulum", "pendulum"]


def test_seeds_measured_at_other_times_are_interpolated_over_the_common_range():
    x, mean, low, high = mean_and_interval(
        [(np.array([0.0, 2.0, 4.0]), np.array([0.0, 2.0, 4.0])), (np.array([1.0, 5.0]), np.array([3.0, 7.0]))]
    )
    assert x.tolist() == [1.0, 2.0, 4.0]
    assert mean.tolist() == [2.0, 3.0, 5.0]
    assert np.allclose(high - mean, stats.t.ppf(0.975, 1) * 1.0)  # half a difference of 2: sem 1
    assert np.allclose(mean - low, high - mean)
    x, mean, low, high = mean_and_interval([(np.arange(3.0), np.arange(3.0))])
    assert mean.tolist() == x.tolist() == [0.0, 1.0, 2.0]
    assert np.isnan([low, high]).all()
    grid = np.arange(10_000.0)
    x, mean, *_ = mean_and_interval([(grid, grid)] * 2)
    assert len(x) <= 500
    assert (x[0], x[-1]) == (0.0, 9999.0)


def test_runs_are_grouped_by_everything_but_the_seed_one_panel_a_simulator(tmp_path):
    files = [
        *seeds(tmp_path, 3),
        *seeds(tmp_path, 2, optimizer={"name": "adam", "lr": 0.01}),
        *seeds(tmp_path, 2, optimizer="cma_es"),
        *seeds(tmp_path, 2, env="acrobot"),
        *seeds(tmp_path, 1, env="acrobot", optimizer="cma_es"),
    ]
    figure = diffsim.plot(files[::-1], tmp_path / "curves.svg")
    assert titles(figure) == ["acrobot"] * 2 + ["pendulum"] * 2
    acrobot, _, pendulum, _ = figure.axes
    assert sorted(len(xy(line)[0]) for line in thick(pendulum)) == [6, 6, 6]
    assert (len(thin(pendulum)), len(thin(acrobot))) == (7, 2)  # a single seed is the thick line itself
    assert len(pendulum.collections) == 3
    assert len(acrobot.collections) == 1
    colours = dict(
        zip(labels(figure), (h.get_color() for h in figure.legends[0].legend_handles), strict=True)
    )
    assert len(set(colours.values())) == len(colours)
    assert "value_gradient, cma_es (1 to 2 seeds)" in colours  # one look in both panels
    assert any("optimizer.lr 0.01 (2 seeds)" in label for label in colours)


def test_one_run_shows_loss_and_gradients_too(tmp_path):
    file = make_run(tmp_path / "run", [-3.0, -2.0], seed=7)
    figure = diffsim.plot(file)
    assert (tmp_path / "run/curves.png").read_bytes().startswith(b"\x89PNG")
    assert [axis.get_ylabel() for axis in figure.axes[::2]] == [
        "return (own simulator)",
        "loss",
        "gradient norm",
    ]
    history = file.history()
    for row, column in enumerate(("return", "loss", "grad_norm")):
        known = np.isfinite(history[column])
        for axis, along in zip(
            figure.axes[2 * row : 2 * row + 2], ("env_steps", "wall_seconds"), strict=True
        ):
            assert np.allclose(xy(axis.lines[0]), (history[along][known], history[column][known]))
    assert figure.get_suptitle() == "pendulum, value_gradient, adam, seed 7"


def test_unfinished_runs_are_marked_and_runs_without_an_evaluation_do_not_hide(tmp_path):
    whole = make_run(tmp_path / "a", [1.0, 2.0, 3.0])
    short = make_run(tmp_path / "b", [2.0, 3.0], seed=1, updates=15, state="diverged")
    empty = make_run(tmp_path / "c", [], seed=2, updates=15, state="crashed")
    figure = diffsim.plot([whole, short, empty], tmp_path / "curves.png")
    crosses = [line for line in figure.axes[0].lines if line.get_marker() == "x"]
    assert [xy(line)[1].tolist() for line in crosses] == [[3.0]]
    assert xy(thick(figure.axes[0])[0])[1].tolist() == [1.5, 2.5]  # to the end of the shortest
    assert labels(figure) == ["value_gradient, adam (3 seeds, 1 without an evaluation)"]
    assert "cross: a run that did not finish" in figure.legends[0].get_title().get_text()
    assert diffsim.plot([empty], tmp_path / "empty.png").axes[0].texts[0].get_text() == "not measured"
    assert diffsim.plot(
        [empty, empty.folder, tmp_path / "c/run.h5"], tmp_path / "e.png"
    )  # one run, named thrice


def test_seeds_that_never_overlap_have_no_mean(tmp_path):
    early = make_run(tmp_path / "a", [1.0, 2.0], steps=1, wall=1.0, every=1)
    late = make_run(tmp_path / "b", [1.0, 2.0], steps=100, wall=1.0, every=1, seed=1)
    steps, seconds = diffsim.plot([early, late], tmp_path / "curves.png").axes
    assert (len(thick(steps)), len(thick(seconds))) == (0, 1)
    assert len(thin(steps)) == 2


@pytest.mark.parametrize(
    ("suffix", "start"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml"), ("PNG", b"\x89PNG")]
)
def test_the_suffix_chooses_the_format(suffix, start, tmp_path):
    make_run(tmp_path / "run", [1.0])
    target = tmp_path / "new folder" / f"curves.{suffix}"
    result = CliRunner().invoke(main, ["plot", str(tmp_path / "run"), "--out", str(target)])
    assert result.output == f"wrote {target}\n"
    assert target.read_bytes().startswith(start)
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_mistakes(tmp_path):
    run = make_run(tmp_path / "run", [1.0])
    with pytest.raises(ConfigError, match=r"x.jpg': its suffix must be one of .png, .pdf, .svg"):
        diffsim.plot(run, tmp_path / "x.jpg")
    with pytest.raises(ConfigError, match="at least one run"):
        diffsim.plot([])
    with pytest.raises(RunFileError, match="no run at"):
        diffsim.plot([run, tmp_path / "nowhere"])
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot write .*file/x.png: "):
        diffsim.plot(run, tmp_path / "file" / "x.png")


def test_paths_of_several_kinds(tmp_path, monkeypatch):
    make_run(tmp_path / "run", [1.0])
    monkeypatch.setenv("HOME", str(tmp_path))
    diffsim.plot("~/run", "~/curves.svg")
    assert (tmp_path / "curves.svg").exists()
    assert default_path([RunFile(tmp_path / "run"), "elsewhere"]) == tmp_path / "run/curves.png"


def test_many_groups_have_many_looks(tmp_path):
    files = [
        f for i in range(9) for f in seeds(tmp_path, 1, optimizer={"name": "adam", "lr": 1e-3 * (i + 1)})
    ]
    figure = diffsim.plot(files, tmp_path / "x.png")
    looks = {(h.get_color(), h.get_linestyle()) for h in figure.legends[0].legend_handles}
    assert len(looks) == 9


def test_no_window_is_opened_and_a_notebook_shows_the_figure(tmp_path):
    make_run(tmp_path / "run", [1.0])
    code = (
        "import sys, diffsim; figure = diffsim.plot('run')\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert figure._repr_png_().startswith(b'\\x89PNG')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
