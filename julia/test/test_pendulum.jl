using ForwardDiff
using RoboticsEnvs
using Test

"Central difference of `f` at `v` along each component."
function differences(f, v; h = 1e-6)
    columns = map(eachindex(v)) do i
        step = zeros(length(v))
        step[i] = h
        (f(v + step) - f(v - step)) / 2h
    end
    return reduce(hcat, columns)
end

@testset "Pendulum" begin
    p = Pendulum()

    @testset "dynamics" begin
        dx = zeros(2)
        @test dynamics!(dx, [π / 2, 0.5], [1.0], p, 0.0) === dx
        @test dx ≈ [0.5, 15.0 + 3.0]
        @test dynamics!(zeros(2), [π / 2, 0.0], [1.0], Pendulum(g = 5.0, m = 2.0, l = 0.5), 0.0)[2] ≈
              3 * 5 / (2 * 0.5) + 3 / (2 * 0.25)
    end

    @testset "cost and observation" begin
        @test cost(p, [2π + 0.5, 2.0], [1.0]) ≈ 0.25 + 0.4 + 0.001
        @test cost(p, [0.0, 0.0], [0.0]) == 0.0
        @test observe(p, [π / 3, 4.0]) ≈ [0.5, sqrt(3) / 2, 4.0]
    end

    @testset "a step" begin
        x, c = advance(p, [0.0, 1.0], [1.0])
        @test x ≈ [0.05 * 1.15, 1.15]
        @test c ≈ 0.1 + 0.001
        @test advance(p, [0.3, 0.2], [9.0]) == advance(p, [0.3, 0.2], [2.0])
        @test advance(p, [π / 2, 7.9], [2.0])[1] ≈ [π / 2 + 0.05 * 8.0, 8.0]
    end

    @testset "gradients with respect to state, action and parameters" begin
        step(v) = advance(Pendulum(v[4], v[5], v[6]), v[1:2], v[3:3])
        for v in ([0.7, -1.2, 0.4, 10.0, 1.0, 1.0], [2.5, 3.0, -1.1, 3.7, 0.8, 1.3])
            @test ForwardDiff.jacobian(w -> step(w)[1], v) ≈ differences(w -> step(w)[1], v) atol = 1e-7
            @test ForwardDiff.gradient(w -> step(w)[2], v)' ≈ differences(w -> step(w)[2], v) atol = 1e-7
        end
    end

    @testset "impossible parameters" begin
        @test_throws DomainError Pendulum(m = 0.0)
        @test_throws DomainError Pendulum(l = -1.0)
        @test Pendulum(10, 1, 1) isa Pendulum{Int}
    end
end
