"""The command line as a user meets it, in processes of its own."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from same_state import same

import diffsim
from diffsim.cli import main
from diffsim.runs.runfile import RunFile

SMALL = ["--set", "algorithm.batch=8", "--set", "evaluation.every=4", "--set", "evaluation.episodes=2"]
SLOW_ENV = """
import time
from robotics_envs.simulators.pendulum import Pendulum
class SlowPendulum(Pendulum):
    def reset(self, batch, generator, dtype):
        time.sleep(0.05)
        return super().reset(batch, generator, dtype)
"""


def diffsim_process(*args, cwd, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "diffsim", *map(str, args)],
        cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


def invoke(*args):
    return CliRunner().invoke(main, list(map(str, args)))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A short finished run."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    result = invoke("train", "pendulum", "--out", folder, "--updates", 8, *SMALL)
    assert result.exit_code == 0, result.output
    return folder


def test_training_says_what_it_did_and_what_comes_next(tmp_path):
    result = invoke("train", "pendulum", "--out", tmp_path / "run", "--updates", 8, *SMALL)
    assert result.exit_code == 0
    assert "finished: 8 updates, 520 environment steps, 8 gradient evaluations" in result.output
    assert f"wrote {tmp_path}/run/run.h5" in result.output
    assert f"next: diffsim evaluate {tmp_path}/run --gym Pendulum-v1" in result.output
    lines = [line for line in result.output.splitlines() if line.startswith("update")]
    assert len(lines) == 2  # no terminal: a plain line at each evaluation
    assert re.fullmatch(
        r"update 4/8 \| loss [\d.e+-]+ \| return -[\d.]+ \| success 0% \| 256 env steps \| 4 gradients \| "
        r"[\d.]+k? steps/s \| ETA \d\d:\d\d",
        lines[0],
    )


def test_the_first_line_comes_before_torch(tmp_path):
    """Which takes a second and more to load."""
    code = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch':\n"
        "            raise SystemExit(7)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "sys.argv = ['diffsim', 'train', 'pendulum', '--out', 'run', '--set', 'algorithm.batch=8']\n"
        "from diffsim.cli import main\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (7, "loading\n")


SLOW = ["--set", "checkpoint_every=1", "--set", "algorithm.batch=8", "--set", "evaluation.every=1",
        "--set", "evaluation.episodes=1", "--updates", "30"]  # fmt: skip


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("straight")
    (folder / "slow_env.py").write_text(SLOW_ENV)
    process = diffsim_process("train", "slow_env:SlowPendulum", "--out", "run", "--quiet", *SLOW, cwd=folder)
    assert process.communicate() is not None
    assert process.returncode == 0
    return RunFile(folder / "run")


@pytest.mark.parametrize(("number", "stops"), [(signal.SIGKILL, 2), (signal.SIGTERM, 1), (signal.SIGINT, 1)])
def test_a_stopped_and_resumed_run_ends_with_the_same_bits(tmp_path, straight, number, stops):
    """Stopped wherever it happens to be."""
    (tmp_path / "slow_env.py").write_text(SLOW_ENV)
    process = diffsim_process("train", "slow_env:SlowPendulum", "--out", "run", *SLOW, cwd=tmp_path)
    for _ in range(stops):
        while not process.stderr.readline().startswith("update"):
            assert process.poll() is None, process.stderr.read()
        process.send_signal(number)
        _, err = process.communicate()
        done = len(RunFile(tmp_path / "run").history()["update"])
        assert done < 30
        if number == signal.SIGKILL:
            assert process.returncode == -number
        else:
            assert process.returncode == 128 + number
            assert f"stopped after update {done} of 30; checkpoint in run/run.h5" in err
            assert "Go on with: diffsim train --out run --resume" in err
            assert "Traceback" not in err
        process = diffsim_process("train", "--out", "run", "--resume", cwd=tmp_path)
    _, err = process.communicate()
    assert process.returncode == 0, err
    resumed = RunFile(tmp_path / "run")
    assert same(straight.checkpoint("last"), resumed.checkpoint("last"))
    assert same(straight.checkpoint("best"), resumed.checkpoint("best"))
    for column in ("update", "loss", "return", "env_steps", "gradient_evaluations", "grad_norm"):
        assert (straight.history()[column] == resumed.history()[column]).all(), column


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (
            ["train", "pendulm"],
            "unknown environment 'pendulm'; did you mean 'pendulum'? known: acrobot, arm7,",
        ),
        (["train", "pendulum", "--optimizer", "adm"], "unknown optimizer 'adm'; did you mean 'adam'?"),
        (
            ["train", "pendulum", "--algorithm", "x"],
            "unknown algorithm 'x'; known: full_horizon, short_window",
        ),
        (
            ["train", "pendulum", "--sed", "1"],
            "unknown option '--sed'; did you mean '--seed'? known: --algor",
        ),
        (
            ["train", "pendulum", "--set", "sed=1"],
            "unknown key 'sed'; did you mean 'seed'? known: algorithm",
        ),
        (["train", "pendulum", "--set", "algorithm.windw=1"], "did you mean 'algorithm.window'?"),
        (["train", "pendulum", "--set", "optimizer.lrr=1"], "did you mean 'optimizer.lr'?"),
        (["train", "pendulum", "--set", "window"], "--set takes KEY=VALUE"),
        (["train", "pendulum", "--updates", "0"], "updates = 0"),
        (["train", "pendulum", "--updates", "x"], "--updates = 'x': must be a whole number"),
        (["train", "pendulum", "--dtype", "float16"], "dtype = 'float16'"),
        (["train", "pendulum", "--device", "abacus"], "device 'abacus' cannot be used here"),
        (["train", "pendulum", "--config", "no.toml"], "cannot read the configuration no.toml"),
        (["train"], "env is missing"),
        (
            ["trian"],
            "unknown command 'trian'; did you mean 'train'? known: check, compare, envs, evaluate, julia,",
        ),
        (["check", "pendulm"], "did you mean 'pendulum'?"),
        (["check", "no_file.py:MyEnv"], "there is no file"),
        (["evaluate", "nowhere"], "no run at nowhere/run.h5"),
        (["show", "nowhere"], "no run at nowhere/run.h5"),
        (["plot", "nowhere"], "no run at nowhere/run.h5"),
        (["train", "--resume", "--out", "nowhere"], "no run at nowhere/run.h5"),
    ],
)
def test_mistakes_are_answered_with_one_line_and_no_file(args, complaint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke(*args)
    assert result.exit_code in (1, 2)
    assert complaint in result.output
    assert "Traceback" not in result.output
    assert not list(tmp_path.iterdir())


def test_a_run_is_not_overwritten(finished):
    before = (finished / "run.h5").read_bytes()
    result = invoke("train", "pendulum", "--out", finished)
    assert result.exit_code == 1
    assert "already holds a run; continue it with --resume, or choose another --out" in result.output
    assert (finished / "run.h5").read_bytes() == before


def test_options_win_over_the_file_and_assignments_over_both(tmp_path):
    (tmp_path / "c.toml").write_text(
        'env = "pendulum"\nseed = 1\nupdates = 5\n[algorithm]\nbatch = 8\nwindow = 2\n'
    )
    result = invoke("train", "--config", tmp_path / "c.toml", "--out", tmp_path / "run",
                    "--updates", 2, "--set", "algorithm.window=3", *SMALL)  # fmt: skip
    assert result.exit_code == 0, result.output
    config = RunFile(tmp_path / "run").config()
    assert (config.seed, config.updates, config.algorithm.options["window"]) == (1, 2, 3)


def test_python_and_the_command_line_train_the_same(finished, tmp_path):
    diffsim.train(
        "pendulum", out=tmp_path / "run", updates=8, quiet=True,
        algorithm={"batch": 8}, evaluation={"every": 4, "episodes": 2},
    )  # fmt: skip
    assert same(RunFile(finished).checkpoint(), RunFile(tmp_path / "run").checkpoint())


def test_show_prints_the_whole_run(finished):
    text = invoke("show", finished).output
    assert "finished, 8 of 8 updates" in text
    assert re.search(r"algorithm\.name +value_gradient\n  algorithm\.batch +8\n", text)
    assert re.search(r"version_torch +2\.", text)
    assert re.search(r"git_revision +[0-9a-f]{40}", text) or not (Path(__file__).parents[1] / ".git").exists()
    assert re.search(r"\n +8 +[\d.e+-]+ +-[\d.]+ +520 +8 ", text)
    assert "last: after update 8" in text


def test_plot_draws_a_png(finished, tmp_path):
    result = invoke("plot", finished, finished, "--out", tmp_path / "two.png")
    assert result.output == f"wrote {tmp_path}/two.png\n"
    assert (tmp_path / "two.png").read_bytes().startswith(b"\x89PNG")
    assert f"wrote {finished}/curves.png" in invoke("plot", finished).output
    assert "its suffix must be one of" in invoke("plot", finished, "--out", tmp_path / "x.txt").output


def test_evaluating_in_gymnasium_appends_to_the_file(finished):
    count = len(RunFile(finished).evaluations())
    result = invoke("evaluate", finished, "--gym", "Pendulum-v1", "--episodes", 5, "--seed", 7)
    assert result.exit_code == 0, result.output
    assert re.match(
        r"mean return -[\d.]+, 95% interval \[-[\d.]+, -[\d.]+\], worst .* over 5 episodes "
        r"of Pendulum-v1 from seed 7",
        result.output,
    )
    evaluations = RunFile(finished).evaluations()
    assert len(evaluations) == count + 1
    assert evaluations[-1]["where"] == "Pendulum-v1"
    assert "Pendulum-v1, 5 episodes from seed 7" in invoke("show", finished).output


def test_evaluating_in_the_runs_own_simulator_prints_the_successes(finished):
    result = invoke("evaluate", finished, "--episodes", 5, "--seed", 7)
    assert result.exit_code == 0, result.output
    (count,) = re.search(
        r"from seed 7; success from (\d) of 5 starts, 5 needed \(upright, cos\(angle\) > 0.98, throughout "
        r"the last 2 s\)$",
        result.output.strip(),
    ).groups()
    assert RunFile(finished).evaluations()[-1]["successes"] == int(count)
    assert f", success from {count}" in " ".join(invoke("show", finished).output.split())


def test_one_simulator_with_its_success():
    output = " ".join(invoke("envs", "car").output.split())
    assert "a success: on the track, |offset| < 0.185 m, throughout the episode" in output
    assert "solved: from 93.75% of the starts" in output
    assert "source: half width of the track: Liniger et al." in output
    assert "declares no success" in invoke("envs", "examples/cartpole.py").output
    wrong = invoke("envs", "carr")
    assert wrong.exit_code
    assert "did you mean 'car'" in wrong.output


def test_the_list_of_simulators():
    assert re.search(r"^pendulum +robotics_envs.simulators.pendulum:Pendulum$", invoke("envs").output, re.M)


MINE = """
import torch
from robotics_envs.base import Box, Env, Parameter
from solvers.methods.runge_kutta import RK4

