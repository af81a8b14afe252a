"""Contacts with a softened onset: a smooth function, MuJoCo's own at 0, and named and refused as the option says."""

import math

import mujoco
import numpy as np
import pytest
import torch
from small_robots import FLOOR, FRICTION, JOINTS, TOUCHING, model, on_the_floor, rubbing
from test_parameters import PLANAR
from test_robot_gradients import errors, touching_states

from diffsim.config import load_config
from diffsim.errors import ConfigError
from diffsim.rollouts.rollout import Rollout
from lazy_registry.registry import UnknownNameError
from robotics_envs import check_env
from robotics_envs.environments import make_env
from robotics_envs.robots import RobotFileError, from_mjcf, in_mujoco, verify, with_parameters
from robotics_envs.robots.comparison import converged
from robotics_envs.robots.kinematics import kinematics
from robotics_envs.robots.onset import begun
from robotics_envs.robots.scalars import columns
from robotics_envs.robots.touching import candidates

ONSET = 0.02
FREE = {
    "sphere": TOUCHING["sphere"],
    "box": TOUCHING["box"],
    "without friction": TOUCHING["without friction"],
    "stiffness and damping": TOUCHING["stiffness and damping"],
    "margin and gap": TOUCHING["margin and gap"],
    **{
        name: FRICTION[name]
        for name in (
            "sphere, elliptic, condim 3",
            "capsule, elliptic, condim 4",
            "capsule, pyramidal, condim 6",
            "cylinder, pyramidal, condim 4",
            "ellipsoid, elliptic, condim 6",
        )
    },
}
"""A free body with one geom above the floor."""


LIMITED = model(
    f'{FLOOR}<body pos="0 0 .4"><joint name="m" axis="0 1 0" range="-20 20"/><geom size=".1" pos=".3 0 0"/>'
    '<body pos=".3 0 0"><joint type="slide" axis="1 0 0" range="-.05 .05"/><geom size=".1"/></body></body>'
)
"""A hinge and a slide with ranges."""


def softened(xml, onset=ONSET):
    return from_mjcf(xml, check=False, onset=onset)


def accelerations(env, x, onset=None):
    """``[B, velocities]`` with zero controls; ``onset`` as a number, that of the file by default."""
    p = env.training_params(env.params(x))
    if onset is not None:
        p = {**p, "onset": x.new_tensor(onset)}
    u = x.new_zeros(len(x), len(env.action_box))
    return env.rates(env.packed(x, u, p))[:, env.model.positions :]


def at_first_contact(env, count=6):
    """States of a free body, turned and moving down and sideways, at which its first contact begins: a gap of 0."""
    rng = torch.Generator().manual_seed(1)
    n, m = env.model.positions, env.model.velocities
    x = torch.zeros(count, n + m, dtype=torch.float64)
    x[:, :n] = torch.tensor(env.model.reference)
    x[:, 3:7] = torch.nn.functional.normalize(
        torch.randn(count, 4, generator=rng, dtype=torch.float64), dim=1
    )
    x[:, n : n + 6] = torch.randn(count, 6, generator=rng, dtype=torch.float64)
    x[:, n + 2] = -2.0
    motions = kinematics(env.model, columns(x[:, :n]), columns(x[:, n:]))
    gaps = [torch.as_tensor(touch.distance) - pair.margin for pair, touch in candidates(env.model, motions)]
    x[:, 2] -= torch.stack(gaps).amin(0)
    return x


def deeper(x, depth):
    moved = x.clone()
    moved[:, 2] -= depth
    return moved


@pytest.mark.parametrize("xml", FREE.values(), ids=FREE)
def test_accelerations_are_continuous_and_differentiable_where_a_contact_begins(xml):
    env = softened(xml)
    x = at_first_contact(env)
    outside = accelerations(env, deeper(x, -1e-9))
    size = outside.abs().amax()
    jumps = [(accelerations(env, deeper(x, d)) - outside).abs().amax(1) for d in (2e-5, 1e-5)]
    assert jumps[1].min() > 0  # a contact
    # Of second order in the depth: half of it leaves a quarter, so that value and derivative have no jump.
    assert (jumps[0] / jumps[1] - 4).abs().max() < 0.05
    assert jumps[1].max() < 1e-2 * size
    # The same by the gradient, which is that of the air at the border.
    inside = deeper(x, 1e-6).requires_grad_()
    (slope,) = torch.autograd.grad(accelerations(env, inside).sum(), inside)
    assert slope[:, 2].abs().max() < 2 * len(slope) * float(jumps[1].max()) / 1e-5
    # MuJoCo's own jumps there.
    own = (accelerations(env, deeper(x, 1e-9), 0.0) - outside).abs().amax(1)
    assert own.min() > 1e-2 * size


