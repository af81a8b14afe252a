"""What a rollout is computed from and what comes out: the contract between ``Rollout`` and the back ends."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from diffsim.rollouts.autocast import State
from diffsim.rollouts.noise import Noise
from lazy_registry.source_places import defined_at
from robotics_envs.base import Env, SizeError
from solvers.compiler.fingerprint import Held


@dataclass(eq=False)  # not frozen, which makes it five times as slow to build; nobody changes one
class Inputs:
    """The arguments of one call of a rollout.

    Attributes:
        act: ``(x [B, n], noise [B, m] or None) -> u [B, m]``, the policy on what is observed.
        terminal: ``x [B, n] -> [B]``, the value at the end of the horizon; None for none.
        x0: ``[B, n]``.
        p: physical parameters, ``[]`` or ``[B]``.
        noise, controls: ``[steps, B, m]`` or None; noise may be a generator.
        modules: those of policy and terminal value that are modules.
        parameters: their parameters whose gradient is computed.
        fixed: those that require a gradient which is not computed here.
        truncate: the gradient is cut after every so many control intervals.
        costate_bound: see :meth:`bounded`; None for no bound.
        members: number of policies; ``B`` holds equally many rollouts of each, one policy after the other.
        stacked: for a parameter (by identity) the values of all members, ``[members, ...]``.
        act_together: ``act`` of all members at once.
        threads, most_threads: of native back ends; the most where a call takes long.
        noise_of: ``[B]``, the number of the rollout whose generated noise each rollout takes; None for its own.
        held: the fingerprint of simulator, policy and terminal value.
        beside: the parameters and buffers that are not among ``parameters``.
        cast: what ``torch.autocast`` does during the call.
    """

    env: Env
    act: Callable[[Tensor, Tensor | None], Tensor]
    terminal: Callable[[Tensor], Tensor] | None
    x0: Tensor
    steps: int
    p: dict[str, Tensor]
    noise: Tensor | Noise | None
    controls: Tensor | None
    modules: tuple[nn.Module, ...]
    parameters: tuple[Tensor, ...]
    fixed: tuple[Tensor, ...] = ()
    truncate: int | None = None
    costate_bound: float | None = None
    threads: int = 1
    most_threads: int = 1
    members: int = 1
    stacked: dict[int, Tensor] = field(default_factory=dict)
    act_together: Callable[[Tensor, Tensor | None], Tensor] | None = None
    noise_of: Tensor | None = None
    held: Held | None = None
    beside: tuple[Tensor, ...] = ()
    cast: State = ()

    def noise_at(self, t: int) -> Tensor | None:
        """The noise of a control interval, ``[B, m]``."""
        if isinstance(self.noise, Noise):
            made = self.noise.at(t, len(self.x0), len(self.env.action_box), self.x0)
            return made if self.noise_of is None else made[self.noise_of]
        return None if self.noise is None else self.noise[t]

    def advance(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Next states ``[B, n]`` and costs ``[B]`` of a control interval.

        Raises:
            SizeError: the simulator returns other shapes.
        """
        following, cost = self.env.step(x, u, self.p)
        if following.shape != x.shape:
            raise SizeError(
                _wrong("step", self.env, "the next state", following, x.shape, self.env.state_names)
            )
        if cost.shape != x.shape[:1]:
            raise SizeError(_wrong("cost", self.env, "the cost", cost, x.shape[:1]))
        return following, cost

    def sizes(self) -> Tensor:
        """The units ``[n]`` that ``costate_bound`` is in."""
        return self.env.state_box.half_sizes(self.x0.detach())

    def bounded(self, costates: Tensor) -> Tensor:
        """Costates ``[B, n]``, those longer than ``costate_bound`` scaled down to it."""
        if self.costate_bound is None:
            return costates
        length = torch.linalg.vector_norm(costates * self.sizes(), dim=-1, keepdim=True)
        return torch.where(length > self.costate_bound, costates * (self.costate_bound / length), costates)

    def value(self, x: Tensor) -> Tensor:
        """The terminal value ``[B]`` of final states.

        Raises:
            SizeError: the terminal value has another shape.
        """
        assert self.terminal is not None
        value = self.terminal(x)
        if value.shape != x.shape[:1]:
            raise SizeError(
                f"the terminal value {_name(self.terminal)} returned the shape {list(value.shape)}, "
                f"expected [B] = {list(x.shape[:1])}{defined_at(_code_of(self.terminal))}"
            )
        return value

    def of_rollouts(self, which: Tensor) -> Inputs:
        """The same inputs with those of rollout ``which[b]`` in the place of rollout b's; ``which`` is ``[B]``."""

        def taken(tensor: Tensor, axis: int) -> Tensor:
            # In a backward pass nothing is recorded, yet whether a gradient is wanted has to be kept.
            return tensor.index_select(axis, which).requires_grad_(tensor.requires_grad)

        return replace(
            self,
            x0=taken(self.x0, 0),
            p={name: taken(v, 0) if v.ndim else v for name, v in self.p.items()},
            noise=taken(self.noise, 1) if isinstance(self.noise, Tensor) else self.noise,
            controls=None if self.controls is None else taken(self.controls, 1),
            noise_of=which if isinstance(self.noise, Noise) else None,
        )

    def named(self) -> dict[Any, Tensor]:
        """Every tensor whose gradient may be requested.

        By ``"x0"``, ``"noise"``, ``"controls"``, ``("p", name)`` and, for parameters, their identity.
        """
        found: dict[Any, Tensor] | None = vars(self).get("_named")
        if found is None:
            found = {"x0": self.x0}
            for name, value in self.p.items():
                found["p", name] = value
            if isinstance(self.noise, Tensor):
                found["noise"] = self.noise
            if self.controls is not None:
                found["controls"] = self.controls
            for q in self.parameters:
                found[id(q)] = q
            vars(self)["_named"] = found  # asked for several times a call
        return found


