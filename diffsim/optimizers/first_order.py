"""First-order optimizers: those of ``torch.optim`` and of ``pytorch_optimizer``, with schedules and clipping.

The update rules are the libraries'.  This module adds validated options, learning-rate schedules over the run,
clipping of the gradient's norm, and the rejection of steps that are not finite.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import ConfigDict, Field, field_validator
from torch import Tensor, nn

from diffsim.errors import ConfigError
from diffsim.optimizers.alpha_order import blend
from diffsim.optimizers.base import Optimizer
from diffsim.optimizers.objective import Gradient, Objective
from diffsim.optimizers.torch_classes import undecorated
from diffsim.settings import Settings, plain
from lazy_registry.registry import unknown

Fraction = Annotated[float, Field(ge=0, lt=1)]
SCHEDULES = ("linear", "cosine", "constant")

# SparseAdam needs sparse gradients and Muon only matrices; neither can train a policy network.
_UNUSABLE = {"Optimizer", "SparseAdam", "Muon", "LBFGS"}
# These say how torch computes, which this module decides; and a loss is always minimised.
_NOT_OPTIONS = {"foreach", "fused", "differentiable", "capturable", "maximize"}


class FirstOrderSettings(Settings):
    lr: float = Field(gt=0)
    """Largest learning rate of the schedule."""
    schedule: str | dict[str, Any] = "linear"
    """Learning-rate schedule over the run: linear (to zero), cosine (to zero), constant, or a class of
    ``torch.optim.lr_scheduler`` with its options, counted in steps: ``{name = "StepLR", step_size = 100}``."""
    warm_up: Fraction = 0.0
    """Fraction of the run over which the learning rate rises linearly from zero; 0 for none."""
    max_grad_norm: float | None = Field(default=None, gt=0)
    """Gradients with a larger norm are scaled down to this norm; None for no clipping."""
    gradient: Literal["first_order", "zeroth_order", "alpha_order"] = "first_order"
    """Estimator of the gradient; see :mod:`diffsim.optimizers.alpha_order`."""
    gradient_groups: int = Field(default=8, ge=2)
    """Number of estimates that their variances are computed from; not used by first_order."""
    smoothing: float | None = Field(default=None, gt=0)
    """Standard deviation of the noise for zeroth_order and alpha_order; None takes the algorithm's, or else 0.1."""
    bias_tolerance: float = Field(default=2.0, ge=1)
    """Of alpha_order: the accepted bias plus one, in radii of the zeroth-order estimate's 95 % confidence interval."""

    @field_validator("schedule")
    @classmethod
    def _known_schedule(cls, schedule: str | dict[str, Any]) -> str | dict[str, Any]:
        name = schedule.get("name") if isinstance(schedule, dict) else schedule
        if name not in (*SCHEDULES, *_schedulers()):
            raise ValueError(unknown("schedule", name, [*SCHEDULES, *_schedulers()]))
        if name in SCHEDULES and isinstance(schedule, dict):
            if len(schedule) > 1:
                raise ValueError(f"schedule {name!r} has no options")
            return str(name)
        return schedule


class SGDSettings(FirstOrderSettings):
    lr: float = Field(default=2.0, gt=0)
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)


class MomentumSettings(SGDSettings):
    lr: float = Field(default=0.5, gt=0)
    momentum: Fraction = 0.9
    dampening: Fraction = 0.0


class NesterovSettings(SGDSettings):
    lr: float = Field(default=0.5, gt=0)
    momentum: float = Field(default=0.9, gt=0, lt=1)


