"""The GPU checks, as far as a CPU can run them: every part at small sizes, what is missing, and the sentence."""

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import time
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

from diffsim.config import PolicyConfig, tomllib
from diffsim.optimizers import make_optimizer
from diffsim.optimizers.objective import Vector
from diffsim.policy import make_policy
from diffsim.rollouts import Noise, Rollout
from robotics_envs import ENVIRONMENTS

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.py"

# The script's own folder, from which it imports its parts.
sys.path.insert(0, str(SCRIPT.parent))
requirements = importlib.import_module("gpu_parts.requirements")
report = importlib.import_module("gpu_parts.report")


def run(*arguments, flags=(), **environment):
    """The script's exit status and output, with no GPU in sight."""
    command = [sys.executable, *flags, str(SCRIPT), *map(str, arguments)]
    variables = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=550, check=False)
    return done.returncode, done.stdout, done.stderr


# The whole script ---------------------------------------------------------------------------------


def test_every_part_runs_on_the_cpu(tmp_path):
    out = tmp_path / "gpu.json"
    status, printed, errors = run("--device", "cpu", "--quick", "--seconds", 500, "--out", out)
    assert status == 0, printed + errors
    parts = json.loads(out.read_text())["parts"]
    assert list(parts) == [
        "kernels", "speed", "robots", "crossing", "training", "seeds", "synchronization", "graphs", "rollouts", "solve",
    ]  # fmt: skip
    for part in parts.values():
        states = {name: case["state"] for name, case in part["cases"].items()}
        assert "passed" in list(states.values())[1:]  # the first is the import
        assert "failed" not in states.values(), states
    for env in ("cartpole", "quadrotor"):
        for contestant in ("cuda_graph", "eager", "loop"):
            assert parts["speed"]["cases"][f"{env} {contestant} 64"]["steps per second"] > 0
            assert f"| {contestant} |" in printed
    status, table, _ = run("--table", out)
    assert status == 0
    assert table.strip() in printed


def test_without_a_gpu_it_says_what_it_needs():
    status, printed, errors = run()
    assert (status, errors) == (0, "")
    assert printed.count("\n") == 1
    assert "no CUDA device" in printed
    assert "NVIDIA GPU" in printed


def test_without_torch_it_says_so():
    status, printed, errors = run(flags=["-S"])
    assert (status, errors) == (0, "")
    assert "has no torch" in printed
    assert printed.count("\n") == 1


# What is missing ----------------------------------------------------------------------------------


def bare(tmp_path):
    """An environment for a Python that has nothing but packaging, and that not as a distribution."""
    found = importlib.util.find_spec("packaging")
    assert found is not None
    assert found.origin is not None
    (tmp_path / "packaging").symlink_to(Path(found.origin).parent)
    return {"flags": ["-S"], "PYTHONPATH": str(tmp_path)}


