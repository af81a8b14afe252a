"""Policies: observations are normalised, a network maps them, and its output is squashed into the action box."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffsim.config import NETWORKS, PolicyConfig, load_class
from diffsim.errors import ConfigError
from diffsim.isolation import drawing_from, torch_defaults
from diffsim.settings import whole_number
from lazy_registry.registry import unknown
from robotics_envs.base import Actions, Env, Observations
from solvers.compiler.ir import Graph, Node, Operand
from solvers.compiler.operations import Operation
from solvers.compiler.rules import register
from solvers.compiler.trace import tracing

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
}


class MLP(nn.Sequential):
    """A multilayer perceptron ``[B, inputs] -> [B, outputs]`` with a linear last layer.

    Weights are initialised orthogonal (Saxe et al., arXiv 1312.6120) and biases zero.  The last layer is scaled by 0.1,
    so that the first actions are near the centre of the action box and a critic's first values near its mean.

    Args:
        inputs, outputs: numbers of inputs and outputs.
        hidden: widths of the hidden layers; none for a linear map.
        activation: tanh, relu, elu or silu.
    """

    def __init__(
        self, inputs: int, outputs: int, hidden: Sequence[int] = (64, 64), activation: str = "tanh"
    ) -> None:
        if activation not in ACTIVATIONS:
            raise ConfigError(unknown("activation", activation, ACTIVATIONS))
        try:
            hidden = [whole_number(width, 1) for width in _listed(hidden)]
        except (TypeError, ValueError):
            raise ConfigError(
                f"hidden = {hidden!r}: must be a list of positive whole numbers, the widths of the layers, such as "
                "[64, 64]; on the command line --set policy.hidden=[64,64]"
            ) from None
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise((inputs, *hidden)):
            layers += [nn.Linear(fan_in, fan_out), ACTIVATIONS[activation]()]
        super().__init__(*layers, nn.Linear(hidden[-1] if hidden else inputs, outputs))
        for layer in self:
            if isinstance(layer, nn.Linear):
                nn.init.orthogonal_(layer.weight, gain=0.1 if layer is self[-1] else 1.0)
                nn.init.zeros_(layer.bias)


def _listed(hidden: Any) -> list[Any]:
    """The entries of a list, a tuple or an array; a string is none of these.

    Raises:
        TypeError: it is something else.
    """
    if isinstance(hidden, (str, bytes, Mapping)):
        raise TypeError
    return list(hidden)


# Compiled rollouts trace this operation in place of ProjectedClip.
_operations = torch.library.Library("diffsim", "DEF")
_operations.define("projected_clip(Tensor v) -> Tensor")
_operations.impl("projected_clip", lambda v: v.clamp(-1.0, 1.0), "CompositeExplicitAutograd")
PROJECTED_CLIP = torch.ops.diffsim.projected_clip


def _d_projected_clip(g: Graph, bar: Operand, out: Node, v: Operand) -> tuple[Operand]:
    """As ``ProjectedClip.backward``."""
    inside = g.apply("lt", g.apply("abs", v), 1.0)
    back = g.apply("gt", g.apply("mul", v, bar), 0.0)
    return (g.apply("where", g.apply("or", inside, back), bar, 0.0),)


register(
    PROJECTED_CLIP,
    "projected_clip",
    Operation(
        cpp=lambda v: f"{v} > 1 ? splat(1) : ({v} < -1 ? splat(-1) : {v})",
        derivative=_d_projected_clip,
        fold=lambda v: min(max(v, -1.0), 1.0),
    ),
    in_layers=False,  # it is the last operation of a policy
)


class ProjectedClip(torch.autograd.Function):
    """Clamp to [-1, 1] whose backward pass sets the gradient to zero only where descent would increase the violation.

    This is not the derivative of the clamp.  Where the input is outside the bounds, a cotangent whose descent
    direction leads back inside is passed through unchanged.  So an output outside the bounds can return; with a plain
    clamp its gradient is zero, and far outside tanh's it vanishes.  It assumes that the loss is minimised.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(v: Tensor) -> Tensor:
        return PROJECTED_CLIP(v) if tracing() else v.clamp(-1.0, 1.0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        (v,) = ctx.saved_tensors
        return cotangent * ((v.abs() < 1.0) | (v * cotangent > 0.0))


SQUASHES: dict[str, Callable[[Tensor], Tensor]] = {
    "clip": ProjectedClip.apply,
    "tanh": torch.tanh,
}


class Policy(nn.Module):
    """``action = centre + half_range · squash(network((observation - mean) / scale) + noise)``.

    Args:
        network: any ``nn.Module`` that maps ``[B, o]`` to ``[B, m]``.
        mean, scale: of observations, ``[o]``; fixed during training.
        low, high: bounds of the action box, ``[m]``.
        squash: ``"clip"``, with the modified gradient of :class:`ProjectedClip`, or ``"tanh"``, with the exact
            gradient, which vanishes where tanh saturates.
    """

    def __init__(
        self,
        network: nn.Module,
        mean: Tensor,
        scale: Tensor,
        low: Tensor,
        high: Tensor,
        squash: str = "clip",
    ) -> None:
        super().__init__()
        self.network = network
        self.squash = SQUASHES[squash]
        self.mean: Tensor
        self.scale: Tensor
        self.centre: Tensor
        self.half_range: Tensor
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.register_buffer("centre", (low + high) / 2)
        self.register_buffer("half_range", (high - low) / 2)

    def __repr__(self) -> str:
        trained = sum(q.numel() for q in self.parameters() if q.requires_grad)
        sizes = f"{self.mean.numel()} -> {self.centre.numel()}"
        squash = next((name for name, known in SQUASHES.items() if known == self.squash), self.squash)
        return f"Policy({sizes}, {type(self.network).__name__}, {trained:,} parameters, squash {squash!r})"

    def normalise(self, observation: Float[Tensor, "*batch o"]) -> Float[Tensor, "*batch o"]:
        """Observations ``[..., o]`` standardised: mean 0 and standard deviation 1 over the state box."""
        return (observation - self.mean) / self.scale

    def forward(self, observation: Observations, noise: Actions | None = None) -> Actions:
        """Actions ``[B, m]`` for observations ``[B, o]``; ``noise [B, m]`` is added before the squash."""
        raw = self.network(self.normalise(observation))
        if noise is not None:
            raw = raw + noise
        return self.centre + self.half_range * self.squash(raw)


_MODELESS = (Policy, MLP, nn.Sequential, nn.Linear, nn.LayerNorm, nn.Identity, *ACTIVATIONS.values())
"""Modules that compute the same in training mode and in evaluation mode."""


@contextlib.contextmanager
def evaluating(policy: nn.Module) -> Iterator[None]:
    """Inside, the policy is in evaluation mode: measuring must not move the statistics of a batch norm.

    Not if no module of it depends on the mode: for another mode a rollout is compiled once more.
    """
    if all(type(module) in _MODELESS for module in policy.modules()):
        yield
        return
    policy.eval()
    try:
        yield
    finally:
        policy.train()


def make_policy(
    config: PolicyConfig, env: Env, seed: int, device: torch.device, dtype: torch.dtype
) -> Policy:
    """The policy that ``config`` names, freshly initialised for ``env`` from ``seed``.

    Observations are normalised by their mean and standard deviation over the state box, which stay fixed: statistics
    that change during training would change the policy between two steps of the optimizer.  The result depends on
    the arguments only, not on torch's defaults, its number of threads or its global random state.

    Raises:
        ConfigError: unknown options, or a network of the wrong output shape.
    """
    with torch_defaults(threads=1):
        network = make_network(config, len(env.observation_names), len(env.action_box), seed, device, dtype)
        mean, scale = observation_statistics(env, device, dtype)
        return Policy(network, mean, scale, *env.action_box.bounds(mean), config.squash)


def make_network(
    config: PolicyConfig, inputs: int, outputs: int, seed: int, device: torch.device, dtype: torch.dtype
) -> nn.Module:
    """The network that ``config`` names, initialised from ``seed``; see :func:`initialised`."""
    network_class = load_class(NETWORKS, config.name)
    check_options(network_class, config.options, "policy", given=2)
    network = initialised(lambda: network_class(inputs, outputs, **config.options), seed)
    network = network.to(device=device, dtype=dtype)
    with drawing_from(torch.Generator().manual_seed(seed)):  # dropout draws when it is called
        probe = network(torch.zeros(2, inputs, device=device, dtype=dtype))
    if probe.shape != (2, outputs):
        raise ConfigError(
            f"policy {config.name!r} maps [2, {inputs}] to {list(probe.shape)}; it must return [2, {outputs}]"
        )
    return network


Network = TypeVar("Network", bound=nn.Module)


def initialised(build: Callable[[], Network], seed: int) -> Network:
    """The module that ``build`` makes, with random numbers from ``seed`` and nothing else.

    Neither the process's default dtype, default device and number of threads nor its random state matter, and none
    of them is changed: parameters are float32 on the CPU, computed by one thread (the QR decomposition behind
    orthogonal weights rounds differently with more).
    """
    with torch_defaults(threads=1), drawing_from(torch.Generator().manual_seed(seed)):
        return build()


def check_options(target: Callable[..., Any], options: dict[str, Any], section: str, given: int) -> None:
    """Refuse options that ``target`` does not take beyond its first ``given`` arguments."""
    parameters = list(inspect.signature(target).parameters.values())[given:]
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return
    known = [p.name for p in parameters]
    for name in options:
        if name not in known:
            raise ConfigError(unknown("key", f"{section}.{name}", [f"{section}.{k}" for k in known]))


def observation_statistics(
    env: Env, device: torch.device, dtype: torch.dtype, samples: int = 4096
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation ``[o]`` of observations over the state box."""
    generator = torch.Generator().manual_seed(0)
    observations = env.observe(env.state_box.sample(samples, generator, torch.float64))
    scale = observations.std(dim=0)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return (
        observations.mean(dim=0).to(device=device, dtype=dtype),
        scale.to(device=device, dtype=dtype),
    )
