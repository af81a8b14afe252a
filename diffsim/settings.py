"""The base of every group of settings: values are validated, and options that were renamed keep their old names.

Whatever a person can set passes through :class:`Settings`, so each kind of value is checked in one place, whether it
comes from TOML, the command line, Python or a stored run.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationInfo, field_validator, model_validator

logger = logging.getLogger("diffsim")

_warned: set[str] = set()  # old names that this process has warned about


def plain(value: Any) -> Any:
    """NumPy scalars and arrays as Python numbers and lists, and paths as strings, at any depth."""
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, Path):
        return str(value)
    return value.tolist() if type(value).__module__ == "numpy" else value


def whole_number(value: Any, least: int = 0, below: int | None = None) -> int:
    """``value`` as an int in ``[least, below)``.

    Python's and NumPy's integers, floats without a fraction (1e3) and strings of either are whole numbers; booleans are
    not.

    Raises:
        ValueError: it is not a whole number, or out of range.
    """
    number = _as_int(plain(value))
    in_range = type(number) is int and number >= least and (below is None or number < below)
    if not in_range:
        limit = "" if below is None else f" and below {_readable(below)}"
        raise ValueError(f"must be a whole number of at least {least}{limit}")
    return number


def _as_int(value: Any) -> Any:
    """A float or string that states a whole number as an int; any other value unchanged."""
    try:
        if isinstance(value, str):
            return int(value) if value.strip().lstrip("+-").isdigit() else _as_int(float(value))
        return int(value) if isinstance(value, float) and value == int(value) else value
    except (ValueError, OverflowError):  # no number at all; NaN and infinity
        return value


def _readable(number: int) -> str:
    return f"2^{number.bit_length() - 1}" if number >= 2**16 and number.bit_count() == 1 else str(number)


Seed = Annotated[int, BeforeValidator(lambda value: whole_number(value, 0, 2**63))]
"""A seed; HDF5 stores it as a signed 64-bit integer."""


class Settings(BaseModel):
    """Base of every group of settings: frozen, typed, without unknown keys and NaN."""

    # A class is prepared when it is first used: a run uses a quarter of those that are imported.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    renamed: ClassVar[Mapping[str, str]] = {}
    """Old names of fields and the present ones.  Old names work until version 0.3, with a warning."""

    @classmethod
    def current_names(
        cls,
        values: Mapping[str, Any],
        section: str = "",
        chosen: Mapping[str, Any] | None = None,
        warn: bool = True,
    ) -> dict[str, Any]:
        """``values`` with old names replaced by the present ones.

        Args:
            values: options by name.
            section: where they belong, such as ``"algorithm"``, for messages.
            chosen: what was set before these values; classes with nested sections look there for the name of a class
                that ``values`` does not name.
            warn: log a warning for each old name, once per process.

        Raises:
            ValueError: an option is given under both names.
        """
        result = dict(values)
        for old, new in cls.renamed.items():
            if old not in result:
                continue
            old_key, new_key = (f"{section}.{name}" if section else name for name in (old, new))
            if new in result:
                raise ValueError(f"{old_key} is the old name of {new_key}; both are given, remove {old_key}")
            result = {new if key == old else key: value for key, value in result.items()}
            if warn and old_key not in _warned:
                _warned.add(old_key)
                logger.warning("%s is now called %s; the old name works until 0.3", old_key, new_key)
        return result

    @model_validator(mode="before")
    @classmethod
    def _plain_values(cls, values: Any) -> Any:
        return cls.current_names(plain(values)) if isinstance(values, Mapping) else plain(values)

    @field_validator("*", mode="before")
    @classmethod
    def _numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse booleans, which Python counts as 0 and 1, where none belongs; read 1e3 as the integer 1000."""
        kinds = _named_types(cls.model_fields[str(info.field_name)].annotation)
        entries = value if isinstance(value, (list, tuple)) else (value,)
        if not kinds & {bool, Any} and any(isinstance(entry, bool) for entry in entries):
            raise ValueError("a number or a name belongs here, not a truth value")
        return _as_int(value) if int in kinds and not kinds & {str, float, Any} else value


def _named_types(annotation: Any) -> set[Any]:
    """The annotation's types at any depth: ``int | None`` gives int and NoneType."""
    inner = get_args(annotation)
    return set().union(*map(_named_types, inner)) if inner else {annotation}
