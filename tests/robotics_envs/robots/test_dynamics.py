"""Accelerations and steps beside MuJoCo's, over features, tasks and generated robots."""

import contextlib

import mujoco
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_robots import EQUALITY, FRICTION, JOINTS, LEGGED, TOUCHING, generated, model, rubbing

from robotics_envs.base import Env
from robotics_envs.environments import DM_CONTROL_TASKS, GYM_TASKS, make_env
from robotics_envs.robots import DisagreementError, from_mjcf, newton, verify
from robotics_envs.robots.comparison import converged, random_states
from robotics_envs.robots.env import RobotEnv
from robotics_envs.robots.tasks.models import gymnasium_model


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


FEATURES = {**TOUCHING, **FRICTION, **JOINTS, **EQUALITY}


@pytest.mark.parametrize("xml", FEATURES.values(), ids=list(FEATURES))
def test_every_feature_agrees_with_mujoco(xml):
    env = from_mjcf(xml, check=False)
    # Upright cylinders are at an edge: the lowest point of their rim depends on the last digits of the pose.
    verify(env, 40, tolerance=1e-6 if "cylinder" in xml else 1e-9)


@pytest.mark.parametrize("cone", ["pyramidal", "elliptic"])
def test_stiff_contacts_of_many_points_are_solved(cone):
    """From far below the ground up to the air: where full Newton steps go round in circles, too."""
    xml = LEGGED.replace("<option ", f'<option cone="{cone}" ', 1)
    env = from_mjcf(xml, self_collisions="ignore", check=False)
    library, n, count = converged(env.model), env.model.positions, 24
    data, generator = mujoco.MjData(library), torch.Generator().manual_seed(0)
    x = env.reset(count, generator, torch.float64)
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    x[:, 2] = torch.linspace(-0.5, 0.3, count)
    x[:, 3:n] += 0.4 * noise[:, 3:n]
    x[:, 3:7] /= x[:, 3:7].norm(dim=1, keepdim=True)
    x[:, n:] = 2 * noise[:, n:]
    ours = env.rates(env.packed(x, torch.zeros(count, 2, dtype=torch.float64), env.params(x)))[:, n:]
    for state, accelerations in zip(x.numpy(), ours.numpy(), strict=True):
        data.qpos[:], data.qvel[:] = state[:n], state[n:]
        mujoco.mj_forward(library, data)
        assert np.abs(accelerations - data.qacc).max() < 1e-9 * np.abs(data.qacc).max()


def test_capsules_whose_axes_cross_touch_across_both():
    """In float32, too, where the axes miss each other by rounding."""
    env = from_mjcf(TOUCHING["crossing capsules"], check=False)
    q, v, u, _ = random_states(converged(env.model), 200, np.random.default_rng(0))
    crossing = torch.tensor([abs(normal[1]) > 0.99 for normal in first_normals(env.model, q)])
    assert crossing.sum() > 5
    packed = torch.tensor(np.concatenate((q, v, u), 1))[crossing]
    exact, rounded = env.rates(packed), env.rates(packed.float())
    assert torch.allclose(rounded.double(), exact, rtol=1e-3, atol=1e-3 * float(exact.abs().max()))


def first_normals(model, q):
    """Of the first contact in each position, as MuJoCo finds it; zero without a contact."""
    found = converged(model)
    data = mujoco.MjData(found)
    for position in q:
        data.qpos[:] = position
        mujoco.mj_forward(found, data)
        yield data.contact[0].frame[:3].copy() if data.ncon else np.zeros(3)


@pytest.mark.slow
@pytest.mark.parametrize("condim", [3, 4, 6])
@pytest.mark.parametrize("name", ["two trees", "tilted plane", "stiffness and damping", "margin and gap"])
def test_elliptic_cones_agree_with_mujoco(name, condim):
    verify(from_mjcf(rubbing(TOUCHING[name], "elliptic", condim), check=False), 40, tolerance=1e-9)


@pytest.mark.parametrize("name", ["a cart above the floor", "a sledge in the floor", "a wheel on a sledge"])
def test_elliptic_cones_at_a_constant_distance_agree_with_mujoco(name):
    xml = TOUCHING[name].replace("<option ", '<option cone="elliptic" ')
    verify(from_mjcf(xml, check=False), 40, tolerance=1e-9)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * ("Humanoid" in n)) for n in GYM_TASKS]
)
def test_tasks_agree_with_mujoco(name):
    assert verify(make_env(name), 40, tolerance=1e-9).largest < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("name", [*GYM_TASKS, *DM_CONTROL_TASKS])
def test_tasks_agree_with_mujoco_in_400_states(name):
    """Touching and in the air, and no state needs more Newton steps than allowed."""
    with every_state_settles():
        verify(make_env(name), 400, tolerance=1e-9)


@pytest.mark.parametrize("name", [*GYM_TASKS, *DM_CONTROL_TASKS])
def test_episodes_of_tasks_start_near_their_state_box(name):
    env = make_env(name)
    if hasattr(env, "settled"):
        pytest.skip("its starts take long; diffsim check looks at them")
    x = env.reset(500, torch.Generator().manual_seed(3), torch.float64)
    low, high = env.state_box.bounds(x)
    assert ((x - (low + high) / 2).abs() <= 0.75 * (high - low) + 1e-6).all()


@pytest.mark.slow
def test_a_model_without_its_self_collisions_agrees_with_mujoco():
    class Robot(RobotEnv):
        model = gymnasium_model("humanoid.xml", self_collisions="ignore")
        name = "humanoid"

    verify(Robot(), 24, tolerance=1e-9)


@contextlib.contextmanager
def every_state_settles():
    """Inside, a state whose Newton steps do not end within those allowed is a failure."""
    solve = newton.fixed_point

    def checked(step, start, given, most):
        x = start
        for _ in range(most):
            x, moving = step(x, given)
            if not bool((moving != 0).any()):
                return x
        raise AssertionError(f"{int((moving != 0).sum())} states need more than {most} steps")

    newton.fixed_point = checked
    try:
        yield
    finally:
        newton.fixed_point = solve


@given(st.integers(0, 10_000))
@settings(max_examples=5, deadline=None, derandomize=True)
def test_generated_robots_agree_with_mujoco(seed):
    with every_state_settles():
        verify(from_mjcf(generated(seed), check=False), 10, seed=seed, tolerance=1e-9)


@pytest.mark.slow
@given(st.integers(0, 1_000_000))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_large_generated_robots_agree_with_mujoco(seed):
    with every_state_settles():
        verify(from_mjcf(generated(seed, depth=2), check=False), 30, seed=seed, tolerance=1e-9)


def test_a_wrong_dynamics_is_refused_and_shown():
    class Heavy(RobotEnv):
        model = from_mjcf(model('<body><joint name="m"/><geom size=".1" pos=".3 0 0"/></body>')).model
        name = "heavy"

        def rates(self, packed):
            return 1.001 * super().rates(packed)

    with pytest.raises(
        DisagreementError, match=r"not MuJoCo's dynamics: errors above 1e-06 are refused. At qpos = "
    ):
        verify(Heavy(), 8)


def test_a_kernel_gives_what_the_operations_give():
    env: Env = from_mjcf(JOINTS["dry friction"], check=False)
    x = torch.tensor([[0.2, 0.12, 0.3, -0.5], [0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    u = torch.tensor([[0.3], [-1.0]], dtype=torch.float64)
    packed = torch.cat((x, u), 1)
    assert torch.allclose(env.dynamics(0.0, x, u, {}), env.rates(packed), rtol=1e-12, atol=1e-12)
