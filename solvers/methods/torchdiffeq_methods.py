"""torchdiffeq's methods behind the same interface.

They use one step size for the whole batch, so a failure concerns the whole batch.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, ClassVar

import torch
from torch import Tensor

from solvers.failure import Failure, SolveError
from solvers.methods.base import Solver, State, VectorField
from solvers.modes import AutocastState
from solvers.validation import real_number, whole_number

_ADAPTIVE_OPTIONS = frozenset(
    [
        "norm",
        "min_step",
        "max_step",
        "first_step",
        "step_t",
        "jump_t",
        "safety",
        "ifactor",
        "dfactor",
        "max_num_steps",
        "dtype",
    ]
)
_FIXED_OPTIONS = frozenset(["norm", "grid_constructor", "interp", "perturb"])
_ADAMS_OPTIONS = _FIXED_OPTIONS | {"max_iters", "max_order"}
_SCIPY_OPTIONS = frozenset({"solver", "min_step", "max_step"})
_WHOLE_NUMBERS = frozenset(["max_num_steps", "max_iters", "max_order"])
_REAL_NUMBERS = frozenset(
    ["min_step", "max_step", "first_step", "safety", "ifactor", "dfactor", "adjoint_rtol", "adjoint_atol"]
)
_ADJOINT_OPTIONS = frozenset(["adjoint_rtol", "adjoint_atol", "adjoint_method", "adjoint_options"])


class TorchdiffeqSolver(Solver):
    """A method of torchdiffeq; ``options`` are torchdiffeq's, its ``adjoint_*`` arguments included.

    ``rtol``, ``atol`` and ``dt`` come from :func:`solvers.solve`; methods of fixed step divide the time between
    control switches into equal steps of at most dt and interpolate outputs cubically (``interp``); adaptive ones end a
    step at every output (``step_t``).

    Raises:
        ValueError: an option that this method does not know; torchdiffeq itself would only warn.
    """

    method: ClassVar[str]
    option_names: ClassVar[frozenset[str]]
    takes_tolerances: ClassVar[bool] = False
    adjoints: ClassVar[tuple[str, ...]] = ("backprop", "adjoint")

    def __init__(self, **options: Any) -> None:
        known = self.option_names | _ADJOINT_OPTIONS
        unknown = sorted(set(options) - known)
        if unknown:
            raise ValueError(
                f"torchdiffeq's {self.method} has no option {', '.join(unknown)}; it has: {', '.join(sorted(known))}"
            )
        for name, value in options.items():
            if value is None or isinstance(value, Tensor):
                continue
            if name in _WHOLE_NUMBERS:
                options[name] = whole_number(name, value, least=1)
            elif name in _REAL_NUMBERS:
                options[name] = real_number(name, value, infinite=True)
        self.adjoint_arguments = {k: v for k, v in options.items() if k in _ADJOINT_OPTIONS}
        self.options = {k: v for k, v in options.items() if k not in _ADJOINT_OPTIONS}

    def _label(self) -> str:
        return f"torchdiffeq.{self.method}"

    def step(self, f: VectorField, t: float | Tensor, x: State, u: Any, p: Any, dt: float | Tensor) -> State:
        """The state at ``t + dt``: one step of a fixed-step method, as many as it needs of an adaptive one."""
        start = torch.as_tensor(t, dtype=x.dtype, device=x.device)
        ts = torch.stack((start, start + dt))
        return self.integrate(f, x, ts, u, p, {}, dt=None, adjoint=None)[-1]

    def integrate(
        self,
        f: VectorField,
        x: State,
        ts: Tensor,
        u: Any,
        p: Any,
        tolerances: dict[str, float],
        *,
        dt: float | None,
        adjoint: tuple[Tensor, ...] | None,
        counts: dict[str, Any] | None = None,
    ) -> Tensor:
        """The states at ``ts``, ``[T, *batch, n]``, under one control; ``adjoint``: the tensors to differentiate by."""
        import torchdiffeq
        from torchdiffeq._impl.odeint import SOLVERS as IMPLEMENTED

        if adjoint is not None:
            f = AutocastState.now(x.device).wrap(f)  # in the backward solve too
        counts = {} if counts is None else counts
        counts.update(t=ts[0], step=None)
        field = _Field(f, u, p, counts, IMPLEMENTED[self.method].valid_callbacks())
        options = dict(self.options)
        if not self.adaptive:
            span = float((ts[-1] - ts[0]).detach())
            steps = 1 if dt is None else max(1, math.ceil(span / dt - 1e-6))
            # Equal steps: torchdiffeq's own step_size leaves a shorter last one, which costs Adams its order,
            # and its linear interpolation costs every method's outputs theirs.
            options.setdefault("grid_constructor", _EqualSteps(steps))
            options.setdefault("interp", "cubic")
        elif "step_t" in self.option_names:
            # End a step at every output: torchdiffeq's interpolation is of order 4 at best, for dopri8 too.
            options.setdefault("step_t", ts[1:].detach())
        arguments: dict[str, Any] = {"method": self.method, "options": options, **tolerances}
        try:
            with warnings.catch_warnings():
                # torchdiffeq passes the arguments of all methods to SciPy, which warns of those a method does not use.
                warnings.filterwarnings("ignore", "The following arguments have no effect")
                if adjoint is None:
                    xs = torchdiffeq.odeint(field, x, ts, **arguments)
                else:
                    arguments |= self.adjoint_arguments
                    xs = torchdiffeq.odeint_adjoint(field, x, ts, adjoint_params=adjoint, **arguments)
        except AssertionError as error:
            raise self._failure(str(error), x, counts) from error
        except RuntimeError as error:
            if self.method == "scipy_solver" and "shape" in str(error):
                raise self._failure("SciPy stopped before the end", x, counts) from error
            raise
        if not bool(torch.isfinite(xs[-1]).all()):
            raise self._failure("the state is not finite", x, counts)
        return xs

    def _failure(self, what: str, x: Tensor, counts: dict[str, Any]) -> SolveError:
        failure = Failure.NOT_FINITE
        if "underflow" in what:
            failure = Failure.STEP_UNDERFLOW
        elif "max_num_steps" in what:
            failure = Failure.MAX_STEPS
        status = torch.full(x.shape[:-1], failure, dtype=torch.int64, device=x.device)
        where = "before" if failure is Failure.NOT_FINITE else "near"
        step = "" if counts["step"] is None else f", last step size {float(counts['step']):.3g}"
        return SolveError(
            f"torchdiffeq's {self.method} failed {where} t = {float(counts['t']):.6g}{step}: {what}. "
            f"All {status.numel()} rollouts share its step size, so all have failed. "
            "Remedy: a method with a step size per rollout (solver='tsit5', or 'rodas5p' if the problem is stiff), "
            "or looser tolerances.",
            status,
        )


class _EqualSteps:
    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __call__(self, f: Any, x: Tensor, ts: Tensor) -> Tensor:
        shares = torch.linspace(0.0, 1.0, self.steps + 1, dtype=ts.dtype, device=ts.device)
        return torch.lerp(ts[0], ts[-1], shares)


class _Field:
    """``(t, x) -> f``, counting; torchdiffeq calls the ``callback_*`` it finds."""

    def __init__(self, f: VectorField, u: Any, p: Any, counts: dict[str, Any], callbacks: set[str]) -> None:
        self.f, self.u, self.p, self.counts = f, u, p, counts
        self.on_scipy, self.furthest, self.waited = not callbacks, math.inf, 0
        for name in ("callback_step", "callback_accept_step", "callback_reject_step"):
            if name in callbacks:
                setattr(self, name, getattr(self, "_" + name))

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        if self.on_scipy:
            self._watch(float(t.detach()), x.numel())
        self.counts["t"] = t.detach()
        return self.f(t.to(x.dtype), x, self.u, self.p)

    def _watch(self, t: float, numbers: int) -> None:
        """Stop SciPy's LSODA, which does not end where no step is short enough."""
        moved = abs(t - self.furthest) > 1e-13 * abs(t)
        self.furthest, self.waited = (t, 0) if moved else (self.furthest, self.waited + 1)
        assert self.waited <= 1000 + 100 * numbers, "underflow in dt: the time no longer advances"

    def _callback_step(self, t: Tensor, x: Tensor, dt: Tensor) -> None:
        self.counts["step"] = dt.detach()
        if not hasattr(self, "callback_accept_step"):
            self._callback_accept_step(t, x, dt)

    def _callback_accept_step(self, t: Tensor, x: Tensor, dt: Tensor) -> None:
        self.counts["accepted"] = self.counts.get("accepted", 0) + 1

    def _callback_reject_step(self, t: Tensor, x: Tensor, dt: Tensor) -> None:
        self.counts["rejected"] = self.counts.get("rejected", 0) + 1


