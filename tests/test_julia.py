"""The Julia simulators against the Python ones, where there is a Julia."""

import json
import shutil
import subprocess

import numpy as np
import pytest
import torch

from robotics_envs import julia_sources, make_env

JULIA = shutil.which("julia")
needs_julia = pytest.mark.skipif(JULIA is None, reason="no julia on the PATH")


@needs_julia
def test_the_julia_pendulum_steps_as_the_python_one():
    rng = np.random.default_rng(0)
    states, actions = rng.uniform([-10, -8], [10, 8], (200, 2)), rng.uniform(-3, 3, (200, 1))
    program = """
        using RoboticsEnvs
        p = Pendulum(g = 9.0, m = 1.2, l = 0.8)
        for line in eachline(stdin)
            v = parse.(Float64, split(line))
            x, c = advance(p, v[1:2], v[3:3])
            println("[", join([x; c; observe(p, x)], ", "), "]")
        end
    """
    lines = "\n".join(" ".join(map(repr, map(float, row))) for row in np.hstack((states, actions)))
    done = subprocess.run(
        [JULIA, "--startup-file=no", f"--project={julia_sources()}", "-e", program],
        input=lines, capture_output=True, text=True, check=True,
    )  # fmt: skip
    julia = np.array([json.loads(line) for line in done.stdout.splitlines()])
    env = make_env("pendulum", g=9.0, m=1.2, l=0.8)
    x = torch.from_numpy(states)
    following, cost = env.step(x, torch.from_numpy(actions), env.params(x))
    ours = torch.cat((following, cost.unsqueeze(-1), env.observe(following)), dim=-1).numpy()
    assert julia.shape == ours.shape
    assert np.abs(julia - ours).max() < 1e-12


def test_the_julia_package_is_named_as_its_module():
    project = (julia_sources() / "Project.toml").read_text()
    assert 'name = "RoboticsEnvs"' in project
    assert "module RoboticsEnvs" in (julia_sources() / "src" / "RoboticsEnvs.jl").read_text()
