# Simulators that are not written as a struct with methods, but made from a model that is there already: an `ODEProblem`
# here, a system of ModelingToolkit in the extension that comes with it.

"""
    simulator(problem::ODEProblem; inputs, cost, dt, episode_steps, box, …) -> Type{<:Simulator}
    simulator(system; inputs, cost, dt, episode_steps, box, …) -> Type{<:Simulator}

A simulator from a model: a problem of SciML, or a `System` of ModelingToolkit (`using ModelingToolkit`).  In a file, `const Cart = simulator(problem; …)` is found as `julia:file.jl:Cart`.

A system is simplified (`mtkcompile`) and becomes Julia code, its Jacobian ([`jacobian!`](@ref)) included: what is written below as a `variable` is one of the system's own,
`expression` an expression of them.  Of a problem, `problem.p` is a vector of numbers or a named tuple of them, in which `inputs`
and `parameters` have places (an index or a key) and names, and functions take it as the problem's own function does.

  - `inputs`: the actions and their bounds; of a system `[variable => (low, high), …]`, of a problem `[place => (low, high), …]`.
  - `cost`: of a control interval; an `expression`, or a function `(x, p, t)`.  `cost_of_reached_state` as in [`Description`](@ref).
  - `dt`, `episode_steps`: as in [`Description`](@ref).
  - `box`: the states worth knowing about; of a system `[variable => (low, high), …]` for every state of the simplified system, in the
    order that the simulator's states get; of a problem a [`Box`](@ref).
  - `start`: where episodes start, in the same form, a number in the place of two for a point; the model's initial
    values where there is none.
  - `observation`: what a policy sees: `["name" => expression, …]`, or a function `(x, p, t)` with `observation_names`; the state
    unless given.  It cannot depend on inputs, nor can `done`: of a problem, inputs are NaN there.
  - `done`: whether an episode has ended, an `expression` that is true or false, or a function `(x, p, t)`.
  - `parameters`: those that stay free, by which derivatives can be had: of a system `[variable, …]`, all that are single
    numbers unless given; of a problem `[place => :name, …]`, none unless given.  The others are constants.
  - `events`: of a problem, a tuple of [`event`](@ref)s.  A system brings its own (`continuous_events`): an affect sets states, by
    expressions of `Pre(variable)`; discrete variables that it sets become states, which need a box as well.
  - `angles`: names of states that are angles in rad.
  - `scheme`: how an interval is simulated; `Adaptive(Tsit5())` unless given, and [`Rosenbrock`](@ref) (`Adaptive(Rodas5P())` for
    more than $MOST_STATES states) where there are algebraic equations.
  - `state`: of a problem, names of the states.
  - `name`: of the type.

Where time appears in a system's equations, it is a state `time`, zero at the start of an episode; of a problem that
depends on time, `timed = true` makes it one, which begins with `tspan`.  A mass matrix is diagonal, and of index 1 where it is singular
([`mass_matrix`](@ref)).

# Errors

An `ArgumentError` names what is missing, or what a gradient would not see: an array or a function among the parameters, a
callback of a problem, an event at given times.
"""
function simulator end

simulator(model; _...) = throw(
    ArgumentError(
        "simulator takes an ODEProblem or, after `using ModelingToolkit`, a System, not a $(typeof(model)); convert other models, such " *
        "as a reaction network, to one of the two first",
    ),
)

"Whether a simulator type was made by [`simulator`](@ref)."
is_model(::Type{<:Simulator}) = false

"The file that made such a type, empty for a session."
source_file(::Type{<:Simulator}) = ""

