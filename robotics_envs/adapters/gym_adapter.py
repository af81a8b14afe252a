"""Simulators with Gymnasium's interfaces: a single environment and a vector environment."""

from __future__ import annotations

import logging
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box as BoxSpace
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import Tensor

from lazy_registry.installation import install_command
from robotics_envs.adapters.compiled import CompiledStep, compiled, fingerprints
from robotics_envs.base import Env
from robotics_envs.divergence import DivergenceError, check_finite
from robotics_envs.drawing import rasterise
from robotics_envs.user_code import construct_env
from solvers.compiler.trace import NativeUnsupportedError
from solvers.native import build
from solvers.validation import whole_number

logger = logging.getLogger("robotics_envs")
Array = NDArray[Any]
RENDER_MODES = ("rgb_array", "human")
PIXELS = 480
BACKENDS = ("eager", "native")


class Simulation:
    """The state of a batch of episodes, shared by the interfaces: states, elapsed intervals, random numbers.

    Everything is computed in ``dtype`` without gradients; observations are returned in float32.  With
    ``backend="native"`` a control interval is one call of compiled code, made at the first step, which takes a few
    seconds unless it is in the cache; numbers agree to rounding.  Where there is no compiler, or the simulator has no
    C++, it is computed in torch and a warning says so.
    """

    def __init__(
        self,
        env: Env | type[Env] | str,
        batch: int,
        parameters: dict[str, Any] | None = None,
        episode_steps: int | None = None,
        unit_actions: bool = False,
        dtype: torch.dtype = torch.float64,
        device: str = "cpu",
        backend: str = "eager",
    ) -> None:
        if backend not in BACKENDS:
            raise ValueError(f"unknown backend {backend!r}; known: {', '.join(BACKENDS)}")
        self.env = construct_env(env)
        steps = self.env.episode_steps if episode_steps is None else episode_steps
        self.episode_steps = whole_number("episode_steps", steps)
        batch = whole_number("num_envs", batch)
        self.batch, self.unit_actions, self.dtype = batch, unit_actions, dtype
        self.generator = torch.Generator(device=device)
        self.x = torch.zeros(batch, len(self.env.state_names), dtype=dtype, device=device)
        self.u = torch.zeros(batch, len(self.env.action_box), dtype=dtype, device=device)
        self.low, self.high = self.env.action_box.bounds(self.x)
        self.p = self.env.params(self.x)
        for name, value in (parameters or {}).items():
            if name not in self.p:
                raise ValueError(f"{self.env.name} has no parameter {name!r}; known: {', '.join(self.p)}")
            self.p[name] = self._parameter(name, value)
        self.elapsed = np.zeros(batch, dtype=np.int64)
        self.ended = np.ones(batch, dtype=bool)
        self.backend = backend
        self._fingerprints = fingerprints()
        self._made: tuple[Any, CompiledStep | None] | None = None
        """What the compiled step was made from, and the step; None if there is none."""
        self._observed: Array | None = None
        """Moderate observations of the states, where they are known, until the states change."""

    def __getstate__(self) -> dict[str, Any]:
        # Compiled code is neither copied nor sent to another process; states are, as they are.
        fresh = {"_fingerprints": None, "_made": None, "_observed": None}
        return {**vars(self), **fresh, "x": self.x.clone(), "u": self.u.clone()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _fingerprints=fingerprints())

    def _compiled(self) -> CompiledStep | None:
        """The compiled step for the simulator as it is now."""
        if self.backend != "native":
            return None
        key = self._fingerprints.of(self.env)
        if self._made is None or self._made[0] is not key:
            made: CompiledStep | None = None
            try:
                if self.x.device.type != "cpu":
                    raise NativeUnsupportedError(f"the states are on {self.x.device}")
                made = compiled(self.env, self.p, self.batch, self.unit_actions, self.dtype)
            except NativeUnsupportedError as error:
                if not isinstance(error, build.NoCompilerError):  # which is logged where it is found
                    logger.warning("backend='native' falls back to 'eager': %s", error)
            self._made = self._fingerprints.of(self.env), made
        return self._made[1]

    def _parameter(self, name: str, value: Any) -> Tensor:
        """A copy of a parameter's value or values, within the bounds that the simulator states."""
        about = self.env.constants[name]
        try:
            given = value if isinstance(value, Tensor) else np.asarray(value, dtype=np.float64)
            tensor = torch.as_tensor(given, device=self.x.device).detach().to(self.x, copy=True)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"parameter {name} is a number or one for each rollout, got {value!r}") from None
        if tensor.shape not in ((), (self.batch,)):
            raise ValueError(
                f"parameter {name} is a number or one for each of {self.batch} rollouts, "
                f"got the shape {list(tensor.shape)}"
            )
        if not ((about.low < tensor) & (tensor < about.high)).all():
            raise ValueError(
                f"parameter {name} = {value!r} {about.unit} is outside its range ({about.low}, {about.high})"
            )
        return tensor

    def action_space(self) -> BoxSpace:
        low, high = (
            np.array(b, dtype=np.float32) for b in (self.env.action_box.low, self.env.action_box.high)
        )
        if self.unit_actions:
            low, high = -np.ones_like(low), np.ones_like(high)
        return BoxSpace(low, high)

    def observation_space(self) -> BoxSpace:
        # A state may leave every box during an episode, so observations have no bounds but those of their type.
        most = np.full(len(self.env.observation_names), np.finfo(np.float32).max, dtype=np.float32)
        return BoxSpace(-most, most)

    def __repr__(self) -> str:
        o, m = len(self.env.observation_names), len(self.env.action_box)
        return (
            f"{self.env.name}, num_envs={self.batch}, observations [{self.batch}, {o}], actions [{self.batch}, {m}], "
            f"{str(self.dtype).removeprefix('torch.')} on {self.x.device}"
        )

    def seed(self, random: np.random.Generator) -> None:
        self.generator.manual_seed(int(random.integers(2**63)))

    @torch.no_grad()
    def reset(self, which: Array, options: dict[str, Any] | None = None) -> None:
        """Restart the episodes ``which [B]``, from ``options["state"]`` ([n] or [B, n]) if given."""
        unknown = set(options or {}) - {"state"}
        if unknown:
            raise ValueError(f"reset knows the option 'state', not {sorted(unknown)}")
        if options:
            n = self.x.shape[1]
            try:
                state = torch.as_tensor(options["state"], dtype=self.dtype, device=self.x.device)
            except (TypeError, ValueError, RuntimeError):
                state = self.x.new_zeros(())
            if state.shape not in ((n,), (1, n), (self.batch, n)) or not state.isfinite().all():
                raise ValueError(
                    f"options['state'] holds {n} finite numbers ({', '.join(self.env.state_names)}), "
                    f"[{n}] or [{self.batch}, {n}]; got {options['state']!r}"
                )
            fresh = state.expand(self.batch, n)
        else:
            fresh = self.env.reset(self.batch, self.generator, self.dtype)
        mask = torch.as_tensor(which, device=self.x.device).unsqueeze(-1)
        self.x = torch.where(mask, fresh, self.x)
        self.u = torch.where(mask, torch.zeros_like(self.u), self.u)
        self.elapsed[which], self.ended[which] = 0, False
        self._observed = None

    def step(self, action: Array) -> tuple[Array, Array, Array]:
        """One control interval: rewards, terminations and truncations, ``[B]`` each.

        Raises:
            robotics_envs.DivergenceError: a state or cost is not finite.
        """
        made = self._compiled()
        found = None if made is None else self._step_compiled(made, action)
        rewards, terminated = self._step_in_torch(action) if found is None else found
        self.elapsed += 1
        truncated = ~terminated & (self.elapsed >= self.episode_steps)
        self.ended = terminated | truncated
        return rewards, terminated, truncated

    def _step_compiled(self, made: CompiledStep, action: Array) -> tuple[Array, Array] | None:
        """Rewards and terminations; None, and nothing has changed, where something is not as it has to be."""
        if not isinstance(action, np.ndarray) or action.shape != made.actions.shape:
            return None
        self._hand_over(made)
        made.actions[:] = action
        if not made.step():
            return None
        self.u, self._observed = made.applied_tensor, made.observations
        return np.negative(made.costs, dtype=np.float64), made.ended != 0

    def _hand_over(self, made: CompiledStep) -> None:
        """Let the compiled step hold the states."""
        if self.x is not made.states_tensor:
            made.states[:] = self.x.numpy()
            self.x = made.states_tensor

    @torch.no_grad()
    def _step_in_torch(self, action: Array) -> tuple[Array, Array]:
        u = torch.as_tensor(action, dtype=self.dtype, device=self.x.device).detach()
        if u.shape != self.u.shape or not u.isfinite().all():
            raise ValueError(f"actions are finite numbers of shape {list(self.u.shape)}, got {action!r}")
        if self.unit_actions:
            u = self.low + (self.high - self.low) * (u + 1) / 2
        following, cost = self.env.step(self.x, u, self.p)
        check_finite(self.env, self.x, u, following, cost)
        self.x, self.u, self._observed = following, self.env.clip_action(u), None
        return -cost.double().cpu().numpy(), self.env.done(following).cpu().numpy()

    def observation(self) -> Array:
        """Observations ``[B, o]`` in float32.

        Raises:
            robotics_envs.DivergenceError: one is not finite, or beyond float32.
        """
        # Copies, here and in state(): callers may keep and change them.
        if self._observed is None and self._made is not None and (made := self._compiled()) is not None:
            self._hand_over(made)
            self._observed = made.observe()
        if self._observed is not None:
            return self._observed.astype(np.float32)
        with torch.no_grad():
            exact = np.array(self.env.observe(self.x).cpu().numpy(), dtype=np.float64)
        wrong = ~(np.abs(exact) <= np.finfo(np.float32).max)
        if wrong.any():
            rollout, component = np.argwhere(wrong)[0]
            raise DivergenceError(
                f"{self.env.name}: the observation {self.env.observation_names[component]} of rollout {rollout} is "
                f"{exact[rollout, component]}, beyond float32. Start inside state_box"
            )
        return exact.astype(np.float32)

    def state(self) -> Array:
        made = None if self._made is None else self._made[1]
        if made is not None and self.x is made.states_tensor:
            return made.states.astype(np.float64)
        return np.array(self.x.cpu().numpy(), dtype=np.float64)

    def picture(self, i: int) -> NDArray[np.uint8]:
        x, u = (np.array(v[i].cpu().numpy(), dtype=np.float64) for v in (self.x, self.u))
        return rasterise([*self.env.scenery(), *self.env.draw(x, u)], self.env.view_at(x), PIXELS)


