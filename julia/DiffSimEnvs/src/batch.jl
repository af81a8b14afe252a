"What a batch is asked for."
@enum Quantity INTERVAL SLOPE COST OBSERVATION DONE

"""
    Batch

An opened simulator: its description and the workspaces that its rollouts are computed in, of which concurrent calls
take one each per task.
"""
struct Batch{S<:Simulator}
    description::Description
    scheme::Scheme
    sizes::NTuple{3,Int}  # states, actions, parameters
    pools::Dict{Type,Vector{Any}}
    paces::Dict{Type,Float64}  # seconds a rollout took last time
    lock::ReentrantLock
end

"""
    open_simulator(S) -> Batch

Make the simulator type `S` ready, after a look at whether it is complete.
"""
function open_simulator(S)
    S isa Type && S <: Simulator ||
        throw(ArgumentError("$S is no simulator: struct $S{T} <: DiffSimEnvs.Simulator is needed"))
    S = Base.typename(S).wrapper
    hasmethod(describe, (Type{S},)) || throw(missing_method("describe(::Type{<:$(nameof(S))})"))
    d = describe(S)
    d isa Description || throw(ArgumentError("describe gives $(typeof(d)), a Description is needed"))
    concrete = isempty(d.parameters) && !(S isa UnionAll) ? S : S{Float64}
    fields, names = collect(fieldnames(concrete)), [q.name for q in d.parameters]
    fields == names ||
        throw(ArgumentError("the fields of $(nameof(S)) are $fields, its description's parameters are $names"))
    p = rebuild(concrete, [q.value for q in d.parameters])
    v = Vector{Float64}
    chosen = scheme(p)
    needed = Any[if chosen isa Discrete
        (step!, (v, v, v, typeof(p)), "step!(next, x, u, p::$(nameof(S)))")
    else
        (dynamics!, (v, v, v, typeof(p), Float64), "dynamics!(dx, x, u, p::$(nameof(S)), t)")
    end, (cost, (v, v, typeof(p)), "cost(x, u, p::$(nameof(S)))")]
    for (f, types, text) in needed
        hasmethod(f, types) || throw(missing_method(text))
    end
    sizes = (length(d.state), length(d.action_box.low), length(d.parameters))
    return Batch{concrete}(d, chosen, sizes, Dict(), Dict(), ReentrantLock())
end

missing_method(text) = ArgumentError(
    "there is no method $text; it has to extend DiffSimEnvs' function: `import DiffSimEnvs: $(first(split(text, '(')))`",
)

"What one task needs to simulate rollouts with numbers of the type `D`, the parameters' being `P`."
struct Workspace{D,P<:Simulator,I}
    x::Vector{D}
    start::Vector{D}
    u::Vector{D}
    out::Vector{D}
    integrator::I
end

function Workspace{D,P}(batch::Batch) where {D,P}
    d = batch.description
    n, m, _ = batch.sizes
    p = rebuild(P, [eltype_of(P)(q.value) for q in d.parameters])
    x, u = zeros(D, n), zeros(D, m)
    x .= (d.start_box.low .+ d.start_box.high) ./ 2
    u .= (d.action_box.low .+ d.action_box.high) ./ 2
    integrator = make_integrator(batch.scheme, p, x, u, d.dt)
    return Workspace{D,P,typeof(integrator)}(x, similar(x), u, zeros(D, max(n + 1, length(d.observation))), integrator)
end

eltype_of(::Type{P}) where {P<:Simulator} = fieldcount(P) == 0 ? Float64 : fieldtype(P, 1)

function borrow(batch::Batch, ::Type{D}, ::Type{P}) where {D,P}
    W = Tuple{D,P}
    found = lock(batch.lock) do
        pool = get!(() -> Any[], batch.pools, W)
        isempty(pool) ? nothing : pop!(pool)
    end
    return found === nothing ? Workspace{D,P}(batch) : found
end

give_back(batch::Batch, w::Workspace{D,P}) where {D,P} =
    lock(() -> push!(batch.pools[Tuple{D,P}], w), batch.lock)

