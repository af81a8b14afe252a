include("tools.jl")
using Test

# A ball that bounces on a floor: everything about it is known in closed form.
struct Ball{T} <: Simulator
    g::T
    restitution::T
end

DiffSimEnvs.describe(::Type{<:Ball}) = Description(
    state = ["height", "speed"],
    parameters = [Parameter(:g, 9.81, "m/s²"; low = 0.0), Parameter(:restitution, 0.8; low = 0.0, high = 1.0)],
    action_box = Box([1.0]),
    start_box = Box([1.0, 0.0], [2.0, 0.0]),
    state_box = Box([0.5, -1.0], [2.0, 1.0]),
    dt = 0.7,
    episode_steps = 10,
)

function DiffSimEnvs.dynamics!(dx, x, u, p::Ball, t)
    dx[1] = x[2]
    dx[2] = u[1] - p.g
end

DiffSimEnvs.cost(x, u, p::Ball) = x[1]^2
DiffSimEnvs.scheme(::Ball) = Adaptive(DiffSimEnvs.Tsit5(); reltol = 1e-10, abstol = 1e-10)
DiffSimEnvs.events(::Ball) =
    (event((x, u, p) -> x[1], (x, u, p) -> (x[2] = -p.restitution * x[2]); direction = :falling),)

"One bounce within the interval, in closed form; `z = [height, speed, push, g, restitution]`."
function bounced(z, dt = 0.7)
    height, speed, push, g, restitution = z
    a = g - push
    fall = (speed + sqrt(speed^2 + 2a * height)) / a
    up, left = restitution * (a * fall - speed), dt - fall
    return [up * left - a * left^2 / 2, up - a * left]
end

@testset "a bounce, its value and its gradient" begin
    batch = open_simulator(Ball)
    rng = Xoshiro(1)
    for _ in 1:20
        z = [1 + 0.5 * rand(rng), 0.0 - 0.5 * rand(rng), 0.5 * rand(rng), 9.81, 0.8]
        y, J, failures = ask(batch, INTERVAL, reshape(z[1:2], 2, 1), reshape(z[3:3], 1, 1), z[4:5])
        @test failures == 0
        @test y[1:2] ≈ bounced(z) atol = 1e-8
        @test J[1:2, :, 1] ≈ differences(bounced, z) atol = 1e-6
        plain = ask(batch, INTERVAL, reshape(z[1:2], 2, 1), reshape(z[3:3], 1, 1), z[4:5]; jacobian = false)[1]
        @test plain ≈ y atol = 1e-8
    end
end

@testset "an event's direction" begin
    @test_throws "direction = :down" event((x, u, p) -> x[1], (x, u, p) -> nothing; direction = :down)
    rising = event((x, u, p) -> x[1], (x, u, p) -> nothing; direction = :rising)
    @test rising.affect! !== nothing && rising.affect_neg! === nothing
end
