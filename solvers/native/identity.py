"""Objects as keys by what they are, not by what they equal."""

from __future__ import annotations


class Identity:
    """An object by identity, kept alive so that no other takes its address."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and other.value is self.value
