"""Particle swarm optimization and differential evolution (EvoX's).

Kennedy and Eberhart, "Particle Swarm Optimization", 1995; Storn and Price, "Differential Evolution", 1997.  Both
search a box: ``radius`` to either side of the initial parameters.  EvoX works in coordinates where this box is [-1,
1].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from diffsim.isolation import drawing_from
from diffsim.optimizers.objective import Objective
from diffsim.optimizers.population.base import (
    NothingFiniteError,
    Population,
    PopulationSettings,
    importing,
)


class SwarmSettings(PopulationSettings):
    radius: float = Field(default=1.0, gt=0)
    """Half the width of the searched box around the initial parameters."""
    reevaluate: bool = True
    """Evaluate remembered points again on the scenarios of every step, at about twice the evaluations.  Without it, a
    low value from easy scenarios is kept for ever.  False is right if the objective never changes."""


class PSOSettings(SwarmSettings):
    inertia: float = Field(default=0.6, ge=0)
    """Weight of a particle's last velocity."""
    cognitive: float = Field(default=2.5, ge=0)
    """Weight of the direction to the particle's best point; this default and the next are EvoX's."""
    social: float = Field(default=0.8, ge=0)
    """Weight of the direction to the best point of the swarm."""


class DifferentialEvolutionSettings(SwarmSettings):
    base: Literal["rand", "best"] = "best"
    """The candidate that differences are added to: a random one or the best."""
    weight: float = Field(default=0.5, gt=0, le=2)
    """Differential weight F; this default and the next are EvoX's."""
    crossover: float = Field(default=0.9, gt=0, le=1)
    """Crossover probability CR: that a parameter is taken from the mutant."""


class Swarm(Population):
    """Base of both; the policy is the best point that the swarm remembers."""

    def __init__(self, parameters: Iterable[nn.Parameter], settings: Any, seed: int = 0) -> None:
        super().__init__(parameters, settings, seed)
        with importing("evox", type(self).__name__.lower()):
            import evox.algorithms as library
        with drawing_from(self.generator):
            edge = torch.ones(len(self.vector), dtype=torch.float64)
            self.inner = self._make(library, -edge, edge)
        for name, buffer in list(self.inner.named_buffers()):
            setattr(self.inner, name, buffer.double().clone())  # EvoX makes some of them views of others
            if name in ("pop", "local_best_location"):
                getattr(self.inner, name)[0] = 0.0  # one candidate is the initial point
        self.started = False

    def _make(self, library: Any, low: Tensor, high: Tensor) -> Any:
        """EvoX's algorithm in the box."""
        raise NotImplementedError

    def _generation(self, objective: Objective) -> float:
        lowest = float("inf")

        def evaluate(z: Tensor) -> Tensor:
            nonlocal lowest
            values = self._values(objective, self.start + self.settings.radius * z)
            lowest = min(lowest, float(values.min()))
            return values

        before = {name: tensor.clone() for name, tensor in self.inner.state_dict().items()}
        again = self.started and self.settings.reevaluate
        try:
            if again:
                self._before(evaluate)
            with drawing_from(self.generator) as drawing:

                def called_back(z: Tensor) -> Tensor:
                    with drawing.paused():  # the objective's random numbers are its own
                        return evaluate(z)

                self.inner.evaluate = called_back
                self.inner.step() if self.started else self.inner.init_step()
            if again:
                self._after(evaluate)
        except NothingFiniteError:
            self.inner.load_state_dict(before)
            raise
        self.started = True
        return lowest

    def _before(self, evaluate: Callable[[Tensor], Tensor]) -> None:
        """Evaluate again the points that the coming step compares with."""

    def _after(self, evaluate: Callable[[Tensor], Tensor]) -> None:
        """Evaluate again the points that the next step will compare with."""

    def _leader(self) -> Tensor:
        """The best remembered point, in the coordinates of the box."""
        raise NotImplementedError

    def _centre(self) -> Tensor:
        return self.start + self.settings.radius * self._leader()

    def _state(self) -> dict[str, Any]:
        inner = {name: tensor.clone() for name, tensor in self.inner.state_dict().items()}
        return {"start": self.start, "started": self.started, "inner": inner}

    def _load(self, state: dict[str, Any]) -> None:
        self.start, self.started = state["start"], state["started"]
        self.inner.load_state_dict(state["inner"])


class PSO(Swarm):
    """Particle swarm optimization."""

    Settings: ClassVar[type[PSOSettings]] = PSOSettings

    def _make(self, library: Any, low: Tensor, high: Tensor) -> Any:
        s = self.settings
        return library.PSO(s.popsize, low, high, w=s.inertia, phi_p=s.cognitive, phi_g=s.social)

    def _after(self, evaluate: Callable[[Tensor], Tensor]) -> None:
        remembered = torch.cat((self.inner.local_best_location, self.inner.global_best_location.unsqueeze(0)))
        values = evaluate(remembered)
        self.inner.local_best_fit, self.inner.global_best_fit = values[:-1], values[-1]

    def _leader(self) -> Tensor:
        known = torch.cat((self.inner.fit, self.inner.global_best_fit.reshape(1)))
        return torch.cat((self.inner.pop, self.inner.global_best_location.unsqueeze(0)))[known.argmin()]


class DifferentialEvolution(Swarm):
    """Differential evolution."""

    Settings: ClassVar[type[DifferentialEvolutionSettings]] = DifferentialEvolutionSettings

    def _make(self, library: Any, low: Tensor, high: Tensor) -> Any:
        s = self.settings
        return library.DE(
            s.popsize,
            low,
            high,
            base_vector=s.base,
            differential_weight=s.weight,
            cross_probability=s.crossover,
        )

    def _before(self, evaluate: Callable[[Tensor], Tensor]) -> None:
        self.inner.fit = evaluate(self.inner.pop)

    def _leader(self) -> Tensor:
        return self.inner.pop[self.inner.fit.argmin()]
