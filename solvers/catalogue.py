"""The old name of :mod:`solvers.registry`; it will go in the next release."""

import warnings

from solvers.registry import Registry, UnknownNameError, unknown

__all__ = ["Catalogue", "UnknownNameError", "unknown"]

warnings.warn(
    "solvers.catalogue.Catalogue is now solvers.registry.Registry; the old name will go in the next release",
    DeprecationWarning,
    stacklevel=2,
)
Catalogue = Registry
