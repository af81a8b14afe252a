"""Value gradients with a critic that knows costates: the default algorithm.

The policy's gradient is backpropagated through short windows of control intervals, where it is smooth and has a low
variance; the critic's value at the end of the window stands for the rest of the horizon.  One backward pass of the
windows gives what both networks learn from: the derivative of a window's cost by its actions moves the policy, that by
its initial state (the costate) is what the critic's derivative is fitted to.

Nothing is set per simulator.  What depends on time follows from the length of the task's episode and from how
derivatives grow along windows, and the scale of costs comes from the data.  Actions have no noise: windows start
anywhere in the state box, which explores more.

Taken from others:

- Windows in parallel with a terminal critic, TD(lambda) targets, a target network, Adam with betas (0.7, 0.95),
  learning rates that fall linearly to zero: SHAC (Xu et al., ICLR 2022, arXiv 2204.07137).
- Policy gradients through a model and a value at its end: stochastic value gradients (Heess et al., 2015, arXiv
  1510.09142), model-augmented actor-critic (Clavera et al., 2020, arXiv 2005.08068).
- A discount that follows from the length of the episode: TD-MPC2 (Hansen et al., 2024, arXiv 2310.16828, appendix).
- A critic fitted to derivatives: see :mod:`diffsim.algorithms.costate_critic`.
- A scale of the value that follows the targets: PopArt (van Hasselt et al., 2016, arXiv 1602.07714).

docs/algorithms.md has the measurements.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from diffsim.algorithms.base import Algorithm, Record
from diffsim.algorithms.costate_critic import CostateCritic, Rows
from diffsim.algorithms.kernels import compile_seconds
from diffsim.algorithms.policy_objective import PolicyObjective
from diffsim.algorithms.tanh_stack import pulled, results_of
from diffsim.algorithms.window_losses import Range, Unit, compressed, weigh
from diffsim.algorithms.windows import (
    CostToGo,
    all_finite,
    never_ends,
    not_ended,
    what_is_not_finite,
)
from diffsim.config import RunConfig
from diffsim.optimizers.base import Optimizer
from diffsim.optimizers.objective import Gradient
from diffsim.policy import MLP, Policy, initialised
from diffsim.rollouts import Rollout, Trajectory
from diffsim.rollouts.observed import Observed
from diffsim.settings import Settings
from robotics_envs.base import Costs, Env, Params, States


class ValueGradientSettings(Settings):
    batch: int = Field(default=256, ge=2)
    """Windows per update."""
    window: int = Field(default=8, ge=1)
    """Control intervals of a window at the start of the run, if not fewer; at most an episode."""
    window_end: int = Field(default=32, ge=1)
    """The same at the end of the run; it changes geometrically."""
    discount_start: float = Field(default=5.0, gt=0)
    """Discount rate per episode at the start of the run: gamma = exp(-rate / intervals of an episode)."""
    discount_end: float = Field(default=1.0, gt=0)
    """Discount rate per episode at the end of the run; it changes geometrically."""
    fresh: float = Field(default=0.25, ge=0, le=1)
    """Share of the windows that start from the state box at every update. The others continue the previous windows."""
    resets: float = Field(default=0.5, ge=0, le=1)
    """Share of the windows that do not continue, beside the fresh ones, that start from the task's initial states; the
    others start from the state box."""
    between: float = Field(default=0.5, ge=0, le=1)
    """Share of the starts from the state box that are moved towards an initial state of the task, each by a uniform
    share of the way."""
    reach: float = Field(default=10.0, gt=0)
    """A window does not continue from a state outside the state box enlarged by this factor."""
    compression: float = Field(default=3.0, gt=0)
    """A window counts less, the further its cost is from the median: from about this number of scales on."""
    gradient_bound: float = Field(default=1.0, gt=0)
    """Bound on the length of the derivative of a window's loss by its actions, in scales per half range of the action
    box: a longer one is scaled down to it."""
    bounded_share: float = Field(default=0.2, ge=0, le=1)
    """Windows become shorter while more than this share of them meets the bound, and longer while fewer do."""
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
    critic_windows: int = Field(default=8, ge=1)
    """The critic is fitted to the windows of this number of the last updates, at the start of the run."""
    critic_windows_end: int = Field(default=1, ge=1)
    """The same at the end of the run; it changes geometrically."""
    costate_weight: float = Field(default=0.1, ge=0)
    """Weight of the critic's error in costates; 0 fits it to values only."""
    costate_bound: float = Field(default=3.0, gt=0)
    """Costates longer than this number of medians weigh less."""
    tau: float = Field(default=0.2, gt=0, le=1)
    """Polyak averaging per update: target network <- (1 - tau) target network + tau critic."""
    normalizer_rate: float = Field(default=0.1, gt=0, le=1)
    """Coefficient of the exponential moving averages of the critic's mean and scale, per update."""


