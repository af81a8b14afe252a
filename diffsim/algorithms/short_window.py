"""Short windows through the simulator with a well-fitted critic at their end: the default algorithm.

The gradient runs through a few control intervals only, where it is short, smooth and low in variance; a
critic carries the rest of the horizon.  What a white box adds to the actor-critic recipe is the freedom to
start anywhere: some windows start in states drawn afresh from the whole state box, so the policy
meets every situation from the first update on, and most go on where the policy led, so that it is right
about the states it visits.  docs/algorithms.md tells what was measured and what failed.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from diffsim.algorithms.base import Algorithm, Record
from diffsim.algorithms.policy_objective import PolicyObjective
from diffsim.config import RunConfig, Settings
from diffsim.critic import Critic, Value
from diffsim.policy import MLP, Policy, initialised
from diffsim.rollouts import Rollout, Trajectory
from robotics_envs.base import Costs, Env, States


class ShortWindowSettings(Settings):
    batch: int = Field(default=256, ge=2)
    """Windows per update."""
    window: int = Field(default=4, ge=1)
    """Control intervals that the gradient runs through."""
    discount: float = Field(default=0.97, gt=0, lt=1)
    """Per control interval."""
    noise: float = Field(default=0.4, ge=0)
    """Deviation of the noise on actions before they are squashed, in half ranges of the action box."""
    continuing: float = Field(default=0.75, ge=0, le=1)
    """Share of the windows that go on where their last window ended."""
    survival: float = Field(default=0.95, ge=0, le=1)
    """Probability that a continuing window does go on rather than start afresh."""
    reach: float = Field(default=1.5, gt=0)
    """A window that ended outside the state box enlarged by this factor starts afresh."""
    td_lambda: float = Field(default=0.8, ge=0, le=1)
    critic_hidden: tuple[int, ...] = (64, 64)
    critic_learning_rate: float = Field(default=5e-3, gt=0)
    critic_batches: int = Field(default=8, ge=1)
    """Minibatches of regression per update."""
    critic_batch_size: int = Field(default=256, ge=1)
    critic_windows: int = Field(default=2, ge=1)
    """How many of the last updates' windows the critic is fitted to."""
    critic_averaging: float = Field(default=0.2, gt=0, le=1)
    """Share of the way that the critic read by the policy moves towards the fitted one per update."""
    normalizer_rate: float = Field(default=0.2, gt=0, le=1)
    """Share of the way that the scale of the critic moves towards that of new targets per update."""


