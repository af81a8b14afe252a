"""The conformance suite of simulators: ``check_env`` tests the contract of :class:`robotics_envs.base.Env`.

Each check is a function from an environment to a list of complaints.  All of them run, so that one call names
every breach.
"""

from __future__ import annotations

from collections.abc import Callable

from robotics_envs.base import Env
from robotics_envs.conformance.behaviour import (
    actions_are_clipped,
    angles_are_periodic,
    calls_repeat_and_change_nothing,
    dynamics_ignore_the_clock,
    methods_can_be_vmapped,
    parameters_may_differ_between_rollouts,
    rollouts_do_not_mix,
    step_follows_the_dynamics,
    steps_are_straight_line,
    values_are_finite,
    wild_episodes_stay_finite,
)
from robotics_envs.conformance.gradients import (
    gradients_agree_with_finite_differences,
    gradients_reach_every_input,
)
from robotics_envs.conformance.stated import (
    names_match_shapes,
    numbers_make_sense,
    pictures_can_be_drawn,
    reset_is_its_generator_alone,
    results_keep_shape_dtype_and_device,
    what_is_missing,
)
from robotics_envs.conformance.success import (
    success_ends_with_the_episode,
    success_gives_one_flag_a_rollout,
    success_is_declared_whole,
    success_judges_each_rollout_by_itself,
    success_repeats_and_changes_nothing,
)
from robotics_envs.user_code import UserCodeError, construct_env, describe_failure

__all__ = ["CHECKS", "ConformanceError", "check_env"]


class ConformanceError(AssertionError):
    """A simulator breaks the contract; the message lists every breach."""


def check_env(env: Env | type[Env] | str, before_each: Callable[[str], None] | None = None) -> None:
    """Run the conformance suite on a simulator: an instance, a class, or a name as ``make_env`` takes it.

    Args:
        before_each: called with the name of each check before it runs; those of large robots compile for a minute.

    Raises:
        ConformanceError: with one line for each breach found; an exception in the simulator's code is one, given by
            file and line.
    """
    if not isinstance(env, (Env, str)) and not (isinstance(env, type) and issubclass(env, Env)):
        raise ConformanceError(
            f"check_env takes a simulator (robotics_envs.base.Env): an instance, a class or a name; got {env!r}"
        )
    try:
        env = construct_env(env)
    except UserCodeError as error:
        raise ConformanceError(str(error)) from None
    complaints = what_is_missing(env)
    crashes: dict[str, list[str]] = {}
    for check in () if complaints else CHECKS:
        if before_each is not None:
            before_each(check.__name__)
        try:
            complaints += [f"{check.__name__}: {complaint}" for complaint in check(env)]
        except Exception as error:  # a crash is a breach like any other, and must not hide the rest
            line = describe_failure(error) or f"{type(error).__name__}: {error}"
            crashes.setdefault(line, []).append(check.__name__)
        if check is calls_repeat_and_change_nothing and (complaints or crashes):
            break  # the checks below compare calls with each other
    # Most checks call the same methods, so one mistake crashes many of them.
    complaints += [
        f"{checks[0]}: {line}" + (f" (also in {len(checks) - 1} more checks)" if checks[1:] else "")
        for line, checks in crashes.items()
    ]
    if complaints:
        raise ConformanceError(
            f"{type(env).__name__} breaks the environment contract:\n  " + "\n  ".join(complaints)
        )


CHECKS: tuple[Callable[[Env], list[str]], ...] = (
    numbers_make_sense,
    calls_repeat_and_change_nothing,
    dynamics_ignore_the_clock,
    names_match_shapes,
    angles_are_periodic,
    results_keep_shape_dtype_and_device,
    reset_is_its_generator_alone,
    values_are_finite,
    gradients_agree_with_finite_differences,
    gradients_reach_every_input,
    rollouts_do_not_mix,
    parameters_may_differ_between_rollouts,
    actions_are_clipped,
    wild_episodes_stay_finite,
    methods_can_be_vmapped,
    steps_are_straight_line,
    step_follows_the_dynamics,
    pictures_can_be_drawn,
    success_is_declared_whole,
    success_gives_one_flag_a_rollout,
    success_repeats_and_changes_nothing,
    success_judges_each_rollout_by_itself,
    success_ends_with_the_episode,
)
