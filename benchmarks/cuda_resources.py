"""What the CUDA kernels of every simulator take, and where their ceiling on an H100 is; no GPU is needed.

    python benchmarks/cuda_resources.py --out benchmarks/results/cuda_resources.json
    python benchmarks/cuda_resources.py --only cartpole --only quadrotor --arch sm_90 --out FILE
    python benchmarks/cuda_resources.py --table FILE

NVRTC compiles the kernels of a rollout with a policy of 64-64 tanh, float32, and its assembler reports registers, stack
and spills of a thread; shared memory is what the kernel asks for.  The ceiling counts the operations of the emitted
code and the bytes that pass through device memory, and takes the lower of the two limits.  Results of earlier calls
are kept.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from diffsim.policy import MLP, Policy
from diffsim.rollouts import Noise, Rollout
from diffsim.rollouts.cuda_native import written
from diffsim.rollouts.stepwise import Stepwise
from diffsim.rollouts.translation_cuda import CudaTranslation
from robotics_envs import ENVIRONMENTS
from robotics_envs.base import Env
from solvers.compiler.ir import Operand, Store, in_order
from solvers.compiler.operations import OPERATIONS
from solvers.compiler.trace import NativeUnsupportedError
from solvers.cuda import nvrtc

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
HIDDEN = (64, 64)

FLOPS = 132 * 128 * 2 * 1.755e9
"""Floating-point operations per second of an H100 SXM5 in float32: multiprocessors, lanes, multiply and add, clock
in Hz (NVIDIA, H100 Tensor Core GPU Architecture, 2022)."""
BANDWIDTH = 3.35e12
"""Bytes per second of its memory (the same)."""
FUNCTION = 16
"""Operations that a division, root or elementary function counts for: about those of tanh in ``scalars.h``."""


def make(name: str) -> tuple[Env, Policy]:
    """A simulator and an untrained policy."""
    env = ENVIRONMENTS.load("examples.cartpole:CartPole" if name == "cartpole" else name)()
    o, m = len(env.observation_names), len(env.action_box)
    like = torch.zeros(o)
    return env, Policy(MLP(o, m, HIDDEN), like, torch.ones(o), *env.action_box.bounds(like), "tanh")


def traced(name: str) -> tuple[CudaTranslation, str]:
    """The translation of a rollout with generated noise and its gradient by the policy, and the CUDA text."""
    env, policy = make(name)
    x0 = env.reset(8, torch.Generator().manual_seed(0))
    rollout = Rollout(env, policy)
    inputs = rollout._inputs(x0, 1, None, Noise(0, 0.1), None, None)
    with torch.no_grad():
        Stepwise().forward(inputs, keep_states=False)  # cached tensors exist before the trace
    translation, _, source = written(inputs, gradient=True)
    return translation, source


def operations(roots: Iterable[Operand], stop: tuple[Any, ...] = ()) -> int:
    """Floating-point operations below the roots, those of called functions as often as they are called."""
    count = 0
    for node in in_order(roots, stop):
        if node.op in ("call", "loop"):
            function = node.data if node.op == "call" else node.data.function
            times = 1 if node.op == "call" else node.data.count
            kept = function.reads.kept if function.reads is not None else ()
            count += times * operations(function.roots(), tuple(kept))
        elif node.op in OPERATIONS:
            count += FUNCTION if OPERATIONS[node.op].costly else 1
    return count


def ceiling(translation: CudaTranslation) -> dict[str, float]:
    """Operations and bytes of one environment step, forward and backward, and the steps per second they allow."""
    gathered = translation._gathered(translation._scalars(translation._offsets()))
    bodies: dict[str, list[Store]] = {name: stores for name, _, stores in translation.bodies(gathered)}
    step, vjp = (operations(store.value for store in bodies[name]) for name in ("step", "step_vjp"))
    buffers = translation.policy.buffers
    weights = sum(buffers[op.source].width * buffers[op.target].width for op in translation.policy.linears())
    activations = sum(FUNCTION * width for width in HIDDEN)
    # The layers are computed twice; their vector-Jacobian product is as much again by input and by weight.
    layers = 2 * (2 * weights + activations) + 4 * weights
    numbers = 2 * (translation.n + 1)  # states and costs are written, states and the costs' cotangents read
    needed = {"operations": float(step + vjp + layers), "bytes": float(translation.layout.itemsize * numbers)}
    limit = min(FLOPS / needed["operations"], BANDWIDTH / needed["bytes"])
    return {**needed, "of the layers": float(layers), "ceiling": limit}


def measured(name: str, architectures: Iterable[str], kept: dict[str, Any]) -> dict[str, Any]:
    """The entry of a simulator; what an earlier call compiled of the same text is kept."""
    try:
        translation, source = traced(name)
    except NativeUnsupportedError as error:
        return {"unsupported": str(error).splitlines()[0]}
    layout = translation.layout
    lines = source.count("\n")
    same = kept.get("lines") == lines and kept.get("nvrtc") == nvrtc.version()
    entry: dict[str, Any] = {
        "lines": lines,
        "nvrtc": nvrtc.version(),
        "rollouts in a block": layout.rollouts,
        "shared memory": {"forward": layout.forward_bytes, "backward": layout.backward_bytes},
        "step": ceiling(translation),
        "architectures": dict(kept.get("architectures", {})) if same else {},
    }
    for arch in architectures:
        if arch in entry["architectures"]:
            continue
        started = time.process_time()
        try:
            code, log = nvrtc.compiled(source, arch)
        except NativeUnsupportedError as error:
            entry["architectures"][arch] = {"failed": str(error)[:300]}
            continue
        kernels = {kernel: found._asdict() for kernel, found in sorted(nvrtc.resources(log).items())}
        seconds = round(time.process_time() - started, 1)
        entry["architectures"][arch] = {"code bytes": len(code), "CPU seconds": seconds, "kernels": kernels}
    return entry


def table(results: dict[str, Any]) -> str:
    """Markdown: a row per simulator, of the middle architecture where there are several."""
    from rollout_tables import table as rows

    lines = []
    for name, entry in results.items():
        found = entry.get("architectures", {}).get("sm_90", {})
        if "kernels" not in found:
            lines.append([name, entry.get("unsupported") or found.get("failed", "–"), *["–"] * 6])
            continue
        cells = [
            "/".join(str(found["kernels"][kernel][what]) for kernel in ("forward", "backward"))
            for what in ("registers", "stack_bytes", "spill_bytes")
        ]
        memory = "/".join(str(entry["shared memory"][k] // 1024) for k in ("forward", "backward"))
        step = entry["step"]
        model = [f"{step['operations'] / 1e3:.1f}", f"{step['bytes']:.0f}", f"{step['ceiling'] / 1e6:,.0f}"]
        lines.append([name, *cells, memory, *model])
    head = ["sm_90, forward/backward", "registers", "stack bytes", "spilled bytes", "shared memory, KB"]
    return rows([*head, "1,000 operations a step", "bytes a step", "ceiling, million steps/s"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="JSON to write, or to add to")
    parser.add_argument("--only", action="append", help="this simulator; may be repeated")
    parser.add_argument("--arch", action="append", help="this architecture; may be repeated")
    parser.add_argument("--table", type=Path, help="print the table of a result, and end")
    options = parser.parse_args()
    if options.table:
        print(table(json.loads(options.table.read_text(encoding="utf-8"))))
        return
    names = options.only or ["cartpole", *(name for name in ENVIRONMENTS if not name.startswith("julia:"))]
    results = {}
    if options.out and options.out.exists():
        results = json.loads(options.out.read_text(encoding="utf-8"))
    for name in names:
        results[name] = measured(name, options.arch or ARCHITECTURES, results.get(name, {}))
        print(name, json.dumps(results[name]), flush=True)
        if options.out:
            options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