"""
    define(name, description, rates!, cost, observe; done, events, scheme, mass) -> Type{<:Simulator}

A new simulator type, whose parameters are those of the description, from functions of `x`, `u` and `p`.
"""
function define(name, description, rates!, cost, observe; done = nothing, events = (), scheme, mass = nothing, jacobian = nothing)
    fields = [q.name for q in description.parameters]
    space = Module(gensym(name))
    Core.eval(space, :(import DiffSimEnvs))
    S = if isempty(fields)
        Core.eval(space, :(struct $name <: $Simulator end; $name))
    else
        Core.eval(space, :(struct $name{T} <: $Simulator
            $([:($f::T) for f in fields]...)
        end; $name))
    end
    body = quote
        $DiffSimEnvs.is_model(::Type{<:$S}) = true
        $DiffSimEnvs.source_file(::Type{<:$S}) = $(something(Base.source_path(nothing), ""))
        $DiffSimEnvs.describe(::Type{<:$S}) = $description
        $DiffSimEnvs.dynamics!(dx, x, u, p::$S, t) = $rates!(dx, x, u, p, t)
        $DiffSimEnvs.cost(x, u, p::$S) = $cost(x, u, p)
        $DiffSimEnvs.scheme(::$S) = $scheme
    end
    observe === nothing || push!(body.args, :($DiffSimEnvs.observe(x, p::$S) = $observe(x, p)))
    done === nothing || push!(body.args, :($DiffSimEnvs.done(x, p::$S) = $done(x, p)))
    isempty(events) || push!(body.args, :($DiffSimEnvs.events(::$S) = $events))
    jacobian === nothing || push!(body.args, :($DiffSimEnvs.jacobian!(J, x, u, p::$S) = $jacobian(J, x, u, p)))
    mass === nothing || push!(body.args, :($DiffSimEnvs.mass_matrix(::Type{<:$S}) = $mass))
    Core.eval(space, body)
    return S
end

"What simulates a model for which no scheme is given."
usual_scheme(mass, n) =
    mass === nothing ? Adaptive(Tsit5(); reltol = 1e-8, abstol = 1e-8) :
    n > MOST_STATES ? Adaptive(Rodas5P(); reltol = 1e-8, abstol = 1e-8) : Rosenbrock(; reltol = 1e-9, abstol = 1e-9)

"""
    Filled(template, layout, u, p)

The vector of a problem's parameters, with the action and the simulator's parameters in their places: `layout[i]` is `j` for the
action's component `j`, `-j` for the parameter number `j`, and 0 where the template's number stays.
"""
struct Filled{T,V,U,P} <: AbstractVector{T}
    template::V
    layout::Vector{Int}
    u::U
    p::P
end

Filled(template, layout, u, p::P) where {P} =
    Filled{promote_type(Float64, eltype(u), eltype_of(P)),typeof(template),typeof(u),P}(template, layout, u, p)

Base.size(v::Filled) = size(v.template)
Base.@propagate_inbounds function Base.getindex(v::Filled{T}, i::Int) where {T}
    j = v.layout[i]
    return convert(T, j > 0 ? v.u[j] : j < 0 ? getfield(v.p, -j) : v.template[i])::T
end

"The problem's own parameters with an action in its places."
function with_defaults(template, layout, u)
    values = [j > 0 ? u[j] : Float64(template[i]) for (i, j) in enumerate(layout)]
    return template isa NamedTuple ? NamedTuple{keys(template)}(values) : values
end

"As the problem's function expects its parameters: a vector, or a named tuple."
filled(template::AbstractVector, layout, u, p) = Filled(template, layout, u, p)
function filled(template::NamedTuple{names}, layout, u, p::P) where {names,P}
    T = promote_type(Float64, eltype(u), eltype_of(P))
    return NamedTuple{names}(ntuple(Val(length(names))) do i
        j = layout[i]
        convert(T, j > 0 ? u[j] : j < 0 ? getfield(p, -j) : template[i])
    end)
end

