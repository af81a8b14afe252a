"""Our accelerations and steps beside those of the installed MuJoCo."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robotics_envs.robots.compiling import RobotFileError, compiled, mujoco, without_log
from robotics_envs.robots.env import RobotEnv
from robotics_envs.robots.integrators import runge_kutta
from robotics_envs.robots.kernels import PACKAGES
from robotics_envs.robots.model import RobotModel
from robotics_envs.robots.parameters import edit
from solvers.native.traces import Key, kept

TOLERANCE = 1e-6
"""Relative differences above this are refused."""
_EDGE = 1e-9


class DisagreementError(RobotFileError):
    """Our dynamics and MuJoCo's differ: what this model needs is simulated here in another way."""


@dataclass(frozen=True)
class Line:
    """One comparison: the largest and the median relative error over ``states`` states."""

    what: str
    states: int
    largest: float
    median: float

    @property
    def digits(self) -> int:
        """To how many decimal digits all states agree."""
        return 0 if self.largest >= 1 else min(16, math.floor(-math.log10(max(self.largest, 1e-17))))


@dataclass(frozen=True)
class Comparison:
    """A model beside MuJoCo; see :func:`verify`."""

    name: str
    mujoco_version: str
    lines: tuple[Line, ...]

    @property
    def largest(self) -> float:
        """The largest relative error of all."""
        return max(line.largest for line in self.lines)

    def __str__(self) -> str:
        head = f"{self.name} beside MuJoCo {self.mujoco_version}, relative errors in float64:"
        rows = [
            f"  {line.what:34s} {line.states:4d} states   max {line.largest:7.1e}   median {line.median:7.1e}   "
            f"{line.digits:2d} digits"
            for line in self.lines
        ]
        return "\n".join([head, *rows])


def verify(env: RobotEnv, states: int = 100, seed: int = 0, tolerance: float = TOLERANCE) -> Comparison:
    """Compare ``qacc`` and one step with the installed MuJoCo, whose solver is run to convergence.

    States are random poses, and states that MuJoCo reaches under random controls from near the pose of the file, with
    random velocities added.  An error is the largest difference of a component over the largest component.  Some
    states are at an edge, where MuJoCo's own result changes by more than 1e-9 if the positions move by 1e-12: there
    that change is taken off.

    Raises:
        DisagreementError: an error is above ``tolerance``; the message names the comparison and a state.
    """
    library = mujoco()
    model = converged(env.model)
    edit(
        env.model, model, library, {name: env.constants[name].value for name in env.model.options.parameters}
    )
    q, v, u, touching = random_states(model, states, np.random.default_rng(seed))
    x = torch.tensor(np.concatenate((q, v), 1))
    controls = torch.tensor(u)
    ours = env.rates(env.packed(x, controls, env.params(x)))[:, env.model.positions :]
    following = _steps(env, x, controls)
    accelerations, stepped = _judge(library, model, q, v, u)
    moved = _judge(library, model, q + 1e-12, v, u)
    errors = _relative(ours.numpy(), accelerations, moved[0])
    of_steps = _relative(following.numpy(), stepped, moved[1])
    lines = []
    for what, where in (
        ("accelerations, touching or at a limit", touching),
        ("accelerations, free", ~touching),
    ):
        if where.any():
            lines.append(_line(what, errors[where]))
    lines.append(_line(f"one step ({env.model.integrator})", of_steps))
    made = Comparison(env.model.name, library.__version__, tuple(lines))
    if not made.largest <= tolerance:
        worst = int(np.argmax(np.nan_to_num(np.maximum(errors, of_steps), nan=np.inf)))
        raise DisagreementError(
            f"{made}\nThat is not MuJoCo's dynamics: errors above {tolerance:g} are refused. At qpos = "
            f"{np.array2string(q[worst], precision=6, separator=', ')}, qvel = "
            f"{np.array2string(v[worst], precision=6, separator=', ')} qacc is "
            f"{np.array2string(ours[worst].numpy(), precision=6, separator=', ')}, MuJoCo has "
            f"{np.array2string(accelerations[worst], precision=6, separator=', ')}"
        )
    return made


_checked: set[str] = set()


