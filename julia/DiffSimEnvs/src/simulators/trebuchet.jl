"""
    Trebuchet(g, counterweight, stone, beam_mass, long_arm, short_arm, sling_length, axle_height)

A counterweight on a beam throws a stone from a sling; the stone has to come down at the target.

State (10) `[released 0 or 1, beam rad, sling rad, beam rate, sling rate rad/s, stone x, y m, stone velocity x, y m/s,
target m]`, action `[release angle rad, torque on the beam N·m]`, observation (7) `[released, beam, sling, rates 2,
where the stone is going to land m (0 before the release), target]`.  In the plane, x to the right where the target is,
y up from the ground, the axle above the origin; the beam turns clockwise in a throw.

The stone is released when `sling` (the angle from the beam's direction to the sling's) falls to the commanded angle,
which is an event of the solver, at once if it is below it already.  The flight is part of the differential
equation; its end on the ground is an event too, after which the stone rests.  The stone's states do not mean
anything before the release, and the beam's stay as they were at the release.

The gradient is cut: through `released`, and for a release at once, whose time is the start of the interval whatever the command.
"""
struct Trebuchet{T} <: Simulator
    g::T
    counterweight::T
    stone::T
    beam_mass::T
    long_arm::T
    short_arm::T
    sling_length::T
    axle_height::T
end

function describe(::Type{<:Trebuchet})
    source = "this task's choice, a machine for two"
    return Description(
        state = [
            "released", "beam", "sling", "beam_rate", "sling_rate",
            "stone_x", "stone_y", "stone_velocity_x", "stone_velocity_y", "target",
        ],
        observation = ["released", "beam", "sling", "beam_rate", "sling_rate", "landing", "target"],
        parameters = [
            Parameter(:g, 9.81, "m/s²"; low = 0.0, source = "standard gravity, rounded"),
            Parameter(:counterweight, 200.0, "kg"; low = 0.0, source),
            Parameter(:stone, 2.0, "kg"; low = 0.0, source),
            Parameter(:beam_mass, 20.0, "kg, uniform"; low = 0.0, source),
            Parameter(:long_arm, 2.4, "m"; low = 0.0, source),
            Parameter(:short_arm, 0.6, "m"; low = 0.0, source),
            Parameter(:sling_length, 2.0, "m"; low = 0.0, source),
            Parameter(:axle_height, 4.0, "m"; low = 0.0, source),
        ],
        action_box = Box([-0.2, -200.0], [1.2, 200.0]),
        start_box = Box(
            [0.0, 3.8, 2.26, -0.1, -0.1, 0.0, 0.0, 0.0, 0.0, 30.0],
            [0.0, 4.0, 2.46, 0.1, 0.1, 0.0, 0.0, 0.0, 0.0, 70.0],
        ),
        state_box = Box(
            [0.0, 1.0, -0.4, -7.0, -12.0, -5.0, 0.0, 5.0, -25.0, 30.0],
            [1.0, 4.1, 2.6, 0.5, 2.0, 75.0, 25.0, 30.0, 25.0, 70.0],
        ),
        dt = 0.04,
        episode_steps = 150,
        cost_of_reached_state = true,
    )
end

scheme(::Trebuchet) = Adaptive(Tsit5(); reltol = 1e-9, abstol = 1e-9)

loose(x) = primal(x[1]) > 0.5

"The stone lying on the ground: at rest, as in flight it never is."
lying(x) = primal(x[7]) <= 0 && primal(x[8]) == primal(x[9]) == 0