function simulator(
    problem::ODEProblem;
    inputs,
    cost,
    dt,
    episode_steps,
    box,
    name = :Problem,
    state = nothing,
    start = nothing,
    observation = nothing,
    observation_names = nothing,
    done = nothing,
    parameters = [],
    events = (),
    angles = String[],
    cost_of_reached_state = false,
    timed = false,
    scheme = nothing,
)
    problem.f isa ODEFunction ||
        throw(ArgumentError("the problem has a $(nameof(typeof(problem.f))): write it as one first-order ODEProblem"))
    problem.u0 isa AbstractVector{<:Real} ||
        throw(ArgumentError("the state of the problem is a $(typeof(problem.u0)), a vector of real numbers is needed"))
    n, first_time = length(problem.u0), Float64(first(problem.tspan))
    state = state === nothing ? ["x$i" for i in 1:n] : string.(state)
    length(state) == n || throw(DimensionMismatch("$(length(state)) names of states are given, the problem has $n"))
    start = start === nothing ? Box(collect(Float64, problem.u0), collect(Float64, problem.u0)) : start
    for (what, value) in (("box", box), ("start", start))
        value isa Box || throw(ArgumentError("$what: a Box is needed, got $(repr(value))"))
    end
    get(problem.kwargs, :callback, nothing) === nothing ||
        throw(ArgumentError("the problem has a callback, which a gradient would not see: give it as `events` instead"))
    (observation === nothing) == (observation_names === nothing) ||
        throw(ArgumentError("`observation`, a function, and `observation_names` are given together"))
    template = template_of(problem.p)
    places = collect(keys(template))
    layout = zeros(Int, length(template))
    limits = bounds_of("inputs", inputs)
    isempty(limits) && throw(ArgumentError("a simulator has at least one input: inputs = [place in problem.p => (low, high)]"))
    occupy!(layout, places, "inputs", first.(collect(inputs)), 1)
    occupy!(layout, places, "parameters", first.(collect(parameters)), -1)
    free = [q isa Parameter ? q : Parameter(q, template[place]) for (place, q) in parameters]
    allunique(q.name for q in free) || throw(ArgumentError("parameters: a name is given twice: $(join((q.name for q in free), ", "))"))
    M = diagonal_of(problem.f.mass_matrix, n)
    f, inplace = problem.f.f, SciMLBase.isinplace(problem)
    given(u, p) = filled(template, layout, u, p)
    # Functions of their own for both cases: the compiler then knows every type.
    own = timed ? (x -> view(x, 1:n)) : identity
    clock = timed ? ((x, t) -> x[n+1]) : ((x, t) -> t)
    f! = inplace ? f : ((dx, x, p, t) -> (dx .= f(x, p, t)))
    plain!(dx, x, u, p, t) = (f!(own(dx), own(x), given(u, p), clock(x, t)); nothing)
    rates! = timed ? ((dx, x, u, p, t) -> (plain!(dx, x, u, p, t); dx[n+1] = one(eltype(dx)); nothing)) : plain!
    at(g) = (x, u, p) -> g(own(x), given(u, p), clock(x, 0.0))
    # What is observed knows no action.
    unknown = fill(NaN, length(limits))
    still(g) = (x, p) -> g(own(x), given(unknown, p), clock(x, 0.0))
    middle = [(low + high) / 2 for (low, high) in limits]
    check_once(f, inplace, problem.u0, u -> with_defaults(template, layout, u), middle, unknown, first_time; cost, observation, done, timed)
    if timed
        episode = dt * episode_steps
        state = [state; "time"]
        box, start = with_time(box, first_time, first_time + episode), with_time(start, first_time, first_time)
        M === nothing || (M = Diagonal([M.diag; 1.0]))
    end
    description = Description(;
        state, angles, parameters = free, action_box = Box(first.(limits), last.(limits)), start_box = start, state_box = box,
        dt, episode_steps, cost_of_reached_state, observation = observation_names === nothing ? state : string.(observation_names),
    )
    return define(
        Symbol(name), description, rates!, at(cost), observation === nothing ? nothing : still(observation);
        done = done === nothing ? nothing : still(done), events, scheme = something(scheme, usual_scheme(M, n)), mass = M,
    )
end

