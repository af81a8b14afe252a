"""Reaching for poses: the attitude of the flange and how far it is from the target's. Mechanics: test_arm7_point."""

import math

import torch
from torch.autograd.functional import jvp

from robotics_envs.mechanics import panda
from robotics_envs.mechanics.panda import JOINT_HIGH, JOINT_LOW, READY, attitude
from robotics_envs.mechanics.quaternions import product, rotation, unit
from robotics_envs.simulators.arm7 import Arm7
from robotics_envs.simulators.arm7_point import Arm7Point

F64 = torch.float64
TARGET, QUATERNION = slice(14, 17), slice(17, 21)


def some_states(batch, seed=0):
    env, generator = Arm7(), torch.Generator().manual_seed(seed)
    return env.state_box.sample(batch, generator, F64), env.action_box.sample(batch, generator, F64)


def about(axis, angle):
    """The quaternions of turns by angles [B] about axes [B, 3] of length one."""
    return torch.cat((torch.cos(angle / 2).unsqueeze(-1), torch.sin(angle / 2).unsqueeze(-1) * axis), -1)


def axes(batch, seed=3):
    v = torch.randn(batch, 3, dtype=F64, generator=torch.Generator().manual_seed(seed))
    return v / v.norm(dim=-1, keepdim=True)


def reached(batch):
    """At rest in the target's pose."""
    x, _ = some_states(batch)
    x[:, 7:14] = 0.0
    x[:, TARGET], x[:, QUATERNION] = panda.hand(x[:, :7]), attitude(x[:, :7])
    return x


