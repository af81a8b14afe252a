"""
    Rosenbrock(; reltol = 1e-6, abstol = 1e-8, maxiters = 100_000)

Rodas5P at its own choice of steps, for stiff simulators without events, of up to 16 states or with a [`jacobian!`](@ref): the same
method as `Adaptive(Rodas5P())`, made for a few states with many derivatives.

One Jacobian (and its derivative), by dual numbers or by `jacobian!`, and one factorization of Float64 numbers a step serve the eight
stages of the values and those of all sensitivities, which are the exact derivatives of the computed steps.  Nothing is
allocated in the loop.  The steps are chosen by the values alone, so that values are the same numbers with and without
a gradient.  A [`mass_matrix`](@ref) is taken.
"""
struct Rosenbrock <: Scheme
    reltol::Float64
    abstol::Float64
    maxiters::Int

    function Rosenbrock(; reltol = 1e-6, abstol = 1e-8, maxiters = 100_000)
        reltol > 0 && abstol > 0 || throw(DomainError((reltol, abstol), "tolerances are positive"))
        return new(reltol, abstol, maxiters)
    end
end

"The scheme by which OrdinaryDiffEq simulates the same."
of_ordinary_diffeq(s::Scheme) = s
of_ordinary_diffeq(s::Rosenbrock) = Adaptive(Rodas5P(); s.reltol, s.abstol, s.maxiters)

"Most states of a simulator with [`Rosenbrock`](@ref)'s scheme whose Jacobian is taken by dual numbers: in one pass."
const MOST_STATES = 16

"""
Coefficients of Rodas5P: Steinebach, Construction of Rosenbrock-Wanner method Rodas5P and numerical benchmarks within the
Julia Differential Equations package, BIT Numerical Mathematics 63 (2023) 27, in the variables of Hairer and Wanner, Solving
Ordinary Differential Equations II, §IV.7, eq. (7.25).  The stages 7 and 8 start where the stage before has led.
"""
const RODAS5P = (
    gamma = 0.21193756319429014,
    a = (
        (),
        (3.0,),
        (2.849394379747939, 0.45842242204463923),
        (-6.954028509809101, 2.489845061869568, -10.358996098473584),
        (2.8029986275628964, 0.5072464736228206, -0.3988312541770524, -0.04721187230404641),
        (-7.502846399306121, 2.561846144803919, -11.627539656261098, -0.18268767659942256, 0.030198172008377946),
    ),
    c = (
        (),
        (-14.155112264123755,),
        (-17.97296035885952, -2.859693295451294),
        (147.12150275711716, -1.41221402718213, 71.68940251302358),
        (165.43517024871676, -0.4592823456491126, 42.90938336958603, -5.961986721573306),
        (24.854864614690072, -3.0009227002832186, 47.4931110020768, 5.5814197821558125, -0.6610691825249471),
        (30.91273214028599, -3.1208243349937974, 77.79954646070892, 34.28646028294783, -19.097331116725623, -28.087943162872662),
        (37.80277123390563, -3.2571969029072276, 112.26918849496327, 66.9347231244047, -40.06618937091002, -54.66780262877968, -9.48861652309627),
    ),
    nodes = (0.0, 0.6358126895828704, 0.4095798393397535, 0.9769306725060716, 0.4288403609558664, 1.0, 1.0, 1.0),
    time_weights = (
        0.21193756319429014,
        -0.42387512638858027,
        -0.3384627126235924,
        1.8046452872882734,
        2.325825639765069,
        0.0,
        0.0,
        0.0,
    ),
)

"The tag of a step's Jacobian, whose partials are around those that go through the interval."
struct OfStep end

"What steps of Rodas5P are computed in: states and stages of the number type `D`, of the type `E` with the Jacobian's partials."
struct Stepper{D,E,M,own}
    scheme::Rosenbrock
    mass::M  # the diagonal of the mass matrix, or nothing
    state::Vector{D}
    stage::Vector{D}
    slope::Vector{D}
    increments::NTuple{8,Vector{D}}
    around::Vector{E}
    around_slope::Vector{E}
    first_slope::Vector{D}
    rate::Vector{D}
    jacobian::Matrix{D}
    factors::Matrix{Float64}
    pivots::Vector{Int}
    values::Vector{Float64}
end

