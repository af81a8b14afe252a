"""A robot's task with MuJoCo's own steps in place of ours: what a policy is judged in."""

from __future__ import annotations

import numpy as np
import torch

from robotics_envs.base import Actions, Params, States
from robotics_envs.robots.compiling import compiled, mujoco, without_log
from robotics_envs.robots.env import RobotEnv
from robotics_envs.robots.errors import RobotFileError
from robotics_envs.robots.onset import ONSET


def in_mujoco(env: RobotEnv) -> RobotEnv:
    """The same simulator, whose control intervals are ``frame_skip`` calls of ``mj_step``, one rollout after another.

    The file is compiled again, and MuJoCo's solver keeps the tolerance of the file.  There are no gradients.

    Raises:
        UnknownNameError: the file is no longer there.
        RobotFileError: MuJoCo is not installed, or refuses the file; or a physical parameter has been changed, which
            the file does not know of.
    """
    usual = {parameter.name: parameter.value for parameter in env.parameters}
    changed = [
        name for name, constant in env.constants.items() if constant.value != usual[name] and name != ONSET
    ]
    if changed:
        raise RobotFileError(
            f"MuJoCo steps {env.name} as in its file: leave {', '.join(changed)} at the default"
        )
    library = mujoco()
    model = compiled(env.model.source, env.model.options)

    class InMuJoCo(type(env)):  # type: ignore[misc]
        foreign = True
        gym_id = None

        def simulate(self, x: States, u: Actions, p: Params) -> States:
            """The states after ``frame_skip`` calls of ``mj_step``."""
            data, n = library.MjData(model), self.model.positions
            following = np.empty(x.shape)
            for i, (state, control) in enumerate(zip(x.tolist(), u.tolist(), strict=True)):
                library.mj_resetData(model, data)
                data.qpos[:], data.qvel[:], data.ctrl[:] = state[:n], state[n:], control
                with without_log():
                    library.mj_step(model, data, self.frame_skip)
                following[i, :n], following[i, n:] = data.qpos, data.qvel
            return torch.from_numpy(following).to(x)

    InMuJoCo.__name__ = InMuJoCo.__qualname__ = f"{type(env).__name__}InMuJoCo"
    return InMuJoCo()