"""
    output_sizes(batch, quantity) -> first, second

Components of the results of a quantity: an interval gives states and a cost, the others one result.
"""
function output_sizes(batch::Batch, quantity::Quantity)
    n = batch.sizes[1]
    quantity === INTERVAL && return n, 1
    quantity === SLOPE && return n, 0
    quantity === OBSERVATION && return length(batch.description.observation), 0
    return 1, 0
end

"Inputs that a Jacobian has columns for: states, then actions, then parameters."
columns(batch::Batch, with_parameters) = batch.sizes[1] + batch.sizes[2] + with_parameters * batch.sizes[3]

"""
    evaluate!(batch, quantity, x, u, p, first, second, jacobian, with_parameters) -> failures

Compute a quantity for all rollouts, on as many of Julia's threads as there are rollouts for.

`x [n, B]`, `u [m, B]`, `p [k]` or `[k, B]`, of Float32 or Float64; `first` and `second` of the same type receive the
results (see [`output_sizes`](@ref)).  All arithmetic is Float64.  `jacobian [q, columns, B]` (Float64)
receives the derivatives of the `q` results, `first` before `second`; of size `[0, 0, 0]` for none.  A rollout that the
solver cannot simulate is NaN; their number is returned.
"""
function evaluate!(batch::Batch{S}, quantity::Quantity, x, u, p, first, second, jacobian, with_parameters) where {S}
    count = size(x, 2)
    wanted = isempty(jacobian) ? 0 : columns(batch, with_parameters)
    size(x, 1) == batch.sizes[1] || throw(DimensionMismatch("x has $(size(x, 1)) rows, the state has $(batch.sizes[1])"))
    D, P = number_types(S, wanted, with_parameters)
    arrays = (x, u, p, first, second, jacobian)
    return spread(batch, quantity, D, P, count, 1) do part
        stretch!(batch, quantity, D, P, arrays, part)::Int
    end
end

"The number types of states and actions, and of the simulator with its parameters, for so many wanted columns."
function number_types(::Type{S}, wanted, with_parameters) where {S}
    passes = cld(wanted, MOST_PARTIALS)
    width = wanted == 0 ? 0 : cld(wanted, passes)
    D = width == 0 ? Float64 : Perturbed{width}
    return D, rebuilt_type(S, with_parameters ? D : Float64)
end

"""
    spread(work, batch, quantity, D, P, count, intervals) -> failures

The sum of what `work(part)` returns for parts of the rollouts, on as many threads as `intervals` of them take time for.
"""
function spread(work, batch, quantity, D, P, count, intervals)
    W = Tuple{D,P}
    pace = quantity === INTERVAL ? lock(() -> get(batch.paces, W, 0.0), batch.lock) : 0.0
    seconds = count * intervals * pace
    tasks = clamp(floor(Int, seconds / WORTH_A_TASK), 1, min(Threads.nthreads(), max(count, 1)))
    begun = time_ns()
    failures = if tasks == 1
        work(1:count)::Int
    else
        running = map(Iterators.partition(1:count, cld(count, tasks))) do part
            Threads.@spawn work(part)::Int
        end
        sum(fetch, running)::Int
    end
    count * intervals > 0 && quantity === INTERVAL && lock(batch.lock) do
        batch.paces[W] = (time_ns() - begun) / 1e9 * tasks / (count * intervals)
    end
    return failures
end

"Seconds of work that pay for a task of its own, which takes some microseconds to start and to wait for."
const WORTH_A_TASK = 100e-6

rebuilt_type(::Type{S}, ::Type{D}) where {S<:Simulator,D} = fieldcount(S) == 0 ? S : family(S){D}

"The rollouts `part` of a batch, one after the other."
function stretch!(batch, quantity, ::Type{D}, ::Type{P}, arrays, part) where {D,P}
    w = borrow(batch, D, P)
    failures = stretch!(w, batch.description, quantity, arrays..., part)  # typed by the workspace from here on
    give_back(batch, w)
    return failures
end

