"""L-BFGS with a strong Wolfe line search (torch's), and L-BFGS-B for bounded parameters (SciPy's).

A step is a few iterations on one fixed set of scenarios, so that a line search compares like with like; between
steps scenarios are drawn anew, some are kept, and their number may grow.  Curvature is only ever measured on one
set: across a change of scenarios a difference of gradients would be mostly noise (Berahas, Nocedal and Takáč, "A
Multi-Batch L-BFGS Method for Machine Learning", 2016, arXiv 1605.06049; growing samples: Bollapragada et al., "A
Progressive Batching L-BFGS Method", 2018, arXiv 1802.05374).

The parameters are optimized as a vector in float64; a float32 policy is given its rounded values, and the rounding
of its loss and gradient is then all that limits the line search.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import scipy.optimize
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from diffsim.config import Settings
from diffsim.optimizers.base import Optimizer, Scenarios
from diffsim.optimizers.objective import Objective

_LBFGS = torch.optim.LBFGS


class QuasiNewtonSettings(Settings):
    max_iter: int = Field(default=4, ge=1)
    """Iterations a step, all on the same scenarios."""
    max_eval: int | None = Field(default=None, ge=1)
    """Evaluations after which a step ends; a line search that has begun is finished."""
    history_size: int = Field(default=20, ge=1)
    """Pairs of curvature kept."""
    overlap: float = Field(default=0.5, ge=0, le=1)
    """Share of the scenarios that the next step keeps; 1 never draws others."""
    growth: float = Field(default=1.0, ge=1, le=100)
    """Factor of the number of scenarios from one step to the next."""
    max_scenarios: int = Field(default=4096, ge=1)
    """Where that growth ends."""


class LBFGSSettings(QuasiNewtonSettings):
    lr: float = Field(default=1.0, gt=0)
    """First step size that a line search tries; the step size without one."""
    tolerance_grad: float = Field(default=1e-10, ge=0)
    """A step ends where the largest component of the gradient is below."""
    tolerance_change: float = Field(default=1e-12, ge=0)
    """A step ends where loss or parameters change by less."""
    line_search_fn: Literal["strong_wolfe", "none"] = "strong_wolfe"


class LBFGSBSettings(QuasiNewtonSettings):
    low: float | None = None
    """Bound of every parameter; bounds of each are an argument of :class:`LBFGSB`."""
    high: float | None = None
    ftol: float = Field(default=1e-12, ge=0)
    """A step ends where the loss changes by less, relatively."""
    gtol: float = Field(default=1e-10, ge=0)
    """A step ends where the largest component of the projected gradient is below."""
    max_line_search: int = Field(default=20, ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> LBFGSBSettings:
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ValueError(f"low = {self.low} must be below high = {self.high}")
        return self


class Seen(NamedTuple):
    """One evaluation within a step."""

    point: Tensor
    loss: float
    norm: float
    gradient: Tensor


class _NotFinite(Exception):
    """Leaves the library's step before it uses a loss or a gradient that is not finite."""


class QuasiNewton(Optimizer):
    """What the two have in common: scenarios, the float64 vector, the memory of a step's evaluations."""

    def __init__(
        self, parameters: Iterable[nn.Parameter], settings: QuasiNewtonSettings, seed: int = 0
    ) -> None:
        super().__init__(parameters, settings, seed)
        self.calls_per_step = 2 * settings.max_iter
        self.point = nn.Parameter(self.vector.read())
        self.steps = 0
        self.restarts = 0
        """How many times a step failed and the next began without curvature."""

    def scenarios(self, batch: int) -> Scenarios:
        kept = round(self.settings.overlap * self._grown(batch, self.steps - 1)) if self.steps else 0
        return Scenarios(self._grown(batch, self.steps), kept)

    def _grown(self, batch: int, steps: int) -> int:
        """How many scenarios there are after so many steps."""
        s, most = self.settings, max(self.settings.max_scenarios, batch)
        # Beyond the step at which they are most, powers would overflow.
        until = math.log(most / batch) / math.log(s.growth) + 1.0 if s.growth > 1.0 else 0.0
        return min(round(batch * s.growth ** min(steps, math.ceil(until))), most)

    def _evaluate(self, objective: Objective, point: Tensor, seen: list[Seen]) -> Seen:
        self.vector.write(point)
        found = objective.gradient()
        if not found.finite:
            if not seen:  # of the step's own starting point there is still something to report
                seen.append(Seen(point.detach().clone(), found.loss, found.norm, found.flat()))
            raise _NotFinite
        self._saw(found.loss, point.detach())
        seen.append(Seen(point.detach().clone(), found.loss, found.norm, found.flat()))
        return seen[-1]

    def _land(self, point: Tensor) -> None:
        """Make ``point`` the optimizer's and, rounded, the policy's."""
        with torch.no_grad():
            self.point.copy_(point)
        self.vector.write(point)

    def suggestions(self) -> list[Tensor]:
        return [self.point.detach().clone()]

    def _state(self) -> dict[str, Any]:
        return {"point": self.point.detach().cpu(), "steps": self.steps, "restarts": self.restarts}

    def _load(self, state: dict[str, Any]) -> None:
        self._land(state["point"].to(self.point.device))
        self.steps, self.restarts = state["steps"], state["restarts"]


