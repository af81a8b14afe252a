"""How often the 95% intervals of a comparison contain the true value, over synthetic experiments.

    python benchmarks/interval_coverage.py

For 10 and 5 seeds, 1 and 6 tasks, and scores from a normal, an exponential and a bimodal distribution: the share
of 2,000 experiments whose interval holds the true interquartile mean, mean, and probability of improvement.
Reports quote the file that this writes, ``diffsim/comparison/interval_coverage.json``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
from scipy import integrate, optimize, stats

from diffsim.comparison import statistics
from diffsim.runs import provenance

TARGET = Path(statistics.__file__).with_name("interval_coverage.json")
SEEDS, TASKS = (10, 5), (1, 6)
EXPERIMENTS, RESAMPLES = 2000, 1000
TOGETHER = 100
"""Experiments that share the places which are resampled; their scores are independent."""

_LOW, _HIGH, _SPREAD, _SHARE = 0.0, 1.0, 0.15, 0.7
"""The bimodal distribution: seven of ten runs learn, the others do not."""


def _bimodal(rng: np.random.Generator, size: int) -> np.ndarray:
    learnt = rng.random(size) < _SHARE
    return np.where(learnt, _HIGH, _LOW) + _SPREAD * rng.normal(size=size)


def _bimodal_quantile(p: float) -> float:
    def excess(x: float) -> float:
        above, below = stats.norm.cdf(x, _HIGH, _SPREAD), stats.norm.cdf(x, _LOW, _SPREAD)
        return float(_SHARE * above + (1 - _SHARE) * below - p)

    return float(optimize.brentq(excess, -5, 6))


Draw = Callable[[np.random.Generator, int], np.ndarray]
DISTRIBUTIONS: dict[str, tuple[Draw, Callable[[float], float], float]] = {
    "normal": (lambda rng, n: rng.normal(size=n), lambda p: float(stats.norm.ppf(p)), 0.0),
    "exponential": (lambda rng, n: rng.exponential(size=n), lambda p: -math.log1p(-p), 1.0),
    "bimodal": (_bimodal, _bimodal_quantile, _SHARE),
}
"""Of each a sampler, its quantile function and its mean."""


def true_interquartile_mean(quantile: Callable[[float], float]) -> float:
    """Mean of the middle half of a distribution: 2 ∫ quantile(p) dp from 1/4 to 3/4."""
    return 2 * float(integrate.quad(quantile, 0.25, 0.75, limit=200)[0])


def coverage(
    name: str, seeds: int, tasks: int, experiments: int = EXPERIMENTS, resamples: int = RESAMPLES
) -> dict[str, dict[str, float]]:
    """Shares of experiments whose interval contains the true value, by statistic: as reported, and not widened."""
    draw, quantile, true_mean = DISTRIBUTIONS[name]
    truth = {"interquartile_mean": true_interquartile_mean(quantile), "mean": true_mean, "improvement": 0.5}
    hits = {kind: dict.fromkeys(truth, 0) for kind in ("widened", "not_widened")}
    rng = np.random.default_rng([seeds, tasks, list(DISTRIBUTIONS).index(name)])
    for first in range(0, experiments, TOGETHER):
        count = min(TOGETHER, experiments - first)
        x, y = ([draw(rng, count * seeds).reshape(count, seeds) for _ in range(tasks)] for _ in range(2))
        samples: dict[str, tuple[Any, list[np.ndarray]]] = {
            "interquartile_mean": (statistics.interquartile_mean, x),
            "mean": (statistics.mean, x),
            "improvement": (statistics.mean_superiority, [*x, *y]),
        }
        for key, (statistic, drawn) in samples.items():
            ends = statistics.bootstrap_ends(statistic, drawn, first, resamples=resamples, widen=False)
            hits["not_widened"][key] += _inside(truth[key], *ends)
            low, high = (statistics.widened(end, statistic, drawn) for end in ends)
            if key == "improvement":
                pairs = zip(_by_experiment(x), _by_experiment(y), strict=True)
                newcombe = np.transpose([statistics.newcombe_mean(*pair) for pair in pairs])
                low, high = np.minimum(low, newcombe[0]), np.maximum(high, newcombe[1])
            hits["widened"][key] += _inside(truth[key], low, high)
    return {kind: {key: n / experiments for key, n in counted.items()} for kind, counted in hits.items()}


def _inside(truth: float, low: np.ndarray, high: np.ndarray) -> int:
    return int(((low <= truth) & (truth <= high)).sum())


def _by_experiment(samples: list[np.ndarray]) -> list[list[np.ndarray]]:
    return [[task[number] for task in samples] for number in range(len(samples[0]))]


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=TARGET, show_default=True)
@click.option("--experiments", default=EXPERIMENTS, show_default=True)
def main(out: Path, experiments: int) -> None:
    rows: list[dict[str, Any]] = []
    for seeds in SEEDS:
        for tasks in TASKS:
            for name in DISTRIBUTIONS:
                row: dict[str, Any] = {"distribution": name, "seeds": seeds, "tasks": tasks}
                row |= coverage(name, seeds, tasks, experiments)
                click.echo(row)
                rows.append(row)
    facts = provenance.describe("cpu")
    kept = ("created", "python", "version_numpy", "version_scipy", "git_revision")
    result = {
        "program": "benchmarks/interval_coverage.py",
        "confidence": statistics.CONFIDENCE,
        "experiments": experiments,
        "resamples": RESAMPLES,
        "machine": {key: facts[key] for key in kept},
        "rows": rows,
    }
    out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
