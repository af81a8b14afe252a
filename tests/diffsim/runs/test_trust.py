"""Whose code a run may execute: the user's own, and a stranger's only with consent."""

import json
import os
import shutil
import stat
import subprocess
import sys

import h5py
import pytest

import diffsim
from diffsim import RunFile
from diffsim.errors import TrustError
from diffsim.runs import authorship

MARK = "import os, pathlib\npathlib.Path(os.environ['MARK']).touch()\n"
ENV = MARK + "from robotics_envs.simulators.pendulum import Pendulum\n\n\nclass Mine(Pendulum):\n    pass\n"
NET = MARK + (
    "from torch import nn\n\n\nclass Net(nn.Sequential):\n    def __init__(self, i, o):\n"
    "        super().__init__(nn.Linear(i, o))\n"
)
OPT = MARK + (
    "import torch\n\n\nclass Mine(torch.optim.Adam):\n    def __init__(self, params, lr=1e-3):\n"
    "        super().__init__(params, lr=lr)\n"
)


@pytest.fixture
def me(tmp_path, monkeypatch):
    """A user with a key of their own; the file that hostile code would make."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("DIFFSIM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MARK", str(tmp_path / "mark"))
    return tmp_path / "mark"


@pytest.fixture
def stranger(me, tmp_path, monkeypatch):
    """Runs of somebody else: trained with another key, and away from where their files were."""

    def make(**settings):
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "their_config"))
        lab = tmp_path / "lab"
        lab.mkdir(exist_ok=True)
        for name, text in (("env.py", ENV), ("net.py", NET), ("opt.py", OPT)):
            (lab / name).write_text(text)
        settings = {
            k: v.replace("LAB", str(lab))
            if isinstance(v, str)
            else {"name": v["name"].replace("LAB", str(lab))}
            for k, v in settings.items()
        }
        run = diffsim.train(out=tmp_path / "their_run", updates=1, quiet=True, **settings)
        shutil.rmtree(lab)
        me.unlink(missing_ok=True)
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
        return run

    return make


# Each command in a process of its own, which is a copy of one that has loaded the packages and nothing of a user's.
EACH = """
import json, os, sys, tempfile, torch
import diffsim.rendering.render, diffsim.runs.curves, diffsim.runs.run, diffsim.runs.show
from diffsim.cli import main
for command in json.loads(sys.argv[1]):
    with tempfile.TemporaryFile("w+") as errors:
        pid = os.fork()
        if pid == 0:
            sink = os.open(os.devnull, os.O_WRONLY)
            os.dup2(sink, 1)
            os.dup2(errors.fileno(), 2)
            main(command, prog_name="diffsim")
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        errors.seek(0)
        print(json.dumps([status, os.path.exists(os.environ["MARK"]), errors.read()]), flush=True)
