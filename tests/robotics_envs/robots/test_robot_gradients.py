"""Reverse mode beside central differences, with contacts, limits and dry friction active."""

import numpy as np
import pytest
import torch
from small_robots import EQUALITY, FRICTION, JOINTS, TOUCHING

from robotics_envs.environments import make_env
from robotics_envs.robots import from_mjcf
from robotics_envs.robots.comparison import converged, random_states

STEP = 1e-6


def touching_states(env, count):
    """``[count, n + m]`` states and actions at which a constraint exists."""
    q, v, u, touching = random_states(converged(env.model), 4 * count, np.random.default_rng(3))
    packed = torch.tensor(np.concatenate((q, v, u), 1))[torch.tensor(touching)][:count]
    assert len(packed) >= count // 2
    return packed


def errors(env, function, packed):
    """Relative errors of the derivative of a random combination of results in a random direction."""
    rng = torch.Generator().manual_seed(0)
    direction = torch.randn(packed.shape, generator=rng, dtype=packed.dtype)
    at = packed.clone().requires_grad_()
    results = function(at)
    weights = torch.randn(results.shape, generator=rng, dtype=packed.dtype) / results.detach().abs().amax(
        1, True
    )
    (gradient,) = torch.autograd.grad((results * weights).sum(), at)
    ours = (gradient * direction).sum(1)
    with torch.no_grad():
        up, down = function(packed + STEP * direction), function(packed - STEP * direction)
        central = ((up - down) * weights).sum(1) / (2 * STEP)
        # Friction turns fast where it slides slowly: the error of second order in the step is taken off.
        near = [function(packed + side * STEP / 2 * direction) for side in (1, -1)]
        central = (4 * ((near[0] - near[1]) * weights).sum(1) / STEP - central) / 3
        # A side that changes within the step has no derivative there.
        halves = ((up - results) * weights).sum(1) / STEP
    smooth = (halves - central).abs() < 1e-2 * (1 + central.abs())
    assert smooth.double().mean() > 0.7
    return ((ours - central).abs() / (central.abs() + central.abs().median()))[smooth]


@pytest.mark.parametrize(
    "name",
    [
        "gym:HalfCheetah-v5",
        pytest.param("gym:Walker2d-v5", marks=pytest.mark.slow),
        "gym:InvertedPendulum-v5",
    ],
)
def test_tasks(name):
    env = make_env(name)
    assert errors(env, env.rates, touching_states(env, 12)).max() < 1e-6


@pytest.mark.parametrize(
    "xml",
    [
        TOUCHING["capsule"],
        TOUCHING["box"],
        FRICTION["sphere, elliptic, condim 3"],
        FRICTION["capsule, elliptic, condim 4"],
        FRICTION["ellipsoid, elliptic, condim 6"],
        FRICTION["capsule, pyramidal, condim 6"],
        FRICTION["elliptic, planar"],
        EQUALITY["connect along a chain"],
        EQUALITY["weld trees"],
        EQUALITY["joints"],
        pytest.param(TOUCHING["two trees"], marks=pytest.mark.slow),
        *JOINTS.values(),
    ],
)
def test_features(xml):
    env = from_mjcf(xml, check=False)
    count = 12
    try:
        packed = touching_states(env, count)
    except AssertionError:  # nothing can touch
        q, v, u, _ = random_states(converged(env.model), count, np.random.default_rng(3))
        packed = torch.tensor(np.concatenate((q, v, u), 1))
    assert errors(env, env.rates, packed).max() < 1e-6


def test_through_steps_of_time():
    env = from_mjcf(JOINTS["actuators"], check=False)
    packed = torch.tensor(np.random.default_rng(0).normal(size=(6, 7)) * 0.3)

    def function(p):
        x, u = p[:, :4], p[:, 4:]
        return env.step(x, u, {})[0]

    assert errors(env, function, packed).max() < 1e-6