function make_integrator(s::Rosenbrock, p, x::Vector{D}, u, dt) where {D}
    n = length(x)
    isempty(events(p)) || throw(
        ArgumentError("$(nameof(typeof(p))) has events, which Rosenbrock() does not locate: use Adaptive(Rodas5P())"),
    )
    own = hasmethod(jacobian!, (Matrix{D}, Vector{D}, typeof(u), typeof(p)))
    own || n <= MOST_STATES || throw(
        ArgumentError(
            "$(nameof(typeof(p))) has $n states, Rosenbrock() takes up to $MOST_STATES without a method of jacobian!: use Adaptive(Rodas5P())",
        ),
    )
    E = own ? D : Dual{OfStep,D,n + 1}
    vector(T) = zeros(T, n)
    M = mass_matrix(typeof(p))
    mass = M === nothing ? nothing : collect(Float64, M.diag)
    return Stepper{D,E,typeof(mass),own}(
        s, mass, vector(D), vector(D), vector(D), ntuple(_ -> vector(D), 8), vector(E), vector(E), vector(D), vector(D),
        zeros(D, n, n), zeros(n, n), zeros(Int, n), zeros(n),
    )
end

function advance!(next, w::Stepper, x, u, p, dt)
    jump!(x, u, p)
    settle!(x, u, p) || return false
    copyto!(w.state, x)
    t, h, rejected = 0.0, 0.0, false
    for iteration in 1:w.scheme.maxiters
        if !rejected
            linearize!(w, u, p, t)
            iteration == 1 && (h = first_step(w, dt))
        end
        # A last step that all but reaches the end is stretched to it, for what would remain is rounding.
        last = t + 1.0001h >= dt
        last && (h = dt - t)
        h > 16eps(dt) || break
        off = attempt!(w, u, p, t, h) ? error_norm(w) : NaN
        rejected = !(off <= 1)
        if !rejected
            copyto!(w.state, w.stage)
            last && return (copyto!(next, w.state); true)
            t += h
        end
        # The classical controller of a method whose error estimate is of order 5.
        h *= isfinite(off) ? clamp(0.9 * max(off, 1e-10)^(-1 / 5), 0.2, rejected ? 1.0 : 6.0) : 0.1
    end
    fill!(next, eltype(next)(NaN))
    return false
end

"The slope at the state, and its derivatives by state and time; of values of the type `D` all of them."
function linearize!(w::Stepper{D,E,M,true}, u, p, t) where {D,E,M}
    dynamics!(w.first_slope, w.state, u, p, t)
    jacobian!(w.jacobian, w.state, u, p)  # and `w.rate` stays zero
    return nothing
end

function linearize!(w::Stepper{D,E,M,false}, u, p, t) where {D,E,M}
    n = length(w.state)
    for j in 1:n
        w.around[j] = E(w.state[j], seed(E, j))
    end
    dynamics!(w.around_slope, w.around, u, p, E(D(t), seed(E, n + 1)))
    @inbounds for j in 1:n
        slope = w.around_slope[j]
        w.first_slope[j] = ForwardDiff.value(slope)
        w.rate[j] = ForwardDiff.partials(slope, n + 1)
        for l in 1:n
            w.jacobian[j, l] = ForwardDiff.partials(slope, l)
        end
    end
end

seed(::Type{Dual{T,D,N}}, index) where {T,D,N} = Partials{N,D}(ntuple(i -> i == index ? one(D) : zero(D), Val(N)))

scale(w, a, b) = w.scheme.abstol + w.scheme.reltol * max(abs(a), abs(b))

"""
A first step: Hairer, Nørsett, Wanner, Solving Ordinary Differential Equations I, §II.4, with the second derivative that the
Jacobian gives.
"""
function first_step(w::Stepper, dt)
    n = length(w.state)
    size = speed = bend = 0.0
    @inbounds for j in 1:n
        value = ForwardDiff.value(w.state[j])
        turn = ForwardDiff.value(w.rate[j])
        for l in 1:n
            turn += ForwardDiff.value(w.jacobian[j, l]) * ForwardDiff.value(w.first_slope[l])
        end
        unit = scale(w, value, value)
        size += (value / unit)^2
        speed += (ForwardDiff.value(w.first_slope[j]) / unit)^2
        bend += (turn / unit)^2
    end
    size, speed, bend = sqrt(size / n), sqrt(speed / n), sqrt(bend / n)
    start = min(size, speed) < 1e-5 ? 1e-6 : 0.01 * size / speed
    steepest = max(speed, bend)
    guess = steepest <= 1e-15 ? max(1e-6, 1e-3 * start) : (0.01 / steepest)^(1 / 5)
    found = min(100 * start, guess, dt)
    return isfinite(found) ? found : dt
end

