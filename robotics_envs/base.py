"""The base class of simulators, and the types of their boxes and parameters."""

from __future__ import annotations

import abc
import functools
import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lazy_registry.registry import UnknownNameError, unknown
from lazy_registry.source_places import defined_at
from robotics_envs.drawing import Floats, Shape, View, state_bars
from solvers.methods.base import Solver
from solvers.validation import whole_number

States = Float[Tensor, "batch n"]
Actions = Float[Tensor, "batch m"]
Observations = Float[Tensor, "batch o"]
Costs = Float[Tensor, " batch"]
EpisodeStates = Float[Tensor, "times batch n"]
Successes = Bool[Tensor, " batch"]
Params = Mapping[str, Float[Tensor, ""] | Float[Tensor, " batch"]]
"""Physical parameters by name; each is a scalar tensor or one value per rollout, ``[B]``."""


class SizeError(ValueError):
    """Tensors of shapes that do not fit together; the message holds those given and those needed."""


@dataclass(frozen=True)
class Parameter:
    """A physical parameter: its default, unit, admissible range (bounds excluded) and source."""

    name: str
    value: float
    unit: str
    low: float = -math.inf
    high: float = math.inf
    source: str = ""

    def __post_init__(self) -> None:
        # bool is an int to Python, never a length or a mass.
        if isinstance(self.value, bool) or not isinstance(self.value, numbers.Real):
            raise ValueError(f"parameter {self.name} must be a number, got {self.value!r}")
        if not isinstance(self.value, (int, float)):  # NumPy's float32 and integers
            object.__setattr__(self, "value", float(self.value))
        if not self.low < self.value < self.high:
            raise ValueError(
                f"parameter {self.name} = {self.value!r} {self.unit} is outside its range "
                f"({self.low}, {self.high})"
            )

    def __repr__(self) -> str:
        shown = [repr(self.name), repr(self.value), repr(self.unit)]
        shown += [
            f"{f.name}={getattr(self, f.name)!r}"
            for f in fields(self)[3:]
            if getattr(self, f.name) != f.default
        ]
        return f"Parameter({', '.join(shown)})"


@dataclass(frozen=True)
class Box:
    """An axis-aligned box with finite bounds."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        # Lists and arrays are accepted and kept as tuples of floats, which can be compared and hashed.
        for name in ("low", "high"):
            object.__setattr__(self, name, tuple(float(bound) for bound in getattr(self, name)))
        if len(self.low) != len(self.high) or not self.low:
            raise ValueError(f"box bounds differ in length or are empty: {self.low} and {self.high}")
        for low, high in zip(self.low, self.high, strict=True):
            if not (math.isfinite(low) and math.isfinite(high) and low <= high):
                raise ValueError(f"box bounds must be finite with low <= high: {self.low}, {self.high}")

    @classmethod
    def symmetric(cls, *high: float) -> Box:
        """The box from ``-high`` to ``high``."""
        return cls(tuple(-h for h in high), high)

    def __len__(self) -> int:
        return len(self.low)

    def __repr__(self) -> str:
        if len(self) <= 8:
            return f"Box(low={self.low}, high={self.high})"
        low, high = (f"({', '.join(map(str, bound[:3]))}, …)" for bound in (self.low, self.high))
        return f"<Box of {len(self)} components: low={low}, high={high}>"

    def bounds(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """``(low, high)`` as tensors of the dtype and device of ``like``."""
        return _bounds(self, like.dtype, like.device)

    def half_sizes(self, like: Tensor) -> Tensor:
        """Half of each side, 1 for sides of no length: units ``[n]`` in which components can be compared."""
        low, high = self.bounds(like)
        return torch.where(high > low, (high - low) / 2, torch.ones_like(low))

    def sample(self, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """Uniform points ``[batch, n]`` on the generator's device.

        Raises:
            ValueError: ``batch`` is no whole number, or negative.
        """
        batch = whole_number("batch", batch, least=0)
        unit = torch.rand(batch, len(self), generator=generator, dtype=dtype, device=generator.device)
        low, high = self.bounds(unit)
        return low + (high - low) * unit


MOST_STARTS = 60 / 64
"""The share of starts that the simulators of the catalogue ask for; this project's choice."""


