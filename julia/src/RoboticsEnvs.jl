"""
Simulators as differentiable white boxes, in Julia.

A simulator is a small struct of its physical parameters.  Four functions make it one:
`dynamics!(dx, x, u, p, t)`, `cost(p, x, u)`, `observe(p, x)` and `advance(p, x, u)`.  All are generic in
their number types, so dual numbers pass through states, actions and parameters alike.
"""
module RoboticsEnvs

export Simulator, Pendulum
export dynamics!, cost, observe, advance

"A simulator: the physical parameters of an initial-value problem under control."
abstract type Simulator end

"""
    dynamics!(dx, x, u, p, t)

Write dx/dt at state `x` under the applied action `u` into `dx`.
"""
function dynamics! end

"""
    cost(p, x, u)

The cost of applying `u` in `x` for one control interval.
"""
function cost end

"""
    observe(p, x)

What a policy sees of state `x`.
"""
function observe end

"""
    advance(p, x, u) -> (x′, cost)

One control interval from `x` under `u`, which is clipped here and nowhere else.
"""
function advance end

include("pendulum.jl")

end
