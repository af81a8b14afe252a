# What other languages call: C functions over plain memory.  No exception leaves them; -1 stands for one, whose
# text `last_error` keeps.

const OPENED = Batch[]
const ERRORS = Dict{Int,String}()
const DESK = ReentrantLock()

const INTERRUPTED = -2
const FAILED = -1

"Keep a batch for calls by its number."
enrol(batch::Batch) = lock(() -> (push!(OPENED, batch); length(OPENED)), DESK)

"The number of the opened simulator `name`, of `file` or (if that is empty) of this package."
function enrol(file::AbstractString, name::AbstractString)
    S = get(OF_SESSION, (String(file), String(name)), nothing)
    S === nothing && (S = file == "" ? load_simulator(name) : load_simulator(file, name))
    # The methods of a file are newer than this call.
    return enrol(Base.invokelatest(open_simulator, S))
end

"""
    c_open(file, name, text, capacity) -> length

Open a simulator and write what there is to know of it, as TOML, to `text` (at most `capacity` bytes): its `number` for later
calls and its description, or an `error`.  The length of the text, in bytes, however much of it was written.
"""
function c_open(file::Cstring, name::Cstring, text::Ptr{UInt8}, capacity::Int64)::Int64
    path = unsafe_string(file)
    answer = try
        Base.invokelatest(facts, enrol(path, unsafe_string(name)))
    catch error
        Dict("error" => explain(error, catch_backtrace(), path))
    end
    return write_text(sprint(TOML.print, answer), text, capacity)
end

"""
    c_last_error(number, text, capacity) -> length

The text of the last error in calls for a simulator, as [`c_open`](@ref) writes it.
"""
c_last_error(number::Int64, text::Ptr{UInt8}, capacity::Int64)::Int64 =
    write_text(lock(() -> get(ERRORS, number, ""), DESK), text, capacity)

"""
    c_load_adjoints(text, capacity) -> length

Load SciMLSensitivity; an error's text, or nothing.
"""
function c_load_adjoints(text::Ptr{UInt8}, capacity::Int64)::Int64
    said = try
        has_adjoints() || Core.eval(Main, :(import SciMLSensitivity))
        ""
    catch error
        explain(error, catch_backtrace())
    end
    return write_text(said, text, capacity)
end

function write_text(text, to, capacity)
    count = min(ncodeunits(text), capacity)
    GC.@preserve text unsafe_copyto!(to, pointer(text), count)
    return ncodeunits(text)
end

function guarded(call, number)
    try
        return call()
    catch error
        error isa InterruptException && return INTERRUPTED
        text = try
            explain(error, catch_backtrace())
        catch
            string(typeof(error))
        end
        lock(() -> (ERRORS[number] = text), DESK)
        return FAILED
    end
end

wrap(::Type{T}, pointer, shape...) where {T} = unsafe_wrap(Array, Ptr{T}(pointer), shape)

function c_evaluate(
    number::Int64,
    quantity::Int64,
    single::Int64,
    rollouts::Int64,
    derivatives::Int64,
    shared::Int64,
    x::Ptr{Cvoid},
    u::Ptr{Cvoid},
    p::Ptr{Cvoid},
    first::Ptr{Cvoid},
    second::Ptr{Cvoid},
    jacobian::Ptr{Cvoid},
)::Int64
    return guarded(number) do
        T = single == 1 ? Float32 : Float64
        evaluate_at(OPENED[number], Quantity(quantity), T, rollouts, derivatives, shared == 1, x, u, p, first, second, jacobian)
    end
end

function evaluate_at(batch, quantity, ::Type{T}, rollouts, derivatives, shared, x, u, p, first, second, jacobian) where {T}
    n, m, k = batch.sizes
    q, r = output_sizes(batch, quantity)
    wide = derivatives == 0 ? 0 : columns(batch, derivatives == 2)
    shape = wide == 0 ? (0, 0, 0) : (q + r, wide, rollouts)
    parameters = shared ? wrap(T, p, k) : wrap(T, p, k, rollouts)
    return evaluate!(
        batch,
        quantity,
        wrap(T, x, n, rollouts),
        wrap(T, u, m, rollouts),
        parameters,
        wrap(T, first, q, rollouts),
        wrap(T, second, r, rollouts),
        wrap(Float64, jacobian, shape...),
        derivatives == 2,
    )
