"""The constants that ``auto`` decides by are those of the measurements."""

import json
import sys
from pathlib import Path

import pytest

from diffsim.rollouts.engines import COMPILING, SAVED

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import back_end_choice  # noqa: E402

RESULTS = json.loads((ROOT / "benchmarks" / "results" / "back_end_choice.json").read_text())["results"]


def test_the_constants_are_the_fit():
    fit = back_end_choice.model(RESULTS)
    assert (fit["operation"], fit["operation of a rollout"]) == SAVED
    assert COMPILING["native"] == (fit["kernel"], fit["compiled operation"])


@pytest.mark.parametrize("name", RESULTS)
def test_auto_compiles_where_it_has_paid_within_a_factor_of_two_and_a_half(name):
    eager, cold = RESULTS[name]["eager 256"], RESULTS[name]["cold"]
    paid = cold["prepared"] / (eager["update"] - cold["update"])
    count, steps = eager["operations"], eager["intervals"]
    compiles = (COMPILING["native"][0] + COMPILING["native"][1] * count) / (
        steps * count * (SAVED[0] + SAVED[1] * 256)
    )
    assert 1 / 2.5 < compiles / paid < 2.5
