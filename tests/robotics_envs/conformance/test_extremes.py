"""A million random and extreme states and actions: a finite state or the divergence error, never a silent NaN."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robotics_envs import ENVIRONMENTS, DivergenceError, make_env
from robotics_envs.adapters.gym_adapter import GymVectorEnv
from robotics_envs.divergence import check_finite

TOTAL, EXAMPLES = 1_000_000, 10
BATCH = TOTAL // len(ENVIRONMENTS) // EXAMPLES + 1


def spread(box, batch, reach, generator, dtype):
    """Points around the middle of a box, up to ``reach`` half widths away, of all sizes."""
    low, high = box.bounds(torch.zeros((), dtype=dtype))
    size = reach ** torch.rand(batch, 1, generator=generator, dtype=torch.float64).to(dtype)
    way = 2 * torch.rand(batch, len(box), generator=generator, dtype=dtype) - 1
    return (low + high) / 2 + (high - low) / 2 * size * way


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_never_a_silent_nan(name):
    env, checked = make_env(name), []

    @settings(max_examples=EXAMPLES, deadline=None, database=None, derandomize=True)
    @given(
        seed=st.integers(0, 2**31),
        dtype=st.sampled_from([torch.float32, torch.float64]),
        reach=st.sampled_from([3.0, 1e3, 1e9, 1e30]),
        push=st.sampled_from([1.0, 1e6, 1e30]),
    )
    def one_batch(seed, dtype, reach, push):
        generator = torch.Generator().manual_seed(seed)
        x = spread(env.state_box, BATCH, reach, generator, dtype)
        u = spread(env.action_box, BATCH, push, generator, dtype)
        ordinary = torch.arange(BATCH) % 2 == 0  # every second one starts in three times the state box
        x[ordinary] = spread(env.state_box, int(ordinary.sum()), 3.0, generator, dtype)
        p = env.params(x)
        with torch.no_grad():
            following, cost = env.step(x, u, p)
            # However wild the neighbours and the action, an ordinary state stays finite ...
            check_finite(env, x[ordinary], u[ordinary], following[ordinary], cost[ordinary])
            # ... and what it does is not changed by them.
            alone, alone_cost = env.step(x[ordinary], u[ordinary], p)
        near = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-9}
        assert torch.allclose(alone, following[ordinary], **near)
        assert torch.allclose(alone_cost, cost[ordinary], **near)
        # The others are finite, or the error says which are not.
        wrong = int((~(following.isfinite().all(-1) & cost.isfinite())).sum())
        if wrong:
            with pytest.raises(
                DivergenceError, match=rf"{name} diverged in {wrong} of {BATCH} rollouts.*Start inside"
            ):
                check_finite(env, x, u, following, cost)
        else:
            check_finite(env, x, u, following, cost)
        checked.append(BATCH)

    one_batch()
    # Its share of the million.
    assert sum(checked) * len(ENVIRONMENTS) >= TOTAL


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in ("hopper", "satellite"))) for n in ENVIRONMENTS]
)
def test_wild_episodes_stay_finite(name, dtype):
    """200 intervals of actions from bound to bound from three times the state box; gradients of the last ten."""
    env, generator = make_env(name), torch.Generator().manual_seed(0)
    x = spread(env.state_box, 32, 3.0, generator, dtype)
    low, high = env.action_box.bounds(x)
    p = {parameter: value.requires_grad_() for parameter, value in env.params(x).items()}
    total = torch.zeros((), dtype=dtype)
    for i in range(200):
        if i == 190:
            x = start = x.detach().requires_grad_()
        push = torch.rand(32, len(low), generator=generator, dtype=dtype).round()
        u = (low + (high - low) * push).requires_grad_()
        with torch.set_grad_enabled(i >= 190):
            x, cost = env.step(x, u, p)
            total = total + cost.sum()
        assert x.isfinite().all(), i
        assert cost.isfinite().all(), i
    gradients = torch.autograd.grad(total + x.sum(), (start, u, *p.values()), allow_unused=True)
    for gradient in gradients:
        assert gradient is None or gradient.isfinite().all()
    assert gradients[0].any()


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_adapter_raises_instead_of_giving_a_nan(name):
    """Through Gymnasium's interface: what comes out is finite, or an error and no observation."""
    envs = GymVectorEnv(name, num_envs=64, dtype=torch.float32)
    rng = np.random.default_rng(0)
    box = envs.simulator.state_box
    raised = 0
    for scale in (1.0, 1e4, 1e12, 1e30):
        state = scale * rng.uniform(box.low, box.high, (64, len(box)))
        action = np.where(rng.random(envs.action_space.shape) < 0.5, -1e30, 1e30)
        try:
            envs.reset(seed=0, options={"state": state})
            observation, reward, *_ = envs.step(action)
        except DivergenceError:
            raised += 1
            continue
        assert np.isfinite(observation).all()
        assert np.isfinite(reward).all()
    assert raised < 4  # the first scale is the state box itself
