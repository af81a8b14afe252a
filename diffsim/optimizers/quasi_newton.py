"""L-BFGS with a strong Wolfe line search (torch's), and L-BFGS-B for bounded parameters (SciPy's).

A step is a few iterations on one fixed set of scenarios, so that the points of a line search are compared on the
same function.  Between steps new scenarios are drawn, some are kept, and their number may grow.  Curvature pairs
are computed on one set only: the difference of gradients on two sets would be mostly noise (Berahas, Nocedal and
Takáč, "A Multi-Batch L-BFGS Method for Machine Learning", 2016, arXiv 1605.06049; growing samples: Bollapragada et
al., "A Progressive Batching L-BFGS Method", 2018, arXiv 1802.05374).

The parameters are optimized as a vector in float64.  A float32 policy receives rounded values, and only the rounding of
its loss and gradient limits the line search.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from diffsim.optimizers.base import Optimizer, Scenarios
from diffsim.optimizers.objective import Objective
from diffsim.optimizers.torch_classes import undecorated
from diffsim.settings import Settings


class QuasiNewtonSettings(Settings):
    max_iter: int = Field(default=4, ge=1)
    """Iterations per step, all on the same scenarios."""
    max_eval: int | None = Field(default=None, ge=1)
    """Evaluations after which a step ends; a line search in progress is finished first."""
    history_size: int = Field(default=20, ge=1)
    """Number of curvature pairs that are stored."""
    overlap: float = Field(default=0.5, ge=0, le=1)
    """Fraction of the scenarios that the next step keeps; at 1 no new ones are drawn."""
    growth: float = Field(default=1.0, ge=1, le=100)
    """Factor by which the number of scenarios grows from one step to the next."""
    max_scenarios: int = Field(default=4096, ge=1)
    """Largest number of scenarios."""


class LBFGSSettings(QuasiNewtonSettings):
    lr: float = Field(default=1.0, gt=0)
    """First step size that a line search tries; without a line search, the step size."""
    tolerance_grad: float = Field(default=1e-10, ge=0)
    """A step ends when the largest component of the gradient is below this."""
    tolerance_change: float = Field(default=1e-12, ge=0)
    """A step ends when loss or parameters change by less than this."""
    line_search_fn: Literal["strong_wolfe", "none"] = "strong_wolfe"
    """Line search; none takes steps of size lr."""


class LBFGSBSettings(QuasiNewtonSettings):
    low: float | None = None
    """Lower bound of every parameter; :class:`LBFGSB` also takes one bound per parameter as an argument."""
    high: float | None = None
    """Upper bound of every parameter."""
    ftol: float = Field(default=1e-12, ge=0)
    """A step ends when the relative change of the loss is below this."""
    gtol: float = Field(default=1e-10, ge=0)
    """A step ends when the largest component of the projected gradient is below this."""
    max_line_search: int = Field(default=20, ge=1)
    """Evaluations per line search."""

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
    """Ends the library's step before it uses a loss or a gradient that is not finite."""