"""
    dynamics!(dx, x, u, p::Trebuchet, t)

The swing before the release and the flight after it.  In the absolute angles b of the beam and c = b + sling::

    A b″ + B cos(sling) c″ = B sin(sling) c′² - G cos b + torque
    B cos(sling) b″ + C c″ = -B sin(sling) b′² - m g r cos c

with m the stone, r the sling's length, R the long arm, A the inertia of beam, counterweight and stone (at R) about the
axle, B = m R r, C = m r², and G the moment of their weights at b = 0 (Lagrange's equations).
"""
function dynamics!(dx, x, u, p::Trebuchet, t)
    fill!(dx, zero(eltype(dx)))
    if loose(x)
        if !lying(x)
            dx[6], dx[7], dx[9] = x[8], x[9], -p.g
        end
        return dx
    end
    beam, sling, beam_rate, sling_rate = x[2], x[3], x[4], x[5]
    m, r, arm, short = p.stone, p.sling_length, p.long_arm, p.short_arm
    middle = (arm - short) / 2
    beam_inertia = p.beam_mass * ((arm + short)^2 / 12 + middle^2)
    a = p.counterweight * short^2 + beam_inertia + m * arm^2
    weight = p.g * (p.beam_mass * middle + m * arm - p.counterweight * short)
    b, c = m * arm * r, m * r^2
    s, co = sincos(sling)
    first = b * s * (beam_rate + sling_rate)^2 - weight * cos(beam) + u[2]
    second = -b * s * beam_rate^2 - m * p.g * r * cos(beam + sling)
    determinant = a * c - (b * co)^2
    beam_change = (c * first - b * co * second) / determinant
    dx[2] = beam_rate
    dx[3] = sling_rate
    dx[4] = beam_change
    dx[5] = (a * second - b * co * first) / determinant - beam_change
    return dx
end

"Let go of the stone, which leaves with the place and velocity of the sling's end."
function release!(x, u, p::Trebuchet)
    beam, turned = x[2], x[2] + x[3]
    beam_rate, turning = x[4], x[4] + x[5]
    arm, r = p.long_arm, p.sling_length
    x[1] = 1
    x[6] = arm * cos(beam) + r * cos(turned)
    x[7] = p.axle_height + arm * sin(beam) + r * sin(turned)
    x[8] = -arm * sin(beam) * beam_rate - r * sin(turned) * turning
    x[9] = arm * cos(beam) * beam_rate + r * cos(turned) * turning
    return x
end

"The stone on the ground, for good."
function land!(x, u, p::Trebuchet)
    x[7] = x[8] = x[9] = 0
    return x
end

function jump!(x, u, p::Trebuchet)
    !loose(x) && primal(x[3]) <= primal(u[1]) && release!(x, u, p)
    loose(x) && primal(x[7]) <= 0 && primal(x[9]) <= 0 && land!(x, u, p)
    return x
end

# Of events that cannot happen any more, the conditions stay away from zero.
events(::Trebuchet) = (
    event((x, u, p) -> loose(x) ? one(x[3]) : x[3] - u[1], release!; direction = :falling),
    event((x, u, p) -> loose(x) && !lying(x) ? x[7] : one(x[7]), land!; direction = :falling),
)

"Where on the ground the stone comes down, m; below the ground counts as on it."
function landing(x, g)
    height, up = max(x[7], zero(x[7])), x[9]
    square = up^2 + 2 * g * height
    return primal(square) > 0 ? x[6] + x[8] * (up + sqrt(square)) / g : x[6] + zero(square)
end

observe(x, p::Trebuchet) = (x[1], x[2], x[3], x[4], x[5], loose(x) ? landing(x, p.g) : zero(x[6] * p.g), x[10])

"""
    cost(x, u, p::Trebuchet)

`sqrt(1 + (miss / 2 m)²) - 1` from the release on, where the miss is that of the point where the stone is going to land
or has landed; 2 an interval before it; and `0.02 (torque / 200 N·m)² + 0.001 (release angle)²` for effort.
"""
function cost(x, u, p::Trebuchet)
    effort = 0.02 * (u[2] / 200)^2 + 0.001 * u[1]^2
    loose(x) || return 2 + effort
    miss = (landing(x, p.g) - x[10]) / 2
    return sqrt(1 + miss^2) - 1 + effort
end