function stretch!(w::Workspace{D,P}, d, quantity, x, u, p, first, second, jacobian, part) where {D,P}
    n, m, K = length(w.x), length(w.u), Val(fieldcount(P))
    failures = 0
    for b in part, offset in 0:partials_of(D):max(size(jacobian, 2) - 1, 0)
        load!(w.x, x, b, 0, offset)
        load!(w.u, u, b, n, offset)
        q = rebuild(P, parameters(eltype_of(P), p, b, n + m, offset, K))
        good = compute!(w, quantity, d, q)
        good || fill!(w.out, w.out[1] * NaN)
        if offset == 0
            failures += !good
            store!(first, second, w.out, b)
        end
        store_partials!(jacobian, w.out, b, offset)
    end
    return failures
end

partials_of(::Type{Float64}) = 1
partials_of(::Type{Perturbed{N}}) where {N} = N

function load!(to::Vector{D}, from, b, before, offset) where {D}
    for i in eachindex(to)
        to[i] = perturbed(D, from[i, b], before + i, offset)
    end
end

parameters(::Type{D}, p::AbstractVector, b, before, offset, ::Val{K}) where {D,K} =
    ntuple(i -> perturbed(D, p[i], before + i, offset), Val(K))
parameters(::Type{D}, p::AbstractMatrix, b, before, offset, ::Val{K}) where {D,K} =
    ntuple(i -> perturbed(D, p[i, b], before + i, offset), Val(K))

function store!(first, second, out, b)
    for i in axes(first, 1)
        first[i, b] = ForwardDiff.value(out[i])
    end
    for i in axes(second, 1)
        second[i, b] = ForwardDiff.value(out[size(first, 1)+i])
    end
end

store_partials!(jacobian, out::Vector{Float64}, b, offset) = nothing

function store_partials!(jacobian, out::Vector{Perturbed{N}}, b, offset) where {N}
    for j in 1:min(N, size(jacobian, 2) - offset), i in axes(jacobian, 1)
        jacobian[i, offset+j, b] = ForwardDiff.partials(out[i], j)
    end
end

"One rollout's quantity, from the workspace's state and action into its `out`; whether it succeeded."
@noinline function compute!(w::Workspace, quantity, d, p)
    out, x, u = w.out, w.x, w.u
    if quantity === INTERVAL
        clip!(u, d.action_box)
        n = length(x)
        settle!(x, u, p) || return false
        copyto!(w.start, x)
        good = advance!(view_of(out, n), w.integrator, x, u, p, d.dt)
        reached = d.cost_of_reached_state ? copyto!(x, 1, out, 1, n) : copyto!(x, w.start)
        out[n+1] = cost(reached, u, p)
        return good
    elseif quantity === SLOPE
        dynamics!(view_of(out, length(x)), x, u, p, 0.0)
    elseif quantity === COST
        settle!(x, u, p) || return false
        out[1] = cost(x, u, p)
    elseif quantity === OBSERVATION
        seen = observe(x, p)
        length(seen) == length(d.observation) || throw(
            DimensionMismatch("observe gives $(length(seen)) components, the description names $(length(d.observation))"),
        )
        for (i, v) in enumerate(seen)
            out[i] = v
        end
    else
        out[1] = done(x, p)
    end
    return true
end

view_of(out, n) = length(out) == n ? out : view(out, 1:n)

"Clip an action to its box; the partials of components beyond it, and not on its bounds, are cut."
function clip!(u, box)
    for i in eachindex(u)
        box.low[i] <= primal(u[i]) <= box.high[i] || (u[i] = clamp(primal(u[i]), box.low[i], box.high[i]))
    end
    return u
end

"""
    pull!(jacobian, by_first, by_second, by_x, by_u, by_p)

The vector-Jacobian product of every rollout, from the Jacobians of [`evaluate!`](@ref) and the cotangents of its
results.  `by_p [k, B]` holds a gradient for every rollout; any of the gradients may be empty.
"""
function pull!(jacobian, by_first, by_second, by_x, by_u, by_p)
    before = 0
    for (by, rows) in ((by_x, size(by_x, 1)), (by_u, size(by_u, 1)), (by_p, size(by_p, 1)))
        pull_part!(by, jacobian, before, by_first, by_second)
        before += rows
    end
