"Simulators from systems of ModelingToolkit, where it is loaded."
module DiffSimEnvsModelingToolkitExt

using DiffSimEnvs
using DiffSimEnvs: bounds_of, define, usual_scheme, with_time
using LinearAlgebra: Diagonal
using ModelingToolkit
using ModelingToolkit: Differential, Equation, ImperativeAffect, Pre
using ModelingToolkit: continuous_events, discrete_events, get_iv, isscheduled
using ModelingToolkit.Symbolics: Num, SymbolicUtils, build_function, fixpoint_sub, get_variables, jacobian, scalarize, unwrap, value

"The name of a variable as a user reads it: `resistor.R`, `chain.x[2]`."
function label(variable)
    v = unwrap(variable)
    if SymbolicUtils.iscall(v) && SymbolicUtils.operation(v) === getindex
        array, indices... = SymbolicUtils.arguments(v)
        return string(label(array), "[", join(value.(indices), ","), "]")
    end
    return replace(string(ModelingToolkit.Symbolics.tosymbol(v; escape = false)), "₊" => ".")
end

"Arrays of variables, and their elements."
with_elements(variables) = [v for array in variables for v in (is_array(array) ? [array; vec(collect(scalarize(array)))] : [array])]
is_array(v) = SymbolicUtils.symtype(unwrap(v)) <: AbstractArray

is_operator(term, kind) = SymbolicUtils.iscall(term) && SymbolicUtils.operation(term) isa kind

"""
A simplified system: differential equations `mass * D(state) = rate`, or `0 = rate` where the mass is zero; the variables that were
eliminated, as expressions of the states, inputs and parameters; and all its variables by their labels.
"""
struct Model
    system::Any
    prefix::String
    states::Vector{Any}
    rates::Vector{Any}
    mass::Vector{Float64}
    inputs::Vector{Any}
    time::Any
    variables::Dict{String,Any}
    eliminated::Dict{Any,Any}
end

"""
    Model(system, inputs, modes)

`modes` are discrete variables, which events alone change: states whose rate is zero.
"""
function Model(system, wanted, modes)
    prefix = string(nameof(system), ".")
    of(sys) = [ModelingToolkit.unknowns(sys); ModelingToolkit.observables(sys); ModelingToolkit.parameters(sys); ModelingToolkit.inputs(sys)]
    index(variables) = Dict{String,Any}(label(v) => unwrap(v) for v in with_elements(variables))
    actions = [found_as(label(v), index(of(system)), prefix, "inputs") for v in wanted]
    # A parameter can be an action, too.
    constant = [any(isequal(v), with_elements(ModelingToolkit.parameters(system))) for v in actions]
    sys = isscheduled(system) ? system : simplified(system, actions[.!constant])
    variables = index(of(sys))
    inputs = [found_as(label(v), variables, prefix, "inputs") for v in wanted]
    states = Any[ModelingToolkit.unknowns(sys)...]
    any(v -> any(isequal(v), states), inputs) &&
        throw(ArgumentError("$(nameof(system)) is compiled without these inputs: give the system before mtkcompile"))
    rates, mass = Vector{Any}(nothing, length(states)), zeros(length(states))
    eliminated = Dict{Any,Any}()
    for (bound, expression) in pairs(ModelingToolkit.bindings(sys))
        ismissing(value(expression)) || (eliminated[bound] = expression)
    end
    algebraic = Any[]
    for equation in ModelingToolkit.full_equations(sys)
        left = unwrap(equation.lhs)
        if is_operator(left, Differential)
            i = findfirst(isequal(only(SymbolicUtils.arguments(left))), states)
            rates[i], mass[i] = equation.rhs, 1.0
            eliminated[left] = equation.rhs
        else
            push!(algebraic, equation.rhs - equation.lhs)
        end
    end
    # Algebraic equations are solved together: which one belongs to which variable does not matter.
    rates[findall(iszero, mass)] = algebraic
    for equation in ModelingToolkit.observed(sys)
        eliminated[unwrap(equation.lhs)] = equation.rhs
    end
    for mode in modes
        push!(states, mode), push!(rates, 0.0), push!(mass, 1.0)
    end
    return Model(sys, prefix, states, rates, mass, inputs, unwrap(get_iv(sys)), variables, eliminated)
end

function simplified(system, inputs)
    try
        return mtkcompile(system; inputs)
    catch error
        said = sprint(showerror, error)
        throw(ArgumentError("mtkcompile cannot simplify $(nameof(system)); a variable without an equation belongs into `inputs`. It says: $said"))
    end