def _metadata(simulation: Simulation) -> dict[str, Any]:
    env = simulation.env
    return {"render_modes": list(RENDER_MODES), "render_fps": max(1, round(env.playback_speed / env.dt))}


class GymEnv(gymnasium.Env[Array, Array]):
    """A simulator as a Gymnasium environment.

    Args:
        env: a name (``"pendulum"``, ``"my_env.py:MyEnv"``) or an instance of a simulator.
        render_mode: ``"rgb_array"``, ``"human"`` (a window; needs pygame) or None.
        parameters: physical parameters that differ from the defaults, by name.
        episode_steps: intervals after which an episode is truncated; the task's own if not given.
        unit_actions: take actions in [-1, 1] and scale them to the action box.
        dtype, device: what the simulator computes in and on.
        backend: ``"native"`` steps through compiled code, see :class:`Simulation`.

    ``reset(options={"state": x})`` starts at a given state ``[n]``; ``info["state"]`` is the state.
    """

    limited = True
    """Whether this class truncates episodes, instead of a wrapper."""
    metadata: dict[str, Any] = {"render_modes": list(RENDER_MODES), "render_fps": 50}  # noqa: RUF012, an instance has its own

    def __init__(
        self,
        env: Env | type[Env] | str,
        render_mode: str | None = None,
        parameters: dict[str, float] | None = None,
        episode_steps: int | None = None,
        unit_actions: bool = False,
        dtype: torch.dtype = torch.float64,
        device: str = "cpu",
        backend: str = "eager",
    ) -> None:
        _check_render_mode(render_mode)
        self._simulation = Simulation(env, 1, parameters, episode_steps, unit_actions, dtype, device, backend)
        self.simulator, self.render_mode = self._simulation.env, render_mode
        self.metadata = _metadata(self._simulation)
        self.action_space = self._simulation.action_space()
        self.observation_space = self._simulation.observation_space()
        self._window: Any = None
        self._limited = self.limited or episode_steps is not None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._simulation.env!r}>"

    __str__ = __repr__

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=_seed(seed))
        self._simulation.seed(self.np_random)
        self._simulation.reset(np.ones(1, dtype=bool), options)
        if self.render_mode == "human":
            self.render()
        return self._simulation.observation()[0], {"state": self._simulation.state()[0]}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        if self._simulation.ended[0]:
            raise gymnasium.error.ResetNeeded("the episode has ended, or none has begun: call reset()")
        given = action.detach().cpu().numpy() if isinstance(action, Tensor) else np.asarray(action)
        if given.shape != self.action_space.shape:
            raise ValueError(
                f"actions are finite numbers of shape {list(self.action_space.shape or ())}, got {action!r}"
            )
        reward, terminated, truncated = self._simulation.step(given[None])
        if not self._limited:
            self._simulation.ended[0], truncated[0] = terminated[0], False
        if self.render_mode == "human":
            self.render()
        info = {"state": self._simulation.state()[0]}
        return (
            self._simulation.observation()[0],
            float(reward[0]),
            bool(terminated[0]),
            bool(truncated[0]),
            info,
        )

    def render(self) -> Any:
        """Pixels ``[height, width, 3]`` for ``rgb_array``; for ``human`` the window shows them."""
        if self.render_mode is None:
            gymnasium.logger.warn('render() needs a render_mode: make(..., render_mode="rgb_array")')
            return None
        pixels = self._simulation.picture(0)
        if self.render_mode == "rgb_array":
            return pixels
        if self._window is None:
            self._window = Window(self.simulator.name, pixels.shape[1], pixels.shape[0])
        self._window.show(pixels, self.metadata["render_fps"])
        return None

    def close(self) -> None:
        if self._window is not None:
            self._window.close()
            self._window = None


