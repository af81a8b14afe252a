"""Stacks of linear layers and tanh in C++: results, gradients by parameters, and the fit of a critic.

The kernel (``tanh_stack.cpp``) is made of the same products over blocks of rows as compiled rollouts.  It is compiled
once for every dtype and number of layers; widths, parameters and data are arguments of a call, and nothing is kept from
one call to the next.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.resources
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from diffsim.algorithms import kernels
from diffsim.policy import MLP
from diffsim.rollouts.observed import BACKENDS
from solvers.compiler.structs import Struct, fields
from solvers.native import build


class Scaling(NamedTuple):
    """The numbers of a critic that its targets and its fit depend on; the search for targets changes the tensors."""

    mean: Float[Tensor, ""]
    scale: Float[Tensor, ""]
    low: Float[Tensor, ""]
    high: Float[Tensor, ""]
    least: Float[Tensor, ""]
    """The least cost of a control interval so far."""
    largest: Float[Tensor, ""]
    steepest: float
    """Bound on the network's results in values."""
    rate: float
    """Coefficient of the moving averages of mean and scale."""
    fitted: bool
    """Whether they are averages: False before the first targets."""
    costate_weight: float
    costate_bound: float


class Minibatches(NamedTuple):
    """What :meth:`TanhStack.fit` fits to: minibatches of what :meth:`.costate_critic.CostateCritic.fit` is given.

    The first six are parts, one after the other, ``N`` and ``S`` rows together.
    """

    z: Sequence[Float[Tensor, "_ o"]]
    targets: Sequence[Float[Tensor, " _"]]
    starts: Sequence[Float[Tensor, "_ o"]]
    costs: Sequence[Float[Tensor, " _"]]
    costates: Sequence[Float[Tensor, "_ n"]]
    jacobians: Sequence[Float[Tensor, "_ o n"]]
    which: Int[Tensor, "batches K"]
    """The rows of z and targets in every minibatch."""
    which_starts: Int[Tensor, "batches L"]
    """The rows of the others."""