@dataclass(frozen=True)
class Success:
    """When an episode counts as a success, and how many of them a solved task needs.

    ``words`` is the criterion that :meth:`Env.success` computes, with units; ``share``, in (0, 1], the share of starts
    from which a policy that solves the task succeeds; ``source`` says where the criterion comes from.
    """

    words: str
    share: float
    source: str

    def __post_init__(self) -> None:
        for name in ("words", "source"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"{name} of a success criterion must be a text, got {value!r}")
        real = isinstance(self.share, numbers.Real) and not isinstance(self.share, bool)
        if not (real and 0 < self.share <= 1):
            raise ValueError(f"share of a success criterion must be in (0, 1], got {self.share!r}")

    def needed(self, starts: int) -> int:
        """The number of successes from ``starts`` starts at which the task counts as solved."""
        # A product such as 0.07 * 100 can exceed the whole number by a rounding error.
        return math.ceil(self.share * starts - 1e-9 * starts)

    def is_shown_by(self, successes: int, starts: int) -> bool:
        """Whether so many successes show that the task is solved, and not merely look like it.

        A policy that succeeds from less than the asked ``share`` of all starts does so well on these in at most 5% of
        cases (exact one-sided binomial test; Clopper and Pearson, Biometrika 26, 1934).  Where all starts together are
        too few for that, all have to succeed.
        """
        if successes >= starts or self.share == 1.0:
            return successes >= starts
        chance = sum(
            math.exp(
                math.lgamma(starts + 1)
                - math.lgamma(k + 1)
                - math.lgamma(starts - k + 1)
                + k * math.log(self.share)
                + (starts - k) * math.log1p(-self.share)
            )
            for k in range(successes, starts + 1)
        )
        return chance <= 0.05


