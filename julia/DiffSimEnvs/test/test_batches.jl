include("tools.jl")
using Test

# A simulator with more inputs than derivatives are carried at a time.
struct Springs{T} <: Simulator
    k01::T; k02::T; k03::T; k04::T; k05::T; k06::T; k07::T; k08::T; k09::T; k10::T
    k11::T; k12::T; k13::T; k14::T; k15::T; k16::T; k17::T; k18::T; k19::T; k20::T
    k21::T; k22::T; k23::T; k24::T; k25::T; k26::T; k27::T; k28::T; k29::T; k30::T
end

stiffness(p::Springs) = sum(i -> getfield(p, i) * sin(i), 1:30)

DiffSimEnvs.describe(::Type{<:Springs}) = Description(
    state = ["position", "velocity"],
    parameters = [Parameter(name, 0.1 + 0.01i) for (i, name) in enumerate(fieldnames(Springs))],
    action_box = Box([1.0]),
    start_box = Box([1.0, 1.0]),
    state_box = Box([1.0, 1.0]),
    dt = 0.1,
    episode_steps = 10,
)

function DiffSimEnvs.dynamics!(dx, x, u, p::Springs, t)
    dx[1] = x[2]
    dx[2] = u[1] - (3 + stiffness(p)) * x[1]
end

DiffSimEnvs.cost(x, u, p::Springs) = x[1]^2 + u[1]^2
DiffSimEnvs.scheme(::Springs) = Fixed(DiffSimEnvs.Tsit5(); steps = 3)

@testset "more inputs than partials at a time" begin
    batch = open_simulator(Springs)
    @test columns(batch, true) == 33 > DiffSimEnvs.MOST_PARTIALS
    x, u, p = sample(batch, 5)
    y, J, _ = ask(batch, INTERVAL, x, u, p)
    @test y ≈ ask(batch, INTERVAL, x, u, p; jacobian = false)[1] rtol = 1e-14
    for b in 1:5
        @test J[:, :, b] ≈ jacobian_by_differences(batch, INTERVAL, x[:, b], u[:, b], p) atol = 1e-8
    end
end

@testset "a batch is its rollouts, whatever their number, their order and Julia's threads" begin
    for S in (Pendulum, CartpoleSwingup, Reactor, Trebuchet, ThreeBody)
        batch = open_simulator(S)
        x, u, p = sample(batch, 67)
        S === Trebuchet && (x[1, :] .= round.(x[1, :]))
        together, J, _ = ask(batch, INTERVAL, x, u, p)
        for b in (1, 2, 33, 66, 67)
            y, K, _ = ask(batch, INTERVAL, x[:, b:b], u[:, b:b], p)
            @test y[:, 1] == together[:, b]
            @test K[:, :, 1] == J[:, :, b]
        end
        for seed in 1:3
            order = sortperm(rand(Xoshiro(seed), 67))
            y, K, _ = ask(batch, INTERVAL, x[:, order], u[:, order], p)
            @test y == together[:, order]
            @test K == J[:, :, order]
        end
        @test ask(batch, INTERVAL, x[:, 1:0], u[:, 1:0], p)[3] == 0
    end
end

@testset "parameters of their own for every rollout" begin
    batch = open_simulator(Pendulum)
    x, u, p = sample(batch, 5)
    own = p .* (1 .+ 0.1 .* (0:4)')
    together, J, _ = ask(batch, INTERVAL, x, u, own)
    for b in 1:5
        y, K, _ = ask(batch, INTERVAL, x[:, b:b], u[:, b:b], own[:, b])
        @test (y[:, 1], K[:, :, 1]) == (together[:, b], J[:, :, b])
    end
end

@testset "Float32 is read and written, the arithmetic stays Float64" begin
    for S in (Pendulum, CartpoleSwingup, ThreeBody)
        batch = open_simulator(S)
        x, u, p = sample(batch, 9; T = Float32)
        single, J, _ = ask(batch, INTERVAL, x, u, p)
        double, K, _ = ask(batch, INTERVAL, Float64.(x), Float64.(u), Float64.(p))
        @test single isa Matrix{Float32}
        @test single == Float32.(double)
        @test J == K
    end
end

@testset "pull! is the transposed Jacobian" begin
    batch = open_simulator(CartpoleSwingup)
    x, u, p = sample(batch, 9)
    y, J, _ = ask(batch, INTERVAL, x, u, p)
    by, bars = randn(Xoshiro(2), size(y)...), (zeros(4, 9), zeros(1, 9), zeros(8, 9))
    pull!(J, by[1:4, :], by[5:5, :], bars...)
    for b in 1:9
        @test vcat((g[:, b] for g in bars)...) ≈ J[:, :, b]' * by[:, b]
    end
end

@testset "a rollout that cannot be simulated is NaN, its neighbours are not" begin
    batch = open_simulator(Reactor)
    x, u, p = sample(batch, 3)
    x[2, 2] = NaN
    y, J, failures = ask(batch, INTERVAL, x, u, p)
    @test failures == 1
    @test all(isnan, y[:, 2]) && all(isnan, J[:, :, 2])
    @test all(isfinite, y[:, [1, 3]]) && all(isfinite, J[:, :, [1, 3]])
end
