"""
    Pendulum(; g = 10.0, m = 1.0, l = 1.0)

Gymnasium's `Pendulum-v1`: a torque-limited rod that has to swing up and stand.

State `[angle rad (0 = upright, not wrapped), rate rad/s]`, action `[torque N·m]` in ±2, observation
`[cos angle, sin angle, rate]`.  Gravity `g` in m/s², mass `m > 0` in kg, length `l > 0` in m.  Source of
constants, cost and integration: Gymnasium, envs/classic_control/pendulum.py.
"""
struct Pendulum{T<:Real} <: Simulator
    g::T
    m::T
    l::T

    function Pendulum(g::Real, m::Real, l::Real)
        m > 0 || throw(DomainError(m, "the mass m must be positive (kg)"))
        l > 0 || throw(DomainError(l, "the length l must be positive (m)"))
        values = promote(g, m, l)
        return new{eltype(values)}(values...)
    end
end

Pendulum(; g = 10.0, m = 1.0, l = 1.0) = Pendulum(g, m, l)

max_torque(::Pendulum) = 2.0  # N·m
max_speed(::Pendulum) = 8.0   # rad/s
interval(::Pendulum) = 0.05   # s

"The angle in [-π, π), rad."
wrap(angle) = mod(angle + π, 2π) - π

"""
    dynamics!(dx, x, u, p::Pendulum, t)

A uniform rod about its end: `angle″ = 3g / 2l · sin(angle) + 3 / (m l²) · torque`.
"""
function dynamics!(dx, x, u, p::Pendulum, t)
    dx[1] = x[2]
    dx[2] = 3p.g / (2p.l) * sin(x[1]) + 3 / (p.m * p.l^2) * u[1]
    return dx
end

cost(::Pendulum, x, u) = wrap(x[1])^2 + 0.1 * x[2]^2 + 0.001 * u[1]^2

observe(::Pendulum, x) = [cos(x[1]), sin(x[1]), x[2]]

"""
    advance(p::Pendulum, x, u) -> (x′, cost)

Semi-implicit Euler over 0.05 s, the rate clamped to ±8 rad/s before the angle moves.  The clamp cuts the
gradient of the rate where it acts, as clipping the torque does.
"""
function advance(p::Pendulum, x, u)
    torque = clamp.(u, -max_torque(p), max_torque(p))
    dx = similar(x, promote_type(eltype(x), eltype(torque), typeof(p.g)))
    dynamics!(dx, x, torque, p, 0.0)
    rate = clamp(x[2] + interval(p) * dx[2], -max_speed(p), max_speed(p))
    return [x[1] + interval(p) * rate, rate], cost(p, x, torque)
end
