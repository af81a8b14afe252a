"""Policies: a network between an observation normalizer and a squash into the action box."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from diffsim.config import Named
from diffsim.errors import ConfigError
from robotics_envs.base import Env
from solvers.catalogue import Catalogue, unknown

NETWORKS = Catalogue("policy", {"mlp": "diffsim.policy:MLP"})

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
}


class MLP(nn.Sequential):
    """A multilayer perceptron ``[B, inputs] -> [B, outputs]`` with a linear last layer."""

    def __init__(
        self, inputs: int, outputs: int, hidden: tuple[int, ...] = (64, 64), activation: str = "tanh"
    ) -> None:
        if activation not in ACTIVATIONS:
            raise ConfigError(unknown("activation", activation, ACTIVATIONS))
        if not isinstance(hidden, (list, tuple)) or not all(
            isinstance(width, int) and width > 0 for width in hidden
        ):
            raise ConfigError(f"hidden = {hidden!r}: a list of positive layer widths, such as [64, 64]")
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise((inputs, *hidden)):
            layers += [nn.Linear(fan_in, fan_out), ACTIVATIONS[activation]()]
        super().__init__(*layers, nn.Linear(hidden[-1] if hidden else inputs, outputs))


class Policy(nn.Module):
    """``action = centre + half_range · tanh(network((observation - mean) / scale) + noise)``.

    Any ``nn.Module`` from ``[B, o]`` to ``[B, m]`` serves as the network.  The squash keeps actions inside
    the box without clipping, so no gradient is cut.
    """

    def __init__(
        self, network: nn.Module, mean: Tensor, scale: Tensor, low: Tensor, high: Tensor
    ) -> None:
        super().__init__()
        self.network = network
        self.mean: Tensor
        self.scale: Tensor
        self.centre: Tensor
        self.half_range: Tensor
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.register_buffer("centre", (low + high) / 2)
        self.register_buffer("half_range", (high - low) / 2)

    def forward(self, observation: Tensor, noise: Tensor | None = None) -> Tensor:
        """Actions ``[B, m]`` for observations ``[B, o]``; ``noise [B, m]`` is added before the squash."""
        raw = self.network((observation - self.mean) / self.scale)
        if noise is not None:
            raw = raw + noise
        return self.centre + self.half_range * torch.tanh(raw)


def make_policy(
    config: Named, env: Env, seed: int, device: torch.device, dtype: torch.dtype
) -> Policy:
    """The policy that ``config`` names, freshly initialised for ``env`` from ``seed``.

    The normalizer is the mean and standard deviation of what is observed over the state box, fixed
    before training: a moving one would change the policy under the optimizer.

    Raises:
        ConfigError: unknown options, or a network of the wrong output shape.
    """
    network = make_network(
        config, len(env.observation_names), len(env.action_box), seed, device, dtype
    )
    mean, scale = observation_statistics(env, device, dtype)
    return Policy(network, mean, scale, *env.action_box.bounds(mean))


def make_network(
    config: Named, inputs: int, outputs: int, seed: int, device: torch.device, dtype: torch.dtype
) -> nn.Module:
    """The network that ``config`` names, initialised from ``seed`` without touching global random state."""
    network_class = NETWORKS.load(config.name)
    check_options(network_class, config.options, "policy", given=2)
    # A user's module draws its initial weights from the global generator; lend it one.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = network_class(inputs, outputs, **config.options)
    network = network.to(device=device, dtype=dtype)
    probe = network(torch.zeros(2, inputs, device=device, dtype=dtype))
    if probe.shape != (2, outputs):
        raise ConfigError(
            f"policy {config.name!r} maps [2, {inputs}] to {list(probe.shape)}; it must give [2, {outputs}]"
        )
    return network


def check_options(
    target: Callable[..., Any], options: dict[str, Any], section: str, given: int
) -> None:
    """Refuse options that ``target`` does not take beyond its first ``given`` arguments."""
    parameters = list(inspect.signature(target).parameters.values())[given:]
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return
    known = [p.name for p in parameters]
    for name in options:
        if name not in known:
            raise ConfigError(
                unknown("key", f"{section}.{name}", [f"{section}.{k}" for k in known])
            )


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
