"""Particle swarms and differential evolution: EvoX's, in coordinates where the search box is [-1, 1].

Kennedy and Eberhart, "Particle Swarm Optimization", 1995; Storn and Price, "Differential Evolution", 1997.  Both
search a box: here ``radius`` in every parameter around the parameters at the start.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from diffsim.optimizers.objective import Objective
from diffsim.optimizers.population.base import (
    NothingFiniteError,
    Population,
    PopulationSettings,
    drawing_from,
    importing,
)


class SwarmSettings(PopulationSettings):
    radius: float = Field(default=1.0, gt=0)
    """Half the edge of the box that is searched, around the parameters at the start."""
    reevaluate: bool = True
    """Value what the swarm remembers again on every step's scenarios, about twice the evaluations; without it a
    lucky draw is never forgotten.  False where the objective is always the same function."""


class PSOSettings(SwarmSettings):
    inertia: float = Field(default=0.6, ge=0)
    cognitive: float = Field(default=2.5, ge=0)
    """Pull towards a particle's own best; this and the next are EvoX's defaults."""
    social: float = Field(default=0.8, ge=0)
    """Pull towards the swarm's best."""


class DifferentialEvolutionSettings(SwarmSettings):
    base: Literal["rand", "best"] = "best"
    """The member that differences are added to."""
    weight: float = Field(default=0.5, gt=0, le=2)
    """Of the difference; this and the next are EvoX's defaults."""
    crossover: float = Field(default=0.9, gt=0, le=1)
    """Probability that a parameter is the mutant's."""


class Swarm(Population):
    """The policy is the best point that the swarm remembers."""

    def __init__(self, parameters: Iterable[nn.Parameter], settings: Any, seed: int = 0) -> None:
        super().__init__(parameters, settings, seed)
        # EvoX says on standard output which optional parts of it are not installed.
        with importing("evox", type(self).__name__.lower()), contextlib.redirect_stdout(io.StringIO()):
            import evox.algorithms as library
        with drawing_from(self.generator):
            edge = torch.ones(len(self.vector), dtype=torch.float64)
            self.inner = self._make(library, -edge, edge)
        for name, buffer in list(self.inner.named_buffers()):
            setattr(self.inner, name, buffer.double().clone())  # some are views of others
            if name in ("pop", "local_best_location"):
                getattr(self.inner, name)[0] = 0.0  # one starts at what there is to improve on
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
        self.inner.evaluate = evaluate
        again = self.started and self.settings.reevaluate
        try:
            if again:
                self._before(evaluate)
            with drawing_from(self.generator):
                self.inner.step() if self.started else self.inner.init_step()
            if again:
                self._after(evaluate)
        except NothingFiniteError:
            self.inner.load_state_dict(before)
            raise
        self.started = True
        return lowest

    def _before(self, evaluate: Callable[[Tensor], Tensor]) -> None:
        """Value again what the coming step compares with."""

    def _after(self, evaluate: Callable[[Tensor], Tensor]) -> None:
        """Value again what the next step will compare this one's values with."""

    def _leader(self) -> Tensor:
        """The best point remembered, in the box."""
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
    Settings: ClassVar[type[PSOSettings]] = PSOSettings

    def _make(self, library: Any, low: Tensor, high: Tensor) -> Any:
        s = self.settings
        return library.PSO(s.members, low, high, w=s.inertia, phi_p=s.cognitive, phi_g=s.social)

    def _after(self, evaluate: Callable[[Tensor], Tensor]) -> None:
        remembered = torch.cat((self.inner.local_best_location, self.inner.global_best_location.unsqueeze(0)))
        values = evaluate(remembered)
        self.inner.local_best_fit, self.inner.global_best_fit = values[:-1], values[-1]

    def _leader(self) -> Tensor:
        known = torch.cat((self.inner.fit, self.inner.global_best_fit.reshape(1)))
        return torch.cat((self.inner.pop, self.inner.global_best_location.unsqueeze(0)))[known.argmin()]


class DifferentialEvolution(Swarm):
    Settings: ClassVar[type[DifferentialEvolutionSettings]] = DifferentialEvolutionSettings

    def _make(self, library: Any, low: Tensor, high: Tensor) -> Any:
        s = self.settings
        return library.DE(
            s.members,
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
