"""What the default algorithm owes to each of its parts, and what fails: one change at a time, three seeds.

    python benchmarks/ablations.py --out benchmarks/results/ablations.json

Returns are means over 100 episodes: the pendulum's in Gymnasium's Pendulum-v1 from seeds 1000 to 1099, the
cart-pole's (examples/cartpole.py) in its own simulator.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

import diffsim

ROOT = Path(__file__).parent.parent
CARTPOLE = "examples.cartpole:CartPole"

ADAM = {"name": "adam", "lr": 3e-3, "max_grad_norm": 1.0}
FULL = {
    "algorithm": {"name": "full_horizon", "horizon": 100},
    "policy": {"squash": "tanh"},
    "updates": 200,
}

PENDULUM: dict[str, dict[str, Any]] = {
    "default": {},
    "squash by tanh": {"policy": {"squash": "tanh"}},
    "windows of 1": {"algorithm": {"window": 1}},
    "windows of 8": {"algorithm": {"window": 8}},
    "windows of 16": {"algorithm": {"window": 16}},
    "windows of 32": {"algorithm": {"window": 32}},
    "every window starts afresh": {"algorithm": {"continuing": 0.0}},
    "every window goes on (survival 1)": {"algorithm": {"continuing": 1.0, "survival": 1.0}},
    "no noise": {"algorithm": {"noise_std": 0.0}},
    "noise 0.8": {"algorithm": {"noise_std": 0.8}},
    "discount 0.9": {"algorithm": {"gamma": 0.9}},
    "discount 0.99": {"algorithm": {"gamma": 0.99}},
    "1 critic minibatch": {"algorithm": {"critic_batches": 1}},
    "32 critic minibatches": {"algorithm": {"critic_batches": 32}},
    "critic read at once (averaging 1)": {"algorithm": {"tau": 1.0}},
    "batch 64": {"algorithm": {"batch": 64}},
    "batch 1024": {"algorithm": {"batch": 1024}},
    "constant learning rate": {"optimizer": {"schedule": "constant"}},
    "Adam with torch's betas": {"optimizer": {"betas": [0.9, 0.999]}},
    "RMSprop, lr 5e-3": {"optimizer": {"name": "rmsprop", "lr": 5e-3}},
    "SGD, lr 0.1": {"optimizer": {"name": "sgd", "lr": 0.1, "max_grad_norm": None}},
    "L-BFGS on the window objective": {
        "optimizer": {"name": "lbfgs", "max_iter": 4, "overlap": 0.0, "history_size": 100}
    },
    "full horizon 100, Adam 3e-3, norm 1, batch 256": {**FULL, "optimizer": ADAM},
    "full horizon 100, L-BFGS strong Wolfe, batch 256": {
        **FULL,
        "updates": 25,
        "optimizer": {"name": "lbfgs", "max_iter": 20, "overlap": 0.0, "history_size": 100},
    },
}

CART: dict[str, dict[str, Any]] = {
    "default": {},
    "squash by tanh": {"policy": {"squash": "tanh"}},
    "every window starts afresh": {"algorithm": {"continuing": 0.0}},
    "half of the windows go on": {"algorithm": {"continuing": 0.5}},
    "windows of 8": {"algorithm": {"window": 8}},
}


def run(env: str, settings: dict[str, Any], seed: int) -> dict[str, Any]:
    """Train and measure once; a run that fails is recorded as what it is."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            file = diffsim.train(env, out=folder, quiet=True, seed=seed, evaluation={"every": 0}, **settings)
        except diffsim.DiffsimError as error:
            return {"seed": seed, "failed": str(error)}
        gym = "Pendulum-v1" if env == "pendulum" else None
        result = diffsim.evaluate(file, gym=gym, episodes=100, seed=1000)
        history = file.history()
    return {
        "seed": seed,
        "return": round(result.mean, 1),
        "env_steps": int(history["env_steps"][-1]),
        "gradient_evaluations": int(history["gradient_evaluations"][-1]),
        "seconds": round(float(history["wall_seconds"][-1]), 1),
    }


@click.command()
@click.option("--seeds", default=3, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="JSON to write.")
def main(seeds: int, out: Path) -> None:
    """Change one setting at a time and print a Markdown table of the returns."""
    sys.path.insert(0, str(ROOT))  # for examples.cartpole
    plans = [("pendulum", name, s) for name, s in PENDULUM.items()]
    plans += [(CARTPOLE, name, s) for name, s in CART.items()]
    rows = []
    print(
        "| simulator | change | return, seed by seed | environment steps | seconds |\n|---|---|---|---|---|"
    )
    for env, name, settings in plans:
        runs = [run(env, settings, seed) for seed in range(seeds)]
        rows.append({"env": env, "change": name, "settings": settings, "runs": runs})
        returns = ", ".join("failed" if "failed" in r else f"{r['return']:.0f}" for r in runs)
        steps = max(r.get("env_steps", 0) for r in runs)
        seconds = max(r.get("seconds", 0) for r in runs)
        simulator = env.split(":")[0].split(".")[-1]
        print(
            f"| {simulator} | {name} | {returns} | {steps / 1e6:.2f}M | {seconds:.0f} |",
            flush=True,
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"rows": rows}) + "\n")


if __name__ == "__main__":
    main()