class LBFGS(QuasiNewton):
    """``torch.optim.LBFGS`` on the vector; a failed step goes back to its best point and starts afresh from there."""

    Settings: ClassVar[type[LBFGSSettings]] = LBFGSSettings

    def __init__(self, parameters: Iterable[nn.Parameter], settings: LBFGSSettings, seed: int = 0) -> None:
        super().__init__(parameters, settings, seed)
        self.inner = self._fresh()
        self._last_gradient: Tensor | None = None  # at the vector, on the last step's scenarios

    def _fresh(self) -> torch.optim.LBFGS:
        s = self.settings
        return _LBFGS(
            [self.point],
            lr=s.lr,
            max_iter=s.max_iter,
            max_eval=s.max_eval,
            tolerance_grad=s.tolerance_grad,
            tolerance_change=s.tolerance_change,
            history_size=s.history_size,
            line_search_fn=None if s.line_search_fn == "none" else s.line_search_fn,
        )

    def _step(self, objective: Objective, remaining: float) -> tuple[float, float, bool]:
        seen: list[Seen] = []

        def closure() -> Tensor:
            at = self._evaluate(objective, self.point, seen)
            if len(seen) == 1:
                self._same_scenarios(at.gradient)
            self.point.grad = at.gradient.clone()
            return torch.tensor(at.loss, dtype=torch.float64)

        self.steps += 1
        try:
            self.inner.step(closure)
            finite = bool(self.point.isfinite().all())
            if finite and not any(torch.equal(at.point, self.point) for at in seen):
                # Without a line search torch moves on from the last point it has evaluated.
                self._evaluate(objective, self.point, seen)
        except _NotFinite:
            finite = False
        start, best = seen[0], _lowest(seen)
        landed = next((at for at in reversed(seen) if torch.equal(at.point, self.point)), None)
        # A line search that gave up may have left a point higher than others it has seen.
        if not finite or landed is None or landed.loss > start.loss or (best is start and len(seen) > 1):
            self._restart(best)
        else:
            self._land(landed.point)
            self._last_gradient = landed.gradient
        return start.loss, start.norm, finite or best is not start

    def _same_scenarios(self, gradient: Tensor) -> None:
        """Make torch's pending pair of curvature one of the last step's scenarios alone.

        torch will take the difference of ``gradient``, on the new scenarios, and the gradient before the last
        move, on the old ones; shifting the latter by what the change of scenarios did leaves what the move did.
        """
        state = self.inner.state[self.point]
        if self._last_gradient is not None and state.get("prev_flat_grad") is not None:
            state["prev_flat_grad"] = state["prev_flat_grad"] + (gradient - self._last_gradient)

    def _restart(self, best: Seen) -> None:
        self._land(best.point)
        self.inner = self._fresh()
        self._last_gradient = None
        self.restarts += 1

    def _state(self) -> dict[str, Any]:
        inner = self.inner.state_dict()
        # Its parameter is the vector itself; of a restarted one there is no state.
        return {
            **super()._state(),
            "inner": dict(inner["state"]),
            "last_gradient": _on_cpu(self._last_gradient),
        }

    def _load(self, state: dict[str, Any]) -> None:
        super()._load(state)
        self.inner = self._fresh()
        groups = self.inner.state_dict()["param_groups"]
        self.inner.load_state_dict({"state": state["inner"], "param_groups": groups})
        gradient = state["last_gradient"]
        self._last_gradient = None if gradient is None else gradient.to(self.point.device)


class LBFGSB(QuasiNewton):
    """``scipy.optimize.minimize(method="L-BFGS-B")``; one call a step, from no curvature.

    Args:
        bounds: ``(low, high)``, each ``[P]`` in the order of the parameters; by default ``low`` and ``high`` of the
            settings, for all alike.  A start outside is moved to the nearest point inside.
    """

    Settings: ClassVar[type[LBFGSBSettings]] = LBFGSBSettings

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        settings: LBFGSBSettings,
        seed: int = 0,
        bounds: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__(parameters, settings, seed)
        size = len(self.vector)
        low, high = bounds or (_full(size, settings.low, -np.inf), _full(size, settings.high, np.inf))
        for name, bound in (("low", low), ("high", high)):
            if bound.shape != (size,):
                raise ValueError(f"bounds: {name} has the shape {tuple(bound.shape)}, expected [{size}]")
        if not bool((low < high).all()):
            raise ValueError("bounds: every low must be below its high")
        bounded = bool((low.isfinite() | high.isfinite()).any())
        self.bounds = scipy.optimize.Bounds(low.numpy(), high.numpy()) if bounded else None
        inside = self.point.detach().cpu().clamp(low.double(), high.double())
        self._land(inside.to(self.point.device))

    def _step(self, objective: Objective, remaining: float) -> tuple[float, float, bool]:
        seen: list[Seen] = []
        s = self.settings

        def function(x: np.ndarray) -> tuple[float, np.ndarray]:
            at = self._evaluate(objective, torch.from_numpy(x.copy()).to(self.point.device), seen)
            return at.loss, at.gradient.cpu().numpy()

        self.steps += 1
        options = {
            "maxiter": s.max_iter,
            "maxcor": s.history_size,
            "ftol": s.ftol,
            "gtol": s.gtol,
            "maxls": s.max_line_search,
            "maxfun": s.max_eval or 15000,
        }
        try:
            result = scipy.optimize.minimize(
                function,
                self.point.detach().cpu().numpy(),
                jac=True,
                method="L-BFGS-B",
                bounds=self.bounds,
                options=options,
            )
            landed, finite = torch.from_numpy(result.x).to(self.point.device), True
        except _NotFinite:
            best = _lowest(seen)
            landed, finite = best.point, best is not seen[0]
            self.restarts += 1
        self._land(landed)
        return seen[0].loss, seen[0].norm, finite


def _lowest(seen: list[Seen]) -> Seen:
    """The best of a step's evaluations; its start if that was not finite, for then there are no others."""
    return min(seen, key=lambda at: at.loss) if seen[0].loss == seen[0].loss else seen[0]


def _full(size: int, value: float | None, default: float) -> Tensor:
    return torch.full((size,), default if value is None else value, dtype=torch.float64)


def _on_cpu(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.cpu()
