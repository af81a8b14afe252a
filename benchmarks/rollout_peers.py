"""The peers of the benchmark "closed-loop policy gradient": JAX, diffrax, torchdiffeq, torchode and Brax.

    python benchmarks/rollout_peers.py --check

What each computes: the mean of the per-step costs [steps, B] of a batch of rollouts under an MLP policy,
and its gradient by the network's parameters, in float32.  ``PEERS[name](env_name, policy, x0, steps)`` builds
and compiles; what it returns is called as ``run() -> (loss, gradients)``.  The check compares every peer on
every simulator with the plain loop of ``policy(env.observe(x))`` and ``env.step``.

The JAX twins of the simulators are written from their torch source, with the constants of the same object.
They are written over the first axis, so that the same equations serve one rollout, ``x [n]``, and a batch
with the rollouts last, n components ``[B]``.  Needs the extra ``bench``, and brax for that peer.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import itertools
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))  # for the examples

from diffsim.policy import MLP, Policy, initialised, observation_statistics
from robotics_envs.base import Env
from solvers.methods.base import Solver
from solvers.methods.runge_kutta import RK4

ENVS = {
    "cartpole": "examples.cartpole:CartPole",
    "quadrotor": "robotics_envs.simulators.quadrotor:Quadrotor",
    "arm7": "robotics_envs.simulators.arm7_point:Arm7Point",  # the key of committed results
}

TOLERANCES = {"jax": 1e-4, "jax best": 1e-4, "torchdiffeq": 1e-4, "diffrax": 1e-3, "torchode": 1e-3}
"""Relative errors of loss and gradient that the check allows over 20 intervals.

diffrax and torchode step with Tsit5 where the simulators step with RK4 and torchdiffeq with the 3/8
rule, also of order 4: they agree to the difference of the methods at the simulator's step.
"""


@dataclass
class Run:
    """A peer made ready: ``run() -> (loss, gradients in the order of policy.network.parameters())``."""

    call: Callable[[], tuple[float, list[np.ndarray]]]
    compile_seconds: float = 0.0
    same_problem: bool = True
    """False where only the sizes of the problem are the same, so that speed alone can be compared."""
    note: str = ""

    def __call__(self) -> tuple[float, list[np.ndarray]]:
        return self.call()


def make_env(env_name: str) -> Env:
    """The simulator of that name with its default parameters."""
    module, _, name = ENVS[env_name].partition(":")
    return getattr(importlib.import_module(module), name)()


def make_policy(env: Env, seed: int = 0, hidden: Sequence[int] = (64, 64)) -> Policy:
    """The benchmark's policy: an MLP with tanh layers and a tanh squash."""
    network = initialised(lambda: MLP(len(env.observation_names), len(env.action_box), hidden), seed)
    mean, scale = observation_statistics(env, torch.device("cpu"), torch.float32)
    return Policy(network, mean, scale, *env.action_box.bounds(mean), "tanh")


# The torch side -----------------------------------------------------------------------------------


def _torch_run(policy: Policy, x0: Tensor, steps: int, env: Env) -> Run:
    parameters = list(policy.network.parameters())
    p = env.params(x0)

    def call() -> tuple[float, list[np.ndarray]]:
        x, costs = x0, []
        for _ in range(steps):
            x, cost = env.step(x, policy(env.observe(x)), p)
            costs.append(cost)
        loss = torch.stack(costs).mean()
        gradients = torch.autograd.grad(loss, parameters)
        return loss.item(), [gradient.numpy() for gradient in gradients]

    return Run(call)


def torch_reference(env_name: str, policy: Policy, x0: Tensor, steps: int) -> Run:
    """What the peers are held against: the eager loop over ``env.step``."""
    return _torch_run(policy, x0, steps, make_env(env_name))


class _Peer(Solver):
    """A peer's step in the place of the simulator's solver, so that ``env.step`` stays what it is."""

    order = 4

    def __init__(self, step: Callable) -> None:
        self._step = step

    def step(self, f: Callable, t: Any, x: Tensor, u: Any, p: Any, dt: Any) -> Tensor:
        return self._step(f, x, u, p)


def _torch_peer(env_name: str, policy: Policy, x0: Tensor, steps: int, step: Callable) -> Run:
    env = make_env(env_name)
    env.solver = _Peer(step)
    return _torch_run(policy, x0, steps, env)


def with_torchdiffeq(env_name: str, policy: Policy, x0: Tensor, steps: int) -> Run:
    """Its fixed-grid rk4 (the 3/8 rule), one step per control interval, backpropagation through it."""
    import torchdiffeq

    ts = x0.new_tensor([0.0, make_env(env_name).dt])

    def step(f: Callable, x: Tensor, u: Tensor, p: Mapping[str, Tensor]) -> Tensor:
        return torchdiffeq.odeint(lambda t, x: f(t, x, u, p), x, ts, method="rk4")[-1]

    return _torch_peer(env_name, policy, x0, steps, step)


