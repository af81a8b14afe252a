"""
    CartpoleSwingup(g, cart_mass, pole_mass, pole_length, pole_radius, cart_damping, hinge_damping, gear)

`cartpole-swingup` of dm_control's suite: a pole hanging from a cart has to be swung up and balanced.

State `[position m, angle rad (0 = upright, not wrapped), velocity m/s, rate rad/s]`, action `[drive]` in ±1 of `gear` N,
observation `[position, cos angle, sin angle, velocity, rate]`.  Constants: dm_control, suite/cartpole.xml.  Beyond ±1.8 m
MuJoCo's soft joint limit pushes the cart back.  Steps of Tsit5 of 0.01 s (dm_control: RK4).
"""
struct CartpoleSwingup{T} <: Simulator
    g::T
    cart_mass::T
    pole_mass::T
    pole_length::T
    pole_radius::T
    cart_damping::T
    hinge_damping::T
    gear::T
end

function describe(::Type{<:CartpoleSwingup})
    source = "dm_control, suite/cartpole.xml"
    return Description(
        state = ["position", "angle", "velocity", "rate"],
        angles = ["angle"],
        observation = ["position", "cos_angle", "sin_angle", "velocity", "rate"],
        parameters = [
            Parameter(:g, 9.81, "m/s²"; source = "MuJoCo's default"),
            Parameter(:cart_mass, 1.0, "kg"; low = 0.0, source),
            Parameter(:pole_mass, 0.1, "kg"; low = 0.0, source),
            Parameter(:pole_length, 1.0, "m, without its round ends"; low = 0.0, source),
            Parameter(:pole_radius, 0.045, "m"; low = 0.0, source),
            Parameter(:cart_damping, 5e-4, "N s/m"; low = 0.0, source),
            Parameter(:hinge_damping, 2e-6, "N m s/rad"; low = 0.0, source),
            Parameter(:gear, 10.0, "N at full drive"; low = 0.0, source),
        ],
        action_box = Box([1.0]),
        start_box = Box([-0.03, π - 0.03, -0.03, -0.03], [0.03, π + 0.03, 0.03, 0.03]),
        state_box = Box([2.0, π, 5.0, 10.0]),
        dt = 0.01,
        episode_steps = 1000,
        cost_of_reached_state = true,
        gym_id = "dm_control/cartpole-swingup-v0",
    )
end

scheme(::CartpoleSwingup) = Fixed(Tsit5())

reset(rng, ::CartpoleSwingup) = (0.0, π, 0.0, 0.0) .+ 0.01 .* ntuple(_ -> randn(rng), 4)

observe(x, ::CartpoleSwingup) = (x[1], cos(x[2]), sin(x[2]), x[3], x[4])

"""
    dynamics!(dx, x, u, p::CartpoleSwingup, t)

Lagrange's equations of cart and pole:
`M [position″, angle″] = [gear u - cart_damping v + ml rate² sin, ml g sin - hinge_damping rate]` with
`M = [[m_cart + m_pole, ml cos], [ml cos, J]]`, ml the pole's first moment and J its second about the hinge.
"""
function dynamics!(dx, x, u, p::CartpoleSwingup, t)
    position, angle, velocity, rate = x[1], x[2], x[3], x[4]
    s, c = sincos(angle)
    mass = p.cart_mass + p.pole_mass
    centre = p.pole_length / 2
    moment = p.pole_mass * centre
    inertia = moment * centre + p.pole_mass * capsule_gyration(p.pole_radius, p.pole_length)
    coupling = moment * c

    force = p.gear * u[1] - p.cart_damping * velocity + moment * rate^2 * s
    torque = moment * p.g * s - p.hinge_damping * rate
    determinant = mass * inertia - coupling^2
    free = (inertia * force - coupling * torque) / determinant

    # MuJoCo weighs the stop by the inverse inertia of the model's reference pose: pole upright.
    weight = inertia / (mass * inertia - moment^2)
    force += end_stop(position, velocity, free, inertia / determinant, weight)
    dx[1] = velocity
    dx[2] = rate
    dx[3] = (inertia * force - coupling * torque) / determinant
    dx[4] = (mass * torque - coupling * force) / determinant
    return dx
end

"""
    capsule_gyration(radius, length)

Squared radius of gyration m² of a capsule across its axis: a cylinder of `length` with half balls at its ends
(Meriam and Kraige, Engineering Mechanics: Statics, table D/4, and the parallel axis theorem).
"""
function capsule_gyration(radius, length)
    balls = 4 / 3 * radius
    rod = (3 * radius^2 + length^2) / 12
    ends = 2 / 5 * radius^2 + 3 / 8 * radius * length + length^2 / 4
    return (length * rod + balls * ends) / (length + balls)
end

"""
    end_stop(position, velocity, acceleration, inverse_inertia, weight)

The force N of MuJoCo's soft joint limit at ±1.8 m, 0 inside, with `solreflimit = (0.08, 1)` and the default
`solimplimit = (0.9, 0.95, 0.001, 0.5, 2)` (MuJoCo documentation, Computation, "Constraint model", and Modeling,
"Solver parameters"): the impedance rises along two parabolas, which with the exponent 2 and the midpoint 0.5 are
`2 way²` and `1 - 2 (1 - way)²`.
"""
function end_stop(position, velocity, acceleration, inverse_inertia, weight)
    track, time_constant, near, far, width = 1.8, 0.08, 0.9, 0.95, 0.001
    inward = position > 0 ? -1.0 : 1.0
    distance = track - abs(position)
    distance < 0 || return zero(acceleration)
    way = min(-distance / width, one(distance))
    rise = way <= 0.5 ? 2 * way^2 : 1 - 2 * (1 - way)^2
    impedance = near + (far - near) * rise
    damping, stiffness = 2 / (far * time_constant), 1 / (far * time_constant)^2
    reference = -damping * inward * velocity - stiffness * impedance * distance
    softness = (1 - impedance) / impedance * weight
    return inward * max(zero(acceleration), (reference - inward * acceleration) / (inverse_inertia + softness))
end

"""
    cost(x, u, p::CartpoleSwingup)

Minus dm_control's reward, a product of four factors that are 1 at best: its `tolerance` of height, drive, rate and
position with the shapes "quadratic" and "gaussian".
"""
function cost(x, u, ::CartpoleSwingup)
    upright = (1 + cos(x[2])) / 2
    small_drive = 1 - u[1]^2 / 5
    slow = (1 + exp(log(0.1) * (x[4] / 5)^2)) / 2
    centred = (1 + exp(log(0.1) * (x[1] / 2)^2)) / 2
    return -upright * small_drive * slow * centred
end