@functools.lru_cache(maxsize=256)
def _bounds(box: Box, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    # Cached, because every step needs them; ordinary tensors even if first made in inference mode, whose tensors
    # autograd refuses later.
    with torch.inference_mode(False):
        return (
            torch.tensor(box.low, dtype=dtype, device=device),
            torch.tensor(box.high, dtype=dtype, device=device),
        )


def _sizes(env: Env, x: Tensor, u: Tensor, p: Params) -> str:
    """One line that names the shapes given to ``Env.step``, and those needed."""
    n, m = len(env.state_names), len(env.action_box)
    line = (
        f"{env.name}: states [B, {n}] ({_listed(env.state_names)}) and actions [B, {m}] are needed, "
        f"got {list(x.shape)} and {list(u.shape)}"
    )
    odd = {
        k: list(v.shape) for k, v in p.items() if isinstance(v, Tensor) and v.shape not in ((), x.shape[:-1])
    }
    return line + (f"; parameters are [] or [B], got the shapes {odd}" if odd else "")


def _results(env: Env, x: Tensor, following: Tensor, cost: Tensor) -> str:
    """One line for a next state or a cost of the wrong shape."""
    if following.shape != x.shape:
        return (
            f"{env.name}: the next state has the shape {list(following.shape)}, needed [B, n] = {list(x.shape)} "
            f"({_listed(env.state_names)}); see dynamics{defined_at(env.dynamics)}"
        )
    return (
        f"{env.name}: cost returned the shape {list(cost.shape)}, needed [B] = {list(x.shape[:-1])}"
        f"{defined_at(env.cost)}"
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")


NEEDED = {
    "name": "a short word, such as 'pendulum'",
    "state_names": "a tuple of the names of the n states",
    "observation_names": "a tuple of the names of the o observations",
    "action_box": "a robotics_envs.base.Box of the m actions' bounds",
    "start_box": "a robotics_envs.base.Box of n bounds, in which episodes start",
    "state_box": "a robotics_envs.base.Box of n bounds, in which training may start",
    "dt": "the control interval in seconds",
    "episode_steps": "the number of control intervals in an episode",
    "solver": "such as solvers.make_solver('rk4')",
}
"""Class attributes without a default, and what they hold."""


class Env(abc.ABC):
    """A stateless simulator ``dx/dt = dynamics(t, x, u, p)`` under a control held over each interval.

    Shapes: state ``x [B, n]``, action ``u [B, m]``, observation ``[B, o]``, cost ``[B]``.  All methods
    are pure, keep dtype and device, and let gradients flow to ``x``, ``u`` and ``p``; every random draw
    comes from the ``torch.Generator`` that is passed in.  The return of an episode is minus the sum
    of its costs.

    A subclass is one file: it sets the class attributes and writes ``dynamics`` and ``cost``
    (and ``observe`` or ``done`` where the defaults do not serve).  ``robotics_envs.check_env``
    reports every breach of this contract.
    """

    name: ClassVar[str]
    gym_id: ClassVar[str | None] = None
    """The id of a Gymnasium environment that is the same task (the *twin*), where there is one."""
    state_names: ClassVar[tuple[str, ...]]
    observation_names: ClassVar[tuple[str, ...]]
    angle_names: ClassVar[tuple[str, ...]] = ()
    """The states that are angles in rad: adding 2 pi changes nothing but the number."""
    parameters: ClassVar[tuple[Parameter, ...]] = ()
    action_box: ClassVar[Box]
    """Actions are clipped to this box before they act (N·m, N, …)."""
    start_box: ClassVar[Box]
    """Episodes start uniformly in this box."""
    state_box: ClassVar[Box]
    """The region of states that training may start from; it should hold the states that a good policy visits."""
    dt: ClassVar[float]
    """Control interval in seconds."""
    episode_steps: ClassVar[int]
    """Control intervals in an episode of the task."""
    solver: Solver
    substeps: ClassVar[int] = 1
    """Equal steps of the solver in a control interval."""
    cost_of_reached_state: ClassVar[bool] = False
    """Whether an interval costs what the state at its end costs, instead of that at its start."""
    called_fields: ClassVar[tuple[str, ...]] = ("dynamics",)
    """Methods of the signature of ``dynamics`` that a kernel computes by a function of its own, written out once.

    Their first argument may be any number; what else they depend on are state, action and parameters.
    """
    foreign: ClassVar[bool] = False
    """Whether the methods are computed outside of torch: nothing of them can be traced, and ``solver`` is not used."""
    whole_windows: ClassVar[bool] = False
    """Whether :meth:`window` is faster than as many calls of :meth:`step`."""
    longest_window: float = math.inf
    """Seconds over which gradients tell of costs; trainers that choose the length of windows do not go beyond."""
    training_note: str = ""
    """What training simulates differently from evaluations, for a person to read; see :meth:`training_params`."""
    success_criterion: ClassVar[Success | None] = None
    """What :meth:`success` computes, in words, and where it comes from; None where a simulator declares no success."""
    view: ClassVar[View] = View((-1.2, -1.2), (1.2, 1.2))
    """The region of the world that pictures show."""

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        for name in ("state_names", "observation_names", "angle_names", "parameters"):
            if isinstance(vars(cls).get(name), list):
                setattr(cls, name, tuple(vars(cls)[name]))

    def __getattr__(self, name: str) -> Any:
        # Reached only where nothing of this name was found: no simulator that is complete pays for it.
        if name in NEEDED:
            raise AttributeError(
                f"{type(self).__name__} has no {name}: set it as a class attribute ({NEEDED[name]})",
                name=name,
                obj=self,
            )
        if name == "constants":
            raise AttributeError(
                f"{type(self).__name__} has no constants: its __init__ has to call super().__init__(**parameters)",
                name=name,
                obj=self,
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)

    def __init__(self, **parameters: float) -> None:
        defaults = {parameter.name: parameter for parameter in self.parameters}
        for name in parameters:
            if name not in defaults:
                raise UnknownNameError(unknown(f"parameter of {self.name}", name, defaults))
        self.constants: Mapping[str, Parameter] = MappingProxyType(
            {
                name: Parameter(name, parameters.get(name, d.value), d.unit, d.low, d.high, d.source)
                for name, d in defaults.items()
            }
        )

    def __getstate__(self) -> dict[str, Any]:
        # A read-only view can be neither copied nor sent to another process.
        return {**vars(self), "constants": dict(self.constants)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, constants=MappingProxyType(state["constants"]))

    def __repr__(self) -> str:
        have = [
            f"{len(getattr(self, attribute))} {word}{'s' * (len(getattr(self, attribute)) != 1)}"
            for attribute, word in (
                ("state_names", "state"),
                ("observation_names", "observation"),
                ("action_box", "action"),
            )
            if hasattr(self, attribute)
        ]
        if hasattr(self, "dt") and hasattr(self, "episode_steps"):
            have.append(f"{self.episode_steps} intervals of {self.dt} s")
        defaults = {parameter.name: parameter.value for parameter in self.parameters}
        have += [
            f"{name} = {c.value} {c.unit}"
            for name, c in vars(self).get("constants", {}).items()
            if c.value != defaults.get(name)
        ]
        return f"<{type(self).__name__} {getattr(self, 'name', '(no name)')!r}: {', '.join(have)}>"

    @property
    def playback_speed(self) -> float:
        """Simulated seconds per second of an animation: real time, unless an episode is too fast or slow to watch."""
        seconds = self.episode_steps * self.dt
        return 1.0 if 1.0 <= seconds <= 30.0 else seconds / 10.0

    def params(self, like: Tensor) -> dict[str, Tensor]:
        """The physical parameters as scalar tensors of the dtype and device of ``like``."""
        return {name: like.new_tensor(c.value) for name, c in self.constants.items()}

    def training_params(self, p: Params, left: float = 1.0) -> Params:
        """What training simulates with in place of ``p``, while the share ``left`` of its updates is left.

        ``p`` itself unless overridden: for a simulator that is easier, or smoother, at the start of a run.  Evaluations
        use ``p``.  ``training_note`` says what differs.
        """
        return p

    @abc.abstractmethod
    def dynamics(self, t: Any, x: States, u: Actions, p: Params) -> States:
        """dx/dt ``[B, n]`` under the applied (already clipped) action ``u``.

        Every step starts at t = 0: a simulator that depends on time has time, or a phase, among its states.
        """

    @abc.abstractmethod
    def cost(self, x: States, u: Actions, p: Params) -> Costs:
        """The cost ``[B]`` of applying ``u`` (already clipped) in ``x`` for one control interval."""

    def observe(self, x: States) -> Observations:
        """What the policy sees, ``[B, o]``; the state itself unless overridden."""
        return x

    def done(self, x: States) -> Bool[Tensor, " batch"]:
        """Which rollouts have terminated, ``[B]`` bool; a time limit is no termination.

        Rollouts are stepped on after their termination, and the results are ignored; they have to stay finite.
        """
        return torch.zeros(x.shape[:-1], dtype=torch.bool, device=x.device)

    def success(self, states: EpisodeStates) -> Successes:
        """Which whole episodes succeeded, ``[B]`` bool; a function of their states alone.

        ``states [episode_steps + 1, B, n]`` begins with the initial ones.  Those after an episode has ended (``done``)
        count for nothing: an episode that ends early is a failure, unless its end is the goal.  One that turns
        to non-finite states before that is a failure.

        Raises:
            NotImplementedError: the simulator declares no success.
        """
        raise NotImplementedError(
            f"{type(self).__name__} declares no success: write success(self, states), from states "
            "[episode_steps + 1, B, n] to a bool tensor [B], and set success_criterion = "
            "robotics_envs.Success(words, share, source) as a class attribute"
        )

    def final_states(self, states: EpisodeStates, duration: float) -> Float[Tensor, "final batch n"]:
        """Those of the last ``duration`` (in the unit of ``dt``, mostly seconds) of an episode, both ends included."""
        return states[-(math.floor(duration / self.dt + 1e-6) + 1) :]

    def reset(self, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """Starting states of the task, ``[batch, n]``, on the generator's device."""
        return self.start_box.sample(batch, generator, dtype)

    def clip_action(self, u: Actions) -> Actions:
        """``u [..., m]`` within the action box. The gradient is cut for components beyond its bounds.

        Raises:
            SizeError: ``u`` does not have m components.
        """
        # Without this, one component would be broadcast to all m bounds.
        if u.shape[-1:] != (len(self.action_box),):
            raise SizeError(
                f"{self.name} takes actions of {len(self.action_box)} components, "
                f"got the shape {list(u.shape)}, whose last axis differs"
            )
        return torch.clamp(u, *self.action_box.bounds(u))

    def _check_sizes(self, x: Tensor, u: Tensor, p: Params) -> None:
        """Raise :class:`SizeError` unless states, actions and parameters go together."""
        batch = x.shape[:-1]
        if (
            x.shape[-1:] != (len(self.state_names),)
            or u.shape != (*batch, len(self.action_box))
            or any(isinstance(v, Tensor) and v.ndim and v.shape != batch for v in p.values())
        ):
            raise SizeError(_sizes(self, x, u, p))

    def step(self, x: States, u: Actions, p: Params) -> tuple[States, Costs]:
        """One control interval from ``x`` under ``u``: the next state ``[B, n]`` and the cost ``[B]``.

        ``u`` is clipped here and nowhere else.  The cost is that of the state before the step, or of
        the one after it where ``cost_of_reached_state`` is set.

        Raises:
            SizeError: the shapes of ``x``, ``u``, ``p`` or of what ``dynamics`` and ``cost`` return do not fit.
        """
        self._check_sizes(x, u, p)
        u, following = self.clip_action(u), x
        for _ in range(self.substeps):
            following = self.solver.step(self.dynamics, 0.0, following, u, p, self.dt / self.substeps)
        cost = self.cost(following if self.cost_of_reached_state else x, u, p)
        if following.shape != x.shape or cost.shape != x.shape[:-1]:
            raise SizeError(_results(self, x, following, cost))
        return following, cost

    def window(self, x: States, controls: Tensor, p: Params) -> tuple[Tensor, Tensor]:
        """Control intervals one after the other under given actions.

        Args:
            x: initial states ``[B, n]``.
            controls: actions ``[T, B, m]``, T at least 1.
            p: physical parameters by name, ``[]`` or ``[B]``.

        Returns:
            States ``[T + 1, B, n]``, the initial ones first, and costs ``[T, B]``.
        """
        states, costs = [x], []
        for u in controls:
            following, cost = self.step(states[-1], u, p)
            states.append(following)
            costs.append(cost)
        return torch.stack(states), torch.stack(costs)

    def draw(self, x: Floats, u: Floats) -> list[Shape]:
        """The moving shapes, for one state ``x [n]`` and action ``u [m]``; a bar for each state unless overridden."""
        return state_bars(x, self.state_names, self.state_box.low, self.state_box.high)

    def scenery(self) -> list[Shape]:
        """The shapes that do not move: ground, rails, walls."""
        return []

    def view_at(self, x: Floats) -> View:
        """The view of one state ``x [n]``: ``view`` itself, unless the camera follows what moves (``View.focus``)."""
        return self.view

    def observation_from_twin(self, observation: Floats) -> Floats:
        """An observation of ``gym_id`` as one of this simulator's, ``[..., k] -> [..., o]``."""
        return observation
