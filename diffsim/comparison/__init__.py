"""Comparisons of contenders on tasks: their records, the statistics of the records, and the report.

``records`` holds one run of one contender on one task as one HDF5 file, ``imported`` makes records from other
programs' logs, ``statistics`` compares them, ``report`` writes the page.  Importing this package loads none of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lazy_registry.lazy_import import lazy_attributes

if TYPE_CHECKING:
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
    "read_record",
    "record_path",
    "write_comparison",
    "write_record",
]

__getattr__, __dir__ = lazy_attributes(__name__, {"records": tuple(__all__)})