class Dopri5(TorchdiffeqSolver):
    """Dormand–Prince of order 5, one step size for the batch."""

    method, order, adaptive, option_names, takes_tolerances = "dopri5", 5, True, _ADAPTIVE_OPTIONS, True


class Dopri8(TorchdiffeqSolver):
    """Dormand–Prince of order 8, one step size for the batch."""

    method, order, adaptive, option_names, takes_tolerances = "dopri8", 8, True, _ADAPTIVE_OPTIONS, True


class Bosh3(TorchdiffeqSolver):
    """Bogacki–Shampine of order 3, one step size for the batch."""

    method, order, adaptive, option_names, takes_tolerances = "bosh3", 3, True, _ADAPTIVE_OPTIONS, True


class Fehlberg2(TorchdiffeqSolver):
    """Fehlberg of order 2, one step size for the batch."""

    method, order, adaptive, option_names, takes_tolerances = "fehlberg2", 2, True, _ADAPTIVE_OPTIONS, True


class AdaptiveHeun(TorchdiffeqSolver):
    """Heun–Euler of order 2, one step size for the batch."""

    method, order, adaptive, option_names, takes_tolerances = (
        "adaptive_heun",
        2,
        True,
        _ADAPTIVE_OPTIONS,
        True,
    )


class Euler(TorchdiffeqSolver):
    """Forward Euler."""

    method, order, option_names = "euler", 1, _FIXED_OPTIONS


