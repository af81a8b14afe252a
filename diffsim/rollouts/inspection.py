"""Looking at a rollout before it runs: what it depends on, how much it computes, whether a gradient would be lost."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from diffsim.rollouts.inputs import Inputs


def fingerprint(value: Any) -> Any:
    """Equal for objects that trace alike: numbers and words among their attributes, tensors by identity."""
    if isinstance(value, nn.Module):
        parts: list[Any] = []
        for module in value.modules():
            held = (*module._parameters.values(), *module._buffers.values())
            parts += (module.training, *map(id, held), *_plain(module))
        return tuple(parts)
    owner = getattr(value, "__self__", None)
    if owner is not None:
        return id(value.__func__), fingerprint(owner)
    cells = [fingerprint(c.cell_contents) for c in getattr(value, "__closure__", None) or ()]
    return (id(value), *_plain(value), *cells)


def _plain(value: object) -> list[Any]:
    parts: list[Any] = []
    for name, v in getattr(value, "__dict__", {}).items():
        if name[0] == "_":
            continue
        if isinstance(v, Tensor):
            parts += (name, id(v))
        elif isinstance(v, (int, float, str, tuple)):
            parts += (name, str(v))
    return parts


def _one_step(inputs: Inputs, x: Tensor) -> list[Tensor]:
    """What the first control interval of one rollout from ``x [1, n]`` gives."""
    p = {name: (v[:1] if v.ndim else v).detach() for name, v in inputs.p.items()}
    if inputs.controls is not None:
        u = inputs.controls.detach()[0, :1]
    else:
        noise = inputs.noise_at(0)
        u = inputs.act(x, None if noise is None else noise.detach()[:1])
    return [*inputs.env.step(x, u, p), *([] if inputs.terminal is None else [inputs.terminal(x)])]


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


_Counter.__torch_dispatch__ = _Counter.dispatch  # type: ignore[assignment, method-assign]  # as in solvers/native/trace.py


@torch.no_grad()
def operations(inputs: Inputs) -> int:
    """How many operations of torch a control interval takes."""
    with _Counter() as counter:
        _one_step(inputs, inputs.x0[:1])
    return counter.count


def without_gradient(inputs: Inputs) -> frozenset[str]:
    """The results (of ``Outcome``) that depend on no state, action or parameter.

    Raises:
        ValueError: a tensor that requires a gradient is not among those that one is computed for.
    """
    with torch.enable_grad():
        x = inputs.x0.detach()[:1].requires_grad_()
        outputs = _one_step(inputs, x)
    known = {id(x), *map(id, inputs.parameters)}
    stack, seen = [q.grad_fn for q in outputs], set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None and id(variable) not in known:
            raise ValueError(
                f"the rollout depends on a tensor of shape {tuple(variable.shape)} that requires a gradient and is "
                "neither x0, p, noise, controls nor a parameter of the policy or the terminal value (an nn.Module); "
                "its gradient would be lost: pass it as p or make it an nn.Parameter"
            )
        stack.extend(following for following, _ in node.next_functions)
    named = zip(("last", "costs", "values"), outputs, strict=False)
    return frozenset(name for name, output in named if not output.requires_grad)
