"""``solve`` on a device: values and gradients of every method against the CPU's, events, rollouts that fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gpu_parts.report import Report, SkippedError, agree
from solvers import SOLVERS, Event, make_solver, solve

CPU = torch.device("cpu")
Result = dict[str, Tensor]


def run(report: Report, device: torch.device, quick: bool) -> None:
    """Every case of the part."""
    methods(report, device, quick, slice(0, 1))
    cases: dict[str, Callable[[torch.device], Result]] = {
        "events with a jump": bouncing_ball,
        "terminal event": first_landing,
        "failed rollouts marked": blow_up,
        "times of every rollout": own_times,
    }
    for name, compute in cases.items():
        report.case(name, lambda c=compute: agree(c(device), c(CPU), 1e-7))
    report.case("native falls back to eager", lambda: native_on(device))
    if not quick:
        methods(report, device, quick, slice(1, None))


def methods(report: Report, device: torch.device, quick: bool, which: slice) -> None:
    """Every method, differentiated in ``which`` of its ways: its default comes first."""
    for dtype in (torch.float64,) if quick else (torch.float64, torch.float32):
        for name in SOLVERS:
            for adjoint in type(make_solver(name)).adjoints[which]:
                report.case(
                    f"{name} {adjoint} {str(dtype).removeprefix('torch.')}",
                    lambda n=name, a=adjoint, d=dtype: one_method(n, a, d, device, quick),
                )


def one_method(
    name: str, adjoint: str, dtype: torch.dtype, device: torch.device, quick: bool
) -> dict[str, float]:
    """Compare states and gradients; steps that a method chooses itself agree to its tolerance only."""
    chooses = make_solver(name).adaptive
    fine, coarse = (1e-6, 1e-10) if dtype == torch.float64 else (5e-3, 2e-4)
    if adjoint == "adjoint":  # its backward solve has steps of its own
        fine = max(fine, 1e-4)
    got, expected = (swing(name, adjoint, dtype, where, quick) for where in (device, CPU))
    return agree(got, expected, fine if chooses else coarse)


def _leaves(device: torch.device, dtype: torch.dtype, **values: Tensor) -> dict[str, Tensor]:
    return {name: value.to(device, dtype).requires_grad_() for name, value in values.items()}


def _with_gradients(xs: Tensor, weighed: Tensor, leaves: dict[str, Tensor], **more: Tensor) -> Result:
    gradients = torch.autograd.grad(weighed, list(leaves.values()))
    return {"xs": xs, **more, **{f"gradient by {k}": g for k, g in zip(leaves, gradients, strict=True)}}


def swing(name: str, adjoint: str, dtype: torch.dtype, device: torch.device, quick: bool) -> Result:
    """A damped pendulum under a held torque and a force that depends on the time; x = [angle rad, rate rad/s]."""
    draws = torch.Generator().manual_seed(0)
    batch = 7
    leaves = _leaves(
        device,
        dtype,
        x0=torch.randn(batch, 2, generator=draws, dtype=torch.float64),
        u=torch.randn(3, batch, generator=draws, dtype=torch.float64),
        k=2.0 + torch.rand(batch, generator=draws, dtype=torch.float64),
        damping=torch.tensor(0.3, dtype=torch.float64),
    )
    weights = torch.randn(5, batch, 2, generator=draws, dtype=torch.float64).to(device, dtype)

    def f(t: Any, x: Tensor, u: Tensor, p: dict[str, Tensor]) -> Tensor:
        q, v = x.unbind(-1)
        push = u - p["k"] * torch.sin(q) - p["damping"] * v + 0.1 * torch.cos(t)
        return torch.stack((v, push), -1)

    method = make_solver(name)
    tolerance = 1e-6 if dtype == torch.float64 and not quick else 1e-4
    options = {"rtol": tolerance, "atol": tolerance} if method.adaptive else {"dt": 0.2 if quick else 0.05}
    solution = solve(
        f,
        leaves["x0"],
        torch.linspace(0.0, 1.0, 5),
        leaves["u"],
        {"k": leaves["k"], "damping": leaves["damping"]},
        solver=method,
        adjoint=adjoint,
        control_times=[0.0, 0.3, 0.7],
        **options,
    )
    return _with_gradients(solution.xs, (weights * solution.xs).sum(), leaves)


def _fall(t: Any, x: Tensor, u: Any, p: dict[str, Tensor]) -> Tensor:
    return torch.stack((x[..., 1], -p["g"].expand_as(x[..., 0])), -1)


def _thrown(device: torch.device) -> dict[str, Tensor]:
    heights = torch.tensor([[0.5, 0.0], [1.0, 1.0], [2.0, -1.0]], dtype=torch.float64)
    values = {"g": 9.81, "restitution": 0.8}
    return _leaves(
        device,
        torch.float64,
        x0=heights,
        **{name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()},
    )


def bouncing_ball(device: torch.device) -> Result:
    """Balls from three heights, x = [height m, velocity m/s]; times and states of the impacts and their gradients."""
    leaves = _thrown(device)

    def bounce(t: Tensor, x: Tensor, u: Any, p: dict[str, Tensor]) -> Tensor:
        return torch.stack((x[..., 0], -p["restitution"] * x[..., 1]), -1)

    ground = Event(lambda t, x, u, p: x[..., 0], bounce, direction=-1)
    p = {name: leaves[name] for name in ("g", "restitution")}
    # Rounding must not decide whether an impact comes before or after an output.
    solution = solve(_fall, leaves["x0"], [0.0, 0.21, 0.57, 1.13, 1.5], None, p, events=ground)
    assert solution.events is not None
    times = solution.events.times
    known = torch.where(torch.isfinite(times), times, 0.0)
    return _with_gradients(
        solution.xs,
        solution.xs.square().sum() + known.sum(),
        leaves,
        times=known,
        which=solution.events.which,
    )


def first_landing(device: torch.device) -> Result:
    """The same balls, stopped by the ground; the restitution plays no part."""
    leaves = _thrown(device)
    del leaves["restitution"]
    ground = Event(lambda t, x, u, p: x[..., 0], terminal=True, direction=-1)
    solution = solve(
        _fall, leaves["x0"], [0.0, 0.5, 1.5], None, {"g": leaves["g"]}, events=ground, adjoint="checkpoint"
    )
    return _with_gradients(solution.xs, solution.xs.square().sum(), leaves, stopped=solution.stopped)


def blow_up(device: torch.device) -> Result:
    """dx/dt = k x² is infinite at t = 1 / (k x0): two of four rollouts fail; the others keep values and gradients."""
    values = {"x0": torch.tensor([[0.2], [0.5], [2.0], [4.0]]), "k": torch.tensor(1.0)}
    leaves = _leaves(device, torch.float64, **values)
    solution = solve(
        lambda t, x, u, p: p * x * x, leaves["x0"], [0.0, 0.25, 1.0], None, leaves["k"], on_failure="mark"
    )
    kept = solution.xs[:, solution.ok]
    assert solution.ok.tolist() == [True, True, False, False], f"status {solution.status.tolist()}"
    return _with_gradients(kept, kept.square().sum(), leaves, status=solution.status)


def own_times(device: torch.device) -> Result:
    """Outputs at times of each rollout's own."""
    leaves = _leaves(device, torch.float64, x0=torch.tensor([[1.0, 0.0], [0.3, -0.2]]))
    ts = torch.tensor([[0.0, 0.5], [0.4, 1.0], [1.0, 3.0]], dtype=torch.float64, device=device)
    solution = solve(lambda t, x, u, p: torch.stack((x[..., 1], -x[..., 0]), -1), leaves["x0"], ts)
    return _with_gradients(solution.xs, solution.xs.square().sum(), leaves)


def native_on(device: torch.device) -> dict[str, float]:
    """``backend="native"`` compiles for CPUs only: elsewhere the result is that of eager."""
    if device.type == "cpu":
        raise SkippedError("needs CUDA")
    x0 = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    rotate = lambda t, x, u, p: torch.stack((x[..., 1], -x[..., 0]), -1)
    got = solve(rotate, x0.to(device), [0.0, 1.0], backend="native").xs
    return agree({"xs": got}, {"xs": solve(rotate, x0, [0.0, 1.0]).xs}, 1e-6)
