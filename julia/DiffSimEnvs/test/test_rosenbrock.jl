include("tools.jl")
using DiffSimEnvs: Workspace, attempt!, factorize!, linearize!, substitute!
using ForwardDiff: ForwardDiff
using LinearAlgebra: norm
using OrdinaryDiffEqRosenbrock: Rodas5P
using SciMLBase: ODEProblem, solve
using Test

# Prothero and Robinson's problem, whose solution is cos(t) for any stiffness: its right-hand side depends on time.
struct Follower{T} <: Simulator
    stiffness::T
end

DiffSimEnvs.describe(::Type{<:Follower}) = Description(
    state = ["position", "velocity"],
    parameters = [Parameter(:stiffness, 1e5; low = 0.0)],
    action_box = Box([1.0]),
    start_box = Box([1.0, 1.0]),
    state_box = Box([1.0, 1.0]),
    dt = 2.0,
    episode_steps = 10,
)

function DiffSimEnvs.dynamics!(dx, x, u, p::Follower, t)
    dx[1] = -p.stiffness * (x[1] - cos(t)) - sin(t) + u[1] * x[2]^2
    dx[2] = x[1] * x[2]
end

DiffSimEnvs.cost(x, u, p::Follower) = x[1]^2
DiffSimEnvs.scheme(::Follower) = Rosenbrock(reltol = 1e-9, abstol = 1e-9)

struct Bouncer{T} <: Simulator
    g::T
end
DiffSimEnvs.describe(::Type{<:Bouncer}) = DiffSimEnvs.describe(Follower)
DiffSimEnvs.events(::Bouncer) = (event((x, u, p) -> x[1], (x, u, p) -> nothing),)

@testset "a stiff problem that depends on time, and its derivatives, in closed form" begin
    batch = open_simulator(Follower)
    y, J, failures = ask(batch, INTERVAL, [1.0; 0.5;;], fill(0.0, 1, 1), [1e5])
    @test failures == 0
    # The first follows cos t, the second grows by the integral of it.
    @test y[1:2, 1] ≈ [cos(2.0), 0.5 * exp(sin(2.0))] atol = 1e-7
    # What it started at has decayed; the action moves it by x[2]^2 / stiffness, the stiffness does not.
    @test abs(J[1, 1, 1]) < 1e-9
    @test J[2, 2, 1] ≈ exp(sin(2.0)) atol = 1e-6
    @test J[1, 3, 1] ≈ y[2, 1]^2 / 1e5 rtol = 1e-4
    @test abs(J[1, 4, 1]) < 1e-9
end

@testset "the order of a step and of its error estimate" begin
    batch = open_simulator(Follower)
    x, u, p = [0.7, 0.5], [0.3], Follower(2.0)
    reference(h) = solve(
        ODEProblem((dx, x, q, t) -> (DiffSimEnvs.dynamics!(dx, x, u, p, t); nothing), x, (0.0, h)), Rodas5P();
        reltol = 1e-14, abstol = 1e-15,
    ).u[end]
    w = Workspace{Float64,Follower{Float64}}(batch).integrator
    lengths = [0.4, 0.28, 0.2, 0.14]
    errors, estimates = similar(lengths), similar(lengths)
    for (i, h) in enumerate(lengths)
        copyto!(w.state, x)
        linearize!(w, u, p, 0.0)
        @test attempt!(w, u, p, 0.0, h)
        errors[i], estimates[i] = norm(w.stage - reference(h)), norm(w.increments[8])
    end
    slope(y) = (log(y[1]) - log(y[end])) / (log(lengths[1]) - log(lengths[end]))
    @test slope(errors) > 5.6
    @test 4.6 < slope(estimates) < 5.6
end

"A simulator of the package with another scheme."
function with_scheme(S, scheme)
    b = open_simulator(S)
    return typeof(b)(b.description, scheme, b.sizes, Dict(), Dict(), ReentrantLock())
end

@testset "derivatives through OrdinaryDiffEq's solve of the same, to 1e-7" begin
    own, tight = open_simulator(Reactor), with_scheme(Reactor, Rosenbrock(reltol = 1e-12, abstol = 1e-13))
    x, u, p = sample(own, 8)
    n, m, k = own.sizes
    function solved(z)
        q = DiffSimEnvs.rebuild(Reactor{eltype(z)}, z[n+m+1:end])
        f(dx, x, held, t) = (dynamics!(dx, x, view(held, n+1:n+m), q, t); nothing)
        return solve(ODEProblem(f, z[1:n], (0.0, own.description.dt), z), Rodas5P(); reltol = 1e-12, abstol = 1e-12).u[end]
    end
    expected = [ForwardDiff.jacobian(solved, [x[:, b]; u[:, b]; p]) for b in 1:8]
    for (batch, tolerance) in ((tight, 1e-7), (own, 1e-6))
        y, J, failures = ask(batch, INTERVAL, x, u, p)
        @test failures == 0
        for b in 1:8
            # By the sizes of the inputs, which span ten orders of magnitude, and the largest entry of each row.
            size_of = max.(1, abs.([x[:, b]; u[:, b]; p]))'
            rows = maximum(abs, expected[b] .* size_of; dims = 2)
            @test maximum(abs.(J[1:n, :, b] .- expected[b]) .* size_of ./ rows) < tolerance
        end
    end
