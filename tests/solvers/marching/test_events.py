"""Events: when they fire, what they leave behind, and gradients through their times against formulas."""

import pytest
import torch

from solvers import Event, Failure, SolveError, StepSizeController, solve

F64 = torch.float64
METHODS = [
    ("tsit5", {"rtol": 1e-10, "atol": 1e-10}),
    ("dopri5", {}),
    ("rodas5p", {}),
    ("rk4", {"dt": 0.01}),
    ("stormer_verlet", {"dt": 0.01}),
    ("implicit_midpoint", {"dt": 0.02}),
]


def ball(t, x, u, p):
    """A ball in free fall, x = [height m, velocity m/s], p = [gravity m/s², restitution]."""
    return torch.stack((x[..., 1], -p[0].expand(x.shape[:-1])), -1)


BOUNCE = Event(
    lambda t, x, u, p: x[..., 0],
    lambda t, x, u, p: torch.stack((x[..., 0], -p[1] * x[..., 1]), -1),
    direction=-1,
)


def bounces(x0, p, end):
    """The same by formulas: states at the end and the first impact times of all balls."""
    states, impacts = [], []
    for q, v in x0:
        t, first = torch.zeros((), dtype=F64), None
        while True:
            fall = (v + torch.sqrt(v * v + 2 * p[0] * q)) / p[0]
            if t + fall > end:
                break
            t, v, q = t + fall, -p[1] * (v - p[0] * fall), torch.zeros((), dtype=F64)
            first = t if first is None else first
        r = end - t
        states.append(torch.stack((q + v * r - 0.5 * p[0] * r * r, v - p[0] * r)))
        impacts.append(first)
    return torch.stack(states), torch.stack(impacts)


@pytest.mark.parametrize(("solver", "how"), METHODS)
@pytest.mark.parametrize("adjoint", [None, "checkpoint"])
def test_a_bouncing_ball_has_the_gradients_of_its_formula(solver, how, adjoint):
    """Three balls, up to six impacts each: by heights, speeds, gravity, restitution and the end, to 1e-8."""
    gradients = []
    for formula in (False, True):
        x0 = torch.tensor([[1.0, 0.0], [2.0, 0.3], [0.1, -0.2]], dtype=F64, requires_grad=True)
        p = torch.tensor([9.81, 0.8], dtype=F64, requires_grad=True)
        end = torch.tensor(0.9, dtype=F64, requires_grad=True)
        if formula:
            states, impacts = bounces(x0, p, end)
        else:
            ts = torch.cat((torch.tensor([0.0, 0.35], dtype=F64), end[None]))
            done = solve(ball, x0, ts, None, p, solver=solver, adjoint=adjoint, events=BOUNCE, **how)
            states, impacts = done.xs[-1], done.events.times[0]
            assert int((done.events.which[:, 2] == 0).sum()) == 6
        loss = (states * torch.tensor([1.0, 2.0], dtype=F64)).sum() + impacts.square().sum()
        gradients.append((states.detach(), impacts.detach(), *torch.autograd.grad(loss, (x0, p, end))))
    for got, right in zip(*gradients, strict=True):
        assert torch.allclose(got, right, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("solver", "how"), METHODS)