with_time(box, low, high) = Box([box.low; low], [box.high; high])

"The bounds of `[key => (low, high), …]`."
function bounds_of(what, pairs_)
    pairs_ isa Union{AbstractVector,Tuple,AbstractDict} ||
        throw(ArgumentError("$what: a list is needed, [… => (low, high), …], got $(repr(pairs_))"))
    return map(collect(pairs_)) do entry
        entry isa Pair && is_bounds(entry.second) || throw(ArgumentError("$what: … => (low, high) is needed, got $entry"))
        low, high = Float64.((entry.second...,))
        isfinite(low) && isfinite(high) && low <= high || throw(ArgumentError("$what: low <= high, both finite, is needed, got $entry"))
        (low, high)
    end
end

is_bounds(value) = value isa Union{Tuple,AbstractVector} && length(value) == 2 && all(v -> v isa Real, value)

"Call everything once, for what would be noticed late or not at all: wrong sizes, time, and actions where there are none."
function check_once(f, inplace, x, with_action, middle, unknown, time; cost, observation, done, timed)
    x, p = collect(Float64, x), with_action(middle)
    function rates(t)
        dx = fill(0.0, length(x))
        inplace && (f(dx, x, p, t); return dx)
        found = f(x, p, t)
        length(found) == length(x) ||
            throw(DimensionMismatch("the problem's function returns $(length(found)) rates, the state has $(length(x)) components"))
        return collect(Float64, found)
    end
    price(t) = (c = cost(copy(x), p, t); c isa Real ? c : throw(ArgumentError("cost: a number is needed, the function returns $(repr(c))")))
    cost isa Function || throw(ArgumentError("cost: a function (x, p, t) is needed, got $(repr(cost))"))
    for (what, quantity) in (("its function", rates), ("cost", price))
        !timed && any(isnan, quantity(NaN)) && !any(isnan, quantity(time)) && throw(
            ArgumentError("the problem depends on time ($what does): give `timed = true`, which makes time a state; every interval begins at 0 otherwise"),
        )
    end
    blind = with_action(unknown)
    if observation !== nothing
        seen = observation(copy(x), blind, time)
        any(isnan, seen) && !any(isnan, observation(copy(x), p, time)) &&
            throw(ArgumentError("observation: it depends on an input; what a policy sees is known before its action"))
    end
    if done !== nothing
        ended = done(copy(x), blind, time)
        ended isa Bool || throw(ArgumentError("done: true or false is needed, the function returns $(repr(ended))"))
    end
end

template_of(p::AbstractVector{<:Real}) = collect(Float64, p)
template_of(p::NamedTuple) =
    all(v -> v isa Real, p) ? map(Float64, p) : throw(
        ArgumentError("the problem's p has entries that are no numbers: $p; keep what is not a number in the function itself, as a closure"),
    )
template_of(p) = throw(
    ArgumentError("the problem's p is a $(typeof(p)); inputs need places in it: a vector of numbers, or a named tuple of numbers"),
)

function occupy!(layout, places, what, wanted, sign)
    for (j, place) in enumerate(wanted)
        i = findfirst(isequal(place), places)
        i === nothing && throw(ArgumentError("$what: $(repr(place)) is no place in the problem's p, which has $places"))
        layout[i] == 0 || throw(ArgumentError("$what: place $(repr(place)) of the problem's p is given twice"))
        layout[i] = sign * j
    end
end

diagonal_of(M::UniformScaling, n) = isone(M.λ) ? nothing : Diagonal(fill(Float64(M.λ), n))
function diagonal_of(M::AbstractMatrix, n)
    M == one(M) && return nothing
    isdiag(M) || throw(ArgumentError("the problem's mass matrix is not diagonal: write its equations so that it is"))
    return Diagonal(Float64[M[i, i] for i in 1:n])
end
diagonal_of(M, n) = throw(ArgumentError("the problem's mass matrix is a $(typeof(M)): a diagonal matrix of numbers is needed"))
