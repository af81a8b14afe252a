"""The contract of every optimizer."""

from __future__ import annotations

import abc
from collections.abc import Iterable
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffsim.config import Settings as AnySettings
from diffsim.errors import ConfigError
from diffsim.optimizers.objective import Objective, Vector


class StepReport(NamedTuple):
    """What one optimizer step did."""

    loss: float
    """At the parameters before the step; of a population, its best member's."""
    grad_norm: float
    """Euclidean norm of the first gradient, before any scaling; NaN where there was none."""
    evaluations: int
    """Evaluations of the objective, each member of a population counted."""
    gradients: int
    """How many of these came with a gradient."""
    finite: bool
    """Whether the step was taken; if not, loss or gradient were not finite and the parameters are as before."""


class Scenarios(NamedTuple):
    """Which scenarios (initial states and noise) the next step wants the objective to be made of."""

    size: int
    kept: int
    """How many of the last step's stay, the newest ones."""


class Optimizer(abc.ABC):
    """Minimises an objective by changing ``parameters`` in place, a step a call.

    Saving and loading between any two steps changes no bit of what follows.  Whatever an objective returns, the best
    point seen stays finite and is what the objective valued lowest; values of steps on different scenarios are
    comparable as far as the scenarios are.

    Args:
        parameters: those to optimize, of one device.
        settings: validated options.
        seed: of everything random in the optimizer.
    """

    Settings: ClassVar[type[AnySettings]] = AnySettings
    """The options it takes; none by default."""
    needs_gradient: ClassVar[bool] = True
    calls_per_step: int = 1
    """How often a step calls the objective, roughly: what decides whether compiling it is worth while."""

    def __init__(self, parameters: Iterable[nn.Parameter], settings: Any, seed: int = 0) -> None:
        self.vector = Vector(parameters)
        self.settings = settings
        # Drawn on the CPU, so that a run on another device draws the same.
        self.generator = torch.Generator().manual_seed(seed)
        self.best_loss = float("inf")
        """The lowest finite value seen."""
        self.best: Float[Tensor, " P"] = self.vector.read()
        """Where it was seen; before the first, the parameters at the start."""

    def step(self, objective: Objective, remaining: float = 1.0) -> StepReport:
        """One step on ``objective``; ``remaining`` in (0, 1] is the share of the run still ahead."""
        evaluations, gradients = objective.evaluations, objective.gradients
        loss, norm, finite = self._step(objective, remaining)
        return StepReport(
            loss, norm, objective.evaluations - evaluations, objective.gradients - gradients, finite
        )

    @abc.abstractmethod
    def _step(self, objective: Objective, remaining: float) -> tuple[float, float, bool]:
        """Take the step; the first, second and last field of the report."""

    def scenarios(self, batch: int) -> Scenarios:
        """What the next step's objective is to be made of, where ``batch`` scenarios are usual."""
        return Scenarios(batch, 0)

    def suggestions(self) -> list[Tensor]:
        """Points ``[P]`` worth going on from, one or more: where it stands, or the best it has seen."""
        return [self.vector.read()]

    def _saw(self, loss: float, point: Tensor | None = None) -> None:
        """Keep ``point`` (the parameters as they stand if not given) if it is the best so far."""
        if loss - loss == 0.0 and loss < self.best_loss:
            self.best_loss = loss
            self.best = self.vector.read() if point is None else point.clone()

    def state_dict(self) -> dict[str, Any]:
        """Everything that later steps depend on beside the parameters: tensors, numbers, strings, dicts, lists."""
        return {
            "kind": type(self).__name__,
            "size": len(self.vector),
            "best_loss": self.best_loss,
            "best": self.best.cpu(),
            "generator": self.generator.get_state(),
            **self._state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where ``state_dict`` was taken; the parameters must be as they were then.

        Raises:
            ConfigError: it is the state of another kind of optimizer, or of another number of parameters.
        """
        stored, own = (state.get("kind"), state.get("size")), (type(self).__name__, len(self.vector))
        if stored != own:
            raise ConfigError(
                f"a state of {stored[0]} for {stored[1]} parameters does not fit {own[0]} for {own[1]} parameters"
            )
        self.best_loss = state["best_loss"]
        self.best = state["best"].to(self.vector.device)
        self.generator.set_state(state["generator"])
        self._load(state)

    @abc.abstractmethod
    def _state(self) -> dict[str, Any]:
        """The optimizer's own part of the state."""

    @abc.abstractmethod
    def _load(self, state: dict[str, Any]) -> None: ...
