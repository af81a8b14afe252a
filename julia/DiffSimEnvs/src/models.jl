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
    unless given.
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
depends on time, `timed = true` makes it one.  A mass matrix is diagonal, and of index 1 where it is singular
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
    state = ["x$i" for i in eachindex(problem.u0)],
    start = Box(collect(Float64, problem.u0), collect(Float64, problem.u0)),
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
    n = length(problem.u0)
    problem.u0 isa AbstractVector || throw(ArgumentError("the state of the problem is a $(typeof(problem.u0)), a vector is needed"))
    length(state) == n || throw(DimensionMismatch("$(length(state)) names of states are given, the problem has $n"))
    get(problem.kwargs, :callback, nothing) === nothing ||
        throw(ArgumentError("the problem has a callback, which a gradient would not see: give it as `events` instead"))
    (observation === nothing) == (observation_names === nothing) ||
        throw(ArgumentError("`observation`, a function, and `observation_names` are given together"))
    template = template_of(problem.p)
    places = collect(keys(template))
    layout = zeros(Int, length(template))
    occupy!(layout, places, "inputs", [place for (place, _) in inputs], 1)
    occupy!(layout, places, "parameters", [place for (place, _) in parameters], -1)
    isempty(inputs) && throw(ArgumentError("a simulator has at least one input: inputs = [place in problem.p => (low, high)]"))
    limits = [bounds for (_, bounds) in inputs]
    free = [q isa Parameter ? q : Parameter(q, template[place]) for (place, q) in parameters]
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
    middle = [(low + high) / 2 for (low, high) in limits]
    still(g) = (x, p) -> g(own(x), given(middle, p), clock(x, 0.0))
    if timed
        episode = dt * episode_steps
        state, box, start = [state; "time"], with_time(box, episode), with_time(start, 0.0)
        M === nothing || (M = Diagonal([M.diag; 1.0]))
    end
    description = Description(;
        state, angles, parameters = free, action_box = Box(first.(limits), last.(limits)), start_box = start, state_box = box,
        dt, episode_steps, cost_of_reached_state, observation = something(observation_names, state),
    )
    return define(
        name, description, rates!, at(cost), observation === nothing ? nothing : still(observation);
        done = done === nothing ? nothing : still(done), events, scheme = something(scheme, usual_scheme(M, n)), mass = M,
    )
end

with_time(box, last) = Box([box.low; 0.0], [box.high; last])

template_of(p::AbstractVector{<:Real}) = collect(Float64, p)
template_of(p::NamedTuple) =
    all(v -> v isa Real, p) ? map(Float64, p) : throw(ArgumentError("the problem's p has entries that are no numbers: $p"))
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

diagonal_of(M, n) = nothing
function diagonal_of(M::AbstractMatrix, n)
    M == one(M) && return nothing
    isdiag(M) || throw(ArgumentError("the problem's mass matrix is not diagonal: write its equations so that it is"))
    return Diagonal(Float64[M[i, i] for i in 1:n])
end
