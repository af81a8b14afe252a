# Training from Julia.  The trainer is Python's package diffsim, in this process: the methods are those of the extension
# that comes with PythonCall.

"""
    train(simulator; out, settings...) -> Run

Train a policy for a simulator, by backpropagation through it, into a run in the folder `out`.

`simulator` is a type, such as `CartpoleSwingup` or one of your own, or the name of one of Python's, such as `"pendulum"`.
`settings` are those of `diffsim.train`: `optimizer = :lbfgs`, `updates = 100`, `seed = 1`; sections with more than a name are
named tuples: `algorithm = (name = :full_horizon, batch = 64)`, `optimizer = (name = :adam, lr = 1e-3)`.

A simulator of a file is stored by that file's name and can be trained on and measured by `diffsim`'s commands too; one that
was typed into a REPL belongs to this session alone.  While such a file is read for its simulator, calls of `train` in it do
nothing.

Needs `using PythonCall`, and diffsim in the Python that it uses.
"""
train(simulator; settings...) =
    LOADING[] ? nothing : trainer().train(simulator isa AbstractString ? simulator : python_name(simulator); settings...)

"""
    evaluate(run; episodes = 100, seed = 1000, checkpoint = "best", gym = nothing) -> Evaluation

Measure the policy of a run (a [`Run`](@ref) or its folder) over whole episodes, in its own simulator or in a Gymnasium
environment, and append the result to its file.
"""
evaluate(run; settings...) = LOADING[] ? nothing : trainer().evaluate(folder_of(run); settings...)

"""
    load_policy(run; checkpoint = "best") -> MLPPolicy

The trained policy of a run (a [`Run`](@ref) or its folder) as a Julia function of plain arrays, read from the run's file.
"""
load_policy(run; checkpoint = "best") = LOADING[] ? nothing : trainer().load_policy(folder_of(run); checkpoint)

"""
    history(run) -> Dict{String,Vector{Float64}}

The columns of a run's history, such as `"loss"` and `"return"`, a number an update.
"""
history(run) = LOADING[] ? nothing : trainer().history(folder_of(run))

"The folder of a training."
struct Run
    folder::String
end

folder_of(run::Run) = run.folder
folder_of(folder::AbstractString) = String(folder)

"Returns of whole episodes: their `mean` with its 95 % interval from `low` to `high`, and `lengths` in control intervals."
struct Evaluation
    mean::Float64
    low::Float64
    high::Float64
    returns::Vector{Float64}
    lengths::Vector{Int}
    text::String
end

Base.show(io::IO, e::Evaluation) = print(io, e.text)

"""
    MLPPolicy

A multilayer perceptron from observations `[o]` to actions `[m]`, or from `[o, B]` to `[m, B]`:
`centre + half_range * squash(network((observation - mean) / scale))`, in the number type of the weights.
"""
struct MLPPolicy{T,A,Q}
    mean::Vector{T}
    scale::Vector{T}
    centre::Vector{T}
    half_range::Vector{T}
    weights::Vector{Matrix{T}}
    biases::Vector{Vector{T}}
    activation::A
    squash::Q
end

function (policy::MLPPolicy)(observation::AbstractVecOrMat)
    size(observation, 1) == length(policy.mean) ||
        throw(DimensionMismatch("this policy takes $(length(policy.mean)) observations, got $(size(observation, 1))"))
    y = (observation .- policy.mean) ./ policy.scale
    layers = length(policy.weights)
    for i in 1:layers
        y = policy.weights[i] * y .+ policy.biases[i]
        i < layers && (y = policy.activation.(y))
    end
    return policy.centre .+ policy.half_range .* policy.squash.(y)
end

Base.show(io::IO, policy::MLPPolicy) =
    print(io, "MLPPolicy($(length(policy.mean)) -> $(length(policy.centre)), layers of $(join(length.(policy.biases), ", ")))")

const ACTIVATIONS = Dict(
    "tanh" => tanh,
    "relu" => x -> max(x, zero(x)),
    "elu" => x -> x > 0 ? x : expm1(x),
    "silu" => x -> x / (1 + exp(-x)),
)
const SQUASHES = Dict("clip" => x -> clamp(x, -one(x), one(x)), "tanh" => tanh)

"Whether a file is being read for its simulator: what it trains then is not for now."
const LOADING = Ref(false)

"Simulators of this session, by file (empty: of none) and name, so that the trainer gets the type that it was called with."
const OF_SESSION = Dict{Tuple{String,String},Type}()

"The name by which the trainer finds a simulator type."
function python_name(S::Type)
    S <: Simulator || throw(ArgumentError("$S is no simulator: a subtype of DiffSimEnvs.Simulator is needed"))
    S = Base.typename(S).wrapper
    name = string(nameof(S))
    parentmodule(S) === @__MODULE__() && return "julia:$name"
    hasmethod(describe, (Type{S},)) || throw(missing_method("describe(::Type{<:$name})"))
    file = is_model(S) ? source_file(S) : first(functionloc(which(describe, (Type{S},))))
    file = file !== nothing && isfile(file) ? realpath(file) : ""
    OF_SESSION[(file, name)] = S
    return file == "" ? "julia:$name" : "julia:$file:$name"
end

function trainer()
    found = Base.get_extension(@__MODULE__, :DiffSimEnvsPythonCallExt)
    found === nothing && throw(ArgumentError("the trainer is Python's package diffsim: `using PythonCall` first"))
    return found
end
