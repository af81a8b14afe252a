"""The critic's written-out gradient against autograd's: ``python benchmarks/critic_gradient.py``."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from diffsim.algorithms.critic import squared_error_gradient
from diffsim.policy import MLP

REPEATS, CALLS = 15, 200


def microseconds(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    for _ in range(CALLS):
        function()
    return (time.perf_counter() - started) / CALLS * 1e6


def main() -> None:
    """Print median and range of the time of one minibatch of 256, and of the ratio."""
    torch.set_num_threads(1)
    network = MLP(3, 1)
    z, y = torch.randn(256, 3), torch.randn(256, 1)
    parameters = list(network.parameters())

    def by_autograd() -> object:
        return torch.autograd.grad(nn.functional.mse_loss(network(z), y), parameters)

    def written_out() -> object:
        return squared_error_gradient(network, z, y)

    microseconds(by_autograd), microseconds(written_out)
    pairs = [(microseconds(by_autograd), microseconds(written_out)) for _ in range(REPEATS)]
    for name, values in (
        ("autograd, us", [a for a, _ in pairs]),
        ("written out, us", [b for _, b in pairs]),
        ("ratio", [a / b for a, b in pairs]),
    ):
        print(f"{name:16s} median {statistics.median(values):7.2f}  ({min(values):.2f} to {max(values):.2f})")


if __name__ == "__main__":
    main()
