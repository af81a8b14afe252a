"""Trains with this package: through the simulator, or without gradients on the same policy."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from diffsim.assembly import assemble
from diffsim.comparison.clock import Budget, Meter
from diffsim.config import load_config
from diffsim.errors import DivergenceError
from diffsim.isolation import torch_defaults
from diffsim.policy import Policy, evaluating
from diffsim.runs.length import continuation
from diffsim.runs.run import MAX_DROPPED_IN_A_ROW
from diffsim.runs.validation import Validation


def load(settings: Mapping[str, Any]) -> None:
    """Import what training needs: it is imported with this module."""


def resolved(task: str, settings: Mapping[str, Any], budget: Budget | None = None) -> dict[str, Any]:
    """Every setting of a run but the seed, defaults written out.

    A run whose length is not set is told the budget, as a user would who has that much time: ``[stop]`` has its limits.

    Raises:
        ConfigError: unknown or impossible settings.
    """
    limits = {} if budget is None else {"wall_seconds": budget.cpu_seconds, "env_steps": budget.steps}
    told = {} if "updates" in settings else {"stop": limits}
    config = assemble(load_config({"env": task}, told, settings, {"threads": 1})).config
    return config.model_dump(mode="json", exclude={"seed"})


def train(task: str, settings: Mapping[str, Any], seed: int, meter: Meter) -> None:
    """Updates until the budget is used or the run has come to its end, which it decides as ``diffsim train`` does.

    What ``diffsim train`` sees in its limits of ``[stop]``, the budget says here: whether there is room for a longer
    run.  Validation decides which policy it hands over: the best one, as ``diffsim train`` keeps it.  So validation is
    part of training: its time is on the clock and its environment steps count.  What is measured is the policy that
    would be handed over, before the first validation the present one.
    """
    config = load_config({"env": task}, settings, {"seed": seed, "threads": 1})
    with torch_defaults(1):
        algorithm = assemble(config).algorithm
        act = _Acting(algorithm.policy)
        meter.begin(act)
        steps = gradients = dropped = 0
        validation, returns, successes = Validation(algorithm, config), [], []
        for update in itertools.count(1):
            cpu, wall = time.process_time(), time.perf_counter()
            record = algorithm.step()
            if record.compile_seconds:
                _take_off_compiling(meter, cpu, wall, record.compile_seconds)
            steps += record.env_steps
            gradients += record.gradient_evaluations
            dropped = dropped + 1 if record.dropped else 0
            if dropped == MAX_DROPPED_IN_A_ROW:
                raise DivergenceError(f"{dropped} updates in a row were dropped, the last: {record.dropped}")
            at_end, every = update == config.updates, config.evaluation.every
            if at_end or (every and update % every == 0):
                measured = validation()
                returns.append(measured.mean_return)
                successes.append(measured.success)
                steps += measured.env_steps
                if measured.is_best:
                    act = _Acting(copy.deepcopy(algorithm.policy))
            if not meter.go_on(steps, gradients, act):
                return
            used = 1.0 - meter.remaining
            changed = continuation(config, algorithm.env, update, returns, successes, used)
            if changed:
                config = changed.config
                algorithm.lengthen(config.updates)
            elif at_end:
                break
        meter.end(steps, gradients, act, f"all {config.updates} updates done")


def _take_off_compiling(meter: Meter, cpu: float, wall: float, compiling: float) -> None:
    """Take compiling off the clock, which is known in wall seconds alone.

    The rest of the update cannot have computed for longer than it lasted: what it is charged is the largest number of
    CPU seconds that is possible.
    """
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    compiling = min(compiling, wall)
    meter.take_off(max(0.0, cpu - (wall - compiling)), compiling, "compile")


class _Acting:
    """A policy without exploration noise, from NumPy to NumPy."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    @torch.no_grad()
    def __call__(self, observations: np.ndarray) -> np.ndarray:
        with evaluating(self.policy):
            return self.policy(torch.from_numpy(observations).to(self.policy.mean)).cpu().numpy()
