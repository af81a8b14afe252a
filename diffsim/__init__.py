"""Train robot policies by backpropagating through white-box simulators.

    import diffsim
    diffsim.train("pendulum", out="runs/pendulum")
    print(diffsim.evaluate("runs/pendulum", gym="Pendulum-v1"))

Importing this package loads no torch; the functions below do when they are first used.
"""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING


def _refuse_hidden_packages() -> None:
    """A script's own folder comes first on the import path: a file there can hide a package of this project."""
    root = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    for package in ("lazy_registry", "solvers", "robotics_envs"):
        try:
            found = importlib.util.find_spec(package)
        except ValueError:  # somebody made the module by hand
            continue
        file = None if found is None else found.origin
        if file and os.path.dirname(os.path.realpath(file)) != os.path.join(root, package):
            what = "folder" if os.path.basename(file).startswith("__init__.") else "file"
            raise ImportError(
                f"{file} hides the package {package}, which diffsim needs; rename the {what}", name=package
            )


_refuse_hidden_packages()

from diffsim._moved import MOVED  # noqa: E402
from diffsim._version import __version__ as __version__  # noqa: E402
from lazy_registry.lazy_import import lazy_attributes  # noqa: E402
from lazy_registry.moved import serve_old_names  # noqa: E402

if TYPE_CHECKING:
    from diffsim.algorithms.base import Algorithm, Record
    from diffsim.config import ALGORITHMS, NETWORKS, OPTIMIZERS, RunConfig, Settings
    from diffsim.errors import (
        ConfigError,
        DiffsimError,
        DivergenceError,
        EvaluationError,
        Interrupted,
        OutOfMemoryError,
        ProcessError,
        RunFileError,
        TrustError,
    )
    from diffsim.optimizers import make_optimizer, optimizer_class
    from diffsim.optimizers.base import Optimizer, Scenarios, StepReport
    from diffsim.optimizers.conformance import check_optimizer
    from diffsim.optimizers.objective import Gradient, Objective, Samples, Vector
    from diffsim.policy import MLP, Policy, make_policy
    from diffsim.rendering.render import render
    from diffsim.rollouts.differentiable import Trajectory
    from diffsim.rollouts.engines import BACKENDS
    from diffsim.rollouts.noise import Noise, randomised
    from diffsim.rollouts.rollout import Rollout, RolloutError
    from diffsim.runs.curves import plot
    from diffsim.runs.evaluation import Evaluation, LoadedPolicy, evaluate, load_policy
    from diffsim.runs.run import Run, train
    from diffsim.runs.runfile import RunFile

serve_old_names(MOVED)

__all__ = [
    "ALGORITHMS",
    "BACKENDS",
    "MLP",
    "NETWORKS",
    "OPTIMIZERS",
    "Algorithm",
    "ConfigError",
    "DiffsimError",
    "DivergenceError",
    "Evaluation",
    "EvaluationError",
    "Gradient",
    "Interrupted",
    "LoadedPolicy",
    "Noise",
    "Objective",
    "Optimizer",
    "OutOfMemoryError",
    "Policy",
    "ProcessError",
    "Record",
    "Rollout",
    "RolloutError",
    "Run",
    "RunConfig",
    "RunFile",
    "RunFileError",
    "Samples",
    "Scenarios",
    "Settings",
    "StepReport",
    "Trajectory",
    "TrustError",
    "Vector",
    "check_optimizer",
    "evaluate",
    "load_policy",
    "make_optimizer",
    "make_policy",
    "optimizer_class",
    "plot",
    "randomised",
    "render",
    "train",
]

__getattr__, __dir__ = lazy_attributes(
    __name__,
    {
        "algorithms.base": ("Algorithm", "Record"),
        "config": ("ALGORITHMS", "NETWORKS", "OPTIMIZERS", "RunConfig", "Settings"),
        "runs.curves": ("plot",),
        "errors": (
            "ConfigError",
            "DiffsimError",
            "DivergenceError",
            "EvaluationError",
            "Interrupted",
            "OutOfMemoryError",
            "ProcessError",
            "RunFileError",
            "TrustError",
        ),
        "runs.evaluation": ("Evaluation", "LoadedPolicy", "evaluate", "load_policy"),
        "optimizers": ("make_optimizer", "optimizer_class"),
        "optimizers.base": ("Optimizer", "Scenarios", "StepReport"),
        "optimizers.conformance": ("check_optimizer",),
        "optimizers.objective": ("Gradient", "Objective", "Samples", "Vector"),
        "policy": ("MLP", "Policy", "make_policy"),
        "rendering.render": ("render",),
        "rollouts.noise": ("Noise", "randomised"),
        "rollouts.rollout": ("BACKENDS", "Rollout", "RolloutError", "Trajectory"),
        "runs.run": ("Run", "train"),
        "runs.runfile": ("RunFile",),
    },
)
