include("tools.jl")
using LinearAlgebra: Diagonal, I
using ModelingToolkit
using ModelingToolkit: D_nounits as D, Pre, t_nounits as t
using ModelingToolkitStandardLibrary.Blocks: Constant
using ModelingToolkitStandardLibrary.Electrical: Capacitor, Ground, Resistor, Voltage
using ModelingToolkitStandardLibrary.Hydraulic.IsothermalCompressible: FixedPressure, FixedVolume, HydraulicFluid, MassFlow, Valve
using ModelingToolkitStandardLibrary.Mechanical.Translational: Damper, Fixed, Force, Mass, Spring
using OrdinaryDiffEqRosenbrock: Rodas5P
using OrdinaryDiffEqTsit5: Tsit5
using SciMLBase: ODEProblem, remake, solve
using ForwardDiff: ForwardDiff
using Test

const TIGHT = Adaptive(Tsit5(); reltol = 1e-11, abstol = 1e-12)

"Values and Jacobian of one interval of a simulator, from random states in its box."
function intervals(S, count = 5; seed = 1, range = 0.9)
    batch = open_simulator(S)
    x, u, p = sample(batch, count; seed)
    u .*= range
    y, J, failures = ask(batch, INTERVAL, x, u, p)
    @test failures == 0
    return batch, x, u, p, y, J
end

"The indices of a twin's states and parameters, in the order of the simulator's description."
order(labels, own) = [findfirst(==(name), own) for name in labels]

"""
A simulator against a twin that is written by hand, `rates!(dx, x, u, p, t)` and `price(x, u, p)` with states and parameters
in the order of `states` and `parameters`, over an interval: values to 1e-8, and derivatives, through `remake`, to 1e-7.
"""
function agree(S, states, parameters, rates!, price; algorithm = Tsit5(), unit = 1.0)
    batch, x, u, p, y, J = intervals(S)
    d = describe(S)
    i, j = order(states, d.state), order(parameters, [string(q.name) for q in d.parameters])
    @test !any(isnothing, i) && !any(isnothing, j)
    @test length(i) == length(d.state) && length(j) == length(d.parameters)
    n, m = length(i), size(u, 1)
    base = ODEProblem((dx, x, z, t) -> (rates!(dx, x, view(z, 1:m), view(z, m+1:length(z)), t); nothing), zeros(n), (0.0, d.dt), zeros(m + length(j)))
    function advanced(z)
        problem = remake(base; u0 = z[1:n], p = z[n+1:end])
        return [solve(problem, algorithm; reltol = 1e-12, abstol = 1e-12 * unit).u[end]; price(z[1:n], z[n+1:n+m], z[n+m+1:end])]
    end
    for b in axes(x, 2)
        z = [x[i, b]; u[:, b]; p[j]]
        twin, slope = advanced(z), ForwardDiff.jacobian(advanced, z)
        mine, ours = y[[i; n + 1], b], J[[i; n + 1], [i; n .+ (1:m); n + m .+ j], b]
        @test mine ≈ twin rtol = 1e-8
        sizes = max.(abs.(z), 1e-3 * unit)'
        rows = maximum(abs, slope .* sizes; dims = 2)
        @test maximum(abs.(ours .- slope) .* sizes ./ rows) < 1e-7
    end
    return batch
end

function circuit(; name = :rc)
    @named resistor = Resistor(R = 2.0)
    @named capacitor = Capacitor(C = 0.5, v = 0.0)
    @named source = Voltage()
    @named ground = Ground()
    wires = [connect(source.p, resistor.p), connect(resistor.n, capacitor.p), connect(capacitor.n, source.n, ground.g)]
    return System(wires, t; systems = [resistor, capacitor, source, ground], name)
end

rc = circuit()
rc_settings = (
    inputs = [rc.source.V.u => (-2.0, 2.0)], cost = (rc.capacitor.v - 1)^2 + 0.1 * rc.resistor.i^2, dt = 0.2, episode_steps = 20,
    box = [rc.capacitor.v => (-2.0, 2.0)],
)

