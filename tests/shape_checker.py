"""The type checker that the tests put on every function whose annotations state the shapes of tensors.

Only on those: elsewhere the tests hand over wrong types on purpose, to read the message they get.
"""

from typing import Any

from beartype import beartype

SHAPES = (
    "Float[", "Bool[", "State", "Actions", "Observations", "Costs", "Params",
)  # fmt: skip


def check(target: Any) -> Any:
    """``beartype`` for functions with shapes in their annotations; others pass unchanged."""
    annotations = getattr(target, "__annotations__", {})
    stated = any(shape in str(hint) for hint in annotations.values() for shape in SHAPES)
    return beartype(target) if stated and callable(target) and not isinstance(target, type) else target