class ShortWindow(Algorithm):
    """Minimise ``sum_t discount^t cost_t + discount^window V(x_window)`` over windows from drawn states."""

    Settings = ShortWindowSettings

    def __init__(self, env: Env, policy: Policy, config: RunConfig, settings: ShortWindowSettings) -> None:
        super().__init__(env, policy, config, settings)
        self.settings = settings
        network = initialised(
            lambda: MLP(len(env.observation_names), 1, settings.critic_hidden), config.seed + 1
        )
        self.critic = Critic(
            network.to(policy.mean),
            settings.critic_learning_rate,
            (0.7, 0.95),
            settings.critic_averaging,
            settings.normalizer_rate,
        )
        self.rollout = Rollout(
            env,
            policy,
            terminal=CostToGo(env, policy, self.critic.value),
            backend=config.backend,
            threads=config.threads,
            expected_steps=config.updates * settings.window * self.optimizer.calls_per_step,
        )
        low, high = env.state_box.bounds(policy.mean)
        self._middle, self._half_size = (low + high) / 2, (high - low) / 2
        self._is_angle = torch.tensor([n in env.angle_names for n in env.state_names], device=self.device)
        steps = torch.arange(settings.window + 1, dtype=self.dtype, device=self.device)
        self._discounts = settings.discount ** steps.unsqueeze(-1)  # [window + 1, 1]
        # What later updates depend on beside networks and optimizers:
        self._windows: tuple[Tensor, Tensor] | None = None
        self._ends: Tensor | None = None
        self._data: list[tuple[Tensor, Tensor]] = []

    def step(self) -> Record:
        """One policy step on fresh windows, then a fit of the critic to what they saw."""
        s, compiled = self.settings, self.rollout.compile_seconds
        self._windows = x, noise = self._draw()
        objective = PolicyObjective(
            self.rollout, self.policy, x, s.window, self.params, self._terms, noise, s.noise, keep_states=True
        )
        report = self.optimizer.step(objective, self.remaining)
        evaluations, trajectory = report.evaluations, objective.trajectory
        if trajectory is None:  # only other policies' rollouts are known: where does this one lead?
            trajectory, evaluations = objective.simulate(), evaluations + 1
        states, costs = self._states(trajectory), trajectory.costs
        dropped = ""
        if report.finite:
            self._fit_critic(states, costs)
            self._ends = states[-1]
        else:
            dropped = _what_is_not_finite(states, costs, report.gradients > 0)
            self._ends, self._data = None, []
        self.updates_done += 1
        return Record(
            report.loss,
            report.grad_norm,
            env_steps=evaluations * len(x) * s.window,
            gradient_evaluations=report.gradients,
            compile_seconds=self.rollout.compile_seconds - compiled,
            dropped=dropped,
        )

    def returns(self, x: States) -> Costs:
        """As of every algorithm; with the noise given as zero, what was compiled for training serves here too."""
        return self.rollout.returns(x, self.params, noise=x.new_zeros(len(self.env.action_box)))

    def _draw(self) -> tuple[Tensor, Tensor]:
        """Starts ``[B, n]`` and noise ``[window, B, m]`` of the next windows, some of them the last ones again."""
        s = self.settings
        count, kept = self.optimizer.scenarios(s.batch)
        if self._windows is None:
            kept = 0
        x = self._starts(count - kept, kept)
        noise = s.noise * self._randn(s.window, count - kept, len(self.env.action_box))
        if not kept:
            return x, noise
        assert self._windows is not None
        last_x, last_noise = self._windows
        return torch.cat((last_x[-kept:], x)), torch.cat((last_noise[:, -kept:], noise), 1)

    def _starts(self, count: int, kept: int) -> Tensor:
        """``[count, n]``: afresh from the state box, or where one of the windows that do not stay has ended."""
        s = self.settings
        if not count:
            return self._middle.new_empty(0, len(self._middle))
        fresh = self.env.state_box.sample(count, self.generator, self.dtype)
        if self._ends is None:
            return fresh
        ends = self._ends[: len(self._ends) - kept][:count]
        ends = torch.cat((ends, fresh[len(ends) :]))
        near = ((ends - self._middle).abs() <= s.reach * self._half_size) | self._is_angle
        lucky = torch.rand(count, generator=self.generator, device=self.device) < s.survival
        go_on = near.all(dim=-1) & lucky & ~self.env.done(ends)
        go_on[round(count * s.continuing) :] = False
        return torch.where(go_on.unsqueeze(-1), ends, fresh)

    @staticmethod
    def _states(window: Trajectory) -> Tensor:
        """``[window + 1, batch, n]``, without their gradient."""
        assert window.states is not None
        return window.states.detach()

    def _terms(self, window: Trajectory) -> Tensor:
        """Discounted costs and value at the end in units of the critic's scale, ``[window + 1, B]``.

        Costs after an end do not count.
        """
        alive = self._alive(self._states(window))
        costs, discounts = window.costs, self._discounts
        discounted = discounts[:-1] * alive[:-1] * costs
        if not self.critic.fitted:  # it has neither values nor a scale yet
            spread = costs.detach().std()
            return discounted / torch.where(spread > 0, spread, torch.ones_like(spread))
        assert window.values is not None
        end = (discounts[-1] * alive[-1] * window.values).unsqueeze(0)
        return torch.cat((discounted, end)) / self.critic.value.scale

    @torch.no_grad()
    def _fit_critic(self, states: Tensor, costs: Tensor) -> None:
        """Regress on TD(lambda) targets (Sutton and Barto, 2nd ed., §12.1) of the last few windows."""
        s = self.settings
        observations = self.env.observe(states.flatten(0, 1)).unflatten(0, states.shape[:2])
        z = self.policy.normalise(observations)
        values = self.critic.values(z[1:])
        goes_on = self._goes_on(states[1:])
        target, targets = values[-1], torch.empty_like(values)
        for t in reversed(range(s.window)):
            following = torch.lerp(values[t], target, s.td_lambda)
            target = costs[t] + s.discount * goes_on[t] * following
            targets[t] = target
        self._data = [*self._data, (z[:-1].flatten(0, 1), targets.flatten())][-s.critic_windows :]
        self.critic.renormalise(targets)
        z, targets = map(torch.cat, zip(*self._data, strict=True))
        self.critic.fit(z, targets, s.critic_batches, s.critic_batch_size, self.remaining, self.generator)

    def _alive(self, states: Tensor) -> Tensor:
        """``[window + 1, batch]``: 1 until a rollout has ended, 0 after. The end itself has no gradient."""
        return self._goes_on(states).cumprod(dim=0)

    def _goes_on(self, states: Tensor) -> Tensor:
        """1 where a rollout has not ended, ``[T, batch, n] -> [T, batch]``."""
        ended = self.env.done(states.flatten(0, 1)).unflatten(0, states.shape[:2])
        return (~ended).to(self.dtype)

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


class CostToGo(nn.Module):
    """The critic's value of states ``[B, n]``, as the policy observes them."""

    def __init__(self, env: Env, policy: Policy, value: Value) -> None:
        super().__init__()
        self.env, self.policy, self.value = env, policy, value

    def forward(self, x: States) -> Costs:
        return self.value(self.policy.normalise(self.env.observe(x)))


def _what_is_not_finite(states: Tensor, costs: Tensor, gradient: bool) -> str:
    """How many rollouts went wrong, and when."""
    finite = states[1:].isfinite().all(dim=-1) & costs.isfinite()
    wrong = ~finite.all(dim=0)
    if not wrong.any():
        what = "the gradient or the step is" if gradient else "the values of all members are"
        return f"{what} not finite though every rollout of the policy is"
    first = int((~finite[:, wrong]).any(dim=1).int().argmax())
    return f"{int(wrong.sum())} of {len(wrong)} rollouts not finite, first at control interval {first + 1}"
