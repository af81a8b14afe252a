"""``Rollout``: policy, simulator and cost over a horizon as one differentiable function."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal, SupportsIndex, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffsim.errors import ConfigError, DiffsimError
from diffsim.isolation import available_threads
from diffsim.rollouts.autocast import AS_IT_IS, autocast_as, autocast_state
from diffsim.rollouts.differentiable import (
    Pullback,
    RolloutFunction,
    Trajectory,
    judge,
    pullback,
    pullback_by_autograd,
    trajectory_of,
    without_inference_tensors,
)
from diffsim.rollouts.engines import BACKENDS, Engines
from diffsim.rollouts.held_modules import HeldModules
from diffsim.rollouts.inputs import (
    Engine,
    Inputs,
    SizeError,
    check_actions,
    check_observation,
)
from diffsim.rollouts.noise import Noise
from diffsim.rollouts.stepwise import Unrolled
from lazy_registry.registry import unknown
from lazy_registry.source_places import defined_at
from robotics_envs.base import Costs, Env, EpisodeStates, Params, States
from robotics_envs.divergence import check_rollouts
from robotics_envs.user_code import UserCodeError, construct_env, describe_failure
from solvers.validation import whole_number

logger = logging.getLogger("diffsim")

_FEW = 256
"""The number of rollouts from which several threads are faster than one; fewer if a call takes long."""

ON_FAILURE = (None, "raise", "mark")

_TOGETHER = 50
"""The number of control intervals of an episode that are in memory at a time."""

Lengths = Int[Tensor, " batch"]


class _Explained:
    """Failures of the user's code as a :class:`RolloutError` of one line."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        # Builtin classes only: callers may want to catch their own ones.
        if isinstance(error, Exception) and type(error).__module__ == "builtins":
            line = describe_failure(error)
            if line is not None:
                raise RolloutError(line) from None


_EXPLAINED = _Explained()


class RolloutError(DiffsimError, UserCodeError):
    """Code of a policy, simulator or terminal value failed; the message holds its file and line."""