def with_torchode(env_name: str, policy: Policy, x0: Tensor, steps: int) -> Run:
    """Its Tsit5 at a fixed step, one step per control interval, backpropagation through it."""
    import torchode

    env = make_env(env_name)
    p = env.params(x0)
    term = torchode.ODETerm(lambda t, x, u: env.dynamics(t, x, u, p), with_stats=False, with_args=True)
    solver = torchode.AutoDiffAdjoint(torchode.Tsit5(term=term), torchode.FixedStepController())
    start, end = x0.new_zeros(len(x0)), x0.new_full((len(x0),), env.dt)

    def step(f: Callable, x: Tensor, u: Tensor, p: Mapping[str, Tensor]) -> Tensor:
        problem = torchode.InitialValueProblem(y0=x, t_start=start, t_end=end)
        return solver.solve(problem, dt0=end, args=u).ys[:, -1]

    return _torch_peer(env_name, policy, x0, steps, step)


# The simulators in JAX ----------------------------------------------------------------------------

Parts = tuple[Any, ...]
"""The components of a state, action or observation: numbers, or arrays over the rollouts ``[B]``."""


class Twin:
    """A simulator in jax.numpy, over components: ``sincos`` gives sine and cosine of an angle."""

    def __init__(self, env: Env, jnp: Any, sincos: Callable[[Any], tuple[Any, Any]] | None = None) -> None:
        if not isinstance(env.solver, RK4):
            raise NotImplementedError(f"the twins step with RK4, not {type(env.solver).__name__}")
        self.jnp, self.dt = jnp, env.dt
        self.sincos = sincos or (lambda angle: (jnp.sin(angle), jnp.cos(angle)))
        self.low, self.high = (np.array(v, np.float32) for v in (env.action_box.low, env.action_box.high))
        for name, constant in env.constants.items():
            setattr(self, name, constant.value)

    def dynamics(self, x: Parts, u: Parts) -> Parts:
        """dx/dt."""
        raise NotImplementedError

    def cost(self, x: Parts, u: Parts) -> Any:
        """The cost of one control interval."""
        raise NotImplementedError

    def observe(self, x: Parts) -> Parts:
        """What the policy sees."""
        return x

    def constrain(self, x: Parts) -> Parts:
        """What the simulator does to the state after the solver's step."""
        return x

    def step(self, x: Parts, u: Parts) -> Parts:
        """The solver's step (RK4) under an action that is clipped already."""

        def moved(h: float, slope: Parts) -> Parts:
            return tuple(a + h * k for a, k in zip(x, slope, strict=True))

        if self.rolled:
            return self.constrain(self._rolled(x, u))
        k1 = self.dynamics(x, u)
        k2 = self.dynamics(moved(self.dt / 2, k1), u)
        k3 = self.dynamics(moved(self.dt / 2, k2), u)
        k4 = self.dynamics(moved(self.dt, k3), u)
        slopes = zip(k1, k2, k3, k4, strict=True)
        return self.constrain(moved(self.dt / 6, tuple(a + 2 * (b + c) + d for a, b, c, d in slopes)))

    rolled = False
    """Whether RK4 is a loop over its stages: a quarter of the code to compile."""
    recompute_stages = False
    """Whether the loop keeps only the states of the stages for the backward pass."""

    def _rolled(self, x: Parts, u: Parts) -> Parts:
        import jax

        def stage(carry, weights):
            sums, slope = carry
            before, share = weights
            at = tuple(a + before * k for a, k in zip(x, slope, strict=True))
            slope = self.dynamics(at, u)
            return (tuple(s + share * k for s, k in zip(sums, slope, strict=True)), slope), None

        if self.recompute_stages:
            stage = jax.checkpoint(stage, prevent_cse=False)
        x = tuple(x)
        weights = self.dt * np.array([(0, 1 / 6), (1 / 2, 1 / 3), (1 / 2, 1 / 3), (1, 1 / 6)])
        weights = weights.astype(np.float32)
        nothing = tuple(self.jnp.zeros_like(a) for a in x)
        (sums, _), _ = jax.lax.scan(stage, (x, nothing), (weights[:, 0], weights[:, 1]))
        return sums


class CartPoleTwin(Twin):
    """examples/cartpole.py."""

    def dynamics(self, x: Parts, u: Parts) -> Parts:
        _, angle, velocity, rate = x
        sin, cos = self.sincos(angle)
        mass = self.m_cart + self.m_pole
        push = (u[0] + self.m_pole * self.l * rate**2 * sin) / mass
        inertia = self.l * (4 / 3 - self.m_pole * cos**2 / mass)
        angular = (self.g * sin - cos * push) / inertia
        linear = push - self.m_pole * self.l * angular * cos / mass
        return velocity, rate, linear, angular

    def cost(self, x: Parts, u: Parts) -> Any:
        position, angle, velocity, rate = x
        effort = 0.1 * position**2 + 0.01 * (velocity**2 + rate**2) + 1e-4 * u[0] ** 2
        return 1 - self.sincos(angle)[1] + effort

    def observe(self, x: Parts) -> Parts:
        position, angle, velocity, rate = x
        sin, cos = self.sincos(angle)
        return position, cos, sin, velocity, rate


