# Differential equations with algebraic ones beside them, of index 1: M dx/dt = f(x, u, p), M diagonal.

"""
    mass_matrix(::Type{<:S})

The matrix M of a simulator `M dx/dt = dynamics!`, a `Diagonal` of numbers; `nothing`, the default, for the identity.

Where its diagonal is zero, the equation is algebraic (`0 = dynamics!`) and the component of the state an algebraic
variable: it follows from the others and the action.  At the start of every interval it is found by Newton's method
([`settle!`](@ref)); the state's own value is the first guess.  The index must be 1: the derivative of the algebraic
equations by the algebraic variables has an inverse.  The [`scheme`](@ref) has to be implicit: [`Rosenbrock`](@ref), or
[`Adaptive`](@ref) with a method for mass matrices such as Rodas5P.
"""
mass_matrix(::Type{<:Simulator}) = nothing

"Whether there are algebraic variables in the state."
has_algebraic(::Type{S}) where {S<:Simulator} = (M = mass_matrix(S); M !== nothing && any(iszero, M.diag))

"Most steps of Newton's method, and the length of a step, relative to the variables, that ends it."
const MOST_NEWTON_STEPS = 50
const NEWTON_TOLERANCE = 1e-10

"""
    settle!(x, u, p) -> Bool

Set the algebraic variables of the state to the solution of the algebraic equations, with derivatives by the implicit
function theorem; whether there is one near.  Newton's method, with steps halved while the residual does not fall.
"""
function settle!(x::AbstractVector{D}, u, p::S) where {D,S<:Simulator}
    has_algebraic(S) || return true
    free = findall(iszero, mass_matrix(S).diag)
    values, action, constants = map(primal, x), map(primal, u), constant(p)
    residual(z) = algebraic_residual(values, free, z, action, constants)
    z = values[free]
    off = residual(z)
    solved, factors = false, nothing
    for _ in 1:MOST_NEWTON_STEPS
        all(isfinite, off) || return false
        factors = lu(ForwardDiff.jacobian(residual, z); check = false)
        issuccess(factors) || return false
        step = factors \ off
        tried, share = z - step, 1.0
        found = residual(tried)
        while !(norm(found) <= norm(off)) && share > 1e-6
            share /= 2
            tried = z - share * step
            found = residual(tried)
        end
        z, off = tried, found
        solved = all(abs(d) <= NEWTON_TOLERANCE * (1 + abs(v)) for (d, v) in zip(step, z))
        solved && break
    end
    solved || return false
    for (i, v) in zip(free, z)
        x[i] = v
    end
    D <: Dual && differentiate!(x, free, u, p, factors)
    return true
end

function algebraic_residual(values, free, z, u, p)
    T = promote_type(eltype(values), eltype(z))
    x = Vector{T}(values)
    x[free] = z
    out = similar(x)
    dynamics!(out, x, u, p, zero(T))
    return out[free]
end

"The implicit function theorem: one more step of Newton's method, with derivatives."
function differentiate!(x, free, u, p, factors)
    out = similar(x)
    dynamics!(out, x, u, p, zero(eltype(x)))
    correction = factors \ out[free]
    for (i, c) in zip(free, correction)
        x[i] -= c - primal(c)
    end
    return x
end

"""
    rates!(slope, x, u, p, t)

dx/dt of the differential variables; zero for algebraic ones, which [`settle!`](@ref) makes follow.
"""
function rates!(slope, x, u, p::S, t) where {S<:Simulator}
    dynamics!(slope, x, u, p, t)
    M = mass_matrix(S)
    M === nothing && return slope
    for i in eachindex(slope)
        slope[i] = iszero(M.diag[i]) ? zero(slope[i]) : slope[i] / M.diag[i]
    end
    return slope
end
