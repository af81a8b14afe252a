"""Keys that compare objects by identity instead of equality."""

from __future__ import annotations


class Identity:
    """A key for one object, kept alive so that no other takes its address."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and other.value is self.value
