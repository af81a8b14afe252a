"""Comparisons of contenders on tasks: their records, the statistics of the records, and the report.

``records`` holds one run of one contender on one task as one HDF5 file, ``imported`` makes records from other
programs' logs, ``scores`` reads records by rules, ``statistics``, ``survival`` and ``matrix`` compare them,
``verdicts`` says who won, ``report`` writes the page.  Importing this package loads none of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lazy_registry.lazy_import import lazy_attributes

if TYPE_CHECKING:
    from diffsim.comparison.imported import read_csv, read_monitor, read_tensorboard
    from diffsim.comparison.records import (
        Comparison,
        Contender,
        Curve,
        Limits,
        Overheads,
        Protocol,
        Record,
        Task,
        Threshold,
        read_comparison,
        read_record,
        record_path,
        write_comparison,
        write_record,
    )

__all__ = [
    "Comparison",
    "Contender",
    "Curve",
    "Limits",
    "Overheads",
    "Protocol",
    "Record",
    "Task",
    "Threshold",
    "read_comparison",
    "read_csv",
    "read_monitor",
    "read_record",
    "read_tensorboard",
    "record_path",
    "write_comparison",
    "write_record",
]

_IMPORTED = ("read_csv", "read_monitor", "read_tensorboard")
__getattr__, __dir__ = lazy_attributes(
    __name__, {"imported": _IMPORTED, "records": tuple(name for name in __all__ if name not in _IMPORTED)}
)
