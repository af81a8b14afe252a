"""Simulators computed in Julia, as :class:`robotics_envs.base.Env`."""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from robotics_envs.base import Actions, Box, Costs, Env, Observations, Parameter, Params, States
from robotics_envs.julia.runtime import JuliaError, Runtime, start
from robotics_envs.julia.windows import ALL, NONE, STATES_AND_ACTIONS, simulate
from solvers.methods.base import Solver, State, VectorField

logger = logging.getLogger("robotics_envs")

PREFIX = "julia:"
_INTERVAL, _SLOPE, _COST, _OBSERVATION, _DONE = range(5)


class InJulia(Solver):
    """Placeholder for the solver of an environment whose steps are computed in Julia."""

    order = 0

    def step(self, f: VectorField, t: float | Tensor, x: State, u: Any, p: Any, dt: float | Tensor) -> State:
        """Not available.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "a simulator in Julia is stepped by env.step alone; env.dynamics can be solved by solvers.solve"
        )


class JuliaSimulator(NamedTuple):
    """An opened simulator in a running Julia."""

    runtime: Runtime
    number: int
    states: int
    actions: int
    parameters: int
    observations: int

    def outputs(self, quantity: int) -> tuple[int, int]:
        """Components of the first and second result of a quantity."""
        if quantity == _INTERVAL:
            return self.states, 1
        return {_SLOPE: self.states, _OBSERVATION: self.observations}.get(quantity, 1), 0

    def inputs(self, derivatives: int) -> int:
        """Columns of a Jacobian."""
        return (0, self.states + self.actions, self.states + self.actions + self.parameters)[derivatives]


class JuliaEnv(Env):
    """An environment whose methods are Julia's; a subclass for each simulator is made by :func:`julia_env`.

    Everything is computed on the CPU, in Float64 whatever the dtype of the tensors; the rollouts of a batch are spread
    over Julia's threads, each by itself, so that results do not depend on their number, nor on the other rollouts.
    Tensors are read and written in place; only non-contiguous ones are copied.  First derivatives only.

    A rollout that the solver in Julia cannot simulate becomes NaN, with a warning; an error in Julia is a
    :class:`JuliaError` with Julia's message and line.

    Attributes:
        sensitivity: ``"forward"`` (Jacobians by ForwardDiff, computed with the values) or ``"adjoint"``
            (SciMLSensitivity, computed when a gradient is asked for; of control intervals only).
    """

    foreign = True
    whole_windows = True
    solver = InJulia()
    file: ClassVar[str]
    simulator: ClassVar[str]
    sensitivity: str

    def __init__(self, **parameters: float) -> None:
        super().__init__(**parameters)
        self.sensitivity = self._default_sensitivity
        self._packed: tuple[tuple[Any, ...], Tensor] | None = None
        self._warned = False

    _own_reset: ClassVar[bool]
    _default_sensitivity: ClassVar[str]
    _simulator: ClassVar[JuliaSimulator]

    def __reduce__(self) -> Any:
        # Its class is made at run time: another process makes it again.
        return _again, (self.name, {**vars(self), "constants": dict(self.constants), "_packed": None})

    def dynamics(self, t: Any, x: States, u: Actions, p: Params) -> States:
        """dx/dt ``[B, n]``, at the start of a control interval whatever ``t``."""
        return self._ask(_SLOPE, x, u, p)[0]

    def cost(self, x: States, u: Actions, p: Params) -> Costs:
        """The cost ``[B]``."""
        return self._ask(_COST, x, u, p)[0].squeeze(-1)

    def observe(self, x: States) -> Observations:
        """What the policy sees, ``[B, o]``, with the simulator's own parameters."""
        return self._ask(_OBSERVATION, x, *self._idle(x))[0]

    def done(self, x: States) -> Bool[Tensor, " batch"]:
        """Which rollouts have ended for good, ``[B]`` bool."""
        return self._ask(_DONE, x.detach(), *self._idle(x))[0].squeeze(-1) > 0.5

    def step(self, x: States, u: Actions, p: Params) -> tuple[States, Costs]:
        """One control interval from ``x`` under ``u``: the next state ``[B, n]`` and the cost ``[B]``."""
        following, cost = self._ask(_INTERVAL, x, u, p)
        return following, cost.squeeze(-1)

    def reset(self, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """Starting states, ``[batch, n]``: Julia's own draw, seeded by ``generator``, where the simulator has one."""
        if not self._own_reset:
            return super().reset(batch, generator, dtype)
        seed = torch.randint(2**62, (), generator=generator, device=generator.device)
        s = self._simulator
        x = torch.empty(batch, s.states, dtype=dtype)
        s.runtime.reset(s.number, _single(x), batch, int(seed), x.data_ptr())
        return x.to(generator.device)

    def _idle(self, x: Tensor) -> tuple[Tensor, Params]:
        """An action and parameters for what depends on neither."""
        return x.new_zeros(len(x), self._simulator.actions), self._own(x.dtype, x.device)

    @functools.lru_cache(maxsize=8)  # noqa: B019  # constants do not change during the life of an environment
    def _own(self, dtype: torch.dtype, device: torch.device) -> Params:
        return {name: torch.tensor(c.value, dtype=dtype, device=device) for name, c in self.constants.items()}

    def _ask(self, quantity: int, x: Tensor, u: Tensor, p: Params) -> tuple[Tensor, Tensor]:
        _check(self, x, u)
        packed = self._pack(p, x)
        if x.device.type == "meta":
            return tuple(x.new_empty(len(x), size) for size in self._simulator.outputs(quantity))  # type: ignore[return-value]
        derivatives = _wanted(x, u, packed)
        if self.sensitivity not in ("forward", "adjoint"):
            raise ValueError(
                f"{self.name}: sensitivity = {self.sensitivity!r} is neither 'forward' nor 'adjoint'"
            )
        adjoint = self.sensitivity == "adjoint" and quantity == _INTERVAL
        if adjoint and derivatives:
            self._simulator.runtime.load_adjoints()
        arguments = (x.contiguous(), u.contiguous(), packed.contiguous())
        transformed = torch._C._are_functorch_transforms_active()
        if not derivatives and not transformed:
            first, second, _, failures = _evaluate(self._simulator, quantity, NONE, *arguments)
        else:
            function = _EvaluateMapped if transformed else _Evaluate
            first, second, _, failures = function.apply(
                self._simulator, quantity, derivatives, adjoint, *arguments
            )
        self._warn_of(failures, len(x))
        return first, second

    def window(self, x: States, controls: Tensor, p: Params) -> tuple[Tensor, Tensor]:
        """Many control intervals under given actions in one call.

        Args:
            x: initial states ``[B, n]``.
            controls: ``[T, B, m]``.
            p: physical parameters by name, ``[]`` or ``[B]``.

        Returns:
            States ``[T + 1, B, n]``, the initial ones first, and costs ``[T, B]``; differentiable like :meth:`step`.
        """
        steps = len(controls)
        if (
            not steps
            or x.device.type == "meta"
            or self.sensitivity == "adjoint"
            or torch._C._are_functorch_transforms_active()
        ):
            return super().window(x, controls, p)
        _check(self, x, controls[0])
        packed = self._pack(p, x)
        given = x.contiguous(), controls.contiguous(), packed.contiguous()
        states, costs, failures = simulate(self._simulator, _wanted(x, controls, packed), *given)
        self._warn_of(failures, len(x))
        return states, costs

    def _warn_of(self, failures: int, rollouts: int) -> None:
        if failures and not self._warned:
            self._warned = True
            logger.warning(
                "%s: the solver failed for %d of %d rollouts, which are NaN now (reported once); keep states and "
                "parameters physical, or choose another scheme or tolerance in the simulator's file",
                self.name, failures, rollouts,
            )  # fmt: skip

    def _pack(self, p: Params, x: Tensor) -> Tensor:
        """The parameters as one tensor, ``[k]`` or, if one of them differs between rollouts, ``[B, k]``."""
        if set(p) != set(self.constants):
            wrong = ", ".join(sorted(set(p) ^ set(self.constants)))
            raise ValueError(f"{self.name}: missing or unknown parameters: {wrong}")
        values = [p[name] for name in self.constants]
        if not values:
            return x.new_zeros(0)
        key = tuple((v, v._version) for v in values)
        # Packing scalars may take longer than the step, and most calls pass the same tensors.
        if self._packed is not None and not any(v.requires_grad for v in values):
            known = self._packed[0]
            if all(a is b and i == j for (a, i), (b, j) in zip(known, key, strict=True)):
                return self._packed[1]
        if any(v.ndim for v in values):
            packed = torch.stack([v.expand(len(x)) for v in values], dim=-1)
        else:
            packed = torch.stack(values)
        if packed.dtype != x.dtype or packed.device != x.device:
            raise ValueError(
                f"{self.name}: states are {x.dtype} on {x.device}, parameters {packed.dtype} on {packed.device}"
            )
        if not packed.requires_grad:
            self._packed = key, packed
        return packed


def _again(name: str, state: dict[str, Any]) -> JuliaEnv:
    env = julia_env(name)()
    env.__setstate__(state)
    return env


def _wanted(x: Tensor, u: Tensor, p: Tensor) -> int:
    """By what derivatives are needed."""
    if not torch.is_grad_enabled():
        return NONE
    return ALL if p.requires_grad else STATES_AND_ACTIONS if x.requires_grad or u.requires_grad else NONE


def _single(x: Tensor) -> int:
    return int(x.dtype == torch.float32)


def _check(env: JuliaEnv, x: Tensor, u: Tensor) -> None:
    if x.device.type not in ("cpu", "meta"):
        raise JuliaError(
            f"{env.name} simulates on the CPU, the states are on {x.device}: train with device=cpu, or move them, "
            "x.cpu(), and what comes back to the device of the policy; autograd follows both ways"
        )
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{env.name} takes float32 or float64, the states are {x.dtype}")
    if u.dtype != x.dtype or u.device != x.device:
        raise ValueError(f"{env.name}: states are {x.dtype} on {x.device}, actions {u.dtype} on {u.device}")
    s = env._simulator
    if x.shape[1:] != (s.states,) or u.shape != (len(x), s.actions):
        raise ValueError(
            f"{env.name}: states {list(x.shape)} and actions {list(u.shape)} given, "
            f"[B, {s.states}] and [B, {s.actions}] needed"
        )


def _evaluate(
    s: JuliaSimulator, quantity: int, derivatives: int, x: Tensor, u: Tensor, p: Tensor
) -> tuple[Tensor, Tensor, Tensor, int]:
    """A quantity of a batch: first and second result, Jacobian ``[B, columns, results]``, how many rollouts failed."""
    first, second = s.outputs(quantity)
    count, wide = len(x), s.inputs(derivatives)
    results = x.new_empty(count, first), x.new_empty(count, second)
    jacobian = x.new_empty(count, wide, first + second if wide else 0, dtype=torch.float64)
    failures = s.runtime.evaluate(
        s.number, quantity, _single(x), count, derivatives, int(p.ndim == 1),
        x.data_ptr(), u.data_ptr(), p.data_ptr(), *(r.data_ptr() for r in results), jacobian.data_ptr(),
    )  # fmt: skip
    return *results, jacobian, failures


class _Evaluate(torch.autograd.Function):
    """``apply(simulator, quantity, derivatives, adjoint, x, u, p)`` gives what ``_evaluate`` does, differentiably."""

    @staticmethod
    def forward(
        ctx: Any,
        s: JuliaSimulator,
        quantity: int,
        derivatives: int,
        adjoint: bool,
        x: Tensor,
        u: Tensor,
        p: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, int]:
        inputs = s, quantity, derivatives, adjoint, x, u, p
        output = _evaluate(s, quantity, NONE if adjoint else derivatives, x, u, p)
        _keep(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx: Any, by_first: Tensor, by_second: Tensor, *_: Any) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "a simulator in Julia has first derivatives only (create_graph=True asks for second ones)"
            )
        x, u, p, jacobian = ctx.saved_tensors
        s, count = ctx.simulator, len(x)
        by_first, by_second = by_first.contiguous(), by_second.contiguous()
        by_x, by_u = torch.empty_like(x), torch.empty_like(u)
        with_p = ctx.adjoint or ctx.derivatives == ALL
        by_p = x.new_empty(count, s.parameters if with_p else 0)
        bars = [g.data_ptr() for g in (by_first, by_second, by_x, by_u, by_p)]
        if ctx.adjoint:
            inputs = [g.data_ptr() for g in (x, u, p)]
            s.runtime.adjoint(s.number, _single(x), count, int(p.ndim == 1), *inputs, *bars)
        else:
            s.runtime.pull(
                s.number, ctx.quantity, _single(x), count, ctx.derivatives, jacobian.data_ptr(), *bars
            )
        if p.ndim == 1:  # shared by all rollouts
            by_p = by_p.sum(0)
        return None, None, None, None, by_x, by_u, by_p if ctx.needs_input_grad[6] else None


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.simulator, ctx.quantity, ctx.derivatives, ctx.adjoint, x, u, p = inputs
    jacobian = output[2]
    ctx.mark_non_differentiable(jacobian)
    ctx.save_for_backward(x, u, p, jacobian)


