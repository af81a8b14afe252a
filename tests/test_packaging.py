"""What a user gets who installs the wheel."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_three_packages_and_no_module_julia(wheel):
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {t for t in tops if not t.endswith(".dist-info")} == {"diffsim", "robotics_envs", "solvers"}


def test_every_source_file_ships(wheel):
    names = set(wheel.namelist())
    for package in ("diffsim", "robotics_envs", "solvers"):
        for path in (p for kind in ("*.py", "*.cpp") for p in (ROOT / package).rglob(kind)):
            assert str(path.relative_to(ROOT)) in names
    for path in (p for kind in ("*.toml", "*.jl", "*.json") for p in (ROOT / "julia").rglob(kind)):
        assert f"robotics_envs/{path.relative_to(ROOT / 'julia')}" in names


def test_the_installed_layout_finds_its_julia_sources(wheel, tmp_path):
    wheel.extractall(tmp_path)
    code = "import robotics_envs; print(robotics_envs.julia_sources())"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == str(tmp_path / "robotics_envs" / "DiffSimEnvs"), done.stderr


def test_the_metadata_bound_torch_and_offer_extras(wheel):
    (name,) = (n for n in wheel.namelist() if n.endswith("METADATA"))
    metadata = wheel.read(name).decode()
    assert "Requires-Dist: torch<2.14,>=2.9\n" in metadata
    for required in ("numpy", "torchdiffeq", "h5py", "juliacall"):
        assert f"Requires-Dist: {required}>=" in metadata
    for extra in ("bench", "gym", "plot", "render", "rl", "twins", "ray", "slurm", "test", "all"):
        assert f"Provides-Extra: {extra}\n" in metadata