end

@testset "values are the same numbers with and without a gradient" begin
    batch = open_simulator(Reactor)
    x, u, p = sample(batch, 50)
    plain = ask(batch, INTERVAL, x, u, p; jacobian = false)[1]
    @test plain == ask(batch, INTERVAL, x, u, p; parameters = false)[1] == ask(batch, INTERVAL, x, u, p)[1]
end

@testset "the steps of an interval allocate nothing" begin
    batch = open_simulator(Reactor)
    for parameters in (false, true)
        function bytes(count)
            x, u, p = sample(batch, count)
            results = zeros(3, count), zeros(1, count), zeros(4, columns(batch, parameters), count)
            evaluate!(batch, INTERVAL, x, u, p, results..., parameters)
            batch.paces |> empty!  # one task
            return @allocated evaluate!(batch, INTERVAL, x, u, p, results..., parameters)
        end
        @test bytes(64) - bytes(2) <= 62 * 64  # a view a rollout, nothing a step
    end
end

# A row of stiff springs, more states than dual numbers of one pass take; with the Jacobian by hand, and without.
row_of_springs!(dx, x, stiffness, u) =
    for i in eachindex(x)
        right = i == length(x) ? u[1] : x[i+1]
        left = i == 1 ? zero(eltype(x)) : x[i-1]
        dx[i] = stiffness * (left - 2x[i] + right) - x[i]^3
    end

for (name, n) in ((:ShortRow, 6), (:LongRow, 20))
    for own in (true, false)
        S = Symbol(name, own ? "ByHand" : "")
        @eval begin
            struct $S{T} <: Simulator
                stiffness::T
            end
            DiffSimEnvs.describe(::Type{<:$S}) = Description(
                state = ["x$i" for i in 1:$n], parameters = [Parameter(:stiffness, 200.0)], action_box = Box([1.0]), start_box = Box(ones($n)),
                state_box = Box(ones($n)), dt = 0.1, episode_steps = 10,
            )
            DiffSimEnvs.dynamics!(dx, x, u, p::$S, t) = row_of_springs!(dx, x, p.stiffness, u)
            DiffSimEnvs.cost(x, u, p::$S) = x[1]^2
            DiffSimEnvs.scheme(::$S) = Rosenbrock(reltol = 1e-10, abstol = 1e-10)
        end
        own && @eval function DiffSimEnvs.jacobian!(J, x, u, p::$S)
            fill!(J, zero(eltype(J)))
            for i in eachindex(x)
                J[i, i] = -2p.stiffness - 3x[i]^2
                i > 1 && (J[i, i-1] = p.stiffness)
                i < length(x) && (J[i, i+1] = p.stiffness)
            end
        end
    end
end

@testset "a Jacobian by hand, in the place of dual numbers" begin
    short, by_hand = open_simulator(ShortRow), open_simulator(ShortRowByHand)
    x, u, p = sample(short, 4)
    (y, J, _), (z, K, failures) = ask(short, INTERVAL, x, u, p), ask(by_hand, INTERVAL, x, u, p)
    @test failures == 0
    @test z ≈ y rtol = 1e-12
    @test K ≈ J rtol = 1e-10
    long, adaptive = open_simulator(LongRowByHand), with_scheme(LongRow, Adaptive(Rodas5P(); reltol = 1e-11, abstol = 1e-11))
    x, u, p = sample(long, 2)
    (y, J, failures), (z, K, _) = ask(long, INTERVAL, x, u, p), ask(adaptive, INTERVAL, x, u, p)
    @test failures == 0
    @test y ≈ z atol = 1e-8
    @test J ≈ K atol = 1e-6
    # OrdinaryDiffEq is given it, too.
    told = with_scheme(LongRowByHand, Adaptive(Rodas5P(); reltol = 1e-11, abstol = 1e-11))
    @test ask(told, INTERVAL, x, u, p)[2] ≈ K atol = 1e-8
    @test_throws "takes up to 16 without a method of jacobian!" ask(open_simulator(LongRow), INTERVAL, x, u, p)
end

@testset "small linear systems" begin
    rng = Xoshiro(3)
    for n in (1, 2, 3, 7)
        A, b = randn(rng, n, n), randn(rng, n)
        n > 1 && (A[1, 1] = 0)  # needs an exchange of rows
        factors, pivots, x = copy(A), zeros(Int, n), copy(b)
        @test factorize!(factors, pivots)
        substitute!(factors, pivots, x)
        @test A * x ≈ b rtol = 1e-9
    end
    @test !factorize!(ones(2, 2), zeros(Int, 2))
end

@testset "what it cannot do, it says" begin
    scheme, u = Rosenbrock(), zeros(1)
    @test_throws "Bouncer has events" DiffSimEnvs.make_integrator(scheme, Bouncer(1.0), zeros(2), u, 0.1)
    @test_throws "takes up to 16" DiffSimEnvs.make_integrator(scheme, Follower(1.0), zeros(17), u, 0.1)
    @test_throws "tolerances are positive" Rosenbrock(reltol = 0)
end