@testset "a circuit of the standard library" begin
    S = simulator(rc; rc_settings..., start = [rc.capacitor.v => (-1.0, 1.0)], scheme = TIGHT)
    batch = agree(
        S, ["capacitor.v"], ["capacitor.C", "resistor.R"], (dx, x, u, p, t) -> (dx[1] = (u[1] - x[1]) / (p[1] * p[2])),
        (x, u, p) -> (x[1] - 1)^2 + 0.1 * ((u[1] - x[1]) / p[2])^2,
    )
    # The same by an implicit method with the symbolic Jacobian.
    stiff = simulator(rc; rc_settings..., scheme = Rosenbrock(reltol = 1e-11, abstol = 1e-12))
    x, u, p = sample(batch, 5)
    J = ask(open_simulator(stiff), INTERVAL, x, u, p)[2]
    @test J ≈ ask(batch, INTERVAL, x, u, p)[2] rtol = 1e-9
    slope = zeros(1, 1)
    DiffSimEnvs.jacobian!(slope, [0.3], [1.0], S(0.5, 2.0))
    @test slope == [-1.0;;]
    @test nameof(S) == :rc
    @test [q.value for q in describe(S).parameters] == [0.5, 2.0]
    @test describe(S).start_box.low == [-1.0]
end

@testset "a chain of masses, springs and a damper of the standard library" begin
    @named wall = Fixed()
    @named spring1 = Spring(k = 3.0)
    @named damper = Damper(d = 0.4)
    @named mass1 = Mass(m = 1.5)
    @named spring2 = Spring(k = 2.0)
    @named mass2 = Mass(m = 0.8)
    @named push = Force()
    joints = [
        connect(wall.flange, spring1.flange_a, damper.flange_a), connect(spring1.flange_b, damper.flange_b, mass1.flange, spring2.flange_a),
        connect(spring2.flange_b, mass2.flange, push.flange),
    ]
    @named chain = System(joints, t; systems = [wall, spring1, damper, mass1, spring2, mass2, push])
    S = simulator(
        chain; inputs = [push.f.u => (-1.0, 1.0)], cost = mass2.s^2 + 0.1 * damper.f^2, dt = 0.3, episode_steps = 20, scheme = TIGHT,
        box = [v => (-1.0, 1.0) for v in (mass1.s, mass1.v, mass2.s, mass2.v, spring1.delta_s, spring2.delta_s)],
        start = [v => 0.0 for v in (mass1.s, mass1.v, mass2.s, mass2.v, spring1.delta_s, spring2.delta_s)],
        parameters = [mass1.m, mass2.m, spring1.k, spring2.k, damper.d],
        observation = ["position" => mass2.s, "force" => spring1.f], done = mass2.s > 0.9,
    )
    function rates!(dx, x, u, p, t)
        s1, v1, s2, v2, stretch1, stretch2 = x
        m1, m2, k1, k2, d = p
        dx .= (v1, (k1 * stretch1 - d * v1 - k2 * stretch2) / m1, v2, (k2 * stretch2 + u[1]) / m2, -v1, v1 - v2)
    end
    batch = agree(
        S, ["mass1.s", "mass1.v", "mass2.s", "mass2.v", "spring1.delta_s", "spring2.delta_s"],
        ["mass1.m", "mass2.m", "spring1.k", "spring2.k", "damper.d"], rates!, (x, u, p) -> x[3]^2 + 0.1 * (p[5] * x[2])^2,
    )
    d, (x, u, p) = describe(S), sample(batch, 20)
    row(name) = x[findfirst(==(name), d.state), :]'
    stiffness = p[findfirst(q -> q.name == Symbol("spring1.k"), d.parameters)]
    @test ask(batch, OBSERVATION, x, u, p; jacobian = false)[1] ≈ [row("mass2.s"); stiffness .* row("spring1.delta_s")]
    @test d.observation == ["position", "force"]
    @test ask(batch, DONE, x, u, p; jacobian = false)[1] == (row("mass2.s") .> 0.9)
