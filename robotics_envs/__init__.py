"""Simulators written as differentiable white boxes, usable without the trainer.

Importing this package loads no torch; a simulator's module is imported when its name is first used.
"""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING


def _refuse_hidden_packages() -> None:
    """A script's own folder comes first on the import path: a file there can hide a package of this project."""
    root = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    for package in ("lazy_registry", "solvers"):
        try:
            found = importlib.util.find_spec(package)
        except ValueError:  # somebody made the module by hand
            continue
        file = None if found is None else found.origin
        if file and os.path.dirname(os.path.realpath(file)) != os.path.join(root, package):
            what = "folder" if os.path.basename(file).startswith("__init__.") else "file"
            raise ImportError(
                f"{file} hides the package {package}, which robotics_envs needs; rename the {what}",
                name=package,
            )


_refuse_hidden_packages()

from lazy_registry.lazy_import import lazy_attributes  # noqa: E402
from lazy_registry.moved import serve_old_names  # noqa: E402
from robotics_envs._moved import MOVED  # noqa: E402
from robotics_envs.environments import ENVIRONMENTS, make_env  # noqa: E402

if TYPE_CHECKING:
    from robotics_envs.base import (
        Actions,
        Box,
        Costs,
        Env,
        Observations,
        Parameter,
        Params,
        SizeError,
        States,
        Success,
    )
    from robotics_envs.conformance import ConformanceError, check_env
    from robotics_envs.divergence import DivergenceError
    from robotics_envs.drawing import COLOURS, Circle, Floats, Line, Polygon, Shape, Text, View
    from robotics_envs.julia.installation import JuliaError, julia_sources
    from robotics_envs.mechanics.joint_limit import JointLimit
    from robotics_envs.solids import Solid
    from robotics_envs.user_code import UserCodeError

serve_old_names(MOVED)

__all__ = [
    "COLOURS",
    "ENVIRONMENTS",
    "Actions",
    "Box",
    "Circle",
    "ConformanceError",
    "Costs",
    "DivergenceError",
    "Env",
    "Floats",
    "JointLimit",
    "JuliaError",
    "Line",
    "Observations",
    "Parameter",
    "Params",
    "Polygon",
    "Shape",
    "SizeError",
    "Solid",
    "States",
    "Success",
    "Text",
    "UserCodeError",
    "View",
    "check_env",
    "julia_sources",
    "make_env",
]

__getattr__, __dir__ = lazy_attributes(
    __name__,
    {
        "base": (
            "Actions",
            "Box",
            "Costs",
            "Env",
            "Observations",
            "Parameter",
            "Params",
            "SizeError",
            "States",
            "Success",
        ),
        "conformance": ("ConformanceError", "check_env"),
        "divergence": ("DivergenceError",),
        "drawing": ("COLOURS", "Circle", "Floats", "Line", "Polygon", "Shape", "Text", "View"),
        "mechanics.joint_limit": ("JointLimit",),
        "julia.installation": ("JuliaError", "julia_sources"),
        "solids": ("Solid",),
        "user_code": ("UserCodeError",),
    },
)