class QuadrotorTwin(Twin):
    """robotics_envs/simulators/quadrotor.py."""

    def unit(self, quaternion: Parts) -> Parts:
        a, b, c, d = quaternion
        scale = 1 / self.jnp.sqrt(self.jnp.maximum(a * a + b * b + c * c + d * d, 1e-12))
        return a * scale, b * scale, c * scale, d * scale

    def dynamics(self, x: Parts, u: Parts) -> Parts:
        quaternion, velocity, (rx, ry, rz), motors = x[3:7], x[7:10], x[10:13], x[13:]
        m1, m2, m3, m4 = (self.max_thrust * motor for motor in motors)
        right, left = m1 + m2, m3 + m4
        lever = math.sqrt(0.5) * self.arm
        torque_x = lever * (left - right)
        torque_y = lever * ((m2 + m3) - (m1 + m4))
        torque_z = self.torque_per_thrust * ((m2 + m4) - (m1 + m3))
        lift = (left + right) / self.mass

        a, b, c, d = self.unit(quaternion)
        along = (2 * (b * d + a * c), 2 * (c * d - a * b), 1 - 2 * (b * b + c * c))
        acceleration = (lift * along[0], lift * along[1], lift * along[2] - self.g)

        w, i, j, k = quaternion
        turning = (
            -0.5 * (i * rx + j * ry + k * rz),
            0.5 * (w * rx + j * rz - k * ry),
            0.5 * (w * ry + k * rx - i * rz),
            0.5 * (w * rz + i * ry - j * rx),
        )
        ix, iy, iz = (1e-6 * v for v in (self.inertia_x, self.inertia_y, self.inertia_z))  # kg m²
        angular = (
            (torque_x + (iy - iz) * (ry * rz)) / ix,
            (torque_y + (iz - ix) * (rz * rx)) / iy,
            (torque_z + (ix - iy) * (rx * ry)) / iz,
        )
        spinning_up = (((v - motor) / self.lag) for v, motor in zip(u, motors, strict=True))
        return *velocity, *turning, *acceleration, *angular, *spinning_up

    def constrain(self, x: Parts) -> Parts:
        most = 2000 * math.pi / 180
        rates = (self.jnp.clip(rate, -most, most) for rate in x[10:13])
        return *x[:3], *self.unit(x[3:7]), *x[7:10], *rates, *x[13:]

    def cost(self, x: Parts, u: Parts) -> Any:
        _, b, c, _ = self.unit(x[3:7])
        hover = self.mass * self.g / (4 * self.max_thrust)
        far = sum(v * v for v in x[:3]) + (b * b + c * c)
        fast = 0.05 * sum(v * v for v in x[7:10]) + 0.01 * sum(v * v for v in x[10:13])
        return far + fast + 0.05 * sum((v - hover) ** 2 for v in u)

    def observe(self, x: Parts) -> Parts:
        a, b, c, d = self.unit(x[3:7])
        rotation = (
            *(1 - 2 * (c * c + d * d), 2 * (b * c - a * d), 2 * (b * d + a * c)),
            *(2 * (b * c + a * d), 1 - 2 * (b * b + d * d), 2 * (c * d - a * b)),
            *(2 * (b * d - a * c), 2 * (c * d + a * b), 1 - 2 * (b * b + c * c)),
        )
        return *x[:3], *rotation, *x[7:]


