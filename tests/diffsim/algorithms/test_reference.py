"""``short_window`` against examples/short_window_reference.py, which states it in one file of plain torch."""

import ast
from pathlib import Path

import pytest
import torch

import diffsim
from lazy_registry.user_files import load_file

REFERENCE = Path(__file__).parents[3] / "examples" / "short_window_reference.py"


@pytest.mark.parametrize(("simulator", "updates"), [("pendulum", 6), ("quadrotor", 4)])
def test_the_reference_trains_to_the_same_bits(simulator, updates, tmp_path):
    *expected, mean, scale, losses = load_file(REFERENCE).train(simulator, updates, seed=3)
    run = diffsim.train(
        simulator,
        tmp_path / "run",
        updates=updates,
        seed=3,
        algorithm="short_window",
        backend="eager",
        evaluation={"episodes": 2},
        quiet=True,
    )
    state = run.checkpoint()
    assert run.history()["loss"].tolist() == losses
    assert len(set(losses)) == updates
    policy = {
        name.removeprefix("network."): value
        for name, value in state["policy"].items()
        if name.startswith("network.")
    }
    networks = (policy, state["critic"]["network"], state["critic"]["target"])
    for ours, theirs in zip(networks, expected, strict=True):
        assert list(ours) == list(theirs.state_dict())
        assert all(map(torch.equal, ours.values(), theirs.state_dict().values()))
    assert torch.equal(state["critic"]["mean"], mean)
    assert torch.equal(state["critic"]["scale"], scale)


def test_the_reference_imports_the_simulators_and_torch_only():
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).partition(".")[0]
        for node in ast.walk(ast.parse(REFERENCE.read_text()))
        if isinstance(node, (ast.Import, ast.ImportFrom))
    }
    assert imported <= {"copy", "sys", "typing", "torch", "robotics_envs"}