end

"The system's variable of that label, which may begin with the system's own name."
function found_as(name, variables, prefix, what)
    haskey(variables, name) && return variables[name]
    short = chopprefix(name, prefix)
    haskey(variables, short) && return variables[short]
    throw(ArgumentError("$what: the system has no variable $name; it has $(join(sort!(collect(keys(variables))), ", ")); a parameter " *
        "that only an event uses is to be declared: System(equations, t, variables, parameters; …)"))
end

"An expression in states, inputs, parameters and time alone."
function (model::Model)(expression, what)
    own = Dict{Any,Any}()
    for term in terms(expression)
        inner = is_operator(term, Differential) ? only(SymbolicUtils.arguments(term)) : term
        isequal(inner, model.time) || (own[inner] = found_as(label(inner), model.variables, model.prefix, what))
    end
    found = fixpoint_sub(fixpoint_sub(unwrap(expression), own), model.eliminated)
    for term in terms(found)
        is_operator(term, Differential) && throw(ArgumentError("$what: the system does not know the derivative $term"))
    end
    return found
end

terms(expression) = get_variables(unwrap(expression))

"""
What happens at a root of `condition`: states take new values. `nothing` in the place of `changes` where nothing happens in that
direction.
"""
struct Happening
    condition::Any
    rising::Union{Nothing,Vector{Pair{Int,Any}}}
    falling::Union{Nothing,Vector{Pair{Int,Any}}}
end

expressions(h::Happening) = Any[h.condition; last.(something(h.rising, [])); last.(something(h.falling, []))]
function Base.map(f, h::Happening)
    changed(changes) = changes === nothing ? nothing : Pair{Int,Any}[i => f(e) for (i, e) in changes]
    return Happening(f(h.condition), changed(h.rising), changed(h.falling))
end

"The discrete variables that the events of a system change."
modes_of(callbacks) = unique(
    unwrap(v) for c in callbacks for a in (c.affect, c.affect_neg) if hasproperty(a, :discrete_parameters) for v in a.discrete_parameters
)

happenings_of(model, callbacks) =
    Happening[Happening(model(condition.lhs - condition.rhs, "an event"), changes_of(model, callback.affect), changes_of(model, callback.affect_neg))
              for callback in callbacks for condition in callback.conditions]

function changes_of(model, affect)
    affect === nothing && return nothing
    affect isa ImperativeAffect &&
        throw(ArgumentError("an event calls a function ($(affect.f)), which a gradient would not see: write it as equations"))
    hasproperty(affect, :affect) ||
        throw(ArgumentError("an event of a system that is compiled already: give the system before mtkcompile"))
    changes, implicit = Pair{Int,Any}[], Any[]
    for equation in affect.affect
        left = unwrap(equation.lhs)
        state = SymbolicUtils.iscall(left) || SymbolicUtils.issym(left) ? model_state(model, left) : nothing
        state === nothing && throw(
            ArgumentError(
                "an event sets $left, which is no state of the simplified system ($(join(label.(model.states), ", "))): write " *
                "`state ~ expression of Pre(variable)`; a variable is kept as a state by the metadata state_priority or irreducible",
            ),
        )
        before = Dict{Any,Any}(v => only(SymbolicUtils.arguments(v)) for v in terms(equation.rhs) if is_operator(v, Pre))
        # Without Pre, a variable is what it is after the event.
        after = model(fixpoint_sub(unwrap(equation.rhs), Dict{Any,Any}(v => 0 for v in keys(before))), "an event")
        append!(implicit, terms(after))
        changes = [changes; state => model(fixpoint_sub(unwrap(equation.rhs), before), "an event")]
    end
    for (state, _) in changes
        any(isequal(model.states[state]), implicit) &&
            throw(ArgumentError("an event sets $(label(model.states[state])) by its value after the event: write Pre(…) for the value before"))
    end
    return changes
end

"The number of the state that a variable is, or that it is another name of."
function model_state(model, variable)
    name = label(variable)
    found = get(model.variables, name, get(model.variables, chopprefix(name, model.prefix), variable))
    return findfirst(isequal(fixpoint_sub(found, model.eliminated)), model.states)
end

"Parameters that occur in the expressions."
function parameters_in(model, all_of_it)
    known = [model.states; model.inputs; model.time]
    found = unique(v for e in all_of_it for v in terms(e))
    return sort!(filter(v -> !any(isequal(v), known), found); by = label)