"""
KINDS = [
    {"env": "LAB/env.py:Mine"},
    {"env": "pendulum", "policy": {"name": "LAB/net.py:Net"}},
    {"env": "pendulum", "optimizer": {"name": "LAB/opt.py:Mine"}},
]


@pytest.mark.parametrize("settings", KINDS, ids=["env", "policy", "optimizer"])
def test_nothing_of_a_stranger_s_code_runs_without_consent(stranger, me, tmp_path, settings):
    run = stranger(**settings)
    commands = [
        ["show", run.folder],
        ["plot", run.folder],
        ["evaluate", run.folder, "--episodes", "2"],
        ["render", run.folder, "--steps", "2", "--format", "html"],
        ["train", "--out", run.folder, "--resume", "--quiet"],
        ["train", "pendulum", "--init", run.folder, "--out", tmp_path / "new", "--updates", "1", "--quiet"],
    ]
    refused = []
    done = subprocess.run(
        [sys.executable, "-c", EACH, json.dumps([[*map(str, command)] for command in commands])],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    for command, (status, marked, errors) in zip(
        commands, map(json.loads, done.stdout.splitlines()), strict=True
    ):
        assert not marked, command
        assert "Traceback" not in errors
        if status:
            refused.append(command[0])
            assert "does not carry your signature" in errors
            assert ".py" in errors  # what would run
            assert "--trust" in errors
    needs_code = {"env": 3, "policy": 4, "optimizer": 1}[
        "env" if "LAB" in str(settings["env"]) else [*settings][1]
    ]
    assert len(refused) == needs_code, refused
    if "optimizer" not in settings:
        with pytest.raises(TrustError):
            diffsim.load_policy(run)
        assert not me.exists()


@pytest.mark.parametrize("settings", KINDS, ids=["env", "policy", "optimizer"])
def test_with_consent_the_stored_code_runs_anywhere(stranger, me, settings):
    run = stranger(**settings)
    evaluation = diffsim.evaluate(run, episodes=2, trust=True)
    assert evaluation.returns.shape == (2,)
    diffsim.train(out=run.folder, resume=True, trust=True, updates=2, quiet=True)
    assert me.exists()
    assert len(run.history()["update"]) == 2
    assert not run.is_own()  # consent for one command is no signature


def test_a_simulator_of_one_s_own_needs_no_consent(stranger, me):
    run = stranger(**KINDS[0])
    assert diffsim.evaluate(run, episodes=2, env="pendulum").where == "diffsim:pendulum"
    assert not me.exists()


@pytest.mark.parametrize(
    "names",
    [
        {"policy": "os:system"},
        {"env": "subprocess:Popen"},
        {"env": "julia:/lab/evil.jl:Evil"},
        {"algorithm": "this_is_mine:Evil"},
        {"policy": "/etc/hostname.py:Evil"},
    ],
    ids=str,
)
def test_names_edited_into_a_file_are_not_followed(me, tmp_path, names):
    """The signature covers the configuration, so a file of one's own that somebody edited is a stranger's."""
    run = diffsim.train("pendulum", out=tmp_path / "run", updates=1, quiet=True)
    with h5py.File(run.path, "r+") as file:
        config = json.loads(file.attrs["config"])
        for section, name in names.items():
            config[section] = {"name": name}
        file.attrs["config"] = json.dumps(config)
    with pytest.raises(TrustError, match=next(iter(names.values()))):
        diffsim.train(out=run.folder, resume=True, quiet=True)
    assert diffsim.RunFile(run).config().model_dump()[next(iter(names))]["name"]


def test_an_edited_source_breaks_the_signature(me, tmp_path):
    (tmp_path / "env.py").write_text(ENV)
    run = diffsim.train(tmp_path / "env.py", out=tmp_path / "run", updates=1, quiet=True)
    (tmp_path / "env.py").unlink()
    me.unlink()
    assert RunFile(run).is_own()
    with h5py.File(run.path, "r+") as file:
        node = file["sources/env"]
        text = bytes(node["0000"][()]).replace(b"pass", b"evil")
        node["0000"][...] = list(text)
    assert not RunFile(run).is_own()
    with pytest.raises(TrustError, match=r"env\.py"):
        diffsim.load_policy(run)
    assert not me.exists()


def test_a_source_cannot_be_written_outside_of_its_folder(me, tmp_path):
    (tmp_path / "env.py").write_text(ENV)
    run = diffsim.train(f"{tmp_path}/env.py:Mine", out=tmp_path / "run", updates=1, quiet=True)
    for name in ("../../outside.py", "/tmp/outside.py"):
        with h5py.File(run.path, "r+") as file:
            file["sources/env/0000"].attrs["path"] = name
        with pytest.raises(diffsim.DiffsimError, match="leads out of its folder"):
            diffsim.load_policy(run, trust=True)


def test_an_own_run_travels_and_an_edited_file_is_said(me, tmp_path, monkeypatch, caplog):
    lab = tmp_path / "lab"
    lab.mkdir()
    (lab / "size.py").write_text("G = 3.0\n")
    text = (
        "from robotics_envs.simulators.pendulum import Pendulum\nfrom size import G\n\n\n"
        "class Mine(Pendulum):\n    def cost(self, x, u, p):\n        return G + 0.0 * x[..., 0] + 0.0 * u[..., 0]\n"
    )
    (lab / "env.py").write_text(text)
    monkeypatch.chdir(lab)
    run = diffsim.train("env.py:Mine", out="../run", updates=1, quiet=True)
    monkeypatch.chdir("/")
    per_episode = 3.0 * 200
    assert diffsim.evaluate(run, episodes=1).mean == pytest.approx(-per_episode, rel=1e-5)
    assert not caplog.messages
    (lab / "size.py").write_text("G = 4.0\n")
    assert diffsim.evaluate(run, episodes=1).mean == pytest.approx(-per_episode, rel=1e-5)
    assert "size.py" in caplog.text
    assert "differs from the text" in caplog.text
    edited = diffsim.evaluate(run, episodes=1, env=f"{lab}/env.py:Mine")
    assert edited.mean == pytest.approx(-4.0 * 200, rel=1e-5)
    shutil.rmtree(lab)
    moved = shutil.move(run.folder, tmp_path / "elsewhere")
    assert diffsim.evaluate(moved, episodes=1).mean == pytest.approx(-per_episode, rel=1e-5)
    diffsim.train(out=moved, resume=True, updates=2, quiet=True)


def test_the_key_is_private_and_made_once(me, tmp_path):
    first = authorship.signature([b"a", b"b"])
    assert first == authorship.signature([b"a", b"b"])
    assert authorship.is_own([b"a", b"b"], first)
    assert not authorship.is_own([b"ab", b""], first)
    key = tmp_path / "config" / "diffsim" / "author.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_without_a_home_nothing_is_signed_and_training_goes_on(tmp_path, monkeypatch):
    (tmp_path / "a_file").touch()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "a_file"))
    run = diffsim.train("pendulum", out=tmp_path / "run", updates=1, quiet=True)
    assert not run.is_own()
    assert diffsim.evaluate(run, episodes=1).returns.shape == (1,)  # no code but ours is in it


def test_a_class_of_a_script_is_stored_without_the_rest_of_it(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import diffsim\n"
        "from robotics_envs.simulators.pendulum import Pendulum\n\nCOST = 2.0\n\n\nclass Mine(Pendulum):\n"
        "    def cost(self, x, u, p):\n        return COST + 0.0 * x[..., 0] + 0.0 * u[..., 0]\n\n\n"
        "run = diffsim.train(Mine, out='run', updates=1, quiet=True)\n"
        "print(diffsim.evaluate(run, episodes=1).mean)\n"
    )
    environment = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path / "config")}
    do = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "check": True}
    assert float(subprocess.run([sys.executable, script], **do).stdout) == pytest.approx(-400, rel=1e-5)
    script.unlink()
    shell = [sys.executable, "-m", "diffsim", "evaluate", "run", "--episodes", "2"]
    assert "mean return -400.0" in subprocess.run(shell, **do).stdout