def test_release_at_an_angle_that_is_a_parameter(solver, how):
    """A stone on a spinning arm, released where the arm points to p: the range by formula and its gradients.

    x = [x, y, vx, vy]; held on a circle of radius 1 at angular velocity w until the angle is p, then free flight.
    """
    g, w = 9.81, 4.0

    def thrown(t, x, u, p):
        # [position, velocity], the third half says whether the stone flies
        flies = x[..., 4]
        ax = -(w**2) * x[..., 0] * (1 - flies)
        ay = -(w**2) * x[..., 1] * (1 - flies) - g * flies
        return torch.stack((x[..., 2], x[..., 3], ax, ay, torch.zeros_like(ax)), -1)

    if solver == "stormer_verlet":
        pytest.skip("the state is not [q, v]")
    release = Event(
        lambda t, x, u, p: torch.atan2(x[..., 1], x[..., 0]) - p,
        lambda t, x, u, p: torch.cat((x[..., :4], torch.ones_like(x[..., :1])), -1),
        direction=1,
    )
    angle = torch.tensor([0.5, 0.9, 1.2], dtype=F64, requires_grad=True)
    x0 = torch.tensor([[1.0, 0.0, 0.0, w, 0.0]], dtype=F64).expand(3, 5)
    how = {**how, "rtol": 1e-12, "atol": 1e-12} if "dt" not in how else {**how, "dt": 0.001}
    done = solve(thrown, x0, [0.0, 0.6], None, angle, solver=solver, events=release, **how)
    (got,) = torch.autograd.grad(done.xs[-1, :, :2].sum() + done.events.times[0].sum(), angle)

    free = torch.tensor([0.5, 0.9, 1.2], dtype=F64, requires_grad=True)
    t = free / w
    r = 0.6 - t
    x = torch.cos(free) - w * torch.sin(free) * r
    y = torch.sin(free) + w * torch.cos(free) * r - 0.5 * g * r * r
    (right,) = torch.autograd.grad((x + y + t).sum(), free)
    accuracy = 1e-8 if solver in ("tsit5", "dopri5", "rodas5p", "rk4") else 1e-4
    assert torch.allclose(done.events.times[0], free / w, atol=accuracy)
    assert torch.allclose(done.xs[-1, :, 0], x, atol=accuracy)
    assert torch.allclose(got, right, atol=10 * accuracy if accuracy > 1e-8 else 1e-8)


RISE = lambda t, x, u, p: torch.ones_like(x)
ZERO = torch.zeros(3, 1, dtype=F64)


def levels(*values, **options):
    return [Event(lambda t, x, u, p, v=v: x[..., 0] - v, **options) for v in values]


@pytest.mark.parametrize("how", [{}, {"solver": "rk4", "dt": 0.25}])
def test_a_terminal_event_ends_its_rollout_only(how):
    stop = Event(lambda t, x, u, p: x[..., 0] - p, terminal=True)
    p = torch.tensor([0.3, 5.0, 0.7], dtype=F64, requires_grad=True)
    done = solve(RISE, ZERO, [0.0, 0.25, 0.5, 1.0], None, p, events=stop, **how)
    assert done.stopped.tolist() == [True, False, True]
    assert done.xs[:, 0, 0].tolist() == pytest.approx([0.0, 0.25, 0.3, 0.3])
    assert done.xs[:, 1, 0].tolist() == pytest.approx([0.0, 0.25, 0.5, 1.0])
    assert done.events.times[0].tolist() == pytest.approx([0.3, float("inf"), 0.7])
    assert done.events.which[0].tolist() == [0, -1, 0]
    assert torch.isnan(done.events.states[0, 1])
    assert done.ok.all()
    (by_p,) = torch.autograd.grad(done.xs[2].sum() + done.xs[3].sum(), p)
    assert by_p.tolist() == pytest.approx([2.0, 0.0, 1.0])


def test_several_events_in_one_step_fire_in_order():
    done = solve(RISE, ZERO, [0.0, 1.0], solver="rk4", dt=1.0, events=levels(0.7, 0.2, 0.5))
    assert done.events.times[:, 0].tolist() == pytest.approx([0.2, 0.5, 0.7])
    assert done.events.which[:, 0].tolist() == [1, 2, 0]


def test_of_events_at_the_same_time_the_first_in_the_list_fires():
    done = solve(RISE, ZERO, [0.0, 1.0], events=levels(0.5, 0.5))
    assert done.events.which[:, 0].tolist() == [0]


