"""Which back end computes a rollout: chosen, prepared once, and found again at the next call."""

from __future__ import annotations

import functools
import logging
import time
from typing import Any

import torch

from diffsim.rollouts.autocast import autocast_as
from diffsim.rollouts.held_modules import HeldModules
from diffsim.rollouts.inputs import Engine, Inputs, UnsupportedError
from diffsim.rollouts.inspection import Findings, fingerprints, look
from diffsim.rollouts.noise import Noise
from diffsim.rollouts.stepwise import Unrolled
from diffsim.rollouts.traced import key_of
from diffsim.rollouts.windows import Windows
from lazy_registry.registry import Registry
from solvers.cuda.nvrtc import NoNvrtcError
from solvers.native import build
from solvers.native.traces import keep, recall

logger = logging.getLogger("diffsim")

BACKENDS = Registry(
    "backend",
    {
        "eager": "diffsim.rollouts.stepwise:Stepwise",
        "cuda_graph": "diffsim.rollouts.cuda_graph:CudaGraph",
        "cuda_native": "diffsim.rollouts.cuda_native:CudaNative",
        "inductor": "diffsim.rollouts.inductor:Inductor",
        "native": "diffsim.rollouts.native:Native",
    },
)

SAVED = (1.2e-5, 6.4e-9)
"""Seconds that a kernel saves at every control interval for each operation of torch in it: these, and so many for each
rollout.  With ``COMPILING["native"]`` fitted to benchmarks/results/back_end_choice.json, which is not read here: a run
repeats on the same back end."""

COMPILING = {
    "native": (2.0, 0.00095),
    "cuda_native": (10.0, 0.0),
    "cuda_graph": (1.0, 0.0),
    "inductor": (30.0, 0.0),
}
"""Seconds of compiling, and more for each operation; only the first are measured for all simulators."""

_TRACING = ("auto", "native")
"""Names of back ends whose traces are kept for other processes."""

_MOST_ENGINES = 16
"""The number of prepared back ends that a rollout keeps; the oldest is dropped first."""


