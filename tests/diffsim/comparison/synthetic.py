"""Comparisons of made-up runs, for tests and for looking at a report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from diffsim.comparison import (
    Comparison,
    Contender,
    Curve,
    Limits,
    Overheads,
    Protocol,
    Record,
    Task,
    Threshold,
    record_path,
    write_comparison,
    write_record,
)

PROTOCOL = Protocol("simulator", 100, 1000, "the task's reset")
VERSIONS = {"versions": {"torch": "2.13.0", "numpy": "2.4.6"}, "hardware": "x86_64, 2 cores", "threads": 1}


def rising(
    seconds: float,
    final: float,
    start: float,
    rate: float,
    points: int = 30,
    noise: float = 0.0,
    seed: int = 0,
) -> Curve:
    """A score that rises from ``start`` to ``final`` with the time constant ``1 / rate``."""
    x = np.linspace(0, seconds, points)
    y = final + (start - final) * np.exp(-rate * x) + noise * np.random.default_rng(seed).normal(size=points)
    return Curve(x * 1000, x, 1.3 * x, x * 50, y, np.clip((y - start) / ((final - start) or 1.0), 0, 1))


def run(
    task: str, contender: str, seed: int, curve: Curve, status: str = "finished", **others: object
) -> Record:
    error = {"crashed": "ValueError: no", "diverged": "NaN in update 7"}.get(status, "")
    facts = {
        "protocol": PROTOCOL,
        "error": error,
        "provenance": {**VERSIONS, "load": 1.0 + seed / 10},
        **others,
    }
    return Record(task, contender, seed, status, curve, **facts)  # type: ignore[arg-type]


def write(folder: Path, comparison: Comparison) -> Path:
    """A comparison as files."""
    write_comparison(folder, comparison)
    for record in comparison.records:
        write_record(record_path(folder, *record.key), record)
    return folder


CONTENDERS: Mapping[str, Contender] = {
    "diffsim": Contender(
        "reference", "short-window policy gradients, defaults untouched", "this repository",
        "the authors of diffsim", "40 trials of 60 CPU s on seeds 100 to 102",
    ),
    "PPO (Zoo)": Contender("black box", "Stable-Baselines3", "RL Zoo, hyperparams/ppo.yml", "the RL Zoo", "none by us"),
    "PPO wide": Contender(
        "black box", "64 environments, 50 steps", "ours", "the authors of diffsim",
        "40 trials of 60 CPU s on seeds 100 to 102",
    ),
    "SAC": Contender("black box", "Stable-Baselines3", "RL Zoo, hyperparams/sac.yml", "the RL Zoo", "none by us"),
    "CMA-ES": Contender("gradient-free", "on the reference's policy", "this repository", "nobody", "none"),
    "PPO, our network": Contender("ablation", "PPO with the reference's network and normalization", "ours"),
}  # fmt: skip
RATES = {
    "diffsim": 0.4,
    "PPO (Zoo)": 0.05,
    "PPO wide": 0.25,
    "SAC": 0.03,
    "CMA-ES": 0.06,
    "PPO, our network": 0.1,
}
TASKS = {
    "pendulum": (-1280.0, -150.0, -170.0),
    "cartpole_swingup": (0.0, 870.0, 700.0),
    "quadrotor": (-700000.0, -48.0, -60.0),
    "reacher": (-10.7, -3.4, -4.5),
    "Hopper-v5": (20.0, 3750.0, 1500.0),
    "HalfCheetah-v5": (0.0, 12000.0, 3000.0),
}


def six_tasks(seeds: int = 10, points: int = 60) -> Comparison:
    """Six tasks and six contenders; the reference loses on one task, some runs fail."""
    tasks = {
        name: Task(Threshold(threshold, "fixed before the runs"), Limits(zero, one, "made up"), f"the {name}")
        for name, (zero, one, threshold) in TASKS.items()
    }
    records = []
    rng = np.random.default_rng(5)
    for name, (zero, one, _) in TASKS.items():
        for contender, rate in RATES.items():
            for seed in range(seeds):
                fast = rate * np.exp(0.35 * rng.normal())
                if name == "Hopper-v5":
                    fast = 0.35 - fast if contender in ("SAC", "diffsim") else fast
                final = one - abs(0.02 * rng.normal()) * (one - zero)
                seconds = 25.0 if contender == "SAC" else 60.0
                curve = rising(
                    seconds, final, zero, max(float(fast), 0.004), points, 0.01 * (one - zero), seed
                )
                status = "finished"
                if contender == "PPO wide" and seed == 3:
                    status, curve = "diverged", rising(20.0, zero, zero, 0.1, 20)
                if contender == "CMA-ES" and name == "quadrotor" and seed < 2:
                    status, curve = "crashed", Curve.of([])
                beside = Overheads(1.2, 0.4, 6.0 if contender == "diffsim" else 0.0, 3.0, 1.3 * seconds + 12)
                records.append(
                    run(name, contender, seed, curve, status, overheads=beside, about_task=tasks[name],
                        about_contender=CONTENDERS[contender], budget={"cpu_seconds": 60.0},
                        settings={"learning_rate": 3e-3, "seed": seed, "network": {"hidden": [64, 64]}})
                )  # fmt: skip
    return Comparison(
        tasks, CONTENDERS, range(seeds), {"cpu_seconds": 60.0}, title="White box against black box, made-up runs",
        command="diffsim compare pendulum …", created="2026-11-26", records=records,
    )  # fmt: skip