class Arm7Twin(Twin):
    """simulators/arm7_point.py: arrays ``[7, ...]`` over the links, with matrix products and a Cholesky solve."""

    rolled = True
    rank = 0
    """Axes after those of the links and of space: of the rollouts."""

    def __init__(self, env: Env, jnp: Any, sincos: Callable[[Any], tuple[Any, Any]] | None = None) -> None:
        super().__init__(env, jnp, sincos)
        from robotics_envs.mechanics import panda
        from robotics_envs.simulators import arm7_point as source

        self.links, self.flange, self.rate_stop = panda.LINKS, panda.FLANGE, source.RATE_STOP
        self.joint_low, self.joint_high = panda.JOINT_LOW, panda.JOINT_HIGH
        inertia = [
            ((xx, xy, xz), (xy, yy, yz), (xz, yz, zz))
            for xx, yy, zz, xy, xz, yz in (link.inertia for link in self.links)
        ]
        self.inertia = self._constant(inertia)
        self.masses = self._constant([[link.mass] for link in self.links])
        self.masses_beyond = self._constant(
            [[sum(link.mass for link in self.links[i:])] for i in range(len(self.links))]
        )
        self.centres = self._constant([link.centre for link in self.links])
        self.rotors = self._constant(self.armature * np.eye(7))

    def _constant(self, values: Any) -> np.ndarray:
        array = np.array(values, np.float32)
        return array.reshape(array.shape + (1,) * self.rank)

    def product(self, a: Any, b: Any) -> Any:
        """Matrices ``[7, 3, 3]`` times matrices."""
        return a @ b

    def times(self, matrix: Any, vector: Any) -> Any:
        """Matrices ``[7, 3, 3]`` times vectors ``[7, 3]``."""
        return self.jnp.einsum("lij,lj->li", matrix, vector)

    def transposed(self, matrix: Any) -> Any:
        return matrix.swapaxes(1, 2)

    def gram(self, a: Any, b: Any) -> Any:
        """Dot products ``[7, 7]`` of the links' vectors ``[7, 6]``."""
        return a @ b.T

    def solve(self, matrix: Any, vector: Any) -> Any:
        """``matrix⁻¹ vector``, for ``matrix [7, 7]`` symmetric and positive definite."""
        from jax.scipy.linalg import cho_solve

        return cho_solve((self.jnp.linalg.cholesky(matrix), True), vector)

    def cross(self, a: Any, b: Any) -> Any:
        (ax, ay, az), (bx, by, bz) = (a[:, 0], a[:, 1], a[:, 2]), (b[:, 0], b[:, 1], b[:, 2])
        return self.jnp.stack((ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx), 1)

    def outwards(self, values: Any) -> Any:
        """Sums along the chain from the base to each link."""
        return self.jnp.stack(list(itertools.accumulate(values)))

    def inwards(self, values: Any) -> Any:
        """Sums along the chain from the hand to each link."""
        return self.jnp.stack(list(itertools.accumulate(reversed(list(values))))[::-1])

    def frames(self, q: Parts) -> tuple[Any, Any]:
        """Orientations ``[7, 3, 3]`` and origins ``[7, 3]`` of the links' frames."""
        stack = self.jnp.stack
        turns = [self.sincos(angle) for angle in q]
        zero, one = self.jnp.zeros_like(q[0]), self.jnp.ones_like(q[0])
        (s, c), z = turns[0], stack((zero, zero, one))
        x, y = stack((c, s, zero)), stack((-s, c, zero))
        origin = self.links[0].d * z
        axes, origins = [stack((x, y, z), 1)], [origin]
        for link, (s, c) in zip(self.links[1:], turns[1:], strict=True):
            if link.a:
                origin = origin + link.a * x
            before, z, y = x, (-y, y)[link.twist < 0], (z, -z)[link.twist < 0]
            x, y = c * before + s * y, c * y - s * before
            if link.d:
                origin = origin + link.d * z
            axes.append(stack((x, y, z), 1))
            origins.append(origin)
        return stack(axes), stack(origins)

    def error(self, x: Parts) -> Parts:
        """Hand minus target."""
        axes, origins = self.frames(x[:7])
        hand = origins[-1] + self.flange * axes[-1, :, 2]
        return tuple(hand[i] - x[14 + i] for i in range(3))

    def dynamics(self, x: Parts, u: Parts) -> Parts:
        jnp, q, qd = self.jnp, x[:7], x[7:14]
        axes, origins = self.frames(q)
        centre = origins + self.times(axes, jnp.broadcast_to(self.centres, origins.shape))
        inertia = self.product(self.product(axes, self.inertia), self.transposed(axes))
        axis = axes[:, :, 2]
        arm = self.cross(origins, axis)

        first = self.masses * centre
        (x_, y_, z_), (mx, my, mz) = centre.swapaxes(0, 1), first.swapaxes(0, 1)
        xx, yy, zz, xy, xz, yz = mx * x_, my * y_, mz * z_, mx * y_, mx * z_, my * z_
        rows = ((yy + zz, -xy, -xz), (-xy, xx + zz, -yz), (-xz, -yz, xx + yy))
        shift = jnp.stack([jnp.stack(row, 1) for row in rows], 1)
        first_beyond, inertia_beyond = self.inwards(first), self.inwards(inertia + shift)
        angular = self.times(inertia_beyond, axis) + self.cross(first_beyond, arm)
        linear = self.masses_beyond * arm + self.cross(axis, first_beyond)
        upper = self.gram(jnp.concatenate((axis, arm), 1), jnp.concatenate((angular, linear), 1))
        below = self._constant(np.tri(7)) != 0
        mass_matrix = jnp.where(below, upper.swapaxes(0, 1), upper) + self.rotors

        rate = jnp.stack(qd)[:, None]
        spin, slide = rate * axis, rate * arm
        w, v = self.outwards(spin), self.outwards(slide)
        dw = self.outwards(self.cross(w, spin))
        dv = self.outwards(self.cross(w, slide) + self.cross(v, spin))
        centre_v = v + self.cross(w, centre)
        force = self.masses * (dv + self.cross(dw, centre) + self.cross(w, centre_v))
        moment = self.times(inertia, dw) + self.cross(w, self.times(inertia, w)) + self.cross(centre, force)
        bias = (axis * self.inwards(moment) + arm * self.inwards(force)).sum(1)

        qdd = self.solve(mass_matrix, jnp.stack(u) - self.damping * jnp.stack(qd) - bias)
        return *qd, *qdd, *(jnp.zeros_like(q[0]),) * 3

    def constrain(self, x: Parts) -> Parts:
        return *x[:7], *(self.jnp.clip(v, -self.rate_stop, self.rate_stop) for v in x[7:14]), *x[14:]

    def cost(self, x: Parts, u: Parts) -> Any:
        near = sum(v * v for v in self.error(x))
        effort = sum((v / high) ** 2 for v, high in zip(u, self.high.tolist(), strict=True))
        limits = zip(x[:7], self.joint_low, self.joint_high, strict=True)
        beyond = sum((q - self.jnp.clip(q, low, high)) ** 2 for q, low, high in limits)
        return near + 0.005 * sum(v * v for v in x[7:14]) + 0.005 * effort + beyond

    def observe(self, x: Parts) -> Parts:
        return *x[:14], *self.error(x)


