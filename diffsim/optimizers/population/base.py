"""What the population optimizers have in common."""

from __future__ import annotations

import abc
import contextlib
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from diffsim.config import Settings
from diffsim.errors import ConfigError
from diffsim.optimizers.base import Optimizer
from diffsim.optimizers.objective import Objective


class PopulationSettings(Settings):
    members: int = Field(default=64, ge=4)
    """Candidates a step."""


class Population(Optimizer):
    """Ask for candidates, evaluate them as one batch, tell their values.

    Candidates are drawn and the search distribution is kept in float64 on the CPU, whatever the device of the
    policy; only their evaluation happens there.
    """

    Settings: ClassVar[type[PopulationSettings]] = PopulationSettings
    needs_gradient: ClassVar[bool] = False

    def __init__(
        self, parameters: Iterable[nn.Parameter], settings: PopulationSettings, seed: int = 0
    ) -> None:
        super().__init__(parameters, settings, seed)
        self.start = self.vector.read("cpu")

    @property
    def members(self) -> int:
        """Candidates a step."""
        return self.settings.members

    def _values(self, objective: Objective, candidates: Float[Tensor, "N P"]) -> Float[Tensor, " N"]:
        """Values, infinite where they are not finite; the lowest is kept.

        Raises:
            NothingFiniteError: no candidate's is.
        """
        values = objective.values(candidates)
        usable = values.isfinite()
        if not usable.any():
            raise NothingFiniteError(float(values[0]))
        values = torch.where(usable, values, torch.inf)
        best = int(values.argmin())
        self._saw(float(values[best]), candidates[best].to(self.vector.device))
        return values

    def _step(self, objective: Objective, remaining: float) -> tuple[float, float, bool]:
        try:
            lowest = self._generation(objective)
        except NothingFiniteError as error:
            return error.value, float("nan"), False
        before = self.vector.read()
        self.vector.write(self._centre().to(self.vector.device))
        if not bool(self.vector.read().isfinite().all()):
            self.vector.write(before)  # the search has run out of what the policy's numbers can hold
            return lowest, float("nan"), False
        return lowest, float("nan"), True

    @abc.abstractmethod
    def _generation(self, objective: Objective) -> float:
        """Draw and evaluate candidates and learn from them, all or nothing; the lowest value."""

    @abc.abstractmethod
    def _centre(self) -> Float[Tensor, " P"]:
        """The point that stands for the whole population: what the policy becomes."""

    def suggestions(self) -> list[Tensor]:
        """Where the search stands, and the best member it has seen."""
        return [self._centre().to(self.vector.device), self.best.clone()]


class AskAndTell(Population):
    """A search that says which candidates it wants and is told their values."""

    def _generation(self, objective: Objective) -> float:
        candidates = self._ask()
        values = self._values(objective, candidates)
        self._tell(candidates, worst_for_the_lost(values))
        return float(values.min())

    @abc.abstractmethod
    def _ask(self) -> Float[Tensor, "N P"]: ...

    @abc.abstractmethod
    def _tell(self, candidates: Float[Tensor, "N P"], values: Float[Tensor, " N"]) -> None: ...


class NothingFiniteError(ArithmeticError):
    """Of a whole population no value is finite; ``value`` is the first."""

    def __init__(self, value: float) -> None:
        super().__init__(f"no member of the population has a finite value; the first is {value}")
        self.value = value


def worst_for_the_lost(values: Tensor) -> Tensor:
    """Infinite values replaced by one that is worse than all others by their whole range."""
    known = values[values.isfinite()]
    span = known.max() - known.min()
    span = torch.where(span > 0, span, known.max().abs().clamp_min(1.0))
    return torch.where(values.isfinite(), values, known.max() + span)


@contextlib.contextmanager
def drawing_from(generator: torch.Generator) -> Iterator[None]:
    """While inside, torch's global generator of the CPU is ``generator``.

    For libraries that draw from the global one: what they draw is then the run's own, and nobody else's draws move.
    """
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(generator.get_state())
        yield
        generator.set_state(torch.get_rng_state())


@contextlib.contextmanager
def importing(library: str, optimizer: str) -> Iterator[None]:
    """Import an optional library inside: its deprecation warnings are not the user's, its absence is.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"optimizer {optimizer!r} needs {library}: pip install 'diffsim[population]' ({error})"
        ) from None


def deviation_of(radius: Any, size: int) -> float:
    """The deviation in each of ``size`` directions at which a sample is ``radius`` away from the mean."""
    return float(radius) / size**0.5