def test_the_requirements_are_the_projects_own(tmp_path):
    status, printed, errors = run("--requirements", **bare(tmp_path))
    assert status == 1, errors
    listed = {
        Requirement(line).name for line in printed.splitlines() if line.startswith("  ") and ">=" in line
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [Requirement(text) for text in project["dependencies"]]
    needed = {r.name for r in declared if r.marker is None or r.marker.evaluate()}
    assert listed == needed - {"torch", "juliacall", "juliapkg"}
    assert "make gpu-wheels" in printed


def test_nothing_is_missing_where_the_project_is_installed():
    status, printed, _ = run("--requirements")
    assert status == 0
    assert "has everything" in printed


@pytest.mark.parametrize(
    ("text", "gap"),
    [
        ("numpy>=1", None),
        ("numpy>=999", ("numpy", "numpy>=999", metadata.version("numpy"))),
        ("no-such.Thing>=2", ("no-such-thing", "no-such.Thing>=2", "")),
        ("torch>=999", None),  # the machine's own, never judged
    ],
)
def test_gaps(text, gap):
    assert requirements.gaps([Requirement(text)]) == ([] if gap is None else [gap])


def test_what_a_requirement_requires_is_looked_at_too(tmp_path, monkeypatch):
    installed(
        tmp_path, "outer", "1.0", "inner>=2", "unneeded; python_version < '3'", "extra-only; extra == 'x'"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert [gap.requirement for gap in requirements.gaps([Requirement("outer")])] == ["inner>=2"]
    installed(tmp_path, "inner", "1.0")
    assert [gap.found for gap in requirements.gaps([Requirement("outer")])] == ["1.0"]
    installed(tmp_path, "inner", "2.1")
    assert requirements.gaps([Requirement("outer")]) == []


def installed(folder, name, version, *requires):
    for old in folder.glob(f"{name}-*.dist-info/METADATA"):
        old.unlink()
        old.parent.rmdir()
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(described(name, version, *requires))


def described(name, version, *requires):
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    return "\n".join([*lines, *(f"Requires-Dist: {text}" for text in requires)]) + "\n"


def wheel(folder, name, version, *requires):
    """A wheel with one module, ``name``, that holds its version."""
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}.py", f"version = {version!r}\n")
        archive.writestr(f"{info}/METADATA", described(name, version, *requires))
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


def test_wheels_bring_what_is_missing_and_nothing_else(tmp_path, monkeypatch):
    wheels, target = tmp_path / "wheels", tmp_path / "installed"
    wheels.mkdir()
    wheel(wheels, "carried_outer", "1.5", "carried-inner>=2")
    wheel(wheels, "carried_inner", "2.0")
    wheel(wheels, "never_wanted", "1.0")
    wheel(wheels, "pytest", "0.1")  # older than the one that is here, which is good enough
    monkeypatch.setattr(
        requirements, "declared", lambda: [Requirement("carried_outer>=1"), Requirement("pytest>=8")]
    )
    monkeypatch.setattr(sys, "path", sys.path[:])
    requirements.install(wheels, target)
    assert requirements.gaps(requirements.declared()) == []
    assert {path.stem for path in target.glob("*.py")} == {"carried_outer", "carried_inner"}


# The report ---------------------------------------------------------------------------------------


def test_a_failure_is_kept_and_the_others_are_run():
    saved = []
    part = report.Report(time.monotonic() + 60.0, lambda: saved.append(len(part.cases)))

    def fails():
        raise ValueError("what went wrong")

    def skips():
        raise report.SkippedError("needs something")

    part.case("bad", fails)
    part.case("left out", skips)
    part.case("good", lambda: {"figure": 3})
    part.case("long", lambda: None, needs=1000.0)
    states = [case["state"] for case in part.cases.values()]
    assert states == ["failed", "skipped: needs something", "passed", report.OUT_OF_TIME]
    assert "what went wrong" in part.cases["bad"]["error"]
    assert "in fails" in part.cases["bad"]["traceback"]
    assert part.cases["good"]["figure"] == 3
    assert saved == [1, 2, 3, 4]


def test_a_wrong_number_or_a_nan_does_not_agree():
    one, close, nan = torch.ones(3), torch.ones(3) * (1 + 1e-5), torch.full((3,), torch.nan)
    assert report.agree({"x": close}, {"x": one}, 1e-4)["largest error"] == pytest.approx(1e-5, rel=0.02)
    for wrong in ({"x": close + 1}, {"x": nan}, {"x": one[:2]}):
        with pytest.raises(AssertionError):
            report.agree(wrong, {"x": one}, 1e-4)


def test_results_are_replaced_whole(tmp_path):
    out = tmp_path / "new" / "gpu.json"
    report.write({"a": 1}, out)
    report.write({"a": 2}, out)
    assert json.loads(out.read_text()) == {"a": 2}
    assert list(out.parent.iterdir()) == [out]


# What would go wrong on a GPU, seen on the CPU ----------------------------------------------------


@pytest.fixture
def no_numbers_of_the_host(monkeypatch):
    """From when it is called on, making a tensor from Python's numbers raises.

    In a step it would be a copy to the GPU at every control interval, which the host waits for.
    """

    def made(*arguments, **options):
        raise AssertionError("a tensor is made from numbers of the host in every step")

    def forbid():
        for owner, method in ((torch, "tensor"), (torch, "as_tensor"), (torch.Tensor, "new_tensor")):
            monkeypatch.setattr(owner, method, made)

    return forbid


def on_meta(name):
    """A simulator, an untrained policy and states on a device without numbers: what reads one back raises."""
    env = ENVIRONMENTS.load(name)()
    env.substeps = 1  # all alike
    policy = make_policy(PolicyConfig(), env, 0, torch.device("cpu"), torch.float32).to("meta")
    return env, policy, torch.zeros(4, len(env.state_names), device="meta", requires_grad=True)


@pytest.mark.parametrize(
    "name", [*(name for name in ENVIRONMENTS if not name.startswith("julia:")), "examples.cartpole:CartPole"]
)
def test_a_step_stays_on_its_device(name, no_numbers_of_the_host):
    env, policy, x0 = on_meta(name)
    p = env.params(x0)

    def step():
        following, cost = env.step(x0, policy(env.observe(x0)), p)
        return following, cost, env.done(following)

    with torch.no_grad():
        step()  # constants are made once
    no_numbers_of_the_host()
    following, cost, done = step()
    assert {q.device.type for q in (following, cost, done)} == {"meta"}
    gradients = torch.autograd.grad(following.sum() + cost.sum(), [x0, *policy.parameters()])
    assert {g.device.type for g in gradients} == {"meta"}


def test_a_rollout_stays_on_its_device(no_numbers_of_the_host):
    env, policy, x0 = on_meta("pendulum")
    rollout, p, noise = Rollout(env, policy, backend="eager"), env.params(x0), Noise(1, 0.1)
    rollout(x0, 1, p, noise=noise)  # constants are made once
    no_numbers_of_the_host()
    trajectory = rollout(x0, 3, p, noise=noise)
    (trajectory.costs.sum() + trajectory.last.sum()).backward()
    assert all(q.grad is not None and q.grad.device.type == "meta" for q in (x0, *policy.parameters()))


@pytest.mark.parametrize(
    ("name", "fused"), [("adam", True), ("adamw", True), ("sgd", True), ("adagrad", None)]
)
def test_fused_kernels_are_asked_for_where_every_supported_torch_has_them(name, fused, monkeypatch):
    q = torch.nn.Parameter(torch.ones(2))
    assert make_optimizer([q], name).inner.defaults["fused"] is True
    monkeypatch.setattr(
        Vector,
        "device",
        property(lambda self: torch.device("cuda"), lambda self, device: None),
        raising=False,
    )
    monkeypatch.setattr(Vector, "read", lambda self, device=None: torch.ones(2, dtype=torch.float64))
    assert make_optimizer([q], name).inner.defaults["fused"] is fused
