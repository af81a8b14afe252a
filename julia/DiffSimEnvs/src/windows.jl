"""
    window!(batch, u, p, states, costs, jacobian, with_parameters) -> failures

Control intervals one after the other under given actions, for all rollouts, as [`evaluate!`](@ref) does one of them.

`u [m, B, T]`, `p [k]` or `[k, B]`; `states [n, B, T + 1]` holds the initial states and receives the others, `costs [1, B, T]`
and `jacobian [n + 1, columns, B, T]` (or `[0, 0, 0, T]` for none) the rest.  How many rollouts are NaN at the end is returned.
"""
function window!(batch::Batch{S}, u, p, states, costs, jacobian, with_parameters) where {S}
    size(states, 1) == batch.sizes[1] ||
        throw(DimensionMismatch("states have $(size(states, 1)) rows, the state has $(batch.sizes[1])"))
    T = size(u, 3)
    wanted = isempty(jacobian) ? 0 : columns(batch, with_parameters)
    D, P = number_types(S, wanted, with_parameters)
    return spread(batch, INTERVAL, D, P, size(states, 2), T) do part
        failures = 0
        for t in 1:T
            arrays = (
                view(states, :, :, t), view(u, :, :, t), p, view(states, :, :, t + 1), view(costs, :, :, t),
                view(jacobian, :, :, :, t),
            )
            failures = stretch!(batch, INTERVAL, D, P, arrays, part)::Int
        end
        failures
    end
end

"""
    pull_window!(jacobian, by_states, by_costs, by_x, by_u, by_p)

The vector-Jacobian product of every rollout of [`window!`](@ref), interval by interval from the last one.

`by_states [n, B, T + 1]` and `by_costs [1, B, T]` are cotangents; the gradients are `by_x [n, B]` by the initial states,
`by_u [m, B, T]`, and `by_p [k, B]` (or `[0, B]`).  Sums are Float64.
"""
function pull_window!(jacobian, by_states, by_costs, by_x, by_u, by_p)
    n, B, steps = size(by_states)
    m, k = size(by_u, 1), size(by_p, 1)
    costate, earlier, total = zeros(n), zeros(n), zeros(k)
    for b in 1:B
        fill!(total, 0.0)
        for i in 1:n
            costate[i] = by_states[i, b, steps]
        end
        for t in steps-1:-1:1
            cost = Float64(by_costs[1, b, t])
            for j in 1:m
                by_u[j, b, t] = column_times(jacobian, n + j, b, t, costate, cost)
            end
            for j in 1:k
                total[j] += column_times(jacobian, n + m + j, b, t, costate, cost)
            end
            for j in 1:n
                earlier[j] = column_times(jacobian, j, b, t, costate, cost) + by_states[j, b, t]
            end
            copyto!(costate, earlier)
        end
        for i in 1:n
            by_x[i, b] = costate[i]
        end
        for j in 1:k
            by_p[j, b] = total[j]
        end
    end
end

"A column of an interval's Jacobian times the cotangents of the state after it and of its cost."
@inline function column_times(jacobian, column, b, t, costate, cost)
    n = length(costate)
    sum = jacobian[n+1, column, b, t] * cost
    for i in 1:n
        sum += jacobian[i, column, b, t] * costate[i]
    end
    return sum
end
