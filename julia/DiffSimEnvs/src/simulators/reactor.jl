"""
    Reactor(q, V, rho, cp, heat, activation, k0, UA, feed_concentration, feed_temperature,
            jacket_flow, jacket_volume, jacket_capacity, set_point)

A continuous stirred tank with an exothermic reaction A → B has to be held at its unstable middle steady state.

State `[concentration of A mol/L, reactor temperature K, jacket temperature K]`, action `[temperature of the coolant at
the jacket's inlet K]` in 270 to 320; time in minutes, `dt` too.  Equations and constants: Seborg, Edgar,
Mellichamp, Doyle, Process Dynamics and Control, 3rd ed., example 2.5, with the jacket as a small vessel.

From the ignition on, the fastest eigenvalue is beyond -1e3 1/min where the slowest stays near -1: an L-stable
method (Rodas5P) that chooses its own steps.  Arrhenius's law is followed from 200 to 700 K and constant beyond,
which cuts the gradient there.
"""
struct Reactor{T} <: Simulator
    q::T
    V::T
    rho::T
    cp::T
    heat::T
    activation::T
    k0::T
    UA::T
    feed_concentration::T
    feed_temperature::T
    jacket_flow::T
    jacket_volume::T
    jacket_capacity::T
    set_point::T
end

function describe(::Type{<:Reactor})
    source = "Seborg, Edgar, Mellichamp, Doyle, Process Dynamics and Control, 3rd ed., example 2.5"
    design = "this task's choice"
    return Description(
        state = ["concentration", "temperature", "jacket_temperature"],
        parameters = [
            Parameter(:q, 100.0, "L/min"; low = 0.0, source),
            Parameter(:V, 100.0, "L"; low = 0.0, source),
            Parameter(:rho, 1000.0, "g/L"; low = 0.0, source),
            Parameter(:cp, 0.239, "J/(g K)"; low = 0.0, source),
            Parameter(:heat, 5e4, "J/mol, released"; low = 0.0, source),
            Parameter(:activation, 8750.0, "K, E/R"; low = 0.0, source),
            Parameter(:k0, 7.2e10, "1/min"; low = 0.0, source),
            Parameter(:UA, 5e4, "J/(min K)"; low = 0.0, source),
            Parameter(:feed_concentration, 1.0, "mol/L"; low = 0.0, source),
            Parameter(:feed_temperature, 350.0, "K"; low = 0.0, source),
            Parameter(:jacket_flow, 100.0, "L/min"; low = 0.0, source = design),
            Parameter(:jacket_volume, 5.0, "L"; low = 0.0, source = design),
            Parameter(:jacket_capacity, 4184.0, "J/(L K)"; low = 0.0, source = "water"),
            Parameter(:set_point, 350.0, "K"; low = 0.0, source),
        ],
        action_box = Box([270.0], [320.0]),
        start_box = Box([0.3, 330.0, 285.0], [0.65, 352.0, 305.0]),
        state_box = Box([0.05, 315.0, 270.0], [0.95, 385.0, 320.0]),
        dt = 0.1,
        episode_steps = 60,
    )
end

# Tighter than the values need: in ignition the derivatives are a thousand times as sensitive (benchmarks/julia_reactor.py).
scheme(::Reactor) = Rosenbrock(reltol = 3e-10, abstol = 3e-11)

"Arrhenius's law: the speed of the reaction in 1/min."
arrhenius(temperature, p::Reactor) = p.k0 * exp(-p.activation / clamp(temperature, 200.0, 700.0))

"""
    dynamics!(dx, x, u, p::Reactor, t)

Balances of A and of energy, per minute (Seborg et al., eqs. 2-66 and 2-68, and the jacket's energy balance).
"""
function dynamics!(dx, x, u, p::Reactor, t)
    c, temperature, jacket = x[1], x[2], x[3]
    reacting = arrhenius(temperature, p) * c
    renewal, exchange = p.q / p.V, p.UA * (temperature - jacket)
    dx[1] = renewal * (p.feed_concentration - c) - reacting
    dx[2] = renewal * (p.feed_temperature - temperature) + (p.heat * reacting - exchange / p.V) / (p.rho * p.cp)
    dx[3] = (p.jacket_flow * (u[1] - jacket) + exchange / p.jacket_capacity) / p.jacket_volume
    return dx
end

"The steady state at the set point: its concentration, and the coolant's temperature that holds it."
function steady(p::Reactor)
    goal = p.set_point
    k = arrhenius(goal, p)
    c = p.q * p.feed_concentration / (p.q + p.V * k)
    taken = p.q * p.rho * p.cp * (p.feed_temperature - goal) + p.heat * p.V * k * c
    return c, goal - taken / p.UA - taken / (p.jacket_flow * p.jacket_capacity)
end

"""
    cost(x, u, p::Reactor)

`2 (sqrt(1 + e) - 1) + 0.1 ((u - held) / 25 K)²`, with e = `((T - 350) / 10 K)² + ((c - c*) / 0.1)²`; c* and `held`
belong to the steady state at the set point.
"""
function cost(x, u, p::Reactor)
    goal, held = steady(p)
    off = ((x[2] - p.set_point) / 10)^2 + ((x[1] - goal) / 0.1)^2
    return 2 * (sqrt(1 + off) - 1) + 0.1 * ((u[1] - held) / 25)^2
end
