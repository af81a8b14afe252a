"""Training, measuring and loading from Julia's side, against the same from Python's."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import diffsim
from robotics_envs.julia import JuliaError, installation

ROOT = Path(__file__).parents[3]
VAN_DER_POL = ROOT / "examples" / "van_der_pol.jl"

try:
    REPORT, MISSING = installation.report(installation.find()), ""
    MISSING = "; ".join(REPORT.complaints())
except JuliaError as error:
    REPORT, MISSING = None, str(error)

pytestmark = [
    pytest.mark.julia,
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"no Julia: {MISSING}"),
]

SETTINGS = {
    "optimizer": {"name": "lbfgs"},
    "algorithm": {"name": "full_horizon", "horizon": 20, "batch": 8},
    "updates": 4,
    "evaluation": {"every": 2, "episodes": 4},
}


def run_julia(code, *arguments):
    """What a script prints in Julia, with this Python in its process."""
    found = installation.find()
    env = {
        **{k: v for k, v in os.environ.items() if not k.startswith("PYTHON_JULIACALL_")},
        "JULIA_CONDAPKG_BACKEND": "Null",
        "JULIA_PYTHONCALL_EXE": sys.executable,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
    }
    command = [
        found.executable,
        f"--project={found.project}",
        "--startup-file=no",
        *code,
        *map(str, arguments),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


SESSION = r"""
using DiffSimEnvs, PythonCall
include(ARGS[1])
settings = (
    optimizer = :lbfgs, algorithm = (name = :full_horizon, horizon = 20, batch = 8), updates = 4,
    evaluation = (every = 2, episodes = 4), quiet = true,
)
trained = train(VanDerPol; out = ARGS[2], settings...)
measured = evaluate(trained; episodes = 5, seed = 3)
policy = load_policy(ARGS[2]; checkpoint = "last")
observations = [2.0 -1.0 0.5; 0.0 1.5 -2.0]
numbers(v) = "[" * join(repr.(Float64.(vec(v))), ", ") * "]"
println("{\"loss\": ", numbers(history(trained)["loss"]), ", \"returns\": ", numbers(measured.returns),
    ", \"actions\": ", numbers(policy(observations)), ", \"one\": ", numbers(policy(observations[:, 2])), "}")
# A simulator that only this session has.
struct Drift{T} <: Simulator
    rate::T
end
DiffSimEnvs.describe(::Type{<:Drift}) = DiffSimEnvs.Description(
    state = ["position"], parameters = [DiffSimEnvs.Parameter(:rate, 1.0)], action_box = DiffSimEnvs.Box([1.0]),
    start_box = DiffSimEnvs.Box([1.0]), state_box = DiffSimEnvs.Box([2.0]), dt = 0.1, episode_steps = 20,
)
DiffSimEnvs.dynamics!(dx, x, u, p::Drift, t) = (dx[1] = p.rate * u[1])
DiffSimEnvs.cost(x, u, p::Drift) = x[1]^2
println(length(history(train(Drift; out = ARGS[3], settings...))["loss"]))
for wrong in (
    () -> train(Drift; out = ARGS[3], settings...), () -> train(Int; out = "x"), () -> train("pendulm"; out = "x"),
)
    try
        wrong()
    catch error
        println(replace(first(sprint(showerror, error), 300), r"\s+" => " "))
    end
end
"""


def test_a_julia_session_trains_measures_and_loads_like_python(tmp_path):
    printed = run_julia(["-e", SESSION], VAN_DER_POL, tmp_path / "julia", tmp_path / "drift").splitlines()
    found = json.loads(printed[0])
    run = diffsim.train(f"julia:{VAN_DER_POL}:VanDerPol", out=tmp_path / "python", quiet=True, **SETTINGS)
    assert found["loss"] == run.history()["loss"].tolist()
    # The run that Julia has made, used from Python by the name of its file.
    measured = diffsim.evaluate(tmp_path / "julia", episodes=5, seed=3)
    assert found["returns"] == list(measured.returns)
    policy = diffsim.load_policy(tmp_path / "julia", checkpoint="last")
    actions = policy(np.array([[2.0, 0.0], [-1.0, 1.5], [0.5, -2.0]]))
    assert np.allclose(found["actions"], actions.ravel(), atol=1e-6)
    assert np.allclose(found["one"], actions[1], atol=1e-6)
    assert printed[1] == "4"
    assert "already" in printed[2]
    assert "Int64 is no simulator" in printed[3]
    assert "pendulum" in printed[4]


SIMULATORS = ["pendulum", "double_pendulum", "satellite"]
SAME = {"updates": 20, "evaluation": {"every": 10, "episodes": 4}}


@pytest.mark.parametrize("backend", ["eager", "native"])
def test_a_training_has_the_bits_of_the_same_one_from_python(backend, tmp_path):
    # Julia's own sin, asinh and others stand in front of the system's in a process that Julia started.
    script = """
    using DiffSimEnvs, PythonCall
    for name in split(ARGS[2])
        train(name; out = joinpath(ARGS[1], name), updates = 20, evaluation = (every = 10, episodes = 4),
            backend = ARGS[3], quiet = true)
    end
    """
    run_julia(["-e", script], tmp_path / "julia", " ".join(SIMULATORS), backend)
    for name in SIMULATORS:
        run = diffsim.train(name, out=tmp_path / "python" / name, backend=backend, quiet=True, **SAME)
        there = diffsim.RunFile(tmp_path / "julia" / name)
        for column in ("loss", "grad_norm", "return"):
            assert np.array_equal(there.history()[column], run.history()[column], equal_nan=True)
        weights, known = (f.checkpoint("last")["policy"] for f in (there, diffsim.RunFile(run.folder)))
        assert all(torch.equal(weights[key], known[key]) for key in known)


def test_the_example_runs(tmp_path):
    printed = run_julia([ROOT / "examples" / "train_from_julia.jl"], tmp_path / "run").splitlines()
    assert np.isfinite(float(printed[-3]))
    assert "mean return" in printed[-2]
    assert len(json.loads(printed[-1].replace("f0", ""))) == 1


def test_a_file_that_trains_can_be_read_for_its_simulator(tmp_path):
    file = tmp_path / "trains.jl"
    file.write_text(VAN_DER_POL.read_text() + '\nDiffSimEnvs.train(VanDerPol; out = "never")\n')
    file.write_text("import DiffSimEnvs\n" + file.read_text())
    run = diffsim.train(f"julia:{file}:VanDerPol", out=tmp_path / "run", quiet=True, **SETTINGS)
    assert len(run.history()["loss"]) == 4
    assert not (tmp_path / "never").exists()
