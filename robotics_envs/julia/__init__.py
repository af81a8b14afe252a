"""Simulators written in Julia, as environments: ``make_env("julia:Pendulum")``, ``make_env("julia:my_env.jl:MyEnv")``.

Importing this package loads neither torch nor Julia.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robotics_envs.julia.env import JuliaEnv
    from robotics_envs.julia.runtime import JuliaError, start

__all__ = ["SIMULATORS", "JuliaEnv", "JuliaError", "start"]

SIMULATORS = ("Pendulum", "CartpoleSwingup", "Reactor", "Trebuchet", "ThreeBody")
"""Those of the Julia package ``DiffSimEnvs``."""

_LAZY = {
    "JuliaEnv": "robotics_envs.julia.env",
    "JuliaError": "robotics_envs.julia.runtime",
    "start": "robotics_envs.julia.runtime",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'robotics_envs.julia' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