end

@testset "two tanks of the standard library's hydraulics" begin
    density, bulk = 1000.0, 1e7
    @named fluid = HydraulicFluid(density = density, bulk_modulus = bulk)
    @named inflow = MassFlow()
    @named tank1 = FixedVolume(vol = 1.0, p_int = 3e4)
    @named valve = Valve(Cd = 0.7)
    @named tank2 = FixedVolume(vol = 2.0, p_int = 1e4)
    @named outlet = Valve(Cd = 0.6)
    @named opening = Constant(k = 2e-4)
    @named drain = FixedPressure(p = 0.0)
    pipes = [
        connect(fluid, inflow.port), connect(inflow.port, tank1.port, valve.port_a), connect(valve.port_b, tank2.port, outlet.port_a),
        connect(outlet.port_b, drain.port), connect(opening.output, outlet.area),
    ]
    @named tanks = System(pipes, t; systems = [fluid, inflow, tank1, valve, tank2, outlet, opening, drain])
    S = simulator(
        tanks; inputs = [inflow.dm.u => (0.0, 4.0), valve.area.u => (1e-5, 5e-4)], cost = (tank2.p / 1e4 - 2)^2, dt = 0.5, episode_steps = 20,
        box = [tank1.m => (1003.5, 1005.0), tank2.m => (2001.0, 2005.0)], start = [tank1.m => 1003.0, tank2.m => 2002.0],
        parameters = [valve.Cd, tank2.vol], scheme = TIGHT,
    )
    pressure(m, vol) = (m / vol / density - 1) * bulk
    flow(drop, Cd, area) = sqrt(2 * drop * density / Cd) * area
    function rates!(dx, x, u, p, t)
        upper, lower = pressure(x[1], 1.0), pressure(x[2], p[2])
        between = upper > lower ? flow(upper - lower, p[1], u[2]) : -flow(lower - upper, p[1], u[2])
        dx .= (u[1] - between, between - flow(lower, 0.6, 2e-4))
    end
    agree(S, ["tank1.m", "tank2.m"], ["valve.Cd", "tank2.vol"], rates!, (x, u, p) -> (pressure(x[2], p[2]) / 1e4 - 2)^2)
end

# A ball that falls on a floor; `flap`, which the floor's event switches, pulls it.
function ball(; name = :ball)
    @parameters g = 9.81 restitution = 0.8
    @variables height(t) = 1.5 speed(t) = 0.0 push(t)
    @discretes flap(t) = 0.0
    bounce = ModelingToolkit.SymbolicContinuousCallback(
        [height ~ 0], nothing; affect_neg = [speed ~ -restitution * Pre(speed), flap ~ 1 - Pre(flap)], discrete_parameters = [flap],
    )
    return System([D(height) ~ speed, D(speed) ~ push - g - 2 * flap], t, [height, speed, push], [g, restitution, flap]; continuous_events = [bounce], name)
end