def test_an_event_that_holds_at_the_start_does_not_fire_until_it_has_left_zero():
    sine = lambda t, x, u, p: torch.stack((x[..., 1], -x[..., 0]), -1)
    x0 = torch.tensor([[0.0, 1.0]], dtype=F64)
    done = solve(sine, x0, [0.0, 7.0], events=Event(lambda t, x, u, p: x[..., 0]), rtol=1e-10, atol=1e-10)
    assert done.events.times[:, 0].tolist() == pytest.approx([torch.pi, 2 * torch.pi], abs=1e-8)
    falling = solve(sine, x0, [0.0, 7.0], events=Event(lambda t, x, u, p: x[..., 0], direction=-1))
    assert falling.events.times[:, 0].tolist() == pytest.approx([torch.pi], abs=1e-5)
    rising = solve(sine, x0, [0.0, 7.0], events=Event(lambda t, x, u, p: x[..., 0], direction=1))
    assert rising.events.times[:, 0].tolist() == pytest.approx([2 * torch.pi], abs=1e-5)


def test_a_grazing_event_does_not_fire():
    """(t - 0.5)² touches zero; lowered a little it crosses twice."""
    touch = Event(lambda t, x, u, p: (x[..., 0] - 0.5) ** 2 - p)
    grazed = solve(
        RISE, ZERO, [0.0, 1.0], None, torch.tensor(0.0, dtype=F64), events=touch, solver="rk4", dt=0.3
    )
    assert len(grazed.events.times) == 0
    crossed = solve(
        RISE, ZERO, [0.0, 1.0], None, torch.tensor(0.01, dtype=F64), events=touch, solver="rk4", dt=0.3
    )
    assert crossed.events.times[:, 0].tolist() == pytest.approx([0.4, 0.6])


def test_two_crossings_in_a_step_are_seen_if_a_sample_lies_between():
    band = Event(lambda t, x, u, p: (x[..., 0] - 0.5) ** 2 - 0.01)  # crosses at 0.4 and 0.6
    seen = solve(RISE, ZERO, [0.0, 1.0], solver="rk4", dt=1.0, events=band)
    assert seen.events.times[:, 0].tolist() == pytest.approx([0.4, 0.6])
    missed = solve(RISE, ZERO, [0.0, 1.0], solver="rk4", dt=1.0, events=band, event_samples=1)
    assert len(missed.events.times) == 0


def test_events_look_at_the_control_that_acts():
    drive = lambda t, x, u, p: u.expand_as(x)
    u = torch.tensor([[1.0], [-1.0]], dtype=F64)
    done = solve(drive, ZERO, [0.0, 1.0], u, control_times=[0.0, 0.5], events=levels(0.4))
    assert done.events.times[:, 0].tolist() == pytest.approx([0.4, 0.6])


def test_a_ball_that_comes_to_rest_is_an_error_that_says_so():
    p = torch.tensor([9.81, 0.5], dtype=F64)
    x0 = torch.tensor([[1.0, 0.0], [100.0, 0.0]], dtype=F64)
    with pytest.raises(
        SolveError, match=r"more events than max_events for 1 of 2 rollouts \(number 0\): t = 1\.3"
    ):
        solve(ball, x0, [0.0, 3.0], None, p, events=BOUNCE, max_events=12)
    done = solve(ball, x0, [0.0, 1.0, 3.0], None, p, events=BOUNCE, max_events=12, on_failure="mark")
    assert done.status.tolist() == [Failure.MAX_EVENTS, Failure.NONE]
    assert torch.isnan(done.xs[2, 0]).all()
    assert torch.isfinite(done.xs[1]).all()
    assert torch.isfinite(done.xs[:, 1]).all()


def test_batched_events_equal_single_ones():
    x0 = torch.rand(16, 2, dtype=F64, generator=torch.Generator().manual_seed(0)) + 0.2
    p = torch.tensor([9.81, 0.7], dtype=F64)
    together = solve(ball, x0, [0.0, 1.0], None, p, events=BOUNCE)
    for b in range(16):
        alone = solve(ball, x0[b : b + 1], [0.0, 1.0], None, p, events=BOUNCE)
        count = len(alone.events.times)
        assert torch.equal(together.xs[:, b], alone.xs[:, 0])
        assert torch.equal(together.events.times[:count, b], alone.events.times[:, 0])


