"""The setting for few environment steps: what examples/few_steps.toml asks for, and what was measured with it."""

import json
from pathlib import Path

import pytest

from diffsim.assembly import assemble
from diffsim.config import load_config, merge, parse_assignment, read_toml

ROOT = Path(__file__).parents[2]
FILE = ROOT / "examples" / "few_steps.toml"
RESULTS = ROOT / "benchmarks" / "results" / "few_steps.json"


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


def test_what_was_measured_was_measured_with_the_file():
    asked = read_toml(FILE)
    for runs in json.loads(RESULTS.read_text())["results"].values():
        for run in runs:
            made = merge({"algorithm": {"name": "value_gradient"}}, *map(parse_assignment, run["settings"]))
            # Some runs are longer; everything else is the file's.
            assert made == merge(asked, {"updates": made["updates"]})
            steps = asked["algorithm"]["batch"] * asked["algorithm"]["window"] * made["updates"]
            assert "error" in run or run["env_steps"] <= steps
