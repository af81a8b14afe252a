"""Rosenbrock methods for stiff problems: linear solves instead of Newton iterations, with an embedded method."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from solvers.methods.base import Attempt, Solver, State, VectorField, over_components
from solvers.methods.jacobian import linearize
from solvers.methods.runge_kutta import combine

# Steinebach, Construction of Rosenbrock–Wanner method Rodas5P and numerical benchmarks within the Julia
# Differential Equations package, BIT Numerical Mathematics 63 (2023) 27, in the transformed variables of
# Hairer, Wanner, Solving Ordinary Differential Equations II, §IV.7, eq. (7.25).
_GAMMA = 0.21193756319429014
_A = (
    (),
    (3.0,),
    (2.849394379747939, 0.45842242204463923),
    (-6.954028509809101, 2.489845061869568, -10.358996098473584),
    (2.8029986275628964, 0.5072464736228206, -0.3988312541770524, -0.04721187230404641),
    (-7.502846399306121, 2.561846144803919, -11.627539656261098, -0.18268767659942256, 0.030198172008377946),
)
_C = (
    (),
    (-14.155112264123755,),
    (-17.97296035885952, -2.859693295451294),
    (147.12150275711716, -1.41221402718213, 71.68940251302358),
    (165.43517024871676, -0.4592823456491126, 42.90938336958603, -5.961986721573306),
    (24.854864614690072, -3.0009227002832186, 47.4931110020768, 5.5814197821558125, -0.6610691825249471),
    (
        30.91273214028599,
        -3.1208243349937974,
        77.79954646070892,
        34.28646028294783,
        -19.097331116725623,
        -28.087943162872662,
    ),
    (
        37.80277123390563,
        -3.2571969029072276,
        112.26918849496327,
        66.9347231244047,
        -40.06618937091002,
        -54.66780262877968,
        -9.48861652309627,
    ),
)
_NODES = (0.0, 0.6358126895828704, 0.4095798393397535, 0.9769306725060716, 0.4288403609558664, 1.0, 1.0, 1.0)
_TIME_WEIGHTS = (
    0.21193756319429014,
    -0.42387512638858027,
    -0.3384627126235924,
    1.8046452872882734,
    2.325825639765069,
    0.0,
    0.0,
    0.0,
)
_DENSE = (
    (
        25.948786856663858,
        -2.5579724845846235,
        10.433815404888879,
        -2.3679251022685204,
        0.524948541321073,
        1.1241088310450404,
        0.4272876194431874,
        -0.17202221070155493,
    ),
    (
        -9.91568850695171,
        -0.9689944594115154,
        3.0438037242978453,
        -24.495224566215796,
        20.176138334709044,
        15.98066361424651,
        -6.789040303419874,
        -6.710236069923372,
    ),
    (
        11.419903575922262,
        2.8879645146136994,
        72.92137995996029,
        80.12511834622643,
        -52.072871366152654,
        -59.78993625266729,
        -0.15582684282751913,
        4.883087185713722,
    ),
)


class Rodas5P(Solver):
    """Steinebach's Rodas5P: eight stages, order 5 with an embedded order 4, L-stable, stiffly accurate.

    A step takes eight evaluations of ``f``, its Jacobian and one factorization.  Gradients go through the
    Jacobian as well and are exact for the discrete step.
    """

    order = 5
    adaptive = True
    error_order = 5
    adjoints = ("backprop", "checkpoint")
    rollout_times = True

    def step(self, f: VectorField, t: float | Tensor, x: State, u: Any, p: Any, dt: float | Tensor) -> State:
        """The state at ``t + dt``."""
        return self.attempt(f, t, x, u, p, dt).x

    def attempt(
        self,
        f: VectorField,
        t: float | Tensor,
        x: State,
        u: Any,
        p: Any,
        dt: float | Tensor,
        start_slope: Tensor | None = None,
    ) -> Attempt:
        """A step with its error estimate and its dense output of order 4."""
        h = over_components(dt)
        slope, jacobian, rate = linearize(f, t, x, u, p)
        identity = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        # The system is multiplied by hγ, so that a step of length zero is the identity instead of 0/0.
        matrix = identity - _GAMMA * over_components(h) * jacobian
        factors, pivots, _ = torch.linalg.lu_factor_ex(matrix)
        increments: list[Tensor] = []
        state = x
        for i, c in enumerate(_NODES):
            if i > 0:
                state = x + combine(_A[i], increments) if i < 6 else state + increments[-1]
                slope = f(t + c * dt, state, u, p)
            right = h * slope + h * h * _TIME_WEIGHTS[i] * rate
            if increments:
                right = right + combine(_C[i], increments)
            increments.append(
                torch.linalg.lu_solve(factors, pivots, _GAMMA * right.unsqueeze(-1)).squeeze(-1)
            )
        x_new = state + increments[-1]

        def dense(theta: Tensor) -> Tensor:
            theta = theta.unsqueeze(-1)
            k2, k3, k4 = (combine(row, increments) for row in _DENSE)
            inner = k2 + theta * (k3 + theta * k4)
            return (1 - theta) * x + theta * (x_new + (1 - theta) * inner)

        # The last increment is the difference from the embedded solution.
        return Attempt(x_new, error=increments[-1], dense=dense)