end

"The number that the system gives a variable, or nothing."
function number(model, variable)
    given = merge(Dict{Any,Any}(pairs(ModelingToolkit.guesses(model.system))), Dict{Any,Any}(pairs(ModelingToolkit.initial_conditions(model.system))))
    known = fixpoint_sub(fixpoint_sub(variable, model.eliminated), given)
    known = value(known)
    return known isa Real ? Float64(known) : nothing
end

function number_or_error(model, variable)
    found = number(model, variable)
    found === nothing && throw(ArgumentError("$(label(variable)) is no single number, or has no value: give it one in the system"))
    return found
end

bounds(entry) = entry isa Pair && entry.second isa Real ? (Float64(entry.second), Float64(entry.second)) : only(bounds_of("start", [entry]))

"The number of the state that `variable` is, or an error."
function state_number(model, variable, what)
    i = model_state(model, unwrap(variable))
    i === nothing && throw(
        ArgumentError("$what: $(label(variable)) is no state of the simplified system, whose states are $(join(label.(model.states), ", "))"),
    )
    return i
end

"Put the states into the order in which the box names them: that of the simplification differs between versions."
function arrange!(model, box)
    bounds_of("box", box)
    order = [state_number(model, variable, "box") for (variable, _) in box]
    left = label.(model.states[setdiff(eachindex(model.states), order)])
    isempty(left) || throw(
        ArgumentError("box: no bounds are given for $(join(left, ", ")); the simplified system's states are $(join(label.(model.states), ", "))"),
    )
    allunique(order) || throw(ArgumentError("box: a state is given twice"))
    for of_states in (model.states, model.rates, model.mass)
        permute!(of_states, order)
    end
end

"Where episodes start: as given, else the system's initial values; an algebraic variable follows, and any number is a first guess."
function start_box(model, start)
    given = Dict(state_number(model, first(entry), "start") => bounds(entry) for entry in start)
    all_of_them = map(eachindex(model.states)) do i
        haskey(given, i) && return given[i]
        found = number(model, model.states[i])
        found === nothing && !iszero(model.mass[i]) &&
            throw(ArgumentError("start: the system has no initial value for $(label(model.states[i]))"))
        return (something(found, 0.0), something(found, 0.0))
    end
    return Box(first.(all_of_them), last.(all_of_them))
end

is_expression(e) = e isa Union{Real,SymbolicUtils.BasicSymbolic} && !(SymbolicUtils.symtype(unwrap(e)) <: AbstractArray)

"The parameters of a simulator as a tuple, which is what compiled expressions take."
fields(p::S) where {S<:Simulator} = ntuple(i -> getfield(p, i), Val(fieldcount(S)))