def test_the_product_of_quaternions_is_that_of_rotations():
    a, b = torch.randn(2, 10, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
    one = (rotation(a).unflatten(-1, (3, 3)) @ rotation(b).unflatten(-1, (3, 3))).flatten(-2)
    assert torch.allclose(rotation(product(a, b)), one, rtol=0, atol=1e-12)
    assert torch.allclose(unit(product(a, b)), product(unit(a), unit(b)), rtol=0, atol=1e-12)


def test_the_attitude_by_quaternions_is_that_of_the_frames():
    x, _ = some_states(50)
    frames, _ = panda.frames(x[:, :7])
    assert torch.allclose(rotation(attitude(x[:, :7])), frames[:, -1].flatten(-2), rtol=0, atol=1e-13)
    assert torch.allclose(attitude(x[:, :7]).norm(dim=-1), torch.ones(50, dtype=F64))


def test_ready_points_the_flange_down():
    """And half a right angle about the vertical: x forward and right, y to the right and back."""
    turn = rotation(attitude(torch.tensor([READY], dtype=F64))).unflatten(-1, (3, 3))[0]
    s = math.sqrt(0.5)
    expected = torch.tensor([[s, -s, 0.0], [-s, -s, 0.0], [0.0, 0.0, -1.0]], dtype=F64)
    assert torch.allclose(turn, expected, rtol=0, atol=1e-12)


def test_the_flange_turns_about_the_joints_axes():
    """Its angular velocity is the sum of rate times axis: d(attitude)/dt = (0, w) attitude / 2."""
    x, _ = some_states(20)
    q, qd = x[:, :7], x[:, 7:14]
    value, change = jvp(attitude, q, qd)
    w = (qd.unsqueeze(-1) * panda.motion(q).axis).sum(1)
    pure = torch.cat((torch.zeros(20, 1, dtype=F64), w), -1)
    assert torch.allclose(change, 0.5 * product(pure, value), rtol=0, atol=1e-12)


def test_the_turn_that_is_left_is_the_turn_that_was_made():
    """A target turned away by a known angle about a known axis of the base frame is found again."""
    env, x = Arm7(), reached(200)
    angle, axis = math.pi * torch.rand(200, dtype=F64, generator=torch.Generator().manual_seed(5)), axes(200)
    target = product(about(axis, angle), attitude(x[:, :7]))
    both, cosine = env.turn_left(x[:, :7], target)
    assert torch.allclose(both, torch.sin(angle).unsqueeze(-1) * axis, rtol=0, atol=1e-12)
    assert torch.allclose(cosine[:, 0], torch.cos(angle), rtol=0, atol=1e-12)
    assert torch.allclose(env.misalignment(x[:, :7], target), torch.sin(angle / 2) ** 2, rtol=0, atol=1e-12)


def test_lengths_and_signs_of_the_target_quaternion_mean_nothing():
    env, (x, u) = Arm7(), some_states(20)
    p, other = env.params(x), x.clone()
    other[:, QUATERNION] *= -0.3
    assert torch.allclose(env.cost(other, u, p), env.cost(x, u, p), rtol=0, atol=1e-12)
    assert torch.allclose(env.observe(other), env.observe(x), rtol=0, atol=1e-12)


def test_rest_in_the_targets_pose_is_free_and_the_only_place_that_is():
    env, x = Arm7(), reached(20)
    u = torch.zeros(20, 7, dtype=F64)
    p = env.params(x)
    assert env.cost(x, u, p).abs().max() < 1e-14
    for change in (
        lambda y: y[:, TARGET].add_(0.02),
        lambda y: y[:, 7].add_(0.1),
        lambda y: y[:, QUATERNION].copy_(product(about(axes(20), torch.full((20,), 0.05)), y[:, QUATERNION])),
    ):
        y = x.clone()
        change(y)
        assert env.cost(y, u, p).min() > 1e-5
    assert env.cost(x, u + 1.0, p).min() > 1e-5


def test_the_mechanics_are_those_of_the_arm_that_reaches_points():
    env, point, (x, u) = Arm7(), Arm7Point(), some_states(5)
    p = env.params(x)
    rate = env.dynamics(0.0, x, u, p)
    assert torch.equal(rate[:, :17], point.dynamics(0.0, x[:, :17], u, p))
    assert not rate[:, 17:].any()
    following, _ = env.step(x, u, p)
    assert torch.equal(following[:, 14:], x[:, 14:])


def test_gravity_compensated_the_arm_rests_where_it_is():
    env, x = Arm7(), reached(5)
    start, u = x, torch.zeros(5, 7, dtype=F64)
    for _ in range(10):
        x, _ = env.step(x, u, env.params(x))
    assert torch.equal(x, start)


def test_a_feedback_through_the_jacobian_reaches_the_pose():
    """Springs on the observed errors pull the hand there, so their signs are right, and dampers calm it."""
    env = Arm7()
    x = env.reset(16, torch.Generator().manual_seed(0), F64)
    p = env.params(x)
    first = env.observe(x)
    for _ in range(100):
        at, errors = panda.motion(x[:, :7]), env.observe(x)[:, 14:20]
        lever = (panda.hand(x[:, :7]).unsqueeze(1)).expand(-1, 7, 3)
        slide = at.arm + torch.linalg.cross(at.axis, lever)  # of the hand under a unit turn of each joint
        pull = (slide * (-100.0 * errors[:, None, :3]) + at.axis * (10.0 * errors[:, None, 3:])).sum(-1)
        x, _ = env.step(x, pull - x[:, 7:14] * x.new_tensor((10, 10, 10, 10, 1, 1, 1)), p)
    last = env.observe(x)
    assert (last[:, 14:17].norm(dim=-1) < 0.25 * first[:, 14:17].norm(dim=-1)).all()
    assert (1 - last[:, 20] < 0.25 * (1 - first[:, 20])).all()


def test_starts_and_their_targets_are_in_the_state_box_and_within_reach():
    env = Arm7()
    x = env.reset(5000, torch.Generator().manual_seed(0), F64)
    low, high = env.state_box.bounds(x)
    assert (x >= low).all()
    assert (x <= high).all()
    assert (x[:, QUATERNION].norm(dim=-1) - 1).abs().max() < 1e-12
    shoulder = torch.tensor([0.0, 0.0, 0.333], dtype=F64)
    assert (x[:, TARGET] - shoulder).norm(dim=-1).max() < 0.855  # m, the reach in Franka's data sheet
    limits = torch.tensor((JOINT_LOW, JOINT_HIGH), dtype=F64)
    assert (x[:, :7] > limits[0]).all()
    assert (x[:, :7] < limits[1]).all()
    turn = torch.rad2deg(torch.acos(env.observe(x)[:, 20]))
    assert 25 < turn.median() < 60
    assert 0.1 < (panda.hand(x[:, :7]) - x[:, TARGET]).norm(dim=-1).median() < 0.4


def test_the_gradient_is_finite_in_the_pose_itself_and_half_a_turn_from_it():
    env, x = Arm7(), reached(4)
    half = product(about(axes(4), torch.full((4,), math.pi, dtype=F64)), attitude(x[:, :7]))
    x[2:, QUATERNION] = half[2:]
    x.requires_grad_()
    u = torch.zeros(4, 7, dtype=F64)
    (gradient,) = torch.autograd.grad(env.cost(x, u, env.params(x)).sum() + env.observe(x).sum(), x)
    assert torch.isfinite(gradient).all()
