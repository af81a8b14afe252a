"Adjoints of control intervals, where SciMLSensitivity is loaded."
module DiffSimEnvsSciMLSensitivityExt

using DiffSimEnvs
using DiffSimEnvs: None, rebuild, options
using SciMLSensitivity: InterpolatingAdjoint, ReverseDiffVJP, adjoint_sensitivities
using SciMLSensitivity.SciMLBase: SciMLBase, ODEProblem, solve

# A continuous adjoint is as accurate as both of its solves and the interpolation between the steps of the first: all
# are made tighter than the simulation.  Of a fixed step it is not the exact derivative, but one to the step's accuracy.
tighter(scheme::Adaptive, dt) = (; reltol = scheme.reltol / 100, abstol = scheme.abstol / 100, scheme.maxiters)
tighter(scheme, dt) = options(scheme, dt)

function DiffSimEnvs.adjoint_of_interval(::Type{S}, scheme, dt, x, u, p) where {S}
    n, m = length(x), length(u)
    rates!(dx, x, θ, t) = (dynamics!(dx, x, view(θ, 1:m), rebuild(S, view(θ, m+1:length(θ))), t); nothing)
    problem = ODEProblem{true,SciMLBase.FullSpecialize}(rates!, x, (0.0, dt), [u; p])
    solution = solve(problem, scheme.algorithm; tighter(scheme, dt)..., verbose = None())
    SciMLBase.successful_retcode(solution) || error("the solver stopped with $(solution.retcode)")
    function pullback(by_next)
        by_x, by_θ = adjoint_sensitivities(
            solution,
            scheme.algorithm;
            t = [dt],
            dgdu_discrete = (out, state, θ, t, i) -> (out .= by_next),
            # Gauss's and the quadrature's adjoint replay a tape of the first branch that was taken: parameters behind a
            # clamp lose their gradient without a word.  This one records anew.
            sensealg = InterpolatingAdjoint(autojacvec = ReverseDiffVJP()),
            tighter(scheme, dt)...,
        )
        by_θ = vec(by_θ)
        return vec(by_x), by_θ[1:m], by_θ[m+1:end]
    end
    return solution.u[end], pullback
end

end
