"""Backpropagation through short windows with a terminal critic: the default algorithm.

The policy's gradient is backpropagated through a few control intervals only, where it is smooth and has a low variance;
the critic's value at the end of the window stands for the rest of the horizon.

This is close to SHAC (Xu et al., "Accelerated Policy Learning with Parallel Differentiable Simulation", ICLR 2022,
arXiv 2204.07137).  The same: short windows in parallel, a terminal critic, TD(lambda) targets, a target network
with Polyak averaging, Adam with betas (0.7, 0.95), learning rates that fall linearly to zero.  Different:

- Starts: a share of the windows starts from states drawn uniformly from the simulator's state box, which only a
  simulator that can be set to any state allows.  SHAC continues every window until its episode ends.
- Observations are standardised by fixed statistics over the state box, not by a running normalizer.
- Actions are clipped to their box, with the backward pass of :class:`diffsim.policy.ProjectedClip`, not squashed
  by tanh.
- The noise on actions has a fixed standard deviation, which is not learned.
- The critic's outputs are normalised (PopArt), and the policy's loss is divided by their scale.  SHAC clips the norm of
  the gradient instead.
- Any optimizer can replace Adam; an update whose numbers are not finite is dropped.

Policy gradients through a model and a critic at its end are also called value gradients: Heess et al., "Learning
Continuous Control Policies by Stochastic Value Gradients", 2015, arXiv 1510.09142; Clavera et al., "Model-Augmented
Actor-Critic: Backpropagating through Paths", 2020, arXiv 2005.08068.  docs/algorithms.md has the measurements.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from diffsim.algorithms.base import Algorithm, Record
from diffsim.algorithms.critic import Critic
from diffsim.algorithms.policy_objective import PolicyObjective
from diffsim.algorithms.windows import CostToGo, not_ended, what_is_not_finite
from diffsim.config import RunConfig
from diffsim.optimizers.base import Optimizer
from diffsim.policy import MLP, Policy, initialised
from diffsim.rollouts import Rollout, Trajectory
from diffsim.settings import Settings
from robotics_envs.base import Env, Params, States


class ShortWindowSettings(Settings):
    batch: int = Field(default=256, ge=2)
    """Windows per update."""
    window: int = Field(default=4, ge=1)
    """Control intervals that the gradient is backpropagated through."""
    gamma: float = Field(default=0.97, gt=0, lt=1)
    """Discount factor per control interval."""
    noise_std: float = Field(default=0.4, ge=0)
    """Standard deviation of the noise on actions before they are squashed, in half ranges of the action box."""
    continuing: float = Field(default=0.75, ge=0, le=1)
    """Share of the windows that continue from the last states of the previous windows."""
    survival: float = Field(default=0.95, ge=0, le=1)
    """Probability that a window of that share continues; otherwise its start is drawn from the state box."""
    reach: float = Field(default=1.5, gt=0)
    """A window does not continue from a state outside the state box enlarged by this factor."""
    td_lambda: float = Field(default=0.8, ge=0, le=1)
    """Lambda of the critic's TD(lambda) targets."""
    critic_hidden: tuple[Annotated[int, Field(ge=1)], ...] = (64, 64)
    """Widths of the critic's hidden layers."""
    critic_learning_rate: float = Field(default=5e-3, gt=0)
    """Of the critic's Adam, at the start of the run."""
    critic_batches: int = Field(default=8, ge=1)
    """Minibatches of regression per update."""
    critic_batch_size: int = Field(default=256, ge=1)
    """States per minibatch."""
    critic_windows: int = Field(default=2, ge=1)
    """The critic is fitted to the windows of this number of the last updates."""
    tau: float = Field(default=0.2, gt=0, le=1)
    """Polyak averaging per update: target network <- (1 - tau) target network + tau critic."""
    normalizer_rate: float = Field(default=0.2, gt=0, le=1)
    """Coefficient of the exponential moving average of the critic's mean and scale, per update."""

    renamed: ClassVar[Mapping[str, str]] = {
        "discount": "gamma",
        "noise": "noise_std",
        "critic_averaging": "tau",
    }


