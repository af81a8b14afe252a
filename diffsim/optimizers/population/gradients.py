"""Evolution strategies that estimate a gradient of the search distribution: PGPE and OpenAI-ES (EvoTorch's).

Both draw antithetic pairs around a centre, rank their values and move the centre along the estimated gradient.  PGPE
(Sehnke et al., "Parameter-exploring policy gradients", 2010) adapts a standard deviation per parameter; its centre is
moved by ClipUp (Toklu, Liskowski and Srivastava, 2020, arXiv 2008.02387).  OpenAI-ES (Salimans et al., 2017, arXiv
1703.03864) has one fixed standard deviation; its centre is moved by Adam.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from diffsim.isolation import drawing_from, torch_defaults
from diffsim.optimizers.first_order import Fraction
from diffsim.optimizers.population.base import (
    AskAndTell,
    PopulationSettings,
    importing,
    stdev_of,
)


class EvolutionGradientSettings(PopulationSettings):
    antithetic: bool = True
    """Draw pairs of candidates that are mirrored at the centre."""
    shaping: Literal["centered", "linear", "nes", "raw"] = "centered"
    """Fitness shaping: ranks from -0.5 to 0.5, ranks from 0 to 1, the utilities of NES, or unchanged values."""

    @model_validator(mode="after")
    def _pairs(self) -> EvolutionGradientSettings:
        if self.antithetic and self.popsize % 2:
            raise ValueError(f"popsize = {self.popsize} must be even for antithetic pairs")
        return self


class PGPESettings(EvolutionGradientSettings):
    radius: float = Field(default=10.0, gt=0)
    """Initial distance of the candidates from the centre; the ClipUp paper uses 4.5 for its locomotion tasks, §4."""
    max_speed: float | None = Field(default=None, gt=0)
    """Largest norm of a step of the centre; None is radius / 15, the rule of ClipUp (§3.2)."""
    lr: float | None = Field(default=None, gt=0)
    """Step size of the centre; None is max_speed / 2, the rule of ClipUp (§3.2)."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of ClipUp."""
    stdev_lr: float = Field(default=0.1, ge=0)
    """Learning rate of the standard deviations."""
    stdev_max_change: float = Field(default=0.2, gt=0)
    """Largest relative change of a standard deviation in a step."""

    renamed: ClassVar[Mapping[str, str]] = {
        **EvolutionGradientSettings.renamed,
        "deviation_lr": "stdev_lr",
        "deviation_change": "stdev_max_change",
    }


class OpenAIESSettings(EvolutionGradientSettings):
    sigma: float = Field(default=0.1, gt=0)
    """Standard deviation of the candidates in every parameter."""
    lr: float = Field(default=0.02, gt=0)
    """Learning rate of Adam."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)


class EvolutionGradient(AskAndTell):
    """Base of both; the policy is the centre of the search distribution."""

    def __init__(self, parameters: Iterable[nn.Parameter], settings: Any, seed: int = 0) -> None:
        super().__init__(parameters, settings, seed)
        with importing("evotorch", type(self).__name__.lower()):
            from evotorch.algorithms.functional import pgpe_ask, pgpe_tell
        self._library_ask, self._library_tell = pgpe_ask, pgpe_tell
        self.inner = self._fresh()

    def _fresh(self) -> Any:
        from evotorch.algorithms.functional import pgpe

        s = self.settings
        with torch_defaults():
            return pgpe(
                center_init=self.start.clone(),
                objective_sense="min",
                ranking_method=s.shaping,
                symmetric=s.antithetic,
                **self._options(),
            )

    def _options(self) -> dict[str, Any]:
        raise NotImplementedError

    def _ask(self) -> Float[Tensor, "N P"]:
        with drawing_from(self.generator):
            return self._library_ask(self.inner, popsize=self.popsize)

    def _tell(self, candidates: Tensor, values: Tensor) -> None:
        if bool((values == values[0]).all()):
            return  # equal values contain no information, and ClipUp would divide by a zero norm
        with torch_defaults():
            self.inner = self._library_tell(self.inner, candidates, values)

    def _centre(self) -> Tensor:
        return self.inner.optimizer_state.center

    def _state(self) -> dict[str, Any]:
        tensors = {k: v for k, v in self.inner._asdict().items() if isinstance(v, Tensor)}
        moved = {k: v for k, v in self.inner.optimizer_state._asdict().items() if isinstance(v, Tensor)}
        return {"start": self.start, "inner": tensors, "moved": moved}

    def _load(self, state: dict[str, Any]) -> None:
        self.start = state["start"]
        inner = self._fresh()
        moved = inner.optimizer_state._replace(**state["moved"])
        self.inner = inner._replace(optimizer_state=moved, **state["inner"])


class PGPE(EvolutionGradient):
    """Policy gradients with parameter-based exploration, moved by ClipUp."""

    Settings: ClassVar[type[PGPESettings]] = PGPESettings

    def _options(self) -> dict[str, Any]:
        s = self.settings
        speed = s.radius / 15.0 if s.max_speed is None else s.max_speed
        return {
            "optimizer": "clipup",
            "optimizer_config": {"max_speed": speed, "momentum": s.momentum},
            "center_learning_rate": speed / 2.0 if s.lr is None else s.lr,
            "stdev_init": stdev_of(s.radius, len(self.vector)),
            "stdev_learning_rate": s.stdev_lr,
            "stdev_max_change": s.stdev_max_change,
        }


class OpenAIES(EvolutionGradient):
    """The evolution strategy of Salimans et al., moved by Adam."""

    Settings: ClassVar[type[OpenAIESSettings]] = OpenAIESSettings

    def _options(self) -> dict[str, Any]:
        s = self.settings
        return {
            "optimizer": "adam",
            "optimizer_config": {"beta1": s.betas[0], "beta2": s.betas[1]},
            "center_learning_rate": s.lr,
            "stdev_init": s.sigma,
            "stdev_learning_rate": 0.0,
        }
