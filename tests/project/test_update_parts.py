"""benchmarks/update_parts.py times parts of a training by replacing functions of the packages."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import update_parts  # noqa: E402


@pytest.mark.parametrize("part", [*update_parts.PARTS, *update_parts.UNDIVIDED])
def test_every_function_that_is_timed_exists(part):
    for owner, name in {**update_parts.PARTS, **update_parts.UNDIVIDED}[part]:
        assert callable(getattr(owner, name)), f"{owner.__name__}.{name}"


def test_all_parts_of_a_training_are_timed():
    parts = update_parts.timed_training("pendulum", 3)
    assert {update_parts.LOADING, update_parts.PREPARING, update_parts.FILE, "critic's fit"} <= set(parts)
    assert all(seconds > 0 for seconds in parts.values())