end

function c_pull(
    number::Int64,
    quantity::Int64,
    single::Int64,
    rollouts::Int64,
    derivatives::Int64,
    jacobian::Ptr{Cvoid},
    by_first::Ptr{Cvoid},
    by_second::Ptr{Cvoid},
    by_x::Ptr{Cvoid},
    by_u::Ptr{Cvoid},
    by_p::Ptr{Cvoid},
)::Int64
    return guarded(number) do
        T = single == 1 ? Float32 : Float64
        pull_at(OPENED[number], Quantity(quantity), T, rollouts, derivatives == 2, jacobian, by_first, by_second, by_x, by_u, by_p)
    end
end

function pull_at(batch, quantity, ::Type{T}, rollouts, with_parameters, jacobian, by_first, by_second, by_x, by_u, by_p) where {T}
    n, m, k = batch.sizes
    q, r = output_sizes(batch, quantity)
    pull!(
        wrap(Float64, jacobian, q + r, columns(batch, with_parameters), rollouts),
        wrap(T, by_first, q, rollouts),
        wrap(T, by_second, r, rollouts),
        wrap(T, by_x, n, rollouts),
        wrap(T, by_u, m, rollouts),
        wrap(T, by_p, with_parameters ? k : 0, rollouts),
    )
    return 0
end

function c_window(
    number::Int64,
    single::Int64,
    rollouts::Int64,
    intervals::Int64,
    derivatives::Int64,
    shared::Int64,
    u::Ptr{Cvoid},
    p::Ptr{Cvoid},
    states::Ptr{Cvoid},
    costs::Ptr{Cvoid},
    jacobian::Ptr{Cvoid},
)::Int64
    return guarded(number) do
        T = single == 1 ? Float32 : Float64
        window_at(OPENED[number], T, rollouts, intervals, derivatives, shared == 1, u, p, states, costs, jacobian)
    end
end

function window_at(batch, ::Type{T}, rollouts, intervals, derivatives, shared, u, p, states, costs, jacobian) where {T}
    n, m, k = batch.sizes
    wide = derivatives == 0 ? 0 : columns(batch, derivatives == 2)
    shape = wide == 0 ? (0, 0, 0, intervals) : (n + 1, wide, rollouts, intervals)
    return window!(
        batch,
        wrap(T, u, m, rollouts, intervals),
        shared ? wrap(T, p, k) : wrap(T, p, k, rollouts),
        wrap(T, states, n, rollouts, intervals + 1),
        wrap(T, costs, 1, rollouts, intervals),
        wrap(Float64, jacobian, shape...),
        derivatives == 2,
    )
end

function c_pull_window(
    number::Int64,
    single::Int64,
    rollouts::Int64,
    intervals::Int64,
    derivatives::Int64,
    jacobian::Ptr{Cvoid},
    by_states::Ptr{Cvoid},
    by_costs::Ptr{Cvoid},
    by_x::Ptr{Cvoid},
    by_u::Ptr{Cvoid},
    by_p::Ptr{Cvoid},
)::Int64
    return guarded(number) do
        T = single == 1 ? Float32 : Float64
        batch = OPENED[number]
        n, m, k = batch.sizes
        with_parameters = derivatives == 2
        pull_window!(
            wrap(Float64, jacobian, n + 1, columns(batch, with_parameters), rollouts, intervals),
            wrap(T, by_states, n, rollouts, intervals + 1),
            wrap(T, by_costs, 1, rollouts, intervals),
            wrap(T, by_x, n, rollouts),
            wrap(T, by_u, m, rollouts, intervals),
            wrap(T, by_p, with_parameters ? k : 0, rollouts),
        )
        0
    end
end

function c_adjoint(
    number::Int64,
    single::Int64,
    rollouts::Int64,
    shared::Int64,
    x::Ptr{Cvoid},
    u::Ptr{Cvoid},
    p::Ptr{Cvoid},
    by_first::Ptr{Cvoid},
    by_second::Ptr{Cvoid},
    by_x::Ptr{Cvoid},
    by_u::Ptr{Cvoid},
    by_p::Ptr{Cvoid},
)::Int64
    return guarded(number) do
        T = single == 1 ? Float32 : Float64
        batch = OPENED[number]
        n, m, k = batch.sizes
        adjoint!(
            batch,
            wrap(T, x, n, rollouts),
            wrap(T, u, m, rollouts),
            shared == 1 ? wrap(T, p, k) : wrap(T, p, k, rollouts),
            wrap(T, by_first, n, rollouts),
            wrap(T, by_second, 1, rollouts),
            wrap(T, by_x, n, rollouts),
            wrap(T, by_u, m, rollouts),
            wrap(T, by_p, k, rollouts),
        )
    end
