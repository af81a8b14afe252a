"""The critic of :mod:`diffsim.algorithms.value_gradient`: values, and their derivatives by the state.

The policy's gradient reads nothing of the critic but its derivative, and a differentiable simulator gives the
derivative of a window's cost by its initial state (the costate) in the backward pass that trains the policy.  So the
critic is fitted to both.

Fitting a network to values and derivatives: Czarnecki et al., "Sobolev Training for Neural Networks", 2017, arXiv
1706.04859.  Critics that estimate costates: Werbos, "Approximate dynamic programming for real-time control and neural
modeling", 1992 (DHP and GDHP).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from diffsim.algorithms.recorded import Recorded
from diffsim.algorithms.tanh_stack import Minibatches, Scaling, TanhStack, adam_state, results_of
from diffsim.algorithms.windows import td_lambda
from diffsim.optimizers.torch_classes import undecorated
from diffsim.policy import MLP

STEEPEST = 12.0
"""Bound on the network's output; sinh(12) is 81,377 scales."""


class CompressedValue(nn.Module):
    """``V(z) = clamp(mean + scale sinh(network(z)), low, high)``.

    ``mean``, ``scale``, ``low`` and ``high`` are buffers, set from data and not learned.  The hyperbolic sine lets a
    network with outputs of order one represent values over many orders of magnitude; its inverse is a signed logarithm
    far from zero.  A compressed value with a signed square root: Pohlen et al., "Observe and Look Further", 2018,
    arXiv 1805.11593.  No gradient passes where the value is clamped.
    """

    def __init__(self, network: nn.Module, like: Tensor) -> None:
        super().__init__()
        self.network = network
        self.mean: Tensor
        self.scale: Tensor
        self.low: Tensor
        self.high: Tensor
        self.register_buffer("mean", like.new_zeros(()))
        self.register_buffer("scale", like.new_zeros(()))  # so that values are 0 before the first fit
        self.register_buffer("low", like.new_full((), -torch.inf))
        self.register_buffer("high", like.new_full((), torch.inf))

    def forward(self, z: Float[Tensor, "*batch o"]) -> Float[Tensor, "*batch"]:
        """``V(z)`` ``[...]`` for ``z [..., o]``."""
        return self.of(self.network(z))

    def of(self, results: Float[Tensor, "*batch 1"]) -> Float[Tensor, "*batch"]:
        """The values of these results of the network."""
        f = results.squeeze(-1).clamp(-STEEPEST, STEEPEST)
        value = self.mean + self.scale * (0.5 * (torch.exp(f) - torch.exp(-f)))
        return torch.minimum(torch.maximum(value, self.low), self.high)


class Rows(NamedTuple):
    """What the critic is fitted to, from the windows of one update."""

    z: Float[Tensor, "N o"]
    """Normalised observations."""
    targets: Float[Tensor, " N"]
    """Targets of the value there."""
    starts: Float[Tensor, "S o"]
    """Normalised observations at the windows' starts; none if there were no gradients."""
    costs: Float[Tensor, " S"]
    """The windows' discounted costs, with the value at their end."""
    costates: Float[Tensor, "S n"]
    """Derivatives of these costs by the initial state, times ``sizes``."""
    jacobians: Float[Tensor, "S o n"]
    """Derivatives of the normalised observation by the state, times ``sizes``."""


