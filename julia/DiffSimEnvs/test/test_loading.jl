include("tools.jl")
using Test
using TOML

"What `c_open` says of a simulator, as another language reads it."
function open_from_outside(file, name)
    text = zeros(UInt8, 20_000)
    length = GC.@preserve file name text DiffSimEnvs.c_open(Cstring(pointer(file)), Cstring(pointer(name)), pointer(text), 20_000)
    return TOML.parse(String(text[1:length]))
end

function last_error(number)
    text = zeros(UInt8, 20_000)
    length = GC.@preserve text DiffSimEnvs.c_last_error(number, pointer(text), 20_000)
    return String(text[1:length])
end

complete = """
import DiffSimEnvs: Simulator, Parameter, Box, Description, describe, dynamics!, cost

struct Decay{T} <: Simulator
    rate::T
end

describe(::Type{<:Decay}) = Description(
    state = ["x"],
    parameters = [Parameter(:rate, 0.5, "1/s")],
    action_box = Box([1.0]),
    start_box = Box([1.0]),
    state_box = Box([1.0]),
    dt = 0.1,
    episode_steps = 10,
)
dynamics!(dx, x, u, p::Decay, t) = (dx[1] = u[1] - p.rate * x[1])
cost(x, u, p::Decay) = x[1]^2
"""

"What loading the simulator `name` of a file with these contents says."
function saying(contents, name = "Decay")
    file = joinpath(mktempdir(), "my_env.jl")
    write(file, contents)
    said = open_from_outside(file, name)
    return get(said, "number", 0), get(said, "error", ""), file
end

@testset "a user's own file" begin
    number, text, _ = saying(complete)
    @test text == ""
    batch = DiffSimEnvs.OPENED[number]
    y, J, _ = Base.invokelatest(ask, batch, INTERVAL, ones(1, 1), zeros(1, 1), [0.5])
    @test y[1] ≈ exp(-0.05) rtol = 1e-6
    @test J[1, :, 1] ≈ [exp(-0.05), (1 - exp(-0.05)) / 0.5, -0.1 * exp(-0.05)] rtol = 1e-5
end

@testset "a file's errors come with its message and line" begin
    for (change, name, expected) in (
        ("state = [\"x\"]" => "state = [\"x\", \"y\"]", "Decay", ["start_box has 1 components, the state has 2", "my_env.jl:7"]),
        ("u[1] - p.rate" => "u[1] - (p.rate", "Decay", ["my_env.jl"]),
        ("0.5, \"1/s\"" => "0.5; low = 1.0", "Decay", ["parameter rate must be inside (1.0, Inf)", "my_env.jl:7, in describe"]),
        ("Parameter(:rate" => "Parameter(:speed", "Decay", ["the fields of Decay are [:rate]", "[:speed]"]),
        ("cost(x, u, p::Decay) = x[1]^2" => "", "Decay", ["there is no method cost(x, u, p::Decay)", "import DiffSimEnvs: cost"]),
        ("x" => "x", "Decline", ["my_env.jl defines no simulator \"Decline\"", "Decay"]),
    )
        number, text, _ = saying(replace(complete, change), name)
        @test number == 0
        for part in expected
            @test occursin(part, text)
        end
    end
    @test occursin("there is no file", open_from_outside("nowhere.jl", "Decay")["error"])
    @test occursin("it defines: CartpoleSwingup", open_from_outside("", "Cartpole")["error"])
end

@testset "an error while simulating names the line of the file" begin
    number, _, file = saying(replace(complete, "u[1] - p.rate" => "u[2] - p.rate"))
    x, u, p, y, c, J = ones(1, 1), zeros(1, 1), [0.5], zeros(1, 1), zeros(1, 1), zeros(2, 3, 1)
    at(v) = Ptr{Cvoid}(pointer(v))
    code = GC.@preserve x u p y c J Base.invokelatest(DiffSimEnvs.c_evaluate, number, 0, 0, 1, 2, 1, at(x), at(u), at(p), at(y), at(c), at(J))
    @test code == -1
    said = last_error(number)
    @test occursin("BoundsError", said) && occursin("$file:16", said) && occursin("dynamics!", said)
end
