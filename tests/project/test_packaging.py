"""What a user gets who installs the wheel."""

import ast
import json
import re
import shlex
import subprocess
import sys
import zipfile
from email import message_from_string
from importlib.metadata import distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import diffsim
from diffsim.config import tomllib as toml
from lazy_registry.installation import DISTRIBUTION
from solvers import install_command

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_the_packages_and_no_module_julia(wheel):
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {t for t in tops if not t.endswith(".dist-info")} == {
        "diffsim",
        "robotics_envs",
        "solvers",
        "lazy_registry",
    }


def test_every_source_file_ships(wheel):
    names = set(wheel.namelist())
    for package in ("diffsim", "robotics_envs", "solvers", "lazy_registry"):
        for path in (p for kind in ("*.py", "*.cpp", "*.h") for p in (ROOT / package).rglob(kind)):
            assert str(path.relative_to(ROOT)) in names
    for path in (p for kind in ("*.toml", "*.jl", "*.json") for p in (ROOT / "julia").rglob(kind)):
        assert f"robotics_envs/{path.relative_to(ROOT / 'julia')}" in names


def test_the_installed_layout_finds_its_julia_sources(wheel, tmp_path):
    wheel.extractall(tmp_path)
    code = "import robotics_envs; print(robotics_envs.julia_sources())"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == str(tmp_path / "robotics_envs" / "DiffSimEnvs"), done.stderr


@pytest.fixture(scope="module")
def metadata(wheel):
    (name,) = (n for n in wheel.namelist() if n.endswith("METADATA"))
    return message_from_string(wheel.read(name).decode())


def test_the_metadata_bound_torch_and_offer_extras(metadata):
    required = metadata.get_all("Requires-Dist")
    assert "torch<2.14,>=2.9" in required
    for name in ("numpy", "torchdiffeq", "h5py", "juliacall"):
        assert any(line.startswith(f"{name}>=") for line in required)
    extras = ("bench", "gym", "plot", "render", "rl", "twins", "ray", "slurm", "tensorboard", "test", "all")
    assert set(extras) <= set(metadata.get_all("Provides-Extra"))


def test_licence_and_types_ship(wheel, metadata):
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE"]
    (licence,) = (n for n in wheel.namelist() if n.endswith("licenses/LICENSE"))
    text = wheel.read(licence).decode()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    for package in ("diffsim", "robotics_envs", "solvers", "lazy_registry"):
        assert f"{package}/py.typed" in wheel.namelist()
    assert "Typing :: Typed" in metadata.get_all("Classifier")


