"""
    Scheme

How a control interval is simulated.
"""
abstract type Scheme end

"""
    Discrete()

The simulator's own [`step!`](@ref): a map, not a differential equation.
"""
struct Discrete <: Scheme end

"""
    Fixed(algorithm; steps = 1)

Equal steps of any method of OrdinaryDiffEq.
"""
struct Fixed{A} <: Scheme
    algorithm::A
    steps::Int

    function Fixed(algorithm; steps = 1)
        steps > 0 || throw(DomainError(steps, "a control interval has at least one step"))
        return new{typeof(algorithm)}(algorithm, steps)
    end
end

"""
    Adaptive(algorithm; reltol = 1e-6, abstol = 1e-8, maxiters = 100_000)

Any method of OrdinaryDiffEq at its own choice of steps.  With dual numbers their partials count in the error too
(OrdinaryDiffEq's default norm), so that gradients are as accurate as values; values with and without a gradient
agree to the tolerance and not to the last bit.
"""
struct Adaptive{A} <: Scheme
    algorithm::A
    reltol::Float64
    abstol::Float64
    maxiters::Int

    function Adaptive(algorithm; reltol = 1e-6, abstol = 1e-8, maxiters = 100_000)
        reltol > 0 && abstol > 0 || throw(DomainError((reltol, abstol), "tolerances are positive"))
        return new{typeof(algorithm)}(algorithm, reltol, abstol, maxiters)
    end
end

"Action and simulator during an interval: what an integrator knows as its `p`."
mutable struct Held{U<:AbstractVector,P}
    u::U
    p::P
end

held!(dx, x, held::Held, t) = dynamics!(dx, x, held.u, held.p, t)

options(s::Fixed, dt) = (; adaptive = false, dt = dt / s.steps)
options(s::Adaptive, dt) = (; s.reltol, s.abstol, s.maxiters)

"""
    make_integrator(scheme, p, x, u, dt)

What simulates intervals of states, actions and parameters of these types, again and again; `nothing` for a map.
"""
make_integrator(::Discrete, p, x, u, dt) = nothing

function make_integrator(s::Scheme, p, x, u, dt)
    M = mass_matrix(typeof(p))
    known = M === nothing ? (;) : (; mass_matrix = M)
    if hasmethod(jacobian!, (Matrix{eltype(x)}, typeof(x), typeof(u), typeof(p)))
        known = (; known..., jac = (J, x, held, t) -> jacobian!(J, x, held.u, held.p), tgrad = (rate, x, held, t) -> fill!(rate, 0))
    end
    rates = ODEFunction{true,SciMLBase.FullSpecialize}(held!; known...)
    problem = ODEProblem{true,SciMLBase.FullSpecialize}(rates, copy(x), (0.0, dt), Held(copy(u), p))
    happenings = events(p)
    # `init` would give the time of a problem with events partials too, and with them the choice of steps.
    return SciMLBase.__init(
        problem,
        s.algorithm;
        options(s, dt)...,
        # Algebraic variables are settled before.
        initializealg = SciMLBase.NoInit(),
        callback = isempty(happenings) ? nothing : CallbackSet(happenings...),
        save_on = false,
        save_start = false,
        save_end = false,
        verbose = None(),
    )
end

"""
    advance!(next, integrator, x, u, p, dt) -> Bool

One control interval from `x` under `u`, which is within the action box; whether it succeeded.  `x` may be
overwritten.
"""
function advance!(next, ::Nothing, x, u, p, dt)
    step!(next, x, u, p)
    return true
end

function advance!(next, integrator, x, u, p, dt)
    jump!(x, u, p)
    settle!(x, u, p) || return false
    integrator.p.u .= u
    integrator.p.p = p
    forget!(integrator)
    reinit!(integrator, x; t0 = zero(dt), tf = dt, reset_dt = integrator.opts.adaptive)
    # Which event was the last one is kept by `reinit!`, and would be taken for one at the start of this interval.
    integrator.event_last_time, integrator.vector_event_last_time = 0, 1
    solve!(integrator)
    next .= integrator.u
    return SciMLBase.successful_retcode(integrator.sol.retcode)
end

"""
    forget!(integrator)

Set back what `reinit!` keeps of the interval before: the step before an event, which would be taken for a given first step
and spare the choice of one; the distance of the last event; and what the controller remembers.
"""
function forget!(integrator)
    integrator.opts.adaptive && (integrator.dtcache = zero(integrator.dtcache))
    integrator.last_event_error = zero(integrator.last_event_error)
    foreach(k -> fill!(k, zero(eltype(k))), integrator.k)
    return nothing
end

"""
    event(condition, affect!; direction = :any) -> ContinuousCallback

When `condition(x, u, p)` passes through zero inside a control interval, `affect!(x, u, p)` changes the state; and the
gradient knows how the time of the event follows state, action and parameters.  `direction` is `:falling`,
`:rising` or `:any`.

At the root, the partials of the condition say by how much it is off for a perturbed rollout, and its rate says for
how long: `later = -g / (dg/dt)`.  The perturbed state moves on by `later` before the jump and back by it after the
jump (the saltation matrix: Leine and Nijmeijer, Dynamics and Bifurcations of Non-Smooth Mechanical Systems, ch. 8).

A condition that compares numbers does so by their [`primal`](@ref) values.
"""
function event(condition, affect!; direction = :any)
    direction in (:any, :falling, :rising) ||
        throw(ArgumentError("direction = $(repr(direction)): known are :any, :falling and :rising"))
    # Located in values; its derivative is the business of `happen!`.
    crossing = (x, t, integrator) -> ForwardDiff.value(condition(x, integrator.p.u, integrator.p.p))
    act! = integrator -> happen!(affect!, condition, integrator.u, integrator.p, integrator.t)
    return ContinuousCallback(
        crossing,
        direction === :falling ? nothing : act!,
        direction === :rising ? nothing : act!;
        save_positions = (false, false),
    )
end

function happen!(affect!, condition, x, held, t)
    affect!(x, held.u, held.p)
    settle!(x, held.u, held.p) || fill!(x, NaN)
    return nothing
end

function happen!(affect!, condition, x::AbstractVector{D}, held, t) where {D<:Dual}
    u, p = held.u, held.p
    settled = settle!(x, u, p)
    off = condition(x, u, p)
    slope = similar(x)
    rates!(slope, x, u, p, t)
    # dg/dt: the first partial, moved along the slope, all else held.
    along = map((a, f) -> only_first(D, ForwardDiff.value(a), ForwardDiff.value(f)), x, slope)
    now = ForwardDiff.value.(u)
    settled &= settle!(along, now, constant(p))
    rate = ForwardDiff.partials(condition(along, now, constant(p)), 1)
    later = (ForwardDiff.value(off) - off) / rate
    x .+= slope .* later
    settled &= settle!(x, u, p)
    affect!(x, u, p)
    settled &= settle!(x, u, p)
    rates!(slope, x, u, p, t)
    x .-= slope .* later
    settled && settle!(x, u, p) || fill!(x, NaN)
    return nothing
end

only_first(::Type{Dual{T,V,N}}, value, partial) where {T,V,N} =
    Dual{T,V,N}(value, Partials{N,V}(ntuple(i -> i == 1 ? V(partial) : zero(V), Val(N))))

"The simulator without the partials of its parameters."
constant(p::S) where {S<:Simulator} =
    rebuild(S, ntuple(i -> ForwardDiff.value(getfield(p, i)), Val(fieldcount(S))))
