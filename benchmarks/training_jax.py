"""A whole training beside one in JAX: the default algorithm on examples/cartpole.py, written for ``jax.jit``.

    python benchmarks/training_jax.py --out benchmarks/results/training_jax.json

The JAX version is the algorithm of diffsim/algorithms/value_gradient.py with the same sizes (256 windows, networks of
64-64, 8 minibatches of 256 values and 256 costates): starts, windows, costates, the bound on derivatives, targets,
scales, the critic's fit, both Adams and the target network are one compiled function, whose state stays in place
(``donate_argnums``).  Windows have a fixed length, since JAX compiles a function for each.  Where JAX is faster with
less, it has that: minibatches are drawn with replacement instead of by shuffling, and windows that are not finite are
not looked for.

Updates of both take turns in one process on one thread; printed are medians and quartiles of environment steps per CPU
second and of their ratio, and the return of both after 600 updates, so that both are known to learn.  Needs the extra
``bench``.
"""

from __future__ import annotations

import functools
import json
import math
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

# Before JAX starts: one thread, as the other side has; vectors of 512 bits, which XLA does not prefer by itself.
os.environ["XLA_FLAGS"] = (
    "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1 --xla_cpu_prefer_vector_width=512"
)
sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent))

import click
import jax
import jax.numpy as jnp
import numpy as np
import torch
from rollout_peers import CartPoleTwin, fast_sincos

from diffsim.algorithms.costate_critic import STEEPEST
from diffsim.algorithms.value_gradient import ValueGradientSettings, annealed
from diffsim.assembly import assemble
from diffsim.config import load_config
from examples.cartpole import CartPole

UPDATES = 600
EPS = 1e-8
BETAS = 0.7, 0.95
LEARNING_RATE = 5e-3
HELD_OUT = 10**6


class Fitted(NamedTuple):
    """Parameters under Adam, with its moments."""

    weights: Any
    first: Any
    second: Any
    steps: Any


class Rows(NamedTuple):
    """What the critic is fitted to, of the last updates: the first axis is theirs, the latest last."""

    z: Any
    targets: Any
    starts: Any
    costs: Any
    costates: Any
    jacobians: Any


class State(NamedTuple):
    key: Any
    policy: Fitted
    critic: Fitted
    target: Any
    scales: Any
    """Mean, scale, and the least and the largest cost of an interval so far."""
    fitted: Any
    ends: Any
    rows: Rows


@jax.custom_vjp
def projected_clip(v: Any) -> Any:
    """As :class:`diffsim.policy.ProjectedClip`."""
    return jnp.clip(v, -1.0, 1.0)


projected_clip.defvjp(
    lambda v: (jnp.clip(v, -1.0, 1.0), v),
    lambda v, by: (jnp.where((jnp.abs(v) < 1.0) | (v * by > 0.0), by, 0.0),),
)


def network(weights: Any, z: Any) -> Any:
    """Rows ``[N, inputs] -> [N, outputs]``."""
    for w, b in weights[:-1]:
        z = jnp.tanh(z @ w.T + b)
    w, b = weights[-1]
    return z @ w.T + b


def across(weights: Any, z: Any) -> Any:
    """The same with the rows last, ``[inputs, N] -> [outputs, N]``."""
    for w, b in weights[:-1]:
        z = jnp.tanh(w @ z + b[:, None])
    w, b = weights[-1]
    return w @ z + b[:, None]


def fresh_adam(weights: Any) -> Fitted:
    # Buffers of their own: a donated one may be there only once.
    zeros = jax.tree.map(jnp.zeros_like, weights)
    return Fitted(weights, zeros, jax.tree.map(jnp.zeros_like, weights), jnp.zeros(()))


def adam(state: Fitted, gradient: Any, rate: Any) -> Fitted:
    steps = state.steps + 1
    one, two = BETAS
    first = jax.tree.map(lambda m, g: one * m + (1 - one) * g, state.first, gradient)
    second = jax.tree.map(lambda v, g: two * v + (1 - two) * g * g, state.second, gradient)
    size, shrink = rate / (1 - one**steps), 1 / jnp.sqrt(1 - two**steps)
    weights = jax.tree.map(
        lambda w, m, v: w - size * m / (jnp.sqrt(v) * shrink + EPS), state.weights, first, second
    )
    return Fitted(weights, first, second, steps)