class Windows(NamedTuple):
    """What an evaluation with gradient tells of the windows, detached."""

    costs: Costs
    """Discounted costs ``[B]``, with the discounted value at the end."""
    costates: Tensor
    """Derivatives of ``costs`` by the initial states, ``[B, n]``."""
    ok: Tensor
    """Which windows are finite, derivatives included, ``[B]``."""
    bounds: Tensor
    """Factors in [0, 1] that bound the derivatives of the loss by the windows' actions, ``[B]``."""
    idle: Tensor
    """In which windows no action had any effect on the cost, ``[B]``."""
    z: Tensor
    """Normalised observations of the windows' states, ``[B, T + 1, o]``."""
    typical: Tensor
    """In which control intervals the cost is not one of a state far outside the box, ``[B, T]``."""

    def only(self, chosen: Tensor) -> Windows:
        """Those with True in ``chosen [B]``."""
        return Windows(*(q[chosen] for q in self))


class WindowObjective(PolicyObjective):
    """Mean over windows of ``c asinh(y / c)``, with ``c`` the setting ``compression``.

    ``y = (J - mean) / scale`` is the window's discounted cost ``J = sum_t gamma^t cost_t + gamma^T V(x_T)``,
    standardised by the critic's mean and scale; V is the critic's target network.  The derivative of the loss by J is
    ``1 / (scale sqrt(1 + (y / c)²))``: windows of unusual cost weigh less.  Before the first fit of the critic there
    are no values, and the loss is J over the standard deviation of costs.  Costs after the end of an episode are zero,
    and so is the value; no gradient flows through the end.

    For optimizers that use gradients, a window's term is multiplied by a factor that bounds its derivative by the
    window's actions to ``gradient_bound``, and windows that are not finite are left out.  The factors are found at the
    first evaluation of a step and then kept: a line search compares values of one function.  The unit needs no
    adaptation: actions change the loss of a window by the spread of values, which is about one scale, so a derivative
    that is much longer tells of a discontinuity or of chaos, not of what a change of the action does.

    The factor is 0 where an episode ends in the window.  The derivative of such a window takes the time of the end as
    given, so it does not see that the end costs the rest of the episode.  The values at the ends of the others do.

    Attributes:
        gamma: discount factor per control interval.
        windows: of the first evaluation with gradient of this step; None before.
    """

    needs_states = True
    parts: list[WindowObjective]

    def __init__(
        self, rollout: Rollout, params: Params, critic: CostateCritic, settings: ValueGradientSettings
    ) -> None:
        super().__init__(rollout, settings.window, params)
        self.critic, self.settings = critic, settings
        self.observed = Observed(rollout.env, self.policy, rollout.backend)
        self.gamma = 1.0
        self.windows: Windows | None = None
        self.typical = Range.of_box(rollout.env, self.policy.mean, 1 + 1e-3)

    def begin(self, x: States, noise: Tensor | None = None) -> None:
        super().begin(x, noise)
        self.windows = None

    def weights(self, trajectory: Trajectory) -> Tensor:
        """What costs, and last the value at the end, are multiplied by, ``[T + 1, B]``: discounts, 0 after an end."""
        env, costs = self.rollout.env, trajectory.costs
        assert trajectory.states is not None
        exponents = torch.arange(len(costs) + 1, dtype=costs.dtype, device=costs.device)
        weights = (self.gamma**exponents).unsqueeze(-1)
        if never_ends(env):
            return weights.expand(-1, costs.shape[1])
        return weights * not_ended(env, trajectory.states).cumprod(dim=0)

    def discounted(self, trajectory: Trajectory) -> Costs:
        """Discounted costs ``[B]``, with the discounted value at the end."""
        assert trajectory.values is not None
        weights = self.weights(trajectory.detached())
        return (weights[:-1] * trajectory.costs).sum(0) + weights[-1] * trajectory.values

    def unit(self, costs: Tensor) -> Unit:
        """What discounted costs are compared with to get losses; ``costs [T, B]`` are those of the windows."""
        if self.critic.fitted:
            value = self.critic.target
            return Unit(value.mean, value.scale, self.settings.compression)
        costs = self.costs_of_batch(costs)
        finite = costs[:, costs.isfinite().all(0)]
        std = finite.std(correction=0) if finite.numel() else finite.new_ones(())
        return Unit(torch.zeros_like(std), torch.where(std > 0, std, torch.ones_like(std)), math.inf)

    @property
    def needs_costs_of_batch(self) -> bool:
        return not self.critic.fitted

    def simulated(self) -> Trajectory:
        window = super().simulated()
        own = [part.windows[:-2] for part in self.parts if part.windows is not None]
        if self.windows is None and own:
            # What follows from the states is computed here: sent by other processes it would take longer.
            assert window.states is not None
            z, typical = self.observed(window.states), self.typical.holds(window.states[:-1])
            gathered = self.gathered(own, [0] * len(own[0]))
            self.windows = Windows(*gathered, *(q.transpose(0, 1) for q in (z, typical)))
        return window

    def terms(self, trajectory: Trajectory) -> Tensor:
        return compressed(self.discounted(trajectory), self.unit(trajectory.costs))[0].unsqueeze(0)

    def gradient(self) -> Gradient:
        if self.parts:
            return super().gradient()
        self.evaluations += 1
        self.gradients += 1
        parameters, found = self.vector.parameters, self._followed(self.x, self.noise)
        self._remember(found.trajectory)
        if found.by_results is None:
            return Gradient.of(found.losses.mean(), [None] * len(parameters), parameters)
        by = pulled(self.policy.network, parameters, found.z, found.by_results, self.rollout.backend)
        self.counted = len(found.losses)
        some = [q for q in by if q is not None]
        if some:
            torch._foreach_div_(some, max(self.counted, 1))
        return Gradient.of(found.losses.mean(), by, parameters)

    def evaluate(self, x: States, noise: Tensor | None) -> tuple[Trajectory, Tensor]:
        found = self._followed(x, noise)
        if found.by_results is None:
            return found.trajectory, self.terms(found.trajectory)
        raw = self.policy.network(found.z.flatten(0, 1)).unflatten(0, found.z.shape[:2])
        linear = (raw * found.by_results).sum((0, 2))
        # The mean over all rows of the result is to be that over those which count.
        self.counted = len(linear)
        terms = (found.losses + linear - linear.detach()) * (len(x) / max(self.counted, 1))
        if found.chosen is None:
            return found.trajectory, terms.unsqueeze(0)
        left_out = terms.new_full((len(x),), 0.0 if self.counted else torch.nan)
        return found.trajectory, left_out.index_copy(0, found.chosen, terms).unsqueeze(0)

    def _followed(self, x: States, noise: Tensor | None) -> Followed:
        """Windows from ``x``, with one backward pass through the simulator for policy and critic.

        The derivative by the noise is that by what the network returns, so the derivative by its parameters follows
        from the network alone.
        """
        assert noise is not None
        trajectory, pull = self.rollout.vjp(x, self.steps, self.params, noise=noise)
        weights = self.weights(trajectory)
        found = pull(weights[:-1], weights[-1] if self.critic.fitted else None)
        with torch.no_grad():
            if found is None:
                return Followed(trajectory, self.terms(trajectory)[0], x, None, None)
            costates, by_noise = found
            states, windows, whole = trajectory.states, self.windows, len(x) == len(self.x)
            assert states is not None
            bounds = windows.bounds if windows is not None and whole else None
            q = weigh(
                trajectory,
                weights,
                costates,
                by_noise,
                self.unit(trajectory.costs),
                self.settings.gradient_bound,
                bounds,
                self.typical,
                self.rollout.backend,
            )
            if bounds is None and not never_ends(self.rollout.env):
                q = q.times(weights[-1] > 0)
            z = self.observed(states)
            if windows is None and whole:
                idle = self._idle(z, noise, q.unmoved) if q.any_unmoved else q.unmoved
                by_window = z.transpose(0, 1), q.typical.transpose(0, 1)
                self.windows = Windows(q.discounted, costates, q.ok, q.bounds, idle, *by_window)
            if not q.left_out:
                return Followed(trajectory, q.losses, z[:-1], q.by_results, None)
            chosen = q.ok.nonzero().squeeze(-1)
            finite = z[:-1].index_select(1, chosen), q.by_results.index_select(1, chosen)
            return Followed(trajectory, q.losses[chosen], *finite, chosen)

    def _idle(self, z: Tensor, noise: Tensor, unmoved: Tensor) -> Tensor:
        """In which of the ``unmoved [B]`` windows actions have no effect, ``[B]``.

        Beyond the bounds of the actions the derivative is zero, too, which is another matter.
        """
        z = z[:-1, unmoved]
        raw = results_of(self.policy.network, z.flatten(0, 1), self.rollout.backend)
        asked = raw.unflatten(0, z.shape[:2]) + noise[:, unmoved]
        return unmoved.masked_scatter(unmoved, asked.abs().amax((0, 2)) < 1.0)