class Arm7Last(Arm7Twin):
    """With the rollouts last, ``[7, ..., B]``: the small products written out, so that all is elementwise."""

    rank = 1

    def product(self, a: Any, b: Any) -> Any:
        return sum(a[:, :, k, None] * b[:, None, k] for k in range(3))

    def times(self, matrix: Any, vector: Any) -> Any:
        return sum(matrix[:, :, k] * vector[:, None, k] for k in range(3))

    def gram(self, a: Any, b: Any) -> Any:
        return sum(a[:, None, k] * b[None, :, k] for k in range(6))

    def solve(self, matrix: Any, vector: Any) -> Any:
        return fast_solve()(matrix, vector)


TWINS: dict[str, type[Twin]] = {"cartpole": CartPoleTwin, "quadrotor": QuadrotorTwin, "arm7": Arm7Twin}
TWINS_LAST = {**TWINS, "arm7": Arm7Last}
"""Those that take a batch with the rollouts last."""


@functools.cache
def fast_solve() -> Callable[[Any, Any], Any]:
    """``matrix [n, n, B]``⁻¹ ``vector [n, B]`` for jax, symmetric and positive definite, by an LDLᵀ written out.

    Its gradient is one more solve with the same factor.
    """
    import jax
    import jax.numpy as jnp

    def factored(matrix):
        n = len(matrix)
        columns, inverses = [], []
        rest = matrix
        for _ in range(n):
            inverse = 1 / rest[0, 0]
            column = rest[1:, 0] * inverse
            columns.append(column)
            inverses.append(inverse)
            rest = rest[1:, 1:] - column[:, None] * rest[None, 0, 1:]
        return columns, inverses

    def back(factor, vector):
        columns, inverses = factor
        n = len(inverses)
        forward, rest = [], vector
        for column in columns:
            forward.append(rest[0])
            rest = rest[1:] - column * rest[0]
        x = [None] * n
        for i in reversed(range(n)):
            x[i] = forward[i] * inverses[i] - sum(columns[i][k - i - 1] * x[k] for k in range(i + 1, n))
        return jnp.stack(x)

    @jax.custom_vjp
    def solve(matrix, vector):
        return back(factored(matrix), vector)

    def forward(matrix, vector):
        factor = factored(matrix)
        x = back(factor, vector)
        return x, (factor, x)

    def backward(kept, by_x):
        factor, x = kept
        by_vector = back(factor, by_x)
        return -by_vector[:, None] * x[None], by_vector

    solve.defvjp(forward, backward)
    return solve


@functools.cache
def fast_sincos() -> Callable[[Any], tuple[Any, Any]]:
    """Sine and cosine as a pair in float32, for jax: one reduction by pi/2 in three parts, two polynomials.

    Accurate to about an ulp for |angle| up to some thousands (Cephes' sinf and cosf).  XLA on CPU computes the two
    apart, each with a reduction that serves any argument.
    """
    import jax
    import jax.numpy as jnp

    @jax.custom_jvp
    def pair(angle):
        quarter = jnp.floor(angle * (2 / math.pi) + 0.5)
        r = ((angle - quarter * 1.5703125) - quarter * 4.837512969970703e-4) - quarter * 7.549789948768648e-8
        r2 = r * r
        sin = r + r * r2 * (-1.6666654611e-1 + r2 * (8.3321608736e-3 + r2 * -1.9515295891e-4))
        tail = 4.166664568298827e-2 + r2 * (-1.388731625493765e-3 + r2 * 2.443315711809948e-5)
        cos = 1 - 0.5 * r2 + r2 * r2 * tail
        turn = quarter.astype(jnp.int32)
        odd = (turn & 1) != 0
        sin, cos = jnp.where(odd, cos, sin), jnp.where(odd, sin, cos)
        return jnp.where((turn & 2) != 0, -sin, sin), jnp.where(((turn + 1) & 2) != 0, -cos, cos)

    @pair.defjvp
    def _(primals, tangents):
        sin, cos = pair(primals[0])
        return (sin, cos), (cos * tangents[0], -sin * tangents[0])

    return pair


# The JAX side -------------------------------------------------------------------------------------


def _linear_layers(policy: Policy) -> list[nn.Linear]:
    """The linear layers of an MLP with tanh between them, under a tanh squash."""
    layers = list(policy.network)
    linear, between = layers[::2], layers[1::2]
    plain = all(isinstance(layer, nn.Linear) for layer in linear)
    if not plain or not all(isinstance(layer, nn.Tanh) for layer in between) or policy.squash != torch.tanh:
        raise NotImplementedError("the JAX peers write out an MLP with tanh layers and a tanh squash")
    return linear


def _weights(policy: Policy) -> list[tuple[np.ndarray, np.ndarray]]:
    """``(weight, bias)`` of the layers as they are now."""
    return [
        (layer.weight.detach().numpy().copy(), layer.bias.detach().numpy().copy())
        for layer in _linear_layers(policy)
    ]


def _buffers(policy: Policy) -> tuple[np.ndarray, ...]:
    """Mean and scale of the observation, centre and half range of the action."""
    return tuple(v.numpy().copy() for v in (policy.mean, policy.scale, policy.centre, policy.half_range))


