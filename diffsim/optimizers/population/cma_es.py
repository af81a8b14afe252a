"""CMA-ES (pycma's) with a full covariance matrix, a diagonal one, or a diagonal plus a few directions."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import cma
import numpy as np
import torch
from cma.restricted_gaussian_sampler import GaussVkDSampler
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from diffsim.optimizers.population.base import AskAndTell, PopulationSettings
from diffsim.optimizers.population.pycma_state import restore, snapshot

logger = logging.getLogger("diffsim")

FULL_UP_TO = 500
"""Up to so many parameters the full covariance matrix is adapted; beyond, its eigenvectors cost more than rollouts."""
SEPARABLE_UP_TO = 10_000
"""Up to so many parameters a diagonal is adapted by default; beyond, a diagonal and a few directions."""

MOST_DIRECTIONS = 64
"""The limited-memory form keeps at most so many vectors of length P beside the diagonal."""


class CMAESSettings(PopulationSettings):
    popsize: int | None = Field(default=None, ge=4)  # type: ignore[assignment]
    """Candidates per step; None takes 4 + 3 ln P (Hansen, "The CMA Evolution Strategy: A Tutorial", 2016, arXiv
    1604.00772, (48))."""
    sigma: float = Field(default=0.3, gt=0)
    """Initial standard deviation of the candidates in every parameter."""
    covariance: Literal["auto", "full", "separable", "limited_memory"] = "auto"
    """What is adapted. full: the covariance matrix (P² numbers). separable: its diagonal (Ros and Hansen, 2008).
    limited_memory: a diagonal and up to 64 directions, whose number is adapted (VkD-CMA, Akimoto and Hansen, 2016).
    auto: chosen by the number of parameters."""


class CMAES(AskAndTell):
    """Covariance matrix adaptation evolution strategy; the policy is the mean of the search distribution."""

    Settings: ClassVar[type[CMAESSettings]] = CMAESSettings

    def __init__(self, parameters: Iterable[nn.Parameter], settings: CMAESSettings, seed: int = 0) -> None:
        super().__init__(parameters, settings, seed)
        self.covariance = settings.covariance
        if self.covariance == "auto":
            self.covariance = form_for(len(self.vector))
            if self.covariance != "full":
                logger.warning(
                    "cma_es: %s parameters, so the %s form of the covariance matrix is adapted (the full matrix would "
                    "have %.2g entries); set optimizer.covariance to choose another form",
                    f"{len(self.vector):,}",
                    self.covariance.replace("_", "-"),
                    float(len(self.vector)) ** 2,
                )
        self.inner = self._fresh()

    def _fresh(self) -> Any:
        options: dict[str, Any] = {
            "randn": self._randn,
            "seed": np.nan,  # any other value makes pycma seed NumPy's global generator
            "verbose": -9,
            "verb_log": 0,
            "verb_disp": 0,
        }
        if self.settings.popsize is not None:
            options["popsize"] = self.settings.popsize
        if self.covariance == "separable":
            options["CMA_diagonal"] = True
        elif self.covariance == "limited_memory":
            options = GaussVkDSampler.extend_cma_options(options)
            directions = min(MOST_DIRECTIONS, len(self.vector) - 1)
            options["CMA_sampler_options"] = {"randn": self._randn, "kmax": directions}
        return cma.CMAEvolutionStrategy(self.start.numpy(), self.settings.sigma, options)

    def _randn(self, *shape: int) -> np.ndarray:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64, device="cpu").numpy()

    @property
    def popsize(self) -> int:
        return int(self.inner.popsize)

    def _ask(self) -> Float[Tensor, "N P"]:
        return torch.from_numpy(np.stack(self.inner.ask()))

    def _tell(self, candidates: Tensor, values: Tensor) -> None:
        self.inner.tell(list(candidates.numpy()), values.tolist())

    def _centre(self) -> Tensor:
        return torch.from_numpy(np.array(self.inner.mean))

    def _state(self) -> dict[str, Any]:
        return {"start": self.start, "covariance": self.covariance, "inner": snapshot(self.inner)}

    def _load(self, state: dict[str, Any]) -> None:
        self.start, self.covariance = state["start"], state["covariance"]
        drawn = self.generator.get_state()
        self.inner = self._fresh()
        self.generator.set_state(drawn)
        restore(self.inner, state["inner"])


def form_for(size: int) -> Literal["full", "separable", "limited_memory"]:
    """The form of the covariance matrix for ``size`` parameters."""
    if size <= FULL_UP_TO:
        return "full"
    return "separable" if size <= SEPARABLE_UP_TO else "limited_memory"