"One step from `w.state` of the length `h`, to `w.stage`; whether its matrix has an inverse."
function attempt!(w::Stepper, u, p, t, h)
    n = length(w.state)
    @inbounds for l in 1:n, j in 1:n
        w.factors[j, l] = (j == l) * mass_of(w.mass, j) - RODAS5P.gamma * h * ForwardDiff.value(w.jacobian[j, l])
    end
    factorize!(w.factors, w.pivots) || return false
    copyto!(w.stage, w.state)
    # Written out: the compiler knows the coefficients of each.
    stage!(w, u, p, t, h, Val(1))
    stage!(w, u, p, t, h, Val(2))
    stage!(w, u, p, t, h, Val(3))
    stage!(w, u, p, t, h, Val(4))
    stage!(w, u, p, t, h, Val(5))
    stage!(w, u, p, t, h, Val(6))
    stage!(w, u, p, t, h, Val(7))
    stage!(w, u, p, t, h, Val(8))
    @inbounds for j in 1:n
        w.stage[j] += w.increments[8][j]
    end
    return true
end

"Stage number `I`: where it is, and its increment."
function stage!(w::Stepper, u, p, t, h, ::Val{I}) where {I}
    n, k = length(w.state), w.increments
    slope = I == 1 ? w.first_slope : w.slope
    if I > 1
        @inbounds for j in 1:n
            w.stage[j] = I <= 6 ? w.state[j] + weighted(RODAS5P.a[I], k, j) : w.stage[j] + k[I-1][j]
        end
        dynamics!(slope, w.stage, u, p, t + RODAS5P.nodes[I] * h)
    end
    @inbounds for j in 1:n
        right = h * slope[j] + (h * h * RODAS5P.time_weights[I]) * w.rate[j]
        I > 1 && (right += mass_of(w.mass, j) * weighted(RODAS5P.c[I], k, j))
        k[I][j] = RODAS5P.gamma * right
    end
    solve_stage!(w, k[I], RODAS5P.gamma * h)
    return nothing
end

mass_of(::Nothing, j) = 1.0
mass_of(mass, j) = mass[j]

@generated weighted(weights::NTuple{M,Float64}, k, j) where {M} =
    foldl((sum, i) -> :($sum + weights[$i] * k[$i][j]), 2:M; init = :(weights[1] * k[1][j]))

"Solve `(M - γh J) k = right`, which `k` holds."
solve_stage!(w::Stepper{Float64}, k, gamma_h) = substitute!(w.factors, w.pivots, k)

# With partials, `(M - γh J) k' = right' + γh J' k`: the same factors.
function solve_stage!(w::Stepper{D}, k, gamma_h) where {D}
    n, values = length(k), w.values
    @inbounds for j in 1:n
        values[j] = ForwardDiff.value(k[j])
    end
    substitute!(w.factors, w.pivots, values)
    @inbounds for j in 1:n
        moved = zero(ForwardDiff.partials(k[j]))
        for l in 1:n
            moved += ForwardDiff.partials(w.jacobian[j, l]) * (gamma_h * values[l])
        end
        k[j] = D(ForwardDiff.value(k[j]), ForwardDiff.partials(k[j]) + moved)
    end
    substitute!(w.factors, w.pivots, k)
end

"The last increment is the difference from the embedded solution: its root mean square, 1 at the tolerance."
function error_norm(w::Stepper)
    n, total = length(w.state), 0.0
    @inbounds for j in 1:n
        unit = scale(w, ForwardDiff.value(w.state[j]), ForwardDiff.value(w.stage[j]))
        total += (ForwardDiff.value(w.increments[8][j]) / unit)^2
    end
    return sqrt(total / n)
end

"LU factors of a small matrix in its place, rows exchanged; whether it has an inverse."
function factorize!(A, pivots)
    n = length(pivots)
    @inbounds for k in 1:n
        best = k
        for i in k+1:n
            abs(A[i, k]) > abs(A[best, k]) && (best = i)
        end
        pivots[k] = best
        pivot = A[best, k]
        isfinite(pivot) && pivot != 0 || return false
        if best != k
            for l in 1:n
                A[k, l], A[best, l] = A[best, l], A[k, l]
            end
        end
        for i in k+1:n
            A[i, k] /= pivot
        end
        for l in k+1:n, i in k+1:n
            A[i, l] -= A[i, k] * A[k, l]
        end
    end
    return true
end

"Solve with the factors, in the place of the right-hand side."
function substitute!(A, pivots, b)
    n = length(pivots)
    @inbounds for k in 1:n
        other = pivots[k]
        other == k || ((b[k], b[other]) = (b[other], b[k]))
    end
    @inbounds for k in 1:n, i in k+1:n
        b[i] -= A[i, k] * b[k]
    end
    @inbounds for k in n:-1:1
        b[k] /= A[k, k]
        for i in 1:k-1
            b[i] -= A[i, k] * b[k]
        end
    end
end
