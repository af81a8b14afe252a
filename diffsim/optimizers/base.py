"""The base class of all optimizers."""

from __future__ import annotations

import abc
from collections.abc import Iterable
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffsim.errors import ConfigError
from diffsim.optimizers.objective import Objective, Vector
from diffsim.settings import Settings as AnySettings


class StepReport(NamedTuple):
    """What one optimizer step did."""

    loss: float
    """At the parameters before the step; of a population, its lowest value."""
    grad_norm: float
    """Euclidean norm of the step's first gradient, before clipping; NaN if the optimizer uses no gradient."""
    evaluations: int
    """Evaluations of the objective; each candidate of a population is one."""
    gradients: int
    """How many of the evaluations computed a gradient."""
    finite: bool
    """Whether the step was taken.  If not, the loss or the gradient was not finite and the parameters are unchanged."""


class Scenarios(NamedTuple):
    """Which scenarios (initial states and noise) the objective of the next step is to be averaged over."""

    size: int
    """Their number."""
    kept: int
    """How many of the previous step's scenarios are reused; the newest are."""


class Optimizer(abc.ABC):
    """Minimises an objective by changing ``parameters`` in place; each call of ``step`` is one step.

    Saving and loading between any two steps changes no bit of what follows.  ``best`` is the point with the lowest
    finite value that was evaluated; it is finite whatever the objective returns.  Values from steps on different
    scenarios are compared with each other as they are.

    Args:
        parameters: to optimize; all on one device.
        settings: validated options.
        seed: of all random numbers of the optimizer.

    Attributes:
        generator: the source of all random numbers; on the CPU, so that they are the same for every device.
        best_loss: the lowest finite value so far.
        best: where it was evaluated, ``[P]``; before the first step, the initial parameters.
    """

    Settings: ClassVar[type[AnySettings]] = AnySettings
    """The class of its options; none by default."""
    needs_gradient: ClassVar[bool] = True
    """Whether it evaluates gradients of the objective."""
    calls_per_step: int = 1
    """Approximate number of evaluations per step; decides whether compiling the rollouts saves time."""

    def __init__(self, parameters: Iterable[nn.Parameter], settings: Any, seed: int = 0) -> None:
        self.vector = Vector(parameters)
        self.settings = settings
        self.generator = torch.Generator().manual_seed(seed)
        self.best_loss = float("inf")
        self.best: Float[Tensor, " P"] = self.vector.read()

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.settings.model_dump().items())
        return f"{type(self).__name__}({len(self.vector):,} parameters{', ' if options else ''}{options})"

    def step(self, objective: Objective, remaining: float = 1.0) -> StepReport:
        """One step on ``objective``; ``remaining`` in (0, 1] is the fraction of the run that is left."""
        evaluations, gradients = objective.evaluations, objective.gradients
        loss, norm, finite = self._step(objective, remaining)
        return StepReport(
            loss, norm, objective.evaluations - evaluations, objective.gradients - gradients, finite
        )

    @abc.abstractmethod
    def _step(self, objective: Objective, remaining: float) -> tuple[float, float, bool]:
        """Take the step; return loss, gradient norm and whether it was taken, see :class:`StepReport`."""

    def scenarios(self, batch: int) -> Scenarios:
        """The scenarios of the next step's objective; ``batch`` is the configured number."""
        return Scenarios(batch, 0)

    def suggestions(self) -> list[Tensor]:
        """Points ``[P]`` to continue from, at least one: the current one, or the best one evaluated."""
        return [self.vector.read()]

    def _saw(self, loss: float, point: Tensor | None = None) -> None:
        """Store ``point`` (by default the current parameters) if ``loss`` is the lowest finite value so far."""
        if loss - loss == 0.0 and loss < self.best_loss:
            self.best_loss = loss
            self.best = self.vector.read() if point is None else point.clone()

    def state_dict(self) -> dict[str, Any]:
        """Everything that later steps depend on, except the parameters: tensors, numbers, strings, dicts, lists."""
        return {
            "kind": type(self).__name__,
            "size": len(self.vector),
            "best_loss": self.best_loss,
            "best": self.best.cpu(),
            "generator": self.generator.get_state(),
            **self._state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that ``state_dict`` returned; the parameters must have the values they had then.

        Raises:
            ConfigError: the state is of another class of optimizer, or for another number of parameters.
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
        """The part of the state that the subclass adds."""

    @abc.abstractmethod
    def _load(self, state: dict[str, Any]) -> None:
        """Restore what ``_state`` returned."""
