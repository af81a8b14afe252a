"""Success by hand: for every simulator, episodes that succeed and fail by a margin, one condition at a time."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import binom

from robotics_envs import ENVIRONMENTS, make_env
from robotics_envs.base import Success
from robotics_envs.mechanics.panda import READY, attitude, hand
from robotics_envs.mechanics.quaternions import product

F64 = torch.float64
DEGREE = math.pi / 180


def state(name, **values):
    """A state of one simulator, ``[n]``, zero but for the named components."""
    names = make_env(name).state_names
    x = torch.zeros(len(names), dtype=F64)
    for component, value in values.items():
        x[names.index(component)] = value
    return x


def arm(name, away=0.0, turned=0.0):
    """The ready pose, with a target that is so many metres and degrees away."""
    q = torch.tensor(READY, dtype=F64)[None]
    target = hand(q)[0] + torch.tensor([0.0, 0.0, away], dtype=F64)
    half = turned * DEGREE / 2
    turn = torch.tensor([[math.cos(half), 0.0, math.sin(half), 0.0]], dtype=F64)
    parts = [q[0], torch.zeros(7, dtype=F64), target]
    return torch.cat([*parts, product(turn, attitude(q))[0]] if name == "arm7" else parts)


def upright(name, **values):
    return state(name, quaternion_w=1.0, **values)


def rod(offset, wave=0.0):
    """Targets of 30 and 50 °C, and a profile that is off by a constant and by a wave of zero mean."""
    s = (torch.arange(100, dtype=F64) + 0.5) / 100
    return torch.cat(
        (
            30 + 20 * s + offset + wave * torch.cos(4 * math.pi * s),
            torch.tensor([30.0, 50.0], dtype=F64),
        )
    )


def satellite(degrees, rate=0.0, length=1.0, sign=1.0):
    half = degrees * DEGREE / 2
    return state(
        "satellite",
        quaternion_w=sign * length * math.cos(half),
        quaternion_y=sign * length * math.sin(half),
        rate_z=rate,
        wheel_1=300.0,
    )


def orbit(radius=1.524, speed=1.0, outward=0.0):
    """``speed`` as a multiple of that on the circle of this radius."""
    return state(
        "orbit_transfer",
        radius=radius,
        radial_velocity=outward,
        tangential_velocity=speed / math.sqrt(radius),
        mass=0.75,
    )


def stone(landing, released=1.0, flying=0.0):
    """A stone on the ground at ``landing``, or one above it with so many seconds to fall."""
    return state(
        "trebuchet",
        released=released,
        stone_x=landing - 10.0 * flying,
        stone_y=0.5 * 9.81 * flying**2,
        stone_velocity_x=10.0 if flying else 0.0,
        target=50.0,
    )


def hopper(speed=1.0, **values):
    return state("hopper", velocity_x=speed, **{"leg_length": 0.6, "foot_height": 0.02, **values})


_K = 7.2e10 * math.exp(-8750.0 / 350.0)  # 1/min at the set point
C_STEADY = 100.0 / (100.0 + 100.0 * _K)

GOOD = {
    "pendulum": state("pendulum", angle=2 * math.pi + 10 * DEGREE, rate=0.1),
    "cartpole_swingup": state("cartpole_swingup", position=-0.45, angle=-2 * math.pi + 16 * DEGREE),
    "cartpole_balance": state("cartpole_balance", position=0.45, angle=16 * DEGREE),
    "acrobot": state("acrobot", shoulder=2 * math.pi + 0.08, elbow=-2 * math.pi),
    "double_pendulum": state("double_pendulum", angle_1=30 * DEGREE, angle_2=-20 * DEGREE),
    "reacher": state("reacher", target_x=0.21 - 0.018),
    "arm7": arm("arm7", away=0.018, turned=4.8),
    "arm7_point": arm("arm7_point", away=0.018),
    "quadrotor_planar": state("quadrotor_planar", x=0.2, z=-0.2, tilt=2.8 * DEGREE, velocity_x=0.045),
    "quadrotor": upright("quadrotor", position_x=0.06, position_z=-0.07),
    "quadrotor_eight": upright("quadrotor_eight", position_x=0.06, position_z=-0.07, phase=2.0),
    "rocket_landing": state("rocket_landing", x=2.0, z=-2.0, tilt=-2.8 * DEGREE, velocity_z=-0.45),
    "satellite": satellite(4.8, rate=0.018),
    "orbit_transfer": orbit(1.524 * 1.018, 1.005),
    "hopper": hopper(0.9),
    "trebuchet": stone(51.8),
    "reactor": torch.tensor([C_STEADY + 0.018, 349.1, 300.0], dtype=F64),
    "heat_rod": rod(1.6, wave=1.2),
}
"""States in which a whole episode that stays there is a success; the car has to move."""

BAD = {
    "pendulum": {"leaning": state("pendulum", angle=13 * DEGREE), "hanging": state("pendulum", angle=math.pi)},
    "cartpole_swingup": {
        "leaning": state("cartpole_swingup", angle=20 * DEGREE),
        "to the right": state("cartpole_swingup", position=0.55),
        "to the left": state("cartpole_swingup", position=-0.55),
    },
    "cartpole_balance": {
        "leaning": state("cartpole_balance", angle=-20 * DEGREE),
        "to the right": state("cartpole_balance", position=0.55),
    },
    "acrobot": {
        "leaning": state("acrobot", shoulder=0.12),
        "folded": state("acrobot", elbow=math.pi),
        "bent": state("acrobot", shoulder=-0.5, elbow=1.0),
        "hanging": state("acrobot", shoulder=math.pi),
    },
    "double_pendulum": {
        "first": state("double_pendulum", angle_1=35 * DEGREE),
        "second": state("double_pendulum", angle_2=75 * DEGREE),
    },
    "reacher": {
        "short": state("reacher", target_x=0.21 - 0.022),
        "aside": state("reacher", target_x=0.21, target_y=0.022),
        "bent": state("reacher", angle_2=0.5, target_x=0.21),
    },
    "arm7": {"away": arm("arm7", away=0.022), "turned": arm("arm7", turned=5.2), "half": arm("arm7", turned=180)},
    "arm7_point": {"away": arm("arm7_point", away=0.022)},
    "quadrotor_planar": {
        "away": state("quadrotor_planar", x=0.22, z=0.22),
        "tilted": state("quadrotor_planar", tilt=-3.2 * DEGREE),
        "upside down": state("quadrotor_planar", tilt=math.pi),
        "moving": state("quadrotor_planar", velocity_x=0.04, velocity_z=0.04),
    },
    "quadrotor": {"away": upright("quadrotor", position_x=0.07, position_y=0.08)},
    "quadrotor_eight": {"behind": upright("quadrotor_eight", position_x=0.07, position_y=0.08)},
    "rocket_landing": {
        "away": state("rocket_landing", x=2.2, z=2.2),
        "tilted": state("rocket_landing", tilt=3.2 * DEGREE),
        "moving": state("rocket_landing", velocity_x=0.4, velocity_z=0.4),
    },
    "satellite": {"turned": satellite(5.2), "almost around": satellite(350), "turning": satellite(0, rate=0.022)},
    "orbit_transfer": {
        "low": orbit(1.524 * 0.978),
        "high": orbit(1.524 * 1.022),
        "fast": orbit(speed=1.02),
        "leaving": orbit(outward=0.03),
        "departure": orbit(1.0),
    },
    "hopper": {
        "slow": hopper(0.8),
        "backwards": hopper(-1.0),
        "low": hopper(leg_length=0.22),
        "leaning": hopper(pitch=75 * DEGREE),
        "splayed": hopper(leg_angle=70 * DEGREE),
    },
    "trebuchet": {
        "short": stone(47.8),
        "long": stone(52.2),
        "flying too far": stone(52.2, flying=1.0),
        "in the sling": stone(50.0, released=0.0),
    },
    "reactor": {
        "hot": torch.tensor([C_STEADY, 351.1, 300.0], dtype=F64),
        "cold": torch.tensor([C_STEADY, 348.9, 300.0], dtype=F64),
        "rich": torch.tensor([C_STEADY + 0.022, 350.0, 300.0], dtype=F64),
        "poor": torch.tensor([C_STEADY - 0.022, 350.0, 300.0], dtype=F64),
    },
    "heat_rod": {"warm": rod(2.2), "cold": rod(-2.2), "wavy": rod(0.0, wave=3.2), "both": rod(1.6, wave=2.0)},
}  # fmt: skip
"""States in which it is a failure, each by one condition."""

HOLD = {
    "pendulum": 2.0,
    "cartpole_swingup": 2.0,
    "cartpole_balance": 2.0,
    "acrobot": 2.0,
    "arm7": 0.48,  # half a second is 12.5 intervals
    "arm7_point": 0.5,
    "quadrotor": 0.5,
    "quadrotor_eight": 5.0,
    "reactor": 1.0,
    "double_pendulum": 50.0,
    "reacher": 0.0,
    "quadrotor_planar": 0.0,
    "rocket_landing": 0.0,
    "satellite": 0.0,
    "orbit_transfer": 0.0,
    "trebuchet": 0.0,
    "heat_rod": 0.0,
}
"""For how long at the end, in units of dt, the state counts; the hopper's and the car's conditions differ."""

ALWAYS = {"double_pendulum", "hopper", "car"}

HERE = (*GOOD, "car")


def episode(name, x):
    """Of one rollout that stays in ``x``, ``[T + 1, 1, n]``."""
    return x.expand(make_env(name).episode_steps + 1, 1, -1).clone()


def succeeds(name, states):
    flags = make_env(name).success(states)
    assert flags.shape == states.shape[1:2]
    assert flags.dtype == torch.bool
    return flags.tolist()


def driving(laps=1.5, offset=0.0):
    """A car that drives round at a constant rate, ``[T + 1, 1, 6]``, from somewhere on the lap."""
    env = make_env("car")
    states = episode("car", torch.zeros(6, dtype=F64))
    states[:, 0, 0] = 1.0 + 2 * math.pi * laps * torch.linspace(0, 1, env.episode_steps + 1, dtype=F64)
    states[:, 0, 1] = offset
    return states


def good(name):
    return driving() if name == "car" else episode(name, GOOD[name])


def bad(name):
    return driving(offset=0.19) if name == "car" else episode(name, next(iter(BAD[name].values())))


BY_CONTROLLER = {"crane", "maglev", "glider", "payload_arm", "tug"}
"""Simulators whose own tests judge episodes of a controller written by hand, and of none."""


def test_every_simulator_of_the_catalogue_is_here():
    assert set(HERE) == {*BAD, "car"} == {*HOLD, "hopper", "car"} == set(ENVIRONMENTS) - BY_CONTROLLER


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_catalogue_declares_success_with_its_source(name):
    env = make_env(name)
    criterion = env.success_criterion
    assert isinstance(criterion, Success)
    assert 0 < criterion.share <= 1
    assert len(criterion.source) > 15
    assert len(criterion.words) > 15
    assert "{" not in criterion.words


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_an_episode_that_meets_the_criterion_succeeds(name, dtype):
    assert succeeds(name, good(name).to(dtype)) == [True]


@pytest.mark.parametrize(("name", "why"), [(name, why) for name, cases in BAD.items() for why in cases])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_an_episode_that_misses_one_condition_fails(name, why, dtype):
    assert succeeds(name, episode(name, BAD[name][why]).to(dtype)) == [False]


@pytest.mark.parametrize("name", [name for name in HERE if name not in ALWAYS])
def test_only_the_end_counts(name):
    """A failure before the time that counts is forgiven, in it is not: to the interval."""
    env = make_env(name)
    count = round(HOLD[name] / env.dt) + 1  # states
    late, early = good(name), good(name)
    late[-count], early[:-count] = bad(name)[0], bad(name)[0]
    if name == "rocket_landing":
        early[:-count] = state(name, x=9.0, z=30.0, velocity_z=-9.0)
    assert succeeds(name, early) == [True]
    assert succeeds(name, late) == [False]


@pytest.mark.parametrize("name", sorted(ALWAYS))
@pytest.mark.parametrize("when", [0, 40, -1])
def test_some_conditions_hold_throughout(name, when):
    states = good(name)
    falls = {"double_pendulum": "first", "hopper": "leaning"}
    states[when] = torch.tensor([1.0, 0.19, 0, 0, 0, 0]) if name == "car" else BAD[name][falls[name]]
    if name == "car":  # it drives on, off the track for one interval
        states[when, 0, 0] = driving()[when, 0, 0]
    assert succeeds(name, states) == [False]


def test_a_rocket_may_not_land_by_way_of_the_underground():
    states = good("rocket_landing")
    states[40, 0, 1] = -2.9
    assert succeeds("rocket_landing", states) == [True]
    states[40, 0, 1] = -3.1
    assert succeeds("rocket_landing", states) == [False]


@pytest.mark.parametrize(("laps", "expected"), [(1.02, True), (0.98, False), (0.0, False), (-1.5, False)])
def test_a_car_has_to_drive(laps, expected):
    assert succeeds("car", driving(laps, offset=-0.18)) == [expected]
    assert succeeds("car", driving(laps, offset=-0.19)) == [False]


def test_a_hopper_is_judged_by_its_mean_speed_over_the_last_three_seconds():
    states = good("hopper")
    states[:150, 0, 5] = 0.0
    states[150:, 0, 5] = torch.tensor([1.4, 0.5]).repeat(76)[:151]
    assert succeeds("hopper", states) == [True]
    states[150:, 0, 5] = torch.tensor([1.2, 0.4]).repeat(76)[:151]
    states[:150, 0, 5] = 5.0
    assert succeeds("hopper", states) == [False]


def test_a_stone_that_still_flies_is_judged_by_where_it_will_land():
    assert succeeds("trebuchet", episode("trebuchet", stone(51.0, flying=1.5))) == [True]


@pytest.mark.parametrize("length", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_quaternions_of_any_length_and_sign_stand_for_their_attitude(length, sign):
    assert succeeds("satellite", episode("satellite", satellite(4.8, length=length, sign=sign))) == [True]
    assert succeeds("satellite", episode("satellite", satellite(5.2, length=length, sign=sign))) == [False]
    inside, outside = arm("arm7", turned=4.8), arm("arm7", turned=5.2)
    for x, expected in ((inside, True), (outside, False)):
        x[17:] *= sign * length
        assert succeeds("arm7", episode("arm7", x)) == [expected]


def test_criteria_follow_the_simulators_own_constants():
    half = make_env("hopper", speed=0.5)
    assert half.success(episode("hopper", hopper(0.45))).tolist() == [True]
    venus = make_env("orbit_transfer", target=0.723)
    assert venus.success(episode("orbit_transfer", orbit(0.723))).tolist() == [True]
    assert venus.success(episode("orbit_transfer", orbit(1.524))).tolist() == [False]
    cooler = make_env("reactor", set_point=345.0)
    assert cooler.success(episode("reactor", GOOD["reactor"])).tolist() == [False]
    short = make_env("acrobot", lower_length=0.7)
    assert short.success(episode("acrobot", GOOD["acrobot"])).tolist() == [False]
    slower = make_env("pendulum")
    slower.dt = 0.1  # 2 s are 20 intervals
    states = good("pendulum")
    states[:-21] = bad("pendulum")[0]
    assert slower.success(states).tolist() == [True]


@pytest.mark.parametrize("name", HERE)
def test_standing_still_at_the_start_solves_only_what_starts_at_its_goal(name):
    env = make_env(name)
    x = env.reset(64, torch.Generator().manual_seed(0))
    solved = int(env.success(x.expand(env.episode_steps + 1, -1, -1)).sum())
    if name in ("cartpole_balance", "double_pendulum"):
        assert solved == 64
    else:
        assert solved < env.success_criterion.needed(64) / 2


@pytest.mark.parametrize("name", HERE)
def test_rollouts_are_judged_side_by_side(name):
    states = torch.cat((bad(name), good(name), bad(name), good(name), good(name)), dim=1)
    states[-1, 4] = math.nan
    assert succeeds(name, states) == [False, True, False, True, False]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"share": 0.0}, r"share .* in \(0, 1\], got 0.0"),
        ({"share": 1.5}, "got 1.5"),
        ({"share": math.nan}, "got nan"),
        ({"share": True}, "got True"),
        ({"share": "60 of 64"}, "got '60 of 64'"),
        ({"words": ""}, "words of a success criterion must be a text, got ''"),
        ({"source": " "}, "source of a success criterion must be a text"),
        ({"source": None}, "got None"),
    ],
)
def test_an_impossible_criterion_is_refused(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        Success(**{"words": "upright", "share": 0.9, "source": "this test", **changes})


@pytest.mark.parametrize(
    ("share", "starts", "needed"),
    [(60 / 64, 64, 60), (60 / 64, 100, 94), (1.0, 100, 100), (0.07, 100, 7), (0.9, 10, 9), (0.5, 1, 1)],
)
def test_the_number_needed_is_the_least_that_reaches_the_share(share, starts, needed):
    assert Success("upright", share, "this test").needed(starts) == needed


def test_success_is_shown_where_the_binomial_test_rejects_less():
    criterion = Success("upright", 60 / 64, "this test")
    for starts in (64, 128, 5000):
        # By hand: the chance of so many successes or more, if the share is as asked.
        chances = binom.sf(np.arange(starts + 1) - 1, starts, 60 / 64)
        wanted = (chances <= 0.05) | (np.arange(starts + 1) == starts)
        assert [criterion.is_shown_by(k, starts) for k in range(starts + 1)] == wanted.tolist()
    assert next(k for k in range(129) if criterion.is_shown_by(k, 128)) == 125


@pytest.mark.parametrize(("share", "starts"), [(60 / 64, 4), (0.5, 1), (1.0, 128)])
def test_where_starts_are_too_few_to_show_it_all_have_to_succeed(share, starts):
    criterion = Success("upright", share, "this test")
    assert [criterion.is_shown_by(k, starts) for k in (starts - 1, starts)] == [False, True]