@pytest.mark.parametrize("xml", FREE.values(), ids=FREE)
def test_accelerations_are_differentiable_where_the_softening_ends(xml):
    env = softened(xml)
    x = at_first_contact(env)
    slopes = []
    for side in (1 - 1e-7, 1 + 1e-7):
        at = deeper(x, ONSET * side).requires_grad_()
        values = accelerations(env, at)
        weights = torch.linspace(1, 2, values.shape[1], dtype=values.dtype)
        slopes.append(torch.autograd.grad((values * weights).sum(), at)[0][:, 2])
    assert torch.allclose(*slopes, rtol=1e-4)


@pytest.mark.parametrize("joint", [0, 1])
def test_a_joint_limit_sets_in_smoothly_too(joint):
    env = softened(LIMITED)
    limit = env.model.joints[joint].limit.range[1]
    found = []
    for beyond in (-1e-9, 2e-5, 1e-5, ONSET * 1.01):
        x = torch.zeros(1, 4, dtype=torch.float64)
        x[:, joint], x[:, 2 + joint] = limit + beyond, 1.0
        found.append((accelerations(env, x), accelerations(env, x, 0.0)))
    outside, *jumps, (deep, own_deep) = found
    halves = [(soft - outside[0]).abs().max() for soft, _ in jumps]
    assert halves[1] < 1e-2 * (jumps[1][1] - outside[1]).abs().max()  # MuJoCo's own jumps
    assert torch.equal(deep, own_deep)


def test_the_share_is_a_smooth_step():
    w = torch.tensor(0.01, dtype=torch.float64)
    gap = torch.linspace(-0.02, 0.005, 2001, dtype=torch.float64).requires_grad_()
    share = begun(gap, w)
    (slope,) = torch.autograd.grad(share.sum(), gap)
    y = (-gap.detach() / 0.01).clamp(0, 1)
    assert torch.allclose(share, y * y * (3 - 2 * y), atol=1e-14)
    assert torch.allclose(slope, -600 * y * (1 - y), atol=1e-10)
    assert slope.diff().abs().max() < 1.01 * 600 / 0.01 * (0.025 / 2000)  # no jump
    for least in (0.0, 1e-12):
        onset = torch.tensor(least, dtype=torch.float32).requires_grad_()
        values = begun(gap.detach().float(), onset)
        (by_onset,) = torch.autograd.grad(values.sum(), onset)
        assert by_onset.isfinite()
        assert (values[gap.detach() < -1e-6] == 1).all()
    assert begun(gap, 0.0) == 1.0


@pytest.mark.parametrize("xml", FREE.values(), ids=FREE)
def test_at_zero_it_is_bit_for_bit_the_model_without_the_option(xml):
    plain, env = from_mjcf(xml, check=False), softened(xml)
    assert from_mjcf(xml, check=False, onset=0).model == plain.model
    x = deeper(at_first_contact(env), torch.linspace(-0.01, 0.02, 6, dtype=torch.float64))
    u, h = x.new_full((6, 1), 0.3), x.new_full((6, 1), 0.002)
    with torch.no_grad():
        assert torch.equal(*(e.rates(e.packed(x, u, e.params(x))) for e in (plain, env)))
        assert torch.equal(*(e.advanced(e.packed(x, u, e.params(x), h)) for e in (plain, env)))


@pytest.mark.parametrize("name", ["gym:Hopper-v5", "gym:HalfCheetah-v5"])
def test_a_task_at_zero_is_bit_for_bit_the_task(name):
    plain, env = make_env(name), make_env(name, onset=ONSET)
    x = touching_states(plain, 12)
    x, u = x[:, : len(plain.state_names)], x[:, len(plain.state_names) :]
    with torch.no_grad():
        own, zero, soft = (
            e.rates(e.packed(x, u, p))
            for e, p in (
                (plain, plain.params(x)),
                (env, env.params(x)),
                (env, env.training_params(env.params(x))),
            )
        )
    assert torch.equal(own, zero)
    assert (soft - own).abs().max() > 1e-2 * own.abs().max()


@pytest.mark.parametrize("name", ["box", "ellipsoid, elliptic, condim 6", "capsule, pyramidal, condim 6"])
def test_it_tends_to_mujocos_own_as_the_onset_goes_to_zero(name):
    env = softened(FREE[name])
    x = deeper(at_first_contact(env), torch.linspace(1e-4, 0.01, 6, dtype=torch.float64))
    own = accelerations(env, x, 0.0)
    away = torch.stack([(accelerations(env, x, w) - own).abs().amax(1) for w in (3e-2, 1e-2, 1e-3, 1e-5)])
    assert (away[0] > 1e-3 * own.abs().amax(1)).all()
    assert (away.diff(dim=0) <= 1e-9).all()
    assert (away[-1] == 0).all()  # all contacts of these states are deeper, or absent