class AdaGradSettings(FirstOrderSettings):
    lr: float = Field(default=0.02, gt=0)
    lr_decay: float = Field(default=0.0, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    initial_accumulator_value: float = Field(default=0.0, ge=0)
    eps: float = Field(default=1e-10, ge=0)


class RMSpropSettings(FirstOrderSettings):
    lr: float = Field(default=5e-3, gt=0)
    alpha: Fraction = 0.99
    eps: float = Field(default=1e-8, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    momentum: float = Field(default=0.0, ge=0)
    centered: bool = False


class AdamSettings(FirstOrderSettings):
    lr: float = Field(default=5e-3, gt=0)
    betas: tuple[Fraction, Fraction] = (0.7, 0.95)
    eps: float = Field(default=1e-8, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    amsgrad: bool = False


class AdamWSettings(AdamSettings):
    weight_decay: float = Field(default=0.01, ge=0)


class LARSSettings(FirstOrderSettings):
    lr: float = Field(default=0.5, gt=0)
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    momentum: Fraction = 0.9
    dampening: Fraction = 0.0
    weight_decay: float = Field(default=0.0, ge=0)
    trust_coefficient: float = Field(default=0.02, gt=0)
    """A step of a weight matrix has this fraction of its norm, times lr; biases and other vectors: momentum steps."""
    nesterov: bool = False


class LambSettings(FirstOrderSettings):
    lr: float = Field(default=0.03, gt=0)
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: float = Field(default=1e-6, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)


class AnySettings(FirstOrderSettings):
    """Options of an optimizer that is not in the registry: those of its class beside ours, with its defaults."""

    model_config = ConfigDict(extra="allow")

    lr: float | None = Field(default=None, gt=0)  # type: ignore[assignment]


class FirstOrder(Optimizer):
    """Base of optimizers that wrap a ``torch.optim.Optimizer`` class; subclasses name the class."""

    Settings: ClassVar[type[FirstOrderSettings]] = FirstOrderSettings
    library: ClassVar[str] = "torch.optim"
    class_name: ClassVar[str]
    fixed: ClassVar[dict[str, Any]] = {}
    """Options of the class that users cannot change, such as Nesterov's ``nesterov=True``."""

    def __init__(
        self, parameters: Iterable[nn.Parameter], settings: FirstOrderSettings, seed: int = 0
    ) -> None:
        super().__init__(parameters, settings, seed)
        if settings.gradient != "first_order":
            self.calls_per_step = settings.gradient_groups
        self.inner = self._construct(self.inner_class())
        self.base_rates = [float(group["lr"]) for group in self.inner.param_groups]
        self.scheduler = self._torch_scheduler()
        self.alpha = 1.0
        """Weight of the first-order estimate in the last step."""

    @classmethod
    def inner_class(cls) -> type[torch.optim.Optimizer]:
        return getattr(importlib.import_module(cls.library), cls.class_name)

    def options(self) -> dict[str, Any]:
        """Arguments of the class's constructor."""
        return self.settings.model_dump(exclude=set(FirstOrderSettings.model_fields) - {"lr"}) | self.fixed

    def _construct(self, inner: type[torch.optim.Optimizer]) -> torch.optim.Optimizer:
        options = self.options()
        known = inspect.signature(inner).parameters
        kind = self.vector.device.type
        # The fused Adagrad runs on CUDA from torch 2.12 on; before, its first step raises.
        if "fused" in known and (kind == "cpu" or (kind == "cuda" and inner is not torch.optim.Adagrad)):
            options.setdefault("fused", True)
        try:
            return undecorated(inner)(self.vector.parameters, **options)
        except (TypeError, ValueError, AssertionError) as error:
            raise ConfigError(f"optimizer {inner.__name__} with {options}: {error}") from None

    def _torch_scheduler(self) -> Any:
        chosen = self.settings.schedule
        if chosen in SCHEDULES:
            return None
        name, options = (chosen, {}) if isinstance(chosen, str) else (chosen["name"], chosen)
        given = {k: v for k, v in options.items() if k != "name"}
        scheduler = _schedulers()[name]
        known = list(inspect.signature(scheduler).parameters)[1:]
        for key in given:
            if key not in known:
                names = [f"optimizer.schedule.{k}" for k in known]
                raise ConfigError(unknown("key", f"optimizer.schedule.{key}", names))
        try:
            return scheduler(self.inner, **given)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"optimizer.schedule {name} with {given}: {error}") from None

    def _step(self, objective: Objective, remaining: float) -> tuple[float, float, bool]:
        found = self._gradient(objective)
        if not found.finite:
            return found.loss, found.norm, False
        if self.settings.gradient == "first_order":
            self._saw(found.loss)
        # Autograd may return expanded tensors whose entries share memory; optimizers write in place.
        gradients = [g.clone(memory_format=torch.contiguous_format) for g in found.parts]
        limit = self.settings.max_grad_norm
        if limit is not None and found.norm > limit:
            torch._foreach_mul_(gradients, limit / found.norm)
        for parameter, gradient in zip(self.vector.parameters, gradients, strict=True):
            parameter.grad = gradient
        rates = self._set_rates(remaining)
        parameters = [p.detach() for p in self.vector.parameters]
        before = [p.clone() for p in parameters]
        self.inner.step()
        if (
            self.scheduler is not None
        ):  # schedulers compute from the last rate, which must not include the warm-up
            for group, rate in zip(self.inner.param_groups, rates, strict=True):
                group["lr"] = rate
        if not bool(torch.stack(torch._foreach_norm(parameters)).isfinite().all()):
            torch._foreach_copy_(parameters, before)  # the step overflowed
            return found.loss, found.norm, False
        self._advance_scheduler(found.loss)
        return found.loss, found.norm, True

    def _advance_scheduler(self, loss: float) -> None:
        if self.scheduler is None:
            return
        by_loss = isinstance(self.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
        try:
            self.scheduler.step(*([loss] if by_loss else []))
        except ValueError as error:
            raise ConfigError(f"optimizer.schedule {self.settings.schedule}: {error}") from None

    def _gradient(self, objective: Objective) -> Gradient:
        s = self.settings
        if s.gradient == "first_order":
            return objective.gradient()
        samples = objective.samples(s.gradient_groups, s.smoothing, self.generator)
        if s.gradient == "zeroth_order":
            flat = samples.zeroth.mean(0)
        else:
            flat, self.alpha = blend(samples, s.bias_tolerance)
        self._saw(*samples.lowest)
        norm, loss = float(torch.linalg.vector_norm(flat)), float(samples.losses.mean())
        parts = [part[0] for part in self.vector.stacked(flat.unsqueeze(0))]
        return Gradient(loss, norm, parts)

    def _set_rates(self, remaining: float) -> list[float]:
        """Set this step's learning rates; return the schedule's rates, without the warm-up."""
        rates = [float(group["lr"]) for group in self.inner.param_groups]
        if self.scheduler is None:
            rates = [rate * falling(self.settings.schedule, remaining) for rate in self.base_rates]
        warm = rising(self.settings.warm_up, remaining)
        for group, rate in zip(self.inner.param_groups, rates, strict=True):
            group["lr"] = rate * warm
        return rates

    def _state(self) -> dict[str, Any]:
        state: dict[str, Any] = {"inner": self.inner.state_dict(), "alpha": self.alpha}
        if self.scheduler is not None:
            state["scheduler"] = {k: plain(v) for k, v in self.scheduler.state_dict().items() if _stored(v)}
        return state

    def _load(self, state: dict[str, Any]) -> None:
        self.alpha = state["alpha"]
        inner = state["inner"]
        self.inner.load_state_dict(inner)
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        # load_state_dict casts the state to the dtype of the parameters; restore the stored dtype.
        parameters = [p for group in self.inner.param_groups for p in group["params"]]
        for index, entries in inner["state"].items():
            loaded = self.inner.state[parameters[index]]
            for name, value in entries.items():
                if isinstance(value, Tensor) and loaded[name].dtype != value.dtype:
                    loaded[name] = value.to(loaded[name].device)


def falling(schedule: Any, remaining: float) -> float:
    """Factor of the learning rate when the fraction ``remaining`` of the run is left; cosine: arXiv 1608.03983, (5)."""
    if schedule == "linear":
        return remaining
    return 0.5 * (1.0 + math.cos(math.pi * (1.0 - remaining))) if schedule == "cosine" else 1.0


def rising(warm_up: float, remaining: float) -> float:
    """Factor of the learning rate during warm-up; at least 1e-3 / warm_up, because zero would waste a step."""
    return min(1.0, max(1.0 - remaining, 1e-3) / warm_up) if warm_up else 1.0


def _schedulers() -> dict[str, Any]:
    """The classes of ``torch.optim.lr_scheduler`` that need no function or other scheduler as an argument."""
    module = torch.optim.lr_scheduler
    base = (module.LRScheduler, module.ReduceLROnPlateau)
    compound = {"LRScheduler", "ChainedScheduler", "SequentialLR", "LambdaLR", "MultiplicativeLR"}
    return {
        name: value
        for name, value in vars(module).items()
        if inspect.isclass(value)
        and issubclass(value, base)
        and not name.startswith("_")
        and name not in compound
    }


def _stored(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str, list, tuple, dict))


class SGD(FirstOrder):
    Settings = SGDSettings
    class_name = "SGD"


class Momentum(SGD):
    Settings = MomentumSettings


class Nesterov(SGD):
    Settings = NesterovSettings
    fixed: ClassVar[dict[str, Any]] = {"nesterov": True}


class AdaGrad(FirstOrder):
    Settings = AdaGradSettings
    class_name = "Adagrad"


class RMSprop(FirstOrder):
    Settings = RMSpropSettings
    class_name = "RMSprop"


class Adam(FirstOrder):
    Settings = AdamSettings
    class_name = "Adam"


class AdamW(FirstOrder):
    Settings = AdamWSettings
    class_name = "AdamW"


class LARS(FirstOrder):
    Settings = LARSSettings
    library = "pytorch_optimizer"
    class_name = "LARS"


class Lamb(FirstOrder):
    Settings = LambSettings
    library = "pytorch_optimizer"
    class_name = "Lamb"


def optimizer_classes() -> dict[str, type[torch.optim.Optimizer]]:
    """Every usable optimizer of torch.optim by lower-case name."""
    return {
        name.lower(): value
        for name, value in vars(torch.optim).items()
        if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer) and name not in _UNUSABLE
    }


def any_first_order(inner: type[torch.optim.Optimizer]) -> type[FirstOrder]:
    """The :class:`FirstOrder` that wraps a torch optimizer class which is not in the registry.

    Raises:
        ConfigError: it is not a subclass of torch.optim.Optimizer, or cannot be used here.
    """
    if not (inspect.isclass(inner) and issubclass(inner, torch.optim.Optimizer)):
        raise ConfigError(f"optimizer {inner!r} is not a subclass of torch.optim.Optimizer")
    if inner.__name__ in _UNUSABLE:
        raise ConfigError(
            f"optimizer {inner.__name__} does not support dense vectors and matrices, which policies have"
        )
    closure = inspect.signature(inner.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ConfigError(
            f"optimizer {inner.__name__} needs a closure that evaluates the loss; only optimizers that step without "
            "one can be used"
        )
    known = own_options(inner)

    class OwnSettings(AnySettings):
        def __init__(self, **values: Any) -> None:
            for key in values:
                if key not in known and key not in FirstOrderSettings.model_fields:
                    names = {f"optimizer.{k}" for k in (*known, *FirstOrderSettings.model_fields)}
                    raise ConfigError(unknown("key", f"optimizer.{key}", names))
            super().__init__(**values)

    class Wrapped(FirstOrder):
        Settings = OwnSettings

        @classmethod
        def inner_class(cls) -> type[torch.optim.Optimizer]:
            return inner

        def options(self) -> dict[str, Any]:
            given = {k: tuple(v) if isinstance(v, list) else v for k, v in super().options().items()}
            return {k: v for k, v in given.items() if not (k == "lr" and v is None)}

    Wrapped.__name__ = inner.__name__
    return Wrapped


def own_options(inner: type[torch.optim.Optimizer]) -> list[str]:
    """Options of a torch optimizer class that users can set."""
    known = list(inspect.signature(inner).parameters.values())[1:]
    return [
        q.name for q in known if q.kind is not inspect.Parameter.VAR_KEYWORD and q.name not in _NOT_OPTIONS
    ]
