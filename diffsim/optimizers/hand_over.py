"""Two optimizers in sequence: Adam and then SGD, or a population method and then a gradient method."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field, PrivateAttr, ValidationInfo, field_validator
from torch import nn

from diffsim.config import OPTIMIZERS, Named, built_in_settings
from diffsim.optimizers import optimizer_class, optimizer_settings
from diffsim.optimizers.base import Optimizer, Scenarios
from diffsim.optimizers.objective import Objective
from diffsim.settings import Settings


class Part(Named):
    """An optimizer by name, with its options validated and its defaults written out."""

    _settings: Settings = PrivateAttr()

    @classmethod
    def of(cls, named: Named, section: str) -> Part:
        """The validated part that ``named`` describes.

        Raises:
            ConfigError: an unknown name or option, or an impossible value.
        """
        settings = optimizer_settings(named, section)
        part = cls(name=named.name, **settings.model_dump())
        part._settings = settings
        return part

    def make(self, parameters: Iterable[nn.Parameter], seed: int) -> Optimizer:
        return optimizer_class(self.name)(parameters, self._settings, seed)


class HandOverSettings(Settings):
    first: Named = Field(default=Named(name="adam"), validate_default=True)
    """The first optimizer: its name, with its options."""
    then: Named = Field(default=Named(name="sgd"), validate_default=True)
    """The second optimizer, which continues from the result of the first."""
    at: float = Field(default=0.5, gt=0, le=1)
    """Fraction of the run after which the second optimizer takes over at the latest; 1 for on a plateau only."""
    patience: int | None = Field(default=None, ge=1)
    """Steps without progress after which the second optimizer takes over; None for no such rule."""
    threshold: float = Field(default=1e-3, ge=0)
    """Smallest relative decrease of the loss, averaged over about ``patience / 4`` steps, that counts as progress."""

    @classmethod
    def current_names(
        cls,
        values: Mapping[str, Any],
        section: str = "",
        chosen: Mapping[str, Any] | None = None,
        warn: bool = True,
    ) -> dict[str, Any]:
        result = super().current_names(values, section, chosen, warn)
        for part in ("first", "then"):
            given, before = result.get(part), (chosen or {}).get(part)
            if not isinstance(given, Mapping):
                continue
            before = {"name": before} if isinstance(before, str) else before or {}
            name = given.get("name", before.get("name", cls.model_fields[part].default.name))
            settings = built_in_settings(OPTIMIZERS, str(name))
            if settings is not None:
                key = f"{section}.{part}" if section else part
                result[part] = settings.current_names(given, key, before, warn)
        return result

    @field_validator("first", "then", mode="before")
    @classmethod
    def _by_name(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, Mapping) and "name" not in value:
            return {"name": cls.model_fields[str(info.field_name)].default.name, **value}
        return {"name": value} if isinstance(value, str) else value

    @field_validator("first", "then")
    @classmethod
    def _written_out(cls, value: Named, info: ValidationInfo) -> Named:
        """Add the defaults of the named optimizer, so that a run stores them."""
        return Part.of(value, f"optimizer.{info.field_name}")


class HandOver(Optimizer):
    """Steps of ``first``, then steps of ``then`` from the best of the points that ``first`` suggests.

    If there are several points (the mean of a population and the best candidate evaluated), they are compared on the
    scenarios of the step at which ``then`` takes over, because a low value from earlier scenarios may be due to easy
    scenarios.  The learning-rate schedule of each optimizer spans its own part of the run.
    """

    Settings: ClassVar[type[HandOverSettings]] = HandOverSettings

    def __init__(self, parameters: Iterable[nn.Parameter], settings: HandOverSettings, seed: int = 0) -> None:
        super().__init__(parameters, settings, seed)
        self.handed_over = False
        self.current = self._make(0)
        self.calls_per_step = max(self.current.calls_per_step, self._make(1).calls_per_step)
        self.span = (1.0, 1.0 - settings.at)
        """Fractions of the run that are left when the current optimizer begins and when it ends."""
        self.smooth: float | None = None
        self.lowest = float("inf")
        self.waited = 0

    def _make(self, which: int) -> Optimizer:
        part = (self.settings.first, self.settings.then)[which]
        return part.make(self.vector.parameters, self.generator.initial_seed() + which)

    def scenarios(self, batch: int) -> Scenarios:
        return self.current.scenarios(batch)

    def suggestions(self) -> list[torch.Tensor]:
        return self.current.suggestions()

    def _step(self, objective: Objective, remaining: float) -> tuple[float, float, bool]:
        if not self.handed_over and self._due(remaining):
            self._hand_over(objective, remaining)
        begins, ends = self.span
        share = min(1.0, max((remaining - ends) / (begins - ends), 1e-9))
        report = self.current.step(objective, share)
        self._saw(self.current.best_loss, self.current.best)
        self._watch(report.loss)
        return report.loss, report.grad_norm, report.finite

    def _due(self, remaining: float) -> bool:
        s = self.settings
        by_time = 1.0 - remaining >= s.at - 1e-12
        return by_time or (s.patience is not None and self.waited >= s.patience)

    def _watch(self, loss: float) -> None:
        """Count the steps since the averaged loss last decreased."""
        s = self.settings
        if s.patience is None or loss - loss != 0.0:
            return
        rate = min(1.0, 4.0 / s.patience)
        self.smooth = loss if self.smooth is None else self.smooth + rate * (loss - self.smooth)
        if self.smooth < self.lowest - s.threshold * abs(self.lowest if self.lowest < float("inf") else 0.0):
            self.lowest, self.waited = self.smooth, 0
        else:
            self.waited += 1

    def _hand_over(self, objective: Objective, remaining: float) -> None:
        points = self.current.suggestions()
        if len(points) > 1:
            values = objective.values(torch.stack(points))
            values = torch.where(values.isfinite(), values, torch.inf)
            points = [points[int(values.argmin())]]
        self.vector.write(points[0])
        self.current = self._make(1)
        self.span = (remaining, 0.0)
        self.handed_over = True

    def _state(self) -> dict[str, Any]:
        return {
            "handed_over": self.handed_over,
            "span": list(self.span),
            "smooth": self.smooth,
            "lowest": self.lowest,
            "waited": self.waited,
            "current": self.current.state_dict(),
        }

    def _load(self, state: dict[str, Any]) -> None:
        self.handed_over = state["handed_over"]
        self.span = (state["span"][0], state["span"][1])
        self.smooth, self.lowest, self.waited = state["smooth"], state["lowest"], state["waited"]
        self.current = self._make(int(self.handed_over))
        self.current.load_state_dict(state["current"])
