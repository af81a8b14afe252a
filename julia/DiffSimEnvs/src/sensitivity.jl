"""
    ForwardMode()

Jacobians by ForwardDiff's dual numbers through the whole control interval: the cheapest way as long as states,
actions and parameters are some dozens.
"""
struct ForwardMode end

"""
    AdjointMode()

Vector-Jacobian products by SciMLSensitivity's adjoint of the interval's differential equation, which is solved
again, backwards: for hundreds of parameters.  Needs `using SciMLSensitivity`, no [`events`](@ref), no
[`jump!`](@ref), and a scheme that is a method of OrdinaryDiffEq.
"""
struct AdjointMode end

"""
    sensitivity(::Type{<:S})

How the control intervals of the simulator `S` are differentiated: [`ForwardMode`](@ref) unless there is a method.
"""
sensitivity(::Type{<:Simulator}) = ForwardMode()

"""
    adjoint_of_interval(x, u, p, scheme, dt, by_next) -> by_x, by_u, by_p

The pullback of a control interval; a method of the extension that comes with SciMLSensitivity.
"""
function adjoint_of_interval end

has_adjoints() = !isempty(methods(adjoint_of_interval))

"""
    primal(x)

The number without its derivatives, to compare by: ForwardDiff's dual numbers of equal value are not equal, nor `<=`, if
their partials differ, and a branch would be taken by the partials.
"""
primal(x::Real) = x
primal(x::Dual) = primal(ForwardDiff.value(x))

"The tag of the perturbations that are carried through an interval."
struct ThroughInterval end

# ForwardDiff orders tags by when they were first used, which precompilation makes accidental.  Whatever else is
# differentiated in an interval (a Jacobian for an implicit method, a gradient in a simulator), it is around ours.
ForwardDiff.:≺(::Type{ThroughInterval}, ::Type) = true
ForwardDiff.:≺(::Type, ::Type{ThroughInterval}) = false
ForwardDiff.:≺(::Type{ThroughInterval}, ::Type{ThroughInterval}) = false

const Perturbed{N} = Dual{ThroughInterval,Float64,N}

"Most partials that are carried at a time; more inputs take several passes."
const MOST_PARTIALS = 24

"`value` with the partial of input number `index`, in a pass that carries inputs `offset + 1` to `offset + N`."
@inline function perturbed(::Type{Float64}, value, index, offset)
    return Float64(value)
end

@inline function perturbed(::Type{Perturbed{N}}, value, index, offset) where {N}
    mine = index - offset
    return Perturbed{N}(Float64(value), Partials{N,Float64}(ntuple(i -> Float64(i == mine), Val(N))))
end