class TanhStack:
    """A network of linear layers with tanh between them, as it is now: made anew for every use by :meth:`of`."""

    def __init__(self, layers: Sequence[_Layer], library: ctypes.CDLL) -> None:
        self.parameters = [q for layer in layers for q in layer]
        self.dtype = self.parameters[0].dtype
        widths = [layers[0].weight.shape[1], *[layer.bias.shape[0] for layer in layers]]
        self.outputs = widths[-1]
        self.widths = (ctypes.c_int64 * len(widths))(*widths)
        self.library = library
        self.type = _arguments_type(self.dtype, len(layers))

    @classmethod
    def of(cls, network: nn.Module, backend: str) -> TanhStack | None:
        """The compiled network; None where ``backend``, the device, the network or the machine does not allow it.

        Nothing that a run counts or measures decides, so that a resumed run computes the same.
        """
        layers = _layers(network) if backend in BACKENDS else None
        if layers is None:
            return None
        library = _library(layers[0].weight.dtype, len(layers))
        return None if library is None else cls(layers, library)

    @torch.no_grad()
    def __call__(self, z: Float[Tensor, "*batch o"]) -> Float[Tensor, "*batch m"]:
        """The network's results, without gradient."""
        rows = _rows(z)
        results = rows.new_empty(*z.shape[:-1], self.outputs)
        a = self._arguments(rows)
        a.results = results.data_ptr()
        self.library.forward(ctypes.byref(a))
        return results

    @torch.no_grad()
    def pull(self, z: Float[Tensor, "*batch o"], by_results: Float[Tensor, "*batch m"]) -> list[Tensor]:
        """The gradient of ``sum(by_results · results)`` at ``z``, in the order of the parameters."""
        rows, by = _rows(z), _rows(by_results)
        if by.shape != (len(rows), self.outputs) or by.dtype != self.dtype:
            raise ValueError(
                f"by_results {list(by.shape)} of {by.dtype}; the network returns [{len(rows)}, {self.outputs}] of "
                f"{self.dtype}"
            )
        a = self._arguments(rows)
        a.by_results = by.data_ptr()
        gradients = self._gradients(a)
        self.library.pull(ctypes.byref(a))
        return gradients

    @torch.no_grad()
    def targets(
        self,
        z: Float[Tensor, "states batch o"],
        costs: Float[Tensor, "T batch"],
        goes_on: Float[Tensor, "T batch"] | None,
        typical: Bool[Tensor, "T batch"],
        gamma: float,
        share: float,
        scaling: Scaling,
    ) -> Float[Tensor, "T batch"]:
        """As :meth:`.costate_critic.CostateCritic.targets`; changes the tensors of ``scaling``."""
        targets, a = torch.empty_like(costs, memory_format=torch.contiguous_format), self._arguments(z)
        given = [q if q is None else q.contiguous() for q in (z, costs, goes_on, typical)]
        a.z, a.costs, a.goes_on, a.typical = (None if q is None else q.data_ptr() for q in given)
        a.steps, a.rows = costs.shape
        a.targets, a.gamma, a.td_lambda = targets.data_ptr(), gamma, share
        _scale(a, scaling)
        self.library.find_targets(ctypes.byref(a))
        torch.autograd.graph.increment_version(scaling[:6])
        return targets

    @torch.no_grad()
    def gradient(self, data: Minibatches, scaling: Scaling) -> list[Tensor]:
        """The gradient of the loss of the first minibatch, in the order of the parameters."""
        a, _kept = self._of(data, scaling)
        gradients = self._gradients(a)
        self.library.gradient(ctypes.byref(a))
        return gradients

    @torch.no_grad()
    def fit(
        self,
        data: Minibatches,
        scaling: Scaling,
        optimizer: torch.optim.Adam,
        target: Sequence[Tensor],
        tau: float,
    ) -> None:
        """A step of ``optimizer`` on every minibatch, then ``target <- (1 - tau) target + tau parameters``.

        ``optimizer`` is torch's Adam of the network's parameters, without its variants.  Its state is what torch's
        own steps would leave, up to rounding.
        """
        (group,) = optimizer.param_groups
        states = [adam_state(optimizer, q) for q in self.parameters]
        a, _kept = self._of(data, scaling)
        _room = self._gradients(a)
        a.learning_rate, a.eps, a.tau = group["lr"], group["eps"], tau
        a.beta_first, a.beta_second = group["betas"]
        a.steps_before = float(states[0]["step"])
        for name, tensors in (
            ("mean", [state["exp_avg"] for state in states]),
            ("square", [state["exp_avg_sq"] for state in states]),
            ("target", list(target)),
        ):
            _point(a, f"{name}_weights", tensors[::2])
            _point(a, f"{name}_biases", tensors[1::2])
        moments = [state[name] for state in states for name in ("exp_avg", "exp_avg_sq")]
        written = [*moments, *target]
        if not all(_fits(q) and q.dtype == self.dtype for q in written):
            raise ValueError(
                "the state of Adam and the target are contiguous tensors of the network's dtype on the CPU"
            )
        self.library.fit(ctypes.byref(a))
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, float(len(data.which)))
        # The kernel wrote where torch does not see it.
        torch.autograd.graph.increment_version([*self.parameters, *written])

    def _of(self, data: Minibatches, scaling: Scaling) -> tuple[Any, list[Any]]:
        """The kernel's arguments, and what has to be kept while it runs."""
        parts = [[q.contiguous() for q in some] for some in data[:6]]
        z, starts, costates = parts[0], parts[2], parts[4]
        which, which_starts = (q.contiguous() for q in data[6:])
        a = self._arguments(z[0])
        lists = [*map(_addresses, parts), _ends(z), _ends(starts)]
        (a.z_parts, a.target_parts, a.start_parts, a.cost_parts, a.costate_parts, a.jacobian_parts, *ends) = (
            map(ctypes.addressof, lists)
        )
        a.z_ends, a.start_ends = ends
        a.parts = len(z)
        a.which, a.which_start = which.data_ptr(), which_starts.data_ptr()
        a.batches, a.rows = which.shape
        a.starts, a.states = which_starts.shape[1], costates[0].shape[1]
        _scale(a, scaling)
        return a, [lists, parts, which, which_starts]

    def _gradients(self, a: Any) -> list[Tensor]:
        gradients = [torch.empty_like(q) for q in self.parameters]
        _point(a, "by_weights", gradients[::2])
        _point(a, "by_biases", gradients[1::2])
        return gradients

    def _arguments(self, z: Tensor) -> Any:
        if z.shape[-1] != self.widths[0] or z.dtype != self.dtype or z.device.type != "cpu":
            raise ValueError(
                f"rows {list(z.shape)} of {z.dtype} on {z.device}; the network takes [N, {self.widths[0]}] of "
                f"{self.dtype} on the CPU"
            )
        a = self.type()
        a.rows = len(z)
        a.widths = ctypes.addressof(self.widths)
        _point(a, "weights", self.parameters[::2])
        _point(a, "biases", self.parameters[1::2])
        a.z = z.data_ptr()
        return a


def results_of(network: nn.Module, z: Float[Tensor, "*batch o"], backend: str) -> Float[Tensor, "*batch m"]:
    """``network(z)``; without gradient compiled where :meth:`TanhStack.of` allows it."""
    stack = None if torch.is_grad_enabled() else TanhStack.of(network, backend)
    return cast(Tensor, network(z)) if stack is None else stack(z)


def pulled(
    network: nn.Module,
    parameters: Sequence[nn.Parameter],
    z: Float[Tensor, "*batch o"],
    by_results: Float[Tensor, "*batch m"],
    backend: str,
) -> Sequence[Tensor | None]:
    """The gradient of ``sum(by_results · network(z))`` by ``parameters``, None where it does not depend on one.

    Compiled where :meth:`TanhStack.of` allows it and the parameters are those of the network.
    """
    stack = TanhStack.of(network, backend)
    if stack is not None and list(map(id, stack.parameters)) == list(map(id, parameters)):
        return stack.pull(z, by_results)
    with torch.enable_grad():
        results = network(z.flatten(0, -2))
        if not results.requires_grad:
            return [None] * len(parameters)
        total = (results * by_results.reshape(results.shape)).sum()
        return torch.autograd.grad(total, parameters, allow_unused=True)


