"""A user's file or folder that hides one of the packages is named when the package is imported."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(script, folder, *options):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *options, str(script)], cwd=folder, env=env, capture_output=True, text=True
    )


def hide(folder, package, kind):
    """A module ``package`` of the user's, as a file or as a folder; the file that Python would import."""
    if kind == "file":
        path = folder / f"{package}.py"
    else:
        (folder / package).mkdir()
        path = folder / package / "__init__.py"
    path.write_text("raise SystemExit('the file of the user was executed')\n")
    return path


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize(
    ("hidden", "code"),
    [
        ("solvers", "import diffsim"),
        ("robotics_envs", "import diffsim"),
        ("solvers", "import robotics_envs"),
        ("solvers", "from robotics_envs import Env"),
        ("solvers", "from diffsim.runs.run import train"),
        ("robotics_envs", "from diffsim import train"),
        ("lazy_registry", "import diffsim"),
        ("lazy_registry", "import robotics_envs"),
    ],
)
def test_the_file_that_hides_a_package_is_named(hidden, code, kind, tmp_path):
    path = hide(tmp_path, hidden, kind)
    script = tmp_path / "my_script.py"
    script.write_text(code)
    done = run(script, tmp_path)
    assert done.returncode == 1
    needed = re.search(r"\b(diffsim|robotics_envs)\b", code)[0]
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: {path} hides the package {hidden}, which {needed} needs; rename the {kind}"
    )
    assert "the file of the user" not in done.stderr


def test_a_script_that_has_the_name_of_a_package_itself(tmp_path):
    script = tmp_path / "solvers.py"
    script.write_text("import diffsim")
    assert run(script, tmp_path).stderr.splitlines()[-1].endswith("rename the file")


def test_in_the_current_folder_of_python_m(tmp_path):
    path = hide(tmp_path, "solvers", "file")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "diffsim", "--help"], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert f"{path} hides the package solvers" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", ["julia", "juliapkg_settings", "envs", "utils", "run", "config", "gym"])
def test_other_names_hide_nothing(name, tmp_path):
    """``julia`` is the name of a folder of this project, and of no module that it imports."""
    hide(tmp_path, name, "file")
    script = tmp_path / "my_script.py"
    script.write_text(
        "import diffsim, robotics_envs, solvers\n"
        "from robotics_envs import JuliaError, julia_sources\n"
        "import robotics_envs.gym, robotics_envs.julia.env, diffsim.cli, diffsim.runs.run\n"
        "assert julia_sources().is_dir()\n"
    )
    done = run(script, tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_folder_that_is_no_package_hides_nothing(tmp_path):
    for name in ("solvers", "robotics_envs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text("data")
    script = tmp_path / "my_script.py"
    script.write_text("import diffsim; print(diffsim.MLP.__module__)")
    assert run(script, tmp_path).stdout == "diffsim.policy\n"


def test_a_link_to_the_checkout_hides_nothing(tmp_path):
    (tmp_path / "checkout").symlink_to(ROOT)
    code = "import diffsim; print(diffsim.MLP.__module__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "checkout", capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout == "diffsim.policy\n", done.stderr
