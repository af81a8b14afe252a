"""A method and a step-size controller that do what a script says and write down what they were asked for."""

import torch

from solvers import Attempt, Controller, Solver

F64 = torch.float64


def batch(*values):
    return torch.tensor(values, dtype=F64)


class StubMethod(Solver):
    """Euler's steps, exact in binary for the fields used here; ``calls`` are the (t, h) of every attempt.

    ``broken`` is asked for every attempt which rollouts it spoils: ``(t, h) -> [*batch]``.
    """

    order = 1

    def __init__(self, broken=None, converged=None):
        self.broken, self.converged = broken, converged
        self.calls, self.thetas = [], []

    def step(self, f, t, x, u, p, dt):
        self.calls.append((float(t), float(dt)))
        return x + dt * f(t, x, u, p)

    def attempt(self, f, t, x, u, p, dt, start_slope=None):
        self.calls.append((t.tolist(), dt.tolist()))
        slope = f(t, x, u, p) if start_slope is None else start_slope
        end = x + dt.unsqueeze(-1) * slope
        if self.broken is not None:
            end = torch.where(self.broken(t, dt).unsqueeze(-1), torch.nan, end)
        converged = None if self.converged is None else self.converged(t, dt)
        return Attempt(end, converged=converged)


class AdaptiveStub(StubMethod):
    """With an error estimate (of 1), a dense output and, at the cost of one evaluation, the slope at the end."""

    adaptive, error_order = True, 3

    def attempt(self, f, t, x, u, p, dt, start_slope=None):
        slope = f(t, x, u, p) if start_slope is None else start_slope
        end = super().attempt(f, t, x, u, p, dt, slope).x

        def dense(theta):
            self.thetas.append(theta.tolist())
            return x + (theta * dt).unsqueeze(-1) * slope

        return Attempt(end, torch.ones_like(x), f(t + dt, end, u, p), dense)


class Script(Controller):
    """Scaled errors and factors by a script, for every attempt a list of one number a rollout.

    After its end steps are accepted and keep their length.
    """

    def __init__(self, first, errors=(), factors=(), max_step=None):
        self.first_step, self.longest = first, max_step
        self.errors, self.factors = iter(errors), iter(factors)
        self.asked_first, self.asked_factor, self.asked_error = [], [], 0

    @property
    def max_step(self):
        return self.longest

    def first(self, f, t, x, u, p, slope, span, order):
        self.asked_first.append((t.tolist(), slope.tolist(), span.tolist(), order))
        return torch.full_like(span, self.first_step)

    def scaled_error(self, error, x, x_new):
        self.asked_error += 1
        default = torch.full(x.shape[:-1], 0.5, dtype=x.dtype)
        return torch.as_tensor(next(self.errors, default), dtype=x.dtype).expand(x.shape[:-1])

    def factor(self, error, before, order):
        self.asked_factor.append((error.tolist(), before.tolist(), order))
        default = torch.where(error <= 1.0, 1.0, 0.5)
        return torch.as_tensor(next(self.factors, default), dtype=error.dtype).expand(error.shape)


class CountedField:
    """``x' = 1``, or what is given; ``times`` are those of its evaluations."""

    def __init__(self, slope=lambda t, x, u, p: torch.ones_like(x)):
        self.slope, self.times = slope, []

    def __call__(self, t, x, u, p):
        self.times.append(torch.as_tensor(t).tolist())
        return self.slope(t, x, u, p)
