"""MuJoCo as the judge: accelerations and trajectories of a model that others wrote."""

from typing import Any

import mujoco
import numpy as np
import torch


def dm_control_model(domain: str) -> mujoco.MjModel:
    """The MJCF of a domain of dm_control's suite, compiled by MuJoCo."""
    from dm_control.suite import common

    return mujoco.MjModel.from_xml_string(common.read_model(f"{domain}.xml").decode(), common.ASSETS)


def gymnasium_model(file: str) -> mujoco.MjModel:
    """A MJCF of Gymnasium's own MuJoCo environments, such as ``"reacher.xml"``."""
    from pathlib import Path

    import gymnasium.envs.mujoco as package

    return mujoco.MjModel.from_xml_path(str(Path(package.__file__).parent / "assets" / file))


def accelerations(model: mujoco.MjModel, q: Any, qd: Any, u: Any) -> np.ndarray:
    """``qacc [B, nv]`` of states ``q [B, nq]``, ``qd [B, nv]`` under controls ``u [B, nu]``."""
    data, result = mujoco.MjData(model), []
    for qi, vi, ui in zip(q, qd, u, strict=True):
        mujoco.mj_resetData(model, data)
        data.qpos[:], data.qvel[:], data.ctrl[:] = qi, vi, ui
        mujoco.mj_forward(model, data)
        result.append(data.qacc.copy())
    return np.array(result)


def trajectory(
    model: mujoco.MjModel, q: Any, qd: Any, controls: Any, dt: float, every: int = 1
) -> np.ndarray:
    """States ``[T // every + 1, nq + nv]`` under controls ``[T, nu]``, each held for ``dt`` s, by MuJoCo's RK4."""
    model.opt.timestep = dt
    model.opt.integrator = mujoco.mjtIntegrator.mjINT_RK4
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:] = q, qd
    states = [np.concatenate((data.qpos, data.qvel))]
    for i, u in enumerate(controls):
        data.ctrl[:] = u
        mujoco.mj_step(model, data)
        if (i + 1) % every == 0:
            states.append(np.concatenate((data.qpos, data.qvel)))
    return np.array(states)


def qacc(env, x, u):
    """Accelerations ``[B, 2]`` of a simulator with two joints."""
    return env.dynamics(0.0, x, u, env.params(x))[:, 2:]


def solve(env, x, controls, dt, p=None):
    """States ``[T + 1, B, n]`` of a simulator under controls ``[T, B, m]``, each held for ``dt`` s."""
    p = p or env.params(x)
    path = [x]
    for u in controls:
        path.append(env.solver.step(env.dynamics, 0.0, path[-1], u, p, dt))
    return torch.stack(path)


def close(ours, theirs, relative):
    """Whether a tensor and an array agree."""
    return torch.allclose(ours, torch.as_tensor(theirs, dtype=ours.dtype), rtol=relative, atol=relative)
