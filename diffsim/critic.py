"""The cost-to-go of observations: a network with normalised outputs and a slowly moving copy."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffsim.policy import MLP


class Value(nn.Module):
    """``V(z) = mean + scale · network(z)`` with a mean and a scale that are set, not learned."""

    def __init__(self, network: nn.Module, like: Tensor) -> None:
        super().__init__()
        self.network = network
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", like.new_zeros(()))
        self.register_buffer("scale", like.new_zeros(()))

    def forward(self, z: Float[Tensor, "*batch o"]) -> Float[Tensor, "*batch"]:
        """``V(z)`` ``[...]`` for ``z [..., o]``."""
        return self.mean + self.scale * self.network(z).squeeze(-1)


class Critic:
    """``V(z) = mean + scale · network(z)``, the expected discounted cost from normalised observations z.

    Mean and scale follow those of the regression targets, and when they move the last layer is
    rescaled so that no value changes (PopArt; van Hasselt et al., arXiv 1602.07714).  So nothing
    here depends on the unit of the cost.  Values are read from ``value``, a copy of the network
    that moves towards it by ``averaging`` after each fit.

    Args:
        network: ``[B, o] -> [B, 1]``.
        learning_rate, betas: of Adam.
        averaging: share of the way that the copy moves after a fit.
        normalizer_rate: share of the way that mean and scale move towards those of new targets.
    """

    def __init__(
        self,
        network: MLP,
        learning_rate: float,
        betas: tuple[float, float],
        averaging: float,
        normalizer_rate: float,
    ) -> None:
        self.network = network
        self.value = Value(copy.deepcopy(network).requires_grad_(False), next(network.parameters()))
        self.learning_rate = learning_rate
        self.averaging = averaging
        self.normalizer_rate = normalizer_rate
        self.parameters: list[Tensor] = list(network.parameters())
        fused = self.parameters[0].device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.Adam(self.parameters, lr=learning_rate, betas=betas, fused=fused)
        self.fitted = False
        """Whether it has seen targets; before, it has no scale and its values mean nothing."""

    def values(self, z: Float[Tensor, "*batch o"]) -> Float[Tensor, "*batch"]:
        """``V(z)`` ``[...]`` for ``z [..., o]``; differentiable in z."""
        return self.value(z)

    @torch.no_grad()
    def fit(
        self,
        z: Float[Tensor, "N o"],
        targets: Float[Tensor, " N"],
        batches: int,
        batch_size: int,
        remaining: float,
        generator: torch.Generator,
    ) -> None:
        """Regress on ``targets [N]`` at ``z [N, o]`` by least squares, then let the copy follow.

        Takes ``batches`` steps of Adam, shuffling before each pass over the data; the learning rate is
        scaled by ``remaining``.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * remaining
        y = ((targets - self.value.mean) / self.value.scale).unsqueeze(-1)
        per_pass = max(len(z) // batch_size, 1)
        for batch in range(batches):
            part = batch % per_pass
            if part == 0:
                order = torch.randperm(len(z), generator=generator, device=z.device)
                z, y = z[order], y[order]
            chosen = slice(part * batch_size, (part + 1) * batch_size)
            gradients = squared_error_gradient(self.network, z[chosen], y[chosen])
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                parameter.grad = gradient
            self.optimizer.step()
        torch._foreach_lerp_(list(self.value.network.parameters()), self.parameters, self.averaging)

    @torch.no_grad()
    def renormalise(self, targets: Float[Tensor, "*batch"]) -> None:
        """Move mean and scale towards those of ``targets``, leaving every value as it is."""
        mean = targets.mean()
        # Constant targets have no scale; any positive one serves, as the values are then exact.
        spread = targets.std(correction=0)
        spread = torch.where(spread > 0, spread, torch.ones_like(spread))
        if self.fitted:
            mean = torch.lerp(self.value.mean, mean, self.normalizer_rate)
            spread = torch.lerp(self.value.scale, spread, self.normalizer_rate)
            for network in (self.network, cast(MLP, self.value.network)):
                last = cast(nn.Linear, network[-1])
                last.weight.mul_(self.value.scale / spread)
                last.bias.mul_(self.value.scale / spread).add_((self.value.mean - mean) / spread)
        # In place: a compiled rollout reads them where they are.
        self.value.mean.copy_(mean)
        self.value.scale.copy_(spread)
        self.fitted = True

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": dict(self.network.state_dict()),
            "target": dict(self.value.network.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "mean": self.value.mean,
            "scale": self.value.scale,
            "fitted": self.fitted,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.value.network.load_state_dict(state["target"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.value.mean.copy_(state["mean"])
        self.value.scale.copy_(state["scale"])
        self.fitted = state["fitted"]


@torch.no_grad()
def squared_error_gradient(network: MLP, z: Float[Tensor, "N o"], y: Float[Tensor, "N 1"]) -> list[Tensor]:
    """Gradient of ``mean((network(z) - y)²)`` for a tanh network, in the order of its parameters.

    Written out because the fit is half of an update: twice the speed of autograd for 256 rows of a
    64-64 network on one CPU thread (benchmarks/critic_gradient.py).
    """
    layers = [cast(nn.Linear, layer) for layer in network if isinstance(layer, nn.Linear)]
    activations = [z]
    for layer in layers[:-1]:
        activations.append(torch.addmm(layer.bias, activations[-1], layer.weight.t()).tanh_())
    output = torch.addmm(layers[-1].bias, activations[-1], layers[-1].weight.t())
    delta = (output - y) * (2.0 / y.numel())
    gradients: list[Tensor] = []
    for layer, activation in zip(reversed(layers), reversed(activations), strict=True):
        gradients = [delta.t() @ activation, delta.sum(dim=0), *gradients]
        if layer is not layers[0]:
            delta = torch.ops.aten.tanh_backward(delta @ layer.weight, activation)
    return gradients