class _EvaluateMapped(_Evaluate):
    """The same under ``torch.func``'s transformations, which need this form; it costs 30 µs more per call."""

    @staticmethod
    def forward(  # type: ignore[override]
        s: JuliaSimulator, quantity: int, derivatives: int, adjoint: bool, x: Tensor, u: Tensor, p: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, int]:
        return _evaluate(s, quantity, NONE if adjoint else derivatives, x, u, p)

    setup_context = staticmethod(_keep)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *arguments: Any) -> Any:
        *fixed, x, u, p = arguments
        *_, x_dim, u_dim, p_dim = in_dims
        many = info.batch_size

        def front(value: Tensor, dim: int | None) -> Tensor:
            return value.expand(many, *value.shape) if dim is None else value.movedim(dim, 0)

        x, u = front(x, x_dim), front(u, u_dim)
        rollouts = x.shape[1]
        if p_dim is not None or p.ndim == 2:
            p = front(p, p_dim)
            p = p.unsqueeze(1).expand(many, rollouts, -1) if p.ndim == 2 else p
            p = p.reshape(many * rollouts, -1).contiguous()
        first, second, jacobian, failures = _EvaluateMapped.apply(
            *fixed,
            x.reshape(many * rollouts, -1).contiguous(),
            u.reshape(many * rollouts, -1).contiguous(),
            p,
        )
        parts = [g.unflatten(0, (many, rollouts)) for g in (first, second, jacobian)]
        return (*parts, failures), (0, 0, 0, None)


