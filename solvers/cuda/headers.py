"""The C++ that kernels of this package begin with."""

from __future__ import annotations

import functools
import importlib.resources


@functools.cache
def _header(name: str) -> str:
    return importlib.resources.files("solvers.cuda").joinpath(name).read_text()


def with_headers(template: str) -> str:
    """The template with numbers and blocks at ``// SCALARS``, and with layers at ``// LAYERS``."""
    scalars = f"{_header('scalars.h')}\n{_header('block.h')}"
    return template.replace("// SCALARS", scalars, 1).replace("// LAYERS", _header("block_layers.h"), 1)
