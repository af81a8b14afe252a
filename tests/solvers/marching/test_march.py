"""The loop, with scripted methods and controllers: exact counts of attempts, evaluations, rejections and saves."""

import pytest
import torch
from stubs import F64, AdaptiveStub, CountedField, Script, StubMethod, batch

from solvers import Event, Failure, SolveError, solve
from solvers.marching.arguments import checked_problem
from solvers.marching.march import march

TWO = torch.zeros(2, 1, dtype=F64)
ONE = torch.zeros(1, 1, dtype=F64)


def problem(f, x0, ts, method, **options):
    """A checked problem; f is not evaluated."""
    every = {
        "dt": None, "rtol": None, "atol": None, "control_times": None, "events": (), "on_failure": "raise",
        "max_steps": None, "controller": None, "event_samples": 4, "max_events": 100,
    }  # fmt: skip
    u = options.pop("u", None)
    return checked_problem(f, x0, ts, u, None, solver=method, **{**every, **options})


def test_equal_steps_are_taken_once_each_by_step():
    """[0, 0.5] and [0.5, 2] in steps of at most 0.5: four, each of one call and one evaluation at a scalar time."""
    method, f = StubMethod(), CountedField()
    done = solve(f, TWO, [0.0, 0.5, 2.0], solver=method, dt=0.5)
    assert method.calls == [(0.0, 0.5), (0.5, 0.5), (1.0, 0.5), (1.5, 0.5)]
    assert f.times == [0.0, 0.0, 0.5, 1.0, 1.5]  # the check, and one a step
    assert done.statistics.evaluations == 4
    assert done.statistics.accepted.tolist() == [4, 4]
    assert done.statistics.rejected.tolist() == [0, 0]
    assert done.xs[..., 0].tolist() == [[0.0, 0.0], [0.5, 0.5], [2.0, 2.0]]


def test_a_march_of_fixed_length_takes_the_same_steps_with_a_time_for_every_rollout():
    method, f = StubMethod(), CountedField()
    track = march(problem(f, TWO, [0.0, 0.5, 2.0], method, dt=0.5))
    assert method.calls == [([t, t], [0.5, 0.5]) for t in (0.0, 0.5, 1.0, 1.5)]
    assert f.times == [[t, t] for t in (0.0, 0.5, 1.0, 1.5)]
    assert [s.leg for s in track.strides] == [0, 1, 2, 3]
    assert [s.x[0].item() for s in track.strides] == [0.0, 0.5, 1.0, 1.5]
    assert track.outputs.xs[..., 0].tolist() == [[0.0, 0.0], [0.5, 0.5], [2.0, 2.0]]
    assert track.x[:, 0].tolist() == track.t.tolist() == [2.0, 2.0]


def test_an_adaptive_march_attempts_what_the_controller_says():
    """Accepted, rejected and halved, accepted, accepted: attempts, evaluations and what is asked of the controller."""
    method, f = AdaptiveStub(), CountedField()
    script = Script(first=0.5, errors=[[0.25], [4.0], [0.5], [0.5]])
    done = solve(f, ONE, [0.0, 1.0], solver=method, controller=script)
    assert method.calls == [([0.0], [0.5]), ([0.5], [0.5]), ([0.5], [0.25]), ([0.75], [0.25])]
    assert done.statistics.accepted.tolist() == [3]
    assert done.statistics.rejected.tolist() == [1]
    assert done.statistics.evaluations == 1 + 4  # at the start, and one at the end of every attempt
    assert script.asked_first == [([0.0], [[1.0]], [1.0], 3)]
    # The error before is that of the last accepted step that did not end the leg, 1 at first.
    assert script.asked_factor == [
        ([0.25], [1.0], 3),
        ([4.0], [0.25], 3),
        ([0.5], [0.25], 3),
        ([0.5], [0.5], 3),
    ]
    assert done.xs[:, 0, 0].tolist() == [0.0, 1.0]


def test_every_rollout_has_its_own_steps_and_the_finished_ones_stand_still():
    """Rollout 0 arrives in two steps; rollout 1 is rejected once, and then takes two more."""
    method = AdaptiveStub()
    script = Script(first=0.5, errors=[[0.5, 2.0], [0.5, 0.5]])
    track = march(problem(CountedField(), TWO, [0.0, 1.0], method, controller=script))
    assert [s.h.tolist() for s in track.strides] == [
        [0.5, 0.0],
        [0.5, 0.25],
        [0.0, 0.25],
        [0.0, 0.25],
        [0.0, 0.25],
    ]
    assert [t for t, _ in method.calls] == [[0.0, 0.0], [0.5, 0.0], [1.0, 0.25], [1.0, 0.5], [1.0, 0.75]]
    assert [s.to_target[0].item() for s in track.strides] == [False, True, False, False, False]
    assert [s.to_target[1].item() for s in track.strides] == [False, False, False, False, True]
    assert track.accepted.tolist() == [2, 4]
    assert track.rejected.tolist() == [0, 1]
    assert script.asked_error == 5