def _of_impedance(d: float, cone: str, condim: int) -> str:
    """A sphere whose contact has the impedance d at depths of some cm; the 0.9 beside it sets stiffness and damping."""
    soft = f'solimp="{d:.17g} .9 1e9 .5 2"'
    return rubbing(
        on_the_floor(f'type="sphere" size=".1" {soft}', FLOOR.replace("/>", f" {soft}/>")), cone, condim
    )


@pytest.mark.parametrize(("cone", "condim"), [("pyramidal", 1), ("pyramidal", 3), ("elliptic", 4)])
def test_it_is_mujocos_contact_with_the_impedance_of_the_formula(cone, condim):
    impedance, depths = 0.7, (0.001, 0.006, 0.013, 0.019, 0.03)
    env = softened(_of_impedance(impedance, cone, condim))
    x = at_first_contact(env, len(depths))
    x = deeper(x, torch.tensor(depths, dtype=torch.float64))
    ours = accelerations(env, x)
    n = env.model.positions
    for depth, state, expected in zip(depths, x, ours, strict=True):
        y = min(depth / ONSET, 1.0)
        judge = converged(from_mjcf(_of_impedance(impedance * y * y * (3 - 2 * y), cone, condim)).model)
        data = mujoco.MjData(judge)
        data.qpos[:], data.qvel[:] = state[:n], state[n:]
        mujoco.mj_forward(judge, data)
        assert data.nefc > 0
        np.testing.assert_allclose(expected, data.qacc, rtol=1e-8, atol=1e-9)


def test_a_contact_that_mujoco_makes_hard_stays_so():
    seesaw = model(
        f'{FLOOR}<body pos="0 0 .2"><joint name="m" axis="0 1 0"/><geom size=".1" pos=".3 0 0"/>'
        '<geom size=".1" pos="-.3 0 0"/></body>'
    )
    plain, env = from_mjcf(seesaw, check=False), softened(seesaw)
    assert plain.model.pairs[0].inverse_weight < 1e-10
    x = torch.tensor([[angle, 1.0] for angle in (0.2, 0.33, 0.34, 0.35, 0.4)], dtype=torch.float64)
    x.requires_grad_()
    u = x.new_zeros(5, 1)
    ours = accelerations(env, x)
    assert torch.equal(ours, plain.rates(plain.packed(x, u, {}))[:, 1:])
    assert (ours[:2] - ours[3]).abs().min() > 1  # two in the air
    assert torch.autograd.grad(ours.sum(), x)[0].isfinite().all()


@pytest.mark.parametrize(
    "xml",
    [
        TOUCHING["capsule"],
        TOUCHING["two trees"],
        FRICTION["box, elliptic, condim 3"],
        FRICTION["capsule, elliptic, condim 4"],
        FRICTION["ellipsoid, elliptic, condim 6"],
        FRICTION["capsule, pyramidal, condim 6"],
        FRICTION["elliptic, planar"],
        LIMITED,
    ],
)
def test_gradients_in_the_onset_are_exact(xml):
    # So wide that the states are within it.  The gradient by the onset is among the errors.
    env = softened(xml, 0.08)
    packed = touching_states(env, 12)
    packed = torch.cat((packed, packed.new_full((len(packed), 1), 0.08)), 1)
    assert errors(env, env.rates, packed).max() < 1e-6
    own = packed.clone()
    own[:, -1] = 0.0
    changed = (env.rates(packed) - env.rates(own)).abs().amax(1) > 1e-6
    assert changed.double().mean() > 0.5


@pytest.mark.parametrize("name", ["gym:Hopper-v5", "gym:HalfCheetah-v5"])
def test_gradients_of_tasks_in_the_onset_are_exact(name):
    env = make_env(name, onset=0.03)
    packed = touching_states(env, 12)
    packed = torch.cat((packed, packed.new_full((len(packed), 1), 0.03)), 1)
    assert errors(env, env.rates, packed).max() < 1e-6


@pytest.mark.parametrize(
    "xml", [PLANAR, FRICTION["sphere, elliptic, condim 3"]], ids=["pyramidal", "elliptic"]
)
def test_one_onset_a_rollout_in_kernels_and_without(xml, caplog):
    env = softened(xml)
    torch.manual_seed(0)
    policy = torch.nn.Linear(len(env.observation_names), len(env.action_box), dtype=torch.float64)
    x0 = env.reset(6, torch.Generator().manual_seed(0), torch.float64)
    x0[:, 1 if xml == PLANAR else 2] -= 0.03 if xml == PLANAR else 0.2  # into the floor
    given = torch.tensor([0.0, 0.003, 0.01, 0.03, 0.1, 0.01], dtype=torch.float64)
    results = {}
    for backend in ("native", "eager"):
        onset, start = given.clone().requires_grad_(), x0.clone().requires_grad_()
        policy.zero_grad()
        out = Rollout(env, policy, backend=backend)(start, 12, {**env.params(x0), "onset": onset})
        out.costs.sum().backward()
        results[backend] = [out.costs, start.grad, onset.grad, policy.weight.grad.clone()]
    assert not caplog.records
    for a, b in zip(*results.values(), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-9)
    assert results["native"][2][1:].abs().max() > 0
    plain = Rollout(from_mjcf(xml, check=False), policy, backend="native")(x0[:1], 12)
    assert torch.allclose(plain.costs[:, 0], results["native"][0][:, 0].detach(), rtol=1e-12)


