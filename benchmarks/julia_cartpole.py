"""The cart-pole swing-up in Julia trains like its twin in torch: Adam, L-BFGS and CMA-ES, seed by seed.

    diffsim julia setup
    python benchmarks/julia_cartpole.py --out benchmarks/results/julia_cartpole.json

Each optimizer trains with one set of settings in both simulators.  Every policy then drives 64 whole episodes from the
same starting states in both of them, and the mean return in the torch simulator is compared: "within seed noise" means
that an exact permutation test of the difference of the means has p > 0.05 and Welch's 95 % interval of it holds 0.
Every seed is kept; a run that failed counts as 0, the least there is.  The twins share their equations but not their
method (RK4 in torch, Tsit5 in Julia, both of 0.01 s) nor, but for CMA-ES, their draws of starting states, so no two
runs are equal.  The settings of L-BFGS and CMA-ES were chosen among a few in torch, by seeds that are shown here too.
``--report`` prints the results as Markdown and trains nothing.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))

import diffsim
from diffsim.config import PolicyConfig
from diffsim.policy import Policy, make_policy
from diffsim.rollouts import Rollout
from diffsim.runs.evaluation import LoadedRun
from diffsim.runs.provenance import describe
from robotics_envs import make_env
from robotics_envs.base import Env
from robotics_envs.julia import JuliaError, installation, start

EPISODES = 64
ENVS = {"torch": "cartpole_swingup", "julia": "julia:CartpoleSwingup"}
GRADIENT: dict[str, dict[str, Any]] = {
    # "long" of simulators.py
    "Adam": {
        "algorithm": {"name": "short_window", "window": 16, "gamma": 0.99, "noise_std": 0.1},
        "updates": 1000,
    },
    "L-BFGS": {
        "algorithm": {"name": "short_window", "window": 32, "gamma": 0.99, "noise_std": 0.1},
        "optimizer": {"name": "lbfgs", "max_iter": 4, "overlap": 0.0, "history_size": 100},
        "updates": 150,
    },
}
EVOLUTION: dict[str, dict[str, Any]] = {
    "CMA-ES": {"hidden": [16], "sigma": 1.0, "members": 32, "starts": 4, "steps": 600, "generations": 300}
}
SETTINGS = GRADIENT | EVOLUTION


def by_gradient(name: str, seed: int, settings: Mapping[str, Any]) -> tuple[Policy, dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        file = diffsim.train(name, out=folder, seed=seed, quiet=True, evaluation={"every": 0}, **settings)
        history = file.history()
        facts = {
            "env_steps": int(history["env_steps"][-1]),
            "seconds": round(float(history["wall_seconds"][-1]), 2),
            "dropped_updates": int(np.sum(history["step_dropped"] != 0)),
        }
        return LoadedRun(file.path).policy.module, facts


def by_evolution(name: str, seed: int, settings: Mapping[str, Any]) -> tuple[Policy, dict[str, Any]]:
    import cma

    env, twin = make_env(name), make_env(ENVS["torch"])
    config = PolicyConfig.model_validate({"name": "mlp", "hidden": settings["hidden"]})
    policy = make_policy(config, env, seed, torch.device("cpu"), torch.float32)
    named = dict(policy.named_parameters())
    x = twin.reset(settings["starts"], torch.Generator().manual_seed(seed))
    rollout = Rollout(env, policy)

    def unpack(vectors: Sequence[np.ndarray]) -> dict[str, Tensor]:
        parts = torch.from_numpy(np.stack(vectors)).float().split([q.numel() for q in named.values()], dim=1)
        return {k: part.unflatten(1, q.shape) for (k, q), part in zip(named.items(), parts, strict=True)}

    first = nn.utils.parameters_to_vector(named.values()).detach().double().numpy()
    rollout.population(unpack([first] * settings["members"]), x, 1)  # compiles, off the clock
    options = {"popsize": settings["members"], "seed": seed + 1, "verbose": -9}
    search = cma.CMAEvolutionStrategy(first, settings["sigma"], options)
    started = time.perf_counter()
    for _ in range(settings["generations"]):
        vectors = search.ask()
        costs = rollout.population(unpack(vectors), x, settings["steps"]).mean(1)
        search.tell(vectors, costs.double().numpy())
    seconds = time.perf_counter() - started
    with torch.no_grad():
        for key, value in unpack([search.result.xfavorite]).items():
            named[key].copy_(value[0])
    steps = settings["generations"] * settings["members"] * settings["starts"] * settings["steps"]
    return policy, {"env_steps": steps, "seconds": round(seconds, 2)}


def returns(env: Env, policy: Policy) -> Tensor:
    """Returns ``[64]`` of whole episodes, from the same starting states in both simulators."""
    x = make_env(ENVS["torch"]).reset(EPISODES, torch.Generator().manual_seed(1))
    return Rollout(env, policy, expected_steps=env.episode_steps).returns(x)


def train_and_judge(optimizer: str, where: str, seed: int) -> dict[str, Any]:
    train = by_gradient if optimizer in GRADIENT else by_evolution
    try:
        policy, facts = train(ENVS[where], seed, SETTINGS[optimizer])
    except (diffsim.DiffsimError, JuliaError) as error:
        return {"seed": seed, "error": type(error).__name__, "message": str(error)}
    judged = {kind: returns(make_env(name), policy) for kind, name in ENVS.items()}
    means = {f"in_{kind}": round(float(got.mean()), 2) for kind, got in judged.items()}
    return {"seed": seed, **means, "worst_in_torch": round(float(judged["torch"].min()), 2), **facts}


def compare(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Means and Student's 95 % intervals of the seeds, and whether their difference is more than seeds differ."""
    finals = {where: np.array([run.get("in_torch", 0.0) for run in runs[where]]) for where in ENVS}
    found: dict[str, Any] = {}
    for where, values in finals.items():
        half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
        mean = float(values.mean())
        found[where] = {"mean": round(mean, 1), "interval": [round(mean - half, 1), round(mean + half, 1)]}
    pair = finals["julia"], finals["torch"]
    welch = stats.ttest_ind(*pair, equal_var=False)
    low, high = welch.confidence_interval(0.95)
    # Of 5 and 5 seeds there are 252 permutations: all of them are counted.
    permuted = stats.permutation_test(
        pair, lambda a, b, axis: a.mean(axis) - b.mean(axis), n_resamples=10_000
    )
    return found | {
        "julia_minus_torch": round(float(pair[0].mean() - pair[1].mean()), 1),
        "interval_of_difference": [round(float(low), 1), round(float(high), 1)],
        "p_welch": round(float(welch.pvalue), 3),
        "p_permutation": round(float(permuted.pvalue), 3),
        "within_seed_noise": bool(permuted.pvalue > 0.05 and low <= 0 <= high),
    }