def _rows(z: Tensor) -> Tensor:
    return z.detach().reshape(-1, z.shape[-1]).contiguous()


def _scale(a: Any, scaling: Scaling) -> None:
    a.mean, a.scale, a.low, a.high, a.least, a.largest = (q.data_ptr() for q in scaling[:6])
    a.steepest, a.rate, a.fitted, a.costate_weight, a.costate_bound = scaling[6:]


def _point(a: Any, name: str, tensors: Sequence[Tensor]) -> None:
    array = getattr(a, name)
    for k, tensor in enumerate(tensors):
        array[k] = tensor.data_ptr()


def _addresses(parts: Sequence[Tensor]) -> Any:
    return (ctypes.c_int64 * len(parts))(*(q.data_ptr() for q in parts))


def _ends(parts: Sequence[Tensor]) -> Any:
    return (ctypes.c_int64 * len(parts))(*accumulate(q.shape[0] for q in parts))


def adam_state(optimizer: torch.optim.Adam, parameter: Tensor) -> dict[str, Tensor]:
    """Adam's state of a parameter, as torch makes it at the first step."""
    state: dict[str, Tensor] = optimizer.state[parameter]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    return state


class _Layer(NamedTuple):
    weight: Tensor
    bias: Tensor


def _layers(network: nn.Module) -> list[_Layer] | None:
    """The layers of a network of linear layers with tanh between them, as torch computes them, on the CPU, or None."""
    if type(network) not in (MLP, nn.Sequential) or _is_changed(network):
        return None
    layers: list[_Layer] = []
    for k, module in enumerate(network._modules.values()):
        if type(module) is not (nn.Tanh if k % 2 else nn.Linear) or _is_changed(module):
            return None
        if k % 2:
            continue
        weight, bias = module._parameters["weight"], module._parameters["bias"]
        if weight is None or bias is None or not (_fits(weight) and _fits(bias)):
            return None
        if bias.dtype != weight.dtype or bias.shape != weight.shape[:1]:
            return None
        if layers and (weight.dtype != layers[0].weight.dtype or weight.shape[1] != len(layers[-1].bias)):
            return None
        layers.append(_Layer(weight, bias))
    return layers if len(network._modules) % 2 else None


def _is_changed(module: nn.Module) -> bool:
    """Whether a module computes something else than its class says."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )


def _fits(q: Tensor) -> bool:
    return q.is_cpu and q.is_contiguous() and q.dtype in (torch.float32, torch.float64)


def _library(dtype: torch.dtype, layers: int) -> ctypes.CDLL | None:
    """The compiled kernel; None without a compiler, or where it fails, which is logged."""
    return kernels.load(_source(dtype, layers), _arguments_type(dtype, layers), "networks")


@functools.cache
def _source(dtype: torch.dtype, layers: int) -> str:
    text = importlib.resources.files("diffsim.algorithms").joinpath("tanh_stack.cpp").read_text()
    text = build.with_headers(text).replace("// ARGUMENTS", _arguments(layers).cpp(), 1)
    number = "double" if dtype == torch.float64 else "float"
    return f"typedef {number} T;\nconstexpr int LAYERS = {layers};\n{text}"


@functools.cache
def _arguments_type(dtype: torch.dtype, layers: int) -> Any:
    return _arguments(layers).ctypes(dtype)


@functools.cache
def _arguments(layers: int) -> Struct:
    """What the kernel is passed; lists of parts are their addresses and the numbers of rows up to the end of each.

    Weights are ``[out, in]``, the widths are one more than the layers."""
    return Struct(
        "Arguments",
        (
            *fields("int64", "rows", "steps", "starts", "states", "batches", "parts", "fitted"),
            *fields("double", "learning_rate", "beta_first", "beta_second", "eps", "tau", "steps_before"),
            *fields("double", "gamma", "td_lambda", "steepest", "rate", "costate_weight", "costate_bound"),
            *fields("int64*", "widths", "which", "which_start", "z_ends", "start_ends", constant=True),
            *fields("int64*", "z_parts", "target_parts", constant=True),
            *fields("int64*", "start_parts", "cost_parts", "costate_parts", "jacobian_parts", constant=True),
            *fields("real*", "z", "costs", "goes_on", "by_results", constant=True),
            *fields("uint8*", "typical", constant=True),
            *fields("real*", "results", "targets", "mean", "scale", "low", "high", "least", "largest"),
            *(
                field
                for name in ("", "by_", "mean_", "square_", "target_")
                for field in fields("real*", f"{name}weights", f"{name}biases", count=layers)
            ),
        ),
    )