def _compiled(function: Callable, *arguments: Any, options: dict | None = None) -> tuple[Callable, float]:
    """``function`` compiled for these arguments, and the seconds that took."""
    import jax

    begin = time.perf_counter()
    compiled = jax.jit(function).lower(*arguments).compile(compiler_options=options)
    return compiled, time.perf_counter() - begin


def _jax_run(loss: Callable, weights: Any, x0: Any, options: dict | None = None) -> Run:
    """Value and gradient of ``loss(weights, x0)``."""
    import jax

    weights = jax.tree.map(jax.numpy.asarray, weights)
    gradient, seconds = _compiled(jax.value_and_grad(loss), weights, x0, options=options)

    def call() -> tuple[float, list[np.ndarray]]:
        value, gradients = jax.block_until_ready(gradient(weights, x0))
        return float(value), [np.asarray(leaf) for leaf in jax.tree.leaves(gradients)]

    return Run(call, seconds)


def _act(jnp: Any, weights: Any, buffers: Parts, observation: Any) -> Any:
    """The action ``[m]`` for an observation ``[o]``, one rollout."""
    mean, scale, centre, half_range = buffers
    h = (observation - mean) / scale
    for weight, bias in weights[:-1]:
        h = jnp.tanh(weight @ h + bias)
    weight, bias = weights[-1]
    return centre + half_range * jnp.tanh(weight @ h + bias)


def _rollout_costs(jax: Any, twin: Twin, buffers: Parts, steps: int, advance: Callable) -> Callable:
    """``(weights, x [n]) -> costs [steps]`` of one rollout, where ``advance(x, u)`` gives the next state."""
    jnp = jax.numpy

    def costs(weights, start):
        def step(x, _):
            u = _act(jnp, weights, buffers, jnp.stack(twin.observe(x)))
            u = jnp.clip(u, twin.low, twin.high)
            return advance(x, u), twin.cost(x, u)

        return jax.lax.scan(step, start, None, length=steps)[1]

    return costs


def with_jax(env_name: str, policy: Policy, x0: Tensor, steps: int) -> Run:
    """As one writes it: a step of one rollout, vmap over the rollouts, scan over time, jit."""
    import jax
    import jax.numpy as jnp

    twin = TWINS[env_name](make_env(env_name), jnp)
    costs = _rollout_costs(jax, twin, _buffers(policy), steps, lambda x, u: jnp.stack(twin.step(x, u)))
    loss = lambda weights, starts: jax.vmap(costs, (None, 0))(weights, starts).mean()
    return _jax_run(loss, _weights(policy), jnp.asarray(x0.numpy()))


def with_diffrax(env_name: str, policy: Policy, x0: Tensor, steps: int) -> Run:
    """A diffeqsolve of one Tsit5 step per control interval, its default adjoint, vmap, scan, jit."""
    import diffrax
    import jax
    import jax.numpy as jnp

    twin = TWINS[env_name](make_env(env_name), jnp)
    term = diffrax.ODETerm(lambda t, x, u: jnp.stack(twin.dynamics(x, u)))

    def advance(x, u):
        end = diffrax.diffeqsolve(
            term,
            diffrax.Tsit5(),
            0.0,
            twin.dt,
            twin.dt,
            x,
            u,
            stepsize_controller=diffrax.ConstantStepSize(),
            adjoint=diffrax.RecursiveCheckpointAdjoint(),
            max_steps=1,
        )
        return jnp.stack(twin.constrain(tuple(end.ys[-1])))

    costs = _rollout_costs(jax, twin, _buffers(policy), steps, advance)
    loss = lambda weights, starts: jax.vmap(costs, (None, 0))(weights, starts).mean()
    return _jax_run(loss, _weights(policy), jnp.asarray(x0.numpy()))


