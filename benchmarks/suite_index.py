"""How long `diffsim suite` and `diffsim report` take to look at 10,000 recorded runs.

    python benchmarks/suite_index.py [--runs 10000] [--folder DIR]

One short run is trained; its file is copied under the names that a suite of so many runs has, with other histories.
Then the index is made from the files, and `status`, `table` and `report` are timed as whole processes, the best of
three.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SUITE = """
[base]
evaluation = {{every = 1, episodes = 2}}
backend = "eager"
updates = 3
[matrix]
env = ["pendulum", "cartpole_swingup"]
optimizer = ["adam", "sgd", "lbfgs", "rmsprop", "adamw"]
algorithm = {{name = "full_horizon", batch = 2, horizon = 5}}
seed = "0..{last}"
"""


def make_runs(root: Path, count: int) -> None:
    """A suite of ``count`` runs that are all finished."""
    from diffsim.runs.run import train
    from diffsim.suites.plan import resolve
    from diffsim.suites.suite_file import read_suite

    (root / "suite.toml").write_text(SUITE.format(last=count // 10 - 1))
    plan = resolve(read_suite(root / "suite.toml", str(root / "out")))
    plan.root.mkdir()
    plan.save()
    model = train(out=root / "model", quiet=True, **plan.runs[0].config)
    content = model.path.read_bytes()
    for run in plan.runs:
        plan.folder(run).mkdir(parents=True)
        (plan.folder(run) / "run.h5").write_bytes(content)


def timed(*words: str) -> tuple[dict[str, float], str]:
    """Wall and CPU seconds and the largest memory of a command, and its first line."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "diffsim", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        printed = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, printed
    wall, cpu = time.perf_counter() - started, used.ru_utime + used.ru_stime
    return {"wall_s": wall, "cpu_s": cpu, "MB": used.ru_maxrss / 1e3}, printed.splitlines()[0]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--folder", help="where to put the files; a temporary folder if not given")
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(dir=arguments.folder, prefix="suite-index-"))
    try:
        # In a process of its own: a process that is started inherits the largest memory of its parent.
        maker = multiprocessing.get_context("spawn").Process(target=make_runs, args=(root, arguments.runs))
        maker.start()
        maker.join()
        out = str(root / "out")
        rebuilt, said = timed("suite", "status", out)
        results = {"rebuilding": rebuilt}
        commands = ("suite status", "suite table", "suite table --runs", "report --no-figures", "report")
        for name in commands:
            words = *name.split(), out
            results[name] = min((timed(*words)[0] for _ in range(3)), key=lambda one: one["wall_s"])
        for name, values in results.items():
            print(f"{name:19s}", ", ".join(f"{key} {value:.2f}" for key, value in values.items()))
        print(said)
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
