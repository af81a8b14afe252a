using Test

@testset "RoboticsEnvs" begin
    include("test_pendulum.jl")
end
