"""Optimizers behind one contract: ``step(objective) -> StepReport`` with exact evaluation counts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diffsim.config import OptimizerConfig
from diffsim.errors import ConfigError
from solvers.catalogue import unknown

Objective = Callable[[], Tensor]
"""The scalar loss of the parameters as they stand. It must be a fixed function while a step lasts:
initial states and noise are drawn before, so that a line search compares like with like."""

# SparseAdam needs sparse gradients and Muon only matrices; neither can train a policy network.
_UNUSABLE = {"Optimizer", "SparseAdam", "Muon"}


class StepReport(NamedTuple):
    """What one optimizer step did."""

    loss: float
    """At the parameters before the step."""
    grad_norm: float
    """Euclidean norm of the first gradient, before any scaling."""
    evaluations: int
    """Evaluations of the objective with its gradient."""
    finite: bool
    """Whether loss and gradient were finite; if not, the parameters are as they were before."""


def optimizer_classes() -> dict[str, type[torch.optim.Optimizer]]:
    """Every usable optimizer of torch.optim by lower-case name."""
    return {
        name.lower(): value
        for name, value in vars(torch.optim).items()
        if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer) and name not in _UNUSABLE
    }


class TorchOptimizer:
    """Any optimizer of torch.optim, with a learning-rate schedule and a guard against non-finite steps."""

    def __init__(self, parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> None:
        self.parameters = list(parameters)
        self.config = config
        self.inner = _construct(self.parameters, config)
        self.base_rates = [group["lr"] for group in self.inner.param_groups]

    def step(self, objective: Objective, remaining: float = 1.0) -> StepReport:
        """One step on ``objective``; ``remaining`` in (0, 1] is the share of the run still ahead.

        Loss and gradient norm reach the host in one transfer, because a non-finite gradient must be
        dropped before it touches the parameters or the moments.
        """
        if self.config.schedule == "linear":
            for group, rate in zip(self.inner.param_groups, self.base_rates, strict=True):
                group["lr"] = rate * remaining
        reports: list[tuple[float, float]] = []

        def closure() -> Tensor:
            loss = objective()
            if not loss.requires_grad:
                raise ConfigError(
                    "the loss does not depend on the policy: the cost ignores states and actions, or "
                    "something detaches them; robotics_envs.check_env tells which"
                )
            gradients = torch.autograd.grad(loss, self.parameters)
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
            loss_value, norm_value = torch.stack((loss.detach(), norm)).tolist()
            reports.append((loss_value, norm_value))
            if not _finite(loss_value, norm_value):
                raise _NonFinite
            limit = self.config.max_grad_norm
            if limit is not None and norm_value > limit:
                torch._foreach_mul_(gradients, limit / norm_value)
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                parameter.grad = gradient
            return loss.detach()

        # A line search moves the parameters before it meets a non-finite value: keep the way back.
        searches = isinstance(self.inner, torch.optim.LBFGS)
        before = [p.detach().clone() for p in self.parameters] if searches else []
        try:
            self.inner.step(closure)  # type: ignore[arg-type]
            finite = True
        except _NonFinite:
            finite = False
        if searches and not (finite and all(bool(p.isfinite().all()) for p in self.parameters)):
            finite = False
            with torch.no_grad():
                for parameter, value in zip(self.parameters, before, strict=True):
                    parameter.copy_(value)
            # Its curvature history now holds the failed step: start it afresh.
            self.inner = _construct(self.parameters, self.config)
        return StepReport(*reports[0], evaluations=len(reports), finite=finite)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on bit for bit."""
        return self.inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where ``state_dict`` was taken."""
        self.inner.load_state_dict(state)
        # torch casts the state to the parameters' dtype, which changes float32 scalars of float64 runs.
        parameters = [p for group in self.inner.param_groups for p in group["params"]]
        for index, entries in state["state"].items():
            loaded = self.inner.state[parameters[index]]
            for name, value in entries.items():
                if isinstance(value, Tensor) and loaded[name].dtype != value.dtype:
                    loaded[name] = value.to(loaded[name].device)


class _NonFinite(Exception):
    """Leaves the optimizer's step before it uses a non-finite gradient."""


def _finite(*values: float) -> bool:
    return all(v - v == 0.0 for v in values)


def _construct(parameters: list[nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    classes = optimizer_classes()
    name = config.name.lower()
    if name not in classes:
        raise ConfigError(unknown("optimizer", config.name, classes))
    known = list(inspect.signature(classes[name]).parameters)[1:]
    for option in config.options:
        if option not in known:
            names = [f"optimizer.{k}" for k in (*known, "schedule", "max_grad_norm")]
            raise ConfigError(unknown("key", f"optimizer.{option}", names))
    options: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in config.options.items()}
    # torch accepts any line search at construction and fails at the first step.
    if options.get("line_search_fn") not in (None, "strong_wolfe"):
        raise ConfigError(unknown("optimizer.line_search_fn", options["line_search_fn"], ["strong_wolfe"]))
    chosen = {"foreach", "differentiable", "capturable"} & options.keys()
    if "fused" in known and not chosen and parameters[0].device.type in ("cpu", "cuda"):
        options.setdefault("fused", True)
    try:
        return classes[name](parameters, **options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optimizer {config.name!r} with {config.options}: {error}") from None
