"""Simulators from models that Julia's packages have already: problems of SciML and systems of ModelingToolkit."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import diffsim
from robotics_envs import check_env, make_env
from robotics_envs.julia import JuliaError, installation

ROOT = Path(__file__).parents[3]
SPRING_CHAIN = ROOT / "examples" / "spring_chain.jl"

try:
    REPORT, MISSING = installation.report(installation.find()), ""
    MISSING = "; ".join(REPORT.complaints())
except JuliaError as error:
    REPORT, MISSING = None, str(error)

pytestmark = [pytest.mark.julia, pytest.mark.skipif(bool(MISSING), reason=f"no Julia: {MISSING}")]

LEVEL = """
using DiffSimEnvs
using DiffSimEnvs.SciMLBase: ODEProblem

fill!(dx, x, p, t) = (dx[1] = p.inflow - p.leak * x[1]; nothing)
problem = ODEProblem(fill!, [0.0], (0.0, 1.0), (inflow = 0.0, leak = 0.5))
const Level = simulator(
    problem; name = :Level, state = ["level"], inputs = [:inflow => (-1.0, 1.0)], parameters = [:leak => :leak],
    cost = (x, p, t) -> (x[1] - 1)^2, dt = 0.2, episode_steps = 20, box = Box([-1.0], [2.0]),
)
"""


def test_a_problem_of_sciml_is_an_environment(tmp_path):
    file = tmp_path / "level.jl"
    file.write_text(LEVEL)
    env = make_env(f"julia:{file}:Level")
    check_env(env)
    assert (env.state_names, [q.name for q in env.parameters]) == (("level",), ["leak"])
    x = torch.tensor([[0.3], [1.2]], dtype=torch.float64, requires_grad=True)
    u, p = torch.full((2, 1), 0.7, dtype=torch.float64), env.params(x)
    p["leak"].requires_grad_()
    following, cost = env.step(x, u, p)
    decay = torch.exp(-p["leak"] * 0.2)
    expected = x * decay + 0.7 / p["leak"] * (1 - decay)
    assert torch.allclose(following, expected, atol=1e-8)
    assert torch.allclose(cost, (x.squeeze(-1) - 1) ** 2)
    ours = torch.autograd.grad(following.sum(), [x, p["leak"]], retain_graph=True)
    assert all(map(torch.allclose, ours, torch.autograd.grad(expected.sum(), [x, p["leak"]])))
    settings = {"updates": 20, "algorithm": {"batch": 16, "window": 4}, "evaluation": {"episodes": 4}}
    run = diffsim.train(f"julia:{file}:Level", out=tmp_path / "run", quiet=True, **settings)
    # To a level of 1 from 0: the fastest way costs 2.5, an inflow of 0 costs 20.
    assert run.history()["return"][-1] > -4.0
    with pytest.raises(JuliaError, match="is a ODEProblem, no simulator"):
        make_env(f"julia:{file}:problem")


@pytest.mark.slow
def test_a_system_of_modelingtoolkit_trains(tmp_path):
    command = [
        sys.executable,
        "-m",
        "diffsim",
        "train",
        f"julia:{SPRING_CHAIN}:SpringChain",
        "--out",
        tmp_path / "run",
    ]
    command += ["--updates", "100", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True)
    if "Package ModelingToolkit" in done.stderr:
        pytest.skip("no ModelingToolkit in the project that Julia uses")
    assert done.returncode == 0, done.stderr[-3000:]
    history = diffsim.RunFile(tmp_path / "run").history()
    assert np.isfinite(history["loss"]).all()
    # Left alone it costs 13.
    assert history["return"][-1] > -1.0
