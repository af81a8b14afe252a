"""Run files without a training, for tests of what reads them."""

import numpy as np

from diffsim.config import load_config
from diffsim.runs.runfile import COLUMNS, RunFile, checkpoint_writer, history_writer, status_writer

NAN = float("nan")


def make_run(
    folder, returns, every=5, wall=0.1, steps=100, state="finished", reason="", updates=None, **settings
):
    """A run with these ``returns``, one after every ``every`` updates of ``steps`` environment steps and ``wall`` s."""
    count = every * len(returns) if updates is None else updates
    config = load_config({"env": "pendulum", "updates": max(count, 1), **settings})
    done = np.arange(1, every * len(returns) + 1)
    measured = np.full(len(done), NAN)
    measured[every - 1 :: every] = returns
    columns = {name: np.zeros(len(done)) for name in COLUMNS}
    columns |= {"update": done, "return": measured, "env_steps": steps * done, "wall_seconds": wall * done,
                "gradient_evaluations": done, "loss": 1.0 / done, "grad_norm": 1.0 / done}  # fmt: skip
    sections = {
        "history": history_writer(columns),
        "checkpoints/last": checkpoint_writer({}, update=len(done)),
    }
    if len(returns):
        best = int(np.argmax(returns))
        facts = {"update": every * (best + 1), "return": float(returns[best])}
        sections["checkpoints/best"] = checkpoint_writer({}, **facts)
    if state:
        sections["status"] = status_writer(state, reason)
    folder.mkdir(parents=True)
    file = RunFile(folder)
    file.create(config, {"command": "diffsim train"}, sections)
    return file
