"""Writing and reading a run's checkpoint, and its size: this checkout against another one, in alternating processes.

    git worktree add /tmp/former COMMIT
    python benchmarks/checkpoints.py --former /tmp/former

A run of the default settings on the cart-pole after three updates; ``RunFile.update`` with its state and all it holds.
Medians of 20 writes and reads in a process, then the median, smallest and largest over processes.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent

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
    trees = {"former": former.resolve(), "present": ROOT}
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
    for k in range(rounds):
        for name in list(trees)[:: 1 if k % 2 == 0 else -1]:
            env = {**os.environ, "PYTHONPATH": str(trees[name]), "OMP_NUM_THREADS": "1"}
            done = subprocess.run(
                [sys.executable, "-c", CASE], env=env, cwd="/", capture_output=True, text=True, check=True
            )
            rows[name].append(json.loads(done.stdout.splitlines()[-1]))
    click.echo("| | former | present |\n|---|---|---|")
    for case in rows["present"][0]:
        cells = []
        for name in trees:
            found = [row[case] for row in rows[name]]
            cells.append(f"{statistics.median(found):,.1f} ({min(found):,.1f}–{max(found):,.1f})")
        click.echo(f"| {case} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