def check_observation(env: Env, observation: Tensor, batch: int) -> None:
    """Raise :class:`SizeError` unless an observation is ``[batch, o]``."""
    if observation.shape != (batch, len(env.observation_names)):
        wanted = (batch, len(env.observation_names))
        raise SizeError(_wrong("observe", env, "the observation", observation, wanted, env.observation_names))


def check_actions(env: Env, policy: Any, u: Tensor, batch: int) -> None:
    """Raise :class:`SizeError` unless a policy's actions are ``[batch, m]``."""
    if not isinstance(u, Tensor):
        raise SizeError(
            f"the policy {_name(policy)} returned {type(u).__name__}, expected a tensor of actions"
            f"{defined_at(_code_of(policy))}"
        )
    if u.shape != (batch, len(env.action_box)):
        raise SizeError(
            f"the policy {_name(policy)} returned actions of shape {list(u.shape)}, {env.name} takes [B, m] = "
            f"{[batch, len(env.action_box)]}{defined_at(_code_of(policy))}"
        )


def _wrong(
    method: str, env: Env, what: str, tensor: Tensor, shape: Sequence[int], names: Sequence[str] = ()
) -> str:
    listed = f" ({', '.join(names[:8])}{', …' if len(names) > 8 else ''})" if names else ""
    letters = {"observe": "[B, o]", "step": "[B, n]", "cost": "[B]"}[method]
    return (
        f"{env.name}: {method} returned {what} with the shape {list(tensor.shape)}, expected {letters} = "
        f"{list(shape)}{listed}{defined_at(getattr(env, method))}"
    )


def _name(function: Any) -> str:
    return getattr(function, "__name__", None) or type(function).__name__


def _code_of(function: Any) -> Any:
    """What holds the code of a callable: a module's ``forward``, the function itself."""
    return function.forward if isinstance(function, nn.Module) else function


class Outcome(NamedTuple):
    """Results, or their cotangents; None where not requested."""

    states: Tensor | None
    """``[steps + 1, B, n]``, the initial states first."""
    last: Tensor | None
    """``[B, n]``."""
    costs: Tensor | None
    """``[steps, B]``."""
    values: Tensor | None
    """``[B]``."""


class UnsupportedError(RuntimeError):
    """A back end cannot run this rollout; the message says why."""


class Engine(abc.ABC):
    """A back end that is prepared for one kind of inputs."""

    compiled: ClassVar[bool] = True
    """Whether the preparation time counts as compile time."""
    watched: ClassVar[bool] = False
    """Whether it is found again by watching what it was prepared from: it has used a C++ compiler, as that does."""
    from_disk: bool = False
    """Whether it was prepared from a trace that another process has kept."""
    any_batch: ClassVar[bool] = False
    """Whether another number of rollouts than before takes no new preparation."""
    constant: frozenset[str] = frozenset()
    """Names of the results that depend on no tensor that requires a gradient."""

    @classmethod
    @abc.abstractmethod
    def prepare(cls, inputs: Inputs, gradient: bool) -> Engine:
        """Prepare for inputs of this kind.

        Raises:
            UnsupportedError: this back end cannot run them.
        """

    @abc.abstractmethod
    def forward(self, inputs: Inputs, keep_states: bool, pulled: bool = False) -> tuple[Outcome, Any]:
        """Simulate without autograd; the outcome, and an object that ``backward`` takes as ``kept``.

        ``pulled`` says that ``backward`` will follow, for which more may be kept.
        """

    @abc.abstractmethod
    def backward(self, inputs: Inputs, states: Tensor, by: Outcome, kept: Any) -> dict[Any, Tensor]:
        """Gradients by the names of ``Inputs.named``, of tensors that require one; absent where zero.

        ``kept`` is what ``forward`` returned for these inputs; None if it was another call.
        """
