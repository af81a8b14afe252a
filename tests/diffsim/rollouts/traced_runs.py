"""Rollouts in a process of its own, without the checker of shapes, which wraps every function in one without a file.

Prints, as JSON, how often rollouts were traced after each of some steps, and whether numbers agree.
"""

import json
import os
import sys
from pathlib import Path

import torch

from diffsim.algorithms.costate_critic import CompressedValue
from diffsim.algorithms.windows import CostToGo
from diffsim.policy import MLP, Policy
from diffsim.rollouts import Noise, Rollout, engines, native
from robotics_envs import make_env
from robotics_envs.simulators.pendulum import Pendulum

torch.set_num_threads(1)
times = looks = 0
trace, look = native.Translation, engines.look


def counting(*arguments):
    global times
    times += 1
    return trace(*arguments)


def counting_looks(*arguments):
    global looks
    looks += 1
    return look(*arguments)


native.Translation, engines.look = counting, counting_looks


def made(env, seed=0, hidden=(8,), backend="native"):
    """As a new process makes it: nothing is shared with an earlier one."""
    env = make_env(env) if isinstance(env, str) else env
    torch.manual_seed(seed)
    o, m = len(env.observation_names), len(env.action_box)
    zeros = torch.zeros(o)
    policy = Policy(MLP(o, m, hidden), zeros, torch.ones(o), *env.action_box.bounds(zeros))
    value = CompressedValue(MLP(o, 1, (8,)), zeros)
    value.scale.fill_(2.0)
    return Rollout(env, policy, terminal=CostToGo(env, policy, value), backend=backend)


def results(rollout, noise=None):
    x = rollout.env.state_box.sample(6, torch.Generator().manual_seed(1)).requires_grad_()
    trajectory = rollout(x, 4, noise=noise)
    loss = trajectory.costs.sum() + trajectory.values.sum()
    named = [
        q for q in (*rollout.policy.parameters(), *rollout.terminal.value.parameters()) if q.requires_grad
    ]
    return [trajectory.states.detach(), *torch.autograd.grad(loss, (x, *named))]


def close(ours, theirs):
    scale = float(theirs.abs().max())
    return torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3 * scale)


def kept():
    return len(list(Path(os.environ["DIFFSIM_CACHE"]).glob("*.trace")))


def same(name):
    """Traced and looked at once; equal bits; and right for other numbers in the networks."""
    first = results(made(name))
    told = [times, looks, kept()]
    told += [all(map(torch.equal, first, results(made(name)))), times]
    other = results(made(name, seed=1))
    told += [times, looks]
    eager = results(made(name, seed=1, backend="eager"))
    return [*told, all(map(close, other, eager)), any(map(torch.equal, first[1:], other[1:]))]


def changes():
    """How often rollouts were traced after each change, and once more without one."""
    told = []
    frozen, narrow = made("pendulum"), Pendulum()
    frozen.policy.network[0].weight.requires_grad_(False)
    narrow.action_box = type(narrow.action_box)((-1.0,), (1.0,))
    for rollout, noise in (
        (made("pendulum"), None),
        (made("pendulum", hidden=(9,)), None),
        (made("cartpole_balance"), None),
        (made("pendulum"), Noise(3, 0.1)),
        (frozen, None),
        (made(narrow), None),
        (made("pendulum"), None),
    ):
        results(rollout, noise)
        told.append(times)
    return told


def other_globals(seen):
    """A variable of a module that the trace read has changed: traced anew, and right.

    Where the key does not hold it, that is noticed by comparing, and not kept.
    """
    from robotics_envs.simulators import acrobot
    from solvers.native import traces

    if seen == "unseen":
        traces._read_by = lambda *arguments: ""
    before = results(made("acrobot"))
    told = [times, kept()]
    acrobot.TARGET = 1.0
    ours, eager = results(made("acrobot")), results(made("acrobot", backend="eager"))
    return [*told, times, kept(), all(map(close, ours, eager)), torch.equal(ours[1], before[1])]


def of_users():
    class Own(Pendulum):
        """Nobody knows what a class of another file depends on."""

    for _ in range(2):
        results(made(Own()))
    return [times, kept()]


def robot():
    """How often a robot was traced for rollouts, for steps outside of them, and compared with MuJoCo."""
    from robotics_envs.robots import comparison, from_mjcf
    from solvers.native import function

    counts = []

    def counted(original):
        def call(*arguments, **options):
            counts.append(original.__name__)
            return original(*arguments, **options)

        return call

    for module, name in ((function, "_source"), (comparison, "verify")):
        setattr(module, name, counted(getattr(module, name)))
    env = from_mjcf(
        """<mujoco><worldbody><body><joint name="hinge" type="hinge" axis="0 1 0"/>
        <geom type="capsule" size="0.05" fromto="0 0 0 0 0 -0.6"/></body></worldbody>
        <actuator><motor joint="hinge" gear="2" ctrlrange="-1 1"/></actuator></mujoco>"""
    )
    sums = [float(q.detach().double().sum()) for q in results(made(env))]
    return [times, counts.count("_source"), counts.count("verify"), sums]


if __name__ == "__main__":
    chosen = {
        "same": same,
        "changes": changes,
        "of_users": of_users,
        "robot": robot,
        "other_globals": other_globals,
    }[sys.argv[1]]
    print(json.dumps(chosen(*sys.argv[2:])))