class Engines:
    """The back ends of one rollout.

    Args:
        backend: a name in :data:`BACKENDS`, or ``"auto"``.
        expected_steps: how many control intervals will be simulated in all calls together, if known.
    """

    def __init__(self, backend: str, expected_steps: int | None) -> None:
        self.backend, self.expected_steps = backend, expected_steps
        self.prepared: dict[Any, Engine] = {}
        self.fingerprints = fingerprints()
        self.compile_seconds = 0.0
        """Seconds spent on preparing back ends so far."""
        self._said: set[str] = set()

    def of(self, inputs: Inputs, about: HeldModules, gradient: bool) -> Engine:
        """The back end for these inputs, prepared if it is new.  ``about`` holds what is the same at every call."""
        p, timed = inputs.p, (inputs.noise, inputs.controls)
        kinds = [
            type(q) if q is None or isinstance(q, Noise) else gradient and q.requires_grad for q in timed
        ]
        # Which parameters are trained, and how many values each physical one has, is the same as at the last call.
        short = (inputs.cast, gradient and inputs.x0.requires_grad, *kinds, gradient)
        if gradient:
            short += tuple([v.requires_grad for v in p.values()])
        engine = about.ready.get(short)
        if engine is None:
            engine = about.ready[short] = self._found(inputs, gradient)
        return engine

    def _found(self, inputs: Inputs, gradient: bool) -> Engine:
        """The same by everything that it was prepared for."""
        x0, p, cast = inputs.x0, inputs.p, inputs.cast
        given = (x0.dtype, x0.device, cast, type(inputs.noise), inputs.controls is None)
        kinds = (tuple(p), tuple([v.ndim for v in p.values()]), tuple(map(id, inputs.parameters)))
        common = (given, kinds, inputs.held)
        wanted = tuple([gradient and v.requires_grad for v in inputs.named().values()])
        key = (common, wanted)
        engine = self.prepared.get(key)
        if engine is None:
            for (others, _), other in self.prepared.items():
                if others == common and not gradient:
                    return other  # one prepared for gradients serves without them as well
            started = time.perf_counter()
            with (
                torch.inference_mode(False),
                torch.set_grad_enabled(gradient),
                autocast_as(cast, inputs.x0.device),
            ):
                engine = self._looked_at(inputs, gradient)
            if engine.compiled:
                self.compile_seconds += time.perf_counter() - started
            while len(self.prepared) >= _MOST_ENGINES:
                self.prepared.pop(next(iter(self.prepared)))
            self.prepared[key] = engine
            if engine.watched:  # there is a C++ compiler then
                self.fingerprints.load = build.load
        return engine

    def _looked_at(self, inputs: Inputs, gradient: bool) -> Engine:
        """A new back end for a rollout that has been looked at, by this process or, with its trace, by another."""
        key = key_of(inputs, gradient) if self.backend in _TRACING and inputs.x0.is_cpu else None
        about = None if key is None else key.about("findings")
        findings = known = Findings.read(recall(about))
        engine = None if known is None else self._ready(inputs, gradient, known)
        if findings is None or engine is None or not engine.from_disk:
            findings = look(inputs, gradient)
            if about is not None and not findings.changing:
                keep(about, findings.written())
        if engine is None or findings != known:
            engine = self._ready(inputs, gradient, findings)
        engine.constant = findings.constant
        return engine

    def _ready(self, inputs: Inputs, gradient: bool, findings: Findings) -> Engine:
        if findings.changing:
            if gradient:
                self._say(
                    f"the rollout {findings.changing}, so its steps cannot be computed again: plain autograd is used, "
                    "which stores the graph of every step; pass random numbers as noise to avoid it"
                )
            elif self.backend not in ("auto", "eager"):
                self._say(
                    f"backend {self.backend!r} cannot compile a rollout that {findings.changing}: eager"
                )
            return Unrolled()
        if inputs.env.foreign:
            # Its forward pass computes derivatives along with the values, so steps are not computed again.
            if self.backend not in ("auto", "eager"):
                self._say(
                    f"backend {self.backend!r} cannot compile {inputs.env.name}, which is not computed in torch: eager"
                )
            return Windows() if inputs.env.whole_windows and inputs.controls is not None else Unrolled()
        if inputs.cast:
            if self.backend != "eager":
                self._say("torch.autocast is on, which compiled back ends do not follow: eager")
            return BACKENDS.load("eager").prepare(inputs, gradient)
        for name in self.candidates(inputs, findings.operations):
            try:
                if name in ("native", "cuda_native") and findings.functions:
                    known = ", ".join(findings.functions)
                    raise UnsupportedError(
                        f"a trace does not see the gradient of torch.autograd.Function {known}"
                    )
                return BACKENDS.load(name).prepare(inputs, gradient)
            except UnsupportedError as error:
                if isinstance(error.__cause__, build.NoCompilerError):
                    continue  # logged once a process, where it is found
                if self.backend == "auto" and isinstance(error.__cause__, NoNvrtcError):
                    _say_no_nvrtc(str(error))
                    continue
                self._say(f"backend {name!r} cannot run this rollout, another one is used: {error}")
        raise AssertionError("eager can run every rollout")

    def _say(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            logger.warning(message)

    def candidates(self, inputs: Inputs, count: int) -> list[str]:
        """Names of back ends in the order of preference, for so many operations in a control interval."""
        if self.backend != "auto":
            return [self.backend, "eager"]
        kind = inputs.x0.device.type
        fitting = {"cpu": ["native", "inductor"], "cuda": ["cuda_native", "cuda_graph"]}.get(
            kind, ["inductor"]
        )
        if self.expected_steps is None:
            return [*(fitting if kind == "cuda" else fitting[:1]), "eager"]
        # By counting operations, not by timing, so that the same run always uses the same back end.
        each, of_a_rollout = SAVED
        saved = self.expected_steps * count * (each + of_a_rollout * len(inputs.x0))
        pays = [name for name in fitting if saved > COMPILING[name][0] + COMPILING[name][1] * count]
        return [*pays, "eager"]


@functools.cache
def _say_no_nvrtc(message: str) -> None:
    logger.warning("rollouts on CUDA take several times as long as they could: %s", message)
