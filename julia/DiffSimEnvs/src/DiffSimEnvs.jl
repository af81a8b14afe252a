"""
Simulators as differentiable white boxes, in Julia.

A simulator is a small struct of its physical parameters, one number type for all of them, and the methods
of [`describe`](@ref), [`dynamics!`](@ref) and [`cost`](@ref) (and of [`observe`](@ref), [`done`](@ref),
[`reset`](@ref), [`scheme`](@ref) and [`events`](@ref) where the defaults do not serve).  All of them are generic in
their number types, so dual numbers pass through states, actions and parameters alike.

[`open_simulator`](@ref) makes a batch of it, and [`evaluate!`](@ref) and [`pull!`](@ref) are what a trainer calls:
values and Jacobians of all rollouts of a control interval, and vector-Jacobian products.
"""
module DiffSimEnvs

using ForwardDiff: ForwardDiff, Dual, Partials
using LinearAlgebra: Diagonal, UniformScaling, isdiag, issuccess, lu, norm
using OrdinaryDiffEqRosenbrock: OrdinaryDiffEqRosenbrock, Rodas5P
using OrdinaryDiffEqTsit5: OrdinaryDiffEqTsit5, Tsit5
using OrdinaryDiffEqVerner: OrdinaryDiffEqVerner, Vern9
using PrecompileTools: @compile_workload
using Random: AbstractRNG, Xoshiro
using SciMLBase: SciMLBase, CallbackSet, ContinuousCallback, ODEFunction, ODEProblem, reinit!, solve!
using SciMLLogging: None
using TOML: TOML

export Simulator, Parameter, Box, Description
export Discrete, Fixed, Adaptive, Rosenbrock, ForwardMode, AdjointMode
export describe, dynamics!, cost, observe, done, reset, scheme, event, events, jump!, step!, sensitivity, primal
export jacobian!, mass_matrix, simulator
export open_simulator, evaluate!, pull!
export train, evaluate, load_policy, history
export CartpoleSwingup, Pendulum, Reactor, ThreeBody, Trebuchet

include("simulator.jl")
include("algebraic.jl")
include("integration.jl")
include("sensitivity.jl")
include("rosenbrock.jl")
include("batch.jl")
include("windows.jl")
include("models.jl")
include("loading.jl")
include("training.jl")
include("foreign.jl")
include("simulators/pendulum.jl")
include("simulators/cartpole_swingup.jl")
include("simulators/reactor.jl")
include("simulators/trebuchet.jl")
include("simulators/three_body.jl")
include("precompile.jl")

end
