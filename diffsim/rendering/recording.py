"""Episodes of a simulator as plain numbers, ready to be drawn."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffsim.errors import DiffsimError
from robotics_envs.base import Env
from robotics_envs.drawing import Floats, Shape, View, as_data

MOST_FRAMES = 50.0
"""Frames per second of playback that nobody tells from more."""

Act = Callable[[Tensor], Tensor]
"""Actions ``[B, m]`` for states ``[B, n]``."""
Report = Callable[[int, int], object]
"""Called with how many parts of a film are done and how many there are."""


@dataclass(frozen=True)
class End:
    """Where a rollout stopped: after so many control intervals, and why."""

    steps: int
    reason: str = ""
    """``""`` at the time limit, ``"done"`` where the simulator says so, ``"diverged"`` where a number is not finite."""

    def note(self, dt: float) -> str:
        """The reason in words with the time in s, ``""`` at the time limit."""
        at = f"{self.steps * dt:.4g} s"
        return {"": "", "done": f"ended at {at}", "diverged": f"diverged at {at}: not finite"}[self.reason]


@dataclass(frozen=True, repr=False)
class Recording:
    """``B`` rollouts of up to ``T`` control intervals, in float64. One that stopped keeps its last state."""

    env: Env
    states: Floats
    """At the start of each interval and at the end, ``[T+1, B, n]``."""
    actions: Floats
    """Applied, that is clipped, from each state on, ``[T+1, B, m]``; the last is only what would follow."""
    costs: Floats
    """Summed up to each state, ``[T+1, B]``."""
    ends: tuple[End, ...]

    def __repr__(self) -> str:
        return f"Recording({self.env.name}, {len(self.ends)} rollouts, {self.steps} control intervals)"

    @property
    def steps(self) -> int:
        """Control intervals of the longest rollout."""
        return max(end.steps for end in self.ends)

    def shapes(self, rollout: int, step: int) -> list[Shape]:
        """What moves, after ``step`` intervals.

        Raises:
            DiffsimError: the simulator draws what cannot be drawn.
        """
        env = self.env
        state, action = self.states[step, rollout], self.actions[step, rollout]
        try:
            shapes = env.draw(state.copy(), action.copy())
            as_data(shapes)
        except Exception as error:  # a user's draw may fail in any way
            raise DiffsimError(
                f"{env.name} cannot be drawn in the state {state.tolist()}: {type(error).__name__}: {error}"
            ) from error
        return shapes

    def view(self, rollout: int, step: int) -> View:
        """What the camera shows after ``step`` intervals."""
        return self.env.view_at(self.states[step, rollout].copy())

    def frames(self, fps: float, speed: float) -> list[int]:
        """The steps to show for about ``fps`` frames per second when ``speed`` simulated seconds take one.

        Equally spaced, the last state always among them, and never more than 50 a second.
        """
        interval = self.env.dt / speed
        stride = max(1, math.ceil(1 / (MOST_FRAMES * interval) - 1e-9), round(1 / (fps * interval)))
        return [*range(0, self.steps, stride), self.steps]


@torch.no_grad()
def record(
    env: Env, act: Act, x: Tensor, steps: int, report: Callable[[int], object] | None = None
) -> Recording:
    """Simulate up to ``steps`` control intervals from the states ``x [B, n]`` and keep everything.

    ``report`` is called with the number of intervals done.
    """
    p = env.params(x)
    running = ~env.done(x)
    lengths = torch.zeros(len(x), dtype=torch.int64)
    reasons = ["" if going else "done" for going in running.tolist()]
    total = x.new_zeros(len(x))
    action = env.clip_action(act(x))
    states, actions, costs = [x], [action], [total]
    while len(states) <= steps and running.any():
        following, cost = env.step(x, action, p)
        sound = following.isfinite().all(-1) & action.isfinite().all(-1) & cost.isfinite()
        moved = running & sound
        x = torch.where(moved.unsqueeze(-1), following, x)
        total = torch.where(moved, total + cost, total)
        lengths += moved.cpu()
        ended = moved & env.done(x)
        for what, where in (("diverged", running & ~sound), ("done", ended)):
            for rollout in where.nonzero().flatten().tolist():
                reasons[rollout] = what
        running = moved & ~ended
        action = torch.where(moved.unsqueeze(-1), env.clip_action(act(x)), action)
        states.append(x)
        actions.append(action)
        costs.append(total)
        if report is not None:
            report(len(states) - 1)
    arrays = [torch.stack(kept).double().cpu().numpy() for kept in (states, actions, costs)]
    ends = tuple(End(length, reason) for length, reason in zip(lengths.tolist(), reasons, strict=True))
    # A policy that has lost its numbers is drawn without its action.
    return Recording(
        env, arrays[0], np.nan_to_num(arrays[1], nan=0.0, posinf=0.0, neginf=0.0), arrays[2], ends
    )