def test_outputs_inside_a_step_are_read_from_its_dense_output_once():
    method = AdaptiveStub()
    track = march(problem(CountedField(), ONE, [0.0, 0.125, 0.25, 0.75, 1.0], method, controller=Script(0.5)))
    # In the first step 0.125 and 0.25, in the second 0.75; the last output is the end of the leg itself.
    assert method.thetas == [[[0.25], [0.5]], [[0.5]]]
    assert [None if s.inside is None else s.inside[0] for s in track.strides] == [[1, 2], [3]]
    assert track.outputs.xs[:, 0, 0].tolist() == [0.0, 0.125, 0.25, 0.75, 1.0]


def test_a_rejected_step_saves_nothing():
    method = AdaptiveStub()
    script = Script(first=1.0, errors=[[2.0]])
    track = march(problem(CountedField(), ONE, [0.0, 0.25, 1.0], method, controller=script))
    assert [h for _, h in method.calls] == [[1.0], [0.5], [0.5]]
    assert method.thetas == [[[0.5]]]
    assert track.outputs.xs[:, 0, 0].tolist() == [0.0, 0.25, 1.0]


def test_a_step_shortened_by_a_leg_does_not_shorten_the_next_one():
    """Switches at 0.25 and 1: the proposal of 0.5 outlives the leg of 0.25, and f is evaluated anew after a switch."""
    method, f = AdaptiveStub(), CountedField(lambda t, x, u, p: u.expand_as(x))
    u = batch(1.0, -2.0, 4.0).unsqueeze(-1)
    script = Script(first=0.5)
    options = {"u": u, "control_times": [0.0, 0.25, 1.0], "controller": script}
    track = march(problem(f, ONE, [0.0, 2.0], method, **options))
    assert method.calls == [
        ([t], [h]) for t, h in ((0.0, 0.25), (0.25, 0.5), (0.75, 0.25), (1.0, 0.5), (1.5, 0.5))
    ]
    assert [s.leg for s in track.strides] == [0, 1, 1, 2, 2]
    assert f.times == [[t] for t in (0.0, 0.25, 0.25, 0.75, 1.0, 1.0, 1.5, 2.0)]
    assert track.x.item() == 0.25 - 2 * 0.75 + 4.0


def test_no_step_is_longer_than_the_controller_allows():
    method = AdaptiveStub()
    script = Script(first=1.0, factors=[[8.0]] * 4, max_step=0.25)
    solve(CountedField(), ONE, [0.0, 1.0], solver=method, controller=script)
    assert [h for _, h in method.calls] == [[0.25]] * 4


def test_a_march_backwards_takes_the_steps_of_the_mirrored_one():
    method, f = AdaptiveStub(), CountedField()
    done = solve(f, ONE, [1.0, 0.0], solver=method, controller=Script(0.5))
    assert method.calls == [([-1.0], [0.5]), ([-0.5], [0.5])]
    assert f.times[-3:] == [[1.0], [0.5], [0.0]]
    assert done.xs[:, 0, 0].tolist() == [0.0, -1.0]


def test_frozen_rollouts_take_no_step():
    method = StubMethod()
    asked = problem(CountedField(), TWO, [0.0, 1.0], method, dt=0.5)
    track = march(asked, frozen=torch.tensor([True, False]))
    assert [h for _, h in method.calls] == [[0.0, 0.5]] * 2
    assert track.accepted.tolist() == [0, 2]
    assert track.x[:, 0].tolist() == [0.0, 1.0]


@pytest.mark.parametrize("keep", ["states", "steps", "nothing"])
def test_a_track_holds_what_is_asked_for(keep):
    asked = problem(CountedField(), ONE, [0.0, 1.0], StubMethod(), dt=0.25)
    strides = march(asked, keep=keep).strides
    assert len(strides) == {"states": 4, "steps": 4, "nothing": 0}[keep]
    assert all((s.t is not None and s.x is not None) is (keep == "states") for s in strides)


def test_a_visitor_gets_every_stride_instead_of_the_track():
    seen = []
    track = march(problem(CountedField(), ONE, [0.0, 1.0], StubMethod(), dt=0.25), visit=seen.append)
    assert [(s.t.item(), s.h.item()) for s in seen] == [(0.0, 0.25), (0.25, 0.25), (0.5, 0.25), (0.75, 0.25)]
    assert track.strides == []


# Failures.