def julia_env(name: str) -> type[JuliaEnv]:
    """The environment class of ``"julia:Simulator"`` or ``"julia:my_env.jl:MySimulator"``; starts Julia if needed.

    A file is loaded once per process; later edits have no effect.

    Raises:
        JuliaError: there is no Julia, file or simulator of that name, or Julia reports an error.
    """
    path, _, simulator = name.removeprefix(PREFIX).rpartition(":")
    file = str(Path(path).expanduser().resolve()) if path else ""
    return _julia_env(file, simulator)


@functools.cache
def _julia_env(file: str, simulator: str) -> type[JuliaEnv]:
    runtime = start()
    facts = runtime.open(file, simulator)
    parameters = tuple(Parameter(**entry) for entry in facts["parameters"])
    boxes = {name: Box(**facts[name]) for name in ("action_box", "start_box", "state_box")}
    state, observation = tuple(facts["state"]), tuple(facts["observation"])
    return type(
        simulator,
        (JuliaEnv,),
        {
            "__doc__": f"``{simulator}``, computed in Julia.",
            "name": f"{PREFIX}{file}:{simulator}" if file else f"{PREFIX}{simulator}",
            "gym_id": facts["gym_id"] or None,
            "file": file,
            "simulator": simulator,
            "state_names": state,
            "observation_names": observation,
            "angle_names": tuple(facts["angles"]),
            "parameters": parameters,
            **boxes,
            **{name: facts[name] for name in ("dt", "episode_steps", "cost_of_reached_state")},
            "_own_reset": facts["own_reset"],
            "_default_sensitivity": "adjoint" if facts["adjoint"] else "forward",
            "_simulator": JuliaSimulator(
                runtime,
                facts["number"],
                states=len(state),
                actions=len(boxes["action_box"]),
                parameters=len(parameters),
                observations=len(observation),
            ),
        },
    )
