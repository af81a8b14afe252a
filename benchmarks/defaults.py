"""The default settings on every simulator: ``python benchmarks/defaults.py --out benchmarks/results/defaults.json``.

Trains each simulator for some seeds with nothing set, in a process a run, and judges the policy that the run keeps (the
best from its held-out starts) from 64 other starts: returns, and in how many episodes it succeeds (``Env.success``).
Runs that are in the file already are not repeated, so a run that was killed can go on and seeds can be added.
``--variant NAME --set KEY=VALUE`` measures another setting beside the default, for ablations.  ``--table`` prints the
results as Markdown.  Returns are comparable within a simulator only.

CPU seconds are those of the process that trains, from its start, with imports, compiling and evaluations.  Seconds to
success are those at the first evaluation from which on no evaluation has fewer successes than the simulator asks for.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

EPISODES = 64
SEED = 1  # of the starts that policies are judged from, which no run has seen
TWIN_EPISODES = 100


def judge(name: str, seed: int, overrides: list[str], twins: bool) -> dict[str, Any]:
    """Train once; what came out."""
    import torch

    import diffsim
    from diffsim.config import merge, parse_assignment
    from diffsim.rollouts import Rollout
    from diffsim.runs.evaluation import LoadedRun, successes_of

    settings = merge({"threads": 1}, *map(parse_assignment, overrides))
    with tempfile.TemporaryDirectory() as folder:
        seconds: dict[int, float] = {}

        def note(row: dict[str, float]) -> None:
            seconds[int(row["update"])] = time.process_time()

        file = diffsim.train(name, out=folder, seed=seed, quiet=True, callback=note, **settings)
        used = resource.getrusage(resource.RUSAGE_SELF)
        history = file.history()
        result: dict[str, Any] = {
            "updates": len(history["update"]),
            "env_steps": int(history["env_steps"][-1]),
            "cpu_seconds": used.ru_utime + used.ru_stime,
            "training_seconds": float(history["wall_seconds"][-1]),
            "compile_seconds": float(history["compile_seconds"][-1]),
            "dropped": int(history["step_dropped"].sum()),
            "left_out": int(history["left_out"].sum()),
        }
        measured = history["success"] == history["success"]
        result["curve"] = [
            [int(u), round(seconds[int(u)], 2), round(float(r), 4), round(float(q), 4)]
            for u, r, q in zip(*(history[k][measured] for k in ("update", "return", "success")), strict=True)
        ]
        for checkpoint in ("best", "last"):
            loaded = LoadedRun(file.path, checkpoint)
            env, x = loaded.env, loaded.env.reset(EPISODES, torch.Generator().manual_seed(SEED))
            rollout = Rollout(env, loaded.policy.module, expected_steps=env.episode_steps)
            returns, _, states = rollout.episodes(x, keep_states=True)
            result[checkpoint] = {
                "update": loaded.update,
                "mean": float(returns.mean()),
                "worst": float(returns.min()),
                "successes": int(successes_of(env, states).sum()),
            }
        assert env.success_criterion is not None
        result["needed"] = env.success_criterion.needed(EPISODES)
        if twins and env.gym_id is not None:
            result["twin"] = diffsim.evaluate(file, gym=env.gym_id, episodes=TWIN_EPISODES, seed=1000).mean
    return result


def solved(run: dict[str, Any]) -> bool:
    return "error" not in run and run["best"]["successes"] >= run["needed"]


def seconds_to_success(run: dict[str, Any]) -> float:
    """CPU seconds to the first evaluation from which on the run succeeds; infinite if there is none."""
    found = float("inf")
    for _, seconds, _, success in reversed(run["curve"]):
        if success < run["needed"] / EPISODES:
            break
        found = seconds
    return found


def steps_in_words(steps: float) -> str:
    """In millions; below one million, exactly."""
    return f"{steps / 1e6:.2f}M" if steps >= 1e6 else f"{steps:,.0f}"


def table(results: dict[str, Any], variant: str, times: bool) -> str:
    """A row a simulator: seeds solved, successes of every seed, returns, steps; seconds to success and in all."""
    heads = [
        "simulator",
        "solved",
        "successes of 64, by seed",
        "return of every seed",
        "in the twin",
        "steps",
    ]
    heads += ["s to success", "CPU s"] * times
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for name, runs in results.items():
        runs = [r for r in runs if r["variant"] == variant]
        fine = [r for r in runs if "error" not in r]
        if not fine:
            continue
        reached = statistics.median(map(seconds_to_success, fine))
        cells = [
            f"`{name}`",
            f"{sum(map(solved, runs))} of {len(runs)}",
            ", ".join("failed" if "error" in r else str(r["best"]["successes"]) for r in runs),
            ", ".join(f"{r['best']['mean']:.4g}" for r in fine),
            ", ".join(f"{r['twin']:.5g}" for r in fine if "twin" in r) or "–",
            steps_in_words(statistics.median(r["env_steps"] for r in fine)),
        ]
        if times:
            cells.append("–" if reached == float("inf") else f"{reached:.0f}")
            cells.append(f"{statistics.median(r['cpu_seconds'] for r in fine):.0f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def in_a_process(name: str, seed: int, overrides: list[str], twins: bool) -> dict[str, Any]:
    """:func:`judge` in a process of its own, so that one that dies takes nothing else with it."""
    command = [sys.executable, __file__, "--one", name, str(seed), json.dumps(overrides), str(int(twins))]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        return {"error": last[0][:500]}
    return {**json.loads(done.stdout.splitlines()[-1]), "elapsed": time.perf_counter() - started}


def _load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {"command": "", "machine": {}, "results": {}}


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=ROOT / "benchmarks/results/defaults.json")
@click.option("--simulators", default="", help="Comma-separated; all by default.")
@click.option("--seeds", default="0-9", show_default=True, help="First and last, or a list: 0-9 or 0,3.")
@click.option("--processes", default=os.cpu_count() or 1, show_default=True)
@click.option(
    "--variant", default="default", show_default=True, help="Name of the settings that --set makes."
)
@click.option("--set", "overrides", multiple=True, help="KEY=VALUE, as of diffsim train.")
@click.option("--twins/--no-twins", default=True, help="Also judge in foreign simulators, 100 episodes.")
@click.option("--table", "only_table", is_flag=True, help="Print the table of the results and stop.")
@click.option("--times", is_flag=True, help="With CPU seconds.")
@click.option("--one", nargs=4, hidden=True)
def main(
    out: Path,
    simulators: str,
    seeds: str,
    processes: int,
    variant: str,
    overrides: tuple[str, ...],
    twins: bool,
    only_table: bool,
    times: bool,
    one: tuple[str, str, str, str] | None,
) -> None:
    """Measure, or print what was measured."""
    if one:
        name, seed, given, with_twins = one
        print(json.dumps(judge(name, int(seed), json.loads(given), bool(int(with_twins)))))
        return
    data = _load(out)
    if only_table:
        print(table(data["results"], variant, times))
        return
    from diffsim.runs.provenance import describe
    from diffsim.runs.whole_files import write_whole
    from robotics_envs import ENVIRONMENTS
    from robotics_envs.environments import GYM_TASKS

    names = simulators.split(",") if simulators else list(ENVIRONMENTS)
    first, _, last = seeds.partition("-")
    wanted = list(range(int(first), int(last) + 1)) if last else [int(s) for s in seeds.split(",")]
    data["machine"] = {k: v for k, v in describe("cpu").items() if k not in ("command", "folder")}
    data["command"] = "python benchmarks/defaults.py"
    done = {(n, r["seed"]) for n, runs in data["results"].items() for r in runs if r["variant"] == variant}
    # Seed by seed, so that a part of the results covers every simulator.
    todo = [job for job in ((n, s) for s, n in itertools.product(wanted, names)) if job not in done]

    def work(job: tuple[str, int]) -> tuple[str, int, dict[str, Any]]:
        return *job, in_a_process(*job, list(overrides), twins)

    with ThreadPoolExecutor(processes) as pool:
        for future in as_completed([pool.submit(work, job) for job in todo]):
            name, seed, got = future.result()
            run = {"variant": variant, "settings": list(overrides), "seed": seed, **got}
            runs = data["results"].setdefault(name, [])
            runs.append(run)
            runs.sort(key=lambda r: (r["variant"] != "default", r["variant"], r["seed"]))
            data["results"] = {
                n: data["results"][n] for n in (*ENVIRONMENTS, *GYM_TASKS) if n in data["results"]
            }
            write_whole(out, f"{json.dumps(data, indent=1)}\n".encode())
            if "error" in got:
                print(f"{variant} {name} seed {seed}: FAILED {got['error']}", flush=True)
                continue
            best = got["best"]
            print(
                f"{variant} {name} seed {seed}: {best['successes']} of {EPISODES} (needed {got['needed']}), return "
                f"{best['mean']:.4g} at update {best['update']}, last {got['last']['successes']}, twin "
                f"{got.get('twin', float('nan')):.5g}; {got['cpu_seconds']:.0f} CPU s, success from "
                f"{seconds_to_success(got):.0f} s on",
                flush=True,
            )


if __name__ == "__main__":
    main()