end

function c_reset(number::Int64, single::Int64, rollouts::Int64, seed::Int64, x::Ptr{Cvoid})::Int64
    return guarded(number) do
        T = single == 1 ? Float32 : Float64
        batch = OPENED[number]
        reset!(batch, wrap(T, x, batch.sizes[1], rollouts), seed)
    end
end

"""
    entry_points() -> String

The addresses of the functions above, the number of Julia's threads, and versions, as TOML.
"""
function entry_points()
    addresses = (
        @cfunction(c_open, Int64, (Cstring, Cstring, Ptr{UInt8}, Int64)),
        @cfunction(c_last_error, Int64, (Int64, Ptr{UInt8}, Int64)),
        @cfunction(c_load_adjoints, Int64, (Ptr{UInt8}, Int64)),
        @cfunction(c_evaluate, Int64, (Int64, Int64, Int64, Int64, Int64, Int64, Ptr{Cvoid}, Ptr{Cvoid}, Ptr{Cvoid}, Ptr{Cvoid}, Ptr{Cvoid}, Ptr{Cvoid})),
        @cfunction(c_pull, Int64, (Int64, Int64, Int64, Int64, Int64, Ptr{Cvoid}, Ptr{Cvoid}, Ptr{Cvoid}, Ptr{Cvoid}, Ptr{Cvoid}, Ptr{Cvoid})),
        @cfunction(c_adjoint, Int64, (Int64, Int64, Int64, Int64, Ptr{Cvoid}, Ptr{Cvoid}, Ptr{Cvoid}, Ptr{Cvoid}, Ptr{Cvoid}, Ptr{Cvoid}, Ptr{Cvoid}, Ptr{Cvoid})),
        @cfunction(c_reset, Int64, (Int64, Int64, Int64, Int64, Ptr{Cvoid})),
        @cfunction(c_window, Int64, (Int64, Int64, Int64, Int64, Int64, Int64, Ptr{Cvoid}, Ptr{Cvoid}, Ptr{Cvoid}, Ptr{Cvoid}, Ptr{Cvoid})),
        @cfunction(c_pull_window, Int64, (Int64, Int64, Int64, Int64, Int64, Ptr{Cvoid}, Ptr{Cvoid}, Ptr{Cvoid}, Ptr{Cvoid}, Ptr{Cvoid}, Ptr{Cvoid})),
    )
    packages = (@__MODULE__, ForwardDiff, SciMLBase, OrdinaryDiffEqTsit5, OrdinaryDiffEqRosenbrock, OrdinaryDiffEqVerner)
    versions = Dict(string(nameof(m)) => string(pkgversion(m)) for m in packages)
    versions["julia"] = string(VERSION)
    answer = Dict("threads" => Threads.nthreads(), "addresses" => [Int(UInt(a)) for a in addresses], "versions" => versions)
    return sprint(TOML.print, answer)
end

"Everything another language has to know of an opened simulator, as plain data."
function facts(number)
    batch = OPENED[number]
    d = batch.description
    box(b) = Dict("low" => b.low, "high" => b.high)
    return Dict(
        "number" => number,
        "state" => d.state,
        "observation" => d.observation,
        "angles" => d.angles,
        "parameters" => [
            Dict("name" => string(q.name), "value" => q.value, "unit" => q.unit, "low" => q.low, "high" => q.high, "source" => q.source)
            for q in d.parameters
        ],
        "action_box" => box(d.action_box),
        "start_box" => box(d.start_box),
        "state_box" => box(d.state_box),
        "dt" => d.dt,
        "episode_steps" => d.episode_steps,
        "cost_of_reached_state" => d.cost_of_reached_state,
        "gym_id" => something(d.gym_id, ""),
        "own_reset" => has_reset(batch),
        "adjoint" => sensitivity(family(simulator_type(batch))) isa AdjointMode,
    )
end
