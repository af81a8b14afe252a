# Train, measure and use a policy from Julia: `julia --project examples/train_from_julia.jl`.
#
# Needs DiffSimEnvs and PythonCall in the project, and diffsim in the Python that PythonCall uses; docs/julia.md says how.
using DiffSimEnvs, PythonCall

include("van_der_pol.jl")  # defines VanDerPol

out = get(ARGS, 1, "runs/van_der_pol")
trained = train(VanDerPol; out, optimizer = :lbfgs, algorithm = (name = :full_horizon, horizon = 50, batch = 16), updates = 15)
println(history(trained)["loss"][end])

measured = evaluate(trained; episodes = 20, seed = 7)
println(measured)

policy = load_policy(trained)
println(policy([2.0, 0.0]))  # an action; with `[o, B]` observations `[m, B]` actions