class Midpoint(TorchdiffeqSolver):
    """Explicit midpoint."""

    method, order, option_names = "midpoint", 2, _FIXED_OPTIONS


class Heun2(TorchdiffeqSolver):
    """Heun of order 2."""

    method, order, option_names = "heun2", 2, _FIXED_OPTIONS


class Heun3(TorchdiffeqSolver):
    """Heun of order 3."""

    method, order, option_names = "heun3", 3, _FIXED_OPTIONS


class RK4(TorchdiffeqSolver):
    """The 3/8 rule of order 4."""

    method, order, option_names = "rk4", 4, _FIXED_OPTIONS


class ExplicitAdams(TorchdiffeqSolver):
    """Adams–Bashforth of order ``max_order - 1``, started by rk4.

    ``max_order`` is 5 unless given: with torchdiffeq's default of 12 the method is rarely stable.
    """

    method, order, option_names, takes_tolerances = "explicit_adams", 4, _ADAMS_OPTIONS, True

    default_max_order: ClassVar[int] = 5

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"max_order": self.default_max_order, **options})


class ImplicitAdams(ExplicitAdams):
    """Adams–Bashforth–Moulton of order ``max_order``, 4 unless given, started by rk4.

    The tolerances are those of the corrector's iteration, which ``max_iters`` limits.
    """

    method = "implicit_adams"
    default_max_order = 4


class FixedAdams(ImplicitAdams):
    """torchdiffeq's older name of ``implicit_adams``."""

    method = "fixed_adams"


class Scipy(TorchdiffeqSolver):
    """``scipy.integrate.solve_ivp`` on the CPU; ``solver`` names its method (LSODA, RK45, Radau, BDF, …).

    It computes outside of torch, so only the continuous adjoint can differentiate it.
    """

    method, order, adaptive, option_names, takes_tolerances = "scipy_solver", 5, True, _SCIPY_OPTIONS, True
    adjoints: ClassVar[tuple[str, ...]] = ("adjoint",)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if "min_step" in options and options.get("solver", "LSODA") != "LSODA":
            raise ValueError(f"SciPy's {options['solver']} has no min_step; only LSODA has")
