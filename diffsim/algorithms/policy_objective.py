"""The objective of the algorithms: the mean loss over rollouts of a policy, for every kind of optimizer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from diffsim.errors import ConfigError
from diffsim.optimizers import Objective, Samples
from diffsim.optimizers.objective import Gradient
from diffsim.policy import Policy
from diffsim.rollouts import Rollout, Trajectory
from diffsim.shards import WHOLE, Shards
from robotics_envs.base import Params, States

DEFAULT_NOISE_STD = 0.1
"""Standard deviation of the noise on actions, in half ranges of their box, if an estimator needs it and none is set."""


class PolicyObjective(Objective):
    """The mean loss over ``B`` rollouts of a policy, on scenarios that stay the same in all evaluations of a step.

    The loss of a rollout is the sum of its :meth:`terms`, which a subclass overrides.  A population of ``N`` policies
    is one batch of ``N B`` rollouts.  The zeroth-order gradient is the likelihood-ratio estimate (REINFORCE; Williams,
    1992) for the Gaussian noise on actions before they are squashed.  It uses the cost from each action on, minus its
    mean over the batch as a baseline.

    With several :attr:`shards`, gradients and populations are computed part by part: rollouts of a gradient and members
    of a population are divided.  Estimates by :meth:`samples` are not.

    Args:
        rollout: simulates its policy, whose parameters are optimized.
        steps: control intervals.
        params: physical parameters of the simulator.
        noise_std: the standard deviation that ``noise`` is drawn with, in half ranges of the action box.

    Attributes:
        x: initial states ``[B, n]`` of this step.
        noise: on actions, ``[steps, B, m]``; None for none.
        trajectory: of the first evaluation of this step at the policy's own parameters, detached; None before that.
        shards: how batches are divided; not at all by default.
        parts: with several shards, one objective for each shard of this process, on its rows of ``x`` and ``noise``.
        counted: how many rollouts the last evaluation is the mean of.
    """

    needs_states: ClassVar[bool] = False
    """Whether :meth:`terms` reads the states of a population's rollouts, which take memory."""
    shards: Shards = WHOLE

    def __init__(
        self,
        rollout: Rollout,
        steps: int,
        params: Params,
        noise_std: float = 0.0,
    ) -> None:
        assert isinstance(rollout.policy, Policy)
        self.rollout, self.policy, self.steps, self.params = rollout, rollout.policy, steps, params
        self.noise_std = noise_std
        self.x: States
        self.noise: Tensor | None = None
        self.trajectory: Trajectory | None = None
        self.counted = 0
        self.parts: list[Any] = []
        self._costs: Tensor | None = None
        named = dict(self.policy.named_parameters())
        self._names = [name for name, q in named.items() if q.requires_grad]
        self._frozen = {name: q.detach() for name, q in named.items() if not q.requires_grad}
        super().__init__(named[name] for name in self._names)

    def begin(self, x: States, noise: Tensor | None = None) -> None:
        """Set the scenarios of the next step."""
        self.x, self.noise, self.trajectory = x, noise, None
        self.counted = len(x)
        self._costs = None
        self.parts = []
        if self.shards.count > 1:
            # In memory of their own: what a kernel returns may depend on how its arguments are aligned.
            for rows in self.shards.own(len(x)):
                part = copy.copy(self)
                part.shards = WHOLE
                part.begin(x[rows].clone(), None if noise is None else noise[:, rows].clone())
                self.parts.append(part)

    def terms(self, trajectory: Trajectory) -> Float[Tensor, "K batch"]:
        """What a rollout's loss is the sum of, in the order of time: ``K`` is ``steps``, one more, or 1 for the whole.

        The costs of the control intervals, if not overridden.
        """
        return trajectory.costs

    def evaluate(self, x: States, noise: Tensor | None) -> tuple[Trajectory, Float[Tensor, "K batch"]]:
        """Rollouts from ``x`` and their :meth:`terms`, differentiable by the policy's parameters."""
        trajectory = self.rollout(x, self.steps, self.params, noise=noise)
        return trajectory, self.terms(trajectory)

    def loss(self) -> Tensor:
        trajectory, terms = self.evaluate(self.x, self.noise)
        self._remember(trajectory)
        return terms.sum(0).mean()

    @property
    def needs_costs_of_batch(self) -> bool:
        """Whether :meth:`terms` reads :meth:`costs_of_batch`."""
        return False

    def costs_of_batch(self, costs: Float[Tensor, "T batch"]) -> Tensor:
        """The costs of the whole batch, where ``costs`` are those of a trajectory; without gradient.

        Where there are several shards, they are those of the policy before the step.
        """
        return costs.detach() if self._costs is None else self._costs

    def gradient(self) -> Gradient:
        if not self.parts:
            return super().gradient()
        self._measure_costs(PolicyObjective.gradient)
        self.evaluations += 1
        self.gradients += 1
        found = [part.gradient() for part in self.parts]
        facts, flats = self.gathered_shards(
            [
                (
                    torch.tensor([[g.loss, part.counted]], dtype=torch.float64, device="cpu"),
                    torch.cat([q.reshape(-1) for q in g.parts]).unsqueeze(0),
                )
                for part, g in zip(self.parts, found, strict=True)
            ]
        )
        counted = float(facts[:, 1].sum())
        loss, flat = 0.0 if counted else float("nan"), torch.zeros_like(flats[0])
        for (value, weight), one in zip(facts.tolist(), flats, strict=True):
            if weight:
                loss += value * weight / counted
                flat += one * (weight / counted)
        held = [
            part.to(q).view_as(q)
            for part, q in zip(flat.split(self.vector.sizes), self.vector.parameters, strict=True)
        ]
        return Gradient(loss, float(torch.linalg.vector_norm(flat)) if counted else loss, held)

    def gathered_shards(self, own: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """Tensors ``[1, ...]`` of each shard as ``[shards, ...]``."""
        return self.shards.gather(own, [1] * self.shards.count, [0] * len(own[0]))

    def gathered(self, own: Sequence[Sequence[Tensor]], axes: Sequence[int]) -> list[Tensor]:
        """Tensors of the parts, joined along the ``axes`` of rollouts to those of the batch."""
        return self.shards.gather(own, self.shards.lengths(len(self.x)), axes)

    def _measure_costs(self, evaluate: Callable[[Any], object]) -> None:
        """Where parts need the costs of the whole batch, find them, by an evaluation of each part that also counts."""
        if not self.needs_costs_of_batch or self._costs is not None:
            return
        before = self.evaluations, self.gradients
        trajectories = []
        for part in self.parts:
            part.evaluations, part.gradients = before
            evaluate(part)
            trajectories.append(part.simulated())
        self.evaluations, self.gradients = part.evaluations, part.gradients
        (self._costs,) = self.gathered([(t.costs,) for t in trajectories], [1])
        for part in self.parts:
            part.begin(part.x, part.noise)
            part._costs = self._costs

    def population(self, candidates: Float[Tensor, "N P"]) -> Float[Tensor, " N"]:
        if not self.parts:
            return self._population(candidates)
        self._measure_costs(PolicyObjective.simulated)
        own = [candidates[rows] for rows in self.shards.own(len(candidates))]
        values = [self._population(some) if len(some) else self.x.new_zeros(0) for some in own]
        return self.shards.gather([(v,) for v in values], self.shards.lengths(len(candidates)), [0])[0]

    def _population(self, candidates: Tensor) -> Tensor:
        popsize = len(candidates)
        stacks = dict(zip(self._names, self.vector.stacked(candidates), strict=True))
        stacks |= {name: q.expand(popsize, *q.shape) for name, q in self._frozen.items()}
        trajectory = self.rollout.members(
            stacks, self.x, self.steps, self.params, noise=self.noise, keep_states=self.needs_states
        )
        return self.terms(trajectory).sum(0).reshape(popsize, -1).mean(1)

    def simulated(self) -> Trajectory:
        """The ``trajectory``; if there is none yet, from rollouts without gradient, which count as an evaluation."""
        if self.trajectory is None and self.parts:
            self.evaluations += int(self.parts[0].trajectory is None)
            found = [part.simulated() for part in self.parts]
            states, costs = self.gathered([(t.states, t.costs) for t in found], [1, 1])
            self.trajectory = Trajectory(states[-1], costs, states, None)
        elif self.trajectory is None:
            self.evaluations += 1
            with torch.no_grad():
                self._remember(self.rollout(self.x, self.steps, self.params, noise=self.noise))
        assert self.trajectory is not None
        return self.trajectory

    @torch.enable_grad()
    def samples(self, groups: int, smoothing: float | None, generator: torch.Generator) -> Samples:
        """As :meth:`Objective.samples`, in one evaluation with gradient, split into groups of rollouts."""
        self.evaluations += 1
        self.gradients += 1
        if len(self.x) < 2 * groups:
            raise ConfigError(
                f"optimizer.gradient_groups = {groups} needs a batch of {2 * groups} or more, got {len(self.x)}"
            )
        noise, std = self.noise, self.noise_std
        if smoothing is not None or noise is None or not std:
            std = smoothing or DEFAULT_NOISE_STD
            shape = (self.steps, len(self.x), self.policy.centre.numel())
            drawn = torch.randn(shape, generator=generator, dtype=self.x.dtype, device=generator.device)
            noise = std * drawn.to(self.x.device)
        parts = torch.arange(len(self.x), device=self.x.device).tensor_split(groups)
        rollouts, terms = zip(*(self.evaluate(self.x[i], noise[:, i]) for i in parts), strict=True)
        losses = [t.sum(0).mean() for t in terms]
        first = [self._flat(loss) for loss in losses]
        to_go = torch.cat([t.detach() for t in terms], 1).flip(0).cumsum(0).flip(0)[: self.steps]
        count = len(self.x)
        # Each rollout contributes to the mean of its batch; without this factor the estimate is biased by 1 / count.
        advantage = (to_go - to_go.mean(1, keepdim=True)) * (count / (count - 1))
        zeroth = []
        for rollout, i in zip(rollouts, parts, strict=True):
            assert rollout.states is not None
            states = rollout.states[:-1].detach()
            observation = self.rollout.env.observe(states.flatten(0, 1))
            raw = self.policy.network(self.policy.normalise(observation)).unflatten(0, states.shape[:2])
            score = (raw * noise[:, i] / std**2).sum(-1)
            zeroth.append(self._flat((advantage[:, i] * score).sum(0).mean()))
        states = torch.cat([r.states for r in rollouts if r.states is not None], 1)
        self._remember(Trajectory(states[-1], torch.cat([r.costs for r in rollouts], 1), states, None))
        values = torch.stack([loss.detach() for loss in losses]).double().cpu()
        own = float(values.mean()) if noise is self.noise else float("nan")
        return Samples((own, None), values, torch.stack(first), torch.stack(zeroth))

    def _flat(self, loss: Tensor) -> Tensor:
        parameters = self.vector.parameters
        if not loss.requires_grad:  # a simulator without gradients has no first-order estimate
            return loss.new_zeros(len(self.vector)).double()
        found = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
        held = [torch.zeros_like(q) if g is None else g for q, g in zip(parameters, found, strict=True)]
        return torch.cat([g.reshape(-1) for g in held]).double()

    def _remember(self, trajectory: Trajectory) -> None:
        if self.trajectory is None:
            self.trajectory = trajectory.detached()
