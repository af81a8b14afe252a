"""
    ThreeBody(mu, thrust, target)

A spacecraft with a low-thrust engine goes from the Moon's near side to its far side, L1 to L2, in the planar circular
restricted three-body problem.

State `[x, y, velocity x, y]` in the frame that turns with Earth (at `-mu`) and Moon (at `1 - mu`), action `[thrust x, y]` in ±1
of the acceleration `thrust`, observation `[x - target, y, velocities]`.  Units: the distance of Earth and Moon (384 400 km) and the
inverse of their mean motion (375 190 s, 4.34 days), so that the Moon goes round in 2π; the unit of velocity
is 1024.5 m/s, that of acceleration 2.731 mm/s².  Masses, equations of motion and Jacobi's constant: Szebehely, Theory of Orbits,
ch. 1 and 4; `mu` = 0.0121505856 (JPL's DE405, as in Koon, Lo, Marsden and Ross, Dynamical Systems, the
Three-Body Problem and Space Mission Design).

Close to the Moon the flow stretches small differences by orders of magnitude within an interval: Vern9 at a
tolerance of 1e-12.  Inside of Earth and Moon gravity is that of a homogeneous ball (it falls to 0 at the centre), so
that nothing is singular; a spacecraft there has crashed, and the rollout is done.
"""
struct ThreeBody{T} <: Simulator
    mu::T
    thrust::T
    target::T
end

const EARTH_RADIUS = 6378.1 / 384400  # of the distance between Earth and Moon (IAU 2015 resolution B3)
const MOON_RADIUS = 1737.4 / 384400

function describe(::Type{<:ThreeBody})
    design = "this task's choice"
    return Description(
        state = ["x", "y", "velocity_x", "velocity_y"],
        observation = ["ahead", "y", "velocity_x", "velocity_y"],
        parameters = [
            Parameter(:mu, 0.0121505856, "Moon's share of the mass"; low = 0.0, high = 0.5, source = "JPL DE405"),
            Parameter(:thrust, 0.1, "unit of acceleration (0.27 mm/s²)"; low = 0.0, source = design),
            Parameter(:target, 1.1556821654078693, "x of L2, unit of length"; low = 0.0, source = "root of L2's equation"),
        ],
        action_box = Box([1.0, 1.0]),
        start_box = Box([0.826, -0.01, -0.02, -0.02], [0.846, 0.01, 0.02, 0.02]),
        state_box = Box([0.75, -0.2, -0.6, -0.6], [1.25, 0.2, 0.6, 0.6]),
        dt = 0.05,
        episode_steps = 120,
        cost_of_reached_state = true,
    )
end

scheme(::ThreeBody) = Adaptive(Vern9(); reltol = 1e-12, abstol = 1e-12)

"1 / distance³, inside of a ball 1 / radius³."
function attraction(dx, dy, radius)
    square = dx^2 + dy^2
    return primal(square) > radius^2 ? 1 / (square * sqrt(square)) : 1 / radius^3
end

"""
    dynamics!(dx, x, u, p::ThreeBody, t)

`x″ = 2 y′ + x - (1 - mu) (x + mu) / r1³ - mu (x - 1 + mu) / r2³ + a`, `y″ = -2 x′ + y - (1 - mu) y / r1³ - mu y / r2³ + b`
with (a, b) the thrust (Szebehely, Theory of Orbits, eq. 1.5-5).
"""
function dynamics!(dx, x, u, p::ThreeBody, t)
    earth = (1 - p.mu) * attraction(x[1] + p.mu, x[2], EARTH_RADIUS)
    moon = p.mu * attraction(x[1] - 1 + p.mu, x[2], MOON_RADIUS)
    dx[1] = x[3]
    dx[2] = x[4]
    dx[3] = 2 * x[4] + x[1] - earth * (x[1] + p.mu) - moon * (x[1] - 1 + p.mu) + p.thrust * u[1]
    dx[4] = -2 * x[3] + x[2] - (earth + moon) * x[2] + p.thrust * u[2]
    return dx
end

observe(x, p::ThreeBody) = (x[1] - p.target, x[2], x[3], x[4])

done(x, p::ThreeBody) =
    hypot(x[1] + p.mu, x[2]) < EARTH_RADIUS || hypot(x[1] - 1 + p.mu, x[2]) < MOON_RADIUS

"""
    cost(x, u, p::ThreeBody)

`sqrt(1e-4 + d²)` with `d² = (x - target)² + y² + (velocity / 2)²`, and `0.01 |u|²` for propellant.
"""
function cost(x, u, p::ThreeBody)
    off = (x[1] - p.target)^2 + x[2]^2 + (x[3]^2 + x[4]^2) / 4
    return sqrt(1e-4 + off) + 0.01 * (u[1]^2 + u[2]^2)
end