class QuasiNewton(Optimizer):
    """Base of both: scenarios, the float64 vector, the evaluations of a step."""

    def __init__(
        self, parameters: Iterable[nn.Parameter], settings: QuasiNewtonSettings, seed: int = 0
    ) -> None:
        super().__init__(parameters, settings, seed)
        self.calls_per_step = 2 * settings.max_iter
        self.point = nn.Parameter(self.vector.read())
        self.steps = 0
        self.restarts = 0
        """How many steps failed; the next one started without curvature pairs."""

    def scenarios(self, batch: int) -> Scenarios:
        kept = round(self.settings.overlap * self._grown(batch, self.steps - 1)) if self.steps else 0
        return Scenarios(self._grown(batch, self.steps), kept)

    def _grown(self, batch: int, steps: int) -> int:
        """Number of scenarios after ``steps`` steps."""
        s, most = self.settings, max(self.settings.max_scenarios, batch)
        # The exponent is limited, because for many steps the power would overflow.
        until = math.log(most / batch) / math.log(s.growth) + 1.0 if s.growth > 1.0 else 0.0
        return min(round(batch * s.growth ** min(steps, math.ceil(until))), most)

    def _evaluate(self, objective: Objective, point: Tensor, seen: list[Seen]) -> Seen:
        self.vector.write(point)
        found = objective.gradient()
        if not found.finite:
            if not seen:  # report the values at the start of the step
                seen.append(Seen(point.detach().clone(), found.loss, found.norm, found.flat()))
            raise _NotFinite
        self._saw(found.loss, point.detach())
        seen.append(Seen(point.detach().clone(), found.loss, found.norm, found.flat()))
        return seen[-1]

    def _land(self, point: Tensor) -> None:
        """Set the optimizer's vector to ``point``, and the policy's parameters to its rounded values."""
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
    """``torch.optim.LBFGS`` on the vector; a failed step ends at its best point; the next one has no curvature."""

    Settings: ClassVar[type[LBFGSSettings]] = LBFGSSettings

    def __init__(self, parameters: Iterable[nn.Parameter], settings: LBFGSSettings, seed: int = 0) -> None:
        super().__init__(parameters, settings, seed)
        self.inner = self._fresh()
        self._last_gradient: Tensor | None = None  # at ``point``, on the scenarios of the last step

    def _fresh(self) -> torch.optim.LBFGS:
        s = self.settings
        return undecorated(torch.optim.LBFGS)(
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
            return torch.tensor(at.loss, dtype=torch.float64, device="cpu")

        self.steps += 1
        try:
            self.inner.step(closure)
            finite = bool(self.point.isfinite().all())
            if finite and not any(torch.equal(at.point, self.point) for at in seen):
                # Without a line search, torch's last move is not evaluated.
                self._evaluate(objective, self.point, seen)
        except _NotFinite:
            finite = False
        start, best = seen[0], _lowest(seen)
        landed = next((at for at in reversed(seen) if torch.equal(at.point, self.point)), None)
        # A line search that failed can end at a higher point than others it evaluated.
        if not finite or landed is None or landed.loss > start.loss or (best is start and len(seen) > 1):
            self._restart(best)
        else:
            self._land(landed.point)
            self._last_gradient = landed.gradient
        return start.loss, start.norm, finite or best is not start

    def _same_scenarios(self, gradient: Tensor) -> None:
        """Correct torch's next curvature pair for the change of scenarios.

        torch will subtract the gradient before the last move, on the old scenarios, from ``gradient``, on the new
        ones. Adding to the former the change of the gradient at the present point between both sets leaves the
        change that the move caused.
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
        # Its only parameter is the vector, which is stored as point; after a restart its state is empty.
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
    """``scipy.optimize.minimize(method="L-BFGS-B")``; one call per step, which starts without curvature pairs.

    Args:
        bounds: ``(low, high)``, each ``[P]`` in the order of the parameters; by default ``low`` and ``high`` of the
            settings for every parameter.  Initial parameters outside are moved to the nearest point inside.
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
                raise ValueError(f"bounds: {name} has the shape {list(bound.shape)}, expected [{size}]")
        if not bool((low < high).all()):
            raise ValueError("bounds: every low must be below its high")
        bounded = bool((low.isfinite() | high.isfinite()).any())
        self.bounds = (low.numpy(), high.numpy()) if bounded else None
        inside = self.point.detach().cpu().clamp(low.double(), high.double())
        self._land(inside.to(self.point.device))

    def _step(self, objective: Objective, remaining: float) -> tuple[float, float, bool]:
        # Half a second, which making the optimizer need not wait for.
        from scipy.optimize import Bounds, minimize

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
            result = minimize(
                function,
                self.point.detach().cpu().numpy(),
                jac=True,
                method="L-BFGS-B",
                bounds=None if self.bounds is None else Bounds(*self.bounds),
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
    """The evaluation with the lowest loss; if the first is not finite, it is the only one."""
    return min(seen, key=lambda at: at.loss) if seen[0].loss == seen[0].loss else seen[0]


def _full(size: int, value: float | None, default: float) -> Tensor:
    return torch.full((size,), default if value is None else value, dtype=torch.float64, device="cpu")


def _on_cpu(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.cpu()