def test_the_version_is_the_same_everywhere(metadata):
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    (newest, *_) = re.findall(r"^## \[(\d[^]]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    stated = {metadata["Version"], citation["version"], newest, diffsim.__version__}
    assert stated == {diffsim.__version__}
    assert "version" not in toml.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_citation_has_what_the_format_demands():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["license"] == "Apache-2.0"


def test_the_distribution_has_one_name(metadata):
    project = toml.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["name"] == metadata["Name"] == DISTRIBUTION
    for extra, lines in project["optional-dependencies"].items():
        own = [
            Requirement(line)
            for line in lines
            if canonicalize_name(Requirement(line).name).startswith("diffsim")
        ]
        assert all(r.name == DISTRIBUTION for r in own), extra
        assert all(r.extras <= project["optional-dependencies"].keys() for r in own), extra


def sources():
    """Files that may give advice to install."""
    kinds = ("*.py", "*.md", "*.html", "*.sh", "*.ipynb", "*.jl")
    folders = (
        "diffsim",
        "robotics_envs",
        "solvers",
        "docs",
        "examples",
        "benchmarks",
        "julia",
        "scripts",
        ".ci",
    )
    found = [path for folder in folders for kind in kinds for path in (ROOT / folder).rglob(kind)]
    return sorted([*found, *ROOT.glob("*.md"), ROOT / "Makefile", ROOT / ".ci" / "run"])


WORD = re.compile(r"""\s*(?:'([^']+)'|"([^"]+)"|([-.\w]+[\w\]]|-\w)(?=["'`\s;,.)]|$))""")


def written_advice():
    """Every ``pip install ...`` in sources and documentation: the file and the arguments."""
    for path in (p for p in sources() if p != ROOT / "solvers" / "installation.py"):
        for line in re.findall(r"pip3? install ([^\n]*)", path.read_text()):
            words = []
            while match := WORD.match(line):
                words.append(match[1] or match[2] or match[3])
                line = line[match.end() :]
            yield path.relative_to(ROOT), words


def computed_advice():
    """The extra of every call of ``install_command`` in the sources."""
    for path in sources():
        if path.suffix != ".py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "install_command":
                (argument,) = node.args
                assert isinstance(argument, ast.Constant), f"{path}: install_command takes a literal here"
                yield path.relative_to(ROOT), argument.value


ELSEWHERE = {"ziglang", "juliacall", "torch"}
"""Distributions of others that messages may name."""


def check_advice(words, extras):
    """That these arguments of ``pip install`` bring this project with extras it has, or one of ``ELSEWHERE``."""
    targets = [w for w in words if not w.startswith("-")]
    assert targets, words
    for target in targets:
        local = re.fullmatch(r"(?:\.|/[\w./]+)(?:\[([\w,]+)\])?", target)
        if local:
            asked = set((local[1] or "").split(",")) - {""}
        else:
            requirement = Requirement(target)
            assert requirement.name in {DISTRIBUTION, *ELSEWHERE}, f"{requirement.name} is somebody else's"
            asked = requirement.extras
            # The package index does not have it.
            assert requirement.name != DISTRIBUTION or requirement.url, f"{target} names no address"
        assert asked <= extras, f"no extra {asked - extras}"


def test_every_advice_to_install_brings_this_project(metadata):
    extras, seen, wrong = set(metadata.get_all("Provides-Extra")), 0, []
    for path, words in written_advice():
        seen += 1
        try:
            check_advice(words, extras)
        except (AssertionError, ValueError) as error:
            wrong.append(f"{path}: pip install {' '.join(words)}: {error}")
    for path, extra in computed_advice():
        seen += 1
        if extra not in extras:
            wrong.append(f"{path}: no extra {extra!r}")
    assert not wrong
    assert seen > 8


@pytest.mark.parametrize(
    "words", [["diffsim[plot]"], ["-e", ".[plt]"], ["diffsim-robotics[plot]"], ["diffsim"], ["-e"]]
)
def test_wrong_advice_is_found(words, metadata):
    with pytest.raises(AssertionError):
        check_advice(words, set(metadata.get_all("Provides-Extra")))


def dry_run(words, folder):
    """What pip would install, without network and without what it depends on."""
    words = [word for word in words if word != "-e"]  # which asks for one package more to build with
    offline = ["--dry-run", "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *offline, *words], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "does not provide the extra" not in done.stdout + done.stderr
    return done.stdout


def test_a_dry_run_of_the_advice_from_a_checkout(tmp_path, monkeypatch):
    """As the documentation says it, and as messages say it, there and in another folder."""
    # Not importorskip: once pip was imported in a process, setuptools, and TorchInductor with it, fails there.
    if not any(distribution.name == "pip" for distribution in distributions()):
        pytest.skip("this environment has no pip")
    right = f"Would install {DISTRIBUTION}-{diffsim.__version__}"
    monkeypatch.chdir(ROOT)
    assert install_command("plot") == "pip install -e '.[plot]'"
    assert right in dry_run(["-e", ".[plot]"], ROOT)
    monkeypatch.chdir(tmp_path)
    assert right in dry_run(shlex.split(install_command("plot"))[2:], tmp_path)


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """As in a package folder, installed from what ``direct_url.json`` records (PEP 610)."""
    from lazy_registry import installation

    def record(source):
        class Distribution:
            def read_text(self, name):
                assert name == "direct_url.json"
                return None if source is None else json.dumps(source)

        monkeypatch.setattr(
            installation, "__file__", str(tmp_path / "site-packages" / "solvers" / "installation.py")
        )
        monkeypatch.setattr(installation.metadata, "distribution", lambda name: Distribution())
        (target,) = shlex.split(install_command("plot"))[2:]
        return target

    return record


def test_advice_names_the_source_of_the_installation(installed, tmp_path):
    git = {"vcs_info": {"vcs": "git", "commit_id": "abc123"}}
    assert (
        installed({"url": "https://host/d.git", **git})
        == f"{DISTRIBUTION}[plot] @ git+https://host/d.git@abc123"
    )
    folder = tmp_path / "my clone"
    folder.mkdir()
    assert installed({"url": folder.as_uri(), "dir_info": {}}) == f"{folder}[plot]"
    assert installed({"url": folder.as_uri(), **git}) == f"{folder}[plot]"
    wheel = {"url": "https://host/d.whl", "archive_info": {}}
    assert installed(wheel) == f"{DISTRIBUTION}[plot] @ https://host/d.whl"
    assert installed(None) == f"{DISTRIBUTION}[plot]"