def late(t, h):
    """Spoils the step of rollout 1 that starts at 0.5."""
    return torch.tensor([False, True]) & (t == 0.5)


def test_a_failure_ends_the_march_at_once_or_the_rollout_alone():
    method = StubMethod(broken=late)
    track = march(problem(CountedField(), TWO, [0.0, 1.0], method, dt=0.25))
    assert len(method.calls) == len(track.strides) == 3
    assert track.status.tolist() == [Failure.SUCCESS, Failure.NOT_FINITE]
    assert track.t.tolist() == [0.75, 0.5]
    assert track.last_step.tolist() == [0.25, 0.25]

    method.calls.clear()
    track = march(problem(CountedField(), TWO, [0.0, 0.25, 1.0], method, dt=0.25), stop_at_failure=False)
    assert [h for _, h in method.calls] == [[0.25, 0.25]] * 3 + [[0.25, 0.0]]
    assert track.accepted.tolist() == [4, 2]
    assert track.rejected.tolist() == [0, 1]
    assert track.x[:, 0].tolist() == [1.0, 0.5]


def test_marked_rollouts_are_nan_after_their_last_known_output():
    done = solve(
        CountedField(), TWO, [0.0, 0.25, 1.0], solver=StubMethod(broken=late), dt=0.25, on_failure="mark"
    )
    assert done.xs[:2, :, 0].tolist() == [[0.0, 0.0], [0.25, 0.25]]
    assert done.xs[2, 0].item() == 1.0
    assert done.xs[2, 1].isnan().all()
    assert done.ok.tolist() == [True, False]


def test_equal_steps_that_fail_are_marched_again_to_say_where():
    """Steps by ``step``, which are finite, do not fail; a field that is NaN does, and is found by ``attempt``."""
    method = StubMethod()
    f = CountedField(lambda t, x, u, p: torch.where(torch.as_tensor(t) < 0.5, 1.0, torch.nan) * x.exp())
    with pytest.raises(
        SolveError, match=r"for 2 of 2 rollouts \(numbers 0, 1\): the first of them at t = 0\.5"
    ):
        solve(f, TWO, [0.0, 1.0], solver=method, dt=0.25)
    assert len(method.calls) == 4 + 3
    assert f.times == [0.0, *[0.0, 0.25, 0.5, 0.75], *[0.0, 0.25, 0.5]]  # the check, the steps, the march


def test_a_newton_iteration_that_does_not_converge():
    method = StubMethod(converged=lambda t, h: t < 0.5)
    with pytest.raises(SolveError, match="Newton iteration did not converge for 1 of 1"):
        solve(
            CountedField(),
            ONE,
            [0.0, 1.0],
            solver=method,
            dt=0.25,
            events=Event(lambda t, x, u, p: x[..., 0] + 1),
        )
    track = march(problem(CountedField(), ONE, [0.0, 1.0], method, dt=0.25))
    assert track.status.tolist() == [Failure.NEWTON]
    assert track.accepted.tolist() == [2]


def test_halving_steps_underflow_after_a_known_number():
    """From 1 down to 1e-25 of the leg, at t = 0 where no rounding of the time is in the way: 84 halvings."""
    method = AdaptiveStub()
    rejecting = Script(first=1.0, errors=[[2.0]] * 200)
    track = march(problem(CountedField(), ONE, [0.0, 1.0], method, controller=rejecting))
    assert track.status.tolist() == [Failure.STEP_UNDERFLOW]
    assert track.rejected.tolist() == [84]
    assert track.last_step.item() == 0.5**83
    assert track.accepted.tolist() == [0]


def test_an_infinite_error_is_given_to_the_controller_where_a_step_is_not_finite():
    method = AdaptiveStub(broken=lambda t, h: h > 0.25)
    script = Script(first=1.0)
    done = solve(CountedField(), ONE, [0.0, 0.5], solver=method, controller=script)
    assert [h for _, h in method.calls] == [[0.5], [0.25], [0.25]]
    assert script.asked_factor[0] == ([float("inf")], [1.0], 3)
    assert done.statistics.rejected.tolist() == [1]


@pytest.mark.parametrize("limit", [1, 3])
def test_the_limit_of_steps_counts_attempts(limit):
    """One of the attempts is rejected and counts; the last step may be the one that arrives."""
    script = lambda: Script(first=0.25, errors=[[2.0]], factors=[[1.0]] * 9)
    method = AdaptiveStub()
    with pytest.raises(SolveError, match="max_steps was reached"):
        solve(CountedField(), ONE, [0.0, 1.0], solver=method, controller=script(), max_steps=limit)
    assert len(method.calls) == limit
    method.calls.clear()
    assert solve(CountedField(), ONE, [0.0, 1.0], solver=method, controller=script(), max_steps=5).ok.all()
    assert len(method.calls) == 5