class Trainer:
    """The algorithm for windows of ``steps`` intervals, started from the networks of ``algorithm``."""

    def __init__(self, algorithm: Any, steps: int) -> None:
        env, policy = algorithm.env, algorithm.policy
        self.s: ValueGradientSettings = algorithm.settings
        self.steps, self.episode = steps, env.episode_steps
        self.twin = CartPoleTwin(env, jnp, fast_sincos())
        self.mean, self.scale = (q.numpy()[:, None] for q in (policy.mean, policy.scale))
        self.centre, self.half_range = (q.numpy()[:, None] for q in (policy.centre, policy.half_range))
        box = env.state_box.low, env.state_box.high, env.start_box.low, env.start_box.high
        self.low, self.high, self.start_low, self.start_high = (np.array(q, np.float32)[:, None] for q in box)
        self.middle, self.half = (self.low + self.high) / 2, (self.high - self.low) / 2
        self.angle = np.array([[name in env.angle_names] for name in env.state_names])
        self.sizes = env.state_box.half_sizes(policy.mean).numpy()

        def weights(module: Any) -> Any:
            layers = [layer for layer in module if isinstance(layer, torch.nn.Linear)]
            return [tuple(jnp.array(q.detach().numpy()) for q in (k.weight, k.bias)) for k in layers]

        n, o, b, t, kept = len(env.state_names), len(policy.mean), self.s.batch, steps, self.s.critic_windows
        shapes = Rows((t * b, o), (t * b,), (b, o), (b,), (b, n), (b, o, n))
        self.state = State(
            jax.random.key(0),
            fresh_adam(weights(policy.network)),
            fresh_adam(weights(algorithm.critic.network)),
            weights(algorithm.critic.network),
            jnp.array([0.0, 1.0, jnp.inf, -jnp.inf]),
            jnp.zeros((), bool),
            jnp.full((n, b), jnp.nan),
            Rows(*(jnp.zeros((kept, *shape)) for shape in shapes)),
        )
        self.done = 0
        self._update = jax.jit(self.update, donate_argnums=0)

    def step(self) -> None:
        """One update."""
        left = 1.0 - self.done / UPDATES
        gamma = math.exp(-annealed(self.s.discount_start, self.s.discount_end, left) / self.episode)
        kept = round(annealed(self.s.critic_windows, self.s.critic_windows_end, left))
        self.state = self._update(self.state, left, gamma, min(kept, self.done + 1))
        self.done += 1

    # -- the simulator, rollouts last -----------------------------------------------------------------

    def observed(self, x: Any) -> Any:
        """Normalised observations ``[o, N]`` of states ``[n, N]``."""
        return (jnp.stack(self.twin.observe(tuple(x))) - self.mean) / self.scale

    def interval(self, weights: Any, x: Any, noise: Any) -> tuple[Any, Any]:
        action = projected_clip(across(weights, self.observed(x)) + noise)
        u, x = tuple(self.centre + self.half_range * action), tuple(x)
        return jnp.stack(self.twin.step(x, u)), self.twin.cost(x, u)

    def value(self, weights: Any, scales: Any, gamma: Any, z: Any) -> Any:
        """Values ``[N]`` at ``z [o, N]``."""
        f = jnp.clip(across(weights, z)[0], -STEEPEST, STEEPEST)
        least, largest = scales[2] / (1 - gamma), scales[3] / (1 - gamma)
        return jnp.clip(scales[0] + scales[1] * jnp.sinh(f), least, largest)

    # -- one update -----------------------------------------------------------------------------------

    def starts(self, key: Any, ends: Any) -> Any:
        s, (n, b) = self.s, ends.shape
        keys = jax.random.split(key, 5)
        drawn = self.low + (self.high - self.low) * jax.random.uniform(keys[0], (n, b))
        initial = self.start_low + (self.start_high - self.start_low) * jax.random.uniform(keys[1], (n, b))
        moved = jax.random.uniform(keys[2], (2, b))
        way = jnp.where(moved[0] < s.between, moved[1], 1.0)
        drawn = initial + way * (drawn - initial)
        fresh = round(b * s.fresh)
        resets = round((b - fresh) * s.resets)
        number = jnp.arange(b)
        drawn = jnp.where((number >= fresh) & (number < fresh + resets), initial, drawn)
        near = (jnp.abs(ends - self.middle) <= s.reach * self.half) | self.angle
        survives = jax.random.uniform(keys[3], (b,)) >= self.steps / self.episode
        continues = (near & jnp.isfinite(ends)).all(0) & survives & (number >= fresh)
        return jnp.where(continues, ends, drawn)

    def update(self, state: State, left: Any, gamma: Any, kept: Any) -> State:
        s, steps = self.s, self.steps
        key, key_starts, key_rows, key_others = jax.random.split(state.key, 4)
        x = self.starts(key_starts, state.ends)
        discounts = gamma ** jnp.arange(steps)
        mean, scale = state.scales[0], state.scales[1]

        # The windows, their costates, and the derivatives by what the network returns.
        def windows(x: Any, noise: Any) -> Any:
            step = jax.checkpoint(lambda x, e: self.interval(state.policy.weights, x, e), prevent_cse=False)

            def advance(x: Any, e: Any) -> Any:
                after, cost = step(x, e)
                return after, (x, cost)

            last, (states, costs) = jax.lax.scan(advance, x, noise)
            end = self.value(state.target, state.scales, gamma, self.observed(last))
            total = discounts @ costs + gamma**steps * jnp.where(state.fitted, end, 0.0)
            return total, (last, states, costs)

        noise = jnp.zeros((steps, 1, x.shape[1]))
        total, pull, (last, states, costs) = jax.vjp(windows, x, noise, has_aux=True)
        costates, by_noise = pull(jnp.ones_like(total))
        spread = costs.std()
        y = jnp.where(state.fitted, (total - mean) / scale / s.compression, 0.0)
        by_cost = jnp.where(state.fitted, 1 / (scale * jnp.sqrt(1 + y * y)), 1 / spread)
        by_action = by_cost * by_noise
        lengths = jnp.sqrt((by_action**2).sum((0, 1)))
        bounds = jnp.minimum(1.0, s.gradient_bound / lengths)
        z = self.observed(states.swapaxes(0, 1).reshape(x.shape[0], -1)).T
        weight = (by_action * bounds).swapaxes(0, 1).reshape(1, -1).T / x.shape[1]
        _, back = jax.vjp(lambda weights: network(weights, z), state.policy.weights)
        policy = adam(state.policy, back(weight)[0], LEARNING_RATE * left)

        # Targets and scales.
        after = jnp.concatenate((states[1:], last[None]))
        values = self.value(
            state.target, state.scales, gamma, self.observed(after.swapaxes(0, 1).reshape(x.shape[0], -1))
        ).reshape(costs.shape)
        values = jnp.where(state.fitted, values, 0.0)

        def earlier(target: Any, at: Any) -> Any:
            cost, value = at
            target = cost + gamma * (value + s.td_lambda * (target - value))
            return target, target

        _, targets = jax.lax.scan(earlier, values[-1], (costs, values), reverse=True)
        inside = ((jnp.abs(states - self.middle) <= self.half * 1.001) | self.angle).all(1)
        least = jnp.minimum(state.scales[2], jnp.where(inside, costs, jnp.inf).min())
        largest = jnp.maximum(state.scales[3], jnp.where(inside, costs, -jnp.inf).max())
        low, centre, high = jnp.quantile(targets.ravel(), jnp.array([0.16, 0.5, 0.84]))
        width = jnp.maximum((high - low) / 2, 0.02 * targets.std())
        rate = jnp.where(state.fitted, s.normalizer_rate, 1.0)
        scales = jnp.stack((mean + rate * (centre - mean), scale + rate * (width - scale), least, largest))

        # The critic's fit.
        one = jax.jacfwd(lambda x: self.observed(x[:, None])[:, 0])
        jacobians = jax.vmap(one, 1)(x) * self.sizes
        new = Rows(z, targets.ravel(), self.observed(x).T, total, costates.T * self.sizes, jacobians)
        rows = jax.tree.map(lambda old, q: jnp.concatenate((old[1:], q[None])), state.rows, new)
        critic = self.fitted(state.critic, rows, scales, kept, left, key_rows, key_others)
        target = jax.tree.map(lambda a, b: a + s.tau * (b - a), state.target, critic.weights)
        ends = jnp.where((lengths == 0), jnp.nan, last)
        return State(key, policy, critic, target, scales, jnp.ones((), bool), ends, rows)

    def fitted(
        self, critic: Fitted, rows: Rows, scales: Any, kept: Any, left: Any, key: Any, other: Any
    ) -> Fitted:
        s, all_kept = self.s, rows.targets.shape[0]
        y = jnp.arcsinh((rows.targets - scales[0]) / scales[1])
        standard = (rows.costs - scales[0]) / scales[1]
        slopes = rows.costates / (scales[1] * jnp.sqrt(1 + standard**2))[..., None]
        lengths = jnp.sqrt((slopes**2).sum(-1))
        fresh = (jnp.arange(all_kept) >= all_kept - kept)[:, None]
        median = jnp.nanmedian(jnp.where(fresh & (lengths > 0), lengths, jnp.nan))
        weights = s.costate_weight * jnp.minimum(1.0, s.costate_bound * median / lengths) ** 2
        flat = jax.tree.map(lambda q: q.reshape(-1, *q.shape[2:]), rows)
        y, slopes, weights = y.ravel(), slopes.reshape(-1, slopes.shape[-1]), weights.ravel()

        def numbers(key: Any, each: int) -> Any:
            shape = s.critic_batches, s.critic_batch_size
            return jax.random.randint(key, shape, (all_kept - kept) * each, all_kept * each)

        def loss(network_weights: Any, i: Any, j: Any) -> Any:
            by_value = network(network_weights, flat.z[i])[:, 0] - y[i]
            slope = jax.grad(lambda z: network(network_weights, z).sum())(flat.starts[j])
            off = jnp.einsum("koi,ko->ki", flat.jacobians[j], slope) - slopes[j]
            return (by_value**2).mean() + (weights[j] * (off**2).sum(-1)).mean()

        def minibatch(critic: Fitted, at: Any) -> Any:
            return adam(critic, jax.grad(loss)(critic.weights, *at), s.critic_learning_rate * left), None

        sizes = rows.targets.shape[1], rows.costs.shape[1]
        chosen = numbers(key, sizes[0]), numbers(other, sizes[1])
        return jax.lax.scan(minibatch, critic, chosen)[0]

    # -- measuring ------------------------------------------------------------------------------------

    @functools.cached_property
    def _returns(self) -> Any:
        def returns(weights: Any, x: Any) -> Any:
            _, costs = jax.lax.scan(lambda x, _: self.interval(weights, x, 0.0), x, None, length=self.episode)
            return -costs.sum(0)

        return jax.jit(returns)

    def mean_return(self, x: torch.Tensor) -> float:
        """Of whole episodes from ``x [B, n]``."""
        return float(self._returns(self.state.policy.weights, jnp.array(x.numpy().T)).mean())


