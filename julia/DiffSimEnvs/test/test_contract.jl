include("tools.jl")
using Test

# The Jacobians of every quantity of every simulator, against central differences.
@testset "$S" for (S, count, h, rtol) in (
    (Pendulum, 20, 1e-6, 1e-7),
    (CartpoleSwingup, 20, 1e-6, 1e-6),
    (Reactor, 10, 1e-5, 1e-4),
    (ThreeBody, 10, 1e-6, 1e-5),
)
    batch = open_simulator(S)
    x, u, p = sample(batch, count)
    u .*= S === Reactor ? 1.0 : 0.9  # away from the bounds, where a difference steps out
    for quantity in (INTERVAL, SLOPE, COST, OBSERVATION)
        _, J, failures = ask(batch, quantity, x, u, p)
        @test failures == 0
        for b in 1:count
            # Observations see the parameters that they are given here.
            expected = jacobian_by_differences(batch, quantity, x[:, b], u[:, b], p; h)
            scale = max.(1, maximum(abs, expected; dims = 2))
            @test maximum(abs.(J[:, :, b] .- expected) ./ scale) < rtol
        end
        without, small, _ = ask(batch, quantity, x, u, p; parameters = false)
        @test size(small, 2) == batch.sizes[1] + batch.sizes[2]
        @test small ≈ J[:, 1:size(small, 2), :] rtol = 1e-5
    end
end

@testset "values without derivatives agree with those with them" begin
    for (S, tolerance) in ((Pendulum, 0.0), (CartpoleSwingup, 1e-15), (Reactor, 0.0), (Trebuchet, 1e-6), (ThreeBody, 1e-9))
        batch = open_simulator(S)
        x, u, p = sample(batch, 50)
        S === Trebuchet && (x[1, :] .= round.(x[1, :]))
        plain = ask(batch, INTERVAL, x, u, p; jacobian = false)[1]
        dual = ask(batch, INTERVAL, x, u, p)[1]
        @test maximum(abs.(plain .- dual) ./ max.(1, abs.(plain))) <= tolerance
    end
end

@testset "actions beyond the box act like its bounds, and their gradient is cut" begin
    for S in (Pendulum, CartpoleSwingup, Reactor, ThreeBody)
        batch = open_simulator(S)
        x, _, p = sample(batch, 3)
        high = repeat(batch.description.action_box.high, 1, 3)
        # Values alone: where derivatives take part in the choice of steps, those of the action would.
        value(u) = ask(batch, INTERVAL, x, u, p; jacobian = false)[1]
        @test value(high .+ 1) == value(high)
        _, J, _ = ask(batch, INTERVAL, x, high .+ 1, p)
        columns_of_u = size(x, 1)+1:size(x, 1)+size(high, 1)
        @test all(iszero, J[:, columns_of_u, :])
        @test any(!iszero, ask(batch, INTERVAL, x, high, p)[2][:, columns_of_u, :])  # on the bound it is not
    end
end

@testset "starting states are a seed's, and in the box" begin
    for S in (CartpoleSwingup,)
        batch = open_simulator(S)
        a, b, c = zeros(4, 1000), zeros(4, 1000), zeros(4, 1000)
        reset!(batch, seed, x) = DiffSimEnvs.reset!(batch, x, seed)
        reset!(batch, 7, a), reset!(batch, 7, b), reset!(batch, 8, c)
        @test a == b != c
        @test sum(a; dims = 2) ./ 1000 ≈ [0, π, 0, 0] atol = 2e-3
    end
end