def test_a_limit_below_the_number_of_equal_steps_is_a_failure():
    method = StubMethod()
    with pytest.raises(SolveError, match="max_steps was reached"):
        solve(CountedField(), ONE, [0.0, 1.0], solver=method, dt=0.25, max_steps=3)
    assert len(method.calls) == 3


# Events.

FLOOR = Event(lambda t, x, u, p: x[..., 0] - 0.375, direction=1)


def strides_of(track):
    return [(s.t.tolist(), s.h.tolist()) for s in track.strides]


def test_a_step_ends_at_an_event_and_the_next_begins_there():
    jump = Event(FLOOR.function, jump=lambda t, x, u, p: x - 8.0, direction=1)
    asked = problem(CountedField(), ONE, [0.0, 0.5, 1.0], StubMethod(), dt=0.25, events=jump)
    track = march(asked)
    starts, lengths = zip(*strides_of(track), strict=True)
    assert starts == ([0.0], [0.25], [0.375], [0.5], [0.75])
    assert lengths == ([0.25], [0.125], [0.125], [0.25], [0.25])
    assert [None if s.event is None else s.event.tolist() for s in track.strides] == [
        None,
        [0],
        None,
        None,
        None,
    ]
    assert track.outputs.event_times.tolist() == [[0.375]]
    assert track.outputs.event_states.tolist() == [[[0.375]]]
    assert track.outputs.xs[:, 0, 0].tolist() == [0.0, -7.5, -7.0]
    assert track.accepted.tolist() == [5]
    assert track.rejected.tolist() == [0]


def test_a_terminal_event_stops_its_rollout_alone():
    x0 = batch(0.0, -8.0).unsqueeze(-1)
    stop = Event(FLOOR.function, terminal=True)
    done = solve(CountedField(), x0, [0.0, 0.25, 1.0], solver=StubMethod(), dt=0.25, events=stop)
    assert done.stopped.tolist() == [True, False]
    assert done.statistics.accepted.tolist() == [2, 4]
    assert done.xs[..., 0].tolist() == [[0.0, -8.0], [0.25, -7.75], [0.375, -7.0]]


def test_an_event_at_the_end_of_a_leg_leaves_a_step_of_length_zero():
    """The event at 0.5 is the end of a step too: the leg is entered again, and nothing fires a second time."""
    asked = problem(
        CountedField(),
        ONE,
        [0.0, 0.5, 1.0],
        StubMethod(),
        dt=0.5,
        events=Event(lambda t, x, u, p: x[..., 0] - 0.5),
    )
    track = march(asked)
    assert strides_of(track) == [([0.0], [0.5]), ([0.5], [0.0]), ([0.5], [0.5])]
    assert track.outputs.event_times.tolist() == [[0.5]]
    assert track.outputs.xs[:, 0, 0].tolist() == [0.0, 0.5, 1.0]


def test_more_events_than_allowed_are_a_failure():
    back = Event(FLOOR.function, jump=lambda t, x, u, p: x - 0.25, direction=1)
    asked = problem(CountedField(), ONE, [0.0, 2.0], StubMethod(), dt=2.0, events=back, max_events=2)
    track = march(asked)
    assert track.status.tolist() == [Failure.MAX_EVENTS]
    assert track.outputs.event_times.tolist() == [[0.375], [0.625]]
    assert track.accepted.tolist() == [2]
    assert track.t.tolist() == [0.625]


# The whole way.


def test_a_field_is_reached_through_fewer_than_eight_functions():
    """``solve`` and those between it and ``f``, by every way that our explicit methods take forwards."""
    import sys
    from pathlib import Path

    import solvers

    root = str(Path(solvers.__file__).parent)
    walks = {}

    def f(t, x, u, p):
        frame, names = sys._getframe(1), []
        while frame is not None:
            inside = frame.f_code.co_filename.startswith(root)
            if inside and not frame.f_code.co_name.startswith("<"):
                names.append(frame.f_code.co_name)
            frame = frame.f_back
        walks[tuple(reversed(names))] = None
        return -p * x

    p = torch.tensor(1.0, dtype=F64, requires_grad=True)
    for options in ({}, {"solver": "rk4", "dt": 0.5}, {"solver": "rk4", "dt": 0.5, "on_failure": "mark"}):
        for adjoint in ("backprop", "checkpoint", "adjoint"):
            solve(f, torch.ones(2, 3, dtype=F64), [0.0, 1.0], None, p, adjoint=adjoint, **options)
    assert all(walk[0] == "solve" for walk in walks)
    longest = max(walks, key=len)
    assert len(longest) < 8, longest
