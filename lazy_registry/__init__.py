"""What all packages here share and what is no solver: names that load classes, files of users, optional parts.

Importing this package loads nothing but the standard library.
"""

from __future__ import annotations

from lazy_registry.installation import install_command
from lazy_registry.registry import Registry, UnknownNameError, unknown
from lazy_registry.user_files import load_file

__all__ = ["Registry", "UnknownNameError", "install_command", "load_file", "unknown"]
