include("tools.jl")
using DiffSimEnvs: landing, release!
using Test

batch = open_simulator(Trebuchet)
p = DiffSimEnvs.default(batch)
values = [q.value for q in batch.description.parameters]
start(target) = reshape([0.0, 3.9, 2.36, 0.0, 0.0, 0, 0, 0, 0, target], 10, 1)

"A throw: the states after each control interval."
function throw_stone(command; torque = 0.0, steps = 150)
    x, path = start(50.0), Matrix{Float64}[]
    for _ in 1:steps
        x = ask(batch, INTERVAL, x, reshape([command, torque], 2, 1), values; jacobian = false)[1][1:10, :]
        push!(path, x)
    end
    return path
end

@testset "the stone leaves when the sling is at the commanded angle, flies a parabola and rests" begin
    path = throw_stone(0.4)
    k = findfirst(x -> x[1] == 1, path)
    @test k !== nothing
    released = path[k]
    @test released[3] ≈ 0.4 atol = 1e-7
    # Total energy of a stone in flight, and where it comes down, stay as they are from the release on.
    flight = filter(x -> x[7] > 0, path[k:end])
    @test length(flight) > 10
    energy(x) = (x[8]^2 + x[9]^2) / 2 + p.g * x[7]
    @test all(x -> energy(x) ≈ energy(released), flight)
    @test all(x -> isapprox(landing(x, p.g), landing(released, p.g); atol = 1e-6), flight)
    @test path[end][6] ≈ landing(released, p.g) atol = 1e-6
    @test path[end][7:9] == zeros(3)
end

@testset "a sling below the commanded angle lets go at once" begin
    x = start(50.0)
    x[3] = 0.5
    y = ask(batch, INTERVAL, x, reshape([0.9, 0.0], 2, 1), values; jacobian = false)[1]
    z = release!(copy(x[:, 1]), nothing, p)
    @test y[1] == 1
    @test y[2:5] ≈ x[2:5]
    @test y[6] ≈ z[6] + 0.04 * z[8]
end

@testset "gradients through release and landing" begin
    # The interval before, that of the release, and that of the landing.
    path = throw_stone(0.4)
    k = findfirst(x -> x[1] == 1, path)
    down = findfirst(x -> x[1] == 1 && x[7] == 0, path)
    for i in (k - 2, k - 1, k, down - 1)
        x = path[i][:, 1]
        J = ask(batch, INTERVAL, reshape(x, 10, 1), reshape([0.4, 10.0], 2, 1), values)[2][:, :, 1]
        expected = jacobian_by_differences(batch, INTERVAL, x, [0.4, 10.0], values; h = 1e-5)
        columns = setdiff(axes(J, 2), 1)  # `released` is no number to differentiate by
        scale = max.(1, maximum(abs, expected; dims = 2))
        @test maximum(abs.(J .- expected)[:, columns] ./ scale) < 2e-5
    end
end

@testset "a stone on the ground stays there, with dual numbers too" begin
    x = reshape([1.0, 3.0, 0.4, 0.1, 0.1, 50.0, 0.0, 0.0, 0.0, 40.0], 10, 1)
    y, J, failures = ask(batch, INTERVAL, x, reshape([0.4, 20.0], 2, 1), values)
    @test failures == 0
    @test y[1:10] == x[:, 1]
    @test J[6, 6, 1] == 1
    @test all(isfinite, J)
end
