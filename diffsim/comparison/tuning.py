"""Random search for settings, the same for ours and for every other: equal trials, equal budgets, other seeds.

Trial 0 is the contender's own setting, so a search cannot do worse than that on its own seeds; the others are drawn
from the spaces below.  A trial is trained with every tuning seed under the budget of the comparison.  The one with the
largest score averaged over the budget (the area under the learning curve, the last value held to the end) and over
seeds is chosen, for each task on its own.  Runs that crash or diverge are worse than all others.

Searching is a comparison of its own in ``DIR/tuning``, whose contenders are named ``ppo #3``; the outcome is
``DIR/tuning.json``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffsim.comparison import records
from diffsim.comparison.clock import Budget
from diffsim.comparison.compare import Request, seeds_of
from diffsim.comparison.contenders.catalogue import STABLE_BASELINES, Entry, Settings, changed, contender
from diffsim.config import merge
from diffsim.errors import ConfigError, RunFileError
from diffsim.runs.whole_files import write_whole

OUTCOME = "tuning.json"


@dataclasses.dataclass(frozen=True)
class Values:
    """One of these, equally likely."""

    choices: tuple[Any, ...]

    def draw(self, generator: random.Random) -> Any:
        return generator.choice(self.choices)


@dataclasses.dataclass(frozen=True)
class LogUniform:
    """A number whose logarithm is uniform, to three digits."""

    low: float
    high: float

    def draw(self, generator: random.Random) -> float:
        return float(f"{math.exp(generator.uniform(math.log(self.low), math.log(self.high))):.3g}")


Space = Mapping[str, Values | LogUniform]

_OFF_POLICY: Space = {
    "n_envs": Values((1, 16, 64)),
    "gradient_steps": Values((1, 8, 32)),
    "learning_rate": LogUniform(1e-4, 5e-3),
    "gamma": Values((0.9, 0.95, 0.98, 0.99, 0.995)),
    "batch_size": Values((128, 256, 512)),
    "learning_starts": Values((100, 1000)),
    "policy_kwargs.net_arch": Values(([64, 64], [256, 256])),
    "normalize": Values((False, True)),
}
_ENTROPY: Space = {**_OFF_POLICY, "tau": Values((0.005, 0.01, 0.02)), "use_sde": Values((False, True))}
SPACES: Mapping[str, Space] = {
    "ours": {
        "updates": Values((150, 300, 600, 1200, 2400)),
        "optimizer.lr": LogUniform(1e-3, 2e-2),
        "algorithm.batch": Values((64, 128, 256, 512)),
        "algorithm.window": Values((4, 8, 16)),
        "algorithm.window_end": Values((16, 32, 64)),
        "algorithm.discount_end": Values((0.5, 1.0, 2.0, 4.0)),
        "algorithm.critic_learning_rate": LogUniform(1e-3, 2e-2),
        "algorithm.critic_batches": Values((4, 8, 16)),
    },
    "ppo": {
        "n_envs": Values((4, 16, 64, 256)),
        "n_steps": Values((16, 32, 64, 128, 256)),
        "batch_size": Values((64, 256, 1024)),
        "n_epochs": Values((5, 10, 20)),
        "learning_rate": LogUniform(1e-4, 1e-2),
        "gamma": Values((0.9, 0.95, 0.98, 0.99, 0.995)),
        "gae_lambda": Values((0.8, 0.9, 0.95, 0.98)),
        "clip_range": Values((0.1, 0.2, 0.3)),
        "ent_coef": Values((0.0, 1e-3, 1e-2)),
        "use_sde": Values((False, True)),
        "normalize": Values((False, True)),
    },
    "sac": _ENTROPY,
    "tqc": _ENTROPY,
    "crossq": {**_OFF_POLICY, "use_sde": Values((False, True))},
    "td3": {**_OFF_POLICY, "tau": Values((0.005, 0.01, 0.02)), "noise_std": Values((0.05, 0.1, 0.3))},
    "cma_es": {
        "optimizer.sigma": LogUniform(0.03, 1.0),
        "optimizer.popsize": Values((16, 32, 64, 128)),
        "algorithm.batch": Values((4, 8, 16, 32)),
        "policy.hidden": Values(([], [16], [64, 64])),
    },
    "pgpe": {
        "optimizer.popsize": Values((16, 32, 64, 128)),
        "algorithm.batch": Values((4, 8, 16, 32)),
        "policy.hidden": Values(([], [16], [64, 64])),
    },
}
"""What settings are drawn from, by contender; dotted keys are of sections."""


def drawn(space: str, task: str, trial: int) -> dict[str, Any]:
    """The changes that a trial makes; none for trial 0.  They depend on the arguments alone."""
    if trial == 0:
        return {}
    digest = hashlib.sha256(f"{space} {task} {trial}".encode()).digest()
    generator = random.Random(int.from_bytes(digest[:8], "big"))
    layers = []
    for key, values in SPACES[space].items():
        value: Any = values.draw(generator)
        for part in reversed(key.split(".")):
            value = {part: value}
        layers.append(value)
    return merge(*layers)


def trial_of(entry: Entry, task: str, trial: int) -> dict[str, Any]:
    """The settings of a trial."""
    assert entry.space is not None
    changes = drawn(entry.space, task, trial)
    settings = changed(entry.settings(task), changes)
    if entry.trainer == STABLE_BASELINES and "batch_size" in changes and "n_steps" in changes:
        # A batch larger than what was collected is no setting of PPO's.
        settings["batch_size"] = min(settings["batch_size"], settings["n_envs"] * settings["n_steps"])
    return settings


class Tuning:
    """The search that precedes a comparison.

    Args:
        root: folder of the comparison.
        asked: its tasks, contenders and budgets.
        trials: settings for each task and contender, the untuned one included.
        seeds: of the search, as ``--seeds``.

    Raises:
        ConfigError: seeds that the comparison itself reports.
    """

    def __init__(self, root: Path, asked: Request, trials: int, seeds: str) -> None:
        self.parent, self.root, self.trials, self._before = root, root / "tuning", trials, asked
        self.seeds = seeds_of(seeds)
        both = sorted(set(self.seeds) & set(asked.seeds))
        if both:
            raise ConfigError(
                f"tuning seeds {', '.join(map(str, both))} are seeds of the comparison too; choose others"
            )
        spaces = {entry.space: name for name, entry in asked.contenders.items() if entry.space}
        # A wide variant stands for its algorithm, whose space holds it.
        for name in asked.contenders:
            algorithm = name.partition("_")[0]
            if name not in spaces.values() and algorithm in SPACES and algorithm not in spaces:
                spaces[algorithm] = algorithm
        self.names = list(spaces.values())
        self.asked = dataclasses.replace(
            asked,
            contenders={
                f"{name} #{trial}": _trial_entry(contender(name), trial)
                for name in self.names
                for trial in range(trials)
            },
            seeds=self.seeds,
            budgets={
                f"{name} #{trial}": asked.budget_of(name) for name in self.names for trial in range(trials)
            },
        )
        self.notes = [f"search of settings for the comparison in the folder above, {self.effort}"]

    @property
    def effort(self) -> str:
        return f"{self.trials} trials a task on seeds {', '.join(map(str, self.seeds))}, random search"

    def chosen(self) -> tuple[Request, list[str]]:
        """The comparison with the best settings as contenders ``NAME_tuned``; writes ``tuning.json``."""
        comparison = records.read_comparison(self.root)
        outcome: dict[str, Any] = {
            "trials": self.trials,
            "seeds": self.seeds,
            "criterion": "mean score over the budget, mean over seeds",
            "spaces": {
                name: {k: dataclasses.asdict(v) for k, v in SPACES[_space(name)].items()}
                for name in self.names
            },
            "chosen": {},
            "areas": {},
        }
        entries = dict(self._before.contenders)
        budgets = dict(self._before.budgets)
        for name in self.names:
            best: dict[str, int] = {}
            for task in self._before.tasks:
                budget = self._before.budget_of(name)
                areas = [
                    area_of(comparison.of(task, f"{name} #{trial}"), budget, len(self.seeds))
                    for trial in range(self.trials)
                ]
                best[task] = int(np.argmax(areas))
                outcome["areas"][f"{task}/{name}"] = [a if math.isfinite(a) else None for a in areas]
                outcome["chosen"][f"{task}/{name}"] = {
                    "trial": best[task],
                    "settings": drawn(_space(name), task, best[task]),
                }
            tuned = f"{name}_tuned"
            entries[tuned] = self._tuned_entry(contender(name), best)
            if name in budgets:
                budgets[tuned] = budgets[name]
        text = json.dumps(outcome, indent=1, default=list)
        try:
            write_whole(self.parent / OUTCOME, text.encode())
        except OSError as error:
            raise RunFileError(f"cannot write {self.parent / OUTCOME}: {error.strerror or error}") from None
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        note = f"settings named _tuned: {self.effort}; spaces and outcome in {OUTCOME} (SHA-256 {digest}…)"
        return dataclasses.replace(self._before, contenders=entries, budgets=budgets), [note]

    def _tuned_entry(self, entry: Entry, best: Mapping[str, int]) -> Entry:
        about = dataclasses.replace(
            entry.about,
            kind="white box" if entry.about.kind == "reference" else entry.about.kind,
            description=f"{entry.about.description}; tuned",
            tuned_by="diffsim compare --tune",
            tuning_effort=f"{self.effort}, for ours and all others alike",
        )
        return dataclasses.replace(entry, settings=_settings_of(entry, best), about=about, space=None)


def _space(name: str) -> str:
    space = contender(name).space
    assert space is not None
    return space


def _settings_of(entry: Entry, best: Mapping[str, int]) -> Callable[[str], Settings]:
    return lambda task: trial_of(entry, task, best[task])


def _trial_entry(entry: Entry, trial: int) -> Entry:
    kind = "white box" if entry.about.kind == "reference" else entry.about.kind
    about = dataclasses.replace(
        entry.about, kind=kind, description=f"{entry.about.description}; trial {trial}"
    )
    return dataclasses.replace(
        entry, settings=lambda task: trial_of(entry, task, trial), about=about, space=None
    )


def area_of(runs: Sequence[records.Record], budget: Budget, seeds: int) -> float:
    """Mean score over the budget and over seeds; minus infinity where a run is missing or failed."""
    if len(runs) < seeds or any(run.status != "finished" for run in runs):
        return -math.inf
    axis = next(iter(budget.limits))
    return float(np.mean([_mean_over(run.curve, axis, budget.limits[axis]) for run in runs]))


def _mean_over(curve: records.Curve, axis: str, limit: float) -> float:
    """The score as a step function of the axis, averaged over [0, limit]."""
    at = np.minimum(getattr(curve, axis), limit)
    widths = np.diff(np.append(at, limit))
    return float((widths * curve.score).sum() / limit)