class RegisteredEnv(GymEnv):
    """A simulator of the registry: its time limit is a wrapper that ``gymnasium.make`` adds."""

    limited = False


class GymVectorEnv(VectorEnv[Array, Array, Array]):
    """Many rollouts of a simulator at once, as one batch of tensors; resets on the step after an episode ends.

    Arguments as of :class:`GymEnv`; a parameter may hold one value per rollout, ``[num_envs]``.
    """

    def __init__(
        self,
        env: Env | type[Env] | str,
        num_envs: int = 1,
        render_mode: str | None = None,
        parameters: dict[str, Any] | None = None,
        episode_steps: int | None = None,
        max_episode_steps: int | None = None,
        unit_actions: bool = False,
        dtype: torch.dtype = torch.float64,
        device: str = "cpu",
        backend: str = "eager",
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode = {render_mode!r}: many rollouts are drawn as 'rgb_array' only")
        steps = max_episode_steps if episode_steps is None else episode_steps
        self._simulation = Simulation(env, num_envs, parameters, steps, unit_actions, dtype, device, backend)
        num_envs = self._simulation.batch
        self.simulator, self.num_envs, self.render_mode = self._simulation.env, num_envs, render_mode
        self.metadata = {**_metadata(self._simulation), "autoreset_mode": AutoresetMode.NEXT_STEP}
        self.single_action_space = self._simulation.action_space()
        self.single_observation_space = self._simulation.observation_space()
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._simulation!r}>"

    __str__ = __repr__

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=_seed(seed))
        self._simulation.seed(self.np_random)
        self._simulation.reset(np.ones(self.num_envs, dtype=bool), options)
        return self._simulation.observation(), {"state": self._simulation.state()}

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        simulation = self._simulation
        over = simulation.ended.copy()
        if over.all() and not simulation.elapsed.any():
            raise gymnasium.error.ResetNeeded("no episode has begun: call reset()")
        reward, terminated, truncated = simulation.step(actions)
        if over.any():
            simulation.reset(over)
            reward[over], terminated[over], truncated[over] = 0.0, False, False
        return simulation.observation(), reward, terminated, truncated, {"state": simulation.state()}

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """Pixels of every rollout."""
        if self.render_mode is None:
            return None
        return tuple(self._simulation.picture(i) for i in range(self.num_envs))


