"""The table of what CUDA kernels take, in docs/gpu.md."""

import json
import re
import subprocess
import sys
from pathlib import Path

from robotics_envs import ENVIRONMENTS

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "cuda_resources.json"


def test_the_table_is_the_measured_one():
    (stated,) = re.findall(
        r"<!-- cuda_resources -->\n(.*?)\n<!-- -->", (ROOT / "docs" / "gpu.md").read_text(), re.S
    )
    printed = subprocess.run(
        [sys.executable, "benchmarks/cuda_resources.py", "--table", str(RESULTS)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert printed.stdout.strip() == stated


def test_all_simulators_are_compiled_for_all_architectures():
    measured = json.loads(RESULTS.read_text())
    assert {name for name in ENVIRONMENTS if not name.startswith("julia:")} <= set(measured)
    for entry in measured.values():
        assert set(entry["architectures"]) == {"sm_80", "sm_90", "sm_100"}
        assert all("kernels" in found for found in entry["architectures"].values())
