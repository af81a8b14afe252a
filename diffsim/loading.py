"""Loading modules without the garbage collector."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """While inside, no garbage is collected; what there is afterwards counts as permanent.

    Loading torch makes a million objects that stay.  The collector walks over them again and again meanwhile, which is
    a tenth of the time, and once more in each later full collection.  Only for a process of our own: of others, the
    garbage that there is at this moment would stay.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