@testset "an event of a component, which changes a state and a discrete variable" begin
    @named part = ball()
    outer = System(Equation[], t; systems = [part], name = :outer)
    S = simulator(
        outer; inputs = [part.push => (-1.0, 1.0)], cost = part.height, dt = 0.7, episode_steps = 5, scheme = TIGHT,
        box = [part.height => (0.5, 1.5), part.speed => (-1.0, 1.0), part.flap => (0.0, 1.0)],
    )
    @test sort(describe(S).state) == ["part.flap", "part.height", "part.speed"]
    i = order(["part.height", "part.speed", "part.flap"], describe(S).state)
    j = order(["part.g", "part.restitution"], [string(q.name) for q in describe(S).parameters])
    batch = open_simulator(S)
    "One bounce in closed form; the pull of the flap is on before it or after it."
    function bounced(z, dt = 0.7)
        height, speed, flap, push, g, restitution = z
        a, b = g + 2flap - push, g + 2(1 - flap) - push
        fall = (speed + sqrt(speed^2 + 2a * height)) / a
        up, left = restitution * (a * fall - speed), dt - fall
        return [up * left - b * left^2 / 2, up - b * left, 1 - flap]
    end
    for z in ([1.2, -0.3, 0.0, 0.4, 9.81, 0.8], [0.8, 0.2, 1.0, -0.2, 9.5, 0.7])
        x, p = zeros(3, 1), zeros(2)
        x[i], p[j] = z[1:3], z[5:6]
        y, J, failures = ask(batch, INTERVAL, x, reshape(z[4:4], 1, 1), p)
        @test failures == 0
        @test y[i, 1] ≈ bounced(z) atol = 1e-9
        @test J[i, [i; 4; 4 .+ j], 1] ≈ ForwardDiff.jacobian(bounced, z) atol = 1e-7
    end
end

@testset "a diode that switches, and equations that stay algebraic" begin
    # Half a rectifier: a source with a diode of two straight lines charges a capacitor; the diode's law is implicit.
    @parameters C = 0.5 R = 2.0 threshold = 0.6
    @variables source(t) charge(t) = 0.0 current(t) drop(t)
    law = drop ~ ifelse(drop > threshold, threshold + 0.1 * current, 1e3 * current)
    equations = [C * D(charge) ~ current, source ~ charge + R * current + drop + 0.01 * sinh(current), law]
    @named rectifier = System(equations, t, [source, charge, current, drop], [C, R, threshold])
    # Which variables stay is the simplification's choice.
    left = ModelingToolkit.unknowns(mtkcompile(rectifier; inputs = [source]))
    box = [v => (-2.0, 2.0) for v in left]
    S = simulator(
        rectifier; inputs = [source => (-3.0, 3.0)], cost = (charge - 1)^2, dt = 0.2, episode_steps = 10, box = box,
        parameters = [C, R], scheme = Rosenbrock(reltol = 1e-10, abstol = 1e-11),
    )
    @test DiffSimEnvs.has_algebraic(S{Float64})
    "The current by bisection, and the charge by small steps."
    function current_at(charge, source, R)
        law(i) = i > 0.6e-3 ? 0.6 + 0.1i : 1e3 * i
        low, high = -5.0, 5.0
        for _ in 1:100
            middle = (low + high) / 2
            charge + R * middle + law(middle) + 0.01 * sinh(middle) < source ? (low = middle) : (high = middle)
        end
        return (low + high) / 2
    end
    function charged(z; steps = 400)
        q, source, C, R = z
        h, rate = 0.2 / steps, q -> current_at(q, source, R) / C
        for _ in 1:steps
            k1 = rate(q); k2 = rate(q + h / 2 * k1); k3 = rate(q + h / 2 * k2); k4 = rate(q + h * k3)
            q += h / 6 * (k1 + 2k2 + 2k3 + k4)
        end
        return q
    end
    batch, labels = open_simulator(S), describe(S).state
    names = [string(q.name) for q in describe(S).parameters]
    n, c = length(labels), findfirst(==("charge"), labels)
    for z in ([0.2, 2.0, 0.5, 2.0], [0.5, -1.0, 0.6, 1.8])
        x, p = zeros(n, 1), zeros(2)
        x[c, 1], p[order(["C", "R"], names)] = z[1], z[3:4]
        y, J, failures = ask(batch, INTERVAL, x, reshape(z[2:2], 1, 1), p)
        @test failures == 0
        @test y[c, 1] ≈ charged(z) atol = 1e-8
        @test J[c, [c; n + 1; n + 1 .+ order(["C", "R"], names)], 1] ≈ vec(differences(charged, z; h = 1e-4)) atol = 1e-5
    end
end

