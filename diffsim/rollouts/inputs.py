"""What a rollout is computed from, and what comes out: the contract between the Function and the back ends."""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from diffsim.rollouts.noise import Noise
from robotics_envs.base import Env


@dataclass(frozen=True, eq=False)
class Inputs:
    """One rollout's arguments.

    Attributes:
        act: ``(x [B, n], noise [B, m] or None) -> u [B, m]``, the policy on what is observed.
        terminal: ``x [B, n] -> [B]``, the value at the end of the horizon; None for none.
        x0: ``[B, n]``.
        p: physical parameters, ``[]`` or ``[B]``.
        noise, controls: ``[steps, B, m]`` or None; noise may be a generator.
        modules: the policy and the terminal value, as far as they are modules.
        parameters: what they hold that requires a gradient.
        truncate: the gradient does not pass from one stretch of so many control intervals to the one before.
        members: ``B`` is ``members`` policies of equally many rollouts each, one policy after the other.
        stacked: for a parameter (by identity) the values of all members, ``[members, ...]``.
        act_together: ``act`` of all members at once.
    """

    env: Env
    act: Callable[[Tensor, Tensor | None], Tensor]
    terminal: Callable[[Tensor], Tensor] | None
    x0: Tensor
    steps: int
    p: dict[str, Tensor]
    noise: Tensor | Noise | None
    controls: Tensor | None
    modules: tuple[nn.Module, ...]
    parameters: tuple[Tensor, ...]
    truncate: int | None = None
    threads: int = 1
    members: int = 1
    stacked: dict[int, Tensor] = field(default_factory=dict)
    act_together: Callable[[Tensor, Tensor | None], Tensor] | None = None

    def noise_at(self, t: int) -> Tensor | None:
        """The noise of a control interval, ``[B, m]``."""
        if isinstance(self.noise, Noise):
            return self.noise.at(t, len(self.x0), len(self.env.action_box), self.x0)
        return None if self.noise is None else self.noise[t]

    def named(self) -> dict[Any, Tensor]:
        """Every tensor that a gradient may be wanted of.

        By ``"x0"``, ``"noise"``, ``"controls"``, ``("p", name)`` and, for parameters, their identity.
        """
        named: dict[Any, Tensor] = {"x0": self.x0, **{("p", name): value for name, value in self.p.items()}}
        if isinstance(self.noise, Tensor):
            named["noise"] = self.noise
        if self.controls is not None:
            named["controls"] = self.controls
        return named | {id(q): q for q in self.parameters}


class Outcome(NamedTuple):
    """Results, or their cotangents; what is not asked for is None."""

    states: Tensor | None
    """``[steps + 1, B, n]``, the initial states first."""
    last: Tensor | None
    """``[B, n]``."""
    costs: Tensor | None
    """``[steps, B]``."""
    values: Tensor | None
    """``[B]``."""


class UnsupportedError(RuntimeError):
    """A back end cannot run this rollout; the message says why."""


class Engine(abc.ABC):
    """A back end, ready to simulate one kind of inputs."""

    compiled: ClassVar[bool] = True
    """Whether making it ready takes time worth accounting for."""
    constant: frozenset[str] = frozenset()
    """Names of the results that depend on nothing a gradient is wanted of."""

    @classmethod
    @abc.abstractmethod
    def prepare(cls, inputs: Inputs, gradient: bool) -> Engine:
        """Make ready for inputs like these.

        Raises:
            UnsupportedError: this back end cannot run them.
        """

    @abc.abstractmethod
    def forward(self, inputs: Inputs, keep_states: bool) -> tuple[Outcome, Any]:
        """Simulate, outside autograd; the outcome, and anything that ``backward`` may want again."""

    @abc.abstractmethod
    def backward(self, inputs: Inputs, states: Tensor, by: Outcome, kept: Any) -> dict[Any, Tensor]:
        """Gradients, by the names of ``Inputs.named``, of those that require one; absent where zero."""
