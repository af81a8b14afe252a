include("tools.jl")
using SciMLSensitivity
using Test

@testset "an adjoint agrees with dual numbers" begin
    for (S, tolerance) in ((Reactor, 1e-7), (CartpoleSwingup, 1e-7))
        batch = open_simulator(S)
        x, u, p = sample(batch, 6)
        n, m, k = batch.sizes
        S === CartpoleSwingup && (x[1, :] ./= 2)  # inside of the track: the stop is stiff for a fixed step
        u[1, 6] = batch.description.action_box.high[1] + 1  # beyond the box: no gradient
        y, J, _ = ask(batch, INTERVAL, x, u, p)
        by = randn(Xoshiro(2), size(y)...)
        forward, adjoint = (zeros(n, 6), zeros(m, 6), zeros(k, 6)), (zeros(n, 6), zeros(m, 6), zeros(k, 6))
        pull!(J, by[1:n, :], by[n+1:n+1, :], forward...)
        DiffSimEnvs.adjoint!(batch, x, u, p, by[1:n, :], by[n+1:n+1, :], adjoint...)
        for (f, a) in zip(forward, adjoint)
            scale = max.(1, maximum(abs, f; dims = 2))
            @test maximum(abs.(f .- a) ./ scale) < tolerance
        end
        @test adjoint[2][1, 6] == 0
    end
end

@testset "what has no adjoint says so" begin
    for (S, text) in ((Pendulum, "is a map"), (Trebuchet, "has events"))
        batch = open_simulator(S)
        x, u, p = sample(batch, 1)
        n, m, k = batch.sizes
        @test_throws text DiffSimEnvs.adjoint!(batch, x, u, p, zeros(n, 1), zeros(1, 1), zeros(n, 1), zeros(m, 1), zeros(k, 1))
    end
end
