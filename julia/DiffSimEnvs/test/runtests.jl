using Test

@testset "DiffSimEnvs" begin
    @testset "$name" for name in (
        "quality",
        "contract",
        "pendulum",
        "cartpole_swingup",
        "reactor",
        "rosenbrock",
        "trebuchet",
        "three_body",
        "events",
        "batches",
        "windows",
        "adjoints",
        "loading",
        "models",
        "modelingtoolkit",
    )
        include("test_$name.jl")
    end
end
