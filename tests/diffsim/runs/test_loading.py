"""What a training loads before its first update, and what it does not."""

import gc
import subprocess
import sys

import pytest

from diffsim.loading import collector_paused

UNWANTED = {
    "gymnasium", "jinja2", "juliacall", "matplotlib", "mpmath", "mujoco", "networkx", "pandas", "ray",
    "robotics_envs.robots.model", "scipy", "stable_baselines3", "sympy", "tensorboard", "torch._dynamo",
    "torch._inductor", "torch.utils.cpp_extension", "torch.utils.tensorboard",
}  # fmt: skip


def loaded(code: str, folder) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


def test_a_training_without_terminal_loads_no_module_that_it_does_not_use(tmp_path):
    code = (
        "sys.argv = ['diffsim', 'train', 'pendulum', '--updates', '2', '--set', 'algorithm.batch=4', '--out', 'run']\n"
        "from diffsim.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code\n"
    )
    modules = loaded(code, tmp_path)
    assert {"torch", "h5py", "diffsim.runs.run"} <= modules
    assert not modules & (UNWANTED | {"rich"})


def test_a_command_that_is_refused_has_not_loaded_torch(tmp_path):
    code = (
        "sys.argv = ['diffsim', 'train', 'pendulum', '--updates', 'many']\n"
        "from diffsim.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert stop.code == 2\n"
    )
    modules = loaded(code, tmp_path)
    assert "click" in modules
    assert not modules & (UNWANTED | {"torch", "h5py", "numpy", "rich"})


def test_what_is_loaded_without_the_collector_is_not_collected_later():
    assert gc.isenabled()
    frozen = gc.get_freeze_count()
    try:
        with collector_paused():
            assert not gc.isenabled()
            kept = [[] for _ in range(1000)]
        assert gc.isenabled()
        assert gc.get_freeze_count() >= frozen + len(kept)
    finally:
        gc.unfreeze()


def test_a_failure_while_loading_leaves_the_collector_on():
    def fail():
        with collector_paused():
            raise ImportError

    try:
        with pytest.raises(ImportError):
            fail()
        assert gc.isenabled()
    finally:
        gc.unfreeze()


def test_a_collector_that_was_off_stays_off():
    gc.disable()
    try:
        with collector_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
