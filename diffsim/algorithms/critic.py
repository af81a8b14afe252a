"""The critic: a network that estimates the cost-to-go from observations, with a slowly moving target network."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffsim.optimizers.torch_classes import undecorated
from diffsim.policy import MLP


class Value(nn.Module):
    """``V(z) = mean + scale * network(z)``; mean and scale are buffers, set from data and not learned."""

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
    """``V(z) = mean + scale * network(z)``, the expected discounted cost from normalised observations z.

    Mean and scale follow those of the regression targets.  When they change, the last layer is rescaled so that no
    predicted value changes (PopArt; van Hasselt et al., arXiv 1602.07714); the unit of the cost therefore does not
    matter.  ``network`` is fitted; values are read from ``target``, whose network follows the fitted one by Polyak
    averaging, ``target <- (1 - tau) target + tau network``, after each fit (Lillicrap et al., arXiv 1509.02971).

    Args:
        network: ``[B, o] -> [B, 1]``.
        learning_rate, betas: of Adam.
        tau: coefficient of the Polyak averaging, in (0, 1]; 1 copies the fitted network.
        normalizer_rate: coefficient of the exponential moving average of mean and scale, in (0, 1].

    Attributes:
        fitted: whether the critic has seen targets.  Before, it has no scale and its values are meaningless.
    """

    def __init__(
        self,
        network: MLP,
        learning_rate: float,
        betas: tuple[float, float],
        tau: float,
        normalizer_rate: float,
    ) -> None:
        self.network = network
        self.target = Value(copy.deepcopy(network).requires_grad_(False), next(network.parameters()))
        self.learning_rate = learning_rate
        self.tau = tau
        self.normalizer_rate = normalizer_rate
        self.parameters: list[Tensor] = list(network.parameters())
        fused = self.parameters[0].device.type in ("cpu", "cuda")
        self.optimizer = undecorated(torch.optim.Adam)(
            self.parameters, lr=learning_rate, betas=betas, fused=fused
        )
        self.fitted = False

    def __repr__(self) -> str:
        widths = [layer.in_features for layer in self.network if isinstance(layer, nn.Linear)]
        state = f"mean {float(self.target.mean):.4g}, scale {float(self.target.scale):.4g}"
        return f"Critic({' -> '.join(map(str, [*widths, 1]))}, {state if self.fitted else 'not fitted'})"

    def values(self, z: Float[Tensor, "*batch o"]) -> Float[Tensor, "*batch"]:
        """``V(z)`` ``[...]`` of the target network for ``z [..., o]``; differentiable in z."""
        return self.target(z)

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
        """Fit the network to ``targets [N]`` at ``z [N, o]`` by least squares, then update the target network.

        Takes ``batches`` steps of Adam on minibatches; the data are shuffled before each pass over them.  The learning
        rate is multiplied by ``remaining``, the fraction of the run that is left.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * remaining
        y = ((targets - self.target.mean) / self.target.scale).unsqueeze(-1)
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
        torch._foreach_lerp_(list(self.target.network.parameters()), self.parameters, self.tau)

    @torch.no_grad()
    def renormalise(self, targets: Float[Tensor, "*batch"]) -> None:
        """Move mean and scale towards the mean and standard deviation of ``targets``; predicted values stay the same.

        The first call sets them.
        """
        mean = targets.mean()
        # Constant targets have no scale; any positive number serves, because the mean alone predicts them.
        std = targets.std(correction=0)
        std = torch.where(std > 0, std, torch.ones_like(std))
        if self.fitted:
            mean = torch.lerp(self.target.mean, mean, self.normalizer_rate)
            std = torch.lerp(self.target.scale, std, self.normalizer_rate)
            for network in (self.network, cast(MLP, self.target.network)):
                last = cast(nn.Linear, network[-1])
                last.weight.mul_(self.target.scale / std)
                last.bias.mul_(self.target.scale / std).add_((self.target.mean - mean) / std)
        # In place: compiled rollouts read these two tensors.
        self.target.mean.copy_(mean)
        self.target.scale.copy_(std)
        self.fitted = True

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": dict(self.network.state_dict()),
            "target": dict(self.target.network.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "mean": self.target.mean,
            "scale": self.target.scale,
            "fitted": self.fitted,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.target.network.load_state_dict(state["target"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.target.mean.copy_(state["mean"])
        self.target.scale.copy_(state["scale"])
        self.fitted = state["fitted"]


@torch.no_grad()
def squared_error_gradient(network: MLP, z: Float[Tensor, "N o"], y: Float[Tensor, "N 1"]) -> list[Tensor]:
    """Gradient of ``mean((network(z) - y)²)`` for a tanh network, in the order of its parameters.

    Backpropagation is written out because fitting the critic takes half the time of an update: twice the speed of
    autograd for 256 rows of a 64-64 network on one CPU thread (benchmarks/critic_gradient.py).
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
