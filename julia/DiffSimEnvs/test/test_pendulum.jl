include("tools.jl")
using Test

p = Pendulum(10.0, 1.0, 1.0)

@testset "dynamics" begin
    dx = zeros(2)
    @test dynamics!(dx, [π / 2, 0.5], [1.0], p, 0.0) === dx
    @test dx ≈ [0.5, 15.0 + 3.0]
    @test dynamics!(zeros(2), [π / 2, 0.0], [1.0], Pendulum(5.0, 2.0, 0.5), 0.0)[2] ≈
          3 * 5 / (2 * 0.5) + 3 / (2 * 0.25)
end

@testset "cost and observation" begin
    @test cost([2π + 0.5, 2.0], [1.0], p) ≈ 0.25 + 0.4 + 0.001
    @test cost([0.0, 0.0], [0.0], p) == 0.0
    @test collect(observe([π / 3, 4.0], p)) ≈ [0.5, sqrt(3) / 2, 4.0]
end

@testset "a step" begin
    @test step!(zeros(2), [0.0, 1.0], [1.0], p) ≈ [0.05 * 1.15, 1.15]
    @test step!(zeros(2), [π / 2, 7.9], [2.0], p) ≈ [π / 2 + 0.05 * 8.0, 8.0]
end