def with_jax_best(
    env_name: str,
    policy: Policy,
    x0: Tensor,
    steps: int,
    twin: type[Twin] | None = None,
    own_sincos: bool = True,
    recompute: bool = True,
    unroll: int = 1,
    width: int | None = 512,
) -> Run:
    """The fastest on CPU that was found: components with the rollouts last, and each step recomputed.

    Tried, on one thread of an AVX-512 machine, millions of steps per second at 64 and at 1024 rollouts.

    The cart-pole: plain 0.5 and 0.4-0.5; rollouts last, checkpoint on the step, one array as the carry 0.63 and
    0.9; components as the carry 0.75 and 1.1; with ``fast_sincos`` 0.98 and 1.4; and vectors of 512 bits,
    which XLA does not prefer by itself, 1.0 and 1.5-1.95: kept.  Against that no faster or slower:
    unroll 2 (0.80 and 1.2), unroll 4, no checkpoint (0.69 and 0.5), checkpoint of groups of 10 steps (0.69 and
    1.05), keeping the matrix products (0.92 and 0.8), blocks of 256 or 512 rollouts with the whole horizon each,
    rollouts first in the network only (0.89 and 1.0), the bias folded into the product, other orders of the
    product, the last layer as a sum, fast math, XNNPACK and oneDNN, the older emitters (half as fast).

    The quadrotor: as the cart-pole's; 0.19 and 0.26 against the plain 0.12 and 0.14 (busy machine).

    The arm: kernels are small and in the thousands, so that time goes to starting them: arrays over
    the links (``Arm7Last``) rather than single components, which did not compile in two minutes; RK4 as a
    loop over its stages, or compilation takes minutes; recomputing the stages, no checkpoint, no fusion: no
    difference beyond the noise.
    """
    import jax
    import jax.numpy as jnp

    twin = (twin or TWINS_LAST[env_name])(make_env(env_name), jnp, fast_sincos() if own_sincos else None)
    mean, scale, centre, half_range = (v[:, None] for v in _buffers(policy))
    low, high = twin.low[:, None], twin.high[:, None]

    def step(weights, x):
        h = (jnp.stack(twin.observe(x)) - mean) / scale
        for weight, bias in weights[:-1]:
            h = jnp.tanh(weight @ h + bias[:, None])
        weight, bias = weights[-1]
        u = tuple(jnp.clip(centre + half_range * jnp.tanh(weight @ h + bias[:, None]), low, high))
        return twin.step(x, u), twin.cost(x, u)

    if recompute:  # the scan already keeps the recomputation apart from the first computation
        step = jax.checkpoint(step, prevent_cse=False)

    def loss(weights, start):
        _, costs = jax.lax.scan(
            lambda x, _: step(weights, x), tuple(start), None, length=steps, unroll=unroll
        )
        return costs.mean()

    start = jnp.asarray(np.ascontiguousarray(x0.numpy().T))
    options = (
        None if width is None else {"xla_cpu_prefer_vector_width": width}
    )  # None where XLA is not on a CPU
    return _jax_run(loss, _weights(policy), start, options)


# Brax ---------------------------------------------------------------------------------------------


def with_brax(env_name: str, policy: Policy, x0: Tensor, steps: int) -> Run:
    """Speed only: the nearest environment that Brax ships, under a policy of the same widths.

    Its inverted pendulum on a cart, control interval 0.04 s in two Euler steps of its generalized pipeline.
    Its reward is constant, which would leave nothing to differentiate: the cost is 1 - cos(angle) and the
    cart-pole's small terms.  Starts are Brax's own.
    """
    if env_name != "cartpole":
        raise NotImplementedError(f"Brax ships no {env_name}")
    import jax
    import jax.numpy as jnp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that Brax is no longer maintained
        from brax import envs

        env = envs.get_environment("inverted_pendulum", backend="generalized")

    def cost(observation, u):
        position, angle, velocity, rate = observation
        effort = 0.1 * position**2 + 0.01 * (velocity**2 + rate**2) + 1e-4 * u[0] ** 2
        return 1 - jnp.cos(angle) + effort

    widths = [layer.out_features for layer in _linear_layers(policy)[:-1]]
    network = initialised(lambda: MLP(env.observation_size, env.action_size, widths), 0)
    weights = [(m.weight.detach().numpy(), m.bias.detach().numpy()) for m in list(network)[::2]]
    low, high = np.asarray(env.sys.actuator.ctrl_range, np.float32).T
    buffers = (np.float32(0.0), np.float32(1.0), (low + high) / 2, (high - low) / 2)

    def costs(weights, start):
        def step(state, _):
            u = _act(jnp, weights, buffers, state.obs)
            return env.step(state, u), cost(state.obs, u)

        return jax.lax.scan(step, start, None, length=steps)[1]

    loss = lambda weights, starts: jax.vmap(costs, (None, 0))(weights, starts).mean()
    starts = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), len(x0)))
    run = _jax_run(loss, weights, starts)
    run.same_problem = False
    return run


PEERS: dict[str, Callable[[str, Policy, Tensor, int], Run]] = {
    "jax": with_jax,
    "jax best": with_jax_best,
    "diffrax": with_diffrax,
    "torchdiffeq": with_torchdiffeq,
    "torchode": with_torchode,
    "brax": with_brax,
}
"""Builders by the peer's name; they raise NotImplementedError for a simulator that the peer cannot do."""


# A population without gradients -------------------------------------------------------------------


def jax_population(
    env_name: str, policies_stacked: Mapping[str, Tensor], x0: Tensor, steps: int
) -> Callable[[], np.ndarray]:
    """N policies on the same R starts ``x0 [R, n]``: ``run()`` gives the mean costs per step ``[N, R]``.

    ``policies_stacked`` holds the policies' parameters and buffers, ``[N, ...]`` each, by their names: both
    results of ``torch.func.stack_module_state(policies)`` in one mapping.  vmap over the policies of vmap over
    the starts of a scan over time, compiled; ``run.compile_seconds`` says how long that took.
    """
    import jax
    import jax.numpy as jnp

    twin = TWINS[env_name](make_env(env_name), jnp)
    stacked = {name: jnp.asarray(value.detach().numpy()) for name, value in policies_stacked.items()}

    def cost(policy, start):
        layers = sorted({int(name.split(".")[1]) for name in policy if name.startswith("network.")})
        weights = [(policy[f"network.{i}.weight"], policy[f"network.{i}.bias"]) for i in layers]
        buffers = tuple(policy[name] for name in ("mean", "scale", "centre", "half_range"))
        advance = lambda x, u: jnp.stack(twin.step(x, u))
        return _rollout_costs(jax, twin, buffers, steps, advance)(weights, start).mean()

    starts = jnp.asarray(x0.numpy())
    costs, seconds = _compiled(jax.vmap(jax.vmap(cost, (None, 0)), (0, None)), stacked, starts)
    return Population(lambda: np.asarray(jax.block_until_ready(costs(stacked, starts))), seconds)


