"""The base classes of the population optimizers."""

from __future__ import annotations

import abc
import contextlib
import io
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from diffsim.errors import ConfigError
from diffsim.optimizers.base import Optimizer
from diffsim.optimizers.objective import Objective
from diffsim.settings import Settings
from lazy_registry.installation import install_command


class PopulationSettings(Settings):
    popsize: int = Field(default=64, ge=4)
    """Candidates per step."""

    renamed: ClassVar[Mapping[str, str]] = {"members": "popsize"}


class Population(Optimizer):
    """Base of optimizers that evaluate a batch of candidates in each step.

    Candidates and the search distribution are float64 on the CPU, whatever the device of the policy; only the
    evaluation uses that device.
    """

    Settings: ClassVar[type[PopulationSettings]] = PopulationSettings
    needs_gradient: ClassVar[bool] = False

    def __init__(
        self, parameters: Iterable[nn.Parameter], settings: PopulationSettings, seed: int = 0
    ) -> None:
        super().__init__(parameters, settings, seed)
        self.start = self.vector.read("cpu")

    @property
    def popsize(self) -> int:
        """Candidates per step."""
        return self.settings.popsize

    def _values(self, objective: Objective, candidates: Float[Tensor, "N P"]) -> Float[Tensor, " N"]:
        """Values of the candidates, infinity in place of those that are not finite; the best candidate is stored.

        Raises:
            NothingFiniteError: no value is finite.
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
            self.vector.write(before)  # the point overflowed the policy's dtype
            return lowest, float("nan"), False
        return lowest, float("nan"), True

    @abc.abstractmethod
    def _generation(self, objective: Objective) -> float:
        """Draw candidates, evaluate them and update the search; return the lowest value.

        If it raises, the state of the search is as before.
        """

    @abc.abstractmethod
    def _centre(self) -> Float[Tensor, " P"]:
        """The point that becomes the policy's parameters, such as the mean of the search distribution."""

    def suggestions(self) -> list[Tensor]:
        """The centre of the search, and the best candidate evaluated so far."""
        return [self._centre().to(self.vector.device), self.best.clone()]


class AskAndTell(Population):
    """A search with the ask-and-tell interface: it proposes candidates and is given their values."""

    def _generation(self, objective: Objective) -> float:
        candidates = self._ask()
        values = self._values(objective, candidates)
        self._tell(candidates, penalised(values))
        return float(values.min())

    @abc.abstractmethod
    def _ask(self) -> Float[Tensor, "N P"]:
        """The next candidates."""

    @abc.abstractmethod
    def _tell(self, candidates: Float[Tensor, "N P"], values: Float[Tensor, " N"]) -> None:
        """Update the search with the values of the candidates."""


class NothingFiniteError(ArithmeticError):
    """No value of the population is finite; ``value`` is the first one."""

    def __init__(self, value: float) -> None:
        super().__init__(f"no candidate of the population has a finite value; the first value is {value}")
        self.value = value


def penalised(values: Tensor) -> Tensor:
    """``values [N]`` with infinite ones replaced by the largest finite value plus the range of the finite values."""
    known = values[values.isfinite()]
    span = known.max() - known.min()
    span = torch.where(span > 0, span, known.max().abs().clamp_min(1.0))
    return torch.where(values.isfinite(), values, known.max() + span)


_importing = threading.Lock()  # redirecting standard output affects all threads


@contextlib.contextmanager
def importing(library: str, optimizer: str) -> Iterator[None]:
    """For importing an optional library inside: hides its deprecation warnings and what it prints.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        with _importing, warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"optimizer {optimizer!r} needs {library}: {install_command('population')} ({error})"
        ) from None


def stdev_of(radius: float, size: int) -> float:
    """The standard deviation per parameter at which samples with ``size`` parameters are ``radius`` from the mean."""
    return float(radius) / size**0.5