@testset "arrays of variables and parameters, an action that is a parameter, a system simplified before" begin
    @variables q(t)[1:2] = [0.1, 0.2]
    @parameters K[1:2] = [3.0, 2.0] push = 0.0
    @named oscillator = System([D(q[1]) ~ q[2], D(q[2]) ~ -K[1] * q[1] - K[2] * q[2] + push], t)
    settings = (cost = q[1]^2, dt = 0.1, episode_steps = 5, box = [q[1] => (-1.0, 1.0), q[2] => (-1.0, 1.0)], inputs = [push => (-1.0, 1.0)], scheme = TIGHT)
    rates!(dx, x, u, p, t) = (dx[1] = x[2]; dx[2] = -p[1] * x[1] - p[2] * x[2] + u[1])
    for system in (oscillator, mtkcompile(oscillator))
        S = simulator(system; settings...)
        agree(S, ["q[1]", "q[2]"], ["K[1]", "K[2]"], rates!, (x, u, p) -> x[1]^2)
        @test describe(S).start_box.low == [0.1, 0.2]
    end
    @test [q.name for q in describe(simulator(oscillator; settings..., parameters = [K[2]])).parameters] == [Symbol("K[2]")]
end

@testset "a pendulum in x and y, whose index is reduced" begin
    @variables x(t) = 1.0 y(t) = 0.0 vx(t) = 0.0 vy(t) = 0.0 tension(t) push(t)
    @named pendulum = System([D(x) ~ vx, D(y) ~ vy, D(vx) ~ push - tension * x, D(vy) ~ -tension * y - 9.81, x^2 + y^2 ~ 1], t)
    states = [x, y, vx, vy, tension]
    S = simulator(
        pendulum; cost = x^2, dt = 0.05, episode_steps = 5, inputs = [push => (-1.0, 1.0)], box = [v => (-1.0, 1.0) for v in states],
        scheme = Rosenbrock(reltol = 1e-10, abstol = 1e-11),
    )
    # The same by its angle from the lowest point.
    function swung(z)
        problem = ODEProblem((dx, x, p, t) -> (dx[1] = x[2]; dx[2] = -9.81 * sin(x[1]) + p * cos(x[1]); nothing), z[1:2], (0.0, 0.05), z[3])
        φ, ω = solve(problem, Tsit5(); reltol = 1e-12, abstol = 1e-13).u[end]
        return [sin(φ), -cos(φ), ω * cos(φ), ω * sin(φ)]
    end
    angle, rate, force = 0.6, -0.9, 0.5
    start = [sin(angle), -cos(angle), rate * cos(angle), rate * sin(angle), 1.0]
    y, J, failures = ask(open_simulator(S), INTERVAL, reshape(start, 5, 1), fill(force, 1, 1), Float64[])
    @test failures == 0
    @test y[1:4, 1] ≈ swung([angle, rate, force]) atol = 1e-8
    @test J[1:4, 6, 1] ≈ differences(swung, [angle, rate, force])[:, 3] atol = 1e-7
    # Along the constraint; what of the start is off it is settled.
    along = [cos(angle), sin(angle), -rate * sin(angle), rate * cos(angle), 0.0]
    @test J[1:4, 1:5, 1] * along ≈ differences(swung, [angle, rate, force])[:, 1] atol = 1e-6
end

@testset "time is a state where equations have it" begin
    @variables x(t) = 0.5 u(t)
    @named driven = System([D(x) ~ u + cos(t)], t, [x, u], [])
    S = simulator(driven; inputs = [u => (-1.0, 1.0)], cost = x * t, dt = 0.5, episode_steps = 4, box = [x => (-2.0, 2.0)], scheme = TIGHT)
    @test describe(S).state == ["x", "time"]
    y, J, _ = ask(open_simulator(S), INTERVAL, [0.2; 0.7;;], fill(0.1, 1, 1), Float64[])
    @test y[:, 1] ≈ [0.2 + 0.05 + sin(1.2) - sin(0.7), 1.2, 0.14] atol = 1e-9
    @test J[1, :, 1] ≈ [1, cos(1.2) - cos(0.7), 0.5] atol = 1e-9
