"""
    Simulator

An initial-value problem under control, `dx/dt = f(t, x, u, p)`, with a cost and an observation.

A subtype is a struct `S{T}` whose fields are its physical parameters, all of the type `T`; an instance of it is what
the methods receive as `p`.  Everything else that is known about it is its [`Description`](@ref).
"""
abstract type Simulator end

"""
    Parameter(name, value, unit = ""; low = -Inf, high = Inf, source = "")

A physical parameter: its default, unit, admissible range (bounds excluded) and source.
"""
struct Parameter
    name::Symbol
    value::Float64
    unit::String
    low::Float64
    high::Float64
    source::String
end

function Parameter(name, value, unit = ""; low = -Inf, high = Inf, source = "")
    low < value < high || throw(DomainError(value, "parameter $name must be inside ($low, $high) $unit"))
    return Parameter(Symbol(name), value, unit, low, high, source)
end

"""
    Box(low, high)
    Box(high)

An axis-aligned box with finite bounds; with one argument, that from `-high` to `high`.
"""
struct Box
    low::Vector{Float64}
    high::Vector{Float64}

    function Box(low, high)
        length(low) == length(high) > 0 ||
            throw(DimensionMismatch("bounds of a box differ in length or are empty: $low and $high"))
        all(isfinite(a) && isfinite(b) && a <= b for (a, b) in zip(low, high)) ||
            throw(DomainError((low, high), "bounds of a box are finite, low <= high"))
        return new(collect(Float64, low), collect(Float64, high))
    end
end

Box(high) = Box(-collect(high), high)

"""
    Description(; state, action_box, start_box, state_box, dt, episode_steps, …)

What a simulator states about itself.

  - `state`, `observation`: names of the components; observations are the state unless given.
  - `angles`: those states that are angles in rad, to which 2π can be added.
  - `parameters`: a [`Parameter`](@ref) for each field of the struct, in the same order.
  - `action_box`: actions are clipped to it before they act.
  - `start_box`: episodes start uniformly in it, unless there is a method of [`reset`](@ref).
  - `state_box`: the states worth knowing about: training may start anywhere in it.
  - `dt`: the control interval in seconds (or the simulator's unit of time); `episode_steps` of them make an episode.
  - `cost_of_reached_state`: whether an interval costs what the state at its end costs, not that at its start.
  - `gym_id`: the same task as a Gymnasium environment, where there is one.
"""
struct Description
    state::Vector{String}
    observation::Vector{String}
    angles::Vector{String}
    parameters::Vector{Parameter}
    action_box::Box
    start_box::Box
    state_box::Box
    dt::Float64
    episode_steps::Int
    cost_of_reached_state::Bool
    gym_id::Union{Nothing,String}
end

function Description(;
    state,
    action_box,
    start_box,
    state_box,
    dt,
    episode_steps,
    observation = state,
    angles = String[],
    parameters = Parameter[],
    cost_of_reached_state = false,
    gym_id = nothing,
)
    n = length(state)
    for (name, box) in (("start_box", start_box), ("state_box", state_box))
        length(box.low) == n ||
            throw(DimensionMismatch("$name has $(length(box.low)) components, the state has $n"))
    end
    0 < dt < Inf || throw(DomainError(dt, "dt, the control interval, is a positive number"))
    episode_steps > 0 || throw(DomainError(episode_steps, "an episode has at least one control interval"))
    for (what, names) in (("state", state), ("observation", observation))
        allunique(names) || throw(ArgumentError("$what: a name is given twice: $(join(names, ", "))"))
    end
    strangers = setdiff(angles, state)
    isempty(strangers) || throw(ArgumentError("angles $strangers are not among the states $state"))
    return Description(
        collect(String, state),
        collect(String, observation),
        collect(String, angles),
        collect(Parameter, parameters),
        action_box,
        start_box,
        state_box,
        dt,
        episode_steps,
        cost_of_reached_state,
        gym_id,
    )
end

"""
    describe(::Type{<:S}) -> Description

What the simulator `S` states about itself.
"""
function describe end

"""
    dynamics!(dx, x, u, p, t)

Write dx/dt at state `x` under the applied (already clipped) action `u` into `dx`.  `t` runs from 0 to `dt` in each
control interval: a simulator that depends on time has time, or a phase, among its states.
"""
function dynamics! end

"""
    jacobian!(J, x, u, p)

The derivative of [`dynamics!`](@ref) by the state, `J[i, j] = d dx[i] / d x[j]`, for implicit methods; dual numbers find it where there
is no method.  Only for dynamics that do not depend on `t`.
"""
function jacobian! end

"""
    cost(x, u, p)

The cost of applying `u` (already clipped) in `x` for one control interval.
"""
function cost end

"""
    observe(x, p)

What a policy sees of the state, a tuple or vector; the state unless there is a method.
"""
observe(x, p) = x

"""
    done(x, p) -> Bool

Whether a rollout has ended for good.  It may be stepped on after its end, so what follows has to stay finite.
"""
done(x, p) = false

"""
    reset(rng, p)

A starting state of the task, a tuple or vector; `nothing` (the default) for uniformly in the start box.
"""
reset(rng, p) = nothing

"""
    scheme(p)

How a control interval is simulated: [`Adaptive`](@ref) (the default, with Tsit5), [`Fixed`](@ref) or
[`Discrete`](@ref).
"""
scheme(p) = Adaptive(Tsit5())

"""
    events(p)

What happens inside the control intervals: a tuple of [`event`](@ref)s, empty unless there is a method.
"""
events(p) = ()

"""
    jump!(x, u, p)

A jump of the state at the start of a control interval; none unless there is a method.
"""
jump!(x, u, p) = nothing

"""
    step!(next, x, u, p)

The whole control interval of a simulator whose [`scheme`](@ref) is [`Discrete`](@ref).
"""
function step! end

"The struct of a simulator without its number type, `S` for an `S{Float64}`."
@generated family(::Type{S}) where {S<:Simulator} = Base.typename(S).wrapper

"The simulator with other values of its parameters, and their number type."
rebuild(::Type{S}, values) where {S<:Simulator} =
    _rebuild(family(S), values, Val(fieldcount(S)))

_rebuild(S, values, ::Val{K}) where {K} = S(ntuple(i -> @inbounds(values[i]), Val(K))...)