def table(results: Mapping[str, Any]) -> str:
    """Rows of optimizers and simulators; the returns in the torch simulator, in brackets in Julia's."""
    lines = [
        "| optimizer | trained in | return in the torch simulator, seed by seed (the same in Julia's) "
        "| mean, 95 % interval | seconds of training, median |",
        "|---|---|---|---|---|",
    ]
    verdicts = [
        "| optimizer | Julia minus torch, 95 % interval (Welch) | p, Welch | p, permutation | within seed noise |",
        "|---|---|---|---|---|",
    ]
    for optimizer, runs in results["runs"].items():
        known = results["comparison"].get(optimizer, {})
        for where in runs:
            cells = ", ".join(
                run.get("error") or f"{run['in_torch']:.0f} ({run['in_julia']:.0f})" for run in runs[where]
            )
            seconds = [run["seconds"] for run in runs[where] if "seconds" in run]
            took = f"{statistics.median(seconds):.0f}" if seconds else "–"
            lines.append(
                f"| {optimizer} | {where} | {cells} | {spread(known.get(where, {}), 'mean')} | {took} |"
            )
        if known:
            difference = spread({**known, "interval": known["interval_of_difference"]}, "julia_minus_torch")
            verdict = "yes" if known["within_seed_noise"] else "**no**"
            verdicts.append(
                f"| {optimizer} | {difference} | {known['p_welch']:.2f} | {known['p_permutation']:.2f} | {verdict} |"
            )
    return "\n".join([*lines, "", *verdicts])


def spread(known: Mapping[str, Any], name: str) -> str:
    return f"{known[name]:.0f} ({known['interval'][0]:.0f} to {known['interval'][1]:.0f})" if known else "–"


def versions() -> dict[str, str]:
    """What :func:`describe` does not tell."""
    import cma

    julia = installation.report(installation.find())
    return {"cma": cma.__version__, "Julia": julia.version, **julia.packages}


@click.command()
@click.option("--seeds", default=5, show_default=True)
@click.option("--only", multiple=True, type=click.Choice(list(SETTINGS)), default=list(SETTINGS))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="JSON to write, or to add to where it exists.",
)
@click.option("--report", is_flag=True, help="Train nothing; print what --out holds.")
def main(seeds: int, only: tuple[str, ...], out: Path, report: bool) -> None:
    """Train the cart-pole swing-up in torch and in Julia and print Markdown tables of the returns."""
    results: dict[str, Any] = {"runs": {}, "comparison": {}}
    if out.exists():
        results = json.loads(out.read_text())
    if report:
        print(table(results))
        return
    torch.set_num_threads(1)
    os.environ.setdefault("MUJOCO_GL", "disabled")
    try:
        threads = start(1).threads
        found = versions()
        with tempfile.TemporaryDirectory() as folder:  # what Julia compiles at its first calls, off the clock
            diffsim.train(ENVS["julia"], out=folder, quiet=True, updates=1)
    except (JuliaError, diffsim.DiffsimError) as error:
        raise click.ClickException(f"this compares with Julia, which is not there: {error}") from None
    results |= {
        "machine": describe("cpu"),
        "versions": found,
        "threads": {"torch": torch.get_num_threads(), "julia": threads},
        "episodes": EPISODES,
        "settings": SETTINGS,
    }
    for optimizer in only:
        results["comparison"].pop(optimizer, None)
        runs = results["runs"][optimizer] = {where: [] for where in ENVS}
        for seed in range(seeds):
            for where in ENVS:
                runs[where].append(train_and_judge(optimizer, where, seed))
                print(optimizer, where, runs[where][-1], flush=True)
            if seed:
                results["comparison"][optimizer] = compare(runs)
            order = {"runs", "comparison"}
            kept = {name: {o: results[name][o] for o in SETTINGS if o in results[name]} for name in order}
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps({**results, **kept}, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
