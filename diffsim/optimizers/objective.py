"""What an optimizer minimises, and the flat view of the parameters it works on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffsim.errors import ConfigError


class Vector:
    """A list of parameters as one vector ``[P]``, in float64 whatever they are.

    Optimizers that compute with the whole vector keep their own copy of it: a float32 policy would round away
    what a line search or a small step of a distribution's mean has moved.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        # Frozen ones stay as they are.
        self.parameters = [p for p in parameters if p.requires_grad]
        self.sizes = [p.numel() for p in self.parameters]
        if not sum(self.sizes):
            raise ConfigError("there is nothing to optimize: the policy has no trainable parameters")
        self.device = self.parameters[0].device

    def __len__(self) -> int:
        return sum(self.sizes)

    def read(self, device: torch.device | str | None = None) -> Float[Tensor, " P"]:
        """The parameters as they stand."""
        flat = torch.cat([p.detach().reshape(-1) for p in self.parameters])
        return flat.to(device=self.device if device is None else device, dtype=torch.float64)

    @torch.no_grad()
    def write(self, flat: Float[Tensor, " P"]) -> None:
        """Set the parameters, rounded to what they can hold."""
        for parameter, part in zip(self.parameters, flat.split(self.sizes), strict=True):
            parameter.copy_(part.view_as(parameter))

    def stacked(self, candidates: Float[Tensor, "N P"]) -> list[Tensor]:
        """``[N, *shape]`` for each parameter, in its dtype and on its device."""
        parts = candidates.split(self.sizes, dim=1)
        return [
            part.to(q).reshape(len(candidates), *q.shape)
            for part, q in zip(parts, self.parameters, strict=True)
        ]


class Gradient(NamedTuple):
    """One evaluation with its gradient."""

    loss: float
    norm: float
    """Euclidean norm of the gradient."""
    parts: list[Tensor]
    """The gradient, one tensor a parameter."""

    @property
    def finite(self) -> bool:
        """Whether loss and gradient are."""
        return self.loss - self.loss == 0.0 and self.norm - self.norm == 0.0

    def flat(self) -> Float[Tensor, " P"]:
        """The gradient as a vector in float64."""
        return torch.cat([g.reshape(-1) for g in self.parts]).double()


class Samples(NamedTuple):
    """``G`` independent estimates of the smoothed objective's gradient, of first and of zeroth order."""

    lowest: tuple[float, Tensor | None]
    """The lowest value of the objective itself, not smoothed, and where; None for where the parameters stand."""
    losses: Float[Tensor, " G"]
    """With that noise."""
    first: Float[Tensor, "G P"]
    zeroth: Float[Tensor, "G P"]


Sampler = Callable[[int, float | None, torch.Generator], Samples]
"""``(groups, smoothing, generator) -> Samples``; ``smoothing`` is the deviation of the noise, None the usual one."""


class Objective:
    """A function of parameters that is fixed while a step lasts, and a count of what was asked of it.

    Whatever is random in it (initial states, noise) is drawn before, so that a line search and the members of a
    population compare like with like.

    Args:
        parameters: those it is a function of.
        loss: the scalar at the parameters as they stand, under autograd.
        population: values ``[N]`` of candidates ``[N, P]``, without a gradient and finite or not; by default one
            after the other through ``loss``.
        sampler: estimates of both orders; by default by Gaussian noise on the parameters.

    Attributes:
        evaluations: how many times the objective was evaluated, each member of a population counted.
        gradients: how many of these came with a gradient.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        loss: Callable[[], Tensor],
        population: Callable[[Tensor], Tensor] | None = None,
        sampler: Sampler | None = None,
    ) -> None:
        self.vector = Vector(parameters)
        self._loss, self._population, self._sampler = loss, population, sampler
        self.evaluations = self.gradients = 0

    def gradient(self) -> Gradient:
        """Loss and gradient at the parameters as they stand; both norms reach the host in one transfer.

        Raises:
            ConfigError: the loss does not depend on the parameters.
        """
        self.evaluations += 1
        self.gradients += 1
        with torch.enable_grad():
            loss = self._scalar()
        parts: tuple[Tensor | None, ...] = (None,)
        if loss.requires_grad:
            parts = torch.autograd.grad(loss, self.vector.parameters, allow_unused=True)
        if all(part is None for part in parts):
            raise ConfigError(
                "the loss does not depend on the policy: the cost ignores states and actions, something detaches "
                "them, or the simulator has no gradient (cma_es, pgpe and the other population optimizers need "
                "none); robotics_envs.check_env tells which"
            )
        held = [
            torch.zeros_like(q) if g is None else g
            for q, g in zip(self.vector.parameters, parts, strict=True)
        ]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(held)))
        value, length = torch.stack((loss.detach().to(norm.dtype), norm)).tolist()
        return Gradient(value, length, held)

    def values(self, candidates: Float[Tensor, "N P"]) -> Float[Tensor, " N"]:
        """The objective at each row, float64 on the CPU; the parameters stay as they are."""
        self.evaluations += len(candidates)
        if self._population is not None:
            with torch.no_grad():
                found = self._population(candidates.to(self.vector.device))
            if not isinstance(found, Tensor) or found.shape != (len(candidates),):
                raise ConfigError(
                    f"a population's values must be a tensor of shape [{len(candidates)}], got {_told(found)}"
                )
            return found.detach().cpu().double()
        before = self.vector.read()
        values = []
        try:
            with torch.no_grad():
                for candidate in candidates:
                    self.vector.write(candidate)
                    values.append(float(self._scalar()))
        finally:
            self.vector.write(before)
        return torch.tensor(values, dtype=torch.float64)

    def _scalar(self) -> Tensor:
        loss = self._loss()
        if not isinstance(loss, Tensor) or loss.ndim:
            raise ConfigError(f"the loss must be a tensor without dimensions, got {_told(loss)}")
        return loss

    def samples(self, groups: int, smoothing: float | None, generator: torch.Generator) -> Samples:
        """Estimates of the gradient of the objective smoothed by noise, see :mod:`diffsim.optimizers.alpha_order`.

        A sampler of the algorithm's own splits one evaluation with its gradient into groups of rollouts; without
        one, ``groups`` evaluations with their gradient and one without are needed.
        """
        if self._sampler is not None:
            self.evaluations += 1
            self.gradients += 1
            return self._sampler(groups, smoothing, generator)
        return self._by_noisy_parameters(groups, 0.1 if smoothing is None else smoothing, generator)

    def _by_noisy_parameters(self, groups: int, deviation: float, generator: torch.Generator) -> Samples:
        """``grad f(x + w)`` and ``(f(x + w) - f(x)) w / deviation²`` for Gaussian w.

        Suh et al., "Do Differentiable Simulators Give Better Policy Gradients?", 2022, arXiv 2202.00817, §2.
        """
        centre = self.vector.read()
        noise = deviation * torch.randn(groups, len(centre), generator=generator, dtype=torch.float64)
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
                zeroth.append((found.loss - base) * w / deviation**2)
        finally:
            self.vector.write(centre)
        return Samples(
            lowest, torch.tensor(losses, dtype=torch.float64), torch.stack(first), torch.stack(zeroth)
        )


def _told(value: object) -> str:
    return (
        f"one of shape {list(value.shape)}"
        if isinstance(value, Tensor)
        else f"{type(value).__name__} {value!r}"
    )