def test_names_and_settings_lead_to_it(tmp_path):
    file = tmp_path / "robot.xml"
    file.write_text(TOUCHING["a cart above the floor"])
    section = load_config({"env": {"name": f"mjcf:{file}", "onset": 0.01}}).env
    for env in (
        from_mjcf(file, onset=0.01),
        make_env(f"mjcf:{file}?onset=0.01"),
        make_env(section.name, **section.options),
        make_env("gym:Hopper-v5?onset=0.01"),
        make_env("gym:Hopper-v5?parameters=torso.mass&onset=0.01"),
        with_parameters(type(make_env("gym:Hopper-v5?onset=0.01")), "torso.mass")(),
        make_env("gym:Hopper-v5", onset=0.01),
    ):
        assert env.constants["onset"].value == 0.01
        p = env.params(torch.zeros(1))
        assert p["onset"] == 0
        at = [float(env.training_params(p, left)["onset"]) for left in (1.0, 0.75, 0.5, 0.25)]
        assert at == pytest.approx([0.01, 0.005, 0.0, 0.0])
        assert "over 0.01 m" in env.training_note
        assert env.longest_window == 0.3
    assert set(env.constants) == {"onset"}
    assert "onset = 0.01" in repr(env)
    assert make_env("gym:Hopper-v5?onset=0.01", onset=0.02).constants["onset"].value == 0.02


@pytest.mark.parametrize("name", ["gym:Hopper-v5", "gym:Hopper-v5?onset=0"])
def test_zero_is_no_option_at_all(name):
    for env in (make_env(name), make_env(name, onset=0)):
        p = env.params(torch.zeros(1))
        assert not p
        assert env.training_params(p) is p
        assert env.training_note == ""
        assert env.longest_window == math.inf
        assert env.model == make_env("gym:Hopper-v5").model


@pytest.mark.parametrize("value", [-0.01, math.nan, math.inf, "wide", True, None, [0.01]])
def test_what_is_no_length_is_refused(value):
    for call in (
        lambda: make_env("gym:Hopper-v5", onset=value),
        lambda: from_mjcf(TOUCHING["sphere"], onset=value),
    ):
        with pytest.raises(RobotFileError, match=r"onset = .* in metres, such as 0\.01"):
            call()


def test_options_of_names_are_refused_in_words(tmp_path):
    for name, words in {
        "gym:Hopper-v5?onset=-1": "onset = -1.0: give a finite length in metres",
        "gym:Hopper-v5?onset=nan": "onset = nan: give a finite length in metres",
        "gym:Hopper-v5?onset=soft": "onset = 'soft' is no number",
        "gym:Hopper-v5?onset=0.1,0.2": "onset is one number, got '0.1,0.2'",
        "gym:InvertedPendulum-v5?onset=0.01": "nothing of .* can touch",
    }.items():
        with pytest.raises(RobotFileError, match=words):
            make_env(name)
    with pytest.raises(RobotFileError, match=r"nothing of .* can touch"):
        make_env("gym:InvertedPendulum-v5", onset=0.01)
    with pytest.raises(RobotFileError, match=r"nothing of .* can touch"):
        from_mjcf(JOINTS["actuators"], onset=0.01)
    with pytest.raises(UnknownNameError, match="did you mean 'onset'"):
        make_env("gym:Hopper-v5?onsets=0.01")
    from diffsim.assembly import assemble

    with pytest.raises(ConfigError, match=r"onset = -0\.1: give a finite length"):
        assemble(load_config({"env": {"name": "gym:Hopper-v5", "onset": -0.1}})).env  # noqa: B018


def test_what_judges_a_robot_uses_mujocos_contacts(tmp_path):
    file = tmp_path / "robot.xml"
    file.write_text(TOUCHING["a cart above the floor"])
    env = from_mjcf(file, onset=0.05)
    assert verify(env, 12).largest < 1e-9
    judged = in_mujoco(make_env("gym:Hopper-v5", onset=0.01))
    assert not judged.training_note
    in_mujoco(make_env("gym:Hopper-v5?onset=0.01", onset=0.02))
    check_env(softened(PLANAR))