class WindowObjective(PolicyObjective):
    """Mean of ``sum_t gamma^t cost_t + gamma^window V(x_window)`` over windows, in units of the critic's scale.

    ``V`` is the critic's target network.  Costs after the end of an episode are zero, and so is the value; no gradient
    flows through the end.
    """

    needs_states = True

    def __init__(
        self, rollout: Rollout, params: Params, critic: Critic, settings: ShortWindowSettings
    ) -> None:
        super().__init__(rollout, settings.window, params, settings.noise_std)
        self.critic = critic
        steps = torch.arange(
            settings.window + 1, dtype=critic.target.mean.dtype, device=critic.target.mean.device
        )
        self.discounts = settings.gamma ** steps.unsqueeze(-1)  # [window + 1, 1]

    @property
    def needs_costs_of_batch(self) -> bool:
        return not self.critic.fitted

    def terms(self, trajectory: Trajectory) -> Tensor:
        """Discounted costs, and after the first fit of the critic the discounted value, ``[window (+ 1), B]``."""
        assert trajectory.states is not None
        alive = not_ended(self.rollout.env, trajectory.states.detach()).cumprod(dim=0)
        costs = self.discounts[:-1] * alive[:-1] * trajectory.costs
        if not self.critic.fitted:  # there are no values and no scale
            std = self.costs_of_batch(trajectory.costs).std()
            return costs / torch.where(std > 0, std, torch.ones_like(std))
        assert trajectory.values is not None
        value = self.discounts[-1] * alive[-1] * trajectory.values
        return torch.cat((costs, value.unsqueeze(0))) / self.critic.target.scale


