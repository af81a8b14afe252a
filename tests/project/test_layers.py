"""The layers hold, and importing a package root does nothing but define names."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = (
    "lazy_registry",
    "solvers",
    "robotics_envs",
    "diffsim",
)  # a layer imports itself and those before it


def imported(path: Path) -> set[str]:
    """The full names of all modules that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names.add(node.module)
    return names


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_point_left(layer):
    forbidden = set(LAYERS[LAYERS.index(layer) + 1 :])
    files = list((ROOT / layer).rglob("*.py"))
    assert files
    for path in files:
        wrong = {name for name in imported(path) if name.split(".")[0] in forbidden}
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def rooms(layer: str) -> dict[str, set[str]]:
    """Of every file and folder directly in a package: those that it imports, inside of functions too."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / layer).rglob("*.py"):
        here, *_ = path.relative_to(ROOT / layer).with_suffix("").parts
        if here == "__init__":
            continue  # the package's face, which only hands names on
        uses = found.setdefault(here, set())
        for name in imported(path):
            top, *rest = name.split(".")
            if top == layer:
                assert rest, f"{path.relative_to(ROOT)} imports the face of its own package"
                uses.add(rest[0])
    return {room: uses - {room} for room, uses in found.items()}


@pytest.mark.parametrize("layer", LAYERS)
def test_files_and_folders_of_a_package_import_each_other_in_no_circle(layer):
    try:
        order = [*graphlib.TopologicalSorter(rooms(layer)).static_order()]
    except graphlib.CycleError as error:
        pytest.fail(f"{layer}: {' -> '.join(error.args[1])}")
    assert len(order) > 3


def test_at_most_one_module_imports_juliacall():
    files = [path for layer in LAYERS for path in (ROOT / layer).rglob("*.py")]
    users = [p for p in files if any(n.split(".")[0] == "juliacall" for n in imported(p))]
    assert len(users) <= 1, users


@pytest.mark.parametrize("package", LAYERS)
def test_importing_a_package_root_is_silent_and_light(package):
    code = (
        f"import sys, threading, {package}; "
        "print(sorted({'torch', 'juliacall', 'h5py', 'numpy'} & set(sys.modules)), "
        "threading.active_count())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[] 1\n", "")


def test_help_loads_nothing_heavy():
    code = (
        "import sys; sys.argv = ['diffsim', '--help']\n"
        "from diffsim.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "heavy = {'torch', 'juliacall', 'h5py', 'numpy', 'pydantic', 'scipy', 'rich'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Commands:" in done.stdout
    assert done.stdout.endswith("[]\n"), done.stdout


def test_everything_in_all_exists():
    import diffsim
    import robotics_envs
    import solvers

    for package in (diffsim, robotics_envs, solvers):
        for name in package.__all__:
            assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        diffsim.trian  # noqa: B018


def test_stated_shapes_are_checked_in_these_tests():
    """Proof that the import hook of conftest.py is at work: two batch sizes in one call."""
    import torch
    from jaxtyping import TypeCheckError

    from robotics_envs import make_env

    env = make_env("pendulum")
    x, u = torch.zeros(3, 2), torch.zeros(4, 1)
    with pytest.raises(TypeCheckError):
        env.clip_action(torch.zeros(3))
    with pytest.raises(TypeCheckError):
        env.dynamics(0.0, x, u, env.params(x))