def test_events_backwards_in_time():
    done = solve(RISE, torch.ones(2, 1, dtype=F64), [1.0, 0.0], events=levels(0.25))
    assert done.events.times[0].tolist() == pytest.approx([0.25, 0.25])


def test_bad_events_are_named():
    with pytest.raises(ValueError, match="direction is -1, 0 or 1, got 2"):
        Event(lambda t, x, u, p: x, direction=2)
    with pytest.raises(TypeError, match="must be callable"):
        Event(3.0)
    with pytest.raises(ValueError, match=r"one value a rollout, \(3,\), got \(3, 1\)"):
        solve(RISE, ZERO, [0.0, 1.0], events=Event(lambda t, x, u, p: x))
    with pytest.raises(ValueError, match=r"must return states \(3, 1\), got \(3,\)"):
        solve(RISE, ZERO, [0.0, 1.0], events=levels(0.5, jump=lambda t, x, u, p: x[..., 0]))


def test_a_tensor_that_an_event_captures_is_not_lost():
    level = torch.tensor(0.5, dtype=F64, requires_grad=True)
    event = Event(lambda t, x, u, p: x[..., 0] - level)
    done = solve(RISE, ZERO, [0.0, 1.0], events=event)
    (by_level,) = torch.autograd.grad(done.events.times.sum(), level)
    assert by_level.item() == pytest.approx(3.0)
    with pytest.raises(ValueError, match="neither in u nor in p"):
        solve(RISE, ZERO, [0.0, 1.0], events=event, adjoint="checkpoint")


@pytest.mark.parametrize("direction", [0, -1])
def test_a_jump_away_from_zero_ends_the_event(direction):
    """x falls through 0.5 and is lifted by 1: the function no longer holds, and fires again when it falls back."""
    event = Event(lambda t, x, u, p: x[..., 0] - 0.5, lambda t, x, u, p: x + 1, direction=direction)
    decay = lambda t, x, u, p: -x
    done = solve(decay, torch.ones(1, 1, dtype=F64), [0.0, 2.0], events=event, rtol=1e-10, atol=1e-10)
    first, second = torch.log(torch.tensor([2.0, 6.0], dtype=F64))
    assert done.events.times[:, 0].tolist() == pytest.approx([first.item(), second.item()], abs=1e-8)


@pytest.mark.parametrize("adjoint", ["backprop", "checkpoint"])
def test_a_jump_that_is_undefined_elsewhere_spoils_no_gradient(adjoint):
    """The jump's square root exists near the floor only; the second ball never gets there."""
    jump = lambda t, x, u, p: -0.5 * x * torch.sqrt(3 - x[..., :1]) / 3**0.5
    event = Event(lambda t, x, u, p: x[..., 0], jump, direction=-1)
    p = torch.tensor([9.81, 0.0], dtype=F64, requires_grad=True)
    x0 = torch.tensor([[1.0, 0.0], [20.0, 0.5]], dtype=F64, requires_grad=True)
    xs = solve(ball, x0, [0.0, 0.3, 0.8], None, p, events=event, adjoint=adjoint, rtol=1e-10, atol=1e-10).xs
    by_x0, by_p = torch.autograd.grad(xs[-1, :, 1].sum(), (x0, p))
    # the first ball: v = v(impact)/-2 - g (0.8 - t), t = sqrt(2 q / g); the second: v0 - g
    q, g = 1.0, 9.81
    assert by_x0[1].tolist() == pytest.approx([0.0, 1.0])
    assert by_x0[0, 0].item() == pytest.approx(
        0.5 * (g / (2 * q)) ** 0.5 + g * (1 / (2 * g * q)) ** 0.5, rel=1e-7
    )
    assert torch.isfinite(by_p).all()


