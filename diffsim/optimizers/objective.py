"""The objective that an optimizer minimises, and the parameters as one vector."""

from __future__ import annotations

import abc
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffsim.errors import ConfigError


class Vector:
    """A list of parameters as one vector ``[P]`` in float64, whatever their dtype.

    Optimizers that compute with the whole vector keep their own float64 copy, because rounding to a float32 policy
    would lose small steps of a line search or of a distribution's mean.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        # Parameters that need no gradient are not optimized.
        self.parameters = [p for p in parameters if p.requires_grad]
        self.sizes = [p.numel() for p in self.parameters]
        if not sum(self.sizes):
            raise ConfigError("there is nothing to optimize: the policy has no trainable parameters")
        self.device = self.parameters[0].device

    def __len__(self) -> int:
        return sum(self.sizes)

    def read(self, device: torch.device | str | None = None) -> Float[Tensor, " P"]:
        """The current values."""
        flat = torch.cat([p.detach().reshape(-1) for p in self.parameters])
        return flat.to(device=self.device if device is None else device, dtype=torch.float64)

    @torch.no_grad()
    def write(self, flat: Float[Tensor, " P"]) -> None:
        """Set the parameters, rounded to their dtype."""
        for parameter, part in zip(self.parameters, flat.split(self.sizes), strict=True):
            parameter.copy_(part.view_as(parameter))

    def stacked(self, candidates: Float[Tensor, "N P"]) -> list[Tensor]:
        """One tensor ``[N, *shape]`` per parameter, in its dtype and on its device."""
        parts = candidates.split(self.sizes, dim=1)
        return [
            part.to(q).reshape(len(candidates), *q.shape)
            for part, q in zip(parts, self.parameters, strict=True)
        ]


class Gradient(NamedTuple):
    """An evaluation with its gradient."""

    loss: float
    norm: float
    """Euclidean norm of the gradient."""
    parts: list[Tensor]
    """The gradient, one tensor per parameter."""

    @classmethod
    def of(cls, loss: Tensor, by: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> Gradient:
        """From a loss and its derivatives; loss and norm are copied to the host in one transfer.

        Raises:
            ConfigError: the loss does not depend on any parameter.
        """
        if all(part is None for part in by):
            raise ConfigError(
                "the loss does not depend on the policy: the cost ignores states and actions, they are detached "
                "somewhere, or the simulator has no gradient (cma_es, pgpe and the other population optimizers do not "
                "need one); robotics_envs.check_env reports which"
            )
        held = [torch.zeros_like(q) if g is None else g for q, g in zip(parameters, by, strict=True)]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(held)))
        value, length = torch.stack((loss.detach().to(norm.dtype), norm)).tolist()
        return cls(value, length, held)

    @property
    def finite(self) -> bool:
        """Whether loss and gradient are finite."""
        return self.loss - self.loss == 0.0 and self.norm - self.norm == 0.0

    def flat(self) -> Float[Tensor, " P"]:
        """The gradient as a vector in float64."""
        return torch.cat([g.reshape(-1) for g in self.parts]).double()


class Samples(NamedTuple):
    """``G`` independent first-order and zeroth-order estimates of the gradient of the objective smoothed by noise."""

    lowest: tuple[float, Tensor | None]
    """The lowest value of the objective without smoothing, and its point; None for the current parameters."""
    losses: Float[Tensor, " G"]
    """Values with the noise."""
    first: Float[Tensor, "G P"]
    zeroth: Float[Tensor, "G P"]


class Objective(abc.ABC):
    """A function of parameters that is the same function during a whole step, with a count of its evaluations.

    Optimizers call :meth:`gradient`, :meth:`values` and :meth:`samples`.  A subclass says what the function is: it
    overrides :meth:`loss` and, where many candidates or noisy estimates can be had for less than one evaluation after
    the other, :meth:`population` and :meth:`samples`.  ``Objective.of(parameters, loss)`` makes one from a function.

    Random inputs (initial states, noise) are drawn before the step, so that the points of a line search and the
    candidates of a population are compared on the same scenarios.

    Args:
        parameters: the arguments of the function.

    Attributes:
        evaluations: number of evaluations so far; each candidate of a population is one.
        gradients: how many of them computed a gradient.
    """

    def __new__(cls, *arguments: Any, **options: Any) -> Objective:
        if cls is not Objective:
            return super().__new__(cls)
        warnings.warn(
            "Objective(parameters, loss, population) is now Objective.of(parameters, loss, population); the old call "
            "will go in the next release",
            DeprecationWarning,
            stacklevel=2,
        )
        return super().__new__(FunctionObjective)

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.vector = Vector(parameters)
        self.evaluations = self.gradients = 0

    @staticmethod
    def of(
        parameters: Iterable[nn.Parameter],
        loss: Callable[[], Tensor],
        population: Callable[[Tensor], Tensor] | None = None,
    ) -> Objective:
        """The objective that functions define.

        Args:
            parameters: the arguments of the function.
            loss: as :meth:`loss`.
            population: as :meth:`population`; None for one candidate after the other.
        """
        return FunctionObjective(parameters, loss, population)

    def __repr__(self) -> str:
        counts = f"{self.evaluations} evaluations, {self.gradients} with a gradient"
        return f"{type(self).__name__}({len(self.vector):,} parameters, {counts})"

    # -- the function, for subclasses ---------------------------------------------------------

    @abc.abstractmethod
    def loss(self) -> Float[Tensor, ""]:
        """The value at the current parameters, a tensor without dimensions, differentiable by autograd."""

    def population(self, candidates: Float[Tensor, "N P"]) -> Float[Tensor, " N"]:
        """The values of candidates, finite or not, called without gradient; by default one after the other."""
        before = self.vector.read()
        values = []
        try:
            for candidate in candidates:
                self.vector.write(candidate)
                values.append(float(_scalar(self.loss())))
        finally:
            self.vector.write(before)
        return torch.tensor(values, dtype=torch.float64, device="cpu")

    # -- its evaluations, for optimizers ------------------------------------------------------

    def gradient(self) -> Gradient:
        """Loss and gradient at the current parameters.

        Raises:
            ConfigError: the loss does not depend on the parameters.
        """
        self.evaluations += 1
        self.gradients += 1
        with torch.enable_grad():
            loss = _scalar(self.loss())
        parameters = self.vector.parameters
        by: Sequence[Tensor | None] = [None] * len(parameters)
        if loss.requires_grad:
            by = torch.autograd.grad(loss, parameters, allow_unused=True)
        return Gradient.of(loss, by, parameters)

    @torch.no_grad()
    def values(self, candidates: Float[Tensor, "N P"]) -> Float[Tensor, " N"]:
        """The objective at each row, in float64 on the CPU; the parameters are unchanged afterwards."""
        self.evaluations += len(candidates)
        found = self.population(candidates.to(self.vector.device))
        if not isinstance(found, Tensor) or found.shape != (len(candidates),):
            raise ConfigError(
                f"the values of a population must be a tensor of shape [{len(candidates)}], got {_described(found)}"
            )
        return found.detach().cpu().double()

    def samples(self, groups: int, smoothing: float | None, generator: torch.Generator) -> Samples:
        """Estimates of the gradient of the objective smoothed by noise, see :mod:`diffsim.optimizers.alpha_order`.

        By default from Gaussian noise on the parameters: ``groups`` evaluations with gradient and one without.  A
        subclass that overrides this counts its evaluations itself.

        Args:
            groups: number of independent estimates.
            smoothing: standard deviation of the noise; None for the objective's own.
            generator: of the noise.
        """
        return self._by_noisy_parameters(groups, 0.1 if smoothing is None else smoothing, generator)

    def _by_noisy_parameters(self, groups: int, std: float, generator: torch.Generator) -> Samples:
        """``grad f(x + w)`` and ``(f(x + w) - f(x)) w / std²`` for Gaussian w with standard deviation ``std``.

        Suh et al., "Do Differentiable Simulators Give Better Policy Gradients?", 2022, arXiv 2202.00817, §2.
        """
        centre = self.vector.read()
        noise = std * torch.randn(
            groups, len(centre), generator=generator, dtype=torch.float64, device=generator.device
        )
        noise = noise.to(centre)
        base = float(self.values(centre.unsqueeze(0))[0])
        losses, first, zeroth = [], [], []
        lowest: tuple[float, Tensor | None] = (base, None)
        try:
            for w in noise:
                self.vector.write(centre + w)
                found = self.gradient()
                losses.append(found.loss)
                if found.loss < lowest[0] or lowest[0] != lowest[0]:
                    lowest = (found.loss, centre + w)
                first.append(found.flat())
                zeroth.append((found.loss - base) * w / std**2)
        finally:
            self.vector.write(centre)
        return Samples(
            lowest,
            torch.tensor(losses, dtype=torch.float64, device="cpu"),
            torch.stack(first),
            torch.stack(zeroth),
        )


class FunctionObjective(Objective):
    """The objective that functions define; see :meth:`Objective.of`."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        loss: Callable[[], Tensor],
        population: Callable[[Tensor], Tensor] | None = None,
        sampler: Callable[[int, float | None, torch.Generator], Samples] | None = None,
    ) -> None:
        super().__init__(parameters)
        self._loss, self._population, self._sampler = loss, population, sampler

    def loss(self) -> Tensor:
        return self._loss()

    def population(self, candidates: Tensor) -> Tensor:
        return super().population(candidates) if self._population is None else self._population(candidates)

    def samples(self, groups: int, smoothing: float | None, generator: torch.Generator) -> Samples:
        if self._sampler is None:
            return super().samples(groups, smoothing, generator)
        self.evaluations += 1
        self.gradients += 1
        with torch.enable_grad():
            return self._sampler(groups, smoothing, generator)


def _scalar(loss: object) -> Tensor:
    if not isinstance(loss, Tensor) or loss.ndim:
        raise ConfigError(f"the loss must be a tensor without dimensions, got {_described(loss)}")
    return loss


def _described(value: object) -> str:
    return (
        f"one of shape {list(value.shape)}"
        if isinstance(value, Tensor)
        else f"{type(value).__name__} {value!r}"
    )