class Rollout:
    """A policy acting in a simulator: ``rollout(x0, steps, p) -> Trajectory``, differentiable.

    Gradients are those with respect to the parameters of the policy and of the terminal value, the initial states,
    physical parameters (shared or per rollout), noise and open-loop controls, through all of the trajectory's
    parts.  Only the states are stored; backward computes every step again.  First derivatives only.  ``env.done`` is
    not consulted: rollouts run their full length.

    Args:
        env: the simulator, its class or its name.
        policy: any module from observations ``[B, o]`` (and, where noise is given, noise ``[B, m]``) to actions
            ``[B, m]``; None for open-loop controls.
        terminal: a function of the final states, ``[B, n] -> [B]``.
        backend: ``"eager"``, ``"inductor"``, ``"native"`` (CPU), ``"cuda_native"`` or ``"cuda_graph"`` (CUDA), or
            ``"auto"``: a compiled one if it supports the rollout and ``expected_steps`` justifies the compile time,
            else eager.
        threads: of the native back end; by default torch's, and one for calls that take little time with fewer than
            256 rollouts.  The number changes no bit.
        expected_steps: how many control intervals will be simulated in all calls together, if known.
        parameter_gradients: False where no gradient by the parameters of policy and terminal value is wanted; the
            backward pass is shorter then.
        on_failure: what to do where a state, cost or terminal value is not finite.  ``"raise"``: a
            :class:`robotics_envs.DivergenceError` with the first such interval.  ``"mark"``: ``Trajectory.ok`` is
            False for these rollouts, and they contribute exactly zero to every gradient, so that the gradient is that
            of the batch without them; from the failure on, their numbers have no meaning.  None: nothing is checked,
            and one such rollout makes gradients NaN.

    Raises:
        ConfigError: an unknown back end or ``on_failure``.
        ValueError: ``threads`` or ``expected_steps`` is no whole number of at least 1 (0 for ``expected_steps``).
    """

    def __init__(
        self,
        env: Env | type[Env] | str,
        policy: nn.Module | None = None,
        *,
        terminal: Callable[[States], Costs] | None = None,
        backend: str = "auto",
        threads: SupportsIndex | None = None,
        expected_steps: SupportsIndex | None = None,
        parameter_gradients: bool = True,
        on_failure: str | None = None,
    ) -> None:
        if backend != "auto" and backend not in BACKENDS:
            raise ConfigError(unknown("backend", backend, [*BACKENDS, "auto"]))
        if on_failure not in ON_FAILURE:
            raise ConfigError(f"on_failure = {on_failure!r}; known: 'raise', 'mark', None")
        self.env = construct_env(env) if isinstance(env, (str, type)) else env
        self.policy = policy
        self.terminal = terminal
        self.threads = None if threads is None else whole_number("threads", threads)
        expected = None if expected_steps is None else whole_number("expected_steps", expected_steps, 0)
        self.parameter_gradients = parameter_gradients
        self.on_failure = on_failure
        self.engines = Engines(backend, expected)
        self._held_modules: HeldModules | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Prepared back ends hold tensors by identity and loaded libraries: a copy prepares its own.
        return {**vars(self), "engines": (self.backend, self.engines.expected_steps), "_held_modules": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, engines=Engines(*state["engines"]))

    @property
    def backend(self) -> str:
        """The name that was given."""
        return self.engines.backend

    @property
    def compile_seconds(self) -> float:
        """Seconds spent on preparing back ends so far."""
        return self.engines.compile_seconds

    def __repr__(self) -> str:
        parts = [f"{self.env!r}", "open loop" if self.policy is None else f"policy {_sized(self.policy)}"]
        if self.terminal is not None:
            parts.append(f"terminal {_sized(self.terminal)}")
        parts.append(f"backend {self.backend!r}")
        if self.on_failure is not None:
            parts.append(f"on_failure {self.on_failure!r}")
        return f"<Rollout of {', '.join(parts)}>"

    def __call__(
        self,
        x0: Tensor,
        steps: SupportsIndex,
        p: Mapping[str, Tensor] | None = None,
        *,
        noise: Tensor | Noise | None = None,
        controls: Tensor | None = None,
        truncate: SupportsIndex | None = None,
        costate_bound: float | None = None,
        keep_states: bool = True,
    ) -> Trajectory:
        """Simulate ``steps`` control intervals from ``x0 [B, n]``.

        Args:
            p: physical parameters by name, ``[]`` or ``[B]``; the simulator's own by default.
            noise: ``[steps, B, m]``, given to the policy interval by interval, or a :class:`Noise`, which generates
                it on the fly.
            controls: ``[steps, B, m]``, actions instead of the policy's.
            truncate: cut the gradient after every so many intervals.
            costate_bound: in the backward pass, scale the derivative by a rollout's state between two intervals, or at
                the end, down to this length, measured in half sizes of the state box.  The gradient is not that of the
                rollout then.  Contact makes a few of them very long.
            keep_states: False saves the memory of the trajectory's states where no gradient is wanted.

        Raises:
            ValueError: shapes, dtypes or devices that do not match; neither policy nor controls; ``costate_bound`` is
                not positive.
            SizeError: the policy, the simulator or the terminal value returns tensors of other shapes (a ValueError).
            RolloutError: their code fails.
            robotics_envs.DivergenceError: numbers are not finite, with ``on_failure="raise"``.
        """
        inputs = self._inputs(x0, steps, p, noise, controls, truncate)
        if costate_bound is not None:
            if not costate_bound > 0:
                raise ValueError(f"costate_bound = {costate_bound!r} must be positive, or None for no bound")
            inputs = replace(inputs, costate_bound=float(costate_bound))
        if torch.is_grad_enabled():
            inputs = without_inference_tensors(inputs)
            wanted = {name: q for name, q in inputs.named().items() if q.requires_grad}
        else:
            wanted = {}
        with _EXPLAINED:
            if not wanted:
                return self._simulated(inputs, keep_states, self.on_failure)
            engine = self._engine(inputs, gradient=True)
            if isinstance(engine, Unrolled):
                with _without_gradient(inputs.fixed):
                    outcome, ok = engine.unrolled(inputs, self.on_failure == "mark")
                return trajectory_of(outcome, judge(inputs, outcome, self.on_failure) if ok is None else ok)
            # What Function.apply does beside calling this is for functorch, and takes as long as a small rollout.
            direct = not torch._C._are_functorch_transforms_active()
            apply = super(torch.autograd.Function, RolloutFunction).apply if direct else RolloutFunction.apply
            return Trajectory(*apply(engine, inputs, self.on_failure, tuple(wanted), *wanted.values()))

    def vjp(
        self,
        x0: Tensor,
        steps: SupportsIndex,
        p: Mapping[str, Tensor] | None = None,
        *,
        noise: Tensor,
    ) -> tuple[Trajectory, Pullback]:
        """The trajectory of a call without gradient, and a function that pulls cotangents back, to be called once.

        It takes those of the costs ``[steps, B]`` and of the terminal values ``[B]`` (None without a terminal value),
        and returns those of ``x0`` and of the noise; None for a simulator without gradients.  It does less than
        autograd, whose bookkeeping takes as long as a small rollout.  Nothing that the rollout was computed from may be
        changed in between.

        Raises:
            ValueError, SizeError, RolloutError, robotics_envs.DivergenceError: as in a call.
        """
        x0, noise = x0.detach().requires_grad_(), noise.detach().requires_grad_()
        inputs = self._inputs(x0, steps, p, noise, None, None)
        with _EXPLAINED:
            engine = (
                None if inputs.cast or self.on_failure is not None else self._engine(inputs, gradient=True)
            )
        if engine is None or engine.constant or isinstance(engine, Unrolled):
            with torch.enable_grad():
                trajectory = self(x0, steps, p, noise=noise)
            return trajectory.detached(), pullback_by_autograd(trajectory, x0, noise)
        with _EXPLAINED, torch.no_grad():
            outcome, kept = engine.forward(inputs, keep_states=True, pulled=True)
        states = outcome.states
        assert states is not None
        return trajectory_of(outcome, None), pullback(engine, inputs, states, kept)

    def _simulated(self, inputs: Inputs, keep_states: bool, on_failure: str | None) -> Trajectory:
        """The trajectory without gradient."""
        engine, device = self._engine(inputs, gradient=False), inputs.x0.device
        with autocast_as(inputs.cast, device) if inputs.cast else AS_IT_IS:
            outcome = engine.forward(inputs, keep_states)[0]
        return trajectory_of(outcome, judge(inputs, outcome, on_failure))

    def returns(self, x0: States, p: Params | None = None, noise: Float[Tensor, " m"] | None = None) -> Costs:
        """The first part of :meth:`episodes`."""
        return self.episodes(x0, p, noise)[0]

    @overload
    def episodes(
        self,
        x0: States,
        p: Params | None = None,
        noise: Float[Tensor, " m"] | None = None,
        *,
        keep_states: Literal[False] = False,
    ) -> tuple[Costs, Lengths]: ...

    @overload
    def episodes(
        self,
        x0: States,
        p: Params | None = None,
        noise: Float[Tensor, " m"] | None = None,
        *,
        keep_states: Literal[True],
    ) -> tuple[Costs, Lengths, EpisodeStates]: ...

    @torch.no_grad()
    def episodes(
        self,
        x0: States,
        p: Params | None = None,
        noise: Float[Tensor, " m"] | None = None,
        *,
        keep_states: bool = False,
    ) -> tuple[Costs, Lengths] | tuple[Costs, Lengths, EpisodeStates]:
        """Returns ``[B]`` and lengths ``[B]`` of whole episodes from ``x0 [B, n]``, and their states on request.

        The return is minus the costs up to where ``env.done``, the length the number of control intervals up to there.
        ``noise`` is the same at every interval; zeros allow the use of a kernel that was compiled for noise.
        ``keep_states`` adds the states ``[episode_steps + 1, B, n]``, initial ones first, for ``env.success``; those
        after an episode's end have no meaning.  Rollouts that have ended are soon left out where that costs nothing.
        """
        if not len(x0):
            raise ValueError(f"x0 has the shape {tuple(x0.shape)}: an episode needs an initial state")
        batch, left = len(x0), self.env.episode_steps
        if p is None:
            with torch.inference_mode(False):
                p = self.env.params(x0)  # once: there may be one value for every rollout
        total, lengths = torch.zeros_like(x0[:, 0]), torch.zeros_like(x0[:, 0], dtype=torch.int64)
        x, running, rows = x0, ~self._done(x0), torch.arange(batch, device=x0.device)
        at, kept = x0.clone(), [x0.unsqueeze(0)]
        while left and len(rows):
            steps = min(left, _TOGETHER)
            given = None if noise is None else noise.expand(steps, len(rows), -1)
            own = p
            if len(rows) < batch:
                own = {k: v[rows] if isinstance(v, Tensor) and v.ndim else v for k, v in p.items()}
            with _EXPLAINED:
                inputs = self._inputs(x, steps, own, given, None, None)
                trajectory = self._simulated(inputs, True, None)
                narrows = x.is_cpu and self._engine(inputs, gradient=False).any_batch
            assert trajectory.states is not None
            states = trajectory.states[1:]
            done = self._done(states.flatten(0, 1)).unflatten(0, states.shape[:2]).cummax(0).values
            alive = torch.cat((running.unsqueeze(0), running & ~done))
            costs = torch.where(alive[:-1], trajectory.costs, 0.0)
            if self.on_failure == "raise":
                narrows = False  # the message counts and numbers the rollouts
                followed = torch.where(alive[:-1].unsqueeze(-1), states, 0.0)
                check_rollouts(self.env, x, followed, costs, start=self.env.episode_steps - left)
            total[rows] -= costs.sum(0)
            lengths[rows] += alive[:-1].sum(0)
            at[rows] = trajectory.last
            if keep_states:
                kept.append(at.repeat(steps, 1, 1))
                kept[-1][:, rows] = states
            x, running, left = trajectory.last, alive[-1], left - steps
            if narrows and not running.all():
                rows, x, running = rows[running], x[running], running[running]
        if not keep_states:
            return total, lengths
        return total, lengths, torch.cat((*kept, at.expand(left, -1, -1)))

    def _done(self, x: Tensor) -> Tensor:
        done = self.env.done(x)
        if done.shape != x.shape[:1] or done.dtype != torch.bool:
            raise SizeError(
                f"{self.env.name}: done returned {done.dtype} of shape {list(done.shape)}, expected torch.bool of "
                f"shape [B] = {list(x.shape[:1])}{defined_at(self.env.done)}"
            )
        return done

    @torch.no_grad()
    def population(
        self,
        parameters: Mapping[str, Tensor],
        x0: Tensor,
        steps: SupportsIndex,
        p: Mapping[str, Tensor] | None = None,
        *,
        noise: Tensor | None = None,
    ) -> Float[Tensor, "members rollouts"]:
        """Costs summed over ``steps`` control intervals, for many policies at once; no gradient.

        All rollouts of all policies are one batch on every back end.  Arguments are those of :meth:`members`.

        Raises:
            ValueError: a parameter is missing or has another shape.
        """
        costs = self.members(parameters, x0, steps, p, noise=noise, keep_states=False).costs
        return costs.sum(0).reshape(len(next(iter(parameters.values()))), -1)

    @torch.no_grad()
    def members(
        self,
        parameters: Mapping[str, Tensor],
        x0: Tensor,
        steps: SupportsIndex,
        p: Mapping[str, Tensor] | None = None,
        *,
        noise: Tensor | None = None,
        keep_states: bool = True,
    ) -> Trajectory:
        """``N`` policies with ``R`` rollouts each as one batch of ``N R`` rollouts, one policy after the other.

        Args:
            parameters: the policies' parameters by name as in ``policy.named_parameters()``, each ``[N, ...]``.
            x0: initial states, the same for all policies ``[R, n]`` or their own ``[N, R, n]``.
            p: physical parameters, ``[]`` or one value a rollout, ``[R]`` or ``[N, R]``.
            noise: ``[steps, R, m]``, the same for all policies.
            keep_states: False saves the memory of the trajectory's states.

        Raises:
            ValueError: a parameter is missing or has another shape, or as in a call.
            RolloutError, robotics_envs.DivergenceError: as in a call.
        """
        if self.policy is None:
            raise ValueError("population needs a policy, whose parameters vary")
        own = dict(self.policy.named_parameters())
        if set(parameters) != set(own):
            wrong = sorted(set(parameters) ^ set(own))
            raise ValueError(
                f"population takes exactly the policy's parameters; missing or unknown: {', '.join(wrong)}"
            )
        members = len(next(iter(parameters.values())))
        for name, stack in parameters.items():
            if stack.shape != (members, *own[name].shape):
                raise ValueError(
                    f"population: {name} has the shape {tuple(stack.shape)}, expected {(members, *own[name].shape)}"
                )
        if not members:
            raise ValueError("population: there are no policies in it")
        states = x0.expand(members, *x0.shape) if x0.ndim == 2 else x0
        if states.ndim != 3 or len(states) != members:
            raise ValueError(f"population: x0 {tuple(x0.shape)} is neither [R, n] nor [{members}, R, n]")
        rollouts = states.shape[1]
        p = self.env.params(x0) if p is None else p
        for name, value in p.items():
            if isinstance(value, Tensor) and value.shape not in ((), (rollouts,), (members, rollouts)):
                raise ValueError(
                    f"population: p[{name!r}] has the shape {tuple(value.shape)}, expected [], [{rollouts}] or "
                    f"[{members}, {rollouts}]"
                )
        each = {
            k: v.expand(members, rollouts).reshape(-1) if isinstance(v, Tensor) and v.ndim else v
            for k, v in p.items()
        }
        if noise is not None:
            m = len(self.env.action_box)
            if noise.shape != (steps, rollouts, m):
                raise ValueError(
                    f"population: noise has the shape {tuple(noise.shape)}, expected [steps, R, m] = "
                    f"{[steps, rollouts, m]}"
                )
            noise = noise.repeat(1, members, 1)
        inputs = self._inputs(states.reshape(-1, states.shape[-1]), steps, each, noise, None, None)
        stacked = {
            id(own[name]): stack.detach().to(x0.dtype).contiguous() for name, stack in parameters.items()
        }
        named = {name: stacked[id(own[name])] for name in own}
        inputs = replace(inputs, members=members, stacked=stacked, act_together=self._act_of(named))
        with _EXPLAINED:
            return self._simulated(inputs, keep_states, self.on_failure)

    def _act_of(self, stacked: dict[str, Tensor]) -> Callable[[Tensor, Tensor | None], Tensor]:
        """Actions ``[N R, m]`` of ``N`` policies at once."""
        policy = self.policy
        assert policy is not None
        members = len(next(iter(stacked.values())))

        def act(one: dict[str, Tensor], observation: Tensor, noise: Tensor | None) -> Tensor:
            given = (observation,) if noise is None else (observation, noise)
            u = torch.func.functional_call(policy, one, given)
            check_actions(self.env, policy, u, len(observation))
            return u

        def together(x: Tensor, noise: Tensor | None) -> Tensor:
            observed = self.env.observe(x)
            check_observation(self.env, observed, len(x))
            observation = observed.unflatten(0, (members, -1))
            split = None if noise is None else noise.unflatten(0, (members, -1))
            in_dims = (0, 0, None if noise is None else 0)
            return torch.func.vmap(act, in_dims=in_dims)(stacked, observation, split).flatten(0, 1)

        return together

    def _inputs(
        self,
        x0: Tensor,
        steps: SupportsIndex,
        p: Mapping[str, Tensor] | None,
        noise: Tensor | Noise | None,
        controls: Tensor | None,
        truncate: SupportsIndex | None,
    ) -> Inputs:
        env, policy = self.env, self.policy
        n, m = len(env.state_names), len(env.action_box)
        batch = x0.shape[0] if x0.ndim == 2 else 0
        if not batch or x0.shape[1] != n:
            raise ValueError(f"x0 has the shape {tuple(x0.shape)}; {env.name} needs [B, {n}] with B >= 1")
        if not x0.is_floating_point():
            raise ValueError(f"x0 has the dtype {x0.dtype}; states are float32 or float64")
        steps = whole_number("steps", steps)
        truncate = None if truncate is None else whole_number("truncate", truncate)
        if (policy is None) == (controls is None):
            raise ValueError(
                "a rollout needs a policy or controls"
                if policy is None
                else "a rollout takes controls instead of a policy: Rollout(env)(x0, steps, controls=...)"
            )
        if noise is not None and policy is None:
            raise ValueError("noise is given to the policy, and there is none: add it to the controls")
        for name, tensor in (("noise", noise), ("controls", controls)):
            if tensor is None or isinstance(tensor, Noise):
                continue
            if tensor.shape != (steps, batch, m):
                raise ValueError(
                    f"{name} has the shape {tuple(tensor.shape)}, expected [steps, B, m] = {[steps, batch, m]}"
                )
            if tensor.dtype != x0.dtype or tensor.device != x0.device:
                raise ValueError(f"{name} is {tensor.dtype} on {tensor.device}, x0 {x0.dtype} on {x0.device}")
        held = self.engines.fingerprints.of(env, policy, self.terminal)
        about = self._held_modules
        if about is None or about.held is not held or about.like != (x0.dtype, x0.device):
            about = self._held_modules = HeldModules(held, x0, (policy, self.terminal))
        about.look_again(self.parameter_gradients)
        given = about.physical(env, x0, p)
        return Inputs(
            env,
            self._act,
            self.terminal,
            x0,
            steps,
            given,
            noise,
            controls,
            about.modules,
            about.trained,
            about.fixed,
            truncate=truncate,
            threads=self.threads or (1 if batch < _FEW else torch.get_num_threads()),
            most_threads=self.threads or available_threads(),
            held=held,
            beside=about.beside,
            cast=autocast_state(x0.device),
        )

    def _engine(self, inputs: Inputs, gradient: bool) -> Engine:
        assert self._held_modules is not None  # _inputs has made it
        return self.engines.of(inputs, self._held_modules, gradient)

    def _act(self, x: Tensor, noise: Tensor | None) -> Tensor:
        assert self.policy is not None
        observation = self.env.observe(x)
        check_observation(self.env, observation, len(x))
        try:
            u = self.policy(observation) if noise is None else self.policy(observation, noise)
        except RuntimeError as error:
            if type(error) is not RuntimeError or describe_failure(error) is not None:
                raise
            # A torch.nn module as it is, whose failure has no line of the user's.
            raise RolloutError(
                f"the policy {_sized(self.policy)} failed on observations [B, o] = {list(observation.shape)}"
                f"{'' if noise is None else f' and noise {list(noise.shape)}'}: {str(error).splitlines()[0]}"
            ) from None
        check_actions(self.env, self.policy, u, len(x))
        return u


@contextlib.contextmanager
def _without_gradient(parameters: tuple[Tensor, ...]) -> Iterator[None]:
    """While inside, autograd takes these parameters for constants."""
    for q in parameters:
        q.requires_grad_(False)
    try:
        yield
    finally:
        for q in parameters:
            q.requires_grad_()


def _sized(function: Any) -> str:
    """A callable's name, and how many parameters it has."""
    name = getattr(function, "__name__", type(function).__name__)
    if not isinstance(function, nn.Module):
        return name
    return f"{name} of {sum(q.numel() for q in function.parameters())} parameters"
