"""Train robot policies by backpropagating through white-box simulators.

    import diffsim
    diffsim.train("pendulum", out="runs/pendulum")
    print(diffsim.evaluate("runs/pendulum", gym="Pendulum-v1"))

Importing this package loads no torch; the functions below do when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffsim.curves import plot
    from diffsim.errors import DiffsimError
    from diffsim.evaluation import Evaluation, LoadedPolicy, evaluate, load_policy
    from diffsim.rendering.render import render
    from diffsim.run import train
    from diffsim.runfile import RunFile

__all__ = [
    "DiffsimError",
    "Evaluation",
    "LoadedPolicy",
    "RunFile",
    "evaluate",
    "load_policy",
    "plot",
    "render",
    "train",
]
__version__ = "0.1.0"

_HOMES = {
    "DiffsimError": "errors",
    "Evaluation": "evaluation",
    "LoadedPolicy": "evaluation",
    "evaluate": "evaluation",
    "load_policy": "evaluation",
    "plot": "curves",
    "render": "rendering.render",
    "train": "run",
    "RunFile": "runfile",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'diffsim' has no attribute {name!r}")
    return getattr(importlib.import_module(f"diffsim.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