def check_at_load(env: RobotEnv) -> None:
    """Verify a model in a few states: once, as long as neither it nor these packages nor MuJoCo change.

    Raises:
        DisagreementError: its dynamics is not MuJoCo's.
    """
    if env.model.trace_key in _checked:
        return

    def agreed() -> dict[str, float]:
        with torch.no_grad():
            return {"largest": verify(env, states=12).largest}

    own = type(env).__module__.partition(".")[0] == PACKAGES[0]
    parts = ("checked", env.model.trace_key, mujoco().__version__)
    kept(Key.of(parts, PACKAGES) if own else None, agreed)
    _checked.add(env.model.trace_key)


def converged(robot: RobotModel) -> Any:
    """MuJoCo's model of a robot, with a solver that runs to the end: its default stops at some 1e-8."""
    model = compiled(robot.source, robot.options)
    model.opt.solver = mujoco().mjtSolver.mjSOL_NEWTON
    model.opt.tolerance, model.opt.ls_tolerance = 0.0, 1e-10
    model.opt.iterations = model.opt.ls_iterations = 100
    return model


@without_log()
def random_states(model: Any, count: int, rng: np.random.Generator) -> tuple[Any, Any, Any, Any]:
    """Positions, velocities and controls ``[count, ...]``, and whether a constraint exists ``[count]``."""
    library = mujoco()
    data = library.MjData(model)
    low, high = model.actuator_ctrlrange[:, 0], model.actuator_ctrlrange[:, 1]
    found: list[tuple[Any, Any, Any, bool]] = []
    while len(found) < count:
        library.mj_resetData(model, data)
        library.mj_integratePos(model, data.qpos, rng.normal(size=model.nv) * rng.choice([0.05, 0.5]), 1.0)
        moving = len(found) % 4 != 3
        # The others are random poses.
        for _ in range(rng.integers(5, 40) if moving else 0):
            data.ctrl[:] = rng.uniform(low, high)
            for _ in range(max(1, round(0.02 / model.opt.timestep))):
                library.mj_step(model, data)
        data.qvel[:] += rng.normal(size=model.nv)
        data.ctrl[:] = rng.uniform(low, high)
        if not (np.isfinite(data.qpos).all() and np.abs(data.qvel).max() < 1e3):
            continue
        q, v, u = data.qpos.copy(), data.qvel.copy(), data.ctrl.copy()
        library.mj_forward(model, data)
        found.append((q, v, u, data.nefc > 0))
    q, v, u, touching = (np.array(part) for part in zip(*found, strict=True))
    return q, v, u, touching


def _steps(env: RobotEnv, x: Tensor, u: Tensor) -> Tensor:
    """One time step of the file, without kernels."""
    h, p = env.model.timestep, env.params(x)

    def rates(y: Tensor) -> Tensor:
        return env.rates(env.packed(y, u, p))

    if env.model.integrator == "RK4":
        return runge_kutta(env.model, rates, x, h)
    return env.advanced(env.packed(x, u, p, x.new_full((len(x), 1), h)))


def _judge(library: Any, model: Any, q: Any, v: Any, u: Any) -> tuple[Any, Any]:
    """MuJoCo's accelerations, and its states after one step."""
    data = library.MjData(model)
    accelerations, stepped = [], []
    for position, velocity, control in zip(q, v, u, strict=True):
        library.mj_resetData(model, data)
        data.qpos[:], data.qvel[:], data.ctrl[:] = position, velocity, control
        library.mj_forward(model, data)
        accelerations.append(data.qacc.copy())
        library.mj_step(model, data)
        stepped.append(np.concatenate((data.qpos, data.qvel)))
    return np.array(accelerations), np.array(stepped)


def _relative(ours: Any, theirs: Any, moved: Any) -> Any:
    size = np.maximum(np.abs(theirs).max(1), 1e-6)
    response = np.abs(moved - theirs)
    at_an_edge = response.max(1) / size > _EDGE
    error = np.abs(ours - theirs)
    return np.where(at_an_edge, np.maximum(error - response, 0.0).max(1), error.max(1)) / size


def _line(what: str, errors: Any) -> Line:
    return Line(what, len(errors), float(errors.max()), float(np.median(errors)))