def test_an_event_function_must_be_a_number():
    with pytest.raises(TypeError, match=r"return x\[..., 0\] - limit instead"):
        solve(RISE, ZERO, [0.0, 1.0], events=Event(lambda t, x, u, p: x[..., 0] > 0.5))


# An output at the time of an event.  x' = 1 from x(0) = 0; at the level p the state jumps by 10, at time p.
LEVEL = Event(lambda t, x, u, p: x[..., 0] - p, lambda t, x, u, p: x + 10)
CLOCK = Event(lambda t, x, u, p: t - p, lambda t, x, u, p: x + 10)
AT_ONCE = [
    ("tsit5", {}),
    ("dopri5", {"controller": StepSizeController(first_step=0.1, max_step=0.1)}),
    ("rodas5p", {}),
    ("tsit5", {"dt": 0.1}),
    ("rk4", {"dt": 0.1}),
    ("rk4", {"dt": 0.07}),
    ("euler", {"dt": 0.05}),
    ("sdirk3", {"dt": 0.1}),
    ("rkc", {"dt": 0.1}),
    ("tsit5", {"backend": "native"}),
]


@pytest.mark.parametrize(("solver", "how"), AT_ONCE)
@pytest.mark.parametrize("event", [LEVEL, CLOCK], ids=["state", "time"])
@pytest.mark.parametrize(
    ("at", "dtype"),
    [(0.5, F64), (0.3, F64), (0.7, F64), (0.3, torch.float32)],
    ids=["half", "0.3", "0.7", "float32"],
)
def test_an_output_at_the_time_of_an_event_is_after_its_jump(solver, how, event, at, dtype):
    """As an inner output, as the end, at a switch of the control, with times per rollout, backwards in time."""
    p, zero = torch.tensor(at, dtype=dtype), torch.zeros(2, 1, dtype=dtype)
    rows = torch.tensor([[0.0, 0.0], [at, at], [1.0, 1.5]], dtype=dtype)
    back = Event(lambda t, x, u, p: event.function(-t, x, u, p), event.jump)
    cases = {
        "inner": (RISE, [0.0, at, 1.0], event, {}),
        "end": (RISE, [0.0, at], event, {}),
        "switch": (RISE, [0.0, at, 1.0], event, {"u": torch.zeros(2, 1), "control_times": [0.0, at]}),
        "backwards": (lambda t, x, u, p: -RISE(t, x, u, p), [0.0, -at, -1.0], back, {}),
    }
    if "dt" not in how:
        cases["per rollout"] = (RISE, rows, event, {})
    for name, (f, ts, one, more) in cases.items():
        done = solve(f, zero, ts, p=p, solver=solver, events=one, **how, **more)
        assert done.events.which.tolist() == [[0, 0]], name
        assert done.xs[1, :, 0].tolist() == pytest.approx([10 + at] * 2, rel=1e-4), name
        assert done.xs[-1, 0, 0].item() == pytest.approx(
            10 + abs(float(done.ts[-1].reshape(-1)[0])), rel=1e-4
        ), name


@pytest.mark.parametrize(("solver", "how"), AT_ONCE)
@pytest.mark.parametrize("event", [LEVEL, CLOCK], ids=["state", "time"])
def test_a_terminal_event_at_an_output_ends_with_the_state_after_it(solver, how, event):
    stop = Event(event.function, event.jump, terminal=True)
    for ts in ([0.0, 0.3, 1.0], [0.0, 0.3]):
        done = solve(RISE, ZERO, ts, p=torch.tensor(0.3, dtype=F64), solver=solver, events=stop, **how)
        assert done.stopped.all()
        assert torch.allclose(done.xs[1:], torch.full_like(done.xs[1:], 10.3))


