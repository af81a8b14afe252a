"""What was measured of the CUDA kernels covers all simulators and architectures."""

import json
from pathlib import Path

from robotics_envs import ENVIRONMENTS

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "cuda_resources.json"


def test_all_simulators_are_compiled_for_all_architectures():
    measured = json.loads(RESULTS.read_text())
    assert {name for name in ENVIRONMENTS if not name.startswith("julia:")} <= set(measured)
    for entry in measured.values():
        assert set(entry["architectures"]) == {"sm_80", "sm_90", "sm_100"}
        assert all("kernels" in found for found in entry["architectures"].values())
