"""Modules from a user's own files: isolated by folder, reloaded after an edit, found again by pickles."""

import pickle
import subprocess
import sys

import pytest

from lazy_registry.registry import Registry
from lazy_registry.user_files import definitions, imported_files, load_file

THINGS = Registry("thing", {})


def folder(path, constant, body="from constants_of_mine import VALUE\n\n\nclass Mine:\n    value = VALUE\n"):
    path.mkdir(parents=True)
    (path / "mine.py").write_text(body)
    (path / "constants_of_mine.py").write_text(f"VALUE = {constant}\n")
    return path


@pytest.mark.parametrize(
    "body",
    [
        "from constants_of_mine import VALUE\n\n\nclass Mine:\n    value = VALUE\n",
        "import constants_of_mine\n\n\nclass Mine:\n    value = constants_of_mine.VALUE\n",
        "import constants_of_mine as c\n\n\nclass Mine:\n    value = c.VALUE\n",
        "class Mine:\n    @property\n    def value(self):\n"
        "        from constants_of_mine import VALUE\n        return VALUE\n",
        "import importlib\n\nc = importlib.import_module('constants_of_mine')\n\n\nclass Mine:\n    value = c.VALUE\n",
    ],
    ids=["from", "import", "import as", "when called", "importlib"],
)
def test_each_folder_has_its_own_helper_modules(tmp_path, body):
    one, two = folder(tmp_path / "one", 1, body), folder(tmp_path / "two", 2, body)
    classes = [THINGS.load(f"{place}/mine.py:Mine") for place in (one, two, one)]
    assert [mine().value for mine in classes] == [1, 2, 1]
    assert "constants_of_mine" not in sys.modules


def test_packages_and_relative_imports(tmp_path):
    package = tmp_path / "lab" / "models"
    package.mkdir(parents=True)
    (tmp_path / "lab" / "__init__.py").write_text("")
    (package / "__init__.py").write_text("SCALE = 3\n")
    (package / "wheel.py").write_text(
        "from . import SCALE\nfrom .parts import RADIUS\nfrom lab.models import parts\nimport lab.models.parts as p\n"
        "assert parts is p\n\n\nclass Wheel:\n    size = SCALE * RADIUS\n"
    )
    (package / "parts.py").write_text("RADIUS = 2\n")
    assert THINGS.load(f"{package}/wheel.py:Wheel").size == 6
    assert list(imported_files(package / "wheel.py")) == [
        "lab/__init__.py", "lab/models/__init__.py", "lab/models/parts.py", "lab/models/wheel.py",
    ]  # fmt: skip


def test_an_edited_helper_is_executed_again(tmp_path):
    place = folder(tmp_path / "one", 1)
    assert THINGS.load(f"{place}/mine.py:Mine").value == 1
    (place / "constants_of_mine.py").write_text("VALUE = 5\n")  # the same length, within the same second
    assert THINGS.load(f"{place}/mine.py:Mine").value == 5


def test_a_file_of_any_name_loads(tmp_path):
    file = tmp_path / "2 wheels-v1.1.py"
    file.write_text("class Mine:\n    pass\n")
    assert THINGS.load(f"{file}:Mine").__name__ == "Mine"
    assert load_file(file) is load_file(file)


def test_the_projects_and_the_standard_library_s_names_stay_theirs(tmp_path):
    place = folder(
        tmp_path / "one",
        1,
        "import math\nfrom solvers import SOLVERS\n\n\nclass Mine:\n    value = (math.pi, len(SOLVERS))\n",
    )
    (place / "math.py").write_text("pi = 3\n")
    (place / "solvers.py").write_text("SOLVERS = ()\n")
    pi, count = THINGS.load(f"{place}/mine.py:Mine").value
    assert pi > 3.14
    assert count > 10


def test_instances_are_pickled_by_file(tmp_path):
    place = folder(tmp_path / "one", 7)
    data = tmp_path / "instance.pickle"
    data.write_bytes(pickle.dumps(THINGS.load(f"{place}/mine.py:Mine")()))
    code = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb')).value)"
    done = subprocess.run([sys.executable, "-c", code, data], capture_output=True, text=True, check=True)
    assert done.stdout == "7\n"


def test_the_stored_files_are_those_a_file_imports(tmp_path):
    place = folder(tmp_path / "one", 1)
    (place / "unrelated.py").write_text("raise SystemExit\n")
    (place / "mine.py").write_text("import torch\n\n\ndef f():\n    import deep.deeper\n")
    (place / "deep").mkdir()
    (place / "deep" / "__init__.py").write_text("")
    (place / "deep" / "deeper.py").write_text("import constants_of_mine\n")
    files = imported_files(place / "mine.py")
    assert list(files) == ["constants_of_mine.py", "deep/__init__.py", "deep/deeper.py", "mine.py"]
    assert files["constants_of_mine.py"] == b"VALUE = 1\n"


def test_definitions_take_a_class_out_of_a_script():
    script = (
        "from __future__ import annotations\nimport math, sys\nfrom os import path\nN = 1\nN = 2\n"
        "def scale(x):\n    return N * math.pi * x\n"
        "class Base:\n    pass\n@staticmethod\ndef unused(): pass\nclass Mine(Base):\n    size = scale(1)\n"
        "run = Mine()\nraise SystemExit(run)\n"
    )
    text = definitions([script], "Mine")
    names: dict = {}
    exec(text, names)
    assert names["Mine"].size == pytest.approx(6.283185307179586)
    assert "run" not in names
    assert "path" not in names
    assert definitions([script], "Absent") == ""
    # Cells of a notebook: the last definition counts, and cells that are not Python are passed over.
    cells = ["class A:\n    x = 1", "%matplotlib inline", "class A:\n    x = 2"]
    names = {}
    exec(definitions(cells, "A"), names)
    assert names["A"].x == 2
