"""Checks of ``Env.success``, for simulators that declare it."""

from __future__ import annotations

import torch
from torch import Tensor

from lazy_registry.source_places import defined_at
from robotics_envs.base import Env, Success
from robotics_envs.conformance.samples import generator

_ROLLOUTS = 48


def success_is_declared_whole(env: Env) -> list[str]:
    """A criterion in words and the method that computes it come together, or neither is there."""
    written = type(env).success is not Env.success
    criterion = env.success_criterion
    if criterion is not None and not isinstance(criterion, Success):
        return [f"success_criterion = {criterion!r}: a robotics_envs.base.Success is needed"]
    if written and criterion is None:
        return [
            "success is written and success_criterion is missing: set it as a class attribute (a "
            "robotics_envs.base.Success of words, share and source)"
        ]
    if criterion is not None and not written:
        return ["success_criterion is set and success(states) is missing, which computes it"]
    return []


def success_gives_one_flag_a_rollout(env: Env) -> list[str]:
    """Also on the meta device, which finds tensors made on the wrong one."""
    if not _declared(env):
        return []
    complaints = []
    for dtype in (torch.float32, torch.float64):
        for device in ("cpu", "meta"):
            states = _episodes(env, dtype).to(device)
            flags = env.success(states)
            if not isinstance(flags, Tensor):
                return [f"success gives {type(flags).__name__}, a torch tensor is needed"]
            if (flags.shape, flags.dtype, flags.device.type) != (states.shape[1:2], torch.bool, device):
                complaints.append(
                    f"success gives {list(flags.shape)} {flags.dtype} on {flags.device.type} for states "
                    f"{list(states.shape)} {dtype}, wanted {[states.shape[1]]} torch.bool on "
                    f"{device}{defined_at(env.success)}"
                )
    return complaints


def success_repeats_and_changes_nothing(env: Env) -> list[str]:
    if not _declared(env):
        return []
    states, before = _episodes(env), torch.get_rng_state()
    given = states.clone()
    first, second = env.success(given), env.success(states.clone())
    complaints = []
    if not torch.equal(given, states):
        complaints.append("success writes into the states it is given")
    elif not torch.equal(first, second):
        complaints.append("two equal calls of success differ: it has hidden state or draws random numbers")
    if not torch.equal(before, torch.get_rng_state()):
        complaints.append("success draws from the global generator")
    return complaints


def success_judges_each_rollout_by_itself(env: Env) -> list[str]:
    if not _declared(env):
        return []
    states = _episodes(env)
    together = env.success(states)
    alone = torch.cat([env.success(states[:, i : i + 1]) for i in range(states.shape[1])])
    if torch.equal(together, alone):
        return []
    return [f"a rollout's success depends on the others in its batch{defined_at(env.success)}"]


def success_ends_with_the_episode(env: Env) -> list[str]:
    """States after the end count for nothing, and an episode that turns to NaN before its end is a failure."""
    if not _declared(env):
        return []
    complaints = []
    states = _episodes(env)
    running = states[:, ~env.done(states[0])]
    for first in sorted({1, states.shape[0] // 2, states.shape[0] - 1}) if running.shape[1] else ():
        failed = running.clone()
        failed[first:] = torch.nan
        count = int(env.success(failed).sum())
        if count:
            complaints.append(
                f"{count} episodes that are NaN from state {first} on count as a success{defined_at(env.success)}"
            )
            break
    # Terminations are rare: many states are tried, also far outside of the box.
    low, high = env.state_box.bounds(states)
    many = (low + high) / 2 + 3 * (env.state_box.sample(400, generator(7), states.dtype) - (low + high) / 2)
    ended = many[env.done(many)][: states.shape[1]]
    if len(ended):
        one, other = states[:, : len(ended)].clone(), states.flip(1)[:, : len(ended)]
        end = states.shape[0] // 2
        other[:end], one[end], other[end] = one[:end], ended, ended
        if not torch.equal(env.success(one), env.success(other)):
            complaints.append(f"success depends on states after the episode's end{defined_at(env.success)}")
    return complaints


def _declared(env: Env) -> bool:
    return env.success_criterion is not None and not success_is_declared_whole(env)


def _episodes(env: Env, dtype: torch.dtype = torch.float64) -> Tensor:
    """Episodes ``[episode_steps + 1, B, n]`` that stand still, from the middle of the state box to its bounds.

    Not motions of the simulator, but cheap, and where the goal is in the middle some of them succeed.
    """
    low, high = env.state_box.bounds(torch.zeros((), dtype=dtype))
    middle = (low + high) / 2
    away = env.state_box.sample(_ROLLOUTS, generator(3), dtype) - middle
    scales = 10.0 ** torch.linspace(-4, 0, _ROLLOUTS, dtype=dtype)
    starts = torch.cat((middle + scales.unsqueeze(-1) * away, env.reset(_ROLLOUTS // 2, generator(4), dtype)))
    return starts.expand(env.episode_steps + 1, *starts.shape).contiguous()