class CostateCritic:
    """``V(z)``, the expected discounted cost from normalised observations z: a :class:`CompressedValue`.

    ``network`` is fitted; values are read from ``target``, whose network follows the fitted one by Polyak averaging,
    ``target <- (1 - tau) target + tau network``, after each fit (Lillicrap et al., arXiv 1509.02971).

    Args:
        network: ``[B, o] -> [B, 1]``, of linear layers and tanh.
        learning_rate, betas: of Adam.
        tau: coefficient of the Polyak averaging, in (0, 1]; 1 copies the fitted network.
        normalizer_rate: coefficient of the exponential moving averages of mean and scale, in (0, 1].
        costate_weight: weight of the error of the derivatives; that of the values has weight 1.
        costate_bound: windows whose costate is more than this number of medians long weigh less, see :meth:`fit`.
        backend: of rollouts; where it is "native" or "auto" and there is a compiler, the network is compiled, too.

    Attributes:
        fitted: whether the critic has seen targets.  Before, all values are 0.
    """

    def __init__(
        self,
        network: MLP,
        learning_rate: float,
        betas: tuple[float, float],
        tau: float,
        normalizer_rate: float,
        costate_weight: float,
        costate_bound: float,
        backend: str = "eager",
    ) -> None:
        self.network = network
        like = next(network.parameters())
        self.target = CompressedValue(copy.deepcopy(network).requires_grad_(False), like)
        self.learning_rate = learning_rate
        self.tau = tau
        self.normalizer_rate = normalizer_rate
        self.costate_weight = costate_weight
        self.costate_bound = costate_bound
        self.parameters: list[Tensor] = list(network.parameters())
        self._recordable = like.device.type in Recorded.devices
        self.optimizer = undecorated(torch.optim.Adam)(
            self.parameters,
            lr=learning_rate,
            betas=betas,
            fused=like.device.type in ("cpu", "cuda"),
            capturable=self._recordable,
        )
        self._rate = like.new_tensor(learning_rate)  # in memory that a recorded fit reads
        self._recorded = Recorded(self._steps, self._changed_by_steps)
        self.backend = backend
        self.fitted = False
        # The least and the largest cost of a control interval so far.
        self._least, self._largest = like.new_full((), torch.inf), like.new_full((), -torch.inf)

    def __repr__(self) -> str:
        widths = [layer.in_features for layer in self.network if isinstance(layer, nn.Linear)]
        state = f"mean {float(self.target.mean):.4g}, scale {float(self.target.scale):.4g}"
        return (
            f"CostateCritic({' -> '.join(map(str, [*widths, 1]))}, {state if self.fitted else 'not fitted'})"
        )

    def values(self, z: Float[Tensor, "*batch o"]) -> Float[Tensor, "*batch"]:
        """``V(z)`` ``[...]`` of the target network for ``z [..., o]``; differentiable in z."""
        return self.target.of(results_of(self.target.network, z, self.backend))

    def standardised(self, costs: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """``(costs - mean) / scale``."""
        return (costs - self.target.mean) / self.target.scale

    @torch.no_grad()
    def targets(
        self,
        z: Float[Tensor, "states batch o"],
        costs: Float[Tensor, "T batch"],
        goes_on: Float[Tensor, "T batch"] | None,
        typical: Bool[Tensor, "T batch"],
        gamma: float,
        share: float,
    ) -> Float[Tensor, "T batch"]:
        """TD(lambda) targets of windows, to which mean, scale and bounds of the value move, see :meth:`renormalise`.

        Args:
            z: normalised observations of the windows' states.
            costs: of their control intervals.
            goes_on: 1 where the episode goes on after the interval, 0 where it has ended; None for 1 everywhere.
            typical: which costs the bounds follow; all if none is.
            gamma: the discount factor.
            share: lambda, see :func:`~.windows.td_lambda`.
        """
        stack = TanhStack.of(self.target.network, self.backend)
        if stack is not None:
            found = stack.targets(z, costs, goes_on, typical, gamma, share, self._scaling())
            self.fitted = True
            return found
        discounts = torch.full_like(costs, gamma) if goes_on is None else gamma * goes_on
        found = td_lambda(costs, discounts, self.values(z[1:]), share)
        self.renormalise(found.flatten(), costs.where(typical | ~typical.any(), torch.nan), gamma)
        return found

    def _scaling(self) -> Scaling:
        value = self.target
        return Scaling(
            value.mean,
            value.scale,
            value.low,
            value.high,
            self._least,
            self._largest,
            STEEPEST,
            self.normalizer_rate,
            self.fitted,
            self.costate_weight,
            self.costate_bound,
        )

    @torch.no_grad()
    def renormalise(self, targets: Float[Tensor, " N"], costs: Float[Tensor, "*M"], gamma: float) -> None:
        """Move mean and scale towards the centre and spread of ``targets``, and set the bounds of the value.

        Centre and spread are the median and half the range from 16% to 84% (of a normal distribution, its mean and
        standard deviation): a few targets that are far off do not move them.  The scale is at least 0.02 standard
        deviations.  No value is outside the least and the largest of ``costs`` seen so far, NaN left out, times
        ``1 / (1 - gamma)``, which bound every discounted sum of such costs.
        """
        low, middle, high = quantiles(targets, targets.new_tensor([0.16, 0.5, 0.84]))
        scale = torch.maximum((high - low) / 2, 0.02 * targets.std(correction=0))
        # Constant targets have no scale; any positive number serves, because the mean alone predicts them.
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        if self.fitted:
            middle = torch.lerp(self.target.mean, middle, self.normalizer_rate)
            scale = torch.lerp(self.target.scale, scale, self.normalizer_rate)
        # In place: compiled rollouts read these tensors.
        self.target.mean.copy_(middle)
        self.target.scale.copy_(scale)
        if costs.numel():
            least, largest = costs.nan_to_num(torch.inf).min(), costs.nan_to_num(-torch.inf).max()
            self._least.copy_(torch.minimum(self._least, least))
            self._largest.copy_(torch.maximum(self._largest, largest))
        self.target.low.copy_(self._least / (1 - gamma))
        self.target.high.copy_(self._largest / (1 - gamma))
        self.fitted = True

    @torch.no_grad()
    def fit(
        self, data: list[Rows], batches: int, batch_size: int, remaining: float, generator: torch.Generator
    ) -> None:
        """Fit the network, then update the target network.

        The loss of a minibatch is, with y the :meth:`standardised` costs, D = diag(sizes) and f the network,

            mean (f(z) - asinh y)²  +  costate_weight · mean w |D (dz/dx)ᵀ ∇f(z) - D λ / (scale √(1 + y²))|²

        because asinh maps a cost to what the network estimates and 1 / √(1 + y²) is its derivative.  λ is the costate.
        ``w = min(1, costate_bound median|g| / |g|)²`` for targets g of the second term.

        Takes ``batches`` steps of Adam on minibatches of ``batch_size`` rows of each kind; the data are shuffled before
        each pass over them.  The learning rate is multiplied by ``remaining``, the fraction of the run that is left.
        """
        rate = self.learning_rate * remaining
        (group,) = self.optimizer.param_groups
        group["lr"] = self._rate.fill_(rate) if self._recordable else rate
        z, targets, starts, costs, costates, jacobians = zip(*data, strict=True)
        counts = sum(map(len, z)), sum(map(len, starts))
        i, j = minibatches(generator, batches, batch_size, counts, z[0].device)
        stack = TanhStack.of(self.network, self.backend)
        if stack is not None:
            stack.fit(
                Minibatches(z, targets, starts, costs, costates, jacobians, i, j),
                self._scaling(),
                self.optimizer,
                list(self.target.network.parameters()),
                self.tau,
            )
            return
        scales = self.target.scale * (1 + self.standardised(torch.cat(costs)).square()).sqrt()
        slopes = torch.cat(costates) / scales.unsqueeze(-1)
        weights = self.costate_weight * bounded(slopes.norm(dim=1), self.costate_bound).square()
        y = torch.asinh(self.standardised(torch.cat(targets))).unsqueeze(-1)
        all_z, all_starts, all_jacobians = map(torch.cat, (z, starts, jacobians))
        self._recorded(all_z[i], y[i], all_starts[j], all_jacobians[j], slopes[j], weights[j])

    @torch.no_grad()
    def _steps(self, *minibatches: Tensor) -> None:
        """A step of Adam on each, arguments of :func:`sobolev_gradient`; then the target network moves."""
        for minibatch in zip(*minibatches, strict=True):
            gradients = sobolev_gradient(self.network, *minibatch)
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                parameter.grad = gradient
            self.optimizer.step()
        torch._foreach_lerp_(list(self.target.network.parameters()), self.parameters, self.tau)

    def _changed_by_steps(self) -> list[Tensor]:
        states = [adam_state(self.optimizer, q) for q in self.parameters]
        moving = [q for state in states for q in (state["step"], state["exp_avg"], state["exp_avg_sq"])]
        return [*self.parameters, *moving, *self.target.network.parameters()]

    def state_dict(self) -> dict[str, Any]:
        value = self.target
        return {
            "network": dict(self.network.state_dict()),
            "target": dict(value.network.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "mean": value.mean,
            "scale": value.scale,
            "low": value.low,
            "high": value.high,
            "least": self._least,
            "largest": self._largest,
            "fitted": self.fitted,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        value = self.target
        self.network.load_state_dict(state["network"])
        value.network.load_state_dict(state["target"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.optimizer.param_groups[0]["capturable"] = self._recordable
        for name in ("mean", "scale", "low", "high"):
            getattr(value, name).copy_(state[name])
        self._least.copy_(state["least"])
        self._largest.copy_(state["largest"])
        self.fitted = state["fitted"]


def minibatches(
    generator: torch.Generator, batches: int, size: int, counts: Sequence[int], device: torch.device
) -> list[Int[Tensor, "batches K"]]:
    """Numbers of rows for ``batches`` minibatches of each kind, of which there are ``counts`` rows.

    The rows of a kind are shuffled before each pass over them, those of the first kind first where passes begin
    together; a pass leaves the last rows out that fill no minibatch.  ``K`` is ``size``, or less where there are fewer
    rows.
    """
    passes: list[list[Tensor]] = [[] for _ in counts]
    per_pass = [max(count // size, 1) for count in counts]
    for k in range(batches):
        for found, count, length in zip(passes, counts, per_pass, strict=True):
            if k % length == 0:
                order = torch.randperm(count, generator=generator, device=device)
                found.append(order[: length * size].view(length, min(size, count)))
    return [torch.cat(found)[:batches] for found in passes]


def quantiles(values: Float[Tensor, " N"], shares: Float[Tensor, " Q"]) -> Float[Tensor, " Q"]:
    """``values.quantile(shares)``.

    On the CPU numpy sorts, in a twentieth of the time of torch, which keeps the order of equal values.
    """
    if not values.is_cpu:
        return values.quantile(shares)
    in_order = torch.from_numpy(np.sort(values.detach().numpy()))
    if in_order[-1].isnan():  # all quantiles are
        return shares * torch.nan
    ranks = shares * (len(in_order) - 1)
    below = ranks.long()
    return torch.lerp(in_order[below], in_order[ranks.ceil().long()], ranks - below)


def bounded(lengths: Float[Tensor, " N"], bound: float) -> Float[Tensor, " N"]:
    """``min(1, bound · median / length)`` of positive lengths; 1 for those of zero."""
    positive = lengths > 0
    median = torch.where(positive, lengths, torch.nan).nanmedian()
    return torch.where(positive, bound * median / lengths, 1.0).clamp_max(1.0)


@torch.no_grad()
def sobolev_gradient(
    network: MLP,
    z: Float[Tensor, "K o"],
    y: Float[Tensor, "K 1"],
    starts: Float[Tensor, "S o"],
    jacobians: Float[Tensor, "S o n"],
    slopes: Float[Tensor, "S n"],
    weights: Float[Tensor, " S"],
) -> list[Tensor]:
    """Gradient of ``mean (f(z) - y)² + mean weights |Jᵀ ∇f(starts) - slopes|²`` for a tanh network f.

    In the order of its parameters.  Written out, because autograd would record a graph of a graph; the compiled fit
    (:mod:`diffsim.algorithms.tanh_stack`) computes the same.  The second term's gradient is that of the derivative of
    f along ``v = J by_residual`` with v held constant: reverse mode over forward mode.
    """
    layers = [cast(nn.Linear, layer) for layer in network if isinstance(layer, nn.Linear)]
    rows, count = len(z), len(starts)
    activations = [torch.cat((z, starts))]
    for layer in layers[:-1]:
        activations.append(torch.addmm(layer.bias, activations[-1], layer.weight.t()).tanh_())
    last = layers[-1]
    by_value = (torch.addmm(last.bias, activations[-1][:rows], last.weight.t()) - y) * (2.0 / rows)

    # Derivatives of f at the starts by activations and by what is squashed, from the last layer to the first.
    inner = [a[rows:] for a in activations[1:]]
    squash = [1 - a * a for a in inner]  # the derivative of tanh
    by_activation, by_sum = [last.weight.expand(count, -1)], []
    for layer, slope in zip(reversed(layers[:-1]), reversed(squash), strict=True):
        by_sum.append(by_activation[-1] * slope)
        by_activation.append(by_sum[-1] @ layer.weight)
    residual = torch.bmm(by_activation.pop().unsqueeze(1), jacobians).squeeze(1) - slopes
    by_residual = residual * (weights * (2.0 / max(count, 1))).unsqueeze(-1)

    # The derivative of the activations along v.
    along = [torch.bmm(jacobians, by_residual.unsqueeze(-1)).squeeze(-1)]
    sums = []
    for layer, slope in zip(layers[:-1], squash, strict=True):
        sums.append(along[-1] @ layer.weight.t())
        along.append(sums[-1] * slope)

    # The gradient of both terms.
    weight = by_value.t() @ activations[-1][:rows] + along[-1].sum(0, keepdim=True)
    gradients = [weight, by_value.sum(0)]
    by = torch.cat((by_value @ last.weight, torch.zeros_like(along[-1])))
    for k in reversed(range(len(layers) - 1)):
        by[rows:] -= 2 * inner[k] * sums[k] * by_activation[len(layers) - 2 - k]
        by = torch.ops.aten.tanh_backward(by, activations[k + 1])
        weight = by.t() @ activations[k] + by_sum[len(layers) - 2 - k].t() @ along[k]
        gradients = [weight, by.sum(0), *gradients]
        by = by @ layers[k].weight
    return gradients