class Followed(NamedTuple):
    """Windows, detached, and the derivatives of their losses by what the policy's network returned."""

    trajectory: Trajectory
    losses: Costs
    """Of the ``K`` windows that are finite, times their bounds; without derivatives those of all."""
    z: Tensor
    """Normalised observations of these, ``[T, K, o]``."""
    by_results: Tensor | None
    """Derivatives ``[T, K, m]`` of ``losses``; None for a simulator without gradients."""
    chosen: Tensor | None
    """The numbers of the windows that are finite, ``[K]``; None for all."""


def annealed(start: float, end: float, left: float) -> float:
    """Geometrically from ``start`` to ``end`` while ``left``, the share of the run that is left, goes from 1 to 0."""
    return end * (start / end) ** left


class ValueGradient(Algorithm):
    """Each update: an optimizer step on the :class:`WindowObjective` of the next windows, then a fit of the critic."""

    Settings = ValueGradientSettings
    divides_batches = True

    def __init__(
        self,
        env: Env,
        policy: Policy,
        config: RunConfig,
        settings: ValueGradientSettings,
        optimizer: Optimizer | None = None,
    ) -> None:
        super().__init__(env, policy, config, settings, optimizer)
        self.settings = settings
        network = initialised(
            lambda: MLP(len(env.observation_names), 1, settings.critic_hidden), config.seed + 1
        )
        self.critic = CostateCritic(
            network.to(policy.mean),
            settings.critic_learning_rate,
            (0.7, 0.95),
            settings.tau,
            settings.normalizer_rate,
            settings.costate_weight,
            settings.costate_bound,
            config.backend,
        )
        self.rollout = Rollout(
            env,
            policy,
            terminal=CostToGo(env, policy, self.critic.target),
            backend=config.backend,
            threads=self._threads,
            expected_steps=config.updates
            * max(settings.window, settings.window_end)
            * self.optimizer.calls_per_step,
            parameter_gradients=False,
        )
        self._reach = Range.of_box(env, policy.mean, settings.reach)
        # In these units the derivatives by different states can be compared.
        self._sizes = env.state_box.half_sizes(policy.mean)
        self.objective = WindowObjective(self.rollout, self.params, self.critic, settings)
        self.objective.shards = self.shards
        # State that later updates depend on, beside networks and optimizers:
        self._x: Tensor | None = None
        """Where the last windows started, ``[B, n]``."""
        self._ends: Tensor | None = None
        self._data: list[Rows] = []
        self._longest = float(settings.window)
        """Control intervals of a window, as a real number."""

    def step(self) -> Record:
        """One optimizer step of the policy on the next windows, then a fit of the critic to them."""
        s, objective = self.settings, self.objective
        compiled, evaluations = self._compile_seconds(), objective.evaluations
        # What depends on time: the discount, and the length of windows.
        episode, left = self.env.episode_steps, self.remaining
        objective.gamma = math.exp(-annealed(s.discount_start, s.discount_end, left) / episode)
        most = max(self.env.longest_window / self.env.dt, 1.0)
        self._longest = min(self._longest, annealed(s.window, s.window_end, left), episode, most)
        objective.params = self.training_params
        objective.steps = round(self._longest)
        self._x = x = self._draw()
        # The derivative by actions is that by a noise which is zero.
        objective.begin(x, x.new_zeros(objective.steps, len(x), len(self.env.action_box)))
        # The optimizer evaluates the loss once or several times and changes the policy.
        report = self.optimizer.step(objective, left)
        # The critic learns from the windows of the policy, and the next windows continue them.
        window, dropped, left_out = objective.simulated(), "", 0
        if report.finite:
            left_out = self._fit_critic(window, objective.windows)
            self._ends = window.last
            if objective.windows is not None:
                self._ends = torch.where(objective.windows.idle.unsqueeze(-1), torch.nan, window.last)
                self._adapt_length(objective.windows)
        else:
            dropped = what_is_not_finite(window, report.gradients > 0)
            self._ends, self._data = None, []
        self.updates_done += 1
        return Record(
            report.loss,
            report.grad_norm,
            env_steps=(objective.evaluations - evaluations) * len(x) * objective.steps,
            gradient_evaluations=report.gradients,
            compile_seconds=self._compile_seconds() - compiled,
            dropped=dropped,
            left_out=left_out,
        )

    def _compile_seconds(self) -> float:
        """Seconds spent on preparing kernels so far: of rollouts, of what is observed, and of networks."""
        return self.rollout.compile_seconds + self.objective.observed.compile_seconds + compile_seconds()

    def _adapt_length(self, windows: Windows) -> None:
        """Shorter windows where derivatives grow too much along them, longer ones where they do not."""
        counted = windows.ok & (windows.bounds > 0)
        met = int((counted & (windows.bounds < 1.0)).sum()) / max(int(counted.sum()), 1)
        self._longest = max(self._longest * (0.95 if met > self.settings.bounded_share else 1.02), 1.0)

    def _no_noise(self, x: States) -> Tensor:
        return x.new_zeros(len(self.env.action_box))

    def _draw(self) -> Tensor:
        """Initial states ``[B, n]``; the optimizer may ask to keep some of the last ones."""
        count, kept = self.optimizer.scenarios(self.settings.batch)
        if self._x is None or not kept:
            return self._starts(count, 0)
        return torch.cat((self._x[-kept:], self._starts(count - kept, kept)))

    def _starts(self, count: int, kept: int) -> Tensor:
        """Initial states ``[count, n]``: drawn, or last states of windows that are not kept.

        The mean length of a trajectory of windows is an episode of the task.
        """
        s, env = self.settings, self.env
        if not count:
            return self._sizes.new_empty(0, len(self._sizes))
        drawn = env.state_box.sample(count, self.generator, self.dtype)
        initial = env.reset(count, self.generator, self.dtype).to(drawn)
        way = torch.where(self._uniform(count) < s.between, self._uniform(count), 1.0).to(drawn).unsqueeze(-1)
        drawn = torch.lerp(initial, drawn, way)
        fresh = round(count * s.fresh)
        resets = round((count - fresh) * s.resets)
        drawn[fresh : fresh + resets] = initial[fresh : fresh + resets]
        if self._ends is None:
            return drawn
        ends = self._ends[: len(self._ends) - kept][:count]
        ends = torch.cat((ends, drawn[len(ends) :]))
        survives = self._uniform(count) >= self.objective.steps / env.episode_steps
        continues = self._reach.holds(ends) & survives & ~env.done(ends)
        continues[:fresh] = False
        return torch.where(continues.unsqueeze(-1), ends, drawn)

    @torch.no_grad()
    def _fit_critic(self, window: Trajectory, gradients: Windows | None) -> int:
        """Fit the critic to the last windows; returns how many of these are left out.

        To TD(lambda) targets (Sutton and Barto, 2nd ed., §12.1) at all states and, where there are gradients, to
        the costates at the windows' starts.
        """
        s, env, states = self.settings, self.env, window.states
        assert states is not None
        ok = all_finite(states) & all_finite(window.costs) if gradients is None else gradients.ok
        left_out = len(ok) - int(ok.sum())
        if left_out == len(ok):
            return left_out
        costs = window.costs
        if left_out:
            states, costs = states[:, ok], costs[:, ok]
            gradients = None if gradients is None else gradients.only(ok)
        if gradients is None:
            z, typical = self.objective.observed(states), self.objective.typical.holds(states[:-1])
        else:
            z, typical = gradients.z.transpose(0, 1), gradients.typical.transpose(0, 1)
        goes_on = None if never_ends(env) else not_ended(env, states[1:])
        # Costs far outside the box bound nothing that the value should reach.
        targets = self.critic.targets(z, costs, goes_on, typical, self.objective.gamma, s.td_lambda)
        rows = Rows(z[:-1].flatten(0, 1), targets.flatten(), *self._derivatives(states[0], z[0], gradients))
        kept = round(annealed(s.critic_windows, s.critic_windows_end, self.remaining))
        self._data = [*self._data, rows][-kept:]
        self.critic.fit(self._data, s.critic_batches, s.critic_batch_size, self.remaining, self.generator)
        return left_out

    def _derivatives(
        self, x: States, z: Tensor, gradients: Windows | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The last four fields of :class:`Rows`."""
        if gradients is None or not self.settings.costate_weight:
            return z[:0], z[:0, 0], x[:0], x.new_empty(0, z.shape[1], x.shape[1])
        return (
            z,
            gradients.costs,
            gradients.costates * self._sizes,
            self.objective.observed.jacobian(x) * self._sizes,
        )

    def _uniform(self, count: int) -> Tensor:
        # In float32 for every run, whose dtype does not matter to a comparison with a probability.
        return torch.rand(count, generator=self.generator, device=self.device, dtype=torch.float32)

    def state_dict(self) -> dict[str, Any]:
        return {
            "updates_done": self.updates_done,
            "policy": dict(self.policy.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "critic": self.critic.state_dict(),
            "generator": self.generator.get_state(),
            "x": self._x,
            "ends": self._ends,
            "data": [tuple(rows) for rows in self._data],
            "longest": self._longest,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        def here(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(self.device)

        self.updates_done = state["updates_done"]
        self.policy.load_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.critic.load_state_dict(state["critic"])
        self.generator.set_state(state["generator"])
        self._x = here(state["x"])
        self._ends = here(state["ends"])
        self._data = [Rows(*map(here, rows)) for rows in state["data"]]  # type: ignore[arg-type]
        self._longest = state["longest"]
