import sys

import pytest

from diffsim.algorithms import ALGORITHMS
from diffsim.policy import NETWORKS
from robotics_envs import ENVIRONMENTS
from solvers import SOLVERS, Registry, UnknownNameError, unknown


def test_unknown_names_the_value_the_nearest_and_the_list():
    message = unknown("colour", "gren", ["red", "green"])
    assert message == "unknown colour 'gren'; did you mean 'green'? known: green, red"


def test_unknown_offers_nothing_where_nothing_is_near():
    assert unknown("colour", "xyz", ["red"]) == "unknown colour 'xyz'; known: red"


def test_unknown_compares_the_last_part_of_dotted_names():
    known = ["algorithm.horizon", "algorithm.window"]
    assert "did you mean 'algorithm.window'?" in unknown("key", "algorithm.windw", known)
    assert "did you mean" not in unknown("key", "algorithm.zzz", known)


@pytest.mark.parametrize("registry", [ALGORITHMS, ENVIRONMENTS, NETWORKS, SOLVERS], ids=lambda c: c.kind)
def test_every_name_leads_to_a_class(registry):
    assert len(registry) > 0
    for name in registry:
        assert isinstance(registry.load(name), type)


def test_a_users_own_class_loads_by_its_path(tmp_path, monkeypatch):
    (tmp_path / "my_things.py").write_text("class Mine: pass\nclass Other: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry("thing", {})
    assert registry.load("my_things:Mine").__name__ == "Mine"
    with pytest.raises(UnknownNameError, match="did you mean 'Mine'"):
        registry.load("my_things:Mien")
    with pytest.raises(UnknownNameError, match=r"no module 'my_thing'.*PYTHONPATH"):
        registry.load("my_thing:Mine")
    sys.modules.pop("my_things")


def test_a_missing_import_inside_a_users_module_is_not_a_wrong_name(tmp_path, monkeypatch):
    (tmp_path / "my_broken.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        Registry("thing", {}).load("my_broken:Mine")


@pytest.mark.parametrize("name", ["", ":", "a:", ":b", "a:b:c", "pendulm", 3, None])
def test_malformed_names_are_refused(name):
    with pytest.raises(UnknownNameError, match="unknown thing"):
        Registry("thing", {"pendulum": "a:b"}).load(name)


def test_a_users_own_class_loads_from_a_file_anywhere(tmp_path, monkeypatch):
    """Relative to the current folder, with the file's neighbours importable; two files of one name are two."""
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"neighbour_{folder}.py").write_text(f"where = {folder!r}\n")
        (tmp_path / folder / "my_env.py").write_text(
            f"from neighbour_{folder} import where\nclass Mine: at = where\n"
        )
    monkeypatch.chdir(tmp_path)
    before, registry = list(sys.path), Registry("thing", {})
    one, two = registry.load("one/my_env.py:Mine"), registry.load(f"{tmp_path}/two/my_env.py:Mine")
    assert (one.at, two.at) == ("one", "two")
    assert registry.load(f"{tmp_path}/one/../one/my_env.py:Mine") is one
    assert sys.modules[one.__module__].Mine is one
    assert sys.path == before
    with pytest.raises(UnknownNameError, match=r"no file '.*three/my_env.py', as seen from"):
        registry.load("three/my_env.py:Mine")
    with pytest.raises(UnknownNameError, match="did you mean 'Mine'"):
        registry.load("one/my_env.py:Mien")


def test_a_file_that_fails_to_load_is_loaded_again_next_time(tmp_path):
    file = tmp_path / "late.py"
    file.write_text("raise RuntimeError('not yet')")
    with pytest.raises(RuntimeError, match="not yet"):
        Registry("thing", {}).load(f"{file}:Mine")
    file.write_text("class Mine: pass  # of another length, which the cached bytecode is told from")
    assert Registry("thing", {}).load(f"{file}:Mine").__name__ == "Mine"
