include("tools.jl")
using DiffSimEnvs: arrhenius, rebuild, steady
using OrdinaryDiffEqRosenbrock: Rodas5P
using SciMLBase: ODEProblem, solve
using Test

batch = open_simulator(Reactor)
p = DiffSimEnvs.default(batch)

@testset "the set point is a steady state, and unstable" begin
    c, held = steady(p)
    taken = p.heat * p.V * arrhenius(350.0, p) * c
    jacket = 350.0 - taken / p.UA
    x = [c, 350.0, jacket]
    @test maximum(abs, dynamics!(zeros(3), x, [held], p, 0.0)) < 1e-8
    @test c ≈ 0.5 atol = 1e-3  # the source's nominal state
    J = ask(batch, SLOPE, reshape(x, 3, 1), fill(held, 1, 1), collect(Float64, ntuple(i -> getfield(p, i), 14)))[2][:, 1:3, 1]
    @test any(>(0), real.(DiffSimEnvs.ForwardDiff.LinearAlgebra.eigvals(J)))
end

@testset "after ten intervals, ignition included, as a solve at a tighter tolerance" begin
    x, u, values = reshape([0.9, 385.0, 320.0], 3, 1), fill(320.0, 1, 1), [q.value for q in batch.description.parameters]
    f(dx, x, q, t) = dynamics!(dx, x, [320.0], p, t)
    reference = solve(ODEProblem(f, x[:, 1], (0.0, 1.0)), Rodas5P(); reltol = 1e-12, abstol = 1e-12).u[end]
    @test maximum(reference[2] .- x[2]) < 200
    for _ in 1:10
        y, _, failures = ask(batch, INTERVAL, x, u, values; jacobian = false)
        @test failures == 0
        x = y[1:3, :]
    end
    @test maximum(abs.(x[:, 1] .- reference) ./ [1, 350, 350]) < 1e-6
end