class ShortWindow(Algorithm):
    """Each update: an optimizer step on the :class:`WindowObjective` of the next windows, then a fit of the critic."""

    Settings = ShortWindowSettings
    divides_batches = True

    def __init__(
        self,
        env: Env,
        policy: Policy,
        config: RunConfig,
        settings: ShortWindowSettings,
        optimizer: Optimizer | None = None,
    ) -> None:
        super().__init__(env, policy, config, settings, optimizer)
        self.settings = settings
        network = initialised(
            lambda: MLP(len(env.observation_names), 1, settings.critic_hidden), config.seed + 1
        )
        self.critic = Critic(
            network.to(policy.mean),
            settings.critic_learning_rate,
            (0.7, 0.95),
            settings.tau,
            settings.normalizer_rate,
        )
        self.rollout = Rollout(
            env,
            policy,
            terminal=CostToGo(env, policy, self.critic.target),
            backend=config.backend,
            threads=self._threads,
            expected_steps=config.updates * settings.window * self.optimizer.calls_per_step,
        )
        low, high = env.state_box.bounds(policy.mean)
        self._middle, self._half_size = (low + high) / 2, (high - low) / 2
        self._is_angle = torch.tensor([n in env.angle_names for n in env.state_names], device=self.device)
        self.objective = WindowObjective(self.rollout, self.params, self.critic, settings)
        self.objective.shards = self.shards
        # State that later updates depend on, beside networks and optimizers:
        self._windows: tuple[Tensor, Tensor] | None = None
        self._ends: Tensor | None = None
        self._data: list[tuple[Tensor, Tensor]] = []

    def step(self) -> Record:
        """One optimizer step of the policy on the next windows, then a fit of the critic to them."""
        objective = self.objective
        compiled, evaluations = self.rollout.compile_seconds, objective.evaluations
        objective.params = self.training_params
        # Where the windows start, and the noise on their actions.
        self._windows = x, noise = self._draw()
        # Rollouts over the windows, the critic's value at their ends, and the loss from both: WindowObjective.terms.
        objective.begin(x, noise)
        # The optimizer evaluates the loss once or several times and changes the policy.
        report = self.optimizer.step(objective, self.remaining)
        # The critic learns from the windows of the policy, and the next windows continue them.
        window, dropped = objective.simulated(), ""
        if report.finite:
            self._fit_critic(window)
            self._ends = window.last
        else:
            dropped = what_is_not_finite(window, report.gradients > 0)
            self._ends, self._data = None, []
        self.updates_done += 1
        return Record(
            report.loss,
            report.grad_norm,
            env_steps=(objective.evaluations - evaluations) * len(x) * self.settings.window,
            gradient_evaluations=report.gradients,
            compile_seconds=self.rollout.compile_seconds - compiled,
            dropped=dropped,
        )

    def _no_noise(self, x: States) -> Tensor:
        return x.new_zeros(len(self.env.action_box))

    def _draw(self) -> tuple[Tensor, Tensor]:
        """Initial states ``[B, n]`` and noise ``[window, B, m]``; the optimizer may ask to keep some of them."""
        s = self.settings
        count, kept = self.optimizer.scenarios(s.batch)
        if self._windows is None:
            kept = 0
        x = self._starts(count - kept, kept)
        noise = s.noise_std * self._randn(s.window, count - kept, len(self.env.action_box))
        if not kept:
            return x, noise
        assert self._windows is not None
        last_x, last_noise = self._windows
        return torch.cat((last_x[-kept:], x)), torch.cat((last_noise[:, -kept:], noise), 1)

    def _starts(self, count: int, kept: int) -> Tensor:
        """Initial states ``[count, n]``: drawn from the state box, or last states of windows that are not kept."""
        s = self.settings
        if not count:
            return self._middle.new_empty(0, len(self._middle))
        fresh = self.env.state_box.sample(count, self.generator, self.dtype)
        if self._ends is None:
            return fresh
        ends = self._ends[: len(self._ends) - kept][:count]
        ends = torch.cat((ends, fresh[len(ends) :]))
        near = ((ends - self._middle).abs() <= s.reach * self._half_size) | self._is_angle
        survives = self._uniform(count) < s.survival
        continues = near.all(dim=-1) & survives & ~self.env.done(ends)
        continues[round(count * s.continuing) :] = False
        return torch.where(continues.unsqueeze(-1), ends, fresh)

    @torch.no_grad()
    def _fit_critic(self, window: Trajectory) -> None:
        """Fit the critic to TD(lambda) targets (Sutton and Barto, 2nd ed., §12.1) of the last windows."""
        s, states, costs = self.settings, window.states, window.costs
        assert states is not None
        observations = self.env.observe(states.flatten(0, 1)).unflatten(0, states.shape[:2])
        z = self.policy.normalise(observations)
        values = self.critic.values(z[1:])
        goes_on = not_ended(self.env, states[1:])
        target, targets = values[-1], torch.empty_like(values)
        for t in reversed(range(s.window)):
            following = torch.lerp(values[t], target, s.td_lambda)
            target = costs[t] + s.gamma * goes_on[t] * following
            targets[t] = target
        self._data = [*self._data, (z[:-1].flatten(0, 1), targets.flatten())][-s.critic_windows :]
        self.critic.renormalise(targets)
        z, targets = map(torch.cat, zip(*self._data, strict=True))
        self.critic.fit(z, targets, s.critic_batches, s.critic_batch_size, self.remaining, self.generator)

    def _uniform(self, count: int) -> Tensor:
        # In float32 for every run, whose dtype does not matter to a comparison with a probability.
        return torch.rand(count, generator=self.generator, device=self.device, dtype=torch.float32)

    def _randn(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device, dtype=self.dtype)

    def state_dict(self) -> dict[str, Any]:
        return {
            "updates_done": self.updates_done,
            "policy": dict(self.policy.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "critic": self.critic.state_dict(),
            "generator": self.generator.get_state(),
            "windows": self._windows,
            "ends": self._ends,
            "data": self._data,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates_done = state["updates_done"]
        self.policy.load_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.critic.load_state_dict(state["critic"])
        self.generator.set_state(state["generator"])
        windows, ends = state["windows"], state["ends"]
        self._windows = None if windows is None else (windows[0].to(self.device), windows[1].to(self.device))
        self._ends = None if ends is None else ends.to(self.device)
        self._data = [(z.to(self.device), y.to(self.device)) for z, y in state["data"]]
