"""Makes ``rliable_fixtures.json``: numbers of rliable 1.2, in an environment of its own.

    PYTHONPATH=SOMEWHERE python tests/diffsim/comparison/make_rliable_fixtures.py

SOMEWHERE holds rliable 1.2.0 with pandas below 3 and arch below 8.  It cannot be installed beside pandas 3, and is no
dependency of the tests.
"""

import json
from importlib import metadata
from pathlib import Path

import numpy as np
from rliable import library, metrics


def case(x: np.ndarray, y: np.ndarray, taus: np.ndarray) -> dict[str, object]:
    """Scores ``[runs, tasks]`` of two contenders and what rliable says of them."""
    profile = library.create_performance_profile({"x": x}, taus, reps=10)[0]["x"]
    return {
        "x": x.tolist(),
        "y": y.tolist(),
        "taus": taus.tolist(),
        "mean": metrics.aggregate_mean(x),
        "interquartile_mean": metrics.aggregate_iqm(x),
        "optimality_gap": metrics.aggregate_optimality_gap(x),
        "profile": profile.tolist(),
        "probability_of_improvement": metrics.probability_of_improvement(x, y),
    }


def cases() -> dict[str, dict[str, object]]:
    rng = np.random.default_rng(2021)
    taus = np.linspace(-0.5, 1.5, 9)
    # The arrays of rliable's own test.
    own = np.array([[1.0, 2], [2, 2], [1, 1], [2, 1]]), np.array([[1.0, 1], [2, 2], [3, 3]])
    return {
        "rliable's own test": case(*own, np.array([0.0, 1, 1.5, 2])),
        "normal, 10 runs, 6 tasks": case(rng.normal(0.7, 0.3, (10, 6)), rng.normal(0.5, 0.3, (10, 6)), taus),
        "exponential, 10 and 7 runs, 1 task": case(
            rng.exponential(1, (10, 1)), rng.exponential(1, (7, 1)), taus
        ),
        "ties, 5 runs, 3 tasks": case(
            rng.integers(0, 3, (5, 3)) / 2, rng.integers(0, 3, (5, 3)) / 2, np.array([0.0, 0.5, 1.0])
        ),
        "apart, 8 runs, 2 tasks": case(rng.uniform(0.9, 1, (8, 2)), rng.uniform(0, 0.1, (8, 2)), taus),
        "equal, 4 runs, 1 task": case(np.ones((4, 1)), np.ones((4, 1)), np.array([0.0, 1.0])),
    }


if __name__ == "__main__":
    packages = ("rliable", "arch", "numpy", "pandas", "scipy")
    made = {
        "provenance": {
            "program": Path(__file__).name,
            **{name: metadata.version(name) for name in packages},
        },
        "cases": cases(),
    }
    target = Path(__file__).with_name("rliable_fixtures.json")
    target.write_text(json.dumps(made, indent=1) + "\n")
