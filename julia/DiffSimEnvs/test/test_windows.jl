include("tools.jl")
using DiffSimEnvs: pull_window!, window!
using Test

"States, costs and Jacobians of a window, interval by interval."
function step_by_step(batch, x, u, p; parameters)
    states, costs, J = [x], [], []
    for t in axes(u, 3)
        y, K, _ = ask(batch, INTERVAL, states[end], u[:, :, t], p; parameters)
        push!(states, y[1:end-1, :]), push!(costs, y[end:end, :]), push!(J, K)
    end
    return stack(states), stack(costs), stack(J)
end

@testset "a window of $S is its intervals" for S in (Pendulum, CartpoleSwingup, Reactor)
    batch, B, T = open_simulator(S), 7, 5
    n, m, k = batch.sizes
    x, _, p = sample(batch, B)
    S === Reactor || (x ./= 2)
    u = stack([sample(batch, B; seed)[2] for seed in 2:T+1])
    own = p .* (1 .+ 0.001 .* (0:B-1)')
    for (parameters, given) in ((false, p), (true, p), (true, own))
        expected = step_by_step(batch, x, u, given; parameters)
        states, costs = zeros(n, B, T + 1), zeros(1, B, T)
        states[:, :, 1] .= x
        J = fill(NaN, n + 1, columns(batch, parameters), B, T)
        @test window!(batch, u, given, states, costs, J, parameters) == 0
        @test (states, costs, J) == expected
        # Against the chain rule, written with matrices.
        by_states, by_costs = randn(Xoshiro(1), size(states)...), randn(Xoshiro(2), size(costs)...)
        by_x, by_u, by_p = zeros(n, B), zeros(m, B, T), zeros(parameters ? k : 0, B)
        pull_window!(J, by_states, by_costs, by_x, by_u, by_p)
        for b in 1:B
            costate, total = by_states[:, b, T+1], zeros(size(by_p, 1))
            for t in T:-1:1
                pulled = J[:, :, b, t]' * [costate; by_costs[1, b, t]]
                @test by_u[:, b, t] ≈ pulled[n+1:n+m]
                total += pulled[n+m+1:end]
                costate = pulled[1:n] + by_states[:, b, t]
            end
            @test by_x[:, b] ≈ costate
            @test by_p[:, b] ≈ total
        end
    end
    states = zeros(n, B, T + 1)
    states[:, :, 1] .= x
    window!(batch, u, p, states, zeros(1, B, T), zeros(0, 0, 0, T), false)
    @test states ≈ step_by_step(batch, x, u, p; parameters = false)[1] rtol = 1e-12
end

@testset "what fails within a window is counted once and stays NaN" begin
    batch = open_simulator(Reactor)
    x, u, p = sample(batch, 3)
    states = zeros(3, 3, 3)
    states[:, :, 1] .= x
    states[2, 2, 1] = NaN
    @test window!(batch, stack([u, u]), p, states, zeros(1, 3, 2), zeros(0, 0, 0, 2), false) == 1
    @test all(isnan, states[:, 2, 2:3]) && all(isfinite, states[:, [1, 3], :])
end