end

function pull_part!(by, jacobian, before, by_first, by_second)
    split = size(by_first, 1)
    for b in axes(by, 2), j in axes(by, 1)
        total = 0.0
        for i in axes(by_first, 1)
            total += jacobian[i, before+j, b] * by_first[i, b]
        end
        for i in axes(by_second, 1)
            total += jacobian[split+i, before+j, b] * by_second[i, b]
        end
        by[j, b] = total
    end
end

simulator_type(::Batch{S}) where {S} = S

default(batch::Batch{S}) where {S} = rebuild(S, [q.value for q in batch.description.parameters])

"Whether the simulator draws its starting states itself."
has_reset(batch::Batch) = reset(Xoshiro(0), default(batch)) !== nothing

"""
    reset!(batch, x, seed)

Starting states `x [n, B]` of the task, drawn from `Xoshiro(seed)`.
"""
function reset!(batch::Batch, x, seed)
    rng, p = Xoshiro(seed), default(batch)
    for column in eachcol(x)
        column .= reset(rng, p)
    end
    return 0
end

"""
    adjoint!(batch, x, u, p, by_first, by_second, by_x, by_u, by_p)

The vector-Jacobian product of a control interval, as [`pull!`](@ref), by SciMLSensitivity's adjoints.
"""
function adjoint!(batch::Batch{S}, x, u, p, by_first, by_second, by_x, by_u, by_p) where {S}
    has_adjoints() || throw(ArgumentError("an adjoint needs the package SciMLSensitivity: `using SciMLSensitivity`"))
    d = batch.description
    batch.scheme isa Discrete &&
        throw(ArgumentError("$(nameof(S)) is a map, not a differential equation: it has no adjoint; use ForwardMode()"))
    isempty(events(default(batch))) ||
        throw(ArgumentError("$(nameof(S)) has events, which its adjoint would not see; use ForwardMode()"))
    has_algebraic(S) &&
        throw(ArgumentError("$(nameof(S)) has algebraic equations, which its adjoint would not see; use ForwardMode()"))
    tasks = [Threads.@spawn(adjoint_of_rollout!(batch, x, u, p, by_first, by_second, by_x, by_u, by_p, part)) for
             part in Iterators.partition(axes(x, 2), max(1, cld(size(x, 2), Threads.nthreads())))]
    foreach(fetch, tasks)
    return 0
end

function adjoint_of_rollout!(batch::Batch{S}, x, u, p, by_first, by_second, by_x, by_u, by_p, part) where {S}
    d = batch.description
    k = batch.sizes[3]
    for b in part
        given = Float64.(u[:, b])
        start, action = Float64.(x[:, b]), clip!(copy(given), d.action_box)
        values = Float64.(p isa AbstractVector ? p : p[:, b])
        at(state) = ForwardDiff.gradient(z -> price(S, z, length(state), length(action)), [state; action; values])
        weight = Float64(by_second[1, b])
        λ = Float64.(by_first[:, b])
        reached, pullback = invokelatest(adjoint_of_interval, S, of_ordinary_diffeq(batch.scheme), d.dt, start, action, values)
        by_cost = weight .* at(d.cost_of_reached_state ? reached : start)
        n, m = length(start), length(action)
        d.cost_of_reached_state && (λ .+= by_cost[1:n])
        state, control, constants = pullback(λ)
        d.cost_of_reached_state || (state .+= by_cost[1:n])
        by_x[:, b] .= state
        by_u[:, b] .= (control .+ by_cost[n+1:n+m]) .* (action .== given)
        by_p[:, b] .= constants .+ by_cost[n+m+1:n+m+k]
    end
end

price(::Type{S}, z, n, m) where {S} =
    cost(view(z, 1:n), view(z, n+1:n+m), rebuild(S, view(z, n+m+1:length(z))))
