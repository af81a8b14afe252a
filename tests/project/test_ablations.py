"""The ablations of the default algorithm: their settings and their verdicts."""

import json
import sys
from pathlib import Path

import pytest

from diffsim.assembly import assemble
from diffsim.config import load_config, merge, parse_assignment

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import ablations  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "ablations.json"


def settings_of(part):
    return merge({"env": "pendulum", "backend": "eager"}, *map(parse_assignment, ablations.PARTS[part]))


@pytest.mark.parametrize("part", [part for part in ablations.PARTS if part != ablations.WITH])
def test_each_part_is_switched_off_by_options_of_the_default_that_differ_from_it(part):
    default = assemble(load_config(settings_of(ablations.WITH))).algorithm.settings
    without = assemble(load_config(settings_of(part))).algorithm.settings
    asked = settings_of(part)["algorithm"]
    changed = {
        name for name in type(default).model_fields if getattr(default, name) != getattr(without, name)
    }
    assert changed == set(asked)


def run(part, seed, mean, success, successes=64):
    best = {"mean": mean, "successes": successes}
    curve = [[50, 1.0, mean, success], [100, 2.0, mean, success]]
    return {"part": part, "simulator": "tug", "seed": seed, "best": best, "needed": 60, "curve": curve}


def test_a_part_without_which_all_runs_are_worse_matters():
    with_it = [run(ablations.WITH, seed, -10.0 - seed / 10, 0.9) for seed in range(5)]
    without = [run("starts between", seed, -20.0 - seed / 10, 0.9, successes=0) for seed in range(5)]
    (row,) = ablations.table(with_it + without).splitlines()[2:]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:3] == ["starts between", "0 of 5", "5"]
    assert cells[3].startswith("1.00 (")
    assert cells[4] == "matters"
    # All runs succeed from the same share of starts: neither is better.
    assert cells[5].startswith("0.50 (")
    assert cells[6] == "not measurable"


def test_only_seeds_that_were_run_with_the_part_and_without_it_are_compared():
    runs = [
        run(ablations.WITH, 0, -10.0, 0.9),
        run(ablations.WITH, 1, -10.0, 0.9),
        run("starts between", 1, -5.0, 1.0),
    ]
    (row,) = ablations.table(runs).splitlines()[2:]
    assert "| 1 of 1 | 1 | 0.00 |" in row
    assert row.count("not measurable") == 2


def test_a_run_that_failed_is_worse_than_any_other():
    failed = {"part": "starts between", "simulator": "tug", "seed": 0, "error": "ended by a signal"}
    assert ablations.measures(failed) < ablations.measures(run(ablations.WITH, 0, -1e30, 0.0))


def test_runs_were_made_with_the_settings_that_the_parts_have_now():
    runs = json.loads(RESULTS.read_text())["runs"]
    assert {one["part"] for one in runs} <= set(ablations.PARTS)
    assert {one["simulator"] for one in runs} <= set(ablations.SIMULATORS)
    assert len({(one["part"], one["simulator"], one["seed"]) for one in runs}) == len(runs)
