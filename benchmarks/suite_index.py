"""How long `diffsim suite` takes to look at 10,000 recorded runs.

    python benchmarks/suite_index.py [--runs 10000] [--folder DIR]

One short run is trained; its file is copied under the names that a suite of so many runs has, with other histories.
Then the index is made from the files, and `status` and `table` are timed as whole processes, the best of three.
"""

from __future__ import annotations

import argparse
import json
import resource
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


def make_runs(root: Path, count: int) -> float:
    """A suite of ``count`` runs that says all are finished; megabytes of a run file."""
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
    return len(content) / 1e6


def timed(*words: str) -> tuple[float, str]:
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "diffsim", "suite", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return time.perf_counter() - started, done.stdout.splitlines()[0]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--folder", help="where to put the files; a temporary folder if not given")
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(dir=arguments.folder, prefix="suite-index-"))
    try:
        size = make_runs(root, arguments.runs)
        out = str(root / "out")
        rebuilt, said = timed("status", out)
        results = {"runs": arguments.runs, "run_file_MB": round(size, 3), "rebuilt_s": round(rebuilt, 2)}
        for words in (("status", out), ("table", out), ("table", out, "--runs")):
            name = " ".join(words).replace(out, "").strip()
            results[f"{name}_s"] = round(min(timed(*words)[0] for _ in range(3)), 2)
        largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3
        print(json.dumps({**results, "largest_process_MB": round(largest), "said": said}, indent=2))
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