@dataclass
class Population:
    """A population's evaluation made ready: ``run() -> costs [N, R]``."""

    call: Callable[[], np.ndarray]
    compile_seconds: float

    def __call__(self) -> np.ndarray:
        return self.call()


# The check ----------------------------------------------------------------------------------------


def relative_errors(result: tuple, reference: tuple) -> tuple[float, float]:
    """Of the loss, and of the gradient as one vector."""
    (loss, gradient), (exact_loss, exact) = (
        (value, np.concatenate([part.ravel() for part in parts])) for value, parts in (result, reference)
    )
    by_gradient = np.linalg.norm(gradient - exact) / np.linalg.norm(exact)
    return abs(loss - exact_loss) / abs(exact_loss), float(by_gradient)


def check(env_names: Sequence[str], rollouts: int = 8, steps: int = 20) -> bool:
    """Every peer on every simulator against the plain loop; prints a line each, and says whether all hold."""
    good = True
    for env_name in env_names:
        env = make_env(env_name)
        policy = make_policy(env)
        x0 = env.reset(rollouts, torch.Generator().manual_seed(0))
        reference = torch_reference(env_name, policy, x0, steps)()
        for name, build in PEERS.items():
            line = f"{env_name:10s} {name:12s}"
            try:
                run = build(env_name, policy, x0, steps)
                loss, gradients = run()
            except NotImplementedError as error:
                print(f"{line} unsupported: {error}", flush=True)
                continue
            finite = math.isfinite(loss) and all(np.isfinite(g).all() for g in gradients)
            if not run.same_problem:
                good &= finite
                print(f"{line} {'runs' if finite else 'NOT FINITE'}, another problem", flush=True)
                continue
            by_loss, by_gradient = relative_errors((loss, gradients), reference)
            holds = finite and max(by_loss, by_gradient) <= TOLERANCES[name]
            good &= holds
            print(
                f"{line} loss {by_loss:.1e}  gradient {by_gradient:.1e}  allowed {TOLERANCES[name]:.0e}  "
                f"compiled in {run.compile_seconds:4.1f} s  {'ok' if holds else 'WRONG'}",
                flush=True,
            )
        good &= _check_population(env_name, env, x0, steps)
    return good


def _check_population(env_name: str, env: Env, x0: Tensor, steps: int, policies: int = 3) -> bool:
    modules = [make_policy(env, seed) for seed in range(policies)]
    parameters, buffers = torch.func.stack_module_state(modules)
    got = jax_population(env_name, {**parameters, **buffers}, x0, steps)()
    p, expected = env.params(x0), []
    for module in modules:
        x, costs = x0, []
        with torch.no_grad():
            for _ in range(steps):
                x, cost = env.step(x, module(env.observe(x)), p)
                costs.append(cost)
        expected.append(torch.stack(costs).mean(0).numpy())
    error = float(np.abs(got / np.stack(expected) - 1).max())
    holds = got.shape == (policies, len(x0)) and error <= 1e-4
    print(f"{env_name:10s} population   costs {error:.1e}  {'ok' if holds else 'WRONG'}", flush=True)
    return holds


def measure(env_name: str, rollouts: int, steps: int, seconds: float, names: Sequence[str]) -> None:
    """Print millions of environment steps per second, the peers interleaved."""
    env = make_env(env_name)
    policy = make_policy(env)
    x0 = env.reset(rollouts, torch.Generator().manual_seed(0))
    runs, times = {}, {}
    for name in names:
        try:
            runs[name] = PEERS[name](env_name, policy, x0, steps)
        except NotImplementedError:
            continue
        runs[name]()
        times[name] = []
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds:
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    for name, run in runs.items():
        speed = rollouts * steps / statistics.median(times[name]) / 1e6
        best = rollouts * steps / min(times[name]) / 1e6
        print(
            f"{env_name} B={rollouts} {name:12s} {speed:7.3f} M steps/s (best {best:.3f}, {len(times[name])} runs, "
            f"compiled in {run.compile_seconds:.1f} s)",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="compare every peer with the plain loop")
    parser.add_argument("--measure", action="store_true", help="a quick look at the speeds, one thread")
    parser.add_argument("--env", action="append", choices=ENVS, help="only this simulator")
    parser.add_argument("--peer", action="append", choices=PEERS, help="only this peer, when measuring")
    parser.add_argument("--rollouts", type=int, nargs="+", default=[64, 1024])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=20.0, help="of measuring, for each batch")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    env_names = arguments.env or list(ENVS)
    if arguments.check and not check(env_names):
        sys.exit("some peers disagree")
    if arguments.measure:
        for env_name in env_names:
            for rollouts in arguments.rollouts:
                measure(env_name, rollouts, arguments.steps, arguments.seconds, arguments.peer or list(PEERS))


if __name__ == "__main__":
    main()
