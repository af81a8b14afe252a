# A simulator of one's own in Julia: diffsim train julia:examples/van_der_pol.jl:VanDerPol
import DiffSimEnvs: Simulator, Description, Parameter, Box, Adaptive, Tsit5
import DiffSimEnvs: describe, dynamics!, cost, scheme

"Van der Pol's oscillator has to be brought to rest against its limit cycle (Khalil, Nonlinear Systems, example 2.6)."
struct VanDerPol{T} <: Simulator
    mu::T
    strength::T
end

describe(::Type{<:VanDerPol}) = Description(
    state = ["position", "velocity"],
    parameters = [
        Parameter(:mu, 1.0, "1"; low = 0.0),
        Parameter(:strength, 2.0, "force at full action"; low = 0.0),
    ],
    action_box = Box([1.0]),
    start_box = Box([2.0, 2.0]),
    state_box = Box([2.5, 3.5]),
    dt = 0.1,
    episode_steps = 100,
)

function dynamics!(dx, x, u, p::VanDerPol, t)
    dx[1] = x[2]
    dx[2] = p.mu * (1 - x[1]^2) * x[2] - x[1] + p.strength * u[1]
end

cost(x, u, p::VanDerPol) = x[1]^2 + 0.1 * x[2]^2 + 0.01 * u[1]^2

scheme(::VanDerPol) = Adaptive(Tsit5(); reltol = 1e-8, abstol = 1e-8)