class Mass(Env):
    \"\"\"A mass on a spring has to come to rest.\"\"\"
    name = "mass"
    state_names = observation_names = ("position", "velocity")
    parameters = (Parameter("stiffness", 2.0, "N/m", low=0.0),)
    action_box, start_box, state_box = Box.symmetric(1.0), Box.symmetric(1.0, 1.0), Box.symmetric(2.0, 2.0)
    dt, episode_steps, solver = 0.1, 30, RK4()

    def dynamics(self, t, x, u, p):
        position, velocity = x.unbind(-1)
        return torch.stack((velocity, u[..., 0] - p["stiffness"] * position), dim=-1)

    def cost(self, x, u, p):
        return (x**2).sum(-1) + 0.1 * u[..., 0] ** 2

class Broken(Mass):
    def dynamics(self, t, x, u, p):
        return super().dynamics(t, x, u, {"stiffness": p["stiffness"].detach()})

class Stubborn(Mass):
    def __init__(self, size):
        super().__init__()
"""


def test_ones_own_simulator_goes_through_every_command(tmp_path, monkeypatch):
    """From a file outside of this repository, found from the current folder."""
    (tmp_path / "my_env.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    result = invoke("check", "my_env.py:Mass")
    assert result.output == "my_env.py:Mass keeps the contract (23 checks)\n"
    result = invoke("train", "my_env.py:Mass", "--out", "run", "--updates", 4, *SMALL)
    assert result.exit_code == 0, result.output
    assert "next: diffsim evaluate run" in result.output
    for command, answer in (
        (("evaluate", "run", "--episodes", 3), "over 3 episodes of diffsim:mass"),
        (
            ("evaluate", "run", "--episodes", 3, "--gym", "diffsim/Pendulum-v0"),
            "this policy takes 2 (position, velocity)",
        ),
        (("show", "run"), "my_env.py:Mass"),
        (("render", "run", "--rollouts", 2), "render.html"),
        (("render", "my_env.py:Mass", "--format", "gif", "--out", "pictures"), "mass.gif"),
    ):
        result = invoke(*command)
        assert answer in result.output, (command, result.output)


def test_a_run_finds_its_simulator_from_another_folder(tmp_path, monkeypatch):
    """Also where a file of the same name holds another simulator."""
    for folder, stiffness in (("one", 2.0), ("two", 50.0)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "my_env.py").write_text(MINE.replace('2.0, "N/m"', f'{stiffness}, "N/m"'))
    monkeypatch.chdir(tmp_path / "one")
    assert invoke("train", "my_env.py:Mass", "--out", "run", "--updates", 4, *SMALL).exit_code == 0
    here = invoke("evaluate", "run", "--episodes", 3).output
    monkeypatch.chdir(tmp_path / "two")
    assert invoke("evaluate", "../one/run", "--episodes", 3).output == here


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("def broken(:", "cannot be loaded: SyntaxError"),
        (
            "import nowhere_to_be_found",
            "cannot be loaded: ModuleNotFoundError: No module named 'nowhere_to_be_found'",
        ),
        ("x = 1 / 0", "ZeroDivisionError: division by zero (my_env.py"),
    ],
)
def test_a_file_that_does_not_load_is_one_line(text, complaint, tmp_path, monkeypatch):
    (tmp_path / "my_env.py").write_text(text + "\n")
    monkeypatch.chdir(tmp_path)
    for command in ("check", "train", "render"):
        output = invoke(command, "my_env.py:Mass").output
        assert complaint.replace("(my_env.py", f"({tmp_path}/my_env.py") in output
        assert "line 1)" in output


def test_check_says_in_words_what_is_wrong(tmp_path, monkeypatch):
    (tmp_path / "my_env.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    result = invoke("check", "my_env.py:Broken")
    assert result.exit_code == 1
    assert result.output.startswith("diffsim: Broken breaks the environment contract:")
    for what in (
        "dynamics depends on stiffness but no gradient comes back",
        "step depends on stiffness but no",
    ):
        assert what in result.output
    assert "missing 1 required positional argument: 'size'" in invoke("check", "my_env.py:Stubborn").output
    assert "check_env takes a simulator" in invoke("check", "my_env.py:RK4").output


def test_optimizers_are_listed_with_their_options():
    listed = invoke("optimizers").output
    assert re.search(r"^adam +needs gradients", listed, re.M)
    assert re.search(r"^cma_es +needs values only", listed, re.M)
    assert "nadam" in listed
    options = invoke("optimizers", "pgpe").output
    assert "optimizer.radius = 10.0" in options
    assert "optimizer.momentum_decay = 0.004" in invoke("optimizers", "torch.optim.NAdam").output
    wrong = invoke("optimizers", "cmaes")
    assert wrong.exit_code == 2
    assert "did you mean 'cma_es'?" in wrong.output


def test_one_word_changes_the_optimizer_and_the_run_stores_its_options(tmp_path):
    done = invoke(
        "train", "pendulum", "--out", tmp_path, "--optimizer", "cma_es", "--updates", 3, *SMALL,
        "--set", "policy.hidden=[4]", "--set", "optimizer.popsize=5",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    file = RunFile(tmp_path)
    stored = file.config().optimizer
    assert stored.name == "cma_es"
    assert stored.options == {"popsize": 5, "sigma": 0.3, "covariance": "auto"}
    history = file.history()
    # Members and the policy itself, batch, and windows, which only gradients make longer or shorter.
    assert history["env_steps"].tolist() == [(5 + 1) * 8 * steps for steps in (8, 16, 24)]
    assert history["gradient_evaluations"][-1] == 0
