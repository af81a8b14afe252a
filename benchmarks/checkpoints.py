"""Writing and reading a run's checkpoint, and its size: this checkout against another one, in alternating processes.

    git worktree add /tmp/former COMMIT
    python benchmarks/checkpoints.py --former /tmp/former

A run of the default settings on the cart-pole after three updates; ``RunFile.update`` with its state and all it holds.
Medians of 20 writes and reads in a process, then the median, smallest and largest over processes.
"""

from __future__ import annotations

from pathlib import Path

import click
from two_checkouts import compared

CASE = r"""
import json, statistics, tempfile, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from diffsim import train
from diffsim.runs.runfile import RunFile, checkpoint_writer

with tempfile.TemporaryDirectory() as folder:
    train("cartpole_swingup", updates=3, backend="eager", out=Path(folder, "run"))
    file = RunFile(Path(folder, "run"))
    state = file.checkpoint()
    writes, reads = [], []
    for k in range(20):
        started = time.perf_counter()
        file.update({"checkpoints/last": checkpoint_writer(state, update=k)})
        writes.append(time.perf_counter() - started)
        started = time.perf_counter()
        file.checkpoint()
        reads.append(time.perf_counter() - started)
    print(json.dumps({
        "write, ms": 1e3 * statistics.median(writes),
        "read, ms": 1e3 * statistics.median(reads),
        "size, kB": file.path.stat().st_size / 1e3,
    }))
"""


@click.command()
@click.option("--former", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--rounds", default=3, show_default=True)
def main(former: Path, rounds: int) -> None:
    """Print the table."""
    click.echo(compared(CASE, former, rounds, "", 1))


if __name__ == "__main__":
    main()