end

@testset "what it cannot make a simulator of, it says" begin
    @variables other(t)
    for (change, text) in (
        ((; inputs = []), "at least one input"),
        ((; inputs = [other => (-1.0, 1.0)]), "inputs: the system has no variable other; it has capacitor.C"),
        ((; cost = other^2), "cost: the system has no variable other"),
        ((; box = []), "box: no bounds are given for capacitor.v"),
        ((; box = [rc_settings.box; rc_settings.box]), "box: a state is given twice"),
        ((; box = [rc.resistor.i => (-1.0, 1.0)]), "box: rc.resistor.i is no state of the simplified system, whose states are capacitor.v"),
        ((; parameters = [rc.resistor.alpha]), "parameters: nothing depends on resistor.alpha"),
        ((; box = [rc.capacitor.v => 1.0]), "box: … => (low, high) is needed, got"),
        ((; inputs = [rc.source.V.u => (1.0, 2.0, 3.0)]), "inputs: … => (low, high) is needed, got"),
        ((; cost = nothing), "cost: an expression or a number is needed, got nothing"),
        ((; observation = rc.capacitor.v), "observation: [\"name\" => expression, …] is needed"),
        ((; observation = ["u" => rc.source.V.u]), "observation: it depends on the input source.V.u"),
        ((; done = rc.capacitor.v), "done: an expression that is true or false is needed"),
        ((; observation = ["x" => D(rc.ground.g.i)]), "observation x: the system does not know the derivative"),
    )
        @test_throws text simulator(rc; rc_settings..., change...)
    end
    # Events of which a gradient would miss something.
    @variables height(t) = 1.5 speed(t) = 0.0 push(t) energy(t)
    falls = [D(height) ~ speed, D(speed) ~ push - 9.81, energy ~ 9.81 * height + speed^2 / 2]
    falling(; events...) = System(falls, t, [height, speed, push, energy], []; name = :falling, events...)
    settings = (
        inputs = [push => (-1.0, 1.0)], cost = energy, dt = 0.1, episode_steps = 5, box = [height => (0.0, 1.0), speed => (-1.0, 1.0)],
    )
    for (events, text) in (
        ((; continuous_events = [[height ~ 0] => [energy ~ 0.5 * Pre(energy)]]), "an event sets energy(t), which is no state"),
        ((; continuous_events = [[height ~ 0] => ModelingToolkit.ImperativeAffect((m, o, c, i) -> m; modified = (; speed))]), "an event calls a function"),
        ((; discrete_events = [0.05 => [speed ~ -Pre(speed)]]), "events at given times"),
    )
        @test_throws text simulator(falling(; events...); settings...)
    end
    @parameters undeclared = 0.8
    @named short = System([D(height) ~ speed, D(speed) ~ push - 9.81], t; continuous_events = [[height ~ 0] => [speed ~ -undeclared * Pre(speed)]])
    @test_throws "that only an event uses is to be declared" simulator(short; settings..., cost = height)
    @named implicit = System([D(height) ~ speed, D(speed) ~ push - 9.81], t; continuous_events = [[height ~ 0] => [speed ~ 1 - speed]])
    @test_throws "an event sets speed by its value after the event: write Pre(…)" simulator(implicit; settings..., cost = height)
    @variables unbound(t)
    @named open_ended = System([D(height) ~ speed, D(speed) ~ push - 9.81 + unbound], t)
    @test_throws "a variable without an equation belongs into `inputs`" simulator(open_ended; settings..., cost = height)
    # In the order of the box.
    @test describe(simulator(falling(); settings...)).state == ["height", "speed"]
    @test describe(simulator(falling(); settings..., box = reverse(settings.box))).state == ["speed", "height"]
end
