include("tools.jl")
using DiffSimEnvs: capsule_gyration
using Test

p = DiffSimEnvs.default(open_simulator(CartpoleSwingup))

"Kinetic and potential energy, J, from the points of the pole."
function energy(x, p)
    centre = p.pole_length / 2
    gyration = capsule_gyration(p.pole_radius, p.pole_length)
    vx, vy = x[3] + centre * cos(x[2]) * x[4], -centre * sin(x[2]) * x[4]
    kinetic = p.cart_mass * x[3]^2 / 2 + p.pole_mass * (vx^2 + vy^2 + gyration * x[4]^2) / 2
    return kinetic + p.pole_mass * p.g * centre * cos(x[2])
end

@testset "energy changes by what motor and friction do" begin
    rng = Xoshiro(3)
    for _ in 1:50
        x = [1.5, π, 3.0, 6.0] .* (2 .* rand(rng, 4) .- 1)
        u = [2 * rand(rng) - 1]
        dx = dynamics!(zeros(4), x, u, p, 0.0)
        h = 1e-6
        change = (energy(x + h * dx, p) - energy(x - h * dx, p)) / 2h
        power = p.gear * u[1] * x[3] - p.cart_damping * x[3]^2 - p.hinge_damping * x[4]^2
        @test change ≈ power atol = 1e-6
    end
end

@testset "the end stop pushes inwards only" begin
    for (position, velocity) in ((1.9, 0.5), (-1.9, -0.5), (1.85, -0.01))
        free = dynamics!(zeros(4), [0.0, 0.3, velocity, 0.1], [0.2], p, 0.0)
        stopped = dynamics!(zeros(4), [position, 0.3, velocity, 0.1], [0.2], p, 0.0)
        @test (stopped[3] - free[3]) * sign(position) < 0
    end
    @test dynamics!(zeros(4), [1.79, 0.3, 0.5, 0.1], [0.2], p, 0.0)[3] == dynamics!(zeros(4), [0.0, 0.3, 0.5, 0.1], [0.2], p, 0.0)[3]
end
