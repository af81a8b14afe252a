"""What a call of a ready rollout costs beside its kernel, this checkout against another one in alternating processes.

    git worktree add /tmp/former COMMIT
    python benchmarks/calls.py --former /tmp/former

A call is one control interval of 64 rollouts of the cart-pole, with a policy and a terminal value of two hidden layers
of 64, native, on one thread.  The time in the kernel is taken off.  Beside it stands what PyTorch itself needs for an
``autograd.Function`` of one input with four outputs that does nothing, on the same machine at the same moment.
Microseconds, medians of 2,000 calls; then the median over processes, and the smallest and largest.
"""

from __future__ import annotations

from pathlib import Path

import click
from two_checkouts import compared

CASE = r"""
import json, statistics
from time import perf_counter
import torch
from torch import nn
torch.set_num_threads(1)
from diffsim import Rollout
from robotics_envs import make_env
env = make_env("cartpole_swingup")
torch.manual_seed(0)


def network(outputs):
    return nn.Sequential(nn.Linear(5, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, outputs))


class Value(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = network(1)

    def forward(self, x):
        return self.network(env.observe(x)).squeeze(-1)


class Timed:
    # The kernel, and the seconds spent in it.
    def __init__(self, library):
        self.library, self.seconds = library, 0.0

    def forward(self, *arguments):
        started = perf_counter()
        self.library.forward(*arguments)
        self.seconds += perf_counter() - started

    def backward(self, *arguments):
        started = perf_counter()
        self.library.backward(*arguments)
        self.seconds += perf_counter() - started


class Nothing(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return tuple(x.new_empty(64) for _ in range(4))

    @staticmethod
    def backward(ctx, *by):
        return by[0]


rollout = Rollout(env, network(1), terminal=Value(), backend="native", threads=1)
x = env.reset(64, torch.Generator().manual_seed(0))
p = env.params(x)
one = torch.ones(64, requires_grad=True)
rollout(x, 1, p)
# A former checkout has them elsewhere.
prepared = rollout.engines.prepared if hasattr(rollout, "engines") else rollout._engines
(engine,) = prepared.values()
library = engine.library = Timed(engine.library)


def forward():
    return rollout(x, 1, p)


@torch.no_grad()
def without():
    return rollout(x, 1, p)


def both():
    got = rollout(x, 1, p)
    torch.autograd.backward((got.costs, got.values), (torch.ones_like(got.costs), torch.ones_like(got.values)))


def median(call, count=2000):
    times = []
    for _ in range(50):
        call()
    for _ in range(count):
        library.seconds = 0.0
        started = perf_counter()
        call()
        times.append(perf_counter() - started - library.seconds)
    return 1e6 * statistics.median(times)


print(json.dumps({
    "with a graph": median(forward),
    "without gradient": median(without),
    "forward and backward": median(both),
    "PyTorch's Function alone": median(lambda: Nothing.apply(one)),
}))
"""


@click.command()
@click.option("--former", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--rounds", default=5, show_default=True)
def main(former: Path, rounds: int) -> None:
    """Compare the cost of calls with that of another checkout."""
    click.echo(compared(CASE, former, rounds, "call, µs beside the kernel", 0))


if __name__ == "__main__":
    main()