def _seed(seed: Any) -> int | None:
    # Gymnasium's own generator takes Python's integers only.
    return None if seed is None else whole_number("seed", seed, least=0)


class Window:
    """A pygame window that shows pixels."""

    def __init__(self, title: str, width: int, height: int) -> None:
        try:
            import pygame
        except ModuleNotFoundError:
            raise gymnasium.error.DependencyNotInstalled(
                f'render_mode="human" needs pygame: {install_command("render")}'
            ) from None
        self._pygame = pygame
        pygame.display.init()
        pygame.display.set_caption(title)
        self._screen = pygame.display.set_mode((width, height))
        self._clock = pygame.time.Clock()

    def show(self, pixels: NDArray[np.uint8], fps: float) -> None:
        """Show ``[height, width, 3]`` and wait until the next picture is due."""
        self._pygame.event.pump()
        self._screen.blit(self._pygame.surfarray.make_surface(pixels.swapaxes(0, 1)), (0, 0))
        self._pygame.display.flip()
        self._clock.tick(fps)

    def close(self) -> None:
        self._pygame.display.quit()


def _check_render_mode(mode: str | None) -> None:
    if mode is not None and mode not in RENDER_MODES:
        raise ValueError(f"unknown render_mode {mode!r}; known: {', '.join(RENDER_MODES)}")