function DiffSimEnvs.simulator(
    system::ModelingToolkit.System;
    inputs,
    cost,
    dt,
    episode_steps,
    box,
    start = [],
    observation = nothing,
    done = nothing,
    parameters = nothing,
    angles = String[],
    cost_of_reached_state = false,
    scheme = nothing,
    name = nameof(system),
)
    actions = bounds_of("inputs", inputs)
    isempty(actions) && throw(ArgumentError("a simulator has at least one input: inputs = [variable => (low, high)]"))
    is_expression(cost) || throw(ArgumentError("cost: an expression or a number is needed, got $(repr(cost))"))
    observation === nothing || observation isa AbstractVector && all(q -> q isa Pair && is_expression(last(q)), observation) ||
        throw(ArgumentError("observation: [\"name\" => expression, …] is needed, got $(repr(observation))"))
    done === nothing || SymbolicUtils.symtype(unwrap(done)) <: Bool ||
        throw(ArgumentError("done: an expression that is true or false is needed, got $(repr(done))"))
    isempty(discrete_events(system)) ||
        throw(ArgumentError("$name has events at given times, or after a condition: only those at a root are simulated (continuous_events)"))
    roots = continuous_events(system)
    any(c -> c.initialize !== nothing || c.finalize !== nothing, roots) &&
        throw(ArgumentError("$name has events with `initialize` or `finalize`, which are not simulated"))
    model = Model(system, first.(collect(inputs)), modes_of(roots))
    arrange!(model, box)

    # Everything as expressions of states, actions, parameters and time ...
    slopes = [fixpoint_sub(unwrap(rate), model.eliminated) for rate in model.rates]
    costs = model(cost, "cost")
    seen = observation === nothing ? Any[] : Any[model(e, "observation $n") for (n, e) in observation]
    ended = done === nothing ? Any[] : Any[model(done, "done")]
    for (what, list) in (("observation", seen), ("done", ended)), e in list, v in terms(e)
        any(isequal(v), model.inputs) &&
            throw(ArgumentError("$what: it depends on the input $(label(v)); what a policy sees is known before its action"))
    end
    happenings = happenings_of(model, roots)
    everything() = Any[slopes; costs; seen; ended; reduce(vcat, expressions.(happenings); init = Any[])]
    # ... with numbers for the parameters that do not stay free.
    used = parameters_in(model, everything())
    wanted = parameters === nothing ? filter(v -> number(model, v) !== nothing, used) :
        [found_as(label(v), model.variables, model.prefix, "parameters") for v in parameters]
    for v in wanted
        any(isequal(v), used) || throw(ArgumentError("parameters: nothing depends on $(label(v))"))
    end
    constants = Dict{Any,Any}(v => number_or_error(model, v) for v in used if !any(isequal(v), wanted))
    fill_in(e) = Num(fixpoint_sub(e, constants))
    slopes, costs, seen, ended = fill_in.(slopes), fill_in(costs), fill_in.(seen), fill_in.(ended)
    happenings = map.(fill_in, happenings)

    states, mass = model.states, model.mass
    labels = label.(states)
    limits = bounds_of("box", box)
    boxes, starts = Box(first.(limits), last.(limits)), start_box(model, start)
    if any(e -> any(isequal(model.time), terms(e)), everything())
        states, slopes, mass, labels = [states; model.time], [slopes; Num(1)], [mass; 1.0], [labels; "time"]
        boxes, starts = with_time(boxes, 0.0, dt * episode_steps), with_time(starts, 0.0, 0.0)
    end

    compiled(e) = build_function(e, states, model.inputs, wanted; expression = Val(false), cse = true)
    several(list) = compiled(list)[1]
    rates! = compiled(slopes)[2]
    price = compiled(costs)
    slopes_by_states = jacobian_of(slopes, states)
    jacobian! = slopes_by_states === nothing ? nothing : compiled(slopes_by_states)[2]
    unknown = fill(NaN, length(actions))
    still(f) = (x, p) -> f(x, unknown, fields(p))
    M = all(isone, mass) ? nothing : Diagonal(mass)
    description = Description(;
        state = labels, angles, start_box = starts, state_box = boxes, action_box = Box(first.(actions), last.(actions)),
        parameters = [Parameter(label(v), number_or_error(model, v)) for v in wanted], dt, episode_steps, cost_of_reached_state,
        observation = observation === nothing ? labels : first.(observation),
    )
    return define(
        Symbol(name), description, (dx, x, u, p, t) -> (rates!(dx, x, u, fields(p)); nothing), (x, u, p) -> price(x, u, fields(p)),
        isempty(seen) ? nothing : still(several(seen));
        done = isempty(ended) ? nothing : still(compiled(only(ended))), events = Tuple(e for h in happenings for e in events_of(h, compiled, several)),
        scheme = something(scheme, usual_scheme(M, length(states))), mass = M,
        jacobian = jacobian! === nothing ? nothing : (J, x, u, p) -> (jacobian!(J, x, u, fields(p)); nothing),
    )
end

"The Jacobian; nothing where a function has no symbolic derivative."
function jacobian_of(slopes, states)
    found = jacobian(slopes, Num.(states))
    return any(e -> any(v -> is_operator(v, Differential), terms(e)), found) ? nothing : found
end

"The events at one root: one for both directions if the same happens."
function events_of(h::Happening, compiled, several)
    condition = compiled(h.condition)
    at(x, u, p) = condition(x, u, fields(p))
    isequal(h.rising, h.falling) && return h.rising === nothing ? () : (event(at, jump(h.rising, several)),)
    rising = h.rising === nothing ? () : (event(at, jump(h.rising, several); direction = :rising),)
    falling = h.falling === nothing ? () : (event(at, jump(h.falling, several); direction = :falling),)
    return (rising..., falling...)
end

function jump(changes, several)
    isempty(changes) && return (x, u, p) -> nothing
    where_, new_values = first.(changes), several(last.(changes))
    return function (x, u, p)
        for (i, v) in zip(where_, new_values(x, u, fields(p)))
            x[i] = v
        end
    end
end

end