def quartiles(values: list[float]) -> list[float]:
    return statistics.quantiles(values, n=4)


@click.command()
@click.option("--window", default=16, show_default=True, help="Control intervals of a window.")
@click.option(
    "--turn", default=20, show_default=True, help="Updates of one side before it is the other's turn."
)
@click.option("--out", type=click.Path(path_type=Path))
def main(window: int, turn: int, out: Path | None) -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    options = {"name": "value_gradient", "window": window, "window_end": window, "bounded_share": 1.0}
    config = load_config(
        {"env": "examples.cartpole:CartPole", "updates": UPDATES, "backend": "native"}, {"algorithm": options}
    )
    ours = assemble(config).algorithm
    env_steps = window * ours.settings.batch
    x = CartPole().reset(128, torch.Generator().manual_seed(HELD_OUT))
    theirs = Trainer(ours, window)
    first = {}
    for name, side in (("diffsim", ours), ("jax", theirs)):
        began = time.perf_counter()
        side.step()
        jax.block_until_ready(theirs.state)
        first[name] = time.perf_counter() - began
    speeds: dict[str, list[float]] = {"diffsim": [], "jax": []}
    updates = 1
    while updates < UPDATES:
        count = min(turn, UPDATES - updates)
        sides = [("diffsim", ours), ("jax", theirs)]
        for name, side in sides if (updates // turn) % 2 else sides[::-1]:
            began = time.process_time()
            for _ in range(count):
                side.step()
            jax.block_until_ready(theirs.state)
            speeds[name].append(count * env_steps / (time.process_time() - began))
        updates += count
    results: dict[str, Any] = {
        "command": f"python benchmarks/training_jax.py --window {window} --turn {turn}",
        "machine": {
            "platform": platform.platform(),
            "torch": torch.__version__,
            "jax": jax.__version__,
            "cpus": len(os.sched_getaffinity(0)),
        },
        "window": window,
        "batch": ours.settings.batch,
        "updates": UPDATES,
        "first update, s": first,
        "environment steps a CPU second": {name: quartiles(values) for name, values in speeds.items()},
        "ratio": quartiles([a / b for a, b in zip(speeds["diffsim"], speeds["jax"], strict=True)]),
        "return": {"diffsim": float(ours.returns(x).mean()), "jax": theirs.mean_return(x)},
    }
    print(json.dumps(results, indent=1))
    if out is not None:
        out.write_text(f"{json.dumps(results, indent=1)}\n")


if __name__ == "__main__":
    main()
