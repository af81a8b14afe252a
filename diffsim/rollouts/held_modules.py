"""What a rollout asks of its policy, terminal value and physical parameters at every call, looked up once."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diffsim.rollouts.inputs import Engine
from robotics_envs.base import Env
from solvers.compiler.fingerprint import Held


class HeldModules:
    """What one call after another takes from simulator, policy and terminal value while these do not change.

    Raises:
        ValueError: a parameter of a module has another dtype or device than ``x0``.
    """

    def __init__(self, held: Held, x0: Tensor, functions: tuple[Any, ...]) -> None:
        self.held, self.like = held, (x0.dtype, x0.device)
        self.modules = tuple(q for q in functions if isinstance(q, nn.Module))
        self.parameters = tuple({id(q): q for module in self.modules for q in module.parameters()}.values())
        for q in self.parameters:
            if q.dtype != x0.dtype or q.device != x0.device:
                raise ValueError(f"the policy has {q.dtype} on {q.device}, x0 is {x0.dtype} on {x0.device}")
        self._requires: list[bool] | None = None
        self._own: dict[str, Tensor] | None = None
        self._names: list[str] = []
        self._checked: list[Tensor] = []
        self._several: list[str] = []
        self.trained: tuple[Tensor, ...] = ()
        self.fixed: tuple[Tensor, ...] = ()
        self.beside: tuple[Tensor, ...] = ()
        self.ready: dict[Any, Engine] = {}
        """Back ends for these parameters and as many values of each physical one."""

    def look_again(self, parameter_gradients: bool) -> None:
        """Which parameters are trained: the members of :class:`Inputs` that follow from it."""
        requires = [parameter_gradients, *[q.requires_grad for q in self.parameters]]
        if requires == self._requires:
            return
        self._requires = requires
        self.ready = {}
        trainable = tuple(q for q in self.parameters if q.requires_grad)
        self.trained, self.fixed = (trainable, ()) if parameter_gradients else ((), trainable)
        trained = {id(q) for q in self.trained}
        buffers = [q for module in self.modules for q in module.buffers()]
        # Autograd cannot save what was made in inference mode.
        self.beside = tuple(
            q for q in (*self.parameters, *buffers) if id(q) not in trained and not q.is_inference()
        )

    def physical(self, env: Env, x0: Tensor, p: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """The physical parameters ``p``, the simulator's own by default.

        Raises:
            ValueError: they are not those of the simulator, for the rollouts from ``x0``.
        """
        if p is None:
            if self._own is None:
                with torch.inference_mode(False):
                    self._own = env.params(x0)
            p = self._own
        p, batch = dict(p), (x0.shape[0],)
        same = [*p] == self._names and all(map(operator.is_, p.values(), self._checked))
        if not same or p.keys() != env.constants.keys() or any(p[q].shape != batch for q in self._several):
            _check_parameters(env, p, x0)
            several = [name for name, q in p.items() if q.ndim]
            if [*p] != self._names or several != self._several:
                self.ready = {}
            self._names, self._checked, self._several = [*p], [*p.values()], several
        return p


def _check_parameters(env: Env, p: dict[str, Tensor], x0: Tensor) -> None:
    """Raise ValueError unless these are the simulator's physical parameters, for the rollouts from ``x0``."""
    if p.keys() != env.constants.keys():
        missing = set(env.constants) ^ set(p)
        raise ValueError(
            f"p must name the parameters of {env.name}; missing or unknown: {', '.join(sorted(missing))}"
        )
    for name, tensor in p.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"p[{name!r}] = {tensor!r} must be a tensor")
        if tensor.shape not in ((), (len(x0),)):
            raise ValueError(f"p[{name!r}] has the shape {tuple(tensor.shape)}, expected [] or [{len(x0)}]")
        if tensor.dtype != x0.dtype or tensor.device != x0.device:
            raise ValueError(
                f"p[{name!r}] is {tensor.dtype} on {tensor.device}, x0 {x0.dtype} on {x0.device}"
            )
