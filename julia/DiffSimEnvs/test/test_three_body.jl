include("tools.jl")
using DiffSimEnvs: MOON_RADIUS
using OrdinaryDiffEqVerner: Vern9
using SciMLBase: ODEProblem, solve
using Test

batch = open_simulator(ThreeBody)
p = DiffSimEnvs.default(batch)

"Jacobi's constant (Szebehely, Theory of Orbits, eq. 1.5-22), outside of Earth and Moon."
function jacobi(x, mu)
    r1, r2 = hypot(x[1] + mu, x[2]), hypot(x[1] - 1 + mu, x[2])
    return x[1]^2 + x[2]^2 + 2 * (1 - mu) / r1 + 2 * mu / r2 - x[3]^2 - x[4]^2
end

"`intervals` without thrust."
function coast(x, values, intervals)
    x = reshape(x, 4, 1)
    for _ in 1:intervals
        y, _, failures = ask(batch, INTERVAL, x, zeros(2, 1), values; jacobian = false)
        failures == 0 || error("the solver failed")
        x = y[1:4, :]
    end
    return x[:, 1]
end

"The rest of a period, shorter than an interval."
function solve_on(x, values, time)
    moving = ThreeBody(values...)
    f(dx, x, q, t) = dynamics!(dx, x, (0.0, 0.0), moving, t)
    return solve(ODEProblem(f, x, (0.0, time)), Vern9(); reltol = 1e-12, abstol = 1e-12).u[end]
end

values = [q.value for q in batch.description.parameters]

@testset "the target is L2, where a spacecraft at rest stays" begin
    @test maximum(abs, dynamics!(zeros(4), [p.target, 0.0, 0.0, 0.0], [0.0, 0.0], p, 0.0)) < 1e-10
end

@testset "Jacobi's constant" begin
    rng = Xoshiro(5)
    for _ in 1:10
        x = [0.75 + 0.1 * rand(rng), 0.1 * rand(rng), 0.2 * rand(rng), 0.3 * rand(rng)]
        @test jacobi(coast(x, values, 40), p.mu) ≈ jacobi(x, p.mu) atol = 1e-9
    end
end

@testset "Arenstorf's orbit closes after its period" begin
    # Hairer, Nørsett, Wanner, Solving Ordinary Differential Equations I, eqs. (0.1) and (0.2): the classical test.
    x = [0.994, 0.0, 0.0, -2.00158510637908252240537862224]
    period = 17.0652165601579625588917206249
    # It passes the Moon's centre at 0.006, just outside of its radius.
    arenstorf = [0.012277471, 0.1, 1.0]
    whole = floor(Int, period / 0.05)
    y = coast(x, arenstorf, whole)
    rest = solve_on(y, arenstorf, period - whole * 0.05)
    @test maximum(abs, rest - x) < 1e-6
end

@testset "inside of the Moon gravity falls to zero" begin
    at(r) = dynamics!(zeros(4), [1 - p.mu + r, 0.0, 0.0, 0.0], [0.0, 0.0], p, 0.0)[3]
    outside = p.mu / MOON_RADIUS^2
    centre = at(0.0)
    @test at(MOON_RADIUS) - centre ≈ -outside rtol = 1e-3
    @test at(MOON_RADIUS / 2) - centre ≈ -outside / 2 rtol = 1e-3
    @test done([1 - p.mu, 0.0, 0.0, 0.0], p)
    @test !done([p.target, 0.0, 0.0, 0.0], p)
end
