"""
    Pendulum(g, m, l)

Gymnasium's `Pendulum-v1`: a torque-limited rod that has to swing up and stand.

State `[angle rad (0 = upright, not wrapped), rate rad/s]`, action `[torque N·m]` in ±2, observation
`[cos angle, sin angle, rate]`.  Gravity `g` in m/s², mass `m` in kg, length `l` in m.  Source of
constants, cost and integration: Gymnasium, envs/classic_control/pendulum.py.
"""
struct Pendulum{T} <: Simulator
    g::T
    m::T
    l::T
end

function describe(::Type{<:Pendulum})
    source = "Gymnasium, envs/classic_control/pendulum.py"
    return Description(
        state = ["angle", "rate"],
        angles = ["angle"],
        observation = ["cos_angle", "sin_angle", "rate"],
        parameters = [
            Parameter(:g, 10.0, "m/s²"; source),
            Parameter(:m, 1.0, "kg"; low = 0.0, source),
            Parameter(:l, 1.0, "m"; low = 0.0, source),
        ],
        action_box = Box([2.0]),
        start_box = Box([π, 1.0]),
        state_box = Box([π, 8.0]),
        dt = 0.05,
        episode_steps = 200,
        gym_id = "Pendulum-v1",
    )
end

scheme(::Pendulum) = Discrete()

"The angle in [-π, π), rad."
wrap_angle(angle) = mod(angle + π, 2π) - π

"""
    dynamics!(dx, x, u, p::Pendulum, t)

A uniform rod about its end: `angle″ = 3g / 2l · sin(angle) + 3 / (m l²) · torque`.
"""
function dynamics!(dx, x, u, p::Pendulum, t)
    dx[1] = x[2]
    dx[2] = 3p.g / (2p.l) * sin(x[1]) + 3 / (p.m * p.l^2) * u[1]
    return dx
end

cost(x, u, p::Pendulum) = wrap_angle(x[1])^2 + 0.1 * x[2]^2 + 0.001 * u[1]^2

observe(x, p::Pendulum) = (cos(x[1]), sin(x[1]), x[2])

"""
    step!(next, x, u, p::Pendulum)

Semi-implicit Euler over 0.05 s, the rate clamped to ±8 rad/s before the angle moves.  The clamp cuts the
gradient of the rate where it acts.
"""
function step!(next, x, u, p::Pendulum)
    dt, fastest = 0.05, 8.0
    dynamics!(next, x, u, p, 0.0)
    rate = clamp(x[2] + dt * next[2], -fastest, fastest)
    next[1] = x[1] + dt * rate
    next[2] = rate
    return next
end
