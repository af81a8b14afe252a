"""The setting for few environment steps: what examples/few_steps.toml asks for, and what was measured with it."""

import json
from pathlib import Path

import pytest

from diffsim.assembly import assemble
from diffsim.config import load_config, merge, parse_assignment, read_toml
from robotics_envs import make_env

ROOT = Path(__file__).parents[2]
FILE = ROOT / "examples" / "few_steps.toml"
RESULTS = ROOT / "benchmarks" / "results" / "few_steps.json"
CRITIC = ("critic_windows", "critic_windows_end")


@pytest.mark.parametrize("name", ["pendulum", "quadrotor"])
def test_an_update_takes_as_many_steps_as_stated(name):
    values = merge(read_toml(FILE), {"env": name, "backend": "eager"})
    algorithm = assemble(load_config(values)).algorithm
    asked = values["algorithm"]
    steps = [algorithm.step().env_steps for _ in range(3)]
    assert max(steps) <= asked["batch"] * asked["window"]
    assert f"{asked['batch'] * asked['window']} steps an update" in FILE.read_text()


def test_a_run_of_the_files_length_takes_at_most_40_000_steps():
    values = read_toml(FILE)
    asked = values["algorithm"]
    # Windows may become shorter than asked, never longer, and nothing lengthens the run.
    assert asked["window"] == asked["window_end"]
    assert values["doublings"] == 0
    assert asked["batch"] * asked["window"] * values["updates"] <= 40_000


def test_what_was_measured_was_measured_with_the_file_and_its_rules():
    asked = read_toml(FILE)
    states = [
        asked["algorithm"]["batch"] * asked["algorithm"]["window"] * asked["algorithm"][key] for key in CRITIC
    ]
    for name, runs in json.loads(RESULTS.read_text())["results"].items():
        for run in runs:
            made = merge({"algorithm": {"name": "value_gradient"}}, *map(parse_assignment, run["settings"]))
            own = made["algorithm"]
            steps = own["batch"] * own["window"]
            if name == "pendulum":
                assert made == asked
            # Elsewhere windows and batches follow from the interval and the budget, the rest is the file's.
            assert own["window"] == own["window_end"]
            assert 0.075 <= own["window"] * make_env(name).dt <= 0.125
            assert [steps * own[key] for key in CRITIC] == states
            assert {**made, "algorithm": {}} == {**asked, "updates": made["updates"], "algorithm": {}}
            assert "error" in run or run["env_steps"] <= steps * made["updates"]


def test_the_aims_are_met_by_every_seed():
    results = json.loads(RESULTS.read_text())["results"]
    assert (
        [run["seed"] for run in results["pendulum"]]
        == [run["seed"] for run in results["quadrotor"]]
        == [*range(5)]
    )
    assert all(run["twin"] >= -165 and run["env_steps"] <= 40_000 for run in results["pendulum"])
    assert all(run["best"]["successes"] == 64 and run["env_steps"] <= 300_000 for run in results["quadrotor"])
