# Shared by the tests: a batch asked for values and Jacobians, and finite differences to hold them against.
using DiffSimEnvs
using DiffSimEnvs: INTERVAL, SLOPE, COST, OBSERVATION, DONE, columns, output_sizes
using Random: Xoshiro

"Random states in the box, actions in the box, default parameters."
function sample(batch, count; seed = 1, T = Float64)
    d, rng = batch.description, Xoshiro(seed)
    inside(box) = T.(box.low .+ (box.high .- box.low) .* rand(rng, length(box.low), count))
    return inside(d.state_box), inside(d.action_box), T[q.value for q in d.parameters]
end

"Values `[q, B]` of all rollouts, Jacobians `[q, columns, B]`, and the number of failures."
function ask(batch, quantity, x, u, p; parameters = true, jacobian = true)
    q, r = output_sizes(batch, quantity)
    T, B = eltype(x), size(x, 2)
    first, second = fill(T(NaN), q, B), fill(T(NaN), r, B)
    wide = jacobian ? columns(batch, parameters) : 0
    J = fill(NaN, jacobian ? (q + r, wide, B) : (0, 0, 0))
    failures = evaluate!(batch, quantity, x, u, p, first, second, J, parameters && jacobian)
    return [first; second], J, failures
end

"Central differences of `f` (vector to vector) along each component of `z`, with steps of its size."
function differences(f, z; h = 1e-6)
    columns = map(eachindex(z)) do i
        step = zeros(length(z))
        step[i] = h * max(1, abs(z[i]))
        (f(z + step) - f(z - step)) / 2step[i]
    end
    return reduce(hcat, columns)
end

"The Jacobian of one rollout's quantity by central differences."
function jacobian_by_differences(batch, quantity, x, u, p; h = 1e-6)
    n, m = length(x), length(u)
    value(z) = ask(batch, quantity, reshape(z[1:n], n, 1), reshape(z[n+1:n+m], m, 1), z[n+m+1:end]; jacobian = false)[1][:, 1]
    return differences(value, [x; u; p]; h)
end
