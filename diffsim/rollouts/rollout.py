"""``Rollout``: policy, simulator and cost over a horizon as one differentiable function."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffsim.errors import ConfigError
from diffsim.rollouts.inputs import Engine, Inputs, Outcome, UnsupportedError
from diffsim.rollouts.inspection import Findings, fingerprint, look, operations
from diffsim.rollouts.noise import Noise
from diffsim.rollouts.stepwise import Unrolled
from robotics_envs.base import Costs, Env, Params, States
from solvers.native import build
from solvers.registry import Registry, unknown

logger = logging.getLogger("diffsim")

BACKENDS = Registry(
    "backend",
    {
        "eager": "diffsim.rollouts.stepwise:Stepwise",
        "inductor": "diffsim.rollouts.inductor:Inductor",
        "native": "diffsim.rollouts.native:Native",
    },
)

_FEW = 256
"""Rollouts from which on two threads gain more than they cost."""

_COMPILING = {"native": 3.0, "inductor": 30.0}
"""Seconds that compiling takes, roughly; see docs/rollouts.md for what was measured."""


_MOST_ENGINES = 16
"""Back ends that a rollout keeps ready; the oldest go first."""

_TOGETHER = 50
"""Control intervals of an episode that are in memory at a time."""


class Trajectory(NamedTuple):
    """``T`` control intervals of ``B`` rollouts."""

    last: Float[Tensor, "batch n"]
    """The final states."""
    costs: Float[Tensor, "T batch"]
    states: Float[Tensor, "T+1 batch n"] | None
    """The initial states first; None where they were not kept."""
    values: Float[Tensor, " batch"] | None
    """The terminal value of the final states; None without a terminal value function."""


class Rollout:
    """A policy acting in a simulator: ``rollout(x0, steps, p) -> Trajectory``, differentiable.

    Gradients are those with respect to the parameters of the policy and of the terminal value, the initial states,
    physical parameters (shared or per rollout), noise and open-loop controls, through all of the trajectory's
    parts.  The tape is the states alone; backward computes every step again.  First derivatives only.  ``env.done`` is
    not consulted: rollouts run their full length.

    Args:
        env: the simulator.
        policy: any module from observations ``[B, o]`` (and, where noise is given, noise ``[B, m]``) to actions
            ``[B, m]``; None for open-loop controls.
        terminal: a function of the final states, ``[B, n] -> [B]``.
        backend: ``"eager"``, ``"inductor"``, ``"native"`` or ``"auto"``: a compiled one if it can and if
            ``expected_steps`` makes compiling worth while, and else eager.
        threads: of the native back end; by default torch's, and one for fewer than 256 rollouts.
        expected_steps: how many control intervals will be simulated in all calls together, if known.

    Raises:
        ConfigError: an unknown back end.
    """

    def __init__(
        self,
        env: Env,
        policy: nn.Module | None = None,
        *,
        terminal: Callable[[States], Costs] | None = None,
        backend: str = "auto",
        threads: int | None = None,
        expected_steps: int | None = None,
    ) -> None:
        if backend != "auto" and backend not in BACKENDS:
            raise ConfigError(unknown("backend", backend, [*BACKENDS, "auto"]))
        self.env = env
        self.policy = policy
        self.terminal = terminal
        self.backend = backend
        self.threads = threads
        self.expected_steps = expected_steps
        self._engines: dict[Any, Engine] = {}
        self._said: set[str] = set()
        self.compile_seconds = 0.0
        """Time spent on making back ends ready, so far."""

    def __call__(
        self,
        x0: Tensor,
        steps: int,
        p: Mapping[str, Tensor] | None = None,
        *,
        noise: Tensor | Noise | None = None,
        controls: Tensor | None = None,
        truncate: int | None = None,
        keep_states: bool = True,
    ) -> Trajectory:
        """Simulate ``steps`` control intervals from ``x0 [B, n]``.

        Args:
            p: physical parameters by name, ``[]`` or ``[B]``; the simulator's own by default.
            noise: ``[steps, B, m]``, given to the policy an interval at a time, or a :class:`Noise`, which makes it
                where it is used.
            controls: ``[steps, B, m]``, actions instead of the policy's.
            truncate: cut the gradient between stretches of so many intervals.
            keep_states: False saves the memory of the trajectory's states where no gradient is wanted.

        Raises:
            ValueError: shapes, dtypes or devices that do not go together; neither policy nor controls.
        """
        inputs = self._inputs(x0, steps, p, noise, controls, truncate)
        gradient = torch.is_grad_enabled() and any(q.requires_grad for q in inputs.named().values())
        engine = self._engine(inputs, gradient)
        if not gradient:
            return _trajectory(engine.forward(inputs, keep_states)[0])
        if isinstance(engine, Unrolled):
            return _trajectory(engine.unrolled(inputs))
        return Trajectory(*_Function.apply(engine, inputs, *inputs.named().values()))

    def returns(self, x0: States, p: Params | None = None, noise: Float[Tensor, " m"] | None = None) -> Costs:
        """The first part of :meth:`episodes`."""
        return self.episodes(x0, p, noise)[0]

    @torch.no_grad()
    def episodes(
        self, x0: States, p: Params | None = None, noise: Float[Tensor, " m"] | None = None
    ) -> tuple[Costs, Int[Tensor, " batch"]]:
        """Returns ``[B]`` and lengths ``[B]`` of whole episodes from ``x0 [B, n]``.

        The return is minus the costs up to where ``env.done``, the length the number of control intervals up to there.
        ``noise`` is the same at every interval; zero is a way to use a kernel that was compiled for noise.
        """
        x, running = x0, ~self.env.done(x0)
        total, lengths = torch.zeros_like(x0[:, 0]), torch.zeros_like(x0[:, 0], dtype=torch.int64)
        left = self.env.episode_steps
        while left:
            steps = min(left, _TOGETHER)
            given = None if noise is None else noise.expand(steps, len(x0), -1)
            trajectory = self(x, steps, p, noise=given)
            assert trajectory.states is not None
            states = trajectory.states[1:]
            done = self.env.done(states.flatten(0, 1)).unflatten(0, states.shape[:2]).cummax(0).values
            alive = torch.cat((running.unsqueeze(0), running & ~done))
            total = total - torch.where(alive[:-1], trajectory.costs, 0.0).sum(0)
            lengths = lengths + alive[:-1].sum(0)
            x, running, left = trajectory.last, alive[-1], left - steps
        return total, lengths

    @torch.no_grad()
    def population(
        self,
        parameters: Mapping[str, Tensor],
        x0: Tensor,
        steps: int,
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
        steps: int,
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
            ValueError: a parameter is missing or has another shape.
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
        each = {k: v.expand(members, rollouts).reshape(-1) if v.ndim else v for k, v in p.items()}
        if noise is not None:
            if noise.ndim != 3 or noise.shape[1] != rollouts:
                raise ValueError(f"population: noise {tuple(noise.shape)} is not [steps, {rollouts}, m]")
            noise = noise.repeat(1, members, 1)
        inputs = self._inputs(states.reshape(-1, states.shape[-1]), steps, each, noise, None, None)
        stacked = {
            id(own[name]): stack.detach().to(x0.dtype).contiguous() for name, stack in parameters.items()
        }
        named = {name: stacked[id(own[name])] for name in own}
        inputs = replace(inputs, members=members, stacked=stacked, act_together=self._act_of(named))
        engine = self._engine(inputs, gradient=False)
        return _trajectory(engine.forward(inputs, keep_states)[0])

    def _act_of(self, stacked: dict[str, Tensor]) -> Callable[[Tensor, Tensor | None], Tensor]:
        """Actions ``[N R, m]`` of ``N`` policies at once."""
        policy = self.policy
        assert policy is not None
        members = len(next(iter(stacked.values())))

        def act(one: dict[str, Tensor], observation: Tensor, noise: Tensor | None) -> Tensor:
            given = (observation,) if noise is None else (observation, noise)
            return torch.func.functional_call(policy, one, given)

        def together(x: Tensor, noise: Tensor | None) -> Tensor:
            observation = self.env.observe(x).unflatten(0, (members, -1))
            split = None if noise is None else noise.unflatten(0, (members, -1))
            in_dims = (0, 0, None if noise is None else 0)
            return torch.func.vmap(act, in_dims=in_dims)(stacked, observation, split).flatten(0, 1)

        return together

    def _inputs(
        self,
        x0: Tensor,
        steps: int,
        p: Mapping[str, Tensor] | None,
        noise: Tensor | Noise | None,
        controls: Tensor | None,
        truncate: int | None,
    ) -> Inputs:
        env, policy = self.env, self.policy
        n, m = len(env.state_names), len(env.action_box)
        if x0.ndim != 2 or x0.shape[1] != n or not len(x0):
            raise ValueError(f"x0 has the shape {tuple(x0.shape)}; {env.name} needs [B, {n}] with B >= 1")
        if not x0.is_floating_point():
            raise ValueError(f"x0 has the dtype {x0.dtype}; states are float32 or float64")
        for what, number in (("steps", steps), ("truncate", 1 if truncate is None else truncate)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ValueError(f"{what} = {number!r}: must be a whole number of at least 1")
        if (policy is None) == (controls is None):
            raise ValueError(
                "a rollout needs a policy or controls"
                if policy is None
                else "a rollout takes controls instead of a policy: Rollout(env)(x0, steps, controls=...)"
            )
        if noise is not None and policy is None:
            raise ValueError("noise is given to the policy, and there is none: add it to the controls")
        p = dict(env.params(x0) if p is None else p)
        missing = set(env.constants) ^ set(p)
        if missing:
            raise ValueError(
                f"p must name the parameters of {env.name}; missing or unknown: {', '.join(sorted(missing))}"
            )
        shapes = {"noise": None if isinstance(noise, Noise) else noise, "controls": controls}
        for name, tensor in shapes.items():
            if tensor is not None and tensor.shape != (steps, len(x0), m):
                raise ValueError(
                    f"{name} has the shape {tuple(tensor.shape)}, expected [steps, B, m] = {[steps, len(x0), m]}"
                )
        for name, tensor in p.items():
            if not isinstance(tensor, Tensor):
                raise ValueError(f"p[{name!r}] = {tensor!r} must be a tensor")
            if tensor.shape not in ((), (len(x0),)):
                raise ValueError(
                    f"p[{name!r}] has the shape {tuple(tensor.shape)}, expected [] or [{len(x0)}]"
                )
        given = {**shapes, **{f"p[{name!r}]": value for name, value in p.items()}}
        for name, tensor in given.items():
            if tensor is not None and (tensor.dtype != x0.dtype or tensor.device != x0.device):
                raise ValueError(f"{name} is {tensor.dtype} on {tensor.device}, x0 {x0.dtype} on {x0.device}")
        modules = [q for q in (policy, self.terminal) if isinstance(q, nn.Module)]
        parameters = {id(q): q for module in modules for q in module.parameters()}
        for q in parameters.values():
            if q.dtype != x0.dtype or q.device != x0.device:
                raise ValueError(f"the policy has {q.dtype} on {q.device}, x0 is {x0.dtype} on {x0.device}")
        threads = self.threads or (1 if len(x0) < _FEW else torch.get_num_threads())
        trained = tuple(q for q in parameters.values() if q.requires_grad)
        return Inputs(
            env,
            self._act,
            self.terminal,
            x0,
            steps,
            p,
            noise,
            controls,
            tuple(modules),
            trained,
            truncate,
            threads,
        )

    def _act(self, x: Tensor, noise: Tensor | None) -> Tensor:
        assert self.policy is not None
        observation = self.env.observe(x)
        return self.policy(observation) if noise is None else self.policy(observation, noise)

    def _engine(self, inputs: Inputs, gradient: bool) -> Engine:
        """The back end for these inputs, made ready if it is new."""
        kinds = [(name, v.ndim, v.requires_grad) for name, v in inputs.named().items()]
        held = fingerprint(self.env, self.policy, self.terminal)
        common = (inputs.x0.dtype, inputs.x0.device, type(inputs.noise), *kinds, *held)
        key = (gradient, common)
        if (True, common) in self._engines:
            return self._engines[True, common]  # what was made ready for gradients does without them too
        if key not in self._engines:
            started = time.perf_counter()
            with torch.inference_mode(False):
                findings = look(inputs) if gradient else Findings(frozenset(), (), "")
                engine = self._ready(inputs, gradient, findings)
            engine.constant = findings.constant
            if engine.compiled:
                self.compile_seconds += time.perf_counter() - started
            while len(self._engines) >= _MOST_ENGINES:
                self._engines.pop(next(iter(self._engines)))
            self._engines[key] = engine
        return self._engines[key]

    def _ready(self, inputs: Inputs, gradient: bool, findings: Findings) -> Engine:
        if findings.changing:
            self._say(
                f"the rollout {findings.changing}, so its steps cannot be computed again: plain autograd, which keeps "
                "every step's graph; hand random numbers in as noise to avoid it"
            )
            return Unrolled()
        if self.env.foreign:
            # Its forward pass computes derivatives along with the values: keep them instead of computing them again.
            if self.backend not in ("auto", "eager"):
                self._say(
                    f"backend {self.backend!r} cannot compile {self.env.name}, which is not computed in torch: eager"
                )
            return Unrolled()
        for name in self._candidates(inputs):
            try:
                if name == "native" and findings.functions:
                    known = ", ".join(findings.functions)
                    raise UnsupportedError(
                        f"a trace does not see the gradient of torch.autograd.Function {known}"
                    )
                return BACKENDS.load(name).prepare(inputs, gradient)
            except UnsupportedError as error:
                if isinstance(error.__cause__, build.NoCompilerError):
                    continue  # logged once a process, where it is found
                self._say(f"backend {name!r} cannot run this rollout, another one will: {error}")
        raise AssertionError("eager can run every rollout")

    def _say(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            logger.warning(message)

    def _candidates(self, inputs: Inputs) -> list[str]:
        """Back ends in the order to try them."""
        if self.backend != "auto":
            return [self.backend, "eager"]
        cpu = inputs.x0.device.type == "cpu"
        if self.expected_steps is None:
            return [*(["native"] if cpu else ["inductor"]), "eager"]
        # By counting and not by the clock, so that the same run always takes the same back end.
        eager = self.expected_steps * operations(inputs) * 3 * (4e-6 + 2e-9 * len(inputs.x0))
        return [
            name for name in ("native", "inductor") if eager > _COMPILING[name] and (cpu or name != "native")
        ] + ["eager"]


def _trajectory(outcome: Outcome) -> Trajectory:
    assert outcome.last is not None
    assert outcome.costs is not None
    return Trajectory(outcome.last, outcome.costs, outcome.states, outcome.values)


class _Function(torch.autograd.Function):
    """``apply(engine, inputs, *inputs.named().values()) -> last, costs, states, values``."""

    @staticmethod
    def forward(ctx: Any, engine: Engine, inputs: Inputs, *tensors: Tensor) -> Any:
        outcome, ctx.kept = engine.forward(inputs, keep_states=True)
        ctx.engine, ctx.inputs = engine, inputs
        ctx.set_materialize_grads(False)
        # Saving what was given, not only the states: autograd then notices if somebody writes into it.
        held = [q for module in inputs.modules for q in (*module.parameters(), *module.buffers())]
        ctx.save_for_backward(outcome.states, *tensors, *held)
        ctx.mark_non_differentiable(*(getattr(outcome, name) for name in engine.constant))
        return _trajectory(outcome)[:]

    @staticmethod
    def backward(ctx: Any, by_last: Any, by_costs: Any, by_states: Any, by_values: Any) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "a rollout has first derivatives only (create_graph=True asks for second ones); "
                "loop over policy(env.observe(x)) and env.step yourself where you need them"
            )
        states, *_ = ctx.saved_tensors
        named = ctx.inputs.named()
        found = ctx.engine.backward(
            ctx.inputs, states, Outcome(by_states, by_last, by_costs, by_values), ctx.kept
        )
        gradients = [found.get(name) if tensor.requires_grad else None for name, tensor in named.items()]
        return None, None, *gradients
