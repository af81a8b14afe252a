"""One control interval of many rollouts as one call of compiled code, for the adapters."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robotics_envs.base import Box, Env, Parameter
from solvers.compiler.fingerprint import Fingerprints
from solvers.compiler.trace import NativeUnsupportedError
from solvers.native import build
from solvers.native.rows import RowFunction

Array = NDArray[Any]


def fingerprints() -> Fingerprints:
    """What a compiled simulator was made from, watched."""
    return Fingerprints(by_value=(Parameter, Box), load=build.load)


class CompiledStep:
    """``env.step``, and what follows from it, for ``batch`` rollouts at a time.

    Attributes:
        states: ``[B, n]``, read and replaced by :meth:`step`.
        actions: ``[B, m]``, in the action box, or in [-1, 1] with ``unit_actions``; read by :meth:`step`.
        costs, ended, observations, applied: ``[B]``, ``[B]`` (1 where ``env.done``), ``[B, o]`` and ``[B, m]``,
            written by :meth:`step`; ``applied`` are the actions clipped to their box.
        states_tensor, applied_tensor: the same memory as tensors.

    Raises:
        NativeUnsupportedError: the simulator cannot be compiled, or there is no compiler.
    """

    def __init__(
        self, env: Env, p: Mapping[str, Tensor], batch: int, unit_actions: bool, dtype: torch.dtype
    ) -> None:
        if env.foreign:
            raise NativeUnsupportedError(f"{env.name} is not computed in torch")
        n, m, o = (len(q) for q in (env.state_names, env.action_box, env.observation_names))
        own = [name for name, value in p.items() if value.ndim]
        sizes = [n, m, *[1] * len(own)]
        with torch.no_grad():  # so that tables and bounds that it keeps exist before the trace
            low, high = env.action_box.bounds(torch.zeros(1, dtype=dtype))
            env.observe(env.reset(1, torch.Generator().manual_seed(0), dtype))

        def with_own(columns: tuple[Tensor, ...]) -> dict[str, Tensor]:
            return {**p, **{name: column.squeeze(-1) for name, column in zip(own, columns, strict=True)}}

        def step(called: Any, x: Tensor, action: Tensor, *columns: Tensor) -> tuple[Tensor, ...]:
            moved = copy.copy(env)
            moved.dynamics = called(env.dynamics)  # type: ignore[method-assign]
            u = low + (high - low) * (action + 1) / 2 if unit_actions else action
            following, cost = moved.step(x, u, with_own(columns))
            return following, cost, env.done(following), env.observe(following), env.clip_action(u)

        def observe(called: Any, x: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
            return (env.observe(x),)

        moving, looking = RowFunction(step, sizes, dtype), RowFunction(observe, sizes, dtype)
        if (moving.width, looking.width) != (n + 2 + o + m, o):
            raise NativeUnsupportedError(f"step and observe of {env.name} return tensors of unexpected sizes")
        kind = np.float64 if dtype == torch.float64 else np.float32
        self._given = np.zeros((batch, sum(sizes)), dtype=kind)
        self._found = np.zeros((batch, moving.width), dtype=kind)
        self._seen = np.zeros((batch, o), dtype=kind)
        self.states, self.actions = self._given[:, :n], self._given[:, n : n + m]
        self._columns = [(self._given[:, n + m + k], p[name]) for k, name in enumerate(own)]
        self._following = self._found[:, :n]
        self.costs, self.ended = self._found[:, n], self._found[:, n + 1]
        self.observations, self.applied = self._found[:, n + 2 : n + 2 + o], self._found[:, n + 2 + o :]
        self.states_tensor, self.applied_tensor = (
            torch.from_numpy(self.states),
            torch.from_numpy(self.applied),
        )
        self._move, self._look = (
            moving.bound(self._given, self._found),
            looking.bound(self._given, self._seen),
        )

    def step(self) -> bool:
        """Compute one interval; False, and the states stay as they were, where a number is not finite or is huge."""
        for column, values in self._columns:
            column[:] = values.numpy()
        if not self._move():
            return False
        self.states[:] = self._following
        return True

    def observe(self) -> Array | None:
        """The observations ``[B, o]`` of the present states, or None where a number is not finite or is huge.

        The next call overwrites them.
        """
        return self._seen if self._look() else None


def compiled(
    env: Env, p: Mapping[str, Tensor], batch: int, unit_actions: bool, dtype: torch.dtype
) -> CompiledStep:
    """A step that gives what ``env.step`` gives from some states of the state box.

    Raises:
        NativeUnsupportedError: there is none; the message says why.
    """
    made = CompiledStep(env, p, batch, unit_actions, dtype)
    generator = torch.Generator().manual_seed(0)
    x = env.state_box.sample(batch, generator, dtype)
    u = env.action_box.sample(batch, generator, dtype)
    low, high = env.action_box.bounds(u)
    with torch.no_grad():
        following, cost = env.step(x, u, p)
        exact = [following, cost, env.done(following).to(dtype), env.observe(following)]
    made.states[:] = x.numpy()
    made.actions[:] = (
        2 * (u - low) / torch.where(high > low, high - low, 1.0) - 1 if unit_actions else u
    ).numpy()
    if made.step():
        found = [made.states, made.costs, made.ended, made.observations]
        tolerance = 1e-8 if dtype == torch.float64 else 1e-3
        for a, b in zip(exact, found, strict=True):
            if not np.allclose(a.numpy(), b, rtol=tolerance, atol=tolerance):
                raise NativeUnsupportedError(
                    f"the compiled step of {env.name} differs from its own; does it mix rollouts, or branch on values?"
                )
    return made