@pytest.mark.parametrize(("solver", "how"), AT_ONCE)
@pytest.mark.parametrize("event", [LEVEL, CLOCK], ids=["state", "time"])
def test_no_event_fires_at_the_start(solver, how, event):
    """Its function is zero there, or not by rounding alone: 0.1 + 0.2 is above 0.3."""
    for start in (0.3, 0.1 + 0.2):
        x0 = torch.full((2, 1), 0.3, dtype=F64)
        p = torch.tensor(0.3 if event is CLOCK and start == 0.3 else 0.1 + 0.2, dtype=F64)
        done = solve(RISE, x0, [0.3, 0.65, 1.0], p=p, solver=solver, events=event, **how)
        assert len(done.events.times) == 0
        assert torch.equal(done.xs[0], x0)
        assert done.xs[-1, :, 0].tolist() == pytest.approx([1.0, 1.0])


def test_events_that_coincide_but_for_rounding_fire_once():
    """The first in the list, whichever is located first."""
    also = Event(lambda t, x, u, p: 3 * x[..., 0] - 3 * p, lambda t, x, u, p: x + 100)
    for events in ((LEVEL, also), (also, LEVEL), (CLOCK, also), (also, CLOCK)):
        for solver, how in AT_ONCE[1:6:2]:
            done = solve(RISE, ZERO, [0.0, 0.3, 1.0], p=0.3, solver=solver, events=events, **how)
            assert done.events.which.tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("adjoint", [None, "checkpoint"])
@pytest.mark.parametrize(("solver", "how"), AT_ONCE[:-1])
@pytest.mark.parametrize("place", ["inner", "end", "fixed"])
def test_the_gradient_of_an_output_at_an_event_is_that_of_the_time_after_it(solver, how, place, adjoint):
    """x' = 2 up to the level p, then x' = x: with T the output, x(T) = 3p + (3p) (T - p/2) beside T = p/2."""
    grow = lambda t, x, u, p: torch.where(x < 1, 2.0 + 0 * x, x)
    event = Event(lambda t, x, u, p: x[..., 0] - p, lambda t, x, u, p: 3 * x)
    p = torch.tensor(0.6, dtype=F64, requires_grad=True)
    at = torch.tensor(0.3, dtype=F64, requires_grad=True)
    ends = [] if place == "end" else [torch.tensor(0.5, dtype=F64)]
    ts = torch.stack((torch.zeros((), dtype=F64), at, *ends))
    if place == "fixed" and "dt" not in how:
        pytest.skip("no steps of fixed length")
    done = solve(grow, ZERO, ts, None, p, solver=solver, events=event, adjoint=adjoint, **how)
    assert done.xs[1, :, 0].tolist() == pytest.approx([1.8] * 3)
    by_p, by_at = torch.autograd.grad(done.xs[1, 0].sum(), (p, at))
    accuracy = 1e-6 if solver != "rodas5p" else 1e-5  # of the slope of its dense output
    assert by_at.item() == pytest.approx(1.8, rel=accuracy)
    assert by_p.item() == pytest.approx(3 - 1.8 / 2, rel=accuracy)


def test_a_jump_at_the_time_of_a_switch_uses_the_control_before_it():
    """The event comes first, then the switch, then the output."""
    drive = lambda t, x, u, p: u.expand_as(x)
    event = Event(lambda t, x, u, p: t - 0.3, lambda t, x, u, p: x + 10 * u)
    u = torch.tensor([[1.0], [-2.0]], dtype=F64)
    for solver, how in AT_ONCE:
        done = solve(
            drive, ZERO, [0.0, 0.3, 1.0], u, control_times=[0.0, 0.3], solver=solver, events=event, **how
        )
        assert done.xs[1, :, 0].tolist() == pytest.approx([10.3] * 3)
        assert done.xs[2, :, 0].tolist() == pytest.approx([10.3 - 1.4] * 3)


def test_the_repr_of_an_event_is_short():
    assert repr(BOUNCE) == "Event(<lambda>, jump=<lambda>, terminal=False, direction=-1)"
    log = solve(RISE, ZERO, [0.0, 1.0], events=levels(0.3, 0.6)).events
    assert repr(log) == "EventLog(6 events, 2 per rollout)"
