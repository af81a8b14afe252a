"""The gradient of a robot's rollout beside what MuJoCo's makers offer: MJX in reverse mode, and finite differences.

    python benchmarks/robot_peers.py --out benchmarks/results/robot_peers.json     needs jax and mujoco-mjx

HalfCheetah-v5 on one core, control intervals a second (five steps of 0.01 s each), median of rounds in which the
contestants take turns:

  ours            forward and backward through 8 intervals in closed loop with a policy (64-64 tanh), B = 256, float32
  mjx             the same by MJX and JAX, at one iteration of its solver: it differentiates no more; steps are computed
                  again in the backward pass (``jax.checkpoint``), compiled before
  mjd_transitionFD  ``mj_step`` and the Jacobians of every step by one-sided differences, float64, one rollout at a
                  time; products with the cotangents not counted
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

ROBOT = "gym:HalfCheetah-v5"
BATCH, STEPS, HIDDEN = 256, 8, (64, 64)


def make_policy() -> Any:
    """The policy of both sides, untrained."""
    import torch

    from diffsim.config import PolicyConfig
    from diffsim.policy import make_policy as make
    from robotics_envs import ENVIRONMENTS

    env = ENVIRONMENTS.load(ROBOT)()
    return make(PolicyConfig(hidden=HIDDEN), env, 0, torch.device("cpu"), torch.float32), env


def mjx_gradient(batch: int, steps: int) -> tuple[Callable[[], tuple[Any, Any]], float]:
    """MJX's mean cost and its gradient by the policy's weights as a compiled call, and the seconds of compiling."""
    import jax
    import jax.numpy as jnp
    import mujoco
    import numpy as np
    from mujoco import mjx

    jax.config.update("jax_default_matmul_precision", "highest")
    policy, env = make_policy()
    model = mujoco.MjModel.from_xml_path(str(env.model.source))
    model.opt.iterations = 1
    given, substeps = mjx.put_model(model), round(env.dt / model.opt.timestep)
    layers = [layer for layer in policy.network if hasattr(layer, "weight")]
    weights = [tuple(jnp.asarray(q.detach().numpy()) for q in (layer.weight, layer.bias)) for layer in layers]

    def act(weights: Any, z: Any) -> Any:
        *hidden, last = weights
        for w, b in hidden:
            z = jnp.tanh(w @ z + b)
        return jnp.tanh(last[0] @ z + last[1])

    @jax.checkpoint
    def interval(weights: Any, data: Any) -> tuple[Any, Any]:
        u, before = act(weights, jnp.concatenate([data.qpos[1:], data.qvel])), data.qpos[0]
        data = data.replace(ctrl=u)
        data, _ = jax.lax.scan(lambda d, _: (mjx.step(given, d), None), data, length=substeps)
        return data, 0.1 * jnp.sum(u**2) - (data.qpos[0] - before) / env.dt

    def cost(weights: Any, q: Any, v: Any) -> Any:
        data = mjx.make_data(given).replace(qpos=q, qvel=v)
        return jax.lax.scan(lambda data, _: interval(weights, data), data, length=steps)[1].mean()

    def loss(weights: Any, q: Any, v: Any) -> Any:
        return jax.vmap(cost, (None, 0, 0))(weights, q, v).mean()

    draw = np.random.default_rng(0)
    q = jnp.asarray(model.qpos0 + 0.1 * draw.uniform(-1, 1, (batch, model.nq)), jnp.float32)
    v = jnp.asarray(0.1 * draw.standard_normal((batch, model.nv)), jnp.float32)
    begun = time.perf_counter()
    compiled = jax.jit(jax.value_and_grad(loss)).lower(weights, q, v).compile()
    return lambda: jax.block_until_ready(compiled(weights, q, v)), time.perf_counter() - begun


def our_gradient(batch: int, steps: int) -> Callable[[], None]:
    """Ours."""
    import torch

    from diffsim.rollouts import Rollout

    torch.set_num_threads(1)
    policy, env = make_policy()
    x0 = env.reset(batch, torch.Generator().manual_seed(0))
    rollout, parameters = Rollout(env, policy, backend="native", threads=1), list(policy.parameters())

    def call() -> None:
        torch.autograd.grad(rollout(x0, steps).costs.mean(), parameters)

    return call


def finite_differences(intervals: int) -> Callable[[], None]:
    """MuJoCo's step and the Jacobians of it, under random actions."""
    import mujoco
    import numpy as np

    _, env = make_policy()
    model = mujoco.MjModel.from_xml_path(str(env.model.source))
    data, rng = mujoco.MjData(model), np.random.default_rng(0)
    n = 2 * model.nv
    by_state, by_control = np.zeros((n, n)), np.zeros((n, model.nu))

    def call() -> None:
        mujoco.mj_resetData(model, data)
        for _ in range(intervals):
            data.ctrl[:] = rng.uniform(-1, 1, model.nu)
            for _ in range(env.frame_skip):
                mujoco.mjd_transitionFD(model, data, 1e-6, False, by_state, by_control, None, None)
                mujoco.mj_step(model, data)

    return call


def table(results: dict[str, Any]) -> str:
    """Markdown."""
    from rollout_tables import table as rows

    ours = statistics.median(results["rates"]["ours"])
    lines = [
        [
            name,
            f"{statistics.median(rates):,.0f}",
            f"{min(rates):,.0f} to {max(rates):,.0f}",
            f"{ours / statistics.median(rates):,.0f}",
        ]
        for name, rates in results["rates"].items()
    ]
    return rows(["HalfCheetah-v5, gradient", "intervals/s", "rounds", "ours is faster by"], lines)


@click.command()
@click.option("--out", type=click.Path(path_type=Path))
@click.option("--rounds", default=7, show_default=True)
@click.option(
    "--table", "shown", type=click.Path(path_type=Path, exists=True), help="Print a file of results."
)
def main(out: Path | None, rounds: int, shown: Path | None) -> None:
    """Measure all three on one core."""
    if shown:
        print(table(json.loads(shown.read_text())))
        return
    missing = [name for name in ("jax", "mujoco") if importlib.util.find_spec(name) is None]
    if missing or importlib.util.find_spec("mujoco.mjx") is None:
        raise click.ClickException("needs JAX and MJX, the distributions jax and mujoco-mjx")
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    import mujoco

    from diffsim.runs.provenance import describe

    mjx, compiling = mjx_gradient(BATCH, STEPS)
    calls: dict[str, tuple[Callable[[], Any], int]] = {
        "ours": (our_gradient(BATCH, STEPS), BATCH * STEPS),
        "mjx": (mjx, BATCH * STEPS),
        "mjd_transitionFD": (finite_differences(40), 40),
    }
    rates: dict[str, list[float]] = {name: [] for name in calls}
    for round_number in range(rounds + 1):
        for name, (call, intervals) in calls.items():
            before = time.process_time()
            call()
            if round_number:  # the first one is not counted
                rates[name].append(intervals / (time.process_time() - before))
    machine = {k: v for k, v in describe("cpu").items() if k not in ("command", "folder")}
    results = {
        "command": "python benchmarks/robot_peers.py",
        "machine": machine,
        "mujoco": mujoco.__version__,
        "seconds MJX compiles": compiling,
        "rates": rates,
    }
    print(table(results))
    if out:
        out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
