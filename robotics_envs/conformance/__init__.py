"""Does a simulator keep the contract of :class:`robotics_envs.base.Env`?  ``check_env`` tells.

Each check is a function from an environment to a list of complaints; all run, so one call names
everything that is wrong.
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

__all__ = ["CHECKS", "ConformanceError", "check_env"]


class ConformanceError(AssertionError):
    """A simulator breaks the contract; the message lists every breach."""


def check_env(env: Env) -> None:
    """Put a simulator through the conformance suite.

    Raises:
        ConformanceError: with one line for each breach found.
    """
    if not isinstance(env, Env):
        raise ConformanceError(
            f"check_env takes an instance of robotics_envs.base.Env, got {env!r}; "
            "a class has to be called first: check_env(MyEnv())"
        )
    complaints = what_is_missing(env)
    for check in () if complaints else CHECKS:
        try:
            complaints += [f"{check.__name__}: {complaint}" for complaint in check(env)]
        except Exception as error:  # a crash is a breach like any other, and must not hide the rest
            complaints.append(f"{check.__name__}: {type(error).__name__}: {error}")
        if check is calls_repeat_and_change_nothing and complaints:
            break  # what follows compares calls with each other
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
)
